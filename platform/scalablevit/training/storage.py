"""Run storage on any pyarrow file system; free of torch, so that drivers start quickly."""

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pyarrow.fs


def open_filesystem(location: str) -> tuple[pyarrow.fs.FileSystem, str]:
    """File system and path of a local path or an address such as s3://bucket/folder."""
    if "://" in location:
        filesystem, path = pyarrow.fs.FileSystem.from_uri(location)
        return filesystem, path.rstrip("/")
    return pyarrow.fs.LocalFileSystem(), str(Path(location).absolute())


def put(filesystem: pyarrow.fs.FileSystem, path: str, content: bytes) -> None:
    """Write one file that is either whole or not there: fsync and rename locally, one object elsewhere."""
    if not isinstance(filesystem, pyarrow.fs.LocalFileSystem):
        with filesystem.open_output_stream(path) as stream:
            stream.write(content)
        return
    temporary = Path(f"{path}.part")
    with temporary.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)
    folder = os.open(temporary.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def read(filesystem: pyarrow.fs.FileSystem, path: str) -> bytes | None:
    """Content of a file; None when there is none."""
    if filesystem.get_file_info(path).type != pyarrow.fs.FileType.File:
        return None
    with filesystem.open_input_stream(path) as stream:
        return bytes(stream.read())


@contextmanager
def local_copy(location: str) -> Iterator[str]:
    """A path to read `location` from: itself, or while the context lasts a copy of a remote file."""
    if "://" not in location:
        yield location
        return
    filesystem, path = open_filesystem(location)
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / Path(path).name
        with filesystem.open_input_stream(path) as stream:
            copy.write_bytes(stream.read())
        yield str(copy)
