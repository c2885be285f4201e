"""Lines about a running stage, read from its spool as they arrive."""

import sys
import threading
import time
from typing import Any, TextIO

from scalablevit.jobs.run_store import RunStore
from scalablevit.tracking.spool import RECORDS, read_lines
from scalablevit.training.attempts import ATTEMPTS, read_attempts
from scalablevit.training.storage import START_NOTE

POLL_S = 0.5
QUIET_S = 5.0
"""Training lines are printed at most this often; evaluations always."""


class Progress:
    """A thread that prints while its context lasts."""

    def __init__(self, store: RunStore, uid: str, stage: str, total_steps: int, best_metric: str) -> None:
        self._store = store
        store.write(START_NOTE, b"")  # what an earlier attempt left there is not this one's
        self._noted = False
        self._spool = spool = store.local / "spool"
        self._uid = uid
        self._stage = stage
        self._total = total_steps
        self._best_metric = best_metric
        self._offset = (spool / RECORDS).stat().st_size
        self._attempts = store.local / ATTEMPTS
        _, self._attempts_offset = read_attempts(self._attempts)
        self._printed = 0.0
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._follow, name="progress", daemon=True)
        self._out: TextIO = sys.stdout

    def __enter__(self) -> "Progress":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopped.set()
        self._thread.join()
        self._print_new()

    def _follow(self) -> None:
        while not self._stopped.wait(POLL_S):
            self._print_new()

    def _print_new(self) -> None:
        if not self._noted and (note := self._store.read(START_NOTE)):
            self._noted = True
            self._say(note.decode())
        events, self._attempts_offset = read_attempts(self._attempts, self._attempts_offset)
        for event in events:
            if event["event"] == "lost":
                lost = "; ".join(f"rank {rank}: {reason}" for rank, reason in event["ranks"].items())
                self._say(f"workers were lost ({lost}); if cluster.max_failures allows, the last checkpoint goes on")
        for line in read_lines(self._spool, self._offset):
            self._offset = line.end
            record = line.record
            if record is not None and record["kind"] == "metrics" and record["uid"] == self._uid:
                self._show(record["step"], record["metrics"])

    def _show(self, step: int, metrics: dict[str, Any]) -> None:
        if self._best_metric in metrics:
            figures = ", ".join(
                f"{k.removeprefix('val/')} {float(v):.4f}" for k, v in metrics.items() if _headline(k, v)
            )
            best = "  (best so far)" if metrics.get("val/is_best") == 1.0 else ""
            self._say(f"step {step}/{self._total}  evaluation: {figures}{best}")
        elif "train/loss" in metrics and (step >= self._total or time.monotonic() - self._printed >= QUIET_S):
            rate = float(metrics["train/images_per_s"])
            self._say(
                f"step {step}/{self._total}  epoch {float(metrics['train/epoch']):.2f}  "
                f"loss {float(metrics['train/loss']):.4f}  lr {float(metrics['train/lr']):.2e}  "
                f"grad {float(metrics['train/grad_norm']):.2f}  {rate:.0f} images/s  "
                f"data wait {100 * float(metrics['train/data_wait']):.0f} %{_remedies(metrics)}"
            )

    def _say(self, text: str) -> None:
        self._printed = time.monotonic()
        print(f"[{self._stage}] {text}", file=self._out, flush=True)


def _remedies(metrics: dict[str, Any]) -> str:
    """What was done about steps that were not finite, if anything."""
    told = {"skipped steps": "train/skipped_steps", "roll-backs": "train/roll_backs"}
    return "".join(f"  {float(metrics[key]):.0f} {name}" for name, key in told.items() if metrics.get(key))


def _headline(name: str, value: float | str) -> bool:
    """Figures for people, not those of single classes; bad samples when there are any."""
    if name == "val/bad_samples":
        return bool(value)
    return name.startswith("val/") and name.count("/") == 1 and name not in ("val/is_best", "val/samples")
