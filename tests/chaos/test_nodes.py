"""A cluster of two nodes, of which one is taken away with notice, lost without, or stops answering."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from harness.heads import Head, running
from harness.killing import Job, points, sums

from scalablevit.run_files import ATTEMPTS

GRACE_S = 20
"""Between a node's notice and its end."""
SILENT_S = 10
"""After which a worker that does not answer counts as lost, here; 60 unless the environment says otherwise."""
NODE_S = 90
START = """
from ray._private import ray_constants, services
from ray.scripts.scripts import main
# as of a head on loopback Ray neither starts a second node nor takes its address for what it is
ray_constants.ENABLE_RAY_CLUSTER = True
services.get_node_ip_address = lambda *_: "127.0.0.1"
main()
"""

pytestmark = [pytest.mark.ray, pytest.mark.long, pytest.mark.timeout(3600)]


class Node:
    """A second node of a head on the same machine, with one CPU."""

    def __init__(self, head: Head) -> None:
        record = head.record()
        command = [sys.executable, "-c", START, "start", "--address", record["address"], "--block",
                   "--node-ip-address", "127.0.0.1", "--num-cpus", "1", "--disable-usage-stats",
                   "--min-worker-port", "0", "--max-worker-port", "0"]  # fmt: skip
        # the head's mark, so that stopping the head ends what is left of the node
        environment = {**head.environment(), "SCALABLEVIT_HEAD_ID": record["id"], "OMP_NUM_THREADS": "1",
                       "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
                       "RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S": str(GRACE_S),
                       "RAY_raylet_start_wait_time_s": str(NODE_S)}  # fmt: skip
        log = head.root / f"node-{time.time_ns()}.log"
        with log.open("w") as output:
            self.process = subprocess.Popen(command, env=environment, stdout=output, stderr=subprocess.STDOUT,
                                            start_new_session=True)  # fmt: skip
        wait_for(lambda: "Ray runtime started" in log.read_text() or self.process.poll() is not None, NODE_S,
                 log.read_text)  # fmt: skip
        assert self.process.poll() is None, log.read_text()

    def end(self) -> None:
        """SIGKILL to all that is left of it."""
        for process in [*self.children(), self.process]:
            if psutil.pid_exists(process.pid):
                os.kill(process.pid, signal.SIGKILL)
        self.process.wait(timeout=30)

    def children(self) -> list[psutil.Process]:
        """Its processes."""
        if not psutil.pid_exists(self.process.pid):
            return []
        return psutil.Process(self.process.pid).children(recursive=True)

    def raylet(self) -> int:
        """Process id of the raylet."""
        (found,) = (process.pid for process in self.children() if process.name() == "raylet")
        return found


def wait_for(due: Callable[[], bool], limit_s: float, said: Callable[[], str]) -> None:
    deadline = time.monotonic() + limit_s
    while not due():
        assert time.monotonic() < deadline, f"waited {limit_s} s\n{said()}"
        time.sleep(0.05)


@pytest.fixture(scope="module")
def head(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Head]:
    """One CPU; the second node has the other."""
    with running(tmp_path_factory.mktemp("nodes"), "--num-cpus", "1") as place:
        yield place


@pytest.fixture
def node(head: Head) -> Iterator[Node]:
    second = Node(head)
    yield second
    second.end()


def recipe(head: Head, steps: int, **training: Any) -> dict[str, Any]:
    """Nothing in it is drawn by rank, so that fewer workers do the same but for rounding."""
    return {
        "name": "nodes",
        "data": {
            "source": "image_folder", "root": str(head.data),
            "shapes": {"train_images": 96, "val_images": 24, "image_size": 64},
            "train": {"images": "classification/train"}, "val": {"images": "classification/val"},
            "image_size": 32, "eval_resize": 32,
        },
        "model": {"name": "scalablevit_tiny", "drop_path_rate": 0.0},
        "task": {"kind": "classification"},
        "optimizer": {"lr": 1e-3, "name": "sgd"},
        "training": {"steps": steps, "global_batch_size": 16, "evaluate_every": {"steps": steps}, "log_every_steps": 1,
                     **training},
        "cluster": {"workers": 2, "cpus_per_worker": 1, "max_failures": 0},
    }  # fmt: skip


