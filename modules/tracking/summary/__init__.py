"""What a run says of itself in MLflow: its name, its description, and what it cost."""
