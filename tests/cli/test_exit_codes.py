"""How the process of a command ends."""

import subprocess
import sys
from pathlib import Path

REPOSITORY = Path(__file__).parents[2]


def test_what_is_to_be_done_at_the_end_is_done_and_then_no_garbage_is_looked_for() -> None:
    program = """\
import atexit, gc
atexit.register(lambda: print("kept from collection:", gc.get_freeze_count() > 1000))
from scalablevit.cli.exit_codes import run_command
atexit.register(lambda: print("at the end:", gc.get_freeze_count()))
raise SystemExit(run_command(lambda: 3))
"""
    environment = {"PYTHONPATH": str(REPOSITORY / "platform")}
    done = subprocess.run(
        [sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=False, timeout=60
    )
    assert (done.returncode, done.stderr) == (3, "")
    assert done.stdout.splitlines() == ["at the end: 0", "kept from collection: True"]
