"""Run the detection stage of a recipe (and the stage whose weights it starts from, if that has not finished)."""

import sys

import _path  # noqa: F401  # makes scalablevit importable from this checkout or uploaded copy

from scalablevit.cli import main

if __name__ == "__main__":
    sys.exit(main("detect"))
