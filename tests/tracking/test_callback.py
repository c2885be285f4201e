"""Reports of Ray Train's workers into the outbox."""

import math
from pathlib import Path
from typing import Any

import pytest
import ray.cloudpickle
from ray.train import Checkpoint

from scalablevit.run_files import CALLBACK_LOG
from scalablevit.tracking.callback import OutboxCallback
from scalablevit.tracking.outbox import read_lines

UID = "a" * 32


def report(step: int, **metrics: float) -> dict[str, Any]:
    """As rank 0 reports it."""
    record = {"step": step, "time_ms": 1000 + step, "metrics": metrics}
    return {"records": [record], "node": {"rank": 0, "cpu_used": 0.5}}


def points(folder: Path) -> list[tuple[str, int, float]]:
    records = [line.record for line in read_lines(folder) if line.record is not None]
    return [(key, record.step, float(value)) for record in records for key, value in record.metrics.items()]


def test_records_and_metrics_of_every_node_are_kept(tmp_path: Path) -> None:
    callback = OutboxCallback(tmp_path, UID)
    other_node = {"records": [], "node": {"rank": 1, "cpu_used": 0.75}}
    callback.after_report(None, [report(5, loss=1.0), {"records": [], "node": {}}, other_node], None)
    assert points(tmp_path) == [("loss", 5, 1.0), ("system/node0/cpu_used", 5, 0.5), ("system/node1/cpu_used", 5, 0.75)]
    again = report(5, loss=2.0)
    again["records"][0]["roll_backs"] = 1
    callback.after_report(None, [again], None)
    assert points(tmp_path)[3:] == [("loss", 5, 2.0), ("system/node0/cpu_used", 5, 0.5)], "a step done again has both"


def test_steps_reported_again_after_a_restart_are_dropped(tmp_path: Path) -> None:
    OutboxCallback(tmp_path, UID).after_report(None, [report(5, loss=1.0)], Checkpoint(str(tmp_path)))
    restarted = OutboxCallback(tmp_path, UID)
    restarted.after_report(
        None, [{"records": [*report(5, loss=2.0)["records"], *report(6, loss=3.0)["records"]]}], None
    )
    assert [point for point in points(tmp_path) if point[0] == "loss"] == [("loss", 5, 1.0), ("loss", 6, 3.0)]


def test_ray_may_pickle_it_at_any_moment(tmp_path: Path) -> None:
    callback = OutboxCallback(tmp_path, UID)
    callback.after_report(None, [report(1, loss=1.0)], None)
    copy = ray.cloudpickle.loads(ray.cloudpickle.dumps(callback))  # type: ignore[no-untyped-call]
    copy.after_report(None, [report(2, loss=math.nan)], None)
    callback.after_report(None, [report(3, loss=3.0)], None)
    assert [step for key, step, _ in points(tmp_path) if key == "loss"] == [1, 2, 3]


@pytest.mark.parametrize(
    "bad",
    [
        {"records": [{"step": 2, "metrics": {}}]},
        {"records": [{"step": 2, "time_ms": 1, "metrics": {"loss": "high"}}]},
        {"records": 3},
        None,
    ],
)
def test_a_bad_report_is_noted_and_the_next_one_recorded(
    tmp_path: Path, bad: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    callback = OutboxCallback(tmp_path, UID)
    callback.after_report(None, [bad], None)
    assert "was not recorded" in capsys.readouterr().err
    assert "Traceback" in (tmp_path / CALLBACK_LOG).read_text()
    callback.after_report(None, [report(3, loss=3.0)], None)
    assert ("loss", 3, 3.0) in points(tmp_path)


def test_points_that_the_disk_did_not_take_are_tried_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "outbox").write_text("a file where the folder should be")
    callback = OutboxCallback(tmp_path / "outbox", UID)
    callback.after_report(None, [report(1, loss=1.0)], None)
    assert "nor could that be logged" in capsys.readouterr().err
    (tmp_path / "outbox").unlink()
    callback.after_report(None, [report(2, loss=2.0)], None)
    assert [step for key, step, _ in points(tmp_path / "outbox") if key == "loss"] == [1, 2]
