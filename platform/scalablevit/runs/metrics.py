"""`metrics.jsonl` and `results.csv` in a run's folder: its metrics by step, readable without any server."""

import csv
import io
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

from scalablevit.run_files import METRICS, RECORDS, RESULTS
from scalablevit.runs.run_store import RunStore
from scalablevit.tracking.outbox import read_lines
from scalablevit.tracking.records import MetricsRecord
from scalablevit.training.storage import put_text

IS_BEST = "val/is_best"
"""Metric that is 1 where an evaluation was the best so far, else 0."""

Row = dict[str, float | str]
"""Metrics of one step, and `time` (ISO 8601, UTC) of the first of them; NaN and infinities are strings as in JSON."""


def metrics_by_step(outbox: Path, uid: str) -> dict[int, Row]:
    """Return a run's metrics by step, in ascending order of steps.

    The outbox keeps the first of equal points, so each step occurs once, however often a run was killed and resumed.
    Steps that a roll-back has undone are left out; those done again have the later values.

    Args:
        outbox: folder of the outbox.
        uid: the run's uid.
    """
    rows: dict[int, Row] = {}
    roll_backs = 0
    for line in read_lines(outbox):
        if isinstance(line.record, MetricsRecord) and line.record.uid == uid:
            roll_backs = _add(rows, line.record, roll_backs)
    return dict(sorted(rows.items()))


def best_step(rows: Mapping[int, Row]) -> int | None:
    """Return the step of the best evaluation; None before the first evaluation."""
    return max((step for step, row in rows.items() if row.get(IS_BEST) == 1.0), default=None)


@dataclass
class _Settled:
    """The steps that are in both files and no longer in memory."""

    step: int = -1
    """The last of those steps; -1: none."""
    lines: int = 0
    """Bytes of `metrics.jsonl` that those steps take."""
    table: int = 0
    """Bytes of `results.csv` that those steps take, with the header."""
    trained: Row = field(default_factory=dict)
    """The training metrics that the next evaluation's row begins with."""
    best: tuple[int, Row] | None = None
    """Step and row of the best evaluation."""


