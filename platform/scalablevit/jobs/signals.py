"""SIGTERM, which `ray job stop` sends, ends like Ctrl-C: runs are marked KILLED and folders released."""

import signal


def end_like_ctrl_c() -> None:
    """Let SIGTERM and SIGINT raise KeyboardInterrupt; Ray puts its own handlers in place whenever it starts."""
    signal.signal(signal.SIGTERM, _interrupt)
    signal.signal(signal.SIGINT, signal.default_int_handler)


def _interrupt(_number: int, _frame: object) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_DFL)  # a second one ends at once
    raise KeyboardInterrupt
