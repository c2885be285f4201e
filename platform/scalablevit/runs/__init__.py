"""A run: its folder, lease, status, metrics, console and result."""
