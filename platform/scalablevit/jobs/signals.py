"""SIGTERM, which `ray job stop` sends, ends like Ctrl-C: trainings are saved, runs marked KILLED, folders released."""

import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

GRACE_S = 30.0
"""Time to save and end, from the first signal on; then it is as if a second one had come."""


def end_like_ctrl_c() -> None:
    """Let SIGTERM and SIGINT raise KeyboardInterrupt; Ray puts its own handlers in place whenever it starts."""
    signal.signal(signal.SIGTERM, _interrupt)
    signal.signal(signal.SIGINT, signal.default_int_handler)


@contextmanager
def interruptible_start() -> Iterator[None]:
    """Around the start of Ray, where callbacks may swallow an interrupt, and SIGTERM exits with Ray's own code.

    Raises:
        KeyboardInterrupt: at the signal, at the latest at the end.
    """
    noticed = False

    def note(_number: int, _frame: object) -> None:
        nonlocal noticed
        noticed = True
        raise KeyboardInterrupt

    signal.signal(signal.SIGINT, note)
    try:
        yield
    except SystemExit:
        noticed = True
    finally:
        end_like_ctrl_c()
        if noticed:
            raise KeyboardInterrupt


@contextmanager
def saving_first(ask: Callable[[], bool]) -> Iterator[None]:
    """Within, the first signal only asks what trains to save and end; the second ends at once.

    Args:
        ask: asks, and tells whether there was anything to ask: if not, the first signal ends at once, too.

    Raises:
        KeyboardInterrupt: as said, and `GRACE_S` after the first signal.
    """
    timer = threading.Timer(GRACE_S, os.kill, (os.getpid(), signal.SIGTERM))
    timer.daemon = True

    def handle(_number: int, _frame: object) -> None:
        end_like_ctrl_c()
        if not ask():
            raise KeyboardInterrupt
        print("\ninterrupted: saving first; once more ends at once", flush=True)
        timer.start()

    signal.signal(signal.SIGTERM, handle)
    signal.signal(signal.SIGINT, handle)
    try:
        yield
    finally:
        timer.cancel()
        end_like_ctrl_c()


def _interrupt(_number: int, _frame: object) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_DFL)  # a second one ends at once
    raise KeyboardInterrupt
