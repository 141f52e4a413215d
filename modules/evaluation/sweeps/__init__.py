"""A sweep: which values are tried next, what came of them, and whether the best is better."""
