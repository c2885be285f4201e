"""Environment variables of worker processes: those they must start with, and those that depend on their node."""

import os
import socket
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from ipaddress import ip_address
from multiprocessing import get_context
from typing import ParamSpec, TypeVar

import psutil

Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")

CPU_ALLOCATOR = {
    "MALLOC_ARENA_MAX": "1",
    "MALLOC_MMAP_MAX_": "0",
    "MALLOC_TRIM_THRESHOLD_": str(2**31 - 1),
    "MALLOC_TOP_PAD_": str(2**26),
}
"""Settings that let glibc keep the memory of freed tensors for the next step, in one heap that all threads share.

By default glibc returns large blocks to the system when a tensor is freed, and gets them again, page by page, for the
same tensor of the next step: 6 % of a step of the CamVid recipe. Besides, each thread that allocates has a heap of its
own, and other threads do not use what is freed there: a worker has about 30 threads and kept growing. With these
variables a process stays as large as its largest step. glibc reads them only when a process starts. Sizes are in bytes.
"""

INTERFACE_VARIABLES = {"GLOO_SOCKET_IFNAME": "", "NCCL_SOCKET_IFNAME": "="}
"""Variables that name the network interface of a process group, of Gloo and of NCCL, and what stands before the name.

NCCL takes a name without `=` for a prefix: eth1 would be eth10, too. One exact name restricts NCCL's first contact and
its traffic by TCP, which it would otherwise spread over all interfaces, also over those that other nodes do not reach;
who has several for training sets the variable. InfiniBand and RoCE are not restricted: NCCL_IB_HCA chooses among those.
"""


def worker_variables(gpus: float) -> dict[str, str]:
    """Return the variables of a worker's environment; values that this process already has win.

    Args:
        gpus: number of the worker's GPUs. A worker with a GPU gets no variables: its tensors are not in its heap.
    """
    return {} if gpus else {name: os.environ.get(name, value) for name, value in CPU_ALLOCATOR.items()}


def use_interface_of(address: str) -> None:
    """Let the process groups of this process use the network interface with an address; names already set win.

    Left alone, Gloo takes the address to which the host's name resolves. On Debian and its kin that is a loopback
    address, and the workers of two machines do not find each other.

    Args:
        address: this node's address in the cluster. One of loopback changes nothing: the cluster is this machine.
    """
    name = interface_of(address)  # none for a host's name, which is no IP address
    if name and not ip_address(address).is_loopback:
        for variable, before in INTERFACE_VARIABLES.items():
            os.environ.setdefault(variable, before + name)


def interface_of(address: str) -> str:
    """Return the name of this machine's network interface with an IP address; empty: none has it."""
    kinds = (socket.AF_INET, socket.AF_INET6)
    for name, entries in psutil.net_if_addrs().items():
        if any(entry.family in kinds and entry.address.partition("%")[0] == address for entry in entries):
            return name
    return ""


def call_in_cpu_worker(
    function: Callable[Arguments, Result], *arguments: Arguments.args, **options: Arguments.kwargs
) -> Result:
    """Call a function in a new process that starts with the variables of a CPU worker, and return its result.

    Args:
        function: a function that can be pickled.
        arguments: its positional arguments.
        options: its keyword arguments.

    Raises:
        BrokenProcessPool: the process ended without a result.
    """
    before = dict(os.environ)
    os.environ.update(worker_variables(0))
    try:
        with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
            return pool.submit(function, *arguments, **options).result()
    finally:
        for name in CPU_ALLOCATOR:
            if name not in before:
                del os.environ[name]
