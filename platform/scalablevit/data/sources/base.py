"""The base of sources: the samples of a split in a fixed order, how one is read, and a digest of all."""

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
"""Prefix of the listing's arrays with the names of ignored files."""
CHANGED = "its contents are not those that the run began with"
"""Reason of a `ChangedSample`."""
_NAMED_CLASSES = 20


@dataclass(frozen=True, slots=True)
class Sample:
    """The files and the label of one sample."""

    image: Path | Member
    label: int | NDArray[np.uint8] | None
    """As in `Example`; None: the label is not a class."""
    mask: Path | None
    """None: there is no mask."""


@dataclass(frozen=True, slots=True)
class Example:
    """One decoded sample, before any transform."""

    image: NDArray[np.uint8]
    """(height, width, 3), RGB."""
    label: int | NDArray[np.uint8] | None = None
    """Class index of the image; or, for users' own tasks, (classes,): 1 for each class that it has, else 0."""
    mask: NDArray[np.uint8] | None = None
    """(height, width) labels, 255 ignored."""
    instances: Instances | None = None
    """Annotated objects, in the image's pixels."""


class Source(Sequence[Sample]):
    """The samples of one split, in a fixed order.

    Args:
        data: the recipe's data section.
        images: folder that names are relative to.
        listing: of the files there.
    """

    annotations: Annotations | None = None
    """The images' instances; None: the source is not COCO."""
    cache: ContentCache | None = None
    """Cache of the sums that `read_contents` computes; None: it was not given one."""

    def __init__(self, data: Data, images: Path, listing: Listing) -> None:
        self.data = data
        self.images = images
        self.listing = listing
        self.names = Names.from_listing(listing)
        known = all(name in listing.arrays for name in CONTENTS)
        self.contents = Contents(**{name: listing.arrays[name] for name in CONTENTS}) if known else None

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle the constructor's arguments: loader processes map the arrays of a listing on disk, without a copy."""
        return type(self), (self.data, self.images, self.listing)

    @classmethod
    def of(cls, data: Data, base: Path, part: Split, listing: Listing) -> Self:
        """Return the source of a stored listing, without reading the folders.

        Args:
            data: the recipe's data section.
            base: folder of the data set.
            part: the split's section.
            listing: of the split.
        """
        return cls(data, base / part.images, listing)

    @property
    def classes(self) -> tuple[str, ...]:
        """Return the class names, by class index from 0."""
        return tuple(self.listing.facts["classes"])

    @property
    def ignored(self) -> tuple[str, ...]:
        """Return names of files that are ignored because they are no images by their names, or not annotated."""
        return tuple(Names.from_listing(self.listing, IGNORED))

    @property
    def notes(self) -> tuple[str, ...]:
        """Return what cleaning the annotations changed, one line each."""
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
        """Return sample i, decoded.

        Raises:
            BadSample: one of its files is missing or cannot be decoded, or image and annotation do not fit.
            ChangedSample: the contents of one of them have changed since `read_contents`.
        """
        sample = self[i]
        self.refuse_changed(i)
        return Example(self._image(sample.image), sample.label)

    def _image(self, path: Path | Member) -> NDArray[np.uint8]:
        return read_image(path, self.data.max_pixels, mean_color(self.data.mean))

    def with_classes(self, classes: Sequence[str]) -> Self:
        """Return the same samples with class indices in the order of `classes`, which is that of a model's outputs.

        Raises:
            UserError: the data has classes of other names.
        """
        if self.classes == tuple(classes):
            return self
        if set(self.classes) != set(classes):
            raise _other_classes(self.classes, classes)
        new_indices = np.array([classes.index(name) for name in self.classes], np.int64)
        return self._with_listing(self._relabel(new_indices, classes))

    def _relabel(self, new_indices: NDArray[np.int64], classes: Sequence[str]) -> Listing:
        """Return the listing with new class indices; where samples have several classes, columns are reordered.

        Args:
            new_indices: (classes,), by old index.
            classes: names in the new order.
        """
        arrays = dict(self.listing.arrays)
        if "labels" in arrays and arrays["labels"].ndim == 2:
            arrays["labels"] = arrays["labels"][:, np.argsort(new_indices)]
        elif "labels" in arrays:
            arrays["labels"] = new_indices[arrays["labels"]].astype(arrays["labels"].dtype)
        facts = {**self.listing.facts, "classes": list(classes)}
        facts.pop("digest", None)
        return Listing(facts, arrays)

    def _with_listing(self, listing: Listing) -> Self:
        return type(self)(self.data, self.images, listing)

    @abstractmethod
    def _sample(self, i: int) -> Sample: ...

    def parts(self, size: int = 256) -> list[range]:
        """Return all sample indices in parts, as tasks for threads: a task for each of a million samples costs more."""
        return [range(start, min(start + size, len(self))) for start in range(0, len(self), size)]

    def groups(self) -> list[tuple[Path, Names]]:
        """Return the samples' files in groups of equal length, such as images and masks: folder and names of each."""
        return [(self.images, self.names)]

    def rows(self, i: int) -> list[int]:
        """Return the rows of `contents` of the files of sample i."""
        return [len(self) * group + i for group in range(len(self.groups()))]

    def file(self, row: int) -> str:
        """Return the path of the file of a row of `contents`."""
        group, index = divmod(row, len(self.groups()[0][1]))
        folder, names = self.groups()[group]
        return f"{folder}/{names[index]}"

    def read_contents(
        self, cache: ContentCache | None = None, what: str = "data", deadline: float | None = None
    ) -> Contents:
        """Return sizes, times and sums of all files, computed once; after that `read` refuses a file that has changed.

        Args:
            cache: stores sums, so that only new files are read.
            what: begins lines of progress, such as `data.train`.
            deadline: time of `time.monotonic()`, in seconds; None: no deadline.

        Raises:
            OutOfTime: the deadline has passed; the sums until then are in the cache.
        """
        contents = self.contents
        if contents is None:
            self.cache = cache
            parts = [
                read_contents_of(folder, names, cache, what, deadline, f"{what}.{index}")
                for index, (folder, names) in enumerate(self.groups())
            ]
            contents = self.contents = Contents.concatenate(parts)
            self.listing.arrays |= {name: getattr(contents, name) for name in CONTENTS}
        return contents

    def digest(self) -> str:
        """Return `content:<sha256>` of names, labels, sizes, contents and classes; folders' paths do not count."""
        contents = self.read_contents()
        if "digest" not in self.listing.facts:
            self.listing.facts["digest"] = self._digest(contents)
        return str(self.listing.facts["digest"])

    def image_sums(self, deadline: float | None = None) -> NDArray[np.uint8]:  # shards have to be read
        """Return the SHA-256 of each image's file, (samples, 32); zeros where it cannot be read.

        Args:
            deadline: time of `time.monotonic()`, in seconds; None: no deadline.

        Raises:
            OutOfTime: the deadline has passed.
        """
        return self.read_contents().sums[: len(self)]

    def total_bytes(self) -> int:
        """Return the bytes of all files of the samples."""
        return sum(max(0, file_stamp(f"{folder}/{name}")[0]) for folder, names in self.groups() for name in names)

    def damaged_files(self) -> list[str]:
        """Return paths of files whose sums are not those of the index; only shards have an index."""
        return []

    def refuse_changed(self, i: int) -> None:
        """Refuse a sample if the contents of one of its files have changed since `read_contents`.

        Raises:
            ChangedSample: with the file's path.
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


def _other_classes(of_data: Sequence[str], of_model: Sequence[str]) -> UserError:
    differences = [
        f"only the {owner} has {format_first(sorted(names))}"
        for owner, names in (("data", set(of_data) - set(of_model)), ("model", set(of_model) - set(of_data)))
        if names
    ]
    if twins := describe_lookalikes({*of_data}.symmetric_difference(of_model)):
        differences.append(f"equal up to Unicode form (NFC): {format_first(twins)}")
    return UserError(
        f"the data has the classes {format_first(of_data, _NAMED_CLASSES)}; "
        f"the model has {format_first(of_model, _NAMED_CLASSES)}: {'; '.join(differences)}",
        where="data",
        fix="name data with the model's classes, in any order",
    )
