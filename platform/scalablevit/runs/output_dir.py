"""The folder that a script fills: what is written goes to a hidden one first, and moves when all of it is there."""

import glob
import os
import shutil
import sys
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from scalablevit.config.errors import UserError
from scalablevit.data.names import shown


def refuse_unwritable(out: Path) -> None:
    """Find out before anything is loaded that nothing can be written to a folder, as far as permissions tell.

    Raises:
        UserError: it, or if it is not there the folder above it, is no folder or may not be written to.
    """
    place = Path(os.path.realpath(out))
    nearest = next(path for path in (place, *place.parents) if os.access(path, os.F_OK))
    if not nearest.is_dir() or not os.access(nearest, os.W_OK | os.X_OK):
        raise UserError(
            f"{shown(nearest)} is no folder that can be written to", where="--out", fix="choose another --out"
        )


def refuse_unusable(out: Path) -> None:
    """Find out before anything is loaded that a folder cannot be filled.

    Raises:
        UserError: as `refuse_unwritable`; or another run writes to it, or was killed while it did.
    """
    refuse_unwritable(out)
    partial = _partial(Path(os.path.realpath(out)))
    left = sorted(partial.parent.glob(f"{glob.escape(partial.name)}*"))
    if left:
        raise UserError(
            f"another run writes to {', '.join(map(shown, left))}, or was ended while it did",
            where="--out",
            fix="wait for it; if none is at work, take out what you need and remove the folder",
        )


@contextmanager
def write_folder(out: Path, replaced: Sequence[str] = ()) -> Iterator[Path]:
    """A new hidden folder; when the block ends well, its files and folders move into `out`.

    What was written by then is never removed: what cannot move stays in the hidden folder, which is named.

    Args:
        out: made if it is not there.
        replaced: names of files and folders that give way to them.

    Raises:
        UserError: something cannot be written (any OSError of the block).
    """
    place = Path(os.path.realpath(out))
    beginning = _partial(place)
    partial = beginning.with_name(beginning.name + uuid.uuid4().hex)
    fix, whole = "free space, or choose another --out", False
    try:
        partial.mkdir(parents=True)
        yield partial
        fix, whole = f"nothing is lost: {shown(partial)} holds what is not in its place", True
        if partial.parent == place:
            _exchange(partial, place, replaced)
        else:
            partial.rename(place)
    except OSError as error:
        where = shown(error.filename or out)
        raise UserError(f"cannot write: {error.strerror or error}", where=where, fix=fix) from None
    finally:
        if not whole:
            shutil.rmtree(partial, ignore_errors=True)
        elif partial.exists():
            print(f"{shown(partial)} holds what was not moved or removed", file=sys.stderr)


def _partial(place: Path) -> Path:
    """How the paths of hidden folders begin: within a folder that is there, else next to it.

    The folder around a folder may not be writable, may be on another disk, or not be shared with other nodes.
    """
    return place / ".partial-" if os.access(place, os.F_OK) else place.with_name(f".{place.name}.partial-")


def _exchange(partial: Path, place: Path, replaced: Sequence[str]) -> None:
    """Move the contents of `partial` to `place`; what they replace is removed when all of them are there."""
    made = list(partial.iterdir())
    old = partial / ".replaced"
    old.mkdir()
    for name in replaced:
        if os.path.lexists(place / name):
            (place / name).rename(old / name)
    for each in made:
        each.rename(place / each.name)
    shutil.rmtree(partial, ignore_errors=True)
