"""Pack an image folder into tar shards."""

import sys

import _path  # noqa: F401  # makes scalablevit importable from this checkout or uploaded copy

from scalablevit.jobs import pack
from scalablevit.jobs.cli import guarded

if __name__ == "__main__":
    sys.exit(guarded(lambda: pack.run(pack.parse(None))))
