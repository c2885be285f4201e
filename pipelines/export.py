"""Write a model as ONNX and torch.export archives."""

import sys

import _path  # noqa: F401  # makes scalablevit importable from this checkout or uploaded copy

from scalablevit.jobs import export
from scalablevit.jobs.cli import guarded

if __name__ == "__main__":
    sys.exit(guarded(lambda: export.run(export.parse(None))))
