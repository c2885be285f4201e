"""Plots: curves, samples, searches, and predictions on their images; the colours of classes."""
