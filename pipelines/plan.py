"""Predict what a training takes: hours, images/s, decode cores, memory, checkpoint traffic and cost."""

import sys

import _path  # noqa: F401  # makes scalablevit importable from this checkout or uploaded copy

from scalablevit.cli import main

if __name__ == "__main__":
    sys.exit(main("plan"))
