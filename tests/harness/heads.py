"""A local Ray head for tests, and what is started on it."""

import contextlib
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
TINY = ROOT / "tests" / "end_to_end" / "tiny.yaml"
"""The recipe of all three tasks at the smallest size that still goes through everything."""
COMMAND = [sys.executable, str(ROOT / "infra" / "head.py")]
COMMAND_S = 180
JOB_S = 600
"""Longest wait for a job: on a very busy machine a start takes minutes."""


class Head:
    """A Ray head in a folder of its own. Jobs on it may have other roots.

    Args:
        root: the head's folder; it can serve as a platform root too.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self.data = root / "data"
        self.database = f"sqlite:///{root}/mlflow.db"

    def command(self, verb: str, *options: str) -> str:
        """Run infra/head.py and return what it prints."""
        return subprocess.run([*COMMAND, verb, *options, "--root", str(self.root)], check=True, timeout=COMMAND_S,
                              text=True, capture_output=True).stdout  # fmt: skip

    def environment(self) -> dict[str, str]:
        """Variables that lead a driver to this head; no path to the package, which must come with the job."""
        exports = (line.removeprefix("export ") for line in self.command("env").splitlines() if "=" in line)
        pairs = {name: value.strip("'\"") for name, _, value in (line.partition("=") for line in exports)}
        return {**{k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "SCALABLEVIT_ROOT")}, **pairs}

    def submit(self, root: Path, script: str, *arguments: str, name: str | None = None) -> "subprocess.Popen[str]":
        """The README's command: a script as a Ray job, followed by the returned process."""
        variables = json.dumps({"env_vars": {"SCALABLEVIT_ROOT": str(root)}})
        command = [str(Path(sys.executable).with_name("ray")), "job", "submit", "--working-dir", ".",
                   "--runtime-env-json", variables, *(["--submission-id", name] if name else []), "--",
                   "python", f"pipelines/{script}.py", *arguments]  # fmt: skip
        return subprocess.Popen(command, cwd=ROOT, env=self.environment(), text=True, stdout=subprocess.PIPE,
                                stderr=subprocess.STDOUT)  # fmt: skip

    def start(self, script: str, *arguments: str, cwd: Path = ROOT) -> "subprocess.Popen[str]":
        """A script as a driver process on this machine."""
        return subprocess.Popen([sys.executable, str(ROOT / "pipelines" / f"{script}.py"), *arguments], cwd=cwd,
                                env=self.environment(), text=True, stdout=subprocess.PIPE,
                                stderr=subprocess.STDOUT)  # fmt: skip

    def actors(self, *titles: str) -> set[int]:
        """Ids of this head's processes with one of these in their title."""
        mark = f"SCALABLEVIT_HEAD_ID={self.record()['id']}".encode()
        found = set()
        for pid in (int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdigit()):
            with contextlib.suppress(OSError):  # gone meanwhile, or another user's
                title = title_of(pid)
                if any(each in title for each in titles) and mark in Path(f"/proc/{pid}/environ").read_bytes().split(
                    b"\0"
                ):
                    found.add(pid)
        return found

    def ranks(self) -> dict[int, int]:
        """Rank by process id of all workers that ever began to train, by the logs of Ray Train's controllers."""
        logs = Path(self.record()["temp_dir"], "session_latest", "logs", "train")
        text = "".join(path.read_text() for path in logs.glob("ray-train-sys-controller-*.log"))
        return {int(pid): int(rank) for pid, rank in re.findall(r"pid=(\d+)\) world_rank=(\d+)", text)}

    def record(self) -> dict[str, Any]:
        """What infra/head.py knows of it."""
        return dict(json.loads((self.root / "head.json").read_text()))


@contextmanager
def running(root: Path, *options: str) -> Iterator[Head]:
    """A head that is started and stopped."""
    head = Head(root)
    head.command("start", *options)
    try:
        yield head
    finally:
        head.command("stop")


def output_of(process: "subprocess.Popen[str]", limit_s: float = JOB_S) -> str:
    """Wait for a process and return what it printed; it is ended at the limit."""
    try:
        return process.communicate(timeout=limit_s)[0]
    finally:
        process.kill()


def title_of(pid: int) -> str:
    """What a process calls itself."""
    return Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")[0].decode(errors="replace")
