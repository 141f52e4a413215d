"""MLflow runs that outlive their store: a stage writes to a local log first, a thread sends it."""
