"""MLflow goes away while training runs, for longer than the sync waits: nothing is slowed, lost or doubled.

SCALABLEVIT_OUTAGE_S sets the length of the outages, which all happen at the same time.
"""

import json
import os
import signal
import socket
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, ExitStack, closing, contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any
from uuid import uuid4

import numpy as np
import pytest
from harness import toy_training
from harness.heads import ROOT, TINY, Head
from harness.mlflow_server import Server
from harness.toy_training import DRAIN_S, EXPERIMENT, LEFT, LOG, MORE, MORE_POINTS, STOP, child_of
from mlflow import MlflowClient
from mlflow.artifacts import download_artifacts
from mlflow.entities import Run, ViewType

from scalablevit.run_files import REFUSED
from scalablevit.tracking.connection import connect
from scalablevit.tracking.outbox import count_lines, open_runs, read_lines
from scalablevit.tracking.records import MetricsRecord, Record
from scalablevit.tracking.sync import LIVE_WITHIN_MS
from scalablevit.tracking.sync_progress import load_progress
from scalablevit.tracking.tags import UID

OUTAGE_S = float(os.environ.get("SCALABLEVIT_OUTAGE_S", "45"))
BEFORE_S = AFTER_S = 10.0
KILL_AFTER_S = 5.0
"""Into the outage the drivers of the second trainings are killed."""
PERIOD_S = 0.025
SLOW_PERIOD_S = 0.25
"""Of the trainings whose drivers are killed: those whose steps are timed want the cores."""
START_LIMIT_S = 240
BAR_MS = 5.0

pytestmark = pytest.mark.long


# --- four outages at once ---


@contextmanager
def killed(server: Server) -> Iterator[None]:
    server.kill()
    yield
    server.start()


@contextmanager
def locked(database: Path) -> Iterator[None]:
    """This process holds the database: nobody else may read or write."""
    with closing(sqlite3.connect(database, timeout=60, isolation_level=None)) as holder:
        holder.execute("BEGIN EXCLUSIVE")
        yield


@contextmanager
def never_answering(server: Server) -> Iterator[None]:
    """A socket in the server's place; the kernel accepts for it, and nobody reads."""
    server.kill()
    with socket.socket() as hole:
        hole.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        _bind(hole, server.port)
        hole.listen(64)
        yield
    server.start()


def _bind(hole: socket.socket, port: int) -> None:
    """The killed server's worker may hold the port a moment longer."""
    deadline = time.monotonic() + 10
    while True:
        try:
            return hole.bind(("127.0.0.1", port))
        except OSError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.05)


@dataclass
class Case:
    """A training that lives through an outage and another whose driver is killed in it, on one MLflow."""

    name: str
    root: Path
    uri: str
    outage: Callable[[], AbstractContextManager[None]]
    uid: str = field(default_factory=lambda: uuid4().hex)
    orphan_uid: str = field(default_factory=lambda: uuid4().hex)
    steady: float = 0.0
    """Monotonic seconds, as the three below: both trainings run and MLflow has records of them."""
    begun: float = 0.0
    ended: float = 0.0
    back: float = 0.0
    waiting: int = 0
    """Records in the outbox at the end of the outage that MLflow has not taken."""
    synced: str = ""
    """What pipelines/sync.py said of the killed driver's run."""

    @property
    def folder(self) -> Path:
        return self.root / "runs" / self.name

    @property
    def orphan(self) -> Path:
        return self.root / "runs" / f"{self.name}-orphan"

    @property
    def control(self) -> Path:
        """The same training at the same time without MLflow, for all cases: the machine may be busy."""
        return self.root / "control"

    def trainings(self) -> list[dict[str, Any]]:
        return [
            {"folder": str(self.folder), "uri": self.uri, "uid": self.uid, "period_s": PERIOD_S},
            {"folder": str(self.orphan), "uri": self.uri, "uid": self.orphan_uid, "period_s": SLOW_PERIOD_S},
        ]

    def is_steady(self) -> bool:
        saved = [load_progress(folder / "outbox") for folder in (self.folder, self.orphan)]
        return all(each is not None and each.runs for each in saved) and (self.folder / LOG).exists()

    def suffer(self) -> None:
        with self.outage():
            self.begun = time.monotonic()
            (self.folder / MORE).touch()
            time.sleep(KILL_AFTER_S)
            os.kill(int((self.orphan / "pid").read_text()), signal.SIGKILL)
            time.sleep(max(0.0, self.begun + OUTAGE_S - time.monotonic()))
            saved = load_progress(self.folder / "outbox")
            assert saved is not None
            self.waiting = count_lines(self.folder / "outbox", saved.offset)
            self.ended = time.monotonic()
        self.back = time.monotonic()


