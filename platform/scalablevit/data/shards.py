"""Tar shards in WebDataset's layout, read through an index with every sample's offset."""

import hashlib
import io
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, BinaryIO, Literal, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, ValidationError, model_validator

from scalablevit.config.commands import command_name
from scalablevit.config.errors import UserError
from scalablevit.config.section import Section
from scalablevit.data.names import printable
from scalablevit.data.sources.listing import Listing, Names
from scalablevit.text import and_more

INDEX = "index.json"
"""Name of the index file in a folder of shards."""
BLOCK = 512
"""Bytes of a tar file's header; contents are padded to multiples of it."""
_NAME_BYTES = 100
"""Bytes of the name field at the start of a header."""
_NAMED = 5
_REPACK = f"pack the folder again with {command_name('pack')}, or copy the shards again"


@dataclass(frozen=True, slots=True)
class Member:
    """An image inside a shard; decoding reads it as it reads a `Path`."""

    shard: Path
    name: str
    offset: int
    """Bytes of the shard before the image."""
    size: int
    """Bytes of the image."""

    def __str__(self) -> str:
        return f"{self.shard}/{self.name}"

    def read_bytes(self) -> bytes:
        """Return the encoded image.

        Raises:
            OSError: the shard cannot be read, ends too early, or has another file at this offset.
        """
        with self.shard.open("rb") as file:
            file.seek(self.offset - BLOCK)
            content = file.read(BLOCK + self.size)
        if content[:_NAME_BYTES].rstrip(b"\0") != self.name.encode():
            raise OSError(f"the shard has something else at this place, it and its {INDEX} do not belong together")
        if len(content) < BLOCK + self.size:
            raise OSError("the shard is cut short")
        return content[BLOCK:]

    def open(self, mode: Literal["rb"] = "rb") -> BinaryIO:
        """Return the encoded image as a file in memory.

        Raises:
            OSError: as `read_bytes`.
        """
        return io.BytesIO(self.read_bytes())


class Shard(Section):
    """One tar file and the images in it, in order; a label (`<key>.cls`) follows each image."""

    name: Annotated[str, Field(pattern=r"^[0-9A-Za-z_-]+\.tar$")]
    """File next to the index."""
    size: Annotated[int, Field(ge=0, lt=2**63)]
    """Bytes of the file."""
    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
    """SHA-256 of the file, in hexadecimal."""
    names: Annotated[
        list[Annotated[str, Field(pattern=r"^[0-9]+\.[0-9a-z]+$", max_length=_NAME_BYTES)]], Field(min_length=1)
    ]
    """Names of the images in the tar file: `<key>.<suffix>`."""
    labels: list[int]
    """Class indices."""
    offsets: list[int]
    """Bytes of the file before each image."""
    sizes: list[int]
    """Bytes of each image."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if not len(self.names) == len(self.labels) == len(self.offsets) == len(self.sizes):
            raise ValueError(f"{self.name}: names, labels, offsets and sizes differ in length")
        for name, offset, size in zip(self.names, self.offsets, self.sizes, strict=True):
            if offset < BLOCK or offset % BLOCK or size < 0 or offset + size > self.size:
                raise ValueError(f"{self.name}: {name} with {size} bytes from {offset} is not within {self.size}")
        return self


class Index(Section):
    """The content of `index.json`."""

    version: Literal[1]
    """Version of this layout."""
    classes: Annotated[list[str], Field(min_length=1)]
    """Names, by class index from 0."""
    shards: Annotated[list[Shard], Field(min_length=1)]
    """In the order of the samples."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        for shard in self.shards:
            if shard.labels and not 0 <= min(shard.labels) <= max(shard.labels) < len(self.classes):
                raise ValueError(f"{shard.name}: labels are not in 0..{len(self.classes) - 1}")
        if len({shard.name for shard in self.shards}) < len(self.shards):
            raise ValueError("a shard occurs twice")
        return self


