"""Signals that come while Ray starts, and those that nobody notices at once."""

import os
import signal
import sys
import threading

import pytest
from ray.train.torch import TorchTrainer

from scalablevit.runs import signals
from scalablevit.runs.signals import interrupt, interruptible_start, raise_if_interrupted, wait_saving_first
from scalablevit.training.ray_internals import keep_sigint_handler


@pytest.mark.parametrize("error", [None, RuntimeError])
def test_an_interrupt_that_was_swallowed_is_raised_at_the_end(error):
    """Also when Ray then fails because of it."""
    reached = False
    with pytest.raises(KeyboardInterrupt), interruptible_start():  # noqa: PT012
        try:
            os.kill(os.getpid(), signal.SIGINT)
        except KeyboardInterrupt:
            reached = True
        if error:
            raise error
    assert reached


def test_the_handler_that_ray_puts_in_place_does_not_decide_the_exit_code():
    with pytest.raises(KeyboardInterrupt), interruptible_start():  # noqa: PT012
        signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(number))
        os.kill(os.getpid(), signal.SIGTERM)


def test_without_a_signal_nothing_is_raised_and_errors_pass():
    with interruptible_start():
        pass
    with pytest.raises(RuntimeError), interruptible_start():
        raise RuntimeError
    raise_if_interrupted()
    wait_saving_first([], lambda: pytest.fail("nobody asked"))
    with pytest.raises(KeyboardInterrupt):
        os.kill(os.getpid(), signal.SIGTERM)


class InterruptedWhenDeleted:
    def __del__(self):
        os.kill(os.getpid(), signal.SIGINT)


@pytest.mark.timeout(60)
def test_an_interrupt_that_python_drops_ends_the_next_wait(monkeypatch):
    """It drops what is raised while an object is deleted."""
    dropped = []
    monkeypatch.setattr(sys, "unraisablehook", lambda unraisable: dropped.append(unraisable.exc_type))
    signals.end_like_ctrl_c()
    InterruptedWhenDeleted()
    assert dropped == [KeyboardInterrupt]
    with pytest.raises(KeyboardInterrupt):
        wait_saving_first([threading.Event()], lambda: pytest.fail("it was no first signal"))


@pytest.mark.timeout(60)
def test_a_lost_run_is_not_saved_first():
    """Another process owns it by then."""
    threading.Timer(0.2, interrupt).start()
    with pytest.raises(KeyboardInterrupt):
        wait_saving_first([threading.Event()], lambda: pytest.fail("asked to save"))


def test_ray_train_leaves_handlers_alone():
    """Its own would wait for a controller that does not end, and swallow the second Ctrl-C."""
    assert callable(TorchTrainer._register_sigint_handler), "keep_sigint_handler replaces what is no longer there"
    before = signal.getsignal(signal.SIGINT)
    keep_sigint_handler(TorchTrainer(print))._register_sigint_handler(None)
    assert signal.getsignal(signal.SIGINT) == before
