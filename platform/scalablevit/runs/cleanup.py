"""Clean-up at the end of a run: every step is tried, and no failure of a step hides an earlier exception."""

import sys
from collections.abc import Callable

from scalablevit.tracking.connection import format_error


def clean_up(failure: BaseException | None, *steps: tuple[str, Callable[[], object]]) -> None:
    """Call all steps in order; print the failure of a step to stderr and continue with the next one.

    Args:
        failure: the exception that already ends the run; None while there is none.
        steps: for each step a description for people, and the function to call.

    Raises:
        Exception: that of the first step that failed, but only when `failure` is None.
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
