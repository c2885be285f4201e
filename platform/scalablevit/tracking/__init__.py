"""MLflow runs and registry, written through an outbox on disk."""
