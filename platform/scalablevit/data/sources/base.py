"""What every source is: the samples of a split in a fixed order, how one is read, and a digest of all."""

import hashlib
from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self, overload

import numpy as np
from numpy.typing import NDArray

from scalablevit.config.data import Data, Split
from scalablevit.config.errors import UserError
from scalablevit.data.coco import Annotations
from scalablevit.data.contents import SUM_BYTES, ContentCache, Contents, file_stamp, read_contents_of
from scalablevit.data.decoding import ChangedSample, mean_color, read_image
from scalablevit.data.instances import Instances
from scalablevit.data.names import describe_lookalikes
from scalablevit.data.shards import Member
from scalablevit.data.sources.files import format_first
from scalablevit.data.sources.listing import Listing, Names

CONTENTS = ("stamps", "sizes", "sums")
"""Arrays of a listing: the fields of `Contents`."""
IGNORED = "ignored_"
"""Prefix of the names of files that are left out, in a listing."""
CHANGED = "its contents are not those that the run began with"
_SHOWN_CLASSES = 20


@dataclass(frozen=True, slots=True)
class Sample:
    """One image and what is known about it."""

    image: Path | Member
    label: int | NDArray[np.uint8] | None
    """As in `Example`."""
    mask: Path | None


@dataclass(frozen=True, slots=True)
class Example:
    """One sample as it is on disk, decoded and not yet transformed."""

    image: NDArray[np.uint8]
    """(height, width, 3), RGB."""
    label: int | NDArray[np.uint8] | None = None
    """Class of the image; or, for users' own tasks, (classes,): 1 for each class that it has, else 0."""
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
    cache: ContentCache | None = None
    """Keeps what `look_at_contents` found."""

    def __init__(self, data: Data, images: Path, listing: Listing) -> None:
        self.data = data
        self.images = images
        self.listing = listing
        self.names = Names.from_listing(listing)
        known = all(name in listing.arrays for name in CONTENTS)
        self.contents = Contents(**{name: listing.arrays[name] for name in CONTENTS}) if known else None

    def __reduce__(self) -> tuple[Any, ...]:
        """Loading processes map the arrays of a listing that is on disk: nothing of it is copied."""
        return type(self), (self.data, self.images, self.listing)

    @classmethod
    def of(cls, data: Data, base: Path, part: Split, listing: Listing) -> Self:
        """Return the source of a listing that was made before.

        Args:
            data: the recipe's data section.
            base: folder of the data set.
            part: the split's section.
            listing: what was found there.
        """
        return cls(data, base / part.images, listing)

    @property
    def classes(self) -> tuple[str, ...]:
        """Class names; labels and mask ids count from 0 in this order."""
        return tuple(self.listing.facts["classes"])

    @property
    def ignored(self) -> tuple[str, ...]:
        """Files left out because they are no images by their names, or not annotated."""
        return tuple(Names.from_listing(self.listing, IGNORED))

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
            ChangedSample: one of them has other contents than when the data was looked at.
        """
        sample = self[i]
        self.refuse_changed(i)
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
        """Return the listing with `numbers[label]` in place of each label; of several a sample, columns move along."""
        arrays = dict(self.listing.arrays)
        if "labels" in arrays and arrays["labels"].ndim == 2:
            arrays["labels"] = arrays["labels"][:, np.argsort(numbers)]
        elif "labels" in arrays:
            arrays["labels"] = numbers[arrays["labels"]].astype(arrays["labels"].dtype)
        facts = {**self.listing.facts, "classes": list(classes)}
        facts.pop("digest", None)
        return Listing(facts, arrays)

    def _with_listing(self, listing: Listing) -> Self:
        return type(self)(self.data, self.images, listing)

    @abstractmethod
    def _sample(self, i: int) -> Sample: ...

    def parts(self, size: int = 256) -> list[range]:
        """All sample numbers in parts, for work in threads: a task for each of a million samples would cost more."""
        return [range(start, min(start + size, len(self))) for start in range(0, len(self), size)]

    def groups(self) -> list[tuple[Path, Names]]:
        """The files that the samples are made of: folders and the names in them, one or more of the same length."""
        return [(self.images, self.names)]

    def rows(self, i: int) -> list[int]:
        """Rows of `contents` that sample i is read from."""
        return [len(self) * group + i for group in range(len(self.groups()))]

    def file(self, row: int) -> str:
        """Path of a row of `contents`."""
        group, number = divmod(row, len(self.groups()[0][1]))
        folder, names = self.groups()[group]
        return f"{folder}/{names[number]}"

    def read_contents(
        self, cache: ContentCache | None = None, what: str = "data", deadline: float | None = None
    ) -> Contents:
        """Find out sizes, times and sums of all files; from then on `read` refuses a file that has changed.

        Args:
            cache: keeps sums, so that only new files are read.
            what: begins lines on progress, as `data.train`.
            deadline: `time.monotonic()`; None: as long as it takes.

        Raises:
            OutOfTime: the deadline has passed; what was read until then is kept in the cache.
        """
        found = self.contents
        if found is None:
            self.cache = cache
            parts = [
                read_contents_of(folder, names, cache, what, deadline, f"{what}.{number}")
                for number, (folder, names) in enumerate(self.groups())
            ]
            found = self.contents = Contents.concatenate(parts)
            self.listing.arrays |= {name: getattr(found, name) for name in CONTENTS}
        return found

    def digest(self) -> str:
        """`content:<sha256>` of names, labels, sizes, contents and classes; it does not depend on where they are."""
        contents = self.read_contents()
        if "digest" not in self.listing.facts:
            self.listing.facts["digest"] = self._digest(contents)
        return str(self.listing.facts["digest"])

    def image_sums(self, deadline: float | None = None) -> NDArray[np.uint8]:  # shards have to be read
        """SHA-256 of each image's file, (samples, 32); zeros where it cannot be read.

        Raises:
            OutOfTime: the deadline has passed.
        """
        return self.read_contents().sums[: len(self)]

    def total_bytes(self) -> int:
        """Of all files of the samples."""
        return sum(max(0, file_stamp(f"{folder}/{name}")[0]) for folder, names in self.groups() for name in names)

    def damaged_files(self) -> list[str]:
        """Files that are not what was packed, as far as sums tell; only shards have any."""
        return []

    def refuse_changed(self, i: int) -> None:
        """Refuse a sample of which a file has other contents than when the data was looked at.

        Raises:
            ChangedSample: with the file's name.
        """
        if self.contents is None:
            return
        for row in self.rows(i):
            if self.contents.has_changed(row, path := self.file(row)):
                raise ChangedSample(path, CHANGED)

    def _digest(self, contents: Contents) -> str:
        total = hashlib.sha256(repr(self.classes).encode())
        if self.annotations is not None:
            total.update(self.annotations.digest.encode())
        groups = len(self.groups())
        labels = self.listing.arrays.get("labels", np.full(len(self), -1)).tolist()
        sizes = contents.sizes.reshape(groups, -1).T.tolist()
        for i, label in enumerate(labels):
            total.update(b"%b\0%b\0" % (self.names.encoded(i), str((label, *sizes[i])).encode()))
        sums = contents.sums.reshape(groups, -1, SUM_BYTES).swapaxes(0, 1).reshape(-1, SUM_BYTES)
        total.update(sums[sums.any(axis=1)].tobytes())
        return f"content:{total.hexdigest()}"


def _other_classes(found: Sequence[str], wanted: Sequence[str]) -> UserError:
    differences = [
        f"only the {owner} has {format_first(sorted(names))}"
        for owner, names in (("data", set(found) - set(wanted)), ("model", set(wanted) - set(found)))
        if names
    ]
    if twins := describe_lookalikes({*found}.symmetric_difference(wanted)):
        differences.append(f"equal up to Unicode form (NFC): {format_first(twins)}")
    return UserError(
        f"the data has the classes {format_first(found, _SHOWN_CLASSES)}; "
        f"the model has {format_first(wanted, _SHOWN_CLASSES)}: {'; '.join(differences)}",
        where="data",
        fix="name data with the model's classes, in any order",
    )