class MetricFiles:
    """Keeps both files of a run up to date; each byte of its outbox is read once.

    - `metrics.jsonl`: a line for each step with metrics of any kind: `step`, `time`, and the metrics by name.
    - `results.csv`: a row for each evaluation, with the training metrics of the last log point up to it.

    The driver writes them at each evaluation and at the end, so between two evaluations they lack the steps since the
    first of them; the outbox has all. Steps that were new at the last write stay in memory, since more metrics of them
    may come, and their lines are written again after the older ones, which stay untouched. Everything is read and
    written again only at the first write, when an older step gets another metric (after a resume), when a metric is
    new to the table, or when another program changed the files. A complete write replaces the file as a whole; an
    appending one may for a moment leave a file that ends within a line.

    Args:
        store: the run; its outbox and the files are in its local folder.
        uid: the run's uid.
    """

    def __init__(self, store: RunStore, uid: str) -> None:
        self._folder = store.local
        self._outbox = store.outbox
        self._uid = uid
        self._offset: int
        self._rows: dict[int, Row]
        self._roll_backs: int
        self._settled: _Settled
        self._sizes: tuple[int, int] | None
        self._names: list[str] = []
        self._lowest: int | None = None
        self._begin()

    @property
    def last_step(self) -> int:
        """Return the latest step with metrics; 0 before the first."""
        return max(self._rows, default=max(self._settled.step, 0))

    @property
    def best(self) -> tuple[int, Row] | None:
        """Return step and metrics of the best evaluation; None before the first evaluation."""
        step = best_step(self._rows)
        return self._settled.best if step is None else (step, self._rows[step])

    def read(self) -> None:
        """Read what was appended to the outbox since the last call."""
        if (self._outbox / RECORDS).stat().st_size < self._offset:
            self._begin()
        lowest = self._take()
        if lowest is not None and lowest <= self._settled.step:
            self._begin()
            self._take()
        if lowest is not None:
            self._lowest = lowest if self._lowest is None else min(self._lowest, lowest)

    def write(self) -> None:
        """Bring both files up to date.

        Raises:
            OSError: the disk did not take them; the next call writes them as a whole.
        """
        self.read()
        names = sorted(self._columns().union(self._names))
        if names != self._names or self._sizes is None or self._sizes != self._found_sizes():
            if self._settled.step >= 0:
                self._begin()
                self._take()
            self._names = names
            self._settled.table = len(_csv([["step", "time", *names]]))
            self._sizes = None
        rewrite, self._sizes = self._sizes is None, None
        # steps older than all that came since the last write will hardly change any more
        rows = sorted(self._rows.items())
        older = {step: row for step, row in rows if self._lowest is not None and step < self._lowest}
        newer = {step: row for step, row in rows if step not in older}
        older_lines, older_table, trained = self._render(older, self._settled.trained)
        newer_lines, newer_table, _ = self._render(newer, trained)
        settled = self._settled
        if rewrite:
            header = _csv([["step", "time", *names]])
            put_text(str(self._folder), METRICS, (older_lines + newer_lines).decode())
            put_text(str(self._folder), RESULTS, (header + older_table + newer_table).decode())
        else:
            _continue(self._folder / METRICS, settled.lines, older_lines + newer_lines)
            _continue(self._folder / RESULTS, settled.table, older_table + newer_table)
        best = best_step(older)
        self._settled = _Settled(
            step=max(older, default=settled.step),
            lines=settled.lines + len(older_lines),
            table=settled.table + len(older_table),
            trained=trained,
            best=settled.best if best is None else (best, older[best]),
        )
        self._sizes = self._settled.lines + len(newer_lines), self._settled.table + len(newer_table)
        self._rows = newer
        self._lowest = None

    def _begin(self) -> None:
        """Reset to the state before anything was read or written."""
        self._offset = 0
        self._rows = {}
        self._roll_backs = 0
        self._settled = _Settled()
        self._sizes = None

    def _take(self) -> int | None:
        """Read on in the outbox and return the lowest step found; if it is settled, its row in memory is incomplete."""
        lowest: int | None = None
        for line in read_lines(self._outbox, self._offset):
            self._offset = line.end
            if isinstance(line.record, MetricsRecord) and line.record.uid == self._uid:
                self._roll_backs, step = _add(self._rows, line.record, self._roll_backs), line.record.step
                lowest = step if lowest is None else min(lowest, step)
        return lowest

    def _found_sizes(self) -> tuple[int, int] | None:
        try:
            return (self._folder / METRICS).stat().st_size, (self._folder / RESULTS).stat().st_size
        except OSError:
            return None

    def _columns(self) -> set[str]:
        """Return the names of the metrics of the evaluations in memory, and of the training metrics before them."""
        names: set[str] = set()
        trained = set(self._settled.trained)
        for _, row in sorted(self._rows.items()):
            trained.update(name for name in row if name.startswith("train/"))
            evaluated = {name for name in row if name.startswith("val/")}
            if evaluated:
                names |= trained | evaluated
        return names

    def _render(self, rows: Mapping[int, Row], trained: Row) -> tuple[bytes, bytes, Row]:
        """Return the lines of both files for these steps, and the training metrics of the next evaluation's row."""
        lines = "".join(json.dumps({"step": step, **row}) + "\n" for step, row in rows.items())
        table: list[Sequence[object]] = []
        for step, row in rows.items():
            trained = trained | {name: value for name, value in row.items() if name.startswith("train/")}
            evaluated = {name: value for name, value in row.items() if name.startswith("val/")}
            if evaluated:
                both = trained | evaluated
                table.append([step, row["time"], *(both.get(name, "") for name in self._names)])
        return lines.encode(), _csv(table), trained


def _add(rows: dict[int, Row], record: MetricsRecord, roll_backs: int) -> int:
    """Add a record's metrics to the row of its step, and return the number of roll-backs so far.

    The first record after a roll-back drops the rows from its step on: training has undone those steps.
    """
    if record.roll_backs > roll_backs:
        for step in [step for step in rows if step >= record.step]:
            del rows[step]
    time = datetime.fromtimestamp(record.time_ms / 1000, UTC).isoformat(timespec="milliseconds")
    rows.setdefault(record.step, {"time": time}).update(record.metrics)
    return max(roll_backs, record.roll_backs)


def _csv(rows: Iterable[Sequence[object]]) -> bytes:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    return text.getvalue().encode()


def _continue(path: Path, offset: int, content: bytes) -> None:
    """Replace what a file holds from a byte offset on."""
    with path.open("r+b") as file:
        file.seek(offset)
        file.write(content)
        file.truncate()
        file.flush()
        os.fsync(file.fileno())
