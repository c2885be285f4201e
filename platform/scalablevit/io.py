"""Files on a local disk: written whole or not at all, and their SHA-256."""

import hashlib
import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path


def write_file(file: Path, content: bytes, *, durable: bool = True) -> None:
    """Write or replace a file, which is at any moment as before or whole; a replaced one keeps its permissions.

    Args:
        file: in a folder that is there.
        durable: stays after a power failure, too; needless for what can be made again.
    """
    with written_part(file, content, durable=durable) as part:
        part.replace(file)
    if durable:
        sync_folder(file.parent)


@contextmanager
def written_part(file: Path, content: bytes, *, durable: bool = True) -> Iterator[Path]:
    """Write what is to replace a file next to it, with the file's permissions; at the end it is gone, if not moved.

    Args:
        file: as for `write_file`.
        durable: as for `write_file`.
    """
    part = file.with_name(f"{file.name}.{secrets.token_hex(4)}.part")  # its own, should another process write the file
    try:
        with part.open("xb") as out:
            with suppress(OSError):  # a new file; a mount that has no permissions
                shutil.copymode(file, part)
            out.write(content)
            if durable:
                out.flush()
                os.fsync(out.fileno())
        yield part
    finally:
        part.unlink(missing_ok=True)


def sync_folder(folder: Path) -> None:
    """Bring a folder's entries to the disk: a new file is there only when its entry is."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sha256_of(file: Path | str) -> str:
    """Return the SHA-256 of a file's content, 64 hexadecimal digits."""
    with open(file, "rb") as content:  # noqa: PTH123  # of a million files, too
        return hashlib.file_digest(content, "sha256").hexdigest()
