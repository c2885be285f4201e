"""Recipes: schema, loading, errors; free of torch."""
