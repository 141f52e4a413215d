"""What a model is scored on, by which measure, and against whom: what evaluate and register settle before they work."""
