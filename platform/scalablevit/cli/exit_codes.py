"""How a command ends: exit codes, and messages in place of tracebacks."""

import errno
import os
import select
import sys
import traceback
from collections.abc import Callable
from contextlib import suppress

from scalablevit.config.errors import SearchFailed, TrainingFailed, UserError
from scalablevit.runs.signals import end_like_ctrl_c
from scalablevit.tracking.connection import mask

UNREAD = 141
"""Exit code where nobody reads the output any more (`| head`): 128 and SIGPIPE, as shells say it."""


def guarded(work: Callable[[], int]) -> int:
    """Run the body of a script: a user's mistake becomes a message and exit code 2, SIGTERM ends like Ctrl-C.

    Where nobody reads standard output any more, the script ends without a word, with `UNREAD`.
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
        return _exit(130, "\ninterrupted; submit the same command again to continue")
    except Exception as error:
        if isinstance(error, BrokenPipeError) and _is_unread():
            return UNREAD
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            return _exit(2, f"\n{_disk_full(error)}")
        return _exit(1, mask(traceback.format_exc(), ""))
    finally:
        _is_unread()  # or the interpreter would fail on what is left


def _exit(code: int, reason: str) -> int:
    """The exit code; the reason goes to stderr, which may be a file on a full disk."""
    with suppress(OSError):
        print(reason, file=sys.stderr, flush=True)
    return code


def _disk_full(error: OSError) -> UserError:
    return UserError(
        str(error.strerror or error),
        where=str(error.filename or ""),
        fix="free some space, then give the same command again; a training goes on where it stopped",
    )


def _is_unread() -> bool:
    """Whether nobody reads standard output any more; what is left to be printed then goes nowhere."""
    try:
        output = sys.stdout.fileno()
    except (AttributeError, OSError, ValueError):  # none, or no file
        return False
    poll = select.poll()
    poll.register(output, 0)
    if not any(event & select.POLLERR for _, event in poll.poll(0)):
        return False
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, output)
    os.close(nowhere)
    return True
