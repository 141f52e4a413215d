"""Training checkpoints: how they are written, what a run was made from, where it goes on, and what comes of it."""
