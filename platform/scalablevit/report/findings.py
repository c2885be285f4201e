"""`findings.json`: result of the error analysis of single validation images; free of torch, so that pages load fast."""

import json
from dataclasses import dataclass
from pathlib import Path

from scalablevit.config.errors import UserError
from scalablevit.run_files import FINDINGS
from scalablevit.tasks.error_analysis import ErrorDetails, Outcome


@dataclass(frozen=True)
class Case:
    """One analysed image."""

    file: str
    picture: str
    """Name of the picture's file, next to `findings.json`."""
    words: str
    """What is right and wrong in the prediction, for people."""
    error: float
    """How wrong the prediction is: larger is worse; `Findings.measure` says by what."""
    classes: dict[str, str]
    """Colour (#rrggbb) by name of the classes that are drawn on the picture."""
    outcome: Outcome | None = None
    """None: not known, as in files of earlier versions."""


@dataclass(frozen=True)
class Findings:
    """What `findings.json` holds."""

    images: int
    """Number of images analysed: a random sample of the split."""
    split: int
    """Number of images in the validation split."""
    bad: int
    """Number of images that could not be decoded."""
    seconds: float
    """Wall time of the analysis, seconds."""
    parameters: int
    """Number of the network's parameters."""
    macs: int
    """Multiply-accumulates of one image at the task's evaluation size."""
    measure: str
    """How the worst cases are ranked, in words."""
    details: ErrorDetails
    """See `tasks.error_analysis.ErrorAnalysis.details`."""
    cases: tuple[Case, ...]
    """The first ones of the random sample."""
    worst: tuple[Case, ...]
    """The images with the largest errors, the worst first."""


def load_findings(folder: Path) -> Findings | None:
    """Return what `pipeline.error_analysis.analyse_errors` wrote into a folder; None where there is no file.

    Raises:
        UserError: the file is damaged.
    """
    try:
        stored = json.loads((folder / FINDINGS).read_bytes())
        cases = {name: tuple(Case(**case) for case in stored[name]) for name in ("cases", "worst")}
        return Findings(**{**stored, **cases})
    except FileNotFoundError:
        return None
    except (ValueError, TypeError, KeyError) as error:
        raise UserError(
            f"not readable as findings: {error!r}",
            where=str(folder / FINDINGS),
            fix="move the folder away; the page is then made without single images",
        ) from None
