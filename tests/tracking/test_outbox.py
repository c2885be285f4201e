"""The outbox: nothing lost, nothing twice, whatever dies in between."""

import json
import math
import multiprocessing
import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scalablevit.run_files import FORMER_OUTBOX, OUTBOX, RECORDS
from scalablevit.tracking.outbox import Outbox, count_lines, lacks_finish, open_runs, outbox_of, read_lines
from scalablevit.tracking.records import StepMetrics

UID = "a" * 32


def point(step: int, **metrics: float) -> StepMetrics:
    return {"step": step, "time_ms": 1000 + step, "metrics": metrics}


def records(folder: Path) -> list[Any]:
    return [line.record for line in read_lines(folder) if line.record is not None]


def points(folder: Path, uid: str = UID) -> list[tuple[str, int, float]]:
    """Every point in the file, in its order: key, step, value."""
    found = [record for record in records(folder) if record.kind == "metrics" and record.uid == uid]
    return [(key, record.step, float(value)) for record in found for key, value in record.metrics.items()]


def test_records_come_back_in_order_with_their_fields(tmp_path: Path) -> None:
    (tmp_path / "log.txt").write_text("x")
    outbox = Outbox(tmp_path / "outbox")
    outbox.run(UID, "name", experiment="e", parent="b" * 32, tags={"n": 1})
    outbox.params(UID, {"lr": 0.1, "steps": [1, 2]})
    outbox.tags(UID, {"best": 0.5})
    outbox.dataset(UID, name="d", digest="9" * 64, source="/data", context="training")
    outbox.artifact(UID, tmp_path / "log.txt", "logs")
    outbox.metrics(UID, [point(3, loss=1.5)])
    outbox.end(UID, "FINISHED", time_ms=77)
    outbox.close()
    got = records(tmp_path / "outbox")
    assert [record.kind for record in got] == ["run", "params", "tags", "dataset", "artifact", "metrics", "end"]
    assert all(record.as_dict()["v"] == 1 and record.uid == UID for record in got)
    run, params, tags, dataset, artifact, metrics, end = got
    assert (run.name, run.experiment, run.parent, run.tags) == ("name", "e", "b" * 32, {"n": "1"})
    assert params.params == {"lr": "0.1", "steps": "[1, 2]"}
    assert tags.tags == {"best": "0.5"}
    assert (dataset.name, dataset.digest, dataset.source) == ("d", "9" * 64, "/data")
    assert (artifact.path, artifact.artifact_path) == (str(tmp_path / "log.txt"), "logs")
    assert (metrics.step, metrics.time_ms, metrics.metrics) == (3, 1003, {"loss": 1.5})
    assert (end.status, end.time_ms) == ("FINISHED", 77)


def test_a_resumed_run_repeats_itself_and_the_first_report_stands(tmp_path: Path) -> None:
    first = Outbox(tmp_path)
    assert first.metrics(UID, [point(step, loss=float(step), lr=0.1) for step in range(0, 100, 20)]) == 10
    first.close()
    resumed = Outbox(tmp_path)
    again = [point(step, loss=-1.0, lr=-1.0) for step in range(40, 160, 20)]
    assert resumed.metrics(UID, again + again) == 6
    assert resumed.metrics(UID, again) == 0
    assert resumed.metrics("b" * 32, [point(40, loss=9.0)]) == 1
    losses = {step: value for key, step, value in points(tmp_path) if key == "loss"}
    assert losses == {0: 0.0, 20: 20.0, 40: 40.0, 60: 60.0, 80: 80.0, 100: -1.0, 120: -1.0, 140: -1.0}
    assert len(points(tmp_path)) == 16


def test_a_step_that_was_done_again_after_a_roll_back_is_written_again_and_once(tmp_path: Path) -> None:
    outbox = Outbox(tmp_path)
    first, second = point(5, loss=1.0), StepMetrics(**point(5, loss=2.0), roll_backs=1)
    assert outbox.metrics(UID, [first]) == 1
    assert outbox.metrics(UID, [second, second]) == 1
    outbox.close()
    restarted = Outbox(tmp_path)  # both are reported again
    assert restarted.metrics(UID, [first, second, StepMetrics(**point(5, loss=3.0), roll_backs=2)]) == 1
    assert points(tmp_path) == [("loss", 5, 1.0), ("loss", 5, 2.0), ("loss", 5, 3.0)]
    assert [record.roll_backs for record in records(tmp_path)] == [0, 1, 2]


