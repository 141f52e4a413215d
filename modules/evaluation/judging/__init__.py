"""Answers of a model, ranked by metrics: preference rows without a person."""