def steps(folder: Path, since: float, until: float) -> "np.ndarray[Any, np.dtype[np.float64]]":
    """Milliseconds of the steps, report included, that began in an interval."""
    return np.array([1000 * line["seconds"] for line in log(folder) if since <= line["begun"] < until])


def log(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / LOG).read_text().splitlines()]


@pytest.fixture(scope="module")
def cases(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Case]]:
    """All outages over, all trainings ended, and what killed drivers left behind sent by pipelines/sync.py."""
    root = tmp_path_factory.mktemp("outages")
    servers = {name: Server(tmp_path_factory.mktemp(name)) for name in ("killed", "locked", "hung")}
    alone = root / "mlflow.db"
    made = [
        Case("killed", root, servers["killed"].uri, partial(killed, servers["killed"])),
        Case("locked", root, servers["locked"].uri, partial(locked, servers["locked"].database)),
        Case("locked-file", root, f"sqlite:///{alone}", partial(locked, alone)),
        Case("hung", root, servers["hung"].uri, partial(never_answering, servers["hung"])),
    ]
    with ExitStack() as stack, ThreadPoolExecutor(len(made)) as pool:
        for server in servers.values():
            stack.callback(server.kill)
        list(pool.map(Server.start, servers.values()))
        connect(f"sqlite:///{alone}").search_experiments()  # makes its tables
        control = made[0].control
        alike = {"folder": str(control), "uri": None, "uid": uuid4().hex, "period_s": PERIOD_S}
        trainings = stack.enter_context(running([alike, *(each for case in made for each in case.trainings())]))
        wait_for(lambda: all(case.is_steady() for case in made), START_LIMIT_S, trainings)
        for case in made:
            case.steady = time.monotonic()
        time.sleep(BEFORE_S)
        list(pool.map(Case.suffer, made))
        time.sleep(AFTER_S)
        for folder in (control, *(case.folder for case in made)):
            (folder / STOP).touch()
        trainings.wait(timeout=DRAIN_S + 60)
        # what was at work within this time may still have a driver
        killed_at = max(case.begun for case in made) + KILL_AFTER_S
        time.sleep(max(0.0, killed_at + LIVE_WITHIN_MS / 1000 + 5 - time.monotonic()))
        said = sync(root).stdout.splitlines()
        for case in made:
            (case.synced,) = (line for line in said if line.startswith(f"{case.orphan.name}:"))
        yield {case.name: case for case in made}


@contextmanager
def running(trainings: Sequence[dict[str, Any]]) -> Iterator["subprocess.Popen[bytes]"]:
    for each in trainings:
        Path(each["folder"]).mkdir(parents=True)
    process = subprocess.Popen(
        [sys.executable, toy_training.__file__, json.dumps(trainings)],
        env={**os.environ, "PYTHONPATH": str(ROOT / "platform"), "MLFLOW_DISABLE_TELEMETRY": "true"},
        start_new_session=True,
    )
    try:
        yield process
    finally:
        if process.poll() is None:  # with its forks, which are of its process group
            os.killpg(process.pid, signal.SIGKILL)
            process.wait(timeout=30)


def wait_for(reached: Callable[[], bool], limit_s: float, process: "subprocess.Popen[Any] | None" = None) -> None:
    deadline = time.monotonic() + limit_s
    while not reached():
        assert process is None or process.poll() is None, f"ended with {process.returncode} too early"
        assert time.monotonic() < deadline, f"not reached in {limit_s:.0f} s"
        time.sleep(0.1)


def sync(root: Path, *arguments: str) -> "subprocess.CompletedProcess[str]":
    """pipelines/sync.py, as a user would start it."""
    command = [sys.executable, str(ROOT / "pipelines" / "sync.py"), "--root", str(root), *arguments]
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=240, check=False)


def runs(client: MlflowClient, experiment: str = EXPERIMENT) -> dict[str, Run]:
    """Every run of an experiment, also deleted ones, by uid; no uid has two."""
    place = client.get_experiment_by_name(experiment)
    assert place is not None
    found = client.search_runs([place.experiment_id], run_view_type=ViewType.ALL)
    by_uid = {run.data.tags[UID]: client.get_run(run.info.run_id) for run in found}
    assert len(by_uid) == len(found)
    return by_uid


