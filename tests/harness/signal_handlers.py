"""Signals are handled after a test as before it."""

import signal
from collections.abc import Iterator

import pytest

from scalablevit.runs import signals


@pytest.fixture(autouse=True)
def handlers() -> Iterator[None]:
    """Signals do again what they did before, and none is noted."""
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    yield
    signals._noted.clear()
    for number, handler in before.items():
        signal.signal(number, handler)
