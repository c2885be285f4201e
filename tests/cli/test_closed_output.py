"""`--dry-run | head`: where nobody reads the output any more, a script ends without a word."""

import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[2]
WORK = {
    "prints on": "for n in range(100_000): print('line', n, flush=True)",
    "prints on in blocks": "for n in range(100_000): print('line', n)",
    "has little left to print": "print('first', flush=True); time.sleep(1); print('last')",
    "prints in one piece": "print('first', flush=True); time.sleep(1); print('x' * 1_000_000)",
    "is a mistake": "print('first', flush=True); time.sleep(1); print('last'); raise UserError('the mistake')",
}


@pytest.mark.parametrize("name", WORK)
def test_a_reader_that_goes_away_ends_a_script_quietly(name: str) -> None:
    program = f"""\
import sys, time
from scalablevit.config.errors import UserError
from scalablevit.cli.exit_codes import run_command
def work():
    {WORK[name]}
    return 0
sys.exit(run_command(work))
"""
    with subprocess.Popen(
        [sys.executable, "-c", program], env={"PYTHONPATH": str(REPOSITORY / "platform")},
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    ) as process:  # fmt: skip
        assert process.stdout is not None and process.stderr is not None
        process.stdout.readline()
        process.stdout.close()
        said = process.stderr.read()
        code = process.wait(timeout=60)
    assert (code, said.strip()) == ((2, "the mistake") if name == "is a mistake" else (141, ""))


@pytest.mark.parametrize("output", [subprocess.PIPE, None, "closed"])
def test_another_broken_pipe_is_a_failure(output: object) -> None:
    program = """\
import sys
from scalablevit.cli.exit_codes import run_command
def work():
    raise BrokenPipeError("a server's")
sys.exit(run_command(work))
"""
    closed = ["bash", "-c", 'exec "$@" >&-', "bash"] if output == "closed" else []
    done = subprocess.run(
        [*closed, sys.executable, "-c", program],
        env={"PYTHONPATH": str(REPOSITORY / "platform"), "PATH": "/bin:/usr/bin"},
        stdout=subprocess.PIPE if output == subprocess.PIPE else None, stderr=subprocess.PIPE, text=True, check=False,
        timeout=60,
    )  # fmt: skip
    assert done.returncode == 1 and "a server's" in done.stderr
