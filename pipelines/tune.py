"""Search a recipe's values by Ray Tune, train the best in full, and register it."""

import sys

import _path  # noqa: F401  # makes scalablevit importable from this checkout or uploaded copy

from scalablevit.cli import main

if __name__ == "__main__":
    sys.exit(main("tune"))
