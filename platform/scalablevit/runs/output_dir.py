"""The output folder of a script: files are written to a hidden folder first, and moved when all are complete."""

import glob
import os
import shutil
import sys
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from scalablevit.config.errors import UserError
from scalablevit.data.names import printable


def refuse_unwritable(out: Path) -> None:
    """Refuse, before anything is loaded, a folder that permissions keep from being written to.

    Raises:
        UserError: `out`, or its nearest parent that exists, is no folder or may not be written to.
    """
    target = Path(os.path.realpath(out))
    nearest = next(path for path in (target, *target.parents) if os.access(path, os.F_OK))
    if not nearest.is_dir() or not os.access(nearest, os.W_OK | os.X_OK):
        raise UserError(
            f"{printable(nearest)} is no folder that can be written to", where="--out", fix="choose another --out"
        )


def refuse_unusable(out: Path) -> None:
    """Refuse, before anything is loaded, a folder that `write_folder` could not fill.

    Raises:
        UserError: as `refuse_unwritable`; or another run writes to the folder, or was killed while it did.
    """
    refuse_unwritable(out)
    partial = _partial(Path(os.path.realpath(out)))
    leftovers = sorted(partial.parent.glob(f"{glob.escape(partial.name)}*"))
    if leftovers:
        raise UserError(
            f"another run writes to {', '.join(map(printable, leftovers))}, or was ended while it did",
            where="--out",
            fix="wait for it; if none is at work, take out what you need and remove the folder",
        )


@contextmanager
def write_folder(out: Path, replaced: Sequence[str] = ()) -> Iterator[Path]:
    """Yield a new hidden folder; when the block ends without an exception, move its contents into `out`.

    From then on nothing that was written is removed: what cannot be moved stays in the hidden folder, whose name is
    printed.

    Args:
        out: the folder; created if it does not exist.
        replaced: names of files and folders in `out` to remove once the new contents are there.

    Raises:
        UserError: something cannot be written (any OSError of the block).
    """
    target = Path(os.path.realpath(out))
    prefix = _partial(target)
    partial = prefix.with_name(prefix.name + uuid.uuid4().hex)
    fix, complete = "free space, or choose another --out", False
    try:
        partial.mkdir(parents=True)
        yield partial
        fix, complete = f"nothing is lost: {printable(partial)} holds what is not in its place", True
        if partial.parent == target:
            _exchange(partial, target, replaced)
        else:
            partial.rename(target)
    except OSError as error:
        where = printable(error.filename or out)
        raise UserError(f"cannot write: {error.strerror or error}", where=where, fix=fix) from None
    finally:
        if not complete:
            shutil.rmtree(partial, ignore_errors=True)
        elif partial.exists():
            print(f"{printable(partial)} holds what was not moved or removed", file=sys.stderr)


def _partial(target: Path) -> Path:
    """Return how the paths of hidden folders begin: inside `target` if it exists, else next to it.

    The parent of an existing folder may not be writable, may be on another disk, or not be shared with other nodes.
    """
    return target / ".partial-" if os.access(target, os.F_OK) else target.with_name(f".{target.name}.partial-")


def _exchange(partial: Path, target: Path, replaced: Sequence[str]) -> None:
    """Move the contents of `partial` to `target`; what they replace is removed when all of them are there."""
    entries = list(partial.iterdir())
    old = partial / ".replaced"
    old.mkdir()
    for name in replaced:
        if os.path.lexists(target / name):
            (target / name).rename(old / name)
    for entry in entries:
        entry.rename(target / entry.name)
    shutil.rmtree(partial, ignore_errors=True)
