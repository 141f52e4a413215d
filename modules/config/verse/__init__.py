"""The forms of Chinese verse that a text can be asked to keep, as data."""
