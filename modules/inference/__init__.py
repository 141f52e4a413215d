"""Text from a model: the generator behind `pipeline()`, MLflow's pyfunc, and the HTTP server in server/."""
