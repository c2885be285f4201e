"""The paper's analysis: feature maps, receptive fields, the ablation of its attention, and its table of costs."""

import sys

import _path  # noqa: F401  # makes scalablevit importable from this checkout or uploaded copy

from scalablevit.cli import main

if __name__ == "__main__":
    sys.exit(main("analyse"))
