"""Write a first recipe, list the shipped ones, print their schema, or rewrite files in the newest keys."""

import sys

import _path  # noqa: F401  # makes scalablevit importable from this checkout or uploaded copy

from scalablevit.cli import main

if __name__ == "__main__":
    sys.exit(main("recipe"))
