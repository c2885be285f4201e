"""Freed memory stays with the process."""

import os
import subprocess
import sys

FAULTS = """
import resource, sys, torch
from scalablevit.training.memory import keep_freed_memory

if sys.argv[1] == "kept":
    assert keep_freed_memory()

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


def faults(way: str) -> int:
    """Pages that a process had to be given for five equal steps."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-c", FAULTS, way]
    return int(subprocess.run(command, env=environment, capture_output=True, text=True, check=True, timeout=120).stdout)


def test_the_next_step_takes_the_memory_of_the_last() -> None:
    assert faults("kept") < faults("returned") / 20
