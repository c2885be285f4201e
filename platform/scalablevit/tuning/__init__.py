"""Searches for a recipe's values: trials by Ray Tune, and their results."""
