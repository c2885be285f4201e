"""Follows a running stage by its outbox: prints lines, keeps `status.json` and the files of metrics up to date."""

import math
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from types import TracebackType

from scalablevit.config.recipe import FIRST_STEPS
from scalablevit.run_files import ATTEMPTS, RECORDS, START_NOTE
from scalablevit.runs.cleanup import clean_up
from scalablevit.runs.console import Console, WaitReporter, format_duration
from scalablevit.runs.metrics import IS_BEST, MetricFiles
from scalablevit.runs.run_store import RunStore
from scalablevit.runs.status import Best, StatusFile
from scalablevit.text import paint
from scalablevit.tracking.notifications import Notifier
from scalablevit.tracking.outbox import now_ms, read_lines
from scalablevit.tracking.records import MetricsRecord
from scalablevit.training.attempt_events import Lost, read_attempts

POLL_S = 0.5
"""Seconds between two reads of the outbox."""
Values = Mapping[str, float | str]
"""Metrics by name as the outbox has them: NaN and infinities are strings."""

QUIET_S = 5.0
"""Seconds between two training lines where there is no live line; evaluations and the first steps print always."""
SILENT_S = 60.0
"""Seconds without news of a running training, after which a line says what the last news was."""
STALLED_S = 1800.0
"""Seconds without news after which a training counts as stalled, unless it was silent for a third as long before."""
MAX_METRICS = 4
"""Number of metrics in the line of an evaluation; the run's files have them all."""
WORKERS = "the workers to start (Ray, torch, the data)"
"""What a stage waits for before its first step, in words."""


class Progress:
    """Follows a training from a thread while its context lasts; no training step waits for it.

    Args:
        store: the run's folder.
        uid: the uid of the run's records.
        stage: the stage's name.
        total_steps: optimizer steps of the whole training.
        metrics: names of evaluation metrics, those that matter most first; the first one decides which checkpoint is
            best.
        status: the run's `status.json`, which this thread keeps up to date.
        notifier: records that the training has stalled; None: nobody is notified.
        work: the work up to a step, in any unit, where steps differ (`Length.work`).
    """

    def __init__(
        self,
        store: RunStore,
        uid: str,
        stage: str,
        total_steps: int,
        metrics: Sequence[str],
        status: StatusFile,
        notifier: Notifier | None = None,
        work: Callable[[int], float] = float,
    ) -> None:
        self._store = store
        store.write(START_NOTE, b"")  # an earlier attempt's note is not this one's
        self._note: bytes | None = None
        self._expects_note = True
        self._outbox = outbox = store.outbox
        self._uid = uid
        self._console = Console(stage)
        self._waiting = WaitReporter(self._console, WORKERS)
        self._total = total_steps
        self._work = work
        self._files = MetricFiles(store, uid)
        self._metrics = metrics
        self._best_metric = metrics[0]
        self._status = status
        self._notifier = notifier
        self._stalled_s = STALLED_S
        self._longest_s = 0.0
        self._offset = (outbox / RECORDS).stat().st_size
        self._attempts = store.local / ATTEMPTS
        _, self._attempts_offset = read_attempts(self._attempts)
        self._printed = 0.0
        self._memory = ""
        self._eta = EtaEstimator(total_steps, work=work)
        self._roll_backs = 0
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._follow, name="progress", daemon=True)

    def __enter__(self) -> "Progress":
        self._files.read()
        self._status.update(state="started", step=self._files.last_step, best=self._best())
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stopped.set()
        self._thread.join()
        clean_up(
            error,
            ("showing the last records", self._print_new),
            ("writing metrics.jsonl and results.csv", self._write_metrics),
            ("closing the screen", self._console.close),
        )

    def _follow(self) -> None:
        while not self._stopped.wait(POLL_S):
            with suppress(OSError):  # a disk that fails for a moment; what was not read is read the next time
                self._print_new()
                self._waiting.update()
                self._notify_if_stalled()

    def _notify_if_stalled(self) -> None:
        if self._notifier is not None and self._waiting.waited_s() >= self._stalled_s:
            self._stalled_s = math.inf  # once, until there is news
            self._notifier.record("stalled", *self._status.best)

    def _print_new(self) -> None:
        if self._expects_note and (note := self._store.read(START_NOTE)) and note != self._note:
            self._expects_note, self._note = False, note
            first, _, names = note.decode().partition("\n")
            self._console.say(first + f" ({self._store.location}/{START_NOTE} names them)" * bool(names))
            self._waiting.begin("the first step")
        events, self._attempts_offset = read_attempts(self._attempts, self._attempts_offset)
        for event in events:
            self._eta = EtaEstimator(self._total, work=self._work)  # no steps are trained between two attempts
            if isinstance(event, Lost):
                lost = "; ".join(f"rank {rank}: {reason}" for rank, reason in event.ranks.items())
                self._console.say(f"workers were lost ({lost}); if cluster.max_failures allows, the last checkpoint "
                                 "goes on")  # fmt: skip
                self._waiting.begin(WORKERS)
        records = []
        for line in read_lines(self._outbox, self._offset):
            self._offset = line.end
            if isinstance(line.record, MetricsRecord) and line.record.uid == self._uid:
                records.append(line.record)
        for record in records:
            self._memory = format_memory(record.metrics) or self._memory
        for record in records:
            self._print_step(record)
        if any(isinstance(event, Lost) for event in events):
            self._expects_note = True  # the workers that go on write another one

    def _print_step(self, record: MetricsRecord) -> None:
        step, metrics = record.step, record.metrics
        self._expects_note = False
        self._longest_s = max(self._longest_s, self._waiting.waited_s())
        self._stalled_s = max(STALLED_S, 3 * self._longest_s)
        self._waiting.begin(f"news since step {step}/{self._total}", SILENT_S)
        if self._best_metric in metrics:
            self._console.say(f"step {step}/{self._total}  {format_evaluation(metrics, self._metrics)}")
            self._write_metrics()
        elif "train/loss" in metrics:
            if record.roll_backs != self._roll_backs:
                self._roll_backs = record.roll_backs
                self._eta = EtaEstimator(self._total, max(self._eta.since_ms, record.time_ms), self._work)
            self._eta.add(step, record.time_ms)
            # a narrow terminal cuts the end off
            parts = (f"step {step}/{self._total}", self._eta.format(step), format_training(metrics), self._memory)
            line = "  ".join(part for part in parts if part)
            self._console.show(line)
            quiet = self._console.is_live or time.monotonic() - self._printed < QUIET_S
            if not quiet or step in FIRST_STEPS or step >= self._total:
                self._printed = time.monotonic()
                self._console.say(line)
            self._status.update(step=step)

    def _write_metrics(self) -> None:
        """Bring the run's files and its best value up to date with the outbox."""
        self._files.read()
        if self._files.last_step:
            self._status.update(step=self._files.last_step, best=self._best())
        try:
            self._files.write()
        except OSError as error:  # a full disk must not end training
            self._console.say(f"metrics.jsonl and results.csv were not written: {error}")

    def _best(self) -> Best | None:
        if self._files.best is None:
            return None
        step, row = self._files.best
        return Best(self._best_metric, float(row[self._best_metric]), step)