def points(client: MlflowClient, run: Run, key: str) -> list[tuple[int, int, float]]:
    return sorted((m.step, m.timestamp, m.value) for m in client.get_metric_history(run.info.run_id, key))


def logged_points(folder: Path) -> list[tuple[int, int, float]]:
    return [(line["step"], line["time_ms"], line["metrics"]["loss"]) for line in log(folder)]


def is_end(record: Record | None) -> bool:
    return record is not None and record.kind == "end"


each_outage = pytest.mark.parametrize(
    "outage",
    [
        pytest.param("killed", marks=pytest.mark.row("Tracking: MLflow server killed")),
        pytest.param("locked", marks=pytest.mark.row("Tracking: its database locked")),
        pytest.param("locked-file", marks=pytest.mark.row("Tracking: a database without a server locked")),
        pytest.param("hung", marks=pytest.mark.row("Tracking: a socket that never answers")),
    ],
)
limited = pytest.mark.timeout(OUTAGE_S + 900)
rotating = pytest.mark.rotating("outages", 120)


@rotating
@limited
@each_outage
def test_an_outage_loses_and_doubles_nothing(
    outage: str, cases: dict[str, Case], tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    case = cases[outage]
    left = json.loads((case.folder / LEFT).read_text())
    record_property("caught up in s", round(left.pop("seconds"), 1))
    assert left == {"records": 0, "refused": 0, "error": None}
    assert not (case.folder / "outbox" / REFUSED).exists()
    client = connect(case.uri)
    found = runs(client)
    assert set(found) == {case.uid, child_of(case.uid), case.orphan_uid}
    run, child = found[case.uid], found[child_of(case.uid)]
    assert run.info.status == "FINISHED"
    assert points(client, run, "loss") == logged_points(case.folder)
    assert [step for step, _, _ in points(client, run, "system/node0/cpu")] == [
        line["step"] for line in log(case.folder)
    ]
    assert run.data.params == {"lr": "0.1", "during": "outage"}
    assert run.data.tags["best"] == "loss"
    assert run.inputs is not None and [each.dataset.name for each in run.inputs.dataset_inputs] == ["photos"]
    assert [file.path for file in client.list_artifacts(run.info.run_id)] == ["note.txt", "plots"]
    assert [file.path for file in client.list_artifacts(run.info.run_id, "plots")] == ["plots/curve.txt"]
    note = download_artifacts(
        run_id=run.info.run_id, artifact_path="note.txt", dst_path=str(tmp_path), tracking_uri=case.uri
    )
    assert Path(note).read_text() == case.uid
    assert (child.info.status, child.data.tags["mlflow.parentRunId"]) == ("FAILED", run.info.run_id)
    assert points(client, child, "loss") == [(n, 1_000 + n, n / 7) for n in range(MORE_POINTS)]


@rotating
@limited
@each_outage
def test_training_goes_on_as_fast_as_before(
    outage: str, cases: dict[str, Case], record_property: Callable[[str, object], None]
) -> None:
    """That it does not wait for MLflow is tested, its speed only told: a busy machine is slow for other reasons."""
    case = cases[outage]
    assert case.ended - case.begun >= OUTAGE_S
    spans = {
        "before": (case.steady, case.steady + BEFORE_S),
        "in it": (case.begun, case.ended),
        "catching up": (case.back, case.back + AFTER_S),
    }
    added = {}
    for when, span in spans.items():
        took, control = steps(case.folder, *span), steps(case.control, *span)
        assert len(took) >= span[1] - span[0], "less than a step in a second"
        if when == "in it":
            assert case.waiting >= len(took), "MLflow took records: there was no outage"
            record_property("steps in it", len(took))
            record_property("p50/p99 ms without MLflow", "{:.1f}/{:.1f}".format(*np.percentile(control, (50, 99))))
        added[when] = np.percentile(took, (50, 99)) - np.percentile(control, (50, 99))
        record_property(f"added {when}", "{:.1f}/{:.1f}".format(*added[when]))
    record_property(f"p99 < {BAR_MS:g} ms in it", "met" if added["in it"][1] < BAR_MS else "MISSED")


@rotating
@limited
@each_outage
def test_a_driver_killed_in_the_outage_loses_nothing(outage: str, cases: dict[str, Case]) -> None:
    case = cases[outage]
    assert not (case.orphan / LEFT).exists(), "its driver came to its end"
    assert case.synced == f"{case.orphan.name}: everything sent"
    client = connect(case.uri)
    run = runs(client)[case.orphan_uid]
    there, known = points(client, run, "loss"), logged_points(case.orphan)
    # a step may have been reported and the process killed before it knew
    assert there[: len(known)] == known and len(there) - len(known) in (0, 1)
    (last,) = {line.record.time_ms for line in read_lines(case.orphan / "outbox") if is_end(line.record)}
    assert (run.info.status, run.info.end_time) == ("KILLED", last)
    assert last == there[-1][1]


# --- a whole job ---

STEPS = 400


@pytest.fixture
def start_driver(head: Head, tmp_path: Path) -> Iterator[Callable[[str], "subprocess.Popen[bytes]"]]:
    """Starts a driver; its root is `tmp_path / "root"`, its output `tmp_path / "output"`."""
    environment = head.environment()
    drivers: list[subprocess.Popen[bytes]] = []

    def start(uri: str) -> "subprocess.Popen[bytes]":
        arguments = [
            *("--recipe", str(TINY), "--root", str(tmp_path / "root"), f"tracking.uri={uri}", "cluster.workers=1"),
            f"stages.pretrain.training.steps={STEPS}", "stages.pretrain.training.evaluate_every={steps: 100}",
            "stages.pretrain.training.checkpoint_every={steps: 20}",
        ]  # fmt: skip
        with (tmp_path / "output").open("wb") as output:
            drivers.append(subprocess.Popen([sys.executable, "pipelines/pretrain.py", *arguments], cwd=ROOT,
                                            env=environment, stdout=output, stderr=output))  # fmt: skip
        return drivers[-1]

    yield start
    for driver in drivers:
        driver.kill()
        driver.wait(timeout=30)


@pytest.mark.ray
@pytest.mark.timeout(1800)
@pytest.mark.row("Tracking: a job killed while MLflow is away, from its start on")
def test_a_job_whose_driver_is_killed_in_an_outage_goes_on_in_the_same_run(
    start_driver: Callable[[str], "subprocess.Popen[bytes]"], tmp_path: Path
) -> None:
    root, output = tmp_path / "root", tmp_path / "output"
    (tmp_path / "server").mkdir()
    server = Server(tmp_path / "server")
    driver = start_driver(server.uri)
    wait_for(lambda: trained(root) and any(root.glob("runs/*/checkpoints/*/manifest.json")), 300, driver)
    driver.kill()
    driver.wait(timeout=30)
    try:
        server.start()
        # until no run was at work within the time in which its driver may still live
        wait_for(lambda: time.time() * 1000 - last_at_work(root) > LIVE_WITHIN_MS, 120)
        done = sync(root)
        assert done.returncode == 0, done.stdout + done.stderr
        assert done.stdout.count(": everything sent\n") == 2
        client = connect(server.uri)
        first = runs(client, "scalablevit")
        assert [run.info.status for run in first.values()] == ["KILLED"] * 2
        steps_there = [step for run in first.values() for step, _, _ in points(client, run, "train/loss")]
        assert steps_there == trained(root)

        driver = start_driver(server.uri)
        assert driver.wait(timeout=600) == 0, output.read_text()
        assert "resumed at step" in output.read_text()
        assert "tiny-pretrain v1 @candidate" in output.read_text()
        assert sync(root, "--again").returncode == 0
        second = runs(client, "scalablevit")
        assert {uid: run.info.run_id for uid, run in second.items()} == {u: run.info.run_id for u, run in first.items()}
        assert [run.info.status for run in second.values()] == ["FINISHED"] * 2
        (version,) = client.search_model_versions("name = 'tiny-pretrain'")
        run = client.get_run(str(version.run_id))
        assert [step for step, _, _ in points(client, run, "train/loss")] == sorted({1, 5, *range(2, STEPS + 1, 2)})
        assert [step for step, _, _ in points(client, run, "val/top1")] == list(range(100, STEPS + 1, 100))
        assert run.data.params["training.steps"] == str(STEPS)
        artifacts = [file.path for file in client.list_artifacts(run.info.run_id)]
        assert artifacts == ["environment.json", "plots", "recipe.yaml", "statistics.json"]
        assert not any(root.glob(f"runs/*/outbox/{REFUSED}"))
    finally:
        server.kill()


def trained(root: Path) -> list[int]:
    """Steps whose training loss is in an outbox."""
    records = [line.record for folder in root.glob("runs/*/outbox") for line in read_lines(folder)]
    return [each.step for each in records if isinstance(each, MetricsRecord) and "train/loss" in each.metrics]


def last_at_work(root: Path) -> int:
    return max(time_ms for folder in root.glob("runs/*/outbox") for time_ms in open_runs(folder).values())
