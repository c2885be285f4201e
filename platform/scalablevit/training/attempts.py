"""Writes what Ray Train's controller learns of a run's workers into the run's `attempts.jsonl`."""

import re
import time
from pathlib import Path
from typing import Any

from ray.train import Checkpoint, UserCallback

from scalablevit.training.attempt_events import Lost, StartupTimings, add_event
from scalablevit.training.ray_internals import failed_health_check


class AttemptsCallback(UserCallback):
    """Appends `StartupTimings` and `Lost` as Ray Train's controller, on the driver's node, learns of them.

    The job itself adds `Submitted` when it begins a stage.

    An exception out of a callback ends the run, so none gets out.

    Args:
        file: path of `attempts.jsonl`, on a local disk.
    """

    def __init__(self, file: Path) -> None:
        self._file = file

    def after_report(self, run_context: object, metrics: list[dict[str, Any]], checkpoint: Checkpoint | None) -> None:
        """Add `StartupTimings` if a report has them; Ray calls this once all ranks have reported."""
        for report in metrics:
            if report.get("started"):
                add_event(self._file, StartupTimings(**report["started"]))

    def after_exception(self, run_context: object, worker_exceptions: dict[int, Exception]) -> None:
        """Add `Lost`; Ray calls this with the exception of each rank that failed or was lost."""
        ranks = {str(rank): reason_of(error) for rank, error in sorted(worker_exceptions.items())}
        add_event(self._file, Lost(time.time(), ranks))


def reason_of(error: Exception) -> str:
    """Return one line of Ray's error about a worker: the last line of a traceback, the first of another message.

    The address of its node is before it where Ray's message has it.
    """
    error = failed_health_check(error)
    node = re.search(r"^\s+ip: (\S+)$", str(error), re.MULTILINE)
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    if not lines:
        return type(error).__name__
    line = lines[-1] if any(line.startswith("Traceback") for line in lines) else lines[0]
    return f"node {node[1]}: {line}" if node else line
