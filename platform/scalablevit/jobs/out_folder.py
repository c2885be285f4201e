"""The folder that a script fills: what is written goes to a hidden one beside it, and moves when all of it is there."""

import os
import shutil
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from scalablevit.config.errors import UserError
from scalablevit.data.names import shown


def refuse_unwritable(out: Path) -> None:
    """Find out before anything is loaded that a folder cannot be made, as far as permissions tell.

    Raises:
        UserError: it, or what there is above it, is no folder or may not be written to.
    """
    place = Path(os.path.realpath(out))
    above = next(path for path in place.parents if os.access(path, os.F_OK))
    for path in (above, place) if os.access(place, os.F_OK) else (above,):
        if not path.is_dir() or not os.access(path, os.W_OK | os.X_OK):
            raise UserError(
                f"{shown(path)} is no folder that can be written to", where="--out", fix="choose another --out"
            )


@contextmanager
def filled(out: Path, replaced: Sequence[str] = ()) -> Iterator[Path]:
    """A new hidden folder beside `out`; when the block ends well, its files and folders move into `out`.

    Args:
        out: made if it is not there.
        replaced: names of files and folders that give way to them.

    Raises:
        UserError: something cannot be written (any OSError of the block).
    """
    place = Path(os.path.realpath(out))  # beside what a link points to
    partial = place.with_name(f".{place.name}.partial-{uuid.uuid4().hex}")
    try:
        partial.mkdir(parents=True)
        yield partial
        place.mkdir(exist_ok=True)
        for name in replaced:
            _remove(place / name)
        for made in partial.iterdir():
            shutil.move(made, place / made.name)
    except OSError as error:
        raise UserError(
            f"cannot write: {error.strerror or error}",
            where=shown(error.filename or out),
            fix="free space, or choose another --out",
        ) from None
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
