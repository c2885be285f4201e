"""A Ray head without CPUs whose autoscaler starts nodes on this machine, and jobs on it."""

import json
import os
import random
import secrets
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import ray

from harness.heads import ROOT
from harness.two_hosts import wait_for
from scalablevit.run_files import ATTEMPTS

MARK = "SCALABLEVIT_AUTOSCALED"
"""Variable by whose value every process of a head is known: the nodes' are started by its autoscaler."""
HEAD_ID = "fffffffffffffffffffffffffffffffffffffffffffffffffff00000"
"""Ray's id of the head, by which the older and the newer autoscaler know it."""
IDLE_MINUTES = 1.0
START_S = 180
END_S = 60


class AutoscaledHead:
    """A head with no CPUs and nodes of one CPU that come when they are asked for, and go when they are idle.

    Args:
        folder: of the head, short enough for the paths of sockets.
        most: most nodes at a time.
        newer: with Ray's newer autoscaler (v2).
    """

    def __init__(self, folder: Path, most: int, *, newer: bool) -> None:
        self.folder = folder
        self._host = str(ray.util.get_node_ip_address())  # where Ray looks for a head that is given by loopback, too
        self._port = free_port(self._host)
        self.address = f"{self._host}:{self._port}"
        self.log = folder / "head.log"
        self._ray = str(Path(sys.executable).with_name("ray"))
        self._config = folder / "autoscaling.json"
        self._config.write_text(json.dumps(configuration(self.address, most)))
        self._newer = newer
        self._token = secrets.token_hex(32)

    def environment(self) -> dict[str, str]:
        """Variables of every process."""
        dropped = ("PYTHONPATH", "SCALABLEVIT_ROOT", "RAY_ADDRESS")
        return {**{name: value for name, value in os.environ.items() if name not in dropped}, MARK: str(self.folder),
                "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}", "OMP_NUM_THREADS": "1",
                "RAY_TMPDIR": str(self.folder / "ray"), "RAY_raylet_start_wait_time_s": "90",
                # a head takes a token that is in the home folder, a driver does not
                "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": self._token}  # fmt: skip

    def start(self) -> None:
        """Start the head."""
        autoscaler = {"RAY_FAKE_CLUSTER": "1", "AUTOSCALER_UPDATE_INTERVAL_S": "1", "AUTOSCALER_METRIC_PORT": "0"}
        if self._newer:
            autoscaler |= {"RAY_enable_autoscaler_v2": "1", "RAY_CLOUD_INSTANCE_ID": HEAD_ID}
        command = [self._ray, "start", "--head", "--block", "--disable-usage-stats", "--include-dashboard", "false",
                   "--num-cpus", "0", "--num-gpus", "0", "--node-ip-address", self._host, "--port", str(self._port),
                   "--temp-dir", str(self.folder / "ray"), "--autoscaling-config", str(self._config)]  # fmt: skip
        environment = {**self.environment(), **autoscaler, "RAY_OVERRIDE_NODE_ID_FOR_TESTING": HEAD_ID}
        with self.log.open("ab") as output:
            process = subprocess.Popen(command, env=environment, stdin=subprocess.DEVNULL, stdout=output,
                                       stderr=subprocess.STDOUT, start_new_session=True)  # fmt: skip
        wait_for(lambda: "Ray runtime started" in self.log.read_text() or process.poll() is not None, START_S, self.log)
        assert process.poll() is None, self.log.read_text()

    def nodes(self) -> int:
        """How many nodes live besides the head: processes of Ray's node manager."""
        return sum(b"/raylet/raylet" in command for command in self._processes().values()) - 1

    def job(self, recipe: Mapping[str, Any], name: str) -> "AutoscaledJob":
        """Start a pretraining with a root of its own."""
        return AutoscaledJob(self, recipe, self.folder / name)

    def stop(self) -> None:
        """End every process of the head and its nodes, whoever started it."""
        deadline = time.monotonic() + END_S
        while found := self._processes():
            assert time.monotonic() < deadline, f"do not end: {found}"
            for pid in found:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            time.sleep(0.2)

    def _processes(self) -> dict[int, bytes]:
        """Commands of the living processes with the head's mark in their environment, by process id."""
        mark, found = f"{MARK}={self.folder}".encode(), {}
        for entry in Path("/proc").iterdir():
            with suppress(OSError):  # gone meanwhile, or another user's
                if entry.name.isdigit() and mark in (entry / "environ").read_bytes().split(b"\0"):
                    found[int(entry.name)] = (entry / "cmdline").read_bytes()
        return found


