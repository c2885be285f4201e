"""Appends what Ray Train's workers report to the outbox."""

import sys
import time
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypedDict, cast

from ray.train import Checkpoint, UserCallback

from scalablevit.run_files import CALLBACK_LOG
from scalablevit.tracking.outbox import Outbox
from scalablevit.tracking.records import StepMetrics


class WorkerReport(TypedDict, total=False):
    """What one worker reports through Ray Train; plain values, since it is sent to another process."""

    records: list[StepMetrics]
    """Metrics by step, from rank 0; empty on the other ranks."""
    node: dict[str, float]
    """Metrics of the node by name, and its `rank`, from one rank of each node; empty on the others."""
    started: dict[str, float | str]
    """Fields of `attempt_events.StartupTimings`, once, from rank 0."""


class OutboxCallback(UserCallback):
    """Appends what the workers report to the outbox; runs in Ray Train's controller, on the driver's node.

    Each worker reports a `WorkerReport`. A node's metrics are recorded under `system/node<rank>/<metric>`, at the step
    of the report's last record.

    An exception out of a callback ends the run, so none gets out: failures are written to `callback.log` in the
    outbox's folder and to stderr. Points that could not be written are kept and tried again at the next report.

    Args:
        folder: the outbox's folder.
        uid: the run's uid.
    """

    def __init__(self, folder: str | Path, uid: str) -> None:
        self._folder = Path(folder)
        self._uid = uid
        self._outbox: Outbox | None = None
        self._waiting: list[StepMetrics] = []

    def __getstate__(self) -> dict[str, Any]:
        """Return the state without the open file: Ray pickles callbacks to the controller, and to every new worker."""
        return {**self.__dict__, "_outbox": None}

    def after_report(self, run_context: object, metrics: list[dict[str, Any]], checkpoint: Checkpoint | None) -> None:
        """Record a report; Ray calls this once all ranks have reported, in the order of the reports.

        Args:
            run_context: Ray's; not needed.
            metrics: a `WorkerReport` for each rank that reported, in ascending order (a lost rank's is missing).
            checkpoint: Ray's; not needed, since ours are not reported to Ray.
        """
        try:
            self._waiting += _points(cast(list[WorkerReport], metrics))
            self._record()
        except Exception:
            self._note(traceback.format_exc())

    def _record(self) -> None:
        try:
            if self._outbox is None:
                self._outbox = Outbox(self._folder)
            self._outbox.metrics(self._uid, self._waiting)
            self._outbox.sync()
        except OSError:
            raise
        except Exception:
            # A record of the wrong form would fail again at every later report.
            self._waiting.clear()
            raise
        self._waiting.clear()

    def _note(self, failure: str) -> None:
        print(f"tracking: a report was not recorded\n{failure}", file=sys.stderr)
        try:
            with (self._folder / CALLBACK_LOG).open("a") as file:
                file.write(f"{time.strftime('%Y-%m-%d %H:%M:%S')} {failure}\n")
        except OSError as error:
            print(f"tracking: nor could that be logged: {error}", file=sys.stderr)


def _points(reports: Sequence[WorkerReport]) -> list[StepMetrics]:
    records = [record for report in reports for record in report.get("records", [])]
    nodes = [report["node"] for report in reports if report.get("node")]
    if not records:
        return []
    newest = records[-1]
    return records + [
        {
            **newest,  # step, time and roll-backs: those of a step done again replace the first ones
            "metrics": {f"system/node{node['rank']}/{metric}": node[metric] for metric in node if metric != "rank"},
        }
        for node in nodes
    ]
