"""Run a recipe's search, if it names one, and all its stages: pretrain, fine-tune, evaluate, register."""

import sys

import _path  # noqa: F401  # makes scalablevit importable from this checkout or uploaded copy

from scalablevit.cli import main

if __name__ == "__main__":
    sys.exit(main("full"))
