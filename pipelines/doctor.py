"""Check what a training needs of this machine, the cluster, storage and MLflow, and say what to do."""

import sys

import _path  # noqa: F401  # makes scalablevit importable from this checkout or uploaded copy

from scalablevit.cli import main

if __name__ == "__main__":
    sys.exit(main("doctor"))
