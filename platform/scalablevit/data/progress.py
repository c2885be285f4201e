"""Progress of long work: lines on standard error, and an exception at a deadline."""

import sys
import time
from threading import Lock

EVERY_S = 10.0
"""Seconds between two lines on standard error; work that ends sooner prints none."""


class OutOfTime(Exception):
    """The deadline has passed; the message says how much is done."""


class Progress:
    """Counts finished work, from several threads, and prints a line every `EVERY_S` seconds.

    Args:
        what: begins each line, such as `data.train: hashing`.
        total: amount of work, in `unit`.
        unit: of `total`, such as `files`.
        deadline: time of `time.monotonic()`, in seconds, after which `add` raises; None: never.
    """

    def __init__(self, what: str, total: float, unit: str, deadline: float | None = None) -> None:
        self.what = what
        self.total = total
        self.unit = unit
        self.deadline = deadline
        self.done = 0.0
        self.started = self._last_printed = time.monotonic()
        self._lock = Lock()

    def add(self, amount: float) -> None:
        """Count work that is finished.

        Args:
            amount: in `unit`.

        Raises:
            OutOfTime: the deadline has passed.
        """
        with self._lock:
            self.done += amount
            now = time.monotonic()
            if now - self._last_printed >= EVERY_S:
                self._last_printed = now
                print(self.line(), file=sys.stderr, flush=True)
            if self.deadline is not None and now > self.deadline:
                raise OutOfTime(self.line())

    def line(self) -> str:
        """Return one line: how much is done, and an estimate of the time for the rest."""
        share = self.done / self.total if self.total else 1.0
        seconds = time.monotonic() - self.started
        left = f", about {duration(seconds / share - seconds)} left" if 0 < share < 1 else ""
        return f"{self.what}: {_number(self.done)} of {_number(self.total)} {self.unit}{left}"


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 or value == int(value) else f"{value:.3g}"


def duration(seconds: float) -> str:
    """Return seconds as text: `95 s`, `12 min`, `3.4 h`."""
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"
