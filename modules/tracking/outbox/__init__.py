"""A local log first, MLflow after it: what a run records survives an outage of the store (transactional outbox)."""
