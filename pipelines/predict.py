"""Answer a folder of images with a registered model."""

import sys

import _path  # noqa: F401  # makes scalablevit importable from this checkout or uploaded copy

from scalablevit.jobs import predict
from scalablevit.jobs.cli import guarded

if __name__ == "__main__":
    sys.exit(guarded(lambda: predict.run(predict.parse(None))))
