"""What an entry script does: gates, stages, chain, table."""
