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

_REFUSALS = {
    "NETWORK_CONNECTION": (
        "the object store does not answer", "check AWS_ENDPOINT_URL on every node, and that each reaches that address",
    ),
    "INVALID_ACCESS_KEY_ID": ("the object store does not know the access key", "check AWS_ACCESS_KEY_ID on every node"),
    "SIGNATURE_DOES_NOT_MATCH": (
        "the object store refuses the secret of the access key", "check AWS_SECRET_ACCESS_KEY on every node",
    ),
    "NO_SUCH_BUCKET": ("there is no such bucket", "make the bucket, or correct the address"),
    "ACCESS_DENIED": (
        "the object store does not permit it with this access key, or without one",
        "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY on every node, and let that key write, read, list and delete",
    ),
}  # fmt: skip
"""What is wrong and what to do, by the name that pyarrow gives to an object store's error."""


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
    """Write, read, list and delete a small file in run storage: a folder that exists, or an address.

    Raises:
        UserError: one of them fails.
    """
    is_local, doing = "://" not in location, "writing"
    try:
        filesystem, path = open_filesystem(location)
        name, content = f"{path}/.probe-{secrets.token_hex(8)}", secrets.token_bytes(16)
        put(filesystem, name, content)
        doing = "reading"
        if read(filesystem, name) != content:
            raise OSError("what was written reads as something else")
        doing = "deleting"
        filesystem.delete_file(name)
        if not is_local:
            doing = "listing"
            filesystem.get_file_info(pyarrow.fs.FileSelector(name, allow_not_found=True))
            doing = "making"
            filesystem.create_dir(path, recursive=True)  # as a run does; it says less than `put` about what is wrong
    except (OSError, ValueError) as error:  # ValueError: an address that pyarrow does not know
        raise _storage_error(location, f"{doing} a small file", " ".join(str(error).split())) from None


def _storage_error(location: str, doing: str, reason: str) -> UserError:
    """Return the plain error for what a file system says about run storage."""
    for code, (what, fix) in _REFUSALS.items():
        if f"AWS Error {code} " in reason:
            return UserError(f"{what} ({doing}: {code})", where=location, fix=fix)
    fix = "mount the folder on every node, writable"
    if "://" in location:
        fix = "check the address, AWS_ENDPOINT_URL, AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY on every node"
    return UserError(f"{doing} there fails: {reason}", where=location, fix=fix)


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
