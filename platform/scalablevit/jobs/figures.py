"""`metrics.jsonl` and `results.csv` in a run's folder: its figures by step, readable without any server."""

import csv
import io
import json
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path

from scalablevit.jobs.run_store import RunStore
from scalablevit.tracking.spool import read_lines
from scalablevit.training.storage import put_text

METRICS = "metrics.jsonl"
RESULTS = "results.csv"
IS_BEST = "val/is_best"

Row = dict[str, float | str]
"""Figures of one step, and `time` (ISO 8601, UTC) of the first of them; NaN and infinities are strings as in JSON."""


def by_step(spool: Path, uid: str) -> dict[int, Row]:
    """A run's figures by step, in order.

    The spool keeps the first of equal points, so each step is there once, however often a run was killed and resumed.
    """
    rows: dict[int, Row] = {}
    for line in read_lines(spool):
        record = line.record
        if record is not None and record["kind"] == "metrics" and record["uid"] == uid:
            time = datetime.fromtimestamp(record["time_ms"] / 1000, UTC).isoformat(timespec="milliseconds")
            rows.setdefault(record["step"], {"time": time}).update(record["metrics"])
    return dict(sorted(rows.items()))


def best_step(rows: Mapping[int, Row]) -> int | None:
    """Step of the best evaluation; None before the first."""
    return max((step for step, row in rows.items() if row.get(IS_BEST) == 1.0), default=None)


def write_figures(store: RunStore, rows: Mapping[int, Row]) -> None:
    """Write both files anew from a run's figures (`by_step`); the driver does so at each evaluation and at the end.

    - `metrics.jsonl`: a line for each step with figures of any kind: `step`, `time`, and the figures by name.
    - `results.csv`: a row for each evaluation, with the training figures of the last log point up to it.

    So between two evaluations they lack the steps since the first of them; the spool has all.
    """
    lines = [json.dumps({"step": step, **row}) for step, row in rows.items()]
    put_text(str(store.local), METRICS, "".join(f"{line}\n" for line in lines))
    put_text(str(store.local), RESULTS, _table(rows))


def _table(rows: Mapping[int, Row]) -> str:
    trained: Row = {}
    evaluations: list[Row] = []
    for step, row in rows.items():
        trained |= {name: value for name, value in row.items() if name.startswith("train/")}
        evaluated = {name: value for name, value in row.items() if name.startswith("val/")}
        if evaluated:
            evaluations.append({"step": step, "time": row["time"], **trained, **evaluated})
    names = sorted({name for row in evaluations for name in row} - {"step", "time"})
    text = io.StringIO()
    writer = csv.DictWriter(text, ["step", "time", *names], lineterminator="\n")
    writer.writeheader()
    writer.writerows(evaluations)
    return text.getvalue()
