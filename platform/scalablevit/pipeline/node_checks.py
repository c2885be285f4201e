"""What the gate of a training and `doctor` look at on every node: one function and one sentence for each thing."""

import math
import os
import platform
import shutil
import socket
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Literal

from scalablevit.config.errors import UserError
from scalablevit.config.recipe import Stage
from scalablevit.text import and_more
from scalablevit.tracking.environment import installed_version
from scalablevit.training.environment import interface_of
from scalablevit.training.ray_internals import Node
from scalablevit.training.storage import check_storage

NVIDIA = Path("/proc/driver/nvidia/gpus")
"""Has a folder for each GPU."""
SHARED_MEMORY = Path("/dev/shm")  # noqa: S108 (only its room is read)
PACKAGES = ("ray", "torch", "torchvision", "timm", "albumentations", "simplejpeg", "numpy", "pyarrow", "safetensors")
"""Without which a worker does not train, or on whose versions its numbers depend."""
PREFETCHED = 2
"""Batches that torch's DataLoader keeps ahead for each of its processes."""
LEAST_SHARED = 2**30
"""Bytes of free shared memory below which there is a warning where no stage says what it takes; Docker gives 64 MiB."""
LEAST_DISK = 0.05
"""Free share of a disk below which Ray no longer writes objects to it."""
MOST_SKEW_S = 2.0
"""Seconds that the clocks of two nodes may differ by without a warning."""
SHOWN = 3
"""Nodes with the same problem that are named; the others are counted."""
CONNECT_S = 5.0
"""Longest wait, in seconds, for a node's connection to another one."""


@dataclass(frozen=True)
class Finding:
    """What was found about one thing at one place."""

    what: str
    where: str
    """Address of the node, or what else the thing belongs to."""
    value: str
    problem: UserError | None = None
    """None: it is good."""
    stops: bool = True
    """Whether the problem stops a training; else it is a warning."""

    @property
    def level(self) -> Literal["good", "warning", "stops"]:
        """Return how bad it is."""
        return "good" if self.problem is None else "stops" if self.stops else "warning"


@dataclass(frozen=True)
class NodeFacts:
    """What a node has; sizes are in bytes."""

    versions: Mapping[str, str]
    gpus: int
    """That NVIDIA's driver names; 0 where some were chosen."""
    shared_free: int
    """Shared memory."""
    disk: tuple[str, int, int]
    """Folder of temporary files, and what is free, and there, on its disk."""
    interface: str
    """The network interface that workers of other nodes reach its workers by; empty: none has its address."""
    unreached: str
    """Why it cannot connect to the driver's node; empty: it can."""
    storage: Mapping[str, tuple[str, str]]
    """By location of run storage: what is wrong with it there and what to do, both empty where nothing is."""


def collect(places: Sequence[str]) -> NodeFacts:
    """Return what the node has that this runs on.

    Args:
        places: `<host>:<port>` to connect to, or empty; then the locations of run storage.
    """
    temporary = tempfile.gettempdir()
    disk = shutil.disk_usage(temporary)
    return NodeFacts(
        versions=versions(),
        gpus=driver_gpus(),
        shared_free=shutil.disk_usage(SHARED_MEMORY).free if SHARED_MEMORY.is_dir() else 0,
        disk=(temporary, disk.free, disk.total),
        interface=_interface() if places[0] else "",
        unreached=_connection_error(places[0]) if places[0] else "",
        storage={location: storage_error(location) for location in places[1:]},
    )


def versions() -> dict[str, str]:
    """Return the versions of Python and of `PACKAGES` here, without those that are missing."""
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        with suppress(metadata.PackageNotFoundError):
            found[name] = installed_version(name).partition("+")[0]  # builds for CPUs and GPUs may be mixed
    return found


