"""The paper's analysis: feature maps, receptive fields, the ablation of its attention, and its table of costs."""

import sys

import _path  # noqa: F401  # makes scalablevit importable from this checkout or uploaded copy

from scalablevit.jobs import analyse
from scalablevit.jobs.cli import guarded

if __name__ == "__main__":
    sys.exit(guarded(lambda: analyse.run(analyse.parse(None))))
