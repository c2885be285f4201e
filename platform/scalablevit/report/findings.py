"""`findings.json`: what a look at single validation images came to; free of torch, so that pages are made quickly."""

import json
from dataclasses import dataclass
from pathlib import Path

from scalablevit.config.errors import UserError
from scalablevit.run_files import FINDINGS
from scalablevit.tasks.error_analysis import ErrorDetails, Outcome


@dataclass(frozen=True)
class Case:
    """One image."""

    file: str
    picture: str
    """Beside `findings.json`."""
    words: str
    error: float
    classes: dict[str, str]
    """Those drawn on the picture: name and colour (#rrggbb)."""
    outcome: Outcome | None = None
    """None: not said, as by runs of earlier versions."""


@dataclass(frozen=True)
class Findings:
    """What `findings.json` holds."""

    images: int
    """Analysed, a random sample of the split."""
    split: int
    """Images of the validation split."""
    bad: int
    """Images that could not be decoded."""
    seconds: float
    parameters: int
    macs: int
    """Multiply-accumulates of one image at the task's evaluation size."""
    measure: str
    """By what the worst come first, in words."""
    details: ErrorDetails
    """See `tasks.error_analysis.ErrorAnalysis.details`."""
    cases: tuple[Case, ...]
    worst: tuple[Case, ...]
    """The worst first."""


def load_findings(folder: Path) -> Findings | None:
    """Return what `analyse_errors` wrote; None where it did not.

    Raises:
        UserError: the file is damaged.
    """
    try:
        found = json.loads((folder / FINDINGS).read_bytes())
        cases = {name: tuple(Case(**case) for case in found[name]) for name in ("cases", "worst")}
        return Findings(**{**found, **cases})
    except FileNotFoundError:
        return None
    except (ValueError, TypeError, KeyError) as error:
        raise UserError(
            f"not readable as findings: {error!r}",
            where=str(folder / FINDINGS),
            fix="move the folder away; the page is then made without single images",
        ) from None