class Shards(Sequence[Member]):
    """The images of a folder of shards, by index: finding one is arithmetic.

    Args:
        folder: with the index and the shards.
        listing: of `open_shards`.
    """

    def __init__(self, folder: Path, listing: Listing) -> None:
        self.folder = folder
        self.index_sha256: str = listing.facts["index_sha256"]
        self.files: list[tuple[str, int, str]] = [tuple(file) for file in listing.facts["shards"]]
        """Name, bytes and SHA-256 of each shard."""
        self.file_names = Names.of(name for name, _, _ in self.files)
        self.labels: NDArray[np.int32] = listing.arrays["labels"]
        self.sizes: NDArray[np.int64] = listing.arrays["member_sizes"]
        self._names = Names.from_listing(listing)
        self._offsets: NDArray[np.int64] = listing.arrays["offsets"]
        self.ends: NDArray[np.int64] = listing.arrays["shard_ends"]
        """(shards,) index after each shard's last image."""

    def __len__(self) -> int:
        return len(self._offsets)

    def __getitem__(self, i: int) -> Member:  # type: ignore[override]  # no slices: they are not used
        name, _, _ = self.files[self.shard_of(i)]
        return Member(self.folder / name, self._names[i], int(self._offsets[i]), int(self.sizes[i]))

    def shard_of(self, i: int) -> int:
        """Return the index of the shard with image i."""
        return int(np.searchsorted(self.ends, i, side="right"))


def open_shards(folder: Path, where: str) -> Listing:
    """Read a folder's index, and compare it with the sizes of the shards.

    Args:
        folder: made by `scalablevit pack`.
        where: dotted recipe key, for errors.

    Raises:
        UserError: there is no index, it is no file or contradicts itself, or shards are missing or of another size.
    """
    file = folder / INDEX
    if os.path.lexists(file) and not _is_file(file):
        raise UserError(f"{file} is no file", where=where, fix=_REPACK)
    try:
        content = file.read_bytes()
        index = Index.model_validate_json(content)
    except FileNotFoundError:
        raise UserError(
            f"{folder} holds no {INDEX}", where=where, fix=f"name a folder that {command_name('pack')} has finished"
        ) from None
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        key = ".".join(map(str, first["loc"]))
        raise UserError(f"{file} cannot be used: {key}: {printable(first['msg'])}", where=where, fix=_REPACK) from None
    problems = [problem for shard in index.shards if (problem := _size_problem(folder / shard.name, shard.size))]
    if problems:
        named = "; ".join(problems[:_NAMED]) + and_more(len(problems), _NAMED)
        raise UserError(f"{len(problems)} shards are damaged: {named}", where=where, fix=_REPACK)
    return _list_index(index, hashlib.sha256(content).hexdigest())


def _list_index(index: Index, index_sha256: str) -> Listing:
    shards = index.shards
    facts = {
        "classes": index.classes,
        "index_sha256": index_sha256,
        "shards": [(shard.name, shard.size, shard.sha256) for shard in shards],
    }
    arrays = {
        **Names.of(()).arrays("ignored_"),
        **Names.of(name for shard in shards for name in shard.names).arrays(),
        "labels": _join([shard.labels for shard in shards], np.dtype(np.int32)),
        "member_sizes": _join([shard.sizes for shard in shards], np.dtype(np.int64)),
        "offsets": _join([shard.offsets for shard in shards], np.dtype(np.int64)),
        "shard_ends": np.cumsum([len(shard.names) for shard in shards], dtype=np.int64),
    }
    return Listing(facts, arrays)


def _size_problem(file: Path, size: int) -> str:
    """Return what is wrong with a shard, by its size in bytes; empty if nothing is."""
    if not _is_file(file):
        return f"{file} is no file"
    actual = file.stat().st_size
    return "" if actual == size else f"{file} has {actual} bytes, not {size}"


def _is_file(file: Path) -> bool:
    """Return whether it is a plain file: a link might lead out of the data set, and a pipe never ends."""
    return not file.is_symlink() and file.is_file()


def _join(lists: list[list[int]], kind: "np.dtype[np.signedinteger]") -> "NDArray[np.signedinteger]":
    return np.concatenate([np.asarray(values, kind) for values in lists])
