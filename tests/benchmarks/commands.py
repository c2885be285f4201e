"""Commands that a benchmark waits for, with a limit, and a Ray head of its own: none of them outlives it."""

import contextlib
import os
import shlex
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import psutil
from benchmarks.rows import REPOSITORY

HEAD = [sys.executable, str(REPOSITORY / "infra" / "head.py")]
HEAD_S = 180.0
"""Longest wait for the head to start or to stop."""
END_S = 15.0
"""Between the request to end and SIGKILL."""
SHOWN_CHARACTERS = 6000


class CommandFailed(Exception):
    """A command ended with an error or not in time; with the end of what it said."""


def run_beside(
    commands: Mapping[str, Sequence[str]], folder: Path, limit_s: float, environment: Mapping[str, str] | None = None
) -> float:
    """Run commands at the same time, each to its end; their output goes to `<folder>/<name>.log`.

    Args:
        commands: by name.
        folder: of the logs.
        limit_s: seconds that all of them have.
        environment: this process's unless given; the package can be imported in either.

    Returns:
        When they were started, seconds since the epoch.

    Raises:
        CommandFailed: one ended with an error or not in time; the others have been ended too.
    """
    paths = os.pathsep.join(str(REPOSITORY / folder) for folder in ("platform", "tests"))
    variables = {**(os.environ if environment is None else environment), "PYTHONPATH": paths}
    begun = time.time()
    running: dict[str, subprocess.Popen[bytes]] = {}
    try:
        for name, command in commands.items():
            with (folder / f"{name}.log").open("wb") as log:
                running[name] = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log,
                                                 stderr=subprocess.STDOUT, cwd=REPOSITORY, env=variables)  # fmt: skip
        for name, process in running.items():
            _wait(name, process, folder / f"{name}.log", begun + limit_s - time.time())
    finally:
        for process in running.values():
            end(process)
    return begun


def _wait(name: str, process: "subprocess.Popen[bytes]", log: Path, limit_s: float) -> None:
    try:
        code = process.wait(max(0.0, limit_s))
    except subprocess.TimeoutExpired:
        raise CommandFailed(f"{name} did not end in time; {_tail(log)}") from None
    if code:
        raise CommandFailed(f"{name} ended with code {code}; {_tail(log)}")


def _tail(log: Path) -> str:
    said = log.read_text(errors="replace").strip()[-SHOWN_CHARACTERS:]
    return f"the end of what it said:\n{said}"


def end(process: "subprocess.Popen[bytes]") -> None:
    """End a process that still runs, and all that it started (torchrun's workers have sessions of their own)."""
    if process.poll() is not None:
        return
    family = psutil.Process(process.pid).children(recursive=True)
    process.terminate()
    try:
        process.wait(END_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait(END_S)
    for child in family:
        with contextlib.suppress(psutil.NoSuchProcess):
            child.kill()


@contextlib.contextmanager
def local_head(root: Path) -> Iterator[dict[str, str]]:
    """A Ray head with two CPUs while the context lasts; gives the environment that leads a driver to it."""
    root.mkdir(parents=True)
    try:
        _head(root, "start", "--num-cpus", "2")
        exports = [shlex.split(line)[1:] for line in _head(root, "env").splitlines() if line.startswith("export ")]
        pairs = dict(pair.split("=", 1) for words in exports for pair in words)
        # a token in the environment would win over the head's file
        yield {name: value for name, value in os.environ.items() if name != "RAY_AUTH_TOKEN"} | pairs
    finally:
        _head(root, "stop")


def _head(root: Path, verb: str, *arguments: str) -> str:
    done = subprocess.run([*HEAD, verb, *arguments, "--root", str(root)], timeout=HEAD_S, capture_output=True,
                          text=True, check=False)  # fmt: skip
    if done.returncode:
        raise CommandFailed(f"infra/head.py {verb} failed: {done.stderr.strip()[-SHOWN_CHARACTERS:]}")
    return done.stdout
