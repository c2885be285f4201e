"""The events of a run's `attempts.jsonl`: when a job asked for workers, they took their first step, or were lost.

A line has the event's kind as `event`, and the fields of its class.
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
    """Times at which rank 0 reached the phases of an attempt's start, in seconds since the epoch; 0: not yet reached.

    Rank 0 fills them in; the event is written once the first step is done.
    """

    kind: ClassVar[str] = "started"
    entered: float
    """Ray called the worker's function."""
    imported: float = 0.0
    """The training code is imported."""
    opened: float = 0.0
    """The data sources are open."""
    built: float = 0.0
    """Model and optimizer are built, with the values to continue from."""
    first_step: float = 0.0
    """The first step is done."""
    from_step: int = 0
    """Optimizer steps done before this attempt."""
    world: int = 0
    """Number of ranks."""
    passed_over: str = ""
    """Newer checkpoints that were not used, with the reasons, and the number of steps done again; empty: none."""


@dataclass(frozen=True)
class Submitted:
    """A job asks for workers."""

    kind: ClassVar[str] = "submitted"
    time: float
    """Seconds since the epoch."""
    last: float | None
    """When the previous job was last known to be at work, seconds since the epoch; None: unknown or no such job."""


@dataclass(frozen=True)
class Lost:
    """Workers failed, were lost or did not answer."""

    kind: ClassVar[str] = "lost"
    time: float | None = None
    """Seconds since the epoch; None in files of earlier releases."""
    ranks: Mapping[str, str] = field(default_factory=dict)
    """Reason by rank."""


@dataclass(frozen=True)
class UnknownEvent:
    """An event that this release does not know."""

    kind: str


Event: TypeAlias = StartupTimings | Submitted | Lost | UnknownEvent


def add_event(path: Path, event: StartupTimings | Submitted | Lost) -> None:
    """Append an event to `attempts.jsonl`; a failed write is reported on standard error only."""
    values = {name: value for name, value in vars(event).items() if value != ""}
    line = json.dumps({"event": event.kind, **values}).encode() + b"\n"
    try:
        with path.open("ab+") as file:
            end = file.seek(0, os.SEEK_END)
            file.seek(max(0, end - 1))
            incomplete = file.read(1) not in (b"", b"\n")  # a line of a process that died while it wrote
            file.write(b"\n" * incomplete + line)
    except OSError as error:
        print(f"{path} was not written: {error}", file=sys.stderr)


def read_attempts(file: Path, offset: int = 0) -> tuple[list[Event], int]:
    """Return the events from a byte offset on, and the offset of the next ones; skip a line that is being written.

    Lines that are no events (a power cut, a damaged disk) are skipped, too, and counted on standard error.
    """
    try:
        with file.open("rb") as opened:
            opened.seek(offset)
            lines = [line for line in opened if line.endswith(b"\n")]
    except FileNotFoundError:
        return [], offset
    events = [event for line in lines if (event := _parse_event(line)) is not None]
    if len(events) < len(lines):
        print(f"{file}: {len(lines) - len(events)} unreadable lines were left out", file=sys.stderr, flush=True)
    return events, offset + sum(map(len, lines))


def _parse_event(line: bytes) -> Event | None:
    try:
        values = json.loads(line)
    except ValueError:
        return None
    if not isinstance(values, dict) or not isinstance(values.get("event"), str):
        return None
    for event in (StartupTimings, Submitted, Lost):
        if event.kind == values["event"]:
            try:
                return event(**{field.name: values[field.name] for field in fields(event) if field.name in values})
            except TypeError:  # a required field is missing
                return None
    return UnknownEvent(values["event"])
