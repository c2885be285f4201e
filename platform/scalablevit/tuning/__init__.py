"""Searching a recipe's values: trials by Ray Tune, their table and their plots."""
