"""Output that nobody reads, or that finds no room."""

import subprocess
import sys
from pathlib import Path

import pytest

from scalablevit.runs import console

TOLD = """
import sys
from pathlib import Path
from scalablevit.runs.console import Console, ignore_output_errors

with ignore_output_errors():
    lines = Console("pretrain")
    for step in range(20_000):
        lines.say(f"step {step}")
    print("stage", flush=True)
    Path(sys.argv[1]).touch()
"""


@pytest.mark.parametrize(("where", "read"), [("| head -1", "[pretrain] step 0\n"), ("> /dev/full", "")])
def test_a_training_does_not_end_because_nobody_reads_what_it_tells(where, read, tmp_path):
    """What found no room is still reported by the interpreter, when all is done."""
    (tmp_path / "told.py").write_text(TOLD)
    command = f"set -o pipefail; '{sys.executable}' '{tmp_path}/told.py' '{tmp_path}/done' {where}"
    ended = subprocess.run(
        ["bash", "-c", command], check=False, timeout=120, text=True, capture_output=True,
        env={"PYTHONPATH": str(Path(console.__file__).parents[2]), "PATH": "/usr/bin:/bin"},
    )  # fmt: skip
    assert (tmp_path / "done").exists(), ended.stderr
    assert ended.stdout == read
    assert (ended.returncode == 0 and ended.stderr == "") if read else "No space left" in ended.stderr
