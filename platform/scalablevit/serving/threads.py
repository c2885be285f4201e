"""torch's threads of a prediction: no more than there are free cores, since threads that wait for a core stop all."""

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

_LOCK = threading.Lock()
_outside: list[int] = []
"""For each context that is open, torch's threads outside of all of them."""


def other_load() -> float:
    """Return how many threads run or wait for a core at this moment, without the calling one.

    Without /proc/loadavg it is the load average of the last minute, which counts what this process has just done.
    """
    try:
        running = Path("/proc/loadavg").read_text(encoding="ascii").split()[3].partition("/")[0]
        return max(0.0, float(running) - 1)
    except (OSError, ValueError, IndexError):
        return os.getloadavg()[0]


def free_threads(most: int) -> int:
    """Return how many of up to `most` threads have a core of their own now; at least 1, the calling one.

    Where this process may use only a part of the cores, others' load is taken to be spread evenly over all.
    """
    cores = len(os.sched_getaffinity(0))
    load = other_load() * cores / max(cores, os.cpu_count() or 1)
    return max(1, min(most, int(cores - load)))


@contextmanager
def limit_threads() -> Iterator[None]:
    """Let torch use only threads that are free now, and never more than it may use outside of the context.

    Two threads on two busy cores wait for each other: an image took 600 ms and more, and 46 ms with one. Contexts of
    several threads may overlap.
    """
    with _LOCK:
        most = _outside[0] if _outside else torch.get_num_threads()
        _outside.append(most)
        torch.set_num_threads(free_threads(most))
    try:
        yield
    finally:
        with _LOCK:
            torch.set_num_threads(_outside.pop())