def test_a_step_gains_a_metric_that_it_lacked(tmp_path: Path) -> None:
    outbox = Outbox(tmp_path)
    outbox.metrics(UID, [point(20, loss=1.0), point(10, loss=2.0)])
    assert outbox.metrics(UID, [point(10, loss=3.0, top1=0.5)]) == 1
    assert sorted(points(tmp_path)) == [("loss", 10, 2.0), ("loss", 20, 1.0), ("top1", 10, 0.5)]


def test_values_that_json_has_not_survive(tmp_path: Path) -> None:
    outbox = Outbox(tmp_path)
    outbox.metrics(UID, [point(1, a=math.nan, b=math.inf, c=-math.inf, d=1e308)])
    values = {key: value for key, _, value in points(tmp_path)}
    assert math.isnan(values["a"])
    assert (values["b"], values["c"], values["d"]) == (math.inf, -math.inf, 1e308)
    for line in (tmp_path / RECORDS).read_text().splitlines():
        json.loads(line, parse_constant=pytest.fail)


@pytest.mark.parametrize(
    ("record", "error"),
    [
        ({"step": 1.5, "time_ms": 1, "metrics": {}}, TypeError),
        ({"step": -1, "time_ms": 1, "metrics": {}}, ValueError),
        ({"step": 2**63, "time_ms": 1, "metrics": {}}, ValueError),
        ({"step": 1, "metrics": {}}, KeyError),
        ({"step": 1, "time_ms": 1, "metrics": {"a": "high"}}, ValueError),
    ],
)
def test_an_unsound_record_writes_nothing(tmp_path: Path, record: Any, error: type[Exception]) -> None:
    outbox = Outbox(tmp_path)
    with pytest.raises(error):
        outbox.metrics(UID, [point(1, loss=1.0), record])
    assert points(tmp_path) == []
    assert outbox.metrics(UID, [point(1, loss=1.0)]) == 1


@given(kept=st.integers(0, 400), junk=st.binary(max_size=20).filter(lambda junk: b"\n" not in junk))
@settings(max_examples=40, deadline=None)
def test_a_torn_line_costs_only_itself(tmp_path_factory: pytest.TempPathFactory, kept: int, junk: bytes) -> None:
    folder = tmp_path_factory.mktemp("torn")
    Outbox(folder).metrics(UID, [point(step, loss=float(step)) for step in range(5)])
    whole = (folder / RECORDS).read_bytes()
    torn = whole[: min(kept, len(whole))] + junk
    (folder / RECORDS).write_bytes(torn)
    before = points(folder)
    outbox = Outbox(folder)
    assert points(folder) == before
    assert (folder / RECORDS).read_bytes() == torn[: torn.rfind(b"\n") + 1]
    outbox.metrics(UID, [point(step, loss=float(step)) for step in range(5)])
    assert points(folder) == [("loss", step, float(step)) for step in range(5)]


def test_a_writer_that_dies_while_another_lives_on(tmp_path: Path) -> None:
    alive = Outbox(tmp_path)
    alive.metrics(UID, [point(1, loss=1.0)])
    with (tmp_path / RECORDS).open("ab") as file:
        file.write(b'{"v":1,"kind":"metr' + b"x" * 200_000)
    alive.metrics(UID, [point(2, loss=2.0)])
    assert points(tmp_path) == [("loss", 1, 1.0), ("loss", 2, 2.0)]


def test_a_damaged_line_in_the_middle_is_named_and_passed(tmp_path: Path) -> None:
    outbox = Outbox(tmp_path)
    outbox.metrics(UID, [point(1, loss=1.0)])
    with (tmp_path / RECORDS).open("ab") as file:
        file.write(b'\0\0\0\n{"v":2}\n{"v":1,"kind":"metrics","uid":"u","time_ms":1,"step":"x","metrics":{}}\n')
    outbox.metrics(UID, [point(1, loss=3.0), point(2, loss=2.0)])
    assert [line.record is None for line in read_lines(tmp_path)] == [False, True, True, True, False]
    assert points(tmp_path) == [("loss", 1, 1.0), ("loss", 2, 2.0)]


def _append(folder: Path, worker: int) -> None:
    outbox = Outbox(folder)
    for step in range(200):
        outbox.metrics(UID, [point(step, **{"shared": float(worker), f"own{worker}": 1.0, "long" * 2000: 0.0})])
        if step % 50 == 0:
            outbox.tags(UID, {"worker": worker})


