"""The folder that everything lasting lies in."""

import os
import re
from pathlib import Path

from scalablevit.config.errors import UserError


def platform_root(given: str | None, *, make: bool = True) -> Path:
    """The folder that relative paths resolve against: `--root`, else SCALABLEVIT_ROOT, else ~/scalablevit.

    Args:
        given: `--root`.
        make: make it if it is not there; false in scripts that look for something in it.

    Raises:
        UserError: it lies in a Ray session folder, which vanishes with the head.
    """
    root = Path(given or os.environ.get("SCALABLEVIT_ROOT") or "~/scalablevit").expanduser().resolve()
    refuse_session_folder(str(root), "--root")
    if make:
        root.mkdir(parents=True, exist_ok=True)
    return root


def tracking_uri(given: str | None, root: Path) -> str:
    """MLflow's address: the recipe's, else an SQLite file in the root."""
    return given or f"sqlite:///{root}/mlflow.db"


def refuse_session_folder(path: str, where: str) -> None:
    """Refuse to keep anything below a Ray session folder.

    Raises:
        UserError: the path lies in one.
    """
    if any(re.fullmatch(r"session_(latest|\d{4}-\d\d-\d\d_.*)", part) for part in Path(path).parts):
        raise UserError(
            f"{path} lies in a Ray session folder, which vanishes with the head",
            where=where,
            fix="name a folder that stays, e.g. --root ~/scalablevit",
        )
