"""From outbox to MLflow: everything, in order, once; whatever the server does."""

import json
import logging
import math
import multiprocessing
import os
import signal
import socket
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from mlflow import MlflowClient
from mlflow.entities import DatasetInput, Run
from mlflow.exceptions import MlflowException
from mlflow.protos import databricks_pb2

from scalablevit.cli import main
from scalablevit.run_files import FORMER_OUTBOX, RECORDS, REFUSED, SENT, SYNC_LOCK
from scalablevit.tracking.connection import Away, connect
from scalablevit.tracking.outbox import Outbox, now_ms
from scalablevit.tracking.records import StepMetrics
from scalablevit.tracking.sync import AWAY_S, UNCLEAR_TRIES, OutboxSync, Pending
from scalablevit.tracking.sync_progress import load_progress

ROOT = Path(__file__).resolve().parents[2]
RunOf = Callable[[MlflowClient, str, str], Run]
LIMIT_S = 20.0
"""For what takes a second or two on a quiet machine, and would take minutes if somebody waited for the server."""
NOTHING_LEFT = Pending(records=0, refused=0, error=None)


def series(steps: range, **metrics: float) -> list[StepMetrics]:
    return [{"step": step, "time_ms": 1_000_000 + step, "metrics": metrics or {"loss": step / 10}} for step in steps]


def history(client: MlflowClient, run: Run, key: str) -> list[tuple[int, int, float]]:
    return sorted((m.step, m.timestamp, m.value) for m in client.get_metric_history(run.info.run_id, key))


def datasets(run: Run) -> list[DatasetInput]:
    assert run.inputs is not None
    return run.inputs.dataset_inputs


def refused(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / REFUSED).read_text().splitlines()]


@pytest.fixture
def uid() -> str:
    return uuid4().hex


@pytest.fixture
def outbox(tmp_path: Path) -> Outbox:
    return Outbox(tmp_path / "outbox")


def test_every_kind_of_record_arrives(
    outbox: Outbox, uid: str, uri: str, client: MlflowClient, experiment: str, run_of: RunOf, tmp_path: Path
) -> None:
    child = uuid4().hex
    (tmp_path / "plots").mkdir()
    (tmp_path / "plots" / "a.txt").write_text("plot")
    (tmp_path / "recipe.yaml").write_text("recipe")
    outbox.run(uid, "job", experiment=experiment, tags={"kind": "job"})
    outbox.run(child, "stage", experiment=experiment, parent=uid)
    outbox.params(child, {f"p{i}": i for i in range(150)})
    outbox.tags(child, {f"t{i}": i for i in range(120)})
    outbox.dataset(child, name="photos", digest="d" * 64, source="/data/photos", context="training")
    outbox.artifact(child, tmp_path / "plots", "plots")
    outbox.artifact(child, tmp_path / "recipe.yaml")
    outbox.metrics(child, series(range(1500), loss=1.0, top1=0.5))
    outbox.metrics(child, series(range(2000, 2001), a=math.nan, b=math.inf, c=-math.inf))
    outbox.end(child, "FAILED", time_ms=2_000_000)
    outbox.end(uid, "FINISHED")
    assert OutboxSync(outbox.folder, uri).send_left() == NOTHING_LEFT
    parent, run = run_of(client, experiment, uid), run_of(client, experiment, child)
    assert (parent.info.run_name, parent.info.status, parent.data.tags["kind"]) == ("job", "FINISHED", "job")
    assert (run.info.run_name, run.info.status, run.info.end_time) == ("stage", "FAILED", 2_000_000)
    assert run.data.tags["mlflow.parentRunId"] == parent.info.run_id
    assert run.data.params == {f"p{i}": str(i) for i in range(150)}
    assert run.data.tags["t119"] == "119"
    (data,) = datasets(run)
    assert (data.dataset.name, data.dataset.digest) == ("photos", "d" * 36)
    assert {tag.key: tag.value for tag in data.tags} == {
        "mlflow.data.context": "training",
        "scalablevit.data_digest": "d" * 64,
    }
    files = [file.path for file in client.list_artifacts(run.info.run_id)]
    assert files == ["plots", "recipe.yaml"]
    assert [file.path for file in client.list_artifacts(run.info.run_id, "plots")] == ["plots/a.txt"]
    assert history(client, run, "top1") == [(step, 1_000_000 + step, 0.5) for step in range(1500)]
    assert math.isnan(history(client, run, "a")[0][2])
    assert [history(client, run, key)[0][2] for key in "bc"] == [sys.float_info.max, -sys.float_info.max]


