"""Trained models in use: prediction, serving, export, and the comparison with the champion."""
