"""A Ray cluster over hosts of their own (`harness.hosts`), and jobs on it as a user starts them: on the first host."""

import json
import os
import secrets
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from harness.heads import ROOT
from harness.hosts import Host, hosts
from scalablevit.run_files import ATTEMPTS

PORT = "6379"
START_S = 180
STEPS = 40
"""Of a stage that is shorter than the time in which the head gives up a node."""
FIND_NODE = """
import os, ray
ray.init(address=os.environ["RAY_ADDRESS"], logging_level="ERROR")
print(*(node["NodeID"] for node in ray.nodes() if node["Alive"] and node["NodeManagerAddress"] == os.environ["NODE"]))
"""
QUICK_HEALTH = {
    "RAY_health_check_initial_delay_ms": "2000",
    "RAY_health_check_period_ms": "1000",
    "RAY_health_check_timeout_ms": "2000",
    "RAY_health_check_failure_threshold": "3",
    "RAY_raylet_start_wait_time_s": "90",
}
"""How soon Ray's head gives up a node that does not answer: about 8 s in place of 60."""


class Cluster:
    """A head on the first host, and nodes of one CPU each.

    Args:
        members: the hosts.
        folder: the shared folder, with `ray` in it, which is each host's own but for the first and the head's.
        variables: more variables of every process on the hosts.
    """

    def __init__(self, members: list[Host], folder: Path, variables: Mapping[str, str]) -> None:
        self.hosts = members
        self.folder = folder
        self._variables = variables
        self.address = f"{members[0].address}:{PORT}"
        self._command = str(Path(sys.executable).with_name("ray"))
        self._nodes = 0
        self._jobs: list[HostJob] = []
        self._token = secrets.token_hex(32)

    def environment(self, **more: str) -> dict[str, str]:
        """Variables of every process on the hosts."""
        dropped = ("PYTHONPATH", "SCALABLEVIT_ROOT", "RAY_ADDRESS")
        return {**{name: value for name, value in os.environ.items() if name not in dropped}, **QUICK_HEALTH,
                "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}", "OMP_NUM_THREADS": "1",
                "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": self._token,
                "RAY_TMPDIR": str(self.folder / "ray"), **self._variables, **more}  # fmt: skip

    def start_head(self) -> None:
        """Start the head."""
        self._start(self.hosts[0], "--head", "--port", PORT, "--temp-dir", str(self.folder / "ray"),
                    "--include-dashboard", "false")  # fmt: skip

    def start_node(self, host: Host) -> None:
        """Start a node on a host."""
        self._start(host, "--address", self.address)

    def drain(self, host: Host, deadline_s: int) -> None:
        """Announce that a host's node will be taken away, as autoscalers do."""
        environment = self.environment(RAY_ADDRESS=self.address, NODE=host.address)
        node = self.hosts[0].run(sys.executable, "-c", FIND_NODE, limit_s=START_S, env=environment).split()[-1]
        self.hosts[0].run(self._command, "drain-node", "--address", self.address, "--node-id", node,
                          "--reason", "DRAIN_NODE_REASON_PREEMPTION", "--reason-message", "spot capacity is gone",
                          "--deadline-remaining-seconds", str(deadline_s), limit_s=START_S,
                          env=environment)  # fmt: skip

    def _start(self, host: Host, *options: str) -> None:
        self._nodes += 1
        log = self.folder / f"{host.name}-{self._nodes}.log"
        process = host.start(log, self._command, "start", "--block", "--disable-usage-stats", "--num-cpus", "1",
                             "--node-ip-address", host.address, *options, env=self.environment())  # fmt: skip
        wait_for(lambda: "Ray runtime started" in log.read_text() or process.poll() is not None, START_S, log)
        assert process.poll() is None, log.read_text()

    def job(self, recipe: Mapping[str, Any], name: str, **variables: str) -> "HostJob":
        """Start a pretraining on the first host, with a root of its own in the shared folder."""
        job = HostJob(self, recipe, self.folder / name, variables)
        self._jobs.append(job)
        return job

    def end_jobs(self) -> None:
        """SIGKILL to jobs that a failed test left, which would take the room of the next one's."""
        for job in self._jobs:
            if job.process.poll() is None:
                os.killpg(job.process.pid, signal.SIGKILL)
                job.process.wait(timeout=START_S)


