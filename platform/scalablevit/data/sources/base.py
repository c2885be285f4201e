"""What every source is: the samples of a split in a fixed order, how one is read, and a digest of all."""

import hashlib
import os
from abc import abstractmethod
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Self, overload

import numpy as np
from numpy.typing import NDArray

from scalablevit.config.data import Data
from scalablevit.config.errors import UserError
from scalablevit.data.coco import Annotations
from scalablevit.data.decoding import mean_color, read_image
from scalablevit.data.instances import Instances
from scalablevit.data.names import alike
from scalablevit.data.shards import Member
from scalablevit.data.sources.files import first
from scalablevit.data.sources.listing import Listing, Names

HASHED_BYTES = 2 * 1024**3
"""Up to this total size a digest covers contents, above it names and sizes."""
_SHOWN_CLASSES = 20
THREADS = 16
"""For listing and hashing: waiting for storage, mostly."""


@dataclass(frozen=True, slots=True)
class Sample:
    """One image and what is known about it."""

    image: Path | Member
    label: int | None
    mask: Path | None


@dataclass(frozen=True, slots=True)
class Example:
    """One sample as it is on disk, decoded and not yet transformed."""

    image: NDArray[np.uint8]
    """(height, width, 3), RGB."""
    label: int | None = None
    """Class of the image."""
    mask: NDArray[np.uint8] | None = None
    """(height, width) labels, 255 ignored."""
    instances: Instances | None = None
    """Objects in the image's pixels."""


class Source(Sequence[Sample]):
    """The samples of one split, in a fixed order.

    Args:
        data: the recipe's data section.
        images: folder that names are relative to.
        listing: what the source's module found there.
    """

    annotations: Annotations | None = None
    """The images' instances (COCO)."""

    def __init__(self, data: Data, images: Path, listing: Listing) -> None:
        self.data = data
        self.images = images
        self.listing = listing
        self.names = Names.in_listing(listing)

    @property
    def classes(self) -> tuple[str, ...]:
        """Class names; labels and mask ids count from 0 in this order."""
        return tuple(self.listing.facts["classes"])

    @property
    def ignored(self) -> tuple[str, ...]:
        """Files left out because they are no images by their names, or not annotated."""
        return tuple(self.listing.facts["ignored"])

    @property
    def notes(self) -> tuple[str, ...]:
        """What cleaning the annotations did, a line each."""
        return ()

    def __len__(self) -> int:
        return len(self.names)

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

    def read(self, i: int) -> Example:
        """Decode sample i.

        Raises:
            BadSample: one of its files is missing or cannot be decoded, or they do not fit each other.
        """
        sample = self[i]
        return Example(self._image(sample.image), sample.label)

    def _image(self, path: Path | Member) -> NDArray[np.uint8]:
        return read_image(path, self.data.max_pixels, mean_color(self.data.mean))

    def with_classes(self, classes: Sequence[str]) -> Self:
        """Return the same samples with labels that count in the order of `classes`, as a model's outputs do.

        Raises:
            UserError: the classes of the data have other names.
        """
        if self.classes == tuple(classes):
            return self
        if set(self.classes) != set(classes):
            raise _other_classes(self.classes, classes)
        numbers = np.array([classes.index(name) for name in self.classes], np.int64)
        return self._with_listing(self._relabelled(numbers, classes))

    def _relabelled(self, numbers: NDArray[np.int64], classes: Sequence[str]) -> Listing:
        """Return the listing with `numbers[label]` in place of each label."""
        arrays = dict(self.listing.arrays)
        if "labels" in arrays:
            arrays["labels"] = numbers[arrays["labels"]].astype(arrays["labels"].dtype)
        return Listing({**self.listing.facts, "classes": list(classes)}, arrays)

    def _with_listing(self, listing: Listing) -> Self:
        return type(self)(self.data, self.images, listing)

    @abstractmethod
    def _sample(self, i: int) -> Sample: ...

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
        labels = self.listing.arrays.get("labels")
        with ThreadPoolExecutor(THREADS) as pool:
            sizes = [size for sizes in pool.map(self._sizes, parts) for size in sizes]
            whole = sum(map(sum, sizes)) <= HASHED_BYTES
            total = hashlib.sha256(repr(self.classes).encode())
            if self.annotations is not None:
                total.update(self.annotations.digest.encode())
            for i, size in enumerate(sizes):
                label = -1 if labels is None else int(labels[i])
                total.update(b"\0".join([self.names.encoded(i), str((label, *size)).encode(), b""]))
            for content in pool.map(self._contents, parts if whole else []):
                total.update(content)
        return f"{'content' if whole else 'listing'}:{total.hexdigest()}"

    def _files(self, i: int) -> list[str]:
        return [f"{self.images}/{self.names[i]}"]

    def _sizes(self, part: range) -> list[tuple[int, ...]]:
        return [tuple(_size(file) for file in self._files(i)) for i in part]

    def _contents(self, part: range) -> bytes:
        files = (file for i in part for file in self._files(i))
        return b"".join(map(_content_hash, files))


def _other_classes(found: Sequence[str], wanted: Sequence[str]) -> UserError:
    differences = [
        f"only the {owner} has {first(sorted(names))}"
        for owner, names in (("data", set(found) - set(wanted)), ("model", set(wanted) - set(found)))
        if names
    ]
    if twins := alike({*found}.symmetric_difference(wanted)):
        differences.append(f"equal up to Unicode form (NFC): {first(twins)}")
    return UserError(
        f"the data has the classes {first(found, _SHOWN_CLASSES)}; the model has {first(wanted, _SHOWN_CLASSES)}: "
        f"{'; '.join(differences)}",
        where="data",
        fix="name data with the model's classes, in any order",
    )


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