def test_sending_everything_again_changes_nothing(
    outbox: Outbox, uid: str, uri: str, client: MlflowClient, experiment: str, run_of: RunOf
) -> None:
    outbox.run(uid, "run", experiment=experiment)
    outbox.params(uid, {"lr": 0.1})
    outbox.dataset(uid, name="photos", digest="d" * 64, source="/data", context="training")
    outbox.metrics(uid, series(range(50)))
    outbox.metrics(uid, series(range(50, 51), a=math.nan, b=math.inf))
    outbox.end(uid, "FINISHED", time_ms=5_000)
    assert OutboxSync(outbox.folder, uri).send_left() == NOTHING_LEFT
    first = run_of(client, experiment, uid)
    (outbox.folder / SENT).unlink()
    assert OutboxSync(outbox.folder, uri).send_left() == NOTHING_LEFT
    assert OutboxSync(outbox.folder, uri).send_left(from_start=True) == NOTHING_LEFT
    again = run_of(client, experiment, uid)
    assert again.info.run_id == first.info.run_id
    assert (again.info.status, again.info.end_time) == ("FINISHED", 5_000)
    assert len(datasets(again)) == 1
    assert [len(history(client, again, key)) for key in ("loss", "a", "b")] == [50, 1, 1]


def test_a_resumed_run_goes_on_as_the_same_run(
    outbox: Outbox, uid: str, uri: str, client: MlflowClient, experiment: str, run_of: RunOf
) -> None:
    for steps, status in ((range(30), "KILLED"), (range(20, 60), None), (range(50, 80), "FINISHED")):
        outbox.run(uid, "run", experiment=experiment)
        outbox.metrics(uid, series(steps))
        if status == "KILLED":
            outbox.end(uid, "KILLED")
        if status == "FINISHED":
            outbox.end(uid, "FINISHED")
        assert OutboxSync(outbox.folder, uri).send_left() == NOTHING_LEFT
        assert run_of(client, experiment, uid).info.status == (status or "RUNNING")
    steps_there = [step for step, _, _ in history(client, run_of(client, experiment, uid), "loss")]
    assert steps_there == list(range(80))


def test_what_the_server_refuses_is_set_aside_and_said_and_the_rest_goes_on(
    outbox: Outbox,
    uid: str,
    uri: str,
    client: MlflowClient,
    experiment: str,
    run_of: RunOf,
    caplog: pytest.LogCaptureFixture,
) -> None:
    outbox.run(uid, "run", experiment=experiment)
    outbox.params(uid, {"lr": 0.1, "size": 3})
    outbox.params(uid, {"lr": 0.2, "more": 4})
    outbox.artifact(uid, outbox.folder / "never-was")
    outbox.metrics(uid, series(range(1000)))
    outbox.metrics(uid, [{"step": 7, "time_ms": 1, "metrics": {"bad@key": 1.0, "good": 2.0}}])
    outbox.tags("f" * 32, {"of": "no run"})
    with (outbox.folder / RECORDS).open("a") as file:
        file.write("damaged\n" + json.dumps({"v": 1, "kind": "dance", "uid": uid, "time_ms": 1}) + "\n")
    outbox.end(uid, "FINISHED")
    left = OutboxSync(outbox.folder, uri).send_left()
    assert (left.records, left.error) == (0, None)
    run = run_of(client, experiment, uid)
    assert run.info.status == "FINISHED"
    assert run.data.params == {"lr": "0.1", "size": "3", "more": "4"}
    assert len(history(client, run, "loss")) == 1000
    assert history(client, run, "good") == [(7, 1, 2.0)]
    aside = refused(outbox.folder)
    assert left.refused == len(aside) == 6
    assert [entry["record"].get("kind") for entry in aside] == ["params", "artifact", "metrics", "tags", None, "dance"]
    assert aside[0]["record"]["params"] == {"lr": "0.2"}
    assert "never-was is gone" in aside[1]["reason"]
    assert aside[2]["record"]["metrics"] == {"bad@key": "1.0"}
    assert aside[2]["record"]["step"] == 7
    assert str(outbox.folder / REFUSED) in caplog.text


