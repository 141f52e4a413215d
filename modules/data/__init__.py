"""From rows of text to the steps that training takes; corpora/ makes data folders of public data."""
