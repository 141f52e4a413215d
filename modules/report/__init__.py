"""One self-contained HTML page of an evaluation: contents.py says what can stand in it, page.py writes it."""

from .contents import Column, Example, Report, Sample
from .page import html

__all__ = ["Column", "Example", "Report", "Sample", "html"]
