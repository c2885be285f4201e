"""Ctrl-C, the SIGTERM of `ray job stop` and a lost run end a job alike: runs are marked KILLED, folders released.

A callback can swallow the exception that a signal handler raises in it, and a signal does not wake a system call that
begins just after it. So handlers also set a flag, and code that waits checks the flag.
"""

import os
import signal
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from types import FrameType

CHECK_S = 0.5
"""Seconds between two checks of the flag."""
GRACE_S = 30.0
"""Seconds to save and end after a SIGTERM, whose sender kills soon; then a second SIGTERM is simulated."""

_noted = threading.Event()
"""The flag: a signal has asked for the end of the job."""
_in_other_thread = threading.Event()
"""Set while a job runs outside the main thread."""


@contextmanager
def handle_signals() -> Iterator[None]:
    """Handle signals inside the block and restore the process's own handlers after it, as a notebook needs.

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
            for number in before:  # a signal at this moment would leave our handlers in place
                signal.signal(number, signal.SIG_IGN)
        _noted.clear()
        _in_other_thread.clear()
        if _in_main_thread():
            for number, handler in before.items():
                signal.signal(number, signal.SIG_DFL if handler is None else handler)


def end_like_ctrl_c() -> None:
    """Let SIGTERM and SIGINT raise KeyboardInterrupt; repeat it after Ray starts, which sets its own handlers."""
    _handle(_interrupt)


def interrupt() -> None:
    """End this process's job at once, without saving; may be called from any thread."""
    _noted.set()
    if not _in_other_thread.is_set():  # else the main thread is not the job's, whose own thread checks the flag
        signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)


def raise_if_interrupted() -> None:
    """Raise KeyboardInterrupt if a signal has come; for code that waits, to call now and then.

    Raises:
        KeyboardInterrupt: the job is to end at once.
    """
    if _noted.is_set():
        raise KeyboardInterrupt


@contextmanager
def interruptible_start() -> Iterator[None]:
    """Keep the start of Ray inside the block interruptible: Ray sets a handler that exits with a code of its own.

    Raises:
        KeyboardInterrupt: after a signal, at the end of the block at the latest.
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
    """Wait for all events; the first signal only asks the trainings to save and end, the second ends at once.

    Args:
        ended: one event for each training, set when it has ended.
        ask: asks the trainings to save and end, and returns whether there are any; if not, the first signal ends at
            once, too.

    Raises:
        KeyboardInterrupt: at a signal that ends at once, or `GRACE_S` seconds after the first SIGTERM.
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
    """Set the handler of both signals; do nothing outside the main thread, where Python refuses it."""
    if _in_main_thread():
        signal.signal(signal.SIGTERM, handler)
        signal.signal(signal.SIGINT, handler)


def _in_main_thread() -> bool:
    return threading.current_thread() is threading.main_thread()


def _interrupt(number: int, _frame: object) -> None:
    if number == signal.SIGTERM:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)  # a second SIGTERM ends the process at once
    _noted.set()
    raise KeyboardInterrupt