def test_only_a_records_own_missing_file_is_refused_and_not_a_store_that_is_away(
    outbox: Outbox, uid: str, tmp_path: Path
) -> None:
    uri, store = f"sqlite:///{tmp_path}/server/mlflow.db", tmp_path / "server" / "mlartifacts"
    store.parent.mkdir()
    own = tmp_path / "own.txt"
    own.write_text("kept")
    outbox.run(uid, "run", experiment="e")
    outbox.artifact(uid, own)
    outbox.artifact(uid, tmp_path / "never-was")
    outbox.end(uid, "FINISHED")
    store.write_text("in place of the folder that is mounted there")
    left = OutboxSync(outbox.folder, uri).send_left()
    assert (left.records, left.refused) == (3, 0)
    store.unlink()
    left = OutboxSync(outbox.folder, uri).send_left()
    assert (left.records, left.refused, left.error) == (0, 1, None)
    assert [entry["record"]["path"] for entry in refused(outbox.folder)] == [str(tmp_path / "never-was")]
    assert list(store.rglob("own.txt"))


def test_what_is_unclear_is_refused_only_while_the_server_takes_something_else(
    outbox: Outbox, uid: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A database that answers and cannot be written says of every record that it is a bad request."""
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    outbox.run(uid, "run", experiment="e")
    sync = OutboxSync(outbox.folder, uri)
    assert sync.send_left() == NOTHING_LEFT
    outbox.tags(uid, {"a": "b"})
    bad = MlflowException("disk I/O error", databricks_pb2.BAD_REQUEST)

    def unwritable(*_: object, **__: object) -> None:
        raise bad

    with monkeypatch.context() as away:
        away.setattr(MlflowClient, "log_batch", unwritable)
        away.setattr(MlflowClient, "set_tag", unwritable)
        for _ in range(2 * UNCLEAR_TRIES):
            left = sync.send_left()
            assert (left.records, left.refused) == (1, 0)
    with monkeypatch.context() as away:
        away.setattr(MlflowClient, "log_batch", unwritable)
        left = sync.send_left()
        assert (left.records, left.refused) == (0, 1)


def test_a_run_that_somebody_deleted_does_not_come_back_as_a_second_one(
    outbox: Outbox, uid: str, uri: str, client: MlflowClient, experiment: str, run_of: RunOf
) -> None:
    outbox.run(uid, "run", experiment=experiment)
    OutboxSync(outbox.folder, uri).send_left()
    run = run_of(client, experiment, uid)
    client.delete_run(run.info.run_id)
    (outbox.folder / SENT).unlink()
    outbox.metrics(uid, series(range(5)))
    left = OutboxSync(outbox.folder, uri).send_left()
    assert (left.records, left.refused) == (0, 6)
    assert f"mlflow runs restore --run-id {run.info.run_id}" in refused(outbox.folder)[-1]["reason"]
    client.restore_run(run.info.run_id)
    assert OutboxSync(outbox.folder, uri).send_left(from_start=True) == NOTHING_LEFT
    assert len(history(client, run_of(client, experiment, uid), "loss")) == 5


def test_a_deleted_experiment_blocks_until_it_is_restored(
    outbox: Outbox, uid: str, uri: str, client: MlflowClient, experiment: str, run_of: RunOf
) -> None:
    number = client.create_experiment(experiment)
    client.delete_experiment(number)
    outbox.run(uid, "run", experiment=experiment)
    left = OutboxSync(outbox.folder, uri).send_left()
    assert left.records == 1
    assert f"mlflow experiments restore --experiment-id {number}" in str(left.error)
    client.restore_experiment(number)
    assert OutboxSync(outbox.folder, uri).send_left() == NOTHING_LEFT
    assert run_of(client, experiment, uid).info.status == "RUNNING"


def test_a_server_that_lost_everything_gets_everything_again(
    outbox: Outbox,
    uid: str,
    uri: str,
    client: MlflowClient,
    experiment: str,
    run_of: RunOf,
    caplog: pytest.LogCaptureFixture,
) -> None:
    outbox.run(uid, "run", experiment=experiment)
    outbox.metrics(uid, series(range(5)))
    size = (outbox.folder / RECORDS).stat().st_size
    gone = {"uri": uri, "offset": size, "runs": {uid: "e" * 32}}
    (outbox.folder / SENT).write_text(json.dumps(gone))
    outbox.metrics(uid, series(range(5, 9)))
    assert OutboxSync(outbox.folder, uri).send_left() == NOTHING_LEFT
    assert len(history(client, run_of(client, experiment, uid), "loss")) == 9
    assert "no longer has a run" in caplog.text


def test_another_server_gets_everything(outbox: Outbox, uid: str, uri: str, experiment: str, tmp_path: Path) -> None:
    outbox.run(uid, "run", experiment=experiment)
    assert OutboxSync(outbox.folder, uri).send_left() == NOTHING_LEFT
    elsewhere = OutboxSync(outbox.folder, "http://127.0.0.1:9")
    assert elsewhere.pending().records == 1


def test_a_child_waits_for_a_parent_in_another_outbox(
    outbox: Outbox, uid: str, uri: str, client: MlflowClient, experiment: str, run_of: RunOf, tmp_path: Path
) -> None:
    parent = uuid4().hex
    outbox.run(uid, "child", experiment=experiment, parent=parent)
    left = OutboxSync(outbox.folder, uri).send_left()
    assert left.records == 1
    assert parent in str(left.error)
    other = Outbox(tmp_path / "other")
    other.run(parent, "parent", experiment=experiment)
    assert OutboxSync(other.folder, uri).send_left() == NOTHING_LEFT
    assert OutboxSync(outbox.folder, uri).send_left() == NOTHING_LEFT
    tags = run_of(client, experiment, uid).data.tags
    assert tags["mlflow.parentRunId"] == run_of(client, experiment, parent).info.run_id


def test_one_sync_at_a_time(
    outbox: Outbox, uid: str, uri: str, client: MlflowClient, experiment: str, run_of: RunOf
) -> None:
    outbox.run(uid, "run", experiment=experiment)
    first = OutboxSync(outbox.folder, uri)
    first.start()
    assert first.drain(60) == NOTHING_LEFT
    assert "everything sent" in first.status()
    second = OutboxSync(outbox.folder, uri)
    assert second.send_left() == Pending(0, 0, f"process {os.getpid()} on {socket.gethostname()} is sending it")
    second.start()
    outbox.metrics(uid, series(range(3)))
    assert second.drain(60).records == 0
    first.stop()
    outbox.metrics(uid, series(range(3, 6)))
    assert second.drain(60) == NOTHING_LEFT
    second.stop()
    assert len(history(client, run_of(client, experiment, uid), "loss")) == 6


def test_runs_whose_job_died_end_as_killed(
    outbox: Outbox,
    uid: str,
    uri: str,
    client: MlflowClient,
    experiment: str,
    run_of: RunOf,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    fresh = uuid4().hex
    hour_ago = now_ms() - 3_600_000
    with monkeypatch.context() as patched:
        patched.setattr("scalablevit.tracking.outbox.now_ms", lambda: hour_ago)
        outbox.run(uid, "dead", experiment=experiment)
    last = hour_ago + 60_000
    outbox.metrics(uid, [{"step": 1, "time_ms": last, "metrics": {"loss": 1.0}}])
    outbox.run(fresh, "fresh", experiment=experiment)
    assert OutboxSync(outbox.folder, uri).send_left() == NOTHING_LEFT
    dead = run_of(client, experiment, uid).info
    assert (dead.status, dead.end_time) == ("KILLED", last)
    assert run_of(client, experiment, fresh).info.status == "RUNNING"


def _send(folder: Path, uri: str) -> None:
    sync = OutboxSync(folder, uri)
    sync.start()
    sync.drain(120)


def test_a_killed_sync_leaves_nothing_out_and_nothing_twice(
    outbox: Outbox, uid: str, uri: str, client: MlflowClient, experiment: str, run_of: RunOf
) -> None:
    outbox.run(uid, "run", experiment=experiment)
    for block in range(10):
        outbox.metrics(uid, series(range(block * 1000, block * 1000 + 1000)))
    process = multiprocessing.get_context("spawn").Process(target=_send, args=(outbox.folder, uri))
    process.start()
    size = (outbox.folder / RECORDS).stat().st_size
    deadline = time.monotonic() + 200
    while True:
        saved = load_progress(outbox.folder)
        if saved is not None and saved.offset > size / 4:
            break
        assert time.monotonic() < deadline
        time.sleep(0.005)
    os.kill(process.pid or 0, signal.SIGKILL)
    process.join()
    assert load_progress(outbox.folder) is not None
    assert OutboxSync(outbox.folder, uri).send_left() == NOTHING_LEFT
    assert [step for step, _, _ in history(client, run_of(client, experiment, uid), "loss")] == list(range(10_000))


def test_a_server_that_accepts_and_never_answers_holds_up_nobody(outbox: Outbox, uid: str) -> None:
    with socket.socket() as hung:
        hung.bind(("127.0.0.1", 0))
        hung.listen(64)
        sync = OutboxSync(outbox.folder, f"http://127.0.0.1:{hung.getsockname()[1]}", request_timeout_s=1)
        outbox.run(uid, "run", experiment="e")
        started = time.monotonic()
        left = sync.send_left()
        assert 1 <= time.monotonic() - started < LIMIT_S
        assert left.records == 1
        assert "timed out" in str(left.error)
        sync.start()
        started = time.monotonic()
        for step in range(100):
            outbox.metrics(uid, series(range(step, step + 1)))
        assert time.monotonic() - started < LIMIT_S, "each record waited for the server"
        started = time.monotonic()
        assert sync.drain(1.5).records == 101
        assert time.monotonic() - started < LIMIT_S
        assert "101 records waiting" in sync.status()
        sync.stop()


def test_at_a_jobs_end_a_server_that_is_away_is_not_waited_for(
    outbox: Outbox, uid: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("scalablevit.tracking.sync.AWAY_S", 0.5)
    outbox.run(uid, "run", experiment="e")
    sync = OutboxSync(outbox.folder, "http://127.0.0.1:9")
    sync.start()
    started = time.monotonic()
    assert sync.drain(120).records == 1
    assert time.monotonic() - started < LIMIT_S
    sync.stop()
    assert 2 * AWAY_S <= 10, "a job's end waits for its last stage and for itself"


@pytest.fixture
def away_once(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """A server that is away at the first try and slow at the second, when the patience is over; when it was tried."""
    tries: list[float] = []

    class Writer:
        def __init__(self, *_: object) -> None: ...

        def send(self, _: object) -> list[object]:
            tries.append(time.monotonic())
            if len(tries) == 1:
                raise Away("not yet")
            monkeypatch.setattr("scalablevit.tracking.sync.AWAY_S", 0.0)
            time.sleep(0.5)
            return []

    monkeypatch.setattr("scalablevit.tracking.sync.MLflowWriter", Writer)
    monkeypatch.setattr("scalablevit.tracking.sync.POLL_S", 0.1)
    return tries


def test_a_try_under_way_is_waited_for_although_the_server_was_away_just_before(
    outbox: Outbox, uid: str, away_once: list[float]
) -> None:
    """Such as an upload: nothing has arrived when it begins, so that the server counts as away until its end."""
    outbox.run(uid, "run", experiment="e")
    sync = OutboxSync(outbox.folder, "http://127.0.0.1:9")
    sync.start()
    assert sync.drain(60) == NOTHING_LEFT
    sync.stop()
    assert len(away_once) == 2


def test_one_failed_try_is_no_news(
    outbox: Outbox, uid: str, away_once: list[float], caplog: pytest.LogCaptureFixture
) -> None:
    """As of a stage's run, which comes before the job's: each has a thread of its own."""
    outbox.run(uid, "run", experiment="e")
    sync = OutboxSync(outbox.folder, "http://127.0.0.1:9")
    sync.start()
    sync.drain(60)
    sync.stop(LIMIT_S)
    assert len(away_once) == 2 and caplog.text == ""


def test_a_locked_database_holds_up_nobody(outbox: Outbox, uid: str, tmp_path: Path) -> None:
    uri = f"sqlite:///{tmp_path}/locked.db"
    outbox.run(uid, "run", experiment="e")
    sync = OutboxSync(outbox.folder, uri)
    sync.start()
    assert sync.drain(60) == NOTHING_LEFT
    with sqlite3.connect(tmp_path / "locked.db", isolation_level=None) as holder:
        holder.execute("BEGIN EXCLUSIVE")
        outbox.metrics(uid, series(range(10)))
        started = time.monotonic()
        assert sync.drain(1.5).records == 10
        assert time.monotonic() - started < LIMIT_S
        holder.execute("ROLLBACK")
    assert sync.drain(60) == NOTHING_LEFT
    sync.stop()
    client = connect(uri)
    (run,) = client.search_runs(["1"])
    assert len(history(client, run, "loss")) == 10


def test_no_secret_reaches_a_message_or_a_file(
    outbox: Outbox, uid: str, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    caplog.set_level(logging.DEBUG, "scalablevit")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    sync = OutboxSync(outbox.folder, f"http://somebody:can%40ry77@127.0.0.1:{port}", request_timeout_s=1)
    outbox.run(uid, "run", experiment="e")
    sync.start()
    left = sync.drain(3)
    assert left.records == 1
    assert left.error
    shown = "\n".join([caplog.text, *capfd.readouterr(), left.error, sync.status()])
    shown += "".join(path.read_text() for path in outbox.folder.iterdir())
    sync.stop()
    assert str(port) in shown
    for secret in ("can%40ry77", "can@ry77", "somebody:"):
        assert secret not in shown
    assert (outbox.folder / SYNC_LOCK).exists()


@pytest.fixture
def sync(tmp_path: Path) -> Callable[..., int]:
    """The command, in this process."""
    return lambda *arguments: main("sync", ["--root", str(tmp_path), *arguments])


def test_the_sync_script_says_that_there_are_no_runs_and_makes_no_root(
    sync: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    missing = tmp_path / "mistyped"
    assert sync("--root", str(missing)) == 0
    assert str(missing / "runs") in capsys.readouterr().out
    assert not missing.exists()


def test_the_sync_script(
    sync: Callable[..., int],
    uid: str,
    uri: str,
    client: MlflowClient,
    experiment: str,
    run_of: RunOf,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    child = uuid4().hex
    Outbox(tmp_path / "runs" / "z-job" / FORMER_OUTBOX).run(uid, "job", experiment=experiment)
    outbox = Outbox(tmp_path / "runs" / "a-stage" / "outbox")
    time.sleep(0.01)
    outbox.run(child, "stage", experiment=experiment, parent=uid)
    outbox.metrics(child, series(range(5)))
    assert sync("--dry-run", "a-stage") == 0
    assert capsys.readouterr().out == "a-stage: 6 records would be sent\n"
    assert sync("--uri", "http://127.0.0.1:9", "a-stage") == 1
    assert "a-stage: 6 records left (" in capsys.readouterr().out
    assert sync("b-stage") == 2
    assert "a-stage, z-job" in capsys.readouterr().err
    assert sync("--uri", "sqlite:///relative.db") == 2
    assert "sqlite:////<absolute path>" in capsys.readouterr().err
    assert sync("--uri", uri) == 0
    assert [line.split("; ")[0] for line in capsys.readouterr().out.splitlines()] == [
        "z-job: everything sent",
        "a-stage: everything sent",
    ]
    assert run_of(client, experiment, child).data.metrics == {"loss": 0.4}
    outbox.metrics(child, series(range(5, 9)))
    assert sync("a-stage") == 0
    assert run_of(client, experiment, child).data.metrics == {"loss": 0.8}


def test_the_sync_script_sends_to_the_server_that_a_job_never_reached(
    sync: Callable[..., int], uid: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    outbox = Outbox(tmp_path / "runs" / "job" / "outbox")
    outbox.run(uid, "job", experiment="e")
    sender = OutboxSync(outbox.folder, "http://127.0.0.1:9")
    sender.start()
    assert sender.drain(1).records == 1
    sender.stop()
    assert sync() == 1
    assert "job: 1 records left (" in capsys.readouterr().out
    assert not (tmp_path / "mlflow.db").exists()


def test_the_sync_script_says_that_a_run_has_no_end_yet(
    sync: Callable[..., int], uid: str, uri: str, experiment: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    outbox = Outbox(tmp_path / "runs" / "job" / "outbox")
    outbox.run(uid, "job", experiment=experiment)
    assert sync("--uri", uri) == 0
    said = capsys.readouterr().out
    assert said == "job: everything sent; 1 run without an end: if its job is dead, run this again in a minute\n"
    sender = OutboxSync(outbox.folder, uri)
    sender.start()
    outbox.tags(uid, {"driver": "alive"})
    assert sender.drain(60) == NOTHING_LEFT
    assert sync() == 0
    assert capsys.readouterr().out == "job: everything sent\n"
    sender.stop()
    outbox.end(uid, "FINISHED")
    assert sync() == 0
    assert capsys.readouterr().out == "job: everything sent\n"


def test_the_sync_script_names_what_was_refused_and_forgets_it_once_it_is_taken(
    sync: Callable[..., int], uid: str, uri: str, experiment: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    outbox = Outbox(tmp_path / "runs" / "job" / "outbox")
    outbox.run(uid, "stage-1", experiment=experiment)
    outbox.params(uid, {"lr": 0.1})
    outbox.artifact(uid, tmp_path / "page.html")
    outbox.end(uid, "FINISHED")
    for _ in range(2):  # also what an earlier sending was refused
        assert sync("--uri", uri) == 0
        said = capsys.readouterr().out
        assert f"  refused: run stage-1, artifact: {tmp_path}/page.html is gone\n" in said
    (tmp_path / "page.html").write_text("made again")
    assert sync("--uri", uri, "--again") == 0
    assert capsys.readouterr().out == "job: everything sent\n"


def test_the_sync_script_by_itself_with_a_new_database(tmp_path: Path) -> None:
    Outbox(tmp_path / "runs" / "job" / "outbox").run("a" * 32, "job", experiment="e")
    command = [sys.executable, str(ROOT / "pipelines" / "sync.py"), "--root", str(tmp_path)]
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=300, env=environment)
    assert done.returncode == 0 and done.stdout.startswith("job: everything sent"), done.stdout + done.stderr
    assert (tmp_path / "mlflow.db").exists()
