"""Reads and writes run storage on any pyarrow file system; free of torch, so that drivers start quickly."""

import secrets
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pyarrow.fs

from scalablevit.config.errors import UserError
from scalablevit.io import write_file
from scalablevit.run_files import BAD_SAMPLES


def open_filesystem(location: str) -> tuple[pyarrow.fs.FileSystem, str]:
    """Return the file system, and the path on it, of a local path or an address such as s3://bucket/folder."""
    if "://" in location:
        filesystem, path = pyarrow.fs.FileSystem.from_uri(location)
        return filesystem, path.rstrip("/")
    return pyarrow.fs.LocalFileSystem(), str(Path(location).absolute())


def put(filesystem: pyarrow.fs.FileSystem, path: str, content: bytes) -> None:
    """Write a file completely or not at all: by fsync and rename locally, as one object in an object store."""
    if not isinstance(filesystem, pyarrow.fs.LocalFileSystem):
        with filesystem.open_output_stream(path) as stream:
            stream.write(content)
        return
    write_file(Path(path), content)


def read(filesystem: pyarrow.fs.FileSystem, path: str) -> bytes | None:
    """Return the content of a file; None when there is no such file."""
    if filesystem.get_file_info(path).type != pyarrow.fs.FileType.File:
        return None
    with filesystem.open_input_stream(path) as stream:
        return bytes(stream.read())


def check_storage(location: str) -> None:
    """Write, read and delete a small file in run storage: a folder that exists, or an address.

    Raises:
        UserError: one of them fails.
    """
    is_local = "://" not in location
    try:
        filesystem, path = open_filesystem(location)
        name, content = f"{path}/.probe-{secrets.token_hex(8)}", secrets.token_bytes(16)
        put(filesystem, name, content)
        if read(filesystem, name) != content:
            raise OSError("what was written reads as something else")
        filesystem.delete_file(name)
        if not is_local:  # as a run does; it says less than `put` about what is wrong
            filesystem.create_dir(path, recursive=True)
    except (OSError, ValueError) as error:  # ValueError: an address that pyarrow does not know
        keys = "endpoint (AWS_ENDPOINT_URL) and keys (AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY)"
        raise UserError(
            f"a file cannot be written, read and deleted there: {' '.join(str(error).split())}", where=location,
            fix="mount the folder on every node, writable" if is_local else f"check address, {keys} on every node",
        ) from None  # fmt: skip


def put_text(folder: str, name: str, text: str) -> None:
    """Write or replace a text file in a folder (a path or an address); the folder is created if it does not exist."""
    filesystem, path = open_filesystem(folder)
    filesystem.create_dir(path, recursive=True)
    put(filesystem, f"{path}/{name}", text.encode())


def add_bad_samples(run_folder: str, files: dict[str, str]) -> None:
    """Add undecodable files (reason by path) to the run's `BAD_SAMPLES`, which keeps those of earlier attempts."""
    filesystem, folder = open_filesystem(run_folder)
    existing = (read(filesystem, f"{folder}/{BAD_SAMPLES}") or b"").decode().splitlines()
    lines = {f"{path}\t{' '.join(reason.split())}" for path, reason in files.items()}
    if not lines <= set(existing):
        put_text(run_folder, BAD_SAMPLES, "".join(f"{line}\n" for line in sorted(lines.union(existing))))


@contextmanager
def local_copy(location: str) -> Iterator[str]:
    """Yield a path to read `location` from: the path itself, or for an address a copy that exists during the block."""
    if "://" not in location:
        yield location
        return
    filesystem, path = open_filesystem(location)
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / Path(path).name
        with filesystem.open_input_stream(path) as stream:
            copy.write_bytes(stream.read())
        yield str(copy)
