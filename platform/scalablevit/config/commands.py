"""How messages name this platform's commands: `scalablevit sync`, or `python pipelines/sync.py`."""

import shlex
import sys
from pathlib import Path

PROGRAM = "scalablevit"
"""The command that the package installs."""
SCRIPTS = Path(__file__).resolve().parents[3] / "pipelines"
"""The scripts next to the package in a checkout and in a job's copy of it; an installed package has none."""


def command_name(verb: str) -> str:
    """Return how a sentence names a command: `scalablevit check-data`, or `pipelines/check_data.py`.

    It is the script where there is one, unless the process was started as `scalablevit`.

    Args:
        verb: as `scalablevit --help` lists it.
    """
    file = f"{verb.replace('-', '_')}.py"
    if Path("".join(sys.argv[:1])).stem == PROGRAM or not (SCRIPTS / file).is_file():
        return f"{PROGRAM} {verb}"
    return f"pipelines/{file}"


def short_name(verb: str) -> str:
    """Return the name without a folder: `scalablevit check-data`, or `check_data.py`."""
    return command_name(verb).removeprefix("pipelines/")


def command_line(verb: str, programs: Path | None = None) -> str:
    """Return how a command is typed into a shell: `scalablevit sync`, or `python pipelines/sync.py`.

    Args:
        verb: as `scalablevit --help` lists it.
        programs: folder with the interpreter's programs: the command is given by its path in it; None: by name, which
            the shell looks up.
    """
    if programs is not None and (programs / PROGRAM).is_file():
        return f"{shlex.quote(str(programs / PROGRAM))} {verb}"
    program, _, rest = command_name(verb).rpartition(" ")
    program = program or "python"
    return f"{program if programs is None else shlex.quote(str(programs / program))} {rest}"
