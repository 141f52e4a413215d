"""Served requests as traces in MLflow, what people think of them, and rows made of both."""
