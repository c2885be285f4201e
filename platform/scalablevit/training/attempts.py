"""What became of a run's workers: a line in its folder when a job asks for them, they take a step, or are lost."""

import json
import os
import sys
import time
from pathlib import Path
from typing import Any

from ray.train import Checkpoint, UserCallback

from scalablevit.training.ray_internals import failed_health_check


class AttemptsCallback(UserCallback):
    """Appends lines as Ray Train's controller, in which it runs on the driver's node, learns of them.

    - `{"event": "started", ...}` with the fields of `callbacks.StartupTimings` and `world`: rank 0 of a new group of
      workers has taken a step.
    - `{"event": "lost", "time": seconds since the epoch, "ranks": {"<rank>": reason}}`: workers failed, were lost or
      did not answer.

    The job itself adds `{"event": "submitted", "time": ..., "last": ...}` when it begins a stage (`add_event`), where
    `last` is when the job before it was last known to be at work, or null.

    An exception out of a callback ends the run, so none gets out.

    Args:
        file: on a local disk.
    """

    def __init__(self, file: Path) -> None:
        self._file = file

    def after_report(self, run_context: object, metrics: list[dict[str, Any]], checkpoint: Checkpoint | None) -> None:
        """Ray calls it once all ranks have reported."""
        for reported in metrics:
            if reported.get("started"):
                add_event(self._file, {"event": "started", **reported["started"]})

    def after_exception(self, run_context: object, worker_exceptions: dict[int, Exception]) -> None:
        """Ray calls it with what happened to each rank that did not go on."""
        ranks = {str(rank): reason_of(error) for rank, error in sorted(worker_exceptions.items())}
        add_event(self._file, {"event": "lost", "time": time.time(), "ranks": ranks})


def add_event(path: Path, event: dict[str, Any]) -> None:
    """Append an event; a disk that does not take it is reported on standard error only."""
    try:
        with path.open("ab+") as file:
            end = file.seek(0, os.SEEK_END)
            file.seek(max(0, end - 1))
            torn = file.read(1) not in (b"", b"\n")  # half a line, of a process that died while it wrote
            file.write(b"\n" * torn + json.dumps(event).encode() + b"\n")
    except OSError as error:
        print(f"{path} was not written: {error}", file=sys.stderr)


def reason_of(error: Exception) -> str:
    """One line of what Ray says of a worker: of a traceback the last line, of its own messages the first."""
    error = failed_health_check(error)
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    if not lines:
        return type(error).__name__
    return lines[-1] if any(line.startswith("Traceback") for line in lines) else lines[0]


def read_attempts(file: Path, offset: int = 0) -> tuple[list[dict[str, Any]], int]:
    """Events from a byte offset on, and where reading goes on; a line that is still being written is left out.

    Lines that are no events (a power cut, a damaged disk) are left out, too, and counted on standard error.
    """
    try:
        with file.open("rb") as opened:
            opened.seek(offset)
            whole = [line for line in opened if line.endswith(b"\n")]
    except FileNotFoundError:
        return [], offset
    events = [event for line in whole if (event := _parsed(line)) is not None]
    if len(events) < len(whole):
        print(f"{file}: {len(whole) - len(events)} unreadable lines were left out", file=sys.stderr, flush=True)
    return events, offset + sum(map(len, whole))


def _parsed(line: bytes) -> dict[str, Any] | None:
    try:
        event = json.loads(line)
    except ValueError:
        return None
    return event if isinstance(event, dict) and isinstance(event.get("event"), str) else None
