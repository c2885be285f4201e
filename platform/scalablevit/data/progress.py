"""Lines on the way of long work over many samples."""

import sys
import time

EVERY_S = 10.0
"""Between two lines; work that takes less prints none."""


class Progress:
    """Print how far the work is, and how long the rest will take.

    Args:
        what: is done, with what: "headers of images of /data/train".
        total: how many there are.
    """

    def __init__(self, what: str, total: int) -> None:
        self.what = what
        self.total = total
        self.began = self.printed = time.monotonic()

    def update(self, done: int) -> None:
        """Print a line on standard error if it is time for one."""
        now = time.monotonic()
        if now - self.printed < EVERY_S or not done:
            return
        self.printed = now
        left = (now - self.began) / done * (self.total - done)
        print(f"{self.what}: {done:,} of {self.total:,} looked at, about {_duration(left)} left", file=sys.stderr,
              flush=True)  # fmt: skip


def _duration(seconds: float) -> str:
    return (
        f"{seconds:.0f} s"
        if seconds < 120
        else f"{seconds / 60:.0f} min"
        if seconds < 7200
        else f"{seconds / 3600:.1f} h"
    )
