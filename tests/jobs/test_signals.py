"""Signals that come while Ray starts."""

import os
import signal
import sys

import pytest

from scalablevit.jobs.signals import interruptible_start


@pytest.fixture(autouse=True)
def handlers():
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


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
    with pytest.raises(KeyboardInterrupt):
        os.kill(os.getpid(), signal.SIGTERM)
