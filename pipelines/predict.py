"""Predict images with a registered model or a finished run: a folder, one image, or a list."""

import sys

import _path  # noqa: F401  # makes scalablevit importable from this checkout or uploaded copy

from scalablevit.cli import main

if __name__ == "__main__":
    sys.exit(main("predict"))
