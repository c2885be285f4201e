"""Run the classification stages of a recipe: pretraining or fine-tuning."""

import sys

import _path  # noqa: F401  # makes scalablevit importable from this checkout or uploaded copy

from scalablevit.cli import main

if __name__ == "__main__":
    sys.exit(main("pretrain"))
