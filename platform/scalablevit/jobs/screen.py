"""Where a stage's lines go: one live line below them in a terminal, plain lines elsewhere."""

import os
import sys
from typing import TextIO

from tqdm import tqdm

from scalablevit.jobs.status import submission_id


class Screen:
    """Lines of one stage; several stages may have one each at the same time.

    Args:
        stage: stands before each line.
        out: where to; None: standard output.
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


def duration(seconds: float) -> str:
    """A time span for people, such as `45 s`, `3.2 min` or `5 h 10 min`."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    if seconds < 90 * 60:
        return f"{seconds / 60:.1f} min"
    return f"{seconds // 3600:.0f} h {seconds % 3600 // 60:.0f} min"
