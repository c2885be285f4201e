"""The command line: `scalablevit`, with a verb for everything that the platform does."""

from scalablevit.cli.tree import main

__all__ = ["main"]
