"""Tar shards from an image folder: the same samples in the same order, copied or scaled down."""

import io
import json
import os
import shutil
import tarfile
import uuid
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

from PIL import Image

from scalablevit.config.data import MAX_PIXELS
from scalablevit.config.errors import UserError
from scalablevit.data.decoding import BadSample, decode
from scalablevit.data.shards import BLOCK, INDEX, Index, Shard
from scalablevit.data.sources.base import Sample, Source
from scalablevit.data.transforms import resize_antialiased, scaled_size
from scalablevit.io import sha256_of, write_file
from scalablevit.text import and_more

_NAMED = 5
_AHEAD = 3
"""Images per worker that are read before they are written."""
_Encoded: TypeAlias = tuple[str, bytes] | BadSample
"""Suffix and bytes of an image, or what is wrong with it."""


@dataclass(frozen=True, slots=True)
class Packing:
    """Options of `pack`.

    Attributes:
        shard_bytes: most bytes of a shard; a larger image has a shard of its own.
        short_side: images whose short side has more pixels are scaled down to it, except transparent ones and those of
            16 or 32 bits; None: all are copied.
        quality: JPEG quality of scaled images, as Pillow's.
        workers: number of threads that read, decode and encode.
    """

    shard_bytes: int
    short_side: int | None
    quality: int
    workers: int


def pack(source: Source, target: Path, packing: Packing, report: Callable[[str], None]) -> Index:
    """Write the samples of an image folder as shards with an index, and return the index.

    Everything is written to a hidden folder next to `target`, which is renamed to `target` when it is complete.

    Args:
        source: of an image folder.
        target: folder to create.
        packing: options.
        report: is called with a line for each shard.

    Raises:
        UserError: `target` exists or cannot be written, or images cannot be read; then no file remains.
    """
    refuse_existing(target)
    partial = target.with_name(f".{target.name}.partial-{uuid.uuid4().hex}")
    try:
        partial.mkdir(parents=True)
        index = _write(source, partial, packing, report)
        write_file(partial / INDEX, json.dumps(index.model_dump()).encode())
        refuse_existing(target)
        partial.rename(target)
    except OSError as error:
        raise UserError(
            f"cannot write {target}: {error.strerror or error}", where="TARGET", fix="make room, or name another folder"
        ) from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return index


def refuse_existing(target: Path) -> None:
    """Refuse a target that exists.

    Raises:
        UserError: there is a file, folder or link at `target`.
    """
    if target.exists() or target.is_symlink():
        raise UserError(f"{target} exists", where="TARGET", fix="name a new folder, or remove that one")


def _write(source: Source, folder: Path, packing: Packing, report: Callable[[str], None]) -> Index:
    shards: list[Shard] = []
    current: _ShardWriter | None = None
    bad: list[BadSample] = []
    for number, (label, encoded) in enumerate(_encode_samples(source, packing)):
        if isinstance(encoded, BadSample):
            bad.append(encoded)
            continue
        suffix, content = encoded
        if current and current.size + _stored_bytes(len(content)) > packing.shard_bytes:
            shards.append(current.close(report))
            current = None
        if current is None:
            current = _ShardWriter(folder / f"{len(shards):06}.tar")
        current.add(f"{number:09}", suffix, content, label)
    if bad:
        lines = "".join(f"\n    {problem}" for problem in bad[:_NAMED])
        more = and_more(len(bad), _NAMED, before="\n    ")
        raise UserError(
            f"{len(bad)} of {len(source)} images cannot be read:{lines}{more}",
            where="FOLDER",
            fix="replace or remove them: shards hold exactly what the folder holds",
        )
    if current:
        shards.append(current.close(report))
    return Index(version=1, classes=list(source.classes), shards=shards)


def _encode_samples(source: Source, packing: Packing) -> Iterator[tuple[int, _Encoded]]:
    """Yield each sample's label, and its suffix and bytes or what is wrong with it, in order."""
    ahead: deque[tuple[Sample, Future[_Encoded]]] = deque()
    with ThreadPoolExecutor(packing.workers) as pool:
        for index in range(len(source)):
            sample = source[index]
            ahead.append((sample, pool.submit(_encode, sample, packing)))
            if len(ahead) > _AHEAD * packing.workers:  # not all at once: each one has a whole file in memory
                yield _next(ahead)
        while ahead:
            yield _next(ahead)


def _next(ahead: deque[tuple[Sample, Future[_Encoded]]]) -> tuple[int, _Encoded]:
    sample, encoded = ahead.popleft()
    return int(sample.label or 0), encoded.result()  # class folders give each image one class


def _encode(sample: Sample, packing: Packing) -> _Encoded:
    name = str(sample.image)
    try:
        content = sample.image.read_bytes()
        if packing.short_side is not None:
            # after encoding again, the grey of a damaged image could not be distinguished from its content
            decoded = decode(content, MAX_PIXELS, name, refuse_damage=True)
            pixels, (height, width) = decoded.pixels, decoded.pixels.shape[:2]
            # copied if transparent: the recipe decides what colour is under it; copied if deep: the values may use a
            # part of their range, as those of 12 bits, and the check can tell it from the file only
            kept = decoded.transparent or decoded.deep
            if min(height, width) > packing.short_side and not kept:
                size = scaled_size(height, width, packing.short_side, max(height, width))
                file = io.BytesIO()
                Image.fromarray(resize_antialiased(pixels, size)).save(file, "JPEG", quality=packing.quality)
                return "jpg", file.getvalue()
    except OSError as error:
        return BadSample(name, f"cannot be read: {error.strerror or error}")
    except BadSample as bad:
        return bad
    return name.rpartition(".")[2].lower(), content


class _ShardWriter:
    """Writes one tar file; headers have no times and owners, so that the same images give the same bytes."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.file = path.open("xb")
        self.tar = tarfile.open(fileobj=self.file, mode="w", format=tarfile.USTAR_FORMAT)  # noqa: SIM115
        self.names: list[str] = []
        self.labels: list[int] = []
        self.offsets: list[int] = []
        self.sizes: list[int] = []

    @property
    def size(self) -> int:
        return self.file.tell()

    def add(self, key: str, suffix: str, content: bytes, label: int) -> None:
        self.names.append(f"{key}.{suffix}")
        self.labels.append(label)
        self.offsets.append(self.size + BLOCK)
        self.sizes.append(len(content))
        for name, data in ((f"{key}.{suffix}", content), (f"{key}.cls", str(label).encode())):
            header = tarfile.TarInfo(name)
            header.size = len(data)
            self.tar.addfile(header, io.BytesIO(data))

    def close(self, report: Callable[[str], None]) -> Shard:
        self.tar.close()
        _sync(self.file)
        size = self.size
        self.file.close()
        report(f"{self.path.name}: {len(self.names)} samples, {size / 2**20:.1f} MiB")
        return Shard(
            name=self.path.name, size=size, sha256=sha256_of(self.path),
            names=self.names, labels=self.labels, offsets=self.offsets, sizes=self.sizes,
        )  # fmt: skip


def _stored_bytes(size: int) -> int:
    """Return the bytes of an image of `size` bytes and its label in a tar file, and of the file's end."""
    return BLOCK + -(-size // BLOCK) * BLOCK + 2 * BLOCK + 2 * tarfile.RECORDSIZE


def _sync(file: io.BufferedWriter) -> None:
    file.flush()
    os.fsync(file.fileno())
