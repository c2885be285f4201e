"""Ctrl-C, the SIGTERM of `ray job stop` and a lost run end a job alike: runs are marked KILLED, folders released.

The exception that a handler raises can be swallowed by a callback in which it comes, and a system call that begins
just after a signal is not woken by it. So a signal is also noted, and who waits looks at the note.
"""

import os
import signal
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from types import FrameType

CHECK_S = 0.5
"""Between two looks at the note."""
GRACE_S = 30.0
"""Time to save and end after a SIGTERM, whose sender kills soon; then it is as if a second one had come."""

_noted = threading.Event()
_in_other_thread = threading.Event()
"""A job runs outside the main thread."""


@contextmanager
def handle_signals() -> Iterator[None]:
    """Around a job in a process that goes on afterwards, such as a notebook: its own handlers then come back.

    Signals of earlier calls do not count. Outside the main thread, where Python sets no handlers, signals stay as they
    are.
    """
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    _noted.clear()
    if not _in_main_thread():
        _in_other_thread.set()
    end_like_ctrl_c()
    try:
        yield
    finally:
        if _in_main_thread():
            for number in before:  # one that comes now would leave our handlers in place
                signal.signal(number, signal.SIG_IGN)
        _noted.clear()
        _in_other_thread.clear()
        if _in_main_thread():
            for number, handler in before.items():
                signal.signal(number, signal.SIG_DFL if handler is None else handler)


def end_like_ctrl_c() -> None:
    """Let SIGTERM and SIGINT raise KeyboardInterrupt; Ray puts its own handlers in place whenever it starts."""
    _handle(_interrupt)


def interrupt() -> None:
    """End this process's job at once, without saving; from any thread."""
    _noted.set()
    if not _in_other_thread.is_set():  # else the main thread does something else, and the job's looks at the note
        signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)


def raise_if_interrupted() -> None:
    """Where the main thread comes by now and then.

    Raises:
        KeyboardInterrupt: the job is to end at once.
    """
    if _noted.is_set():
        raise KeyboardInterrupt


@contextmanager
def interruptible_start() -> Iterator[None]:
    """Around the start of Ray, which puts a handler in place that exits with a code of its own.

    Raises:
        KeyboardInterrupt: at a signal, at the latest at the end.
    """
    end_like_ctrl_c()
    try:
        yield
    except SystemExit:
        _noted.set()
    finally:
        end_like_ctrl_c()
        raise_if_interrupted()


def wait_saving_first(ended: Iterable[threading.Event], ask: Callable[[], bool]) -> None:
    """Wait for all events; the first signal only asks what trains to save and end, the second ends at once.

    Args:
        ask: asks, and tells whether there was anything to ask: if not, the first signal ends at once, too.

    Raises:
        KeyboardInterrupt: as said, and `GRACE_S` after a SIGTERM.
    """
    timer = threading.Timer(GRACE_S, os.kill, (os.getpid(), signal.SIGTERM))
    timer.daemon = True

    def handle(number: int, _frame: object) -> None:
        end_like_ctrl_c()
        if _noted.is_set() or not ask():
            _noted.set()
            return
        limit = ""
        if number == signal.SIGTERM:
            timer.start()
            limit = f", for {GRACE_S:.0f} s at most"
        print(f"\ninterrupted: saving first{limit}; once more ends at once", flush=True)

    _handle(handle)
    try:
        for event in ended:
            while not event.wait(CHECK_S):
                raise_if_interrupted()
    finally:
        timer.cancel()
        end_like_ctrl_c()


def _handle(handler: Callable[[int, FrameType | None], None]) -> None:
    """Put a handler of both signals in place, in the main thread: Python refuses it in others."""
    if _in_main_thread():
        signal.signal(signal.SIGTERM, handler)
        signal.signal(signal.SIGINT, handler)


def _in_main_thread() -> bool:
    return threading.current_thread() is threading.main_thread()


def _interrupt(number: int, _frame: object) -> None:
    if number == signal.SIGTERM:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)  # a second one ends at once
    _noted.set()
    raise KeyboardInterrupt
