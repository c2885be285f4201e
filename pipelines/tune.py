"""Search hyper-parameters with Ray Tune, train the best ones at full length, and register the model."""

import sys

import _path  # noqa: F401  # makes scalablevit importable from this checkout or uploaded copy

from scalablevit.cli import main

if __name__ == "__main__":
    sys.exit(main("tune"))
