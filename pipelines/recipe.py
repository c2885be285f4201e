"""Rewrite recipes and search spaces in the current version's keys."""

import sys

import _path  # noqa: F401  # makes scalablevit importable from this checkout or uploaded copy

from scalablevit.jobs import recipe
from scalablevit.jobs.cli import guarded

if __name__ == "__main__":
    sys.exit(guarded(lambda: recipe.run(recipe.parse(None))))
