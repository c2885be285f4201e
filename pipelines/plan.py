"""Predict what a training takes: hours, images/s, decode cores, memory, checkpoint traffic and cost."""

import sys

import _path  # noqa: F401  # makes scalablevit importable from this checkout or uploaded copy

from scalablevit.jobs import plan
from scalablevit.jobs.cli import guarded

if __name__ == "__main__":
    sys.exit(guarded(lambda: plan.run(plan.parse(None))))
