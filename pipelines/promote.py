"""Make a candidate the champion of its registered model if it passes the gate."""

import sys

import _path  # noqa: F401  # makes scalablevit importable from this checkout or uploaded copy

from scalablevit.jobs import promote
from scalablevit.jobs.cli import guarded

if __name__ == "__main__":
    sys.exit(guarded(lambda: promote.run(promote.parse(None))))