def driver_gpus() -> int:
    """Return the GPUs that NVIDIA's driver names on this machine, counted without loading Ray or torch."""
    if "CUDA_VISIBLE_DEVICES" in os.environ:  # chosen by Slurm or a person, so nobody needs a warning
        return 0
    try:
        return len(list(NVIDIA.iterdir()))
    except OSError:
        return 0


def read_clock(_: Sequence[str]) -> float:
    """Return the time of the node that this runs on, seconds since the epoch."""
    return time.time()


def shared_bytes(stage: Stage) -> int:
    """Return the bytes of shared memory that the loader processes of a worker fill with batches, at most."""
    training, cluster = stage.training, stage.cluster
    images = math.ceil(training.global_batch_size / cluster.workers / training.accumulation_steps)
    return cluster.loader_workers * PREFETCHED * images * stage.data.training_pixels * 3


def _interface() -> str:
    import ray

    address = str(ray.util.get_node_ip_address())  # type: ignore[no-untyped-call]
    return os.environ.get("GLOO_SOCKET_IFNAME") or interface_of(address)


def _connection_error(address: str) -> str:
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host, int(port)), timeout=CONNECT_S).close()
    except OSError as error:
        return str(error)
    return ""


def storage_error(location: str) -> tuple[str, str]:
    """Return what is wrong with run storage as this process sees it, and what to do; both empty where nothing is."""
    try:
        check_storage(location)
    except UserError as error:
        return error.what, error.fix
    return "", ""


def find_versions(node: Node, facts: NodeFacts, wanted: Mapping[str, str]) -> Finding:
    """Return whether a node has the packages, in the driver's versions."""
    missing = [f"no {name}" for name in PACKAGES if name not in facts.versions]
    others = [f"{name} {version} in place of {wanted[name]}" for name, version in facts.versions.items()
              if version != wanted.get(name, version)]  # fmt: skip
    problem = _on(node, f"has {', '.join(missing or others)}", "install infra/requirements.lock on every node")
    value = ", ".join(f"{name} {facts.versions.get(name, 'none')}" for name in ("python", "ray", "torch"))
    return Finding("versions", node.address, value, problem if missing or others else None, bool(missing))


def find_gpus(node: Node, facts: NodeFacts) -> Finding:
    """Return whether Ray gives out all GPUs of a node."""
    offered = node.resources.get("GPU", 0.0)
    problem = _on(node, f"NVIDIA's driver names {facts.gpus} GPUs, of which Ray gives out {offered:g}",
                  f"start Ray there with --num-gpus={facts.gpus} to use all")  # fmt: skip
    return Finding("GPUs", node.address, f"{offered:g}", problem if offered < facts.gpus else None, stops=False)


def find_shared_memory(node: Node, facts: NodeFacts, needed: int | None) -> Finding:
    """Return whether a node has the shared memory for a worker's loader processes, in bytes; None: not known."""
    value, stops = f"{_size(facts.shared_free)} free", (needed or 0) > facts.shared_free
    takes = "" if needed is None else f"; the loader processes of a worker take up to {_size(needed)}"
    problem = _on(node, f"{SHARED_MEMORY} has {value}{takes}", "give the container more (docker run --shm-size=8g; "
                  "on Kubernetes an emptyDir of medium Memory), or set cluster.loader_workers=0")  # fmt: skip
    is_bad = stops or (needed is None and facts.shared_free < LEAST_SHARED)
    return Finding("shared memory", node.address, value, problem if is_bad else None, stops)


def find_disk(where: str, folder: str, free: int, total: int) -> Finding:
    """Return whether the disk of a folder has room; sizes in bytes."""
    value = f"{folder}: {_size(free)} of {_size(total)} free"
    problem = UserError(f"{value}, below {LEAST_DISK:.0%}", where=where, fix="make room, or take a folder elsewhere")
    return Finding("disk", where, value, problem if free < LEAST_DISK * total else None, stops=False)


