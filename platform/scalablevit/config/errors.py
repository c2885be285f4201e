"""The one exception for what a user can cause and fix; it shows no credentials."""

import re

from scalablevit.text import and_more

SHOWN_LINES = 15
"""Most lines of a worker's failure that a message has; all of it is in Ray's logs."""


SHOWN_ERRORS = 20
"""Most mistakes that one message names; the others are counted."""

_USER = re.compile(
    r"""(\w://+|\w:/(?=[^/\s'"@]*:))        # pathlib makes one slash of two; models:/x@y stays
    (?:[^/\s'"@:]*:[^\s'"?#]*              # user:password, in which a slash may stand
    |[^/\s'"]*                             # a user or token alone
    |[^/\s'"@:]*:(?!\d{1,5}\b)\S[^\n]*?   # user:password with spaces, quotes or ?; no port
    )@(?![^/\s'"?#@]*@)""",
    re.VERBOSE,
)
_QUERY = re.compile(r"([?&][^=&\s'\"]*=)[^&\s'\"]+")


def mask_credentials(text: str) -> str:
    """Return a text with `***` for credentials in its addresses: what is before an @, and the values of a query."""
    return _QUERY.sub(r"\1***", _USER.sub(r"\1***@", text))


class UserError(Exception):
    """A mistake in a recipe, in data or in what the cluster offers; shown without a traceback, exit code 2.

    Args:
        what: what is wrong, with the value received.
        where: file, line or dotted recipe key.
        fix: what to do about it.
    """

    def __init__(self, what: str, *, where: str = "", fix: str = "") -> None:
        self.what = mask_credentials(what)
        self.where = mask_credentials(where)
        self.fix = mask_credentials(fix)
        super().__init__(self.what, self.where, self.fix)

    def __str__(self) -> str:
        lines = [f"{self.where}: {self.what}" if self.where else self.what]
        if self.fix:
            lines.append(f"  fix: {self.fix}")
        return "\n".join(lines)


class UndefinedKind(UserError):
    """A kind of task, source or metric that is not known; users' own code may define it when it is imported."""

    unread: tuple[str, ...] = ()
    """Modules under the recipe's `imports` that are not imported yet."""


class UserErrors(UserError):
    """Several mistakes found by one check, reported together."""

    def __init__(self, errors: list[UserError]) -> None:
        lines = [str(error) for error in errors[:SHOWN_ERRORS]]
        if more := and_more(len(errors), SHOWN_ERRORS, before="... "):
            lines.append(more)
        super().__init__("\n".join(lines))
        self.errors = errors


def in_stage(name: str, error: UserError) -> UserError:
    """Return an error that names the stage before its place.

    Args:
        name: of the stage.
        error: of the stage.
    """
    return UserError(error.what, where=f"stage {name}" + (f": {error.where}" if error.where else ""), fix=error.fix)


class TrainingFailed(Exception):
    """Workers failed more often than `cluster.max_failures`, or could not be placed; not by the user's mistake.

    Args:
        run_folder: where the checkpoints are; empty: there are none, since the workers only evaluated.
        reason: the workers' failure; the message has its last `SHOWN_LINES` lines.
    """

    def __init__(self, run_folder: str, reason: str) -> None:
        lines = [line for line in reason.splitlines() if line.strip()]
        outcome = (
            f"training failed; its checkpoints are kept in {run_folder}, and submitting the same command again "
            "resumes.\nThe workers' own logs are in Ray's session folder; SCALABLEVIT_RAY_LOGS=1 shows them here."
        )
        if not run_folder:
            outcome = "the evaluation failed; the same command begins it again (SCALABLEVIT_RAY_LOGS=1 shows all logs)"
        super().__init__("\n".join(lines[-SHOWN_LINES:]) + f"\n\n{outcome}")


class SearchFailed(Exception):
    """No trial of a search was evaluated even once; the message has the trials' reasons."""


def raise_all(errors: "list[UserError]") -> None:
    """Raise errors together; do nothing when there are none.

    Raises:
        UserError: there is one.
        UserErrors: there are several.
    """
    if errors:
        raise UserErrors(errors) if len(errors) > 1 else errors[0]