class EtaEstimator:
    """Estimates the time to the end, evaluations included, from the steps since an attempt's start or a roll-back.

    Args:
        total_steps: optimizer steps of the whole training.
        since_ms: the time of that, milliseconds since the epoch; None: now.
        work: the work up to a step, in any unit.
    """

    def __init__(self, total_steps: int, since_ms: int | None = None, work: Callable[[int], float] = float) -> None:
        self._total = total_steps
        self._work = work
        self.since_ms = now_ms() if since_ms is None else since_ms
        self._first: tuple[int, int] | None = None
        self._seconds_per_work = 0.0

    def add(self, step: int, time_ms: int) -> None:
        """Add a log point (step, milliseconds since the epoch); ignore one that was measured before `since_ms`."""
        if self._first is None and time_ms >= self.since_ms:
            self._first = (step, time_ms)
        if self._first is not None and step > self._first[0]:
            done = self._work(step) - self._work(self._first[0])
            self._seconds_per_work = (time_ms - self._first[1]) / 1000 / done

    def format(self, step: int) -> str:
        """Return a text such as `ETA 3 h 20 min`; empty until two log points are known."""
        left = self._work(self._total) - self._work(step)
        return f"ETA {format_duration(left * self._seconds_per_work)}" if self._seconds_per_work else ""


def format_memory(metrics: Values) -> str:
    """Return the first node's peak GPU memory, else its process's memory, as text in GiB; empty if neither is known."""
    for name, key in (("GPU memory", "gpu_peak_allocated_gib"), ("memory", "process_memory_gib")):
        if f"system/node0/{key}" in metrics:
            return f"{name} {float(metrics[f'system/node0/{key}']):.1f} GiB"
    return ""


def format_training(metrics: Values) -> str:
    """Return the line of a log point's metrics."""
    return (
        f"epoch {float(metrics['train/epoch']):.2f}  loss {float(metrics['train/loss']):.4f}  "
        f"lr {float(metrics['train/lr']):.2e}  grad {float(metrics['train/grad_norm']):.2f}  "
        f"{float(metrics['train/images_per_s']):.0f} images/s  "
        f"data wait {100 * float(metrics['train/data_wait']):.0f} %{_format_nonfinite(metrics)}"
    )


def format_evaluation(metrics: Values, order: Sequence[str]) -> str:
    """Return the metrics of an evaluation that matter most, and the number of bad samples if there are any.

    Args:
        metrics: of the evaluation, by name.
        order: names, those that matter most first.
    """
    rank = {name: index for index, name in enumerate(order)}
    names = sorted(filter(_is_overall_metric, metrics), key=lambda name: rank.get(name, len(rank)))[:MAX_METRICS]
    names += ["val/bad_samples"] * bool(metrics.get("val/bad_samples"))
    values = ", ".join(f"{name.removeprefix('val/')} {float(metrics[name]):.4f}" for name in names)
    best = "  " + paint("(best so far)", "green") if metrics.get(IS_BEST) == 1.0 else ""
    return f"evaluation: {values}{best}"


def _format_nonfinite(metrics: Values) -> str:
    """Return what was done about steps that were not finite; empty if nothing was."""
    counters = {"skipped steps": "train/skipped_steps", "roll-backs": "train/roll_backs"}
    return "".join(f"  {float(metrics[key]):.0f} {name}" for name, key in counters.items() if metrics.get(key))


def _is_overall_metric(name: str) -> bool:
    """Return whether a validation metric is over all classes and no counter."""
    return name.startswith("val/") and name.count("/") == 1 and name not in (IS_BEST, "val/samples", "val/bad_samples")
