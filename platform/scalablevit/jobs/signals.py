"""SIGTERM, which `ray job stop` sends, ends like Ctrl-C: runs are marked KILLED and folders released."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager


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


def _interrupt(_number: int, _frame: object) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_DFL)  # a second one ends at once
    raise KeyboardInterrupt
