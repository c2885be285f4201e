"""How a command ends: exit codes, and messages in place of tracebacks."""

import atexit
import errno
import gc
import os
import select
import sys
import traceback
from collections.abc import Callable
from contextlib import suppress

from scalablevit.config.errors import SearchFailed, TrainingFailed, UserError
from scalablevit.runs.signals import end_like_ctrl_c
from scalablevit.tracking.connection import mask

OUTPUT_CLOSED = 141
"""Exit code where standard output is closed by its reader (`| head`): 128 + SIGPIPE, as shells have it."""


# the interpreter's last collections would look through all objects of torch and Ray, for about 3 seconds; all else that
# is to be done at its end is done
atexit.register(gc.freeze)


def run_command(work: Callable[[], int]) -> int:
    """Run the body of a command, print its failure without a traceback where one is expected, and return the exit code.

    0 and others are the body's own; 1: a failure, with a traceback if it is unexpected; 2: a user's mistake or a full
    disk; 130: interrupted, also by SIGTERM; `OUTPUT_CLOSED`: the reader of standard output has closed it, and nothing
    is printed.

    Args:
        work: the body; returns its exit code.
    """
    end_like_ctrl_c()
    try:
        code = work()
        if sys.stdout is not None:
            sys.stdout.flush()
        return code
    except UserError as error:
        return _exit(2, f"\n{error}")
    except (TrainingFailed, SearchFailed) as error:
        return _exit(1, f"\n{error}")
    except KeyboardInterrupt:
        again = "a training or a search then continues, all else starts from the beginning"
        return _exit(130, f"\ninterrupted; give the same command again: {again}")
    except Exception as error:
        if isinstance(error, BrokenPipeError) and _is_output_closed():
            return OUTPUT_CLOSED
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            return _exit(2, f"\n{_disk_full(error)}")
        return _exit(1, mask(traceback.format_exc(), ""))
    finally:
        _is_output_closed()  # else the interpreter fails to flush what is left


def _exit(code: int, reason: str) -> int:
    """Print the reason to stderr, which may be a file on a full disk, and return the exit code."""
    with suppress(OSError):
        print(reason, file=sys.stderr, flush=True)
    return code


def _disk_full(error: OSError) -> UserError:
    return UserError(
        str(error.strerror or error),
        where=str(error.filename or ""),
        fix="free some space, then give the same command again; a training goes on from its last checkpoint",
    )


def _is_output_closed() -> bool:
    """Return whether the reader of standard output has closed it; what is still buffered is then discarded."""
    try:
        output = sys.stdout.fileno()
    except (AttributeError, OSError, ValueError):  # no standard output, or not a file
        return False
    poll = select.poll()
    poll.register(output, 0)
    if not any(event & select.POLLERR for _, event in poll.poll(0)):
        return False
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, output)
    os.close(nowhere)
    return True
