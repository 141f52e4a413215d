"""Models at rest: weights, model folders, verification, adapters, training checkpoints; formats/ of other tools."""
