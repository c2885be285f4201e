"""Processes of claimant.py, which claim runs when told to, and races of several."""

import json
import os
import re
import select
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).parents[2]
LIMIT_S = 60.0
"""For any answer; the machine may be busy."""


class Claimant:
    """A process of claimant.py."""

    def __init__(self, root: Path, **settings: Any) -> None:
        self.process = subprocess.Popen(
            [sys.executable, str(REPOSITORY / "tests" / "harness" / "claimant.py"), str(root), json.dumps(settings)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": str(REPOSITORY / "platform")},
        )
        self.pid = self.process.pid
        self._pending = b""

    def tell(self, **command: Any) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps(command).encode() + b"\n")
        self.process.stdin.flush()

    def answer(self, limit_s: float = LIMIT_S) -> dict[str, Any]:
        """The next answer; lines that the lease prints for people are passed over."""
        assert self.process.stdout is not None
        end = time.monotonic() + limit_s
        while True:
            line, found, self._pending = self._pending.partition(b"\n")
            if found and line.startswith(b"{"):
                return json.loads(line)
            if found:
                continue
            self._pending = line
            ready, _, _ = select.select([self.process.stdout], [], [], max(0.0, end - time.monotonic()))
            assert ready, f"no answer in {limit_s} s"
            content = os.read(self.process.stdout.fileno(), 4096)
            assert content, self.process.stderr and self.process.stderr.read().decode()
            self._pending += content

    def claim(self, name: str = "run") -> dict[str, Any]:
        self.tell(claim=name, at=0)
        return self.answer()

    def owns(self, name: str = "run") -> None:
        assert self.claim(name) == {"owner": True}

    def send(self, number: int) -> None:
        os.kill(self.pid, number)

    def end(self) -> None:
        self.process.kill()
        self.process.wait()
        for stream in (self.process.stdin, self.process.stdout, self.process.stderr):
            assert stream is not None
            stream.close()


def names(said: str, owner: Claimant) -> bool:
    """Whether a refusal says who owns the run: process, host and since when."""
    who = rf"belongs to process {owner.pid} on {re.escape(socket.gethostname())} since \d{{4}}-\d\d-\d\d \d\d:\d\d:\d\d"
    return re.search(who, said) is not None


def race(claimants: list[Claimant], name: str) -> None:
    """All claim at one moment: one owns the run, the others say that it does."""
    at = time.monotonic() + 0.05
    for each in claimants:
        each.tell(claim=name, at=at)
    answers = [each.answer() for each in claimants]
    owners = [each for each, answer in zip(claimants, answers, strict=True) if answer["owner"]]
    assert len(owners) == 1, answers
    for answer in answers:
        assert answer["owner"] or names(answer["said"], owners[0]), answer
    owners[0].tell(release=name)
    assert owners[0].answer() == {"released": True}
