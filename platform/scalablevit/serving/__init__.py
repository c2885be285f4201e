"""Registered models in use."""
