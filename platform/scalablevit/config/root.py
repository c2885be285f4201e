"""The platform's root: the folder of runs, caches and mlflow.db."""

import os
import re
import unicodedata
from pathlib import Path

from scalablevit.config.errors import UserError


def platform_root(given: str | None, *, make: bool = True) -> Path:
    """Return the folder that relative paths resolve against: `--root`, else SCALABLEVIT_ROOT, else ~/scalablevit.

    Args:
        given: `--root`; None: not given.
        make: create the folder if it does not exist; false in scripts that look for something in it.

    Raises:
        UserError: it is in a Ray session folder, which is temporary; is no folder; cannot be created; or has control
            characters in its name.
    """
    root = Path(given or os.environ.get("SCALABLEVIT_ROOT") or "~/scalablevit").expanduser().resolve()
    refuse_session_folder(str(root), "--root")
    if any(unicodedata.category(char) in ("Cc", "Cs") for char in str(root)):  # line ends, broken UTF-8
        raise UserError(f"{str(root)!a} cannot be printed", where="--root", fix="name another folder")
    if root.exists() and not root.is_dir():
        raise UserError(f"{root} is no folder", where="--root", fix="name a folder")
    if make:
        try:
            root.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            what = f"{root} cannot be made: {error.strerror or error}"
            raise UserError(what, where="--root", fix="name a folder that you may write to") from None
    return root


def tracking_uri(given: str | None, root: Path) -> str:
    """Return MLflow's address: the recipe's, else an SQLite file in the root.

    Args:
        given: `tracking.uri`; None: not given.
        root: the platform's root.

    Raises:
        UserError: the root's name would mean another path in the address of a file.
    """
    if not given and (strange := re.search(r"\?|%[0-9a-fA-F]{2}", str(root))):
        # quoting does not help: MLflow creates a folder of the quoted name, SQLAlchemy opens the unquoted one
        raise UserError(
            f"{root} has {strange[0]!r} in its name, which means something else in the address of MLflow's SQLite file",
            where="--root",
            fix="name another folder, or a server: tracking.uri=http://<server>",
        )
    return given or f"sqlite:///{root}/mlflow.db"


def is_default_tracking(uri: str, root: Path) -> bool:
    """Return whether an address of MLflow is the one that commands use when they are given the root alone.

    Args:
        uri: MLflow's address.
        root: the platform's root.
    """
    try:
        return uri == tracking_uri(None, root)
    except UserError:  # the root's name has no such address
        return False


def refuse_session_folder(path: str, where: str) -> None:
    """Refuse to keep anything below a Ray session folder.

    Args:
        path: of a folder or file.
        where: what errors name as the origin of the path, such as `--root`.

    Raises:
        UserError: the path is in one.
    """
    if any(re.fullmatch(r"session_(latest|\d{4}-\d\d-\d\d_.*)", part) for part in Path(path).parts):
        raise UserError(
            f"{path} is in a Ray session folder, which is temporary",
            where=where,
            fix="name a folder that stays, e.g. --root ~/scalablevit",
        )
