"""MLflow runs and registry, written through a spool on disk."""
