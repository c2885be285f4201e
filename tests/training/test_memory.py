"""Freed memory stays with a worker that computes on a CPU, and its process does not grow."""

import os
import subprocess
import sys

import pytest

from scalablevit.config.recipe import Stage
from scalablevit.training.environment import CPU_ALLOCATOR, call_in_cpu_worker, worker_variables
from scalablevit.training.launch import _trainer
from scalablevit.training.worker import WorkerConfig

FAULTS = """
import resource, torch

def step():
    kept = [torch.ones(2**22) for _ in range(20)]  # 16 MiB each
    big = torch.ones(2**25)  # 128 MiB

for _ in range(3):  # until the pieces have found their places
    step()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(5):
    step()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""
"""Prints the pages that a process had to be given for five equal steps."""

CHECKPOINTS = """
import ctypes, queue, sys, threading

def write(inbox, done):
    kept = bytearray(4096)  # gives the thread its heap
    done.put(None)
    while inbox.get():
        copies = [bytearray(b"1") * 2**20 for _ in range(32)]  # 1 MiB each
        del copies
        done.put(None)

inboxes, done = [queue.Queue() for _ in range(32)], queue.Queue()
for inbox in inboxes:
    threading.Thread(target=write, args=(inbox, done), daemon=True).start()
for _ in inboxes:
    done.get()
if sys.argv[1] == "late":  # mmap_max, trim_threshold, top_pad, arena_max
    for name, value in ((-4, 0), (-1, 2**31 - 1), (-2, 2**26), (-8, 1)):
        assert ctypes.CDLL(None).mallopt(name, value) == 1
for checkpoint in range(1, 41):
    step = [bytearray(b"1") * 2**22 for _ in range(20)]  # 4 MiB each
    del step
    inboxes[checkpoint % 32].put(True)
    done.get()
    if checkpoint in (5, 40):
        print(int(open("/proc/self/statm").read().split()[1]))
"""
"""Prints the resident pages at checkpoints 5 and 40 of a training in which 32 threads allocate in turn.

No tensors: importing torch takes longer than all of this, and its pages hide the growth.
"""


def printed(program: str, *arguments: str, variables: dict[str, str]) -> list[int]:
    """The numbers that a new process prints."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("MALLOC_")}
    environment |= {"PYTHONPATH": os.pathsep.join(sys.path), **variables}
    done = subprocess.run(
        [sys.executable, "-c", program, *arguments], env=environment, capture_output=True, text=True, check=False,
        timeout=240,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return [int(line) for line in done.stdout.split()]


def test_the_next_step_takes_the_memory_of_the_last() -> None:
    (returned,) = printed(FAULTS, variables={})
    (kept,) = printed(FAULTS, variables=CPU_ALLOCATOR)
    assert kept < returned / 20


def test_a_worker_of_many_threads_does_not_grow() -> None:
    early, late = printed(CHECKPOINTS, "early", variables=CPU_ALLOCATOR)
    assert abs(late - early) < 0.1 * early


def test_set_from_within_it_would_grow() -> None:
    """What the environment is for: threads that have a heap of their own keep it."""
    early, late = printed(CHECKPOINTS, "late", variables={})
    assert late > 1.1 * early


def test_a_users_own_value_wins(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in CPU_ALLOCATOR:
        monkeypatch.delenv(name, raising=False)
    assert worker_variables(0) == CPU_ALLOCATOR
    monkeypatch.setenv("MALLOC_ARENA_MAX", "4")
    assert worker_variables(0) == {**CPU_ALLOCATOR, "MALLOC_ARENA_MAX": "4"}


@pytest.mark.parametrize("gpus", [0.0, 0.5, 1.0])
def test_train_workers_start_with_them_on_a_cpu_only(make_stage, gpus: float) -> None:
    stage: Stage = make_stage(cluster={"gpus_per_worker": gpus})
    workers = _trainer(
        stage, WorkerConfig("", "", "", init_weights=None), "/runs/toy", [], 0
    ).run_config.worker_runtime_env
    assert workers == {"env_vars": {} if gpus else worker_variables(0)}


def test_a_function_is_called_in_a_process_that_starts_with_them() -> None:
    before = dict(os.environ)
    assert call_in_cpu_worker(os.getenv, "MALLOC_ARENA_MAX") == "1"
    assert dict(os.environ) == before
