"""The events of a run's `attempts.jsonl`: when a job asked for workers, they took their first step, or were lost.

Each line is `event`, the kind, and the fields of its class.
"""

import json
import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import ClassVar, TypeAlias


@dataclass
class StartupTimings:
    """Times at which an attempt reached its steps of starting on rank 0, in seconds since the epoch; filled in there.

    It is written down once the first step is done.
    """

    kind: ClassVar[str] = "started"
    entered: float
    imported: float = 0.0
    opened: float = 0.0
    """The data is known."""
    built: float = 0.0
    """Model and optimizer are there, with the values to go on from."""
    first_step: float = 0.0
    from_step: int = 0
    """Steps done before this attempt."""
    world: int = 0
    """Ranks."""


@dataclass(frozen=True)
class Submitted:
    """A job asks for workers."""

    kind: ClassVar[str] = "submitted"
    time: float
    """Seconds since the epoch."""
    last: float | None
    """When the job before it was last known to be at work."""


@dataclass(frozen=True)
class Lost:
    """Workers failed, were lost or did not answer."""

    kind: ClassVar[str] = "lost"
    time: float | None = None
    """Seconds since the epoch; earlier releases did not write it down."""
    ranks: Mapping[str, str] = field(default_factory=dict)
    """Reason by rank."""


@dataclass(frozen=True)
class UnknownEvent:
    """An event that this release does not know."""

    kind: str


Event: TypeAlias = StartupTimings | Submitted | Lost | UnknownEvent


def add_event(path: Path, event: StartupTimings | Submitted | Lost) -> None:
    """Append an event; a disk that does not take it is reported on standard error only."""
    line = json.dumps({"event": event.kind, **vars(event)}).encode() + b"\n"
    try:
        with path.open("ab+") as file:
            end = file.seek(0, os.SEEK_END)
            file.seek(max(0, end - 1))
            torn = file.read(1) not in (b"", b"\n")  # half a line, of a process that died while it wrote
            file.write(b"\n" * torn + line)
    except OSError as error:
        print(f"{path} was not written: {error}", file=sys.stderr)


def read_attempts(file: Path, offset: int = 0) -> tuple[list[Event], int]:
    """Return the events from a byte offset on, and where reading goes on; a line that is being written is left out.

    Lines that are no events (a power cut, a damaged disk) are left out, too, and counted on standard error.
    """
    try:
        with file.open("rb") as opened:
            opened.seek(offset)
            whole = [line for line in opened if line.endswith(b"\n")]
    except FileNotFoundError:
        return [], offset
    events = [event for line in whole if (event := _parsed(line)) is not None]
    if len(events) < len(whole):
        print(f"{file}: {len(whole) - len(events)} unreadable lines were left out", file=sys.stderr, flush=True)
    return events, offset + sum(map(len, whole))


def _parsed(line: bytes) -> Event | None:
    try:
        found = json.loads(line)
    except ValueError:
        return None
    if not isinstance(found, dict) or not isinstance(found.get("event"), str):
        return None
    for event in (StartupTimings, Submitted, Lost):
        if event.kind == found["event"]:
            try:
                return event(**{each.name: found[each.name] for each in fields(event) if each.name in found})
            except TypeError:  # without a field that it always had
                return None
    return UnknownEvent(found["event"])
