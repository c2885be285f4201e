"""Where lines go: of a stage one live line below them in a terminal, plain lines elsewhere."""

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
"""Between two lines on what is waited for."""
LIVE_S = 1.0
"""Between two looks at it: how often the live line changes."""


class _Forgiving:
    """A text stream whose writes never fail: a lost line must not end a training."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        """Nothing when there is no room for it (`> log` on a full disk), or nobody to read it (`| head`)."""
        with suppress(OSError):
            self._stream.write(text)
        return len(text)

    def flush(self) -> None:
        """As `write`; where nobody reads any more, the rest goes nowhere, also at the interpreter's end."""
        try:
            self._stream.flush()
        except BrokenPipeError:
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, self._stream.fileno())
            os.close(nowhere)
        except OSError:
            pass

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


@contextmanager
def ignore_output_errors() -> Iterator[None]:
    """Within, nothing fails for what cannot be printed."""
    before = sys.stdout, sys.stderr
    sys.stdout, sys.stderr = (cast(TextIO, _Forgiving(stream)) for stream in before)
    try:
        yield
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        sys.stdout, sys.stderr = before


class Console:
    """Lines of one stage; several stages may have one each at the same time.

    Args:
        stage: its name, printed before each line.
        out: where to print; None: standard output.
    """

    def __init__(self, stage: str, out: TextIO | None = None) -> None:
        self._out = out or sys.stdout
        self._stage = stage
        self.is_live = self._out.isatty() and os.environ.get("TERM") != "dumb" and not submission_id()
        # tqdm cuts the line to the terminal's width and keeps those of several stages below each other
        self._bar = tqdm(bar_format="{desc}", file=self._out, leave=False, dynamic_ncols=True) if self.is_live else None

    def say(self, text: str) -> None:
        """A line that stays."""
        if self._bar is None:
            print(f"[{self._stage}] {text}", file=self._out, flush=True)
        else:
            tqdm.write(f"[{self._stage}] {text}", file=self._out)

    def show(self, text: str) -> None:
        """The live line's new text; nothing where there is none."""
        if self._bar is not None:
            self._bar.set_description_str(f"[{self._stage}] {text}")

    def close(self) -> None:
        """Take the live line away."""
        if self._bar is not None:
            self._bar.close()


class WaitReporter:
    """Says what is waited for, and for how long: on the live line, or in a line every `WAIT_S`.

    Args:
        console: where to.
        what: is waited for.
    """

    def __init__(self, console: Console, what: str) -> None:
        self._console = console
        self.begin(what)

    def begin(self, what: str, quiet_s: float = 0.0) -> None:
        """Wait for something else from now on.

        Args:
            what: is waited for.
            quiet_s: seconds without a line, after something else was printed.
        """
        self._what = what
        self._since = time.monotonic()
        self._quiet_s = quiet_s
        self._next = self._since + max(quiet_s, WAIT_S)

    def update(self) -> None:
        """Say it if it is time to; to be called often."""
        now = time.monotonic()
        line = f"waiting for {self._what}: {format_duration(now - self._since)}"
        if self._console.is_live and now - self._since >= max(self._quiet_s, LIVE_S):
            self._console.show(line)
        elif not self._console.is_live and now >= self._next:
            self._next = now + max(self._quiet_s, WAIT_S)
            self._console.say(line)


@contextmanager
def say_while_waiting(stage: str, what: str) -> Iterator[None]:
    """Within, say what is waited for from time to time, in a thread.

    Args:
        stage: its name, printed before each line.
        what: is waited for.
    """
    console, ended = Console(stage), threading.Event()
    waiting = WaitReporter(console, what)

    def look() -> None:
        while not ended.wait(LIVE_S):
            waiting.update()

    thread = threading.Thread(target=look, name="waiting", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
        console.close()


def format_duration(seconds: float) -> str:
    """A time span for people, such as `45 s`, `3.2 min` or `5 h 10 min`."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    if seconds < 90 * 60:
        return f"{seconds / 60:.1f} min"
    return f"{seconds // 3600:.0f} h {seconds % 3600 // 60:.0f} min"
