"""Where a stage prints: in a terminal plain lines with one live line below them, elsewhere plain lines only."""

import os
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any, TextIO, cast

from tqdm import tqdm

from scalablevit.runs.status import submission_id

WAIT_S = 15.0
"""Seconds between two lines that say what a stage waits for, where there is no live line."""
LIVE_S = 1.0
"""Seconds between two updates of the live line."""


class _TolerantStream:
    """A text stream whose writes never fail: a lost line must not end a training."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        """Write the text; drop it on a full disk (`> log`) or when the reader has gone (`| head`)."""
        with suppress(OSError):
            self._stream.write(text)
        return len(text)

    def flush(self) -> None:
        """Flush as `write` does; once the reader has gone, send the rest to /dev/null, also at exit."""
        try:
            self._stream.flush()
        except BrokenPipeError:
            devnull = os.open(os.devnull, os.O_WRONLY)
            os.dup2(devnull, self._stream.fileno())
            os.close(devnull)
        except OSError:
            pass

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


@contextmanager
def ignore_output_errors() -> Iterator[None]:
    """Ignore errors of writing to stdout and stderr inside the block."""
    before = sys.stdout, sys.stderr
    sys.stdout, sys.stderr = (cast(TextIO, _TolerantStream(stream)) for stream in before)
    try:
        yield
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        sys.stdout, sys.stderr = before


class Console:
    """Prints the lines of one stage; several stages may have a console each at the same time.

    Args:
        stage: the stage's name, printed before each line.
        out: the stream to print to; None: standard output.
    """

    def __init__(self, stage: str, out: TextIO | None = None) -> None:
        self._out = out or sys.stdout
        self._stage = stage
        self.is_live = self._out.isatty() and os.environ.get("TERM") != "dumb" and not submission_id()
        # tqdm cuts the line to the terminal's width and keeps those of several stages below each other
        self._bar = tqdm(bar_format="{desc}", file=self._out, leave=False, dynamic_ncols=True) if self.is_live else None

    def say(self, text: str) -> None:
        """Print a line that stays."""
        if self._bar is None:
            print(f"[{self._stage}] {text}", file=self._out, flush=True)
        else:
            tqdm.write(f"[{self._stage}] {text}", file=self._out)

    def show(self, text: str) -> None:
        """Replace the text of the live line; do nothing where there is none."""
        if self._bar is not None:
            self._bar.set_description_str(f"[{self._stage}] {text}")

    def close(self) -> None:
        """Remove the live line."""
        if self._bar is not None:
            self._bar.close()


class WaitReporter:
    """Says what a stage waits for, and for how long: on the live line, or in a line every `WAIT_S` seconds.

    Args:
        console: the console to print to.
        what: what the stage waits for, such as "the workers to start".
    """

    def __init__(self, console: Console, what: str) -> None:
        self._console = console
        self.begin(what)

    def begin(self, what: str, quiet_s: float = 0.0) -> None:
        """Wait for something else from now on.

        Args:
            what: what the stage waits for.
            quiet_s: seconds without a line from now on, because something else was just printed.
        """
        self._what = what
        self._since = time.monotonic()
        self._quiet_s = quiet_s
        self._next = self._since + max(quiet_s, WAIT_S)

    def waited_s(self) -> float:
        """Return for how many seconds it has been waited."""
        return time.monotonic() - self._since

    def update(self) -> None:
        """Print or show what is waited for if it is time to; to be called often."""
        now = time.monotonic()
        line = f"waiting for {self._what}: {format_duration(now - self._since)}"
        if self._console.is_live and now - self._since >= max(self._quiet_s, LIVE_S):
            self._console.show(line)
        elif not self._console.is_live and now >= self._next:
            self._next = now + max(self._quiet_s, WAIT_S)
            self._console.say(line)


@contextmanager
def say_while_waiting(stage: str, what: str) -> Iterator[None]:
    """Say from time to time, from a thread, what the block waits for.

    Args:
        stage: the stage's name, printed before each line.
        what: what the block waits for.
    """
    console, ended = Console(stage), threading.Event()
    waiting = WaitReporter(console, what)

    def keep_updating() -> None:
        while not ended.wait(LIVE_S):
            waiting.update()

    thread = threading.Thread(target=keep_updating, name="waiting", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
        console.close()


def format_duration(seconds: float) -> str:
    """Return a time span for people, such as `45 s`, `3.2 min` or `5 h 10 min`."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    if seconds < 90 * 60:
        return f"{seconds / 60:.1f} min"
    return f"{seconds // 3600:.0f} h {seconds % 3600 // 60:.0f} min"
