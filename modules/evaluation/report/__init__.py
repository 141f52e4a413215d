"""An evaluation as one self-contained HTML page (page.py) and as a model's card (card.py), both of contents.Report."""

from __future__ import annotations

from .card import model_card
from .contents import Column, Example, Report, Sample
from .page import html

__all__ = ["Column", "Example", "Report", "Sample", "html", "model_card"]