def test_two_appenders_lose_nothing_and_repeat_nothing(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    workers = [context.Process(target=_append, args=(tmp_path, worker)) for worker in range(2)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
        assert worker.exitcode == 0
    assert all(line.record is not None for line in read_lines(tmp_path))
    found = points(tmp_path)
    assert len(found) == len({(key, step) for key, step, _ in found}) == 4 * 200
    assert sum(record.kind == "tags" for record in records(tmp_path)) == 8


def test_a_full_disk_leaves_whole_lines_and_the_points_may_be_given_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    outbox = Outbox(tmp_path)
    outbox.metrics(UID, [point(1, loss=1.0)])
    real = os.write
    with monkeypatch.context() as patched:
        patched.setattr(os, "write", lambda file, lines: real(file, lines[: len(lines) // 2]))
        with pytest.raises(OSError, match="disk is full"):
            outbox.metrics(UID, [point(2, loss=2.0)])
    assert points(tmp_path) == [("loss", 1, 1.0)]
    assert outbox.metrics(UID, [point(2, loss=2.0)]) == 1
    assert points(tmp_path) == [("loss", 1, 1.0), ("loss", 2, 2.0)]


def test_lines_are_counted_from_an_offset(tmp_path: Path) -> None:
    outbox = Outbox(tmp_path)
    for step in range(5):
        outbox.metrics(UID, [point(step, loss=1.0)])
    second = list(read_lines(tmp_path))[1]
    assert count_lines(tmp_path, 0) == 5
    assert count_lines(tmp_path, second.end) == 3


def test_open_runs_are_those_begun_and_not_ended(tmp_path: Path) -> None:
    outbox = Outbox(tmp_path)
    for uid in ("done", "dead", "again"):
        outbox.run(uid, uid, experiment="e")
    outbox.end("done", "FINISHED")
    outbox.end("again", "FAILED")
    outbox.run("again", "again", experiment="e")
    outbox.metrics("again", [{"step": 1, "time_ms": 10**15, "metrics": {"a": 1.0}}])
    outbox.metrics("dead", [{"step": 1, "time_ms": 5, "metrics": {"resent": 1.0}}])
    runs = open_runs(tmp_path)
    assert sorted(runs) == ["again", "dead"]
    assert runs["again"] == 10**15
    assert runs["dead"] > 10**12


def test_a_run_that_sync_ended_as_killed_still_lacks_its_finish(tmp_path: Path) -> None:
    """A driver may die between the result and the record of the model."""
    outbox = Outbox(tmp_path)
    assert not lacks_finish(tmp_path, "never")
    for uid in ("killed", "done", "resumed"):
        outbox.run(uid, uid, experiment="e")
        assert lacks_finish(tmp_path, uid)
    outbox.end("killed", "KILLED")
    outbox.end("resumed", "KILLED")
    outbox.run("resumed", "resumed", experiment="e")
    for uid in ("done", "resumed"):
        outbox.end(uid, "FINISHED")
    assert [lacks_finish(tmp_path, uid) for uid in ("killed", "done", "resumed")] == [True, False, False]


def test_the_same_model_is_the_same_registration_and_its_code_is_kept_once(tmp_path: Path) -> None:
    package = tmp_path / "job" / "pkg"
    (package / "__pycache__").mkdir(parents=True)
    (package / "__init__.py").write_text("")
    (package / "serve.py").write_text("1")
    (package / "__pycache__" / "serve.pyc").write_text("byte code")
    model = tmp_path / "model"
    model.mkdir()
    (model / "weights.safetensors").write_bytes(b"w1")
    (model / "config.json").write_text("{}")
    outbox = Outbox(tmp_path / "outbox")

    def register() -> Any:
        outbox.model(
            UID, name="m", folder=model, package=package, serving="serve.py", requirements=["a==1"], tags={"t": 2}
        )
        return records(tmp_path / "outbox")[-1]

    first, second = register(), register()
    assert first.registration == second.registration
    assert first.tags["t"] == "2"
    assert first.tags["scalablevit.uid"] == first.registration
    assert first.alias == "candidate"
    code = tmp_path / "outbox" / first.code
    assert sorted(path.name for path in code.iterdir()) == ["__init__.py", "serve.py"]
    assert len(list((tmp_path / "outbox" / "code").iterdir())) == 1
    (model / "weights.safetensors").write_bytes(b"w2")
    assert register().registration != first.registration


def test_an_outbox_that_an_earlier_release_began_stays_where_it_is(tmp_path: Path) -> None:
    assert outbox_of(tmp_path) == tmp_path / OUTBOX
    (tmp_path / FORMER_OUTBOX).mkdir()
    assert outbox_of(tmp_path) == tmp_path / FORMER_OUTBOX