class HostJob:
    """A pretraining that runs on the first host.

    Args:
        cluster: where.
        recipe: what.
        root: its root.
        variables: more variables of its environment.
    """

    def __init__(self, cluster: Cluster, recipe: Mapping[str, Any], root: Path, variables: Mapping[str, str]) -> None:
        self.root = root
        root.mkdir(parents=True)
        file = root / "recipe.json"
        file.write_text(json.dumps(recipe))
        self.log = root / "job.log"
        environment = cluster.environment(RAY_ADDRESS=cluster.address, **variables)
        command = [sys.executable, str(ROOT / "pipelines" / "pretrain.py"), "--recipe", str(file), "--root", str(root)]
        self.process = cluster.hosts[0].start(self.log, *command, env=environment)

    def newest_checkpoint(self) -> int:
        """Step of the newest checkpoint; -1 before the first."""
        found = self.root.glob("runs/*/checkpoints/*/manifest.json")
        return max((int(path.parent.name.removeprefix("step_").partition("-")[0]) for path in found), default=-1)

    def events(self, kind: str) -> list[dict[str, Any]]:
        """What is noted of its attempts, of one kind."""
        found = [
            json.loads(line) for path in self.root.glob(f"runs/*/{ATTEMPTS}") for line in path.read_text().splitlines()
        ]
        return [event for event in found if event["event"] == kind]

    def worlds(self) -> list[int]:
        """Number of workers of each attempt."""
        return [event["world"] for event in self.events("started")]

    def ended(self, limit_s: float) -> int:
        """Wait for its end and return the exit status."""
        try:
            return self.process.wait(timeout=limit_s)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"not ended after {limit_s} s\n{self.log.read_text()}") from None


def recipe(folder: Path, steps: int, checkpoint_every: int) -> dict[str, Any]:
    """A pretraining with two workers on the built-in shapes, which goes on with one.

    Args:
        folder: which all nodes see; the data are in it.
        steps: of the stage.
        checkpoint_every: steps between two checkpoints.
    """
    return {
        "name": "hosts",
        "version": 2,
        "data": {
            "source": "image_folder", "root": str(folder / "data"),
            "shapes": {"train_images": 96, "val_images": 24, "image_size": 64},
            "train": {"images": "classification/train"}, "val": {"images": "classification/val"},
            "image_size": 32, "eval_resize": 32,
        },
        "model": {"name": "scalablevit_tiny", "drop_path_rate": 0.0},
        "task": {"kind": "classification"},
        "optimizer": {"lr": 1e-3},
        "training": {"steps": steps, "global_batch_size": 16, "evaluate_every": {"steps": steps}, "log_every_steps": 1,
                     "checkpoint_every": {"steps": checkpoint_every}},
        "cluster": {"workers": 2, "min_workers": 1, "cpus_per_worker": 1, "max_failures": 3},
    }  # fmt: skip


@contextmanager
def two_hosts(
    folder: Path, relays: Mapping[int, int] | None = None, variables: Mapping[str, str] | None = None
) -> Iterator[Cluster]:
    """Two hosts with a head on the first; the second has no node yet.

    Args:
        folder: as in `Cluster`.
        relays: servers of this machine that the hosts can reach: ports of the first host, each with that of loopback.
        variables: as in `Cluster`.
    """
    (folder / "ray").mkdir()
    with hosts(2, folder, [folder / "ray"]) as members, ExitStack() as relaying:
        for port, target in (relays or {}).items():
            relaying.enter_context(members[0].relay(port, target))
        cluster = Cluster(members, folder, variables or {})
        cluster.start_head()
        yield cluster


def wait_for(due: Any, limit_s: float, log: Path) -> None:
    """Wait until something holds; at the limit the log is shown."""
    deadline = time.monotonic() + limit_s
    while not due():
        assert time.monotonic() < deadline, f"waited {limit_s} s\n{log.read_text()}"
        time.sleep(0.1)
