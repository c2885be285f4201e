"""Freed memory stays with the process."""

import os
import subprocess
import sys

FAULTS = """
import resource, torch
from scalablevit.training.memory import keep_freed_memory

def step():
    kept = [torch.ones(2**22) for _ in range(20)]  # 16 MiB each
    big = torch.ones(2**25)  # 128 MiB

def faults():
    for _ in range(3):  # until the pieces have found their places
        step()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(5):
        step()
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

returned = faults()
assert keep_freed_memory()
print(returned, faults())
"""
"""Prints the pages that a process had to be given for five equal steps, by the C library's own way and by ours."""


def test_the_next_step_takes_the_memory_of_the_last() -> None:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-c", FAULTS]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True, timeout=120)
    returned, kept = map(int, done.stdout.split())
    assert kept < returned / 20
