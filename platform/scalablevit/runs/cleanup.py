"""Clean-up at a run's end: every step is tried, and none of them takes the place of the failure before it."""

import sys
from collections.abc import Callable

from scalablevit.tracking.connection import format_error


def clean_up(failure: BaseException | None, *steps: tuple[str, Callable[[], object]]) -> None:
    """Take all steps in order; one that fails is printed to stderr, and the others follow.

    Args:
        failure: what ends the run already; None while all is well.
        steps: what each does, for people, and the call that does it.

    Raises:
        Exception: the first step's that failed, when there was no failure before.
    """
    first: Exception | None = None
    for what, step in steps:
        try:
            step()
        except Exception as error:
            print(f"clean-up: {what} failed: {format_error(error, '')}", file=sys.stderr, flush=True)
            first = first or error
    if failure is None and first is not None:
        raise first
