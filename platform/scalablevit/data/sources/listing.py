"""The listing of a source's files: arrays that all processes of a node memory-map instead of listing again."""

import io
import json
import os
import re
import zipfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Self, TypeAlias, overload

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
FACTS = "facts.json"
"""Name of the file with a listing's facts."""
WRITABLE = frozenset({"stamps"})
"""Arrays that the processes of a node share for writing: a file that one has checked need not be checked by others."""
LARGEST = 8 * 2**30
"""Most bytes of a listing in memory, the limit of a node's whole cache; that of a million files has about 0.1 GiB."""
_ARRAY_NAME = re.compile(r"[a-z][a-z0-9_]*")
_SUFFIX = ".npy"
_EPOCH = (1980, 1, 1, 0, 0, 0)  # a fixed time: equal listings pack to equal bytes


Facts: TypeAlias = Mapping[str, Any]
"""A source's values besides arrays, under names of its own; JSON types only."""


class Listing:
    """The files of a split, as a source has listed them: facts and arrays.

    Args:
        facts: JSON types only.
        arrays: by name; without Python objects.
        folder: that the arrays are mapped from; None: they are in memory.
    """

    def __init__(self, facts: Facts, arrays: Mapping[str, Array], folder: Path | None = None) -> None:
        self.facts = dict(facts)
        self.arrays = dict(arrays)
        self.folder = folder

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle mapped arrays as the folder's path, which other processes of this node map again."""
        if self.folder is not None:
            return Listing.open, (self.folder,)
        return Listing, (self.facts, self.arrays)

    def pack(self) -> bytes:
        """Return facts and arrays as one compressed block; equal listings give equal bytes.

        Raises:
            ValueError: an array's name is not allowed, or the listing has more than `LARGEST` bytes.
        """
        buffer = io.BytesIO()
        with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
            _add(archive, FACTS, json.dumps(self.facts, sort_keys=True).encode())
            for name in sorted(self.arrays):
                content = io.BytesIO()
                np.save(content, self.arrays[name], allow_pickle=False)
                _add(archive, _file_name(name), content.getbuffer())
            _refuse_large(archive)
        return buffer.getvalue()

    @classmethod
    def unpack(cls, content: bytes) -> Self:
        """Read a packed listing into memory.

        Raises:
            ValueError: it is no listing, an array's name is not allowed, or it has more than `LARGEST` bytes.
        """
        try:
            with zipfile.ZipFile(io.BytesIO(content)) as archive:
                _refuse_large(archive)  # before any of it is decompressed
                facts = json.loads(archive.read(FACTS))
                arrays = {
                    _array_name(entry): np.load(io.BytesIO(archive.read(entry)), allow_pickle=False)
                    for entry in archive.namelist()
                    if entry != FACTS
                }
        except (zipfile.BadZipFile, KeyError, EOFError, ValueError) as error:
            raise ValueError(f"not a listing: {error}") from error
        return cls(facts, arrays)

    def save(self, folder: Path) -> None:
        """Write facts and arrays as files in a new folder that `open` maps.

        Raises:
            ValueError: an array's name is not allowed; nothing is written.
            OSError: the folder exists or cannot be written.
        """
        files = {_file_name(name): array for name, array in self.arrays.items()}
        folder.mkdir(parents=True)
        for name, array in files.items():
            np.save(folder / name, array, allow_pickle=False)
        sizes = {name: (folder / name).stat().st_size for name in files}
        (folder / FACTS).write_text(json.dumps({"facts": self.facts, "files": sizes}), encoding="utf-8")

    @classmethod
    def open(cls, folder: Path) -> Self:
        """Return a listing with arrays mapped from the files that `save` wrote.

        Raises:
            OSError: a file is missing.
            ValueError: a file has another size than `save` wrote.
        """
        stored = json.loads((folder / FACTS).read_bytes())
        for name, size in stored["files"].items():
            if (actual := (folder / name).stat().st_size) != size:
                raise ValueError(f"{folder / name} has {actual} bytes, not {size}")
        arrays = {_array_name(name): _map(folder / name) for name in stored["files"]}
        return cls(stored["facts"], arrays, folder)


class Names(Sequence[str]):
    """Names of files as one block of bytes: a million Python strings would cost every loader process 100 MB.

    Args:
        block: uint8 (bytes,), the names in the file system's encoding, without separators.
        ends: int64 (names,), index after each name's last byte.
    """

    def __init__(self, block: NDArray[np.uint8], ends: NDArray[np.int64]) -> None:
        self.block = block
        self.ends = ends

    @classmethod
    def of(cls, names: Iterable[str]) -> Self:
        """Return names in encoded form."""
        encoded = [os.fsencode(name) for name in names]
        return cls(
            np.frombuffer(b"".join(encoded), np.uint8), np.cumsum([len(name) for name in encoded], dtype=np.int64)
        )

    @classmethod
    def from_listing(cls, listing: Listing, prefix: str = "") -> Self:
        """Return the names that `arrays` has added to a listing under a prefix."""
        return cls(listing.arrays[f"{prefix}names"], listing.arrays[f"{prefix}ends"])

    def arrays(self, prefix: str = "") -> dict[str, Array]:
        """Return the arrays for a listing; several `Names` in one listing have different prefixes."""
        return {f"{prefix}names": self.block, f"{prefix}ends": self.ends}

    def __len__(self) -> int:
        return len(self.ends)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Names):
            return NotImplemented
        return np.array_equal(self.ends, other.ends) and np.array_equal(self.block, other.block)

    __hash__ = None  # type: ignore[assignment]

    @overload
    def __getitem__(self, i: int) -> str: ...
    @overload
    def __getitem__(self, i: slice) -> list[str]: ...
    def __getitem__(self, i: int | slice) -> str | list[str]:
        if isinstance(i, slice):
            return [self[k] for k in range(*i.indices(len(self)))]
        return os.fsdecode(self.encoded(i))

    def encoded(self, i: int) -> bytes:
        """Return name i in the file system's encoding."""
        if not 0 <= i < len(self):
            raise IndexError(f"name {i} of {len(self)}")
        return self.block[int(self.ends[i - 1]) if i else 0 : int(self.ends[i])].tobytes()


def _file_name(array: str) -> str:
    """Return the name of an array's file, which cannot lead out of its folder."""
    if not _ARRAY_NAME.fullmatch(array):
        raise ValueError(f"{array!r} is no name of an array; allowed are small letters, digits and _")
    return f"{array}{_SUFFIX}"


def _array_name(file: str) -> str:
    name = file.removesuffix(_SUFFIX)
    if _file_name(name) != file:
        raise ValueError(f"{file!r} is no file of an array, which ends in {_SUFFIX}")
    return name


def _refuse_large(archive: zipfile.ZipFile) -> None:
    """Refuse an archive of more than `LARGEST` bytes: `ZipFile.read` returns no more than an entry declares."""
    if (size := sum(entry.file_size for entry in archive.infolist())) > LARGEST:
        raise ValueError(f"unpacked it has {size} bytes, more than {LARGEST}")


def _add(archive: zipfile.ZipFile, name: str, content: bytes | memoryview) -> None:
    entry = zipfile.ZipInfo(name, _EPOCH)
    entry.compress_type = zipfile.ZIP_DEFLATED
    archive.writestr(entry, content)


def _map(file: Path) -> Array:
    shared = file.stem in WRITABLE and os.access(file, os.W_OK)
    mapped = np.load(file, mmap_mode="r+" if shared else "c", allow_pickle=False)
    array: Array = mapped.view(np.ndarray)  # of the same memory: slices are plain arrays
    return array
