"""What a trial leaves for MLflow at its end."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from scalablevit.tracking.outbox import Outbox, read_lines
from scalablevit.tracking.records import MetricsRecord
from scalablevit.tuning.search import SearchCallback
from scalablevit.tuning.trials import Trial


@pytest.mark.parametrize(
    ("metric", "mode", "curve", "expected"),
    [
        ("val/loss", "min", {3: 0.5, 6: 0.25, 9: 0.75}, [(6, {"best/loss": 0.25})]),
        ("val/top1", "max", {3: 0.5, 6: 0.25}, [(3, {"best/top1": 0.5})]),
        ("val/top1", "max", {}, []),
    ],
)
def test_trials_sort_by_their_best_value(
    metric: str, mode: str, curve: dict[int, float], expected: list[Any], tmp_path: Path
) -> None:
    space = SimpleNamespace(metric=metric, mode=mode, scheduler=SimpleNamespace(kind="asha"), keep_best=1)
    context: Any = SimpleNamespace(search=SimpleNamespace(space=space), folder=str(tmp_path))
    trial = Trial(0, {"optimizer.lr": 0.1})
    trial.curve.update(curve)
    outbox = Outbox(tmp_path / "outbox")
    SearchCallback(context, [trial], outbox, "1" * 32, "e")._end(trial, "finished", "")
    records = [line.record for line in read_lines(outbox.folder)]
    assert [(each.step, each.metrics) for each in records if isinstance(each, MetricsRecord)] == expected
