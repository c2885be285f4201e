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

from scalablevit.config.data import CocoInstances, MaskPairs
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
    chosen = "CUDA_VISIBLE_DEVICES" in os.environ  # by Slurm or a person, so nobody needs a warning
    return 0 if chosen or not NVIDIA.is_dir() else len(list(NVIDIA.iterdir()))


def read_clock(_: Sequence[str]) -> float:
    """Return the time of the node that this runs on, seconds since the epoch."""
    return time.time()


def shared_bytes(stage: Stage, steps: int, workers: int) -> tuple[int, int]:
    """Return the bytes of shared memory that batches of training images fill on a node, at least and at most.

    At least one batch has to fit; how many are there at once depends on who is faster, loader processes or training.

    Args:
        stage: what is trained.
        steps: its optimizer steps, beyond which no loader process reads ahead.
        workers: that may be on the node.
    """
    training, cluster, data = stage.training, stage.cluster, stage.data
    images = training.global_batch_size / cluster.workers / training.accumulation_steps
    image = data.training_pixels * (4 if isinstance(data, MaskPairs) else 3)  # a mask has one byte a pixel
    batches = min(cluster.loader_workers * PREFETCHED, steps * training.accumulation_steps)
    known = batches > 0 and not isinstance(data, CocoInstances)  # whose pixels are at most so many
    return math.floor(images) * image * known, math.ceil(images) * image * batches * workers


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
    value = ", ".join(f"{name} {facts.versions.get(name, 'none')}" for name in ("python", "ray", "torch"))
    return _find(node, "versions", value, f"has {', '.join(missing or others)}" if missing or others else "",
                 "install infra/requirements.lock on every node", stops=bool(missing))  # fmt: skip


def find_gpus(node: Node, facts: NodeFacts) -> Finding:
    """Return whether Ray gives out all GPUs of a node."""
    offered = node.resources.get("GPU", 0.0)
    problem = f"NVIDIA's driver names {facts.gpus} GPUs, of which Ray gives out {offered:g}"
    return _find(node, "GPUs", f"{offered:g}", problem * (offered < facts.gpus),
                 f"start Ray there with --num-gpus={facts.gpus} to use all")  # fmt: skip


def find_shared_memory(node: Node, facts: NodeFacts, needed: tuple[int, int] | None) -> Finding:
    """Return whether a node has the shared memory for loader processes, as `shared_bytes` has it; None: not known."""
    least, most = needed or (0, LEAST_SHARED)
    value, free = f"{_size(facts.shared_free)} free", facts.shared_free
    takes = f"; loader processes take up to {_size(most)}" if needed else ""
    return _find(node, "shared memory", value, f"{SHARED_MEMORY} has {value}{takes}" * (most > free),
                 "give the container more (docker run --shm-size=8g; on Kubernetes an emptyDir of medium Memory), or "
                 "set cluster.loader_workers=0", stops=least > free)  # fmt: skip


def find_disk(at: Node | str, folder: str, free: int, total: int) -> Finding:
    """Return whether the disk of a folder, which belongs to a node or to something else, has room; sizes in bytes."""
    value = f"{folder}: {_size(free)} of {_size(total)} free"
    problem = f"{value}, below {LEAST_DISK:.0%}" * (free < LEAST_DISK * total)
    return _find(at, "disk", value, problem, "make room, or take a folder elsewhere")


def find_storage(node: Node | None, location: str, what: str, fix: str) -> Finding:
    """Return whether a node (None: the driver) can use run storage, by what `check_storage` says there."""
    where, on_node = (node.address, f" on node {node.address}") if node else ("this process", "")
    problem = UserError(what, where=f"cluster.storage ({location}){on_node}", fix=fix)
    return Finding("storage", where, location, problem if what else None)


def find_interface(node: Node, facts: NodeFacts) -> Finding:
    """Return whether workers of other nodes can reach those of a node by its address in the cluster."""
    problem = ("no network interface of it has that address, so its workers are reached by the address that its host "
               "name resolves to, if at all")  # fmt: skip
    return _find(node, "interface", facts.interface or "none", problem * (not facts.interface),
                 "start Ray there with --node-ip-address=<an address of an interface>, or with GLOO_SOCKET_IFNAME and "
                 "NCCL_SOCKET_IFNAME set to the interface to use")  # fmt: skip


def find_ports(node: Node, facts: NodeFacts, *, stops: bool) -> Finding:
    """Return whether a node can connect to the driver's on a port that the system chose, as workers do.

    It stops a training where workers are on the driver's node, too; else it says little about the others.
    """
    problem = f"cannot connect to the driver's node on a port that the system chose: {facts.unreached}"
    return _find(node, "ports", facts.unreached or "open", problem * bool(facts.unreached),
                 "let nodes connect to one another on all ports from 1024 on", stops=stops)  # fmt: skip


def find_clock(node: Node, before: float, clock: float, after: float) -> Finding:
    """Return whether a node's clock, read between two looks at the driver's, goes with it; seconds since the epoch."""
    skew = max(clock - after, 0.0) - max(before - clock, 0.0)  # at least
    problem = f"its clock is {abs(skew):.0f} s {'ahead of' if skew > 0 else 'behind'} this machine's"
    return _find(node, "clock", f"{skew:+.1f} s", problem * (abs(skew) > MOST_SKEW_S),
                 "set all by NTP: times in metrics are wrong, and object stores refuse it")  # fmt: skip


def find_token(address: str, mode: str) -> Finding:
    """Return whether a cluster (`<host>:<port>`) wants a token of its users, by the value of RAY_AUTH_MODE."""
    is_open = mode != "token" and not address.startswith(("127.", "localhost:", "[::1]"))
    problem = "everyone who reaches it can run programs on it" * is_open
    fix = "start all nodes with RAY_AUTH_MODE=token, and close Ray's ports to others"
    return _find(f"cluster {address}", "token", mode or "none", problem, fix)


def find_upload(folder: str, size: int, limit: int) -> Finding:
    """Return whether Ray takes the upload of a job: bytes before compression, and the most of them after it."""
    problem = f"a job uploads {_size(size)}, and Ray takes at most {_size(limit)}, compressed" * (size > limit // 2)
    fix = "move data and runs out of the folder, or name them in its .rayignore"
    return _find(folder, "upload", _size(size), problem, fix, stops=size > 2 * limit)


def join_problems(findings: Sequence[Finding]) -> list[UserError]:
    """Return the problems among findings; nodes with the same one share it."""
    places: dict[tuple[str, str], list[str]] = {}
    for problem in filter(None, (finding.problem for finding in findings)):
        places.setdefault((problem.what, problem.fix), []).append(problem.where)
    return [UserError(what, where=", ".join(where[:SHOWN]) + and_more(len(where), SHOWN), fix=fix)
            for (what, fix), where in places.items()]  # fmt: skip


def _find(at: Node | str, what: str, value: str, problem: str, fix: str, *, stops: bool = False) -> Finding:
    """Return a finding about a node, or about what else it belongs to; an empty problem: it is good."""
    where, place = (at.address, f"node {at.address}") if isinstance(at, Node) else (at, at)
    return Finding(what, where, value, UserError(problem, where=place, fix=fix) if problem else None, stops)


def _size(size: int) -> str:
    return f"{size / 2**30:.1f} GiB" if size >= 2**30 else f"{size / 2**20:.1f} MiB"
