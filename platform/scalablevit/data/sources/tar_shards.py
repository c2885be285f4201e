"""The source of tar shards with an index, as `scalablevit pack` writes them."""

import hashlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Self

import numpy as np
from numpy.typing import NDArray

from scalablevit.config.data import SplitName, TarShards
from scalablevit.data.contents import SUM_BYTES, THREADS, Contents
from scalablevit.data.progress import Progress
from scalablevit.data.shards import Member, Shards, open_shards
from scalablevit.data.sources.base import Sample, Source
from scalablevit.data.sources.class_names import check_names, classes_differ
from scalablevit.data.sources.files import require_folder
from scalablevit.data.sources.listing import Listing, Names


class TarShardsSource(Source):
    """Images with one class each, inside tar files.

    Args:
        data: the recipe's data section.
        images: folder of the shards and their index.
        listing: of `open_shards`.
    """

    def __init__(self, data: TarShards, images: Path, listing: Listing) -> None:
        super().__init__(data, images, listing)
        self.shards = Shards(images, listing)

    @classmethod
    def find(cls, data: TarShards, split: SplitName, base: Path, *, alone: bool = False) -> Self:
        """Return the source of a split; read the indices of both splits, unless `alone`.

        Args:
            data: the recipe's data section.
            split: which split.
            base: folder of the data set.
            alone: read this split's index only; otherwise both splits must have the same classes.

        Raises:
            UserError: a folder or an index is missing or wrong, or the splits' classes differ.
        """
        folders = {name: require_folder(base, part.images, f"data.{name}.images")
                   for name, part in (("train", data.train), ("val", data.val))
                   if not alone or name == split}  # fmt: skip
        listings = {name: open_shards(folder, f"data.{name}.images") for name, folder in folders.items()}
        classes = {name: listing.facts["classes"] for name, listing in listings.items()}
        if not alone and classes["train"] != classes["val"]:
            raise classes_differ(folders["train"], folders["val"], classes["train"], classes["val"])
        check_names(classes[split], f"data.{split}.images")
        return cls(data, folders[split], listings[split])

    def _sample(self, i: int) -> Sample:
        return Sample(image=self.shards[i], label=int(self.shards.labels[i]), mask=None)

    def groups(self) -> list[tuple[Path, Names]]:
        """Return folder and names of the shards."""
        return [(self.images, self.shards.file_names)]

    def rows(self, i: int) -> list[int]:
        """Return the row of `contents` of the shard with image i, in a list."""
        return [self.shards.shard_of(i)]

    def image_sums(self, deadline: float | None = None) -> NDArray[np.uint8]:
        """Return the SHA-256 of each image inside the shards, (samples, 32); zeros where it cannot be read.

        All images are read, unless the cache has their sums and the stamps of all shards are trusted and unchanged.

        Args:
            deadline: time of `time.monotonic()`, in seconds; None: no deadline.

        Raises:
            OutOfTime: the deadline has passed.
        """
        stamps = self.read_contents().stamps[np.searchsorted(self.shards.ends, np.arange(len(self)), side="right")]
        cached = self.cache.load(f"{self.images}#images") if self.cache else None
        if cached is not None:
            names, known_stamps, known_sums = cached
            if names == self.names and np.array_equal(known_stamps, stamps) and stamps[:, 2].all():
                return known_sums

        progress = Progress(f"images inside the shards of {self.images}", len(self), "images", deadline)

        def sums_of(part: range) -> NDArray[np.uint8]:
            progress.add(len(part))
            return np.array([_member_sum(self.shards[i]) for i in part], np.uint8).reshape(-1, SUM_BYTES)

        with ThreadPoolExecutor(THREADS) as pool:
            sums = np.concatenate(list(pool.map(sums_of, self.parts())))
        if self.cache:
            self.cache.save(f"{self.images}#images", self.names, stamps, sums)
        return sums

    def damaged_files(self) -> list[str]:
        """Return paths of the shards whose SHA-256 is not that of the index."""
        sums = self.read_contents().sums
        return [str(self.images / name) for (name, _, indexed), actual in zip(self.shards.files, sums, strict=True)
                if actual.tobytes().hex() != indexed]  # fmt: skip

    def _digest(self, contents: Contents) -> str:
        sums = [row.tobytes().hex() if row.any() else "" for row in contents.sums]
        return f"content:{hashlib.sha256(' '.join([self.shards.index_sha256, *sums]).encode()).hexdigest()}"


def _member_sum(member: Member) -> NDArray[np.uint8]:
    """Return an image's SHA-256, (32,); zeros where it cannot be read."""
    try:
        return np.frombuffer(hashlib.sha256(member.read_bytes()).digest(), np.uint8)
    except OSError:
        return np.zeros(SUM_BYTES, np.uint8)