def find_storage(node: Node | None, location: str, what: str, fix: str) -> Finding:
    """Return whether a node (None: the driver) can use run storage, by what `check_storage` says there."""
    where, on_node = (node.address, f" on node {node.address}") if node else ("this process", "")
    problem = UserError(what, where=f"cluster.storage ({location}){on_node}", fix=fix)
    return Finding("storage", where, location, problem if what else None)


def find_interface(node: Node, facts: NodeFacts) -> Finding:
    """Return whether workers of other nodes can reach those of a node by its address in the cluster."""
    problem = _on(node, "no network interface of it has that address, so its workers are reached by the address that "
                  "its host name resolves to, if at all",
                  "start Ray there with --node-ip-address=<an address of an interface>, or with GLOO_SOCKET_IFNAME and "
                  "NCCL_SOCKET_IFNAME set to the interface to use")  # fmt: skip
    value = facts.interface or "none"
    return Finding("interface", node.address, value, None if facts.interface else problem, stops=False)


def find_ports(node: Node, facts: NodeFacts, *, stops: bool) -> Finding:
    """Return whether a node can connect to the driver's on a port that the system chose, as workers do.

    It stops a training where workers are on the driver's node, too; else it says little about the others.
    """
    problem = _on(node, f"cannot connect to the driver's node on a port that the system chose: {facts.unreached}",
                  "let nodes connect to one another on all ports from 1024 on")  # fmt: skip
    return Finding("ports", node.address, facts.unreached or "open", problem if facts.unreached else None, stops)


def find_clock(node: Node, before: float, clock: float, after: float) -> Finding:
    """Return whether a node's clock, read between two looks at the driver's, goes with it; seconds since the epoch."""
    skew = max(clock - after, 0.0) - max(before - clock, 0.0)  # at least
    direction = "ahead of" if skew > 0 else "behind"
    problem = _on(node, f"its clock is {abs(skew):.0f} s {direction} this machine's",
                  "set all by NTP: times in metrics are wrong, and object stores refuse it")  # fmt: skip
    return Finding("clock", node.address, f"{skew:+.1f} s", problem if abs(skew) > MOST_SKEW_S else None, stops=False)


def find_token(address: str, mode: str) -> Finding:
    """Return whether a cluster (`<host>:<port>`) wants a token of its users, by the value of RAY_AUTH_MODE."""
    problem = UserError("everyone who reaches it can run programs on it", where=f"cluster {address}",
                        fix="start all nodes with RAY_AUTH_MODE=token, and close Ray's ports to others")  # fmt: skip
    is_bad = mode != "token" and not address.startswith(("127.", "localhost:", "[::1]"))
    return Finding("token", address, mode or "none", problem if is_bad else None, stops=False)


def find_upload(folder: str, size: int, limit: int) -> Finding:
    """Return whether Ray takes the upload of a job: bytes before compression, and the most of them after it."""
    problem = UserError(f"a job uploads {_size(size)}, and Ray takes at most {_size(limit)}, compressed", where=folder,
                        fix="move data and runs out of the folder, or name them in its .rayignore")  # fmt: skip
    return Finding("upload", folder, _size(size), problem if size > limit // 2 else None, size > 2 * limit)


def join_problems(findings: Sequence[Finding]) -> list[UserError]:
    """Return the problems among findings; nodes with the same one share it."""
    places: dict[tuple[str, str], list[str]] = {}
    for problem in filter(None, (finding.problem for finding in findings)):
        places.setdefault((problem.what, problem.fix), []).append(problem.where)
    return [UserError(what, where=", ".join(where[:SHOWN]) + and_more(len(where), SHOWN), fix=fix)
            for (what, fix), where in places.items()]  # fmt: skip


def _on(node: Node, what: str, fix: str) -> UserError:
    return UserError(what, where=f"node {node.address}", fix=fix)


def _size(size: int) -> str:
    return f"{size / 2**30:.1f} GiB" if size >= 2**30 else f"{size / 2**20:.1f} MiB"
