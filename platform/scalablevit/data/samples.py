"""The samples of a split: names in a fixed order, labels, sizes and a digest, without opening an image."""

import hashlib
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import overload

import numpy as np
from numpy.typing import NDArray

from scalablevit.data.coco import Annotations
from scalablevit.data.shards import Member, Shards

HASHED_BYTES = 2 * 1024**3
"""Up to this total size a digest covers contents, above it names and sizes."""
THREADS = 16
"""For listing and hashing: waiting for storage, mostly."""


@dataclass(frozen=True, slots=True)
class Sample:
    """One image and what is known about it."""

    image: Path | Member
    label: int | None
    mask: Path | None


class Source(Sequence[Sample]):
    """The samples of one split, in a fixed order.

    Args:
        classes: class names; labels and mask ids count from 0 in this order.
        images: folder that `names` are relative to.
        names: image files, in order.
        labels: class number of each image (image folders).
        masks: folder with a PNG of the same relative name for each image (mask pairs).
        ignored: files left out because they are no images by their names, or not annotated.
        annotations: the images' instances (COCO).
    """

    def __init__(
        self,
        classes: tuple[str, ...],
        images: Path,
        names: Sequence[str],
        labels: NDArray[np.int32] | None,
        masks: Path | None,
        ignored: tuple[str, ...],
        annotations: Annotations | None = None,
    ) -> None:
        self.classes = classes
        self.annotations = annotations
        self.ignored = ignored
        self._images = images
        self._masks = masks
        self._labels = labels
        # One block of bytes: a million Python strings would cost every loader process 100 MB.
        encoded = [os.fsencode(name) for name in names]
        self._ends = np.cumsum([len(name) for name in encoded], dtype=np.int64)
        self._names = b"".join(encoded)

    def __len__(self) -> int:
        return len(self._ends)

    @overload
    def __getitem__(self, i: int) -> Sample: ...
    @overload
    def __getitem__(self, i: slice) -> list[Sample]: ...
    def __getitem__(self, i: int | slice) -> Sample | list[Sample]:
        if isinstance(i, slice):
            return [self[k] for k in range(*i.indices(len(self)))]
        if not 0 <= i < len(self):
            raise IndexError(f"sample {i} of {len(self)}")
        return self._sample(i)

    def _sample(self, i: int) -> Sample:
        name = self._name(i)
        return Sample(
            image=self._images / name,
            label=None if self._labels is None else int(self._labels[i]),
            mask=None if self._masks is None else self._masks / _mask_name(name),
        )

    @property
    def notes(self) -> tuple[str, ...]:
        """What cleaning the annotations did, a line each."""
        return self.annotations.notes if self.annotations else ()

    def parts(self, size: int = 256) -> list[range]:
        """All sample numbers in parts, for work in threads: a task for each of a million samples would cost more."""
        return [range(start, min(start + size, len(self))) for start in range(0, len(self), size)]

    def total_bytes(self) -> int:
        """Of all files of the samples."""
        with ThreadPoolExecutor(THREADS) as pool:
            return sum(max(0, size) for sizes in pool.map(self._sizes, self.parts()) for each in sizes for size in each)

    def damaged(self) -> list[str]:
        """Files that are not what was packed, as far as sums tell; only shards have any. Reads all of them."""
        return []

    def digest(self) -> str:
        """`content:<sha256>` of names, labels, sizes, contents and classes; above 2 GiB `listing:` without contents.

        It does not depend on where the folders lie. Computed once for each object.
        """
        return self._digest

    @cached_property
    def _digest(self) -> str:
        parts = self.parts()
        with ThreadPoolExecutor(THREADS) as pool:
            sizes = [size for sizes in pool.map(self._sizes, parts) for size in sizes]
            whole = sum(map(sum, sizes)) <= HASHED_BYTES
            total = hashlib.sha256(repr(self.classes).encode())
            if self.annotations is not None:
                total.update(self.annotations.digest.encode())
            for i, size in enumerate(sizes):
                label = -1 if self._labels is None else int(self._labels[i])
                total.update(b"\0".join([os.fsencode(self._name(i)), str((label, *size)).encode(), b""]))
            for content in pool.map(self._contents, parts if whole else []):
                total.update(content)
        return f"{'content' if whole else 'listing'}:{total.hexdigest()}"

    def _name(self, i: int) -> str:
        start = int(self._ends[i - 1]) if i else 0
        return os.fsdecode(self._names[start : int(self._ends[i])])

    def _files(self, i: int) -> list[str]:
        name = self._name(i)
        image = f"{self._images}/{name}"
        return [image] if self._masks is None else [image, f"{self._masks}/{_mask_name(name)}"]

    def _sizes(self, part: range) -> list[tuple[int, ...]]:
        return [tuple(_size(file) for file in self._files(i)) for i in part]

    def _contents(self, part: range) -> bytes:
        files = (file for i in part for file in self._files(i))
        return b"".join(map(_content_hash, files))


class ShardedSource(Source):
    """The samples of a split that lies in tar shards.

    Args:
        shards: images and their labels.
    """

    def __init__(self, shards: Shards) -> None:
        super().__init__(shards.classes, shards.folder, (), labels=None, masks=None, ignored=())
        self.shards = shards

    def __len__(self) -> int:
        return len(self.shards)

    def _sample(self, i: int) -> Sample:
        return Sample(image=self.shards[i], label=int(self.shards.labels[i]), mask=None)

    def total_bytes(self) -> int:
        """Of all shards."""
        return self.shards.total_bytes

    def damaged(self) -> list[str]:
        """Shards whose SHA-256 is not the index's."""
        return self.shards.damaged()

    @cached_property
    def _digest(self) -> str:
        whole = self.shards.total_bytes <= HASHED_BYTES
        with ThreadPoolExecutor(THREADS) as pool:
            sums = list(pool.map(self.shards.sum_of, range(len(self.shards.files)) if whole else []))
        total = hashlib.sha256(" ".join([self.shards.index_sha256, *sums]).encode())
        return f"{'content' if whole else 'listing'}:{total.hexdigest()}"


def _size(file: str) -> int:
    """Bytes of a file, -1 for an annotated image that is not there: the check names it."""
    try:
        return os.stat(file).st_size  # noqa: PTH116  # a million of them
    except OSError:  # absent, or a name that no file can have
        return -1


def _content_hash(file: str) -> bytes:
    try:
        return hashlib.sha256(Path(file).read_bytes()).digest()
    except OSError:
        return b""


def _mask_name(image_name: str) -> str:
    return f"{image_name.rpartition('.')[0]}.png"