class AutoscaledJob:
    """A pretraining on such a head.

    Args:
        head: where.
        recipe: what.
        root: its root.
    """

    def __init__(self, head: AutoscaledHead, recipe: Mapping[str, Any], root: Path) -> None:
        self.root = root
        root.mkdir(parents=True)
        file = root / "recipe.json"
        file.write_text(json.dumps(recipe))
        self.log = root / "job.log"
        command = [sys.executable, str(ROOT / "pipelines" / "pretrain.py"), "--recipe", str(file), "--root", str(root)]
        with self.log.open("ab") as output:
            self.process = subprocess.Popen(command, env={**head.environment(), "RAY_ADDRESS": head.address},
                                            stdin=subprocess.DEVNULL, stdout=output,
                                            stderr=subprocess.STDOUT)  # fmt: skip

    def worlds(self) -> list[int]:
        """Number of workers each time that some started."""
        lines = [line for path in self.root.glob(f"runs/*/{ATTEMPTS}") for line in path.read_text().splitlines()]
        return [event["world"] for event in map(json.loads, lines) if event["event"] == "started"]

    def ended(self, limit_s: float) -> int:
        """Wait for its end and return the exit status."""
        try:
            return self.process.wait(timeout=limit_s)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"not ended after {limit_s} s\n{self.log.read_text()}") from None


def configuration(address: str, most: int) -> dict[str, Any]:
    """The autoscaler's configuration: the provider that Ray tests with, which its wheel has without its defaults."""
    return {
        "cluster_name": "autoscaled",
        "max_workers": most,
        "idle_timeout_minutes": IDLE_MINUTES,
        "upscaling_speed": 1.0,
        "provider": {
            "type": "external",
            "module": "ray.autoscaler._private.fake_multi_node.node_provider.FakeMultiNodeProvider",
            "gcs_address": address, "head_node_id": HEAD_ID, "launch_multiple": True,
            "use_node_id_as_ip": True, "disable_node_updaters": True, "disable_launch_config_check": True,
        },
        "available_node_types": {
            "ray.head.default": {"resources": {"CPU": 0}, "node_config": {}, "max_workers": 0},
            "small": {"resources": {"CPU": 1}, "node_config": {}, "min_workers": 0, "max_workers": most},
        },
        "head_node_type": "ray.head.default",
        "auth": {}, "file_mounts": {}, "cluster_synced_files": [], "file_mounts_sync_continuously": False,
        "rsync_exclude": [], "rsync_filter": [], "initialization_commands": [], "setup_commands": [],
        "head_setup_commands": [], "worker_setup_commands": [], "head_start_ray_commands": [],
        "worker_start_ray_commands": [],
    }  # fmt: skip


def free_port(host: str) -> int:
    """A port of an address that nobody listens on, below those from which the kernel gives ports to connections."""
    for port in random.sample(range(20_000, 32_000), 100):
        with socket.socket() as listener, suppress(OSError):
            listener.bind((host, port))
            return port
    raise AssertionError("no free port")


@contextmanager
def autoscaled(folder: Path, most: int, *, newer: bool) -> Iterator[AutoscaledHead]:
    """A head that is started and ended with all nodes that it has then."""
    (folder / "ray").mkdir()
    head = AutoscaledHead(folder, most, newer=newer)
    try:
        head.start()
        yield head
    finally:
        head.stop()
