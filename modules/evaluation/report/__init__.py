"""An evaluation as one self-contained HTML page (page.py) and as a model's card (card.py), both of contents.Report."""
