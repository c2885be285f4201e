"""Make the report of a job, a stage or a search again."""

import sys

import _path  # noqa: F401  # makes scalablevit importable from this checkout or uploaded copy

from scalablevit.jobs import report
from scalablevit.jobs.cli import guarded

if __name__ == "__main__":
    sys.exit(guarded(lambda: report.run(report.parse(None))))
