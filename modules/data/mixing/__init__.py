"""Training on several sources at once, each with its share of the trained tokens."""