def events(job: Job, kind: str) -> list[dict[str, Any]]:
    file = job.folder / ATTEMPTS
    found = [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []
    return [event for event in found if event["event"] == kind]


def newest_step(job: Job) -> int:
    losses = [step for step, name, *_ in points(job) if name == "train/loss"]
    return max(losses, default=0)


def losses(job: Job) -> dict[int, float]:
    """Every step's loss, each told exactly once."""
    told = [(step, value) for step, name, value, _ in points(job) if name == "train/loss"]
    assert [step for step, _ in sorted(told)] == list(range(1, job.total + 1)), "a step was lost, or told twice"
    return dict(told)


def until_step(job: Job, step: int) -> None:
    wait_for(lambda: (job.root / "runs").exists() and any((job.root / "runs").glob("*/checkpoints")), 240, job.said)
    wait_for(lambda: newest_step(job) >= step, 240, job.said)


@pytest.mark.row("Kills: a worker stopped with SIGSTOP is found and named")
def test_a_worker_that_stops_answering_is_found_and_replaced(head, node, tmp_path, monkeypatch, record_property):
    monkeypatch.setenv("RAY_TRAIN_WORKER_HEALTH_CHECK_TIMEOUT_S", str(SILENT_S))
    plan = recipe(head, 200, checkpoint_every={"steps": 5})
    plan["cluster"]["max_failures"] = 1
    with Job(head, plan, tmp_path / "whole") as whole:
        assert whole.ended() == 0, whole.said()
    with Job(head, plan, tmp_path / "stopped") as job:
        until_step(job, 20)
        stopped = max(head.actors("RayTrainWorker"))
        since = time.time()
        os.kill(stopped, signal.SIGSTOP)
        try:
            wait_for(lambda: bool(events(job, "lost")), SILENT_S + 30, job.said)
            assert job.ended() == 0, job.said()
        finally:
            if psutil.pid_exists(stopped):
                os.kill(stopped, signal.SIGKILL)
    (lost,) = events(job, "lost")
    record_property("found after s", round(lost["time"] - since, 1))
    assert lost["time"] - since < SILENT_S + 20
    assert any("hanging" in reason for reason in lost["ranks"].values()), lost
    assert "workers were lost (rank " in job.said() and "hanging" in job.said()
    assert sums(job) == sums(whole)
    assert losses(job) == losses(whole)


@pytest.mark.row("Kills: SIGTERM with a grace period, saved at the next step and not charged")
def test_a_node_with_notice_is_saved_for_and_costs_no_failure(head, node, tmp_path, record_property):
    plan = recipe(head, 1200)  # no checkpoint but at the end
    plan["cluster"]["min_workers"] = 1
    with Job(head, plan, tmp_path / "run") as job:
        until_step(job, 30)
        since = time.time()
        node.process.terminate()
        wait_for(lambda: any((job.folder / "checkpoints").glob("*/manifest.json")), GRACE_S, job.said)
        record_property("saved after s", round(time.time() - since, 1))
        assert job.ended(600) == 0, job.said()
    first, second = events(job, "started")
    assert (first["world"], second["world"]) == (2, 1)
    assert second["from_step"] >= 30, "it did not go on from what was saved"
    assert newest_before(job, second["entered"]) == second["from_step"], "steps were done twice"
    assert not events(job, "lost")
    losses(job)


def newest_before(job: Job, moment: float) -> int:
    return max(step for step, name, _, time_s in points(job) if name == "train/loss" and time_s < moment)


@pytest.mark.row("Kills: a raylet; workers 2 -> 1 -> 2, same batches")
def test_a_lost_node_is_done_without_and_used_again(head, node, tmp_path, record_property):
    plan = recipe(head, 3000, checkpoint_every={"steps": 50})
    plan["cluster"] |= {"min_workers": 1, "max_failures": 3}
    with Job(head, plan, tmp_path / "whole") as whole:
        assert whole.ended(1200) == 0, whole.said()
    with Job(head, plan, tmp_path / "lost") as job:
        until_step(job, 200)
        since = time.time()
        os.kill(node.raylet(), signal.SIGKILL)
        wait_for(lambda: len(events(job, "started")) == 2, 180, job.said)
        again = Node(head)
        try:
            assert job.ended(1800) == 0, job.said()
        finally:
            again.end()
    worlds = [event["world"] for event in events(job, "started")]
    assert worlds == [2, 1, 2], worlds
    record_property("lost node found after s", round(events(job, "lost")[0]["time"] - since, 1))
    expected, found = losses(whole), losses(job)
    worst = max(abs(found[step] - expected[step]) for step in expected)
    record_property("largest difference of the loss", f"{worst:.2g}")
    assert worst < 0.02, "other samples, or another batch"
