"""Tar shards in WebDataset's layout, read through an index that says where every sample is."""

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
from scalablevit.data.names import shown
from scalablevit.data.sources.listing import Listing, Names
from scalablevit.text import and_more

INDEX = "index.json"
BLOCK = 512
"""Bytes: a tar file's headers have as many, and contents are filled up to multiples of it."""
_NAME_BYTES = 100
"""Of a header, from its start."""
_NAMED = 5
_REPACK = f"pack the folder again with {command_name('pack')}, or copy the shards again"


@dataclass(frozen=True, slots=True)
class Member:
    """An image inside a shard; decoding reads it as it reads a `Path`."""

    shard: Path
    name: str
    offset: int
    """Of its first byte in the shard."""
    size: int
    """Bytes."""

    def __str__(self) -> str:
        return f"{self.shard}/{self.name}"

    def read_bytes(self) -> bytes:
        """The encoded image.

        Raises:
            OSError: the shard cannot be read, ends too early, or has something else at this place.
        """
        with self.shard.open("rb") as file:
            file.seek(self.offset - BLOCK)
            found = file.read(BLOCK + self.size)
        if found[:_NAME_BYTES].rstrip(b"\0") != self.name.encode():
            raise OSError(f"the shard has something else at this place, it and its {INDEX} do not belong together")
        if len(found) < BLOCK + self.size:
            raise OSError("the shard is cut short")
        return found[BLOCK:]

    def open(self, mode: Literal["rb"] = "rb") -> BinaryIO:
        """`read_bytes` as a file."""
        return io.BytesIO(self.read_bytes())


class Shard(Section):
    """One tar file and the images in it, in order; a label (`<key>.cls`) follows each image."""

    name: Annotated[str, Field(pattern=r"^[0-9A-Za-z_-]+\.tar$")]
    """File next to the index."""
    size: Annotated[int, Field(ge=0, lt=2**63)]
    """Bytes of the file."""
    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
    """Of the file."""
    names: Annotated[
        list[Annotated[str, Field(pattern=r"^[0-9]+\.[0-9a-z]+$", max_length=_NAME_BYTES)]], Field(min_length=1)
    ]
    """Of the images in the tar file: `<key>.<suffix>`."""
    labels: list[int]
    """Class numbers."""
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
    """What `index.json` holds."""

    version: Literal[1]
    """Of this layout."""
    classes: Annotated[list[str], Field(min_length=1)]
    """Names; labels count from 0 in this order."""
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
    """The images of a folder of shards, by number: finding one is arithmetic.

    Args:
        folder: holds the index and the shards.
        listing: of `open_shards`.
    """

    def __init__(self, folder: Path, listing: Listing) -> None:
        self.folder = folder
        self.index_sha256: str = listing.facts["index_sha256"]
        self.files: list[tuple[str, int, str]] = [tuple(each) for each in listing.facts["shards"]]
        self.file_names = Names.of(name for name, _, _ in self.files)
        self.labels: NDArray[np.int32] = listing.arrays["labels"]
        self.sizes: NDArray[np.int64] = listing.arrays["member_sizes"]
        self._names = Names.from_listing(listing)
        self._offsets: NDArray[np.int64] = listing.arrays["offsets"]
        self.ends: NDArray[np.int64] = listing.arrays["shard_ends"]
        """(shards,) where each shard's images end."""

    def __len__(self) -> int:
        return len(self._offsets)

    def __getitem__(self, i: int) -> Member:  # type: ignore[override]  # no slices: nobody asks for them
        name, _, _ = self.files[self.number_of(i)]
        return Member(self.folder / name, self._names[i], int(self._offsets[i]), int(self.sizes[i]))

    def number_of(self, i: int) -> int:
        """Number of the shard that holds image i."""
        return int(np.searchsorted(self.ends, i, side="right"))


def open_shards(folder: Path, where: str) -> Listing:
    """Read a folder's index and hold it against the sizes of the files next to it.

    Args:
        folder: of `pipelines/pack.py`.
        where: dotted recipe key, for errors.

    Raises:
        UserError: no index, one that is no file or contradicts itself, or shards that are missing or of another size.
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
        place = ".".join(map(str, first["loc"]))
        raise UserError(f"{file} cannot be used: {place}: {shown(first['msg'])}", where=where, fix=_REPACK) from None
    wrong = [problem for shard in index.shards if (problem := _problem(folder / shard.name, shard.size))]
    if wrong:
        named = "; ".join(wrong[:_NAMED]) + and_more(len(wrong), _NAMED)
        raise UserError(f"{len(wrong)} shards are damaged: {named}", where=where, fix=_REPACK)
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


def _problem(file: Path, size: int) -> str:
    """What is wrong with a shard by its size."""
    if not _is_file(file):
        return f"{file} is no file"
    found = file.stat().st_size
    return "" if found == size else f"{file} has {found} bytes, not {size}"


def _is_file(file: Path) -> bool:
    """Links are not followed, since they might lead out of the data set, and a pipe would be read for ever."""
    return not file.is_symlink() and file.is_file()


def _join(lists: list[list[int]], kind: "np.dtype[np.signedinteger]") -> "NDArray[np.signedinteger]":
    return np.concatenate([np.asarray(each, kind) for each in lists])
