"""Inspection of data before training: statistics, and problems."""
