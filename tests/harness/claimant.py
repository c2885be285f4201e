"""A process that claims runs when told to, for test_ownership.py: commands and answers are JSON lines.

It plays another machine by a `machine` of its own, with a clock that is wrong by `skew`.
"""

import json
import os
import select
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from scalablevit.config.errors import UserError
from scalablevit.runs import lease
from scalablevit.runs.run_store import RunStore


def say(**answer: Any) -> None:
    os.write(1, json.dumps(answer).encode() + b"\n")


def commands() -> Iterator[dict[str, Any]]:
    """Lines of standard input, which is waited for in a way that an interrupt ends.

    In short waits: Linux does not wake a process for a signal that comes just as it is about to go on after SIGCONT.
    """
    pending = b""
    while True:
        while not select.select([0], [], [], 0.2)[0]:
            pass
        content = os.read(0, 4096)
        if not content:
            return
        *lines, pending = (pending + content).split(b"\n")
        yield from map(json.loads, lines)


def wait_at(gate: Path) -> None:
    """Between looking and writing, until the gate exists; `.waiting` beside it says that this process has looked."""
    gate.with_suffix(".waiting").touch()
    while not gate.exists():
        time.sleep(0.02)


def play(settings: dict[str, Any]) -> None:
    """Change what the lease knows: machine, clock and intervals of this process, locks and speed of its storage."""
    if machine := settings.pop("machine", None):
        lease._machine = lambda: machine
    if skew := settings.pop("skew", 0):
        clock = time.time
        time.time = lambda: clock() + skew
    if settings.pop("no_locks", False):
        lease._open_locked = lambda path: None
    if gate := settings.pop("gate", None):
        write = RunStore.write
        RunStore.write = lambda self, file, content: (wait_at(Path(gate)), write(self, file, content))
    for name, value in settings.items():
        assert hasattr(lease, name)
        setattr(lease, name, value)


def main() -> None:
    root = Path(sys.argv[1])
    settings = json.loads(sys.argv[2])
    storage = settings.pop("storage", None)
    play(settings)
    say(ready=os.getpid())
    with ExitStack() as held:
        for command in commands():
            if "claim" in command:
                while time.monotonic() < command["at"]:
                    pass
                try:
                    held.enter_context(lease.Lease(RunStore.open(command["claim"], storage, root)))
                    say(owner=True)
                except UserError as error:
                    say(owner=False, said=str(error))
            else:
                held.close()
                say(released=True)


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        say(interrupted=True)
