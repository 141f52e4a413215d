"""Models at rest: weights, model folders, verification, adapters, training checkpoints; formats/ of other tools."""

from .loading import load_model

__all__ = ["load_model"]
