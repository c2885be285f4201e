"""Tar shards with an index, as `pipelines/pack.py` writes them."""

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
    """Images and their labels inside tar files."""

    def __init__(self, data: TarShards, images: Path, listing: Listing) -> None:
        super().__init__(data, images, listing)
        self.shards = Shards(images, listing)

    @classmethod
    def find(cls, data: TarShards, split: SplitName, base: Path, *, alone: bool = False) -> Self:
        """Read the indexes of both splits, which must have the same classes, or of one `alone`."""
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
        """The shards."""
        return [(self.images, self.shards.file_names)]

    def rows(self, i: int) -> list[int]:
        """The shard that holds image i."""
        return [self.shards.shard_of(i)]

    def image_sums(self, deadline: float | None = None) -> NDArray[np.uint8]:
        """SHA-256 of each image inside the shards; reads all of them, with a cache once."""
        stamps = self.read_contents().stamps[np.searchsorted(self.shards.ends, np.arange(len(self)), side="right")]
        kept = self.cache.load(f"{self.images}#images") if self.cache else None
        if kept is not None and kept[0] == self.names and np.array_equal(kept[1], stamps) and stamps[:, 2].all():
            return kept[2]

        progress = Progress(f"images inside the shards of {self.images}", len(self), "images", deadline)

        def of(part: range) -> NDArray[np.uint8]:
            progress.add(len(part))
            return np.array([_member_sum(self.shards[i]) for i in part], np.uint8).reshape(-1, SUM_BYTES)

        with ThreadPoolExecutor(THREADS) as pool:
            sums = np.concatenate(list(pool.map(of, self.parts())))
        if self.cache:
            self.cache.save(f"{self.images}#images", self.names, stamps, sums)
        return sums

    def damaged_files(self) -> list[str]:
        """Shards whose SHA-256 is not the index's."""
        sums = self.read_contents().sums
        return [str(self.images / name) for (name, _, packed), found in zip(self.shards.files, sums, strict=True)
                if found.tobytes().hex() != packed]  # fmt: skip

    def _digest(self, contents: Contents) -> str:
        sums = [each.tobytes().hex() if each.any() else "" for each in contents.sums]
        return f"content:{hashlib.sha256(' '.join([self.shards.index_sha256, *sums]).encode()).hexdigest()}"


def _member_sum(member: Member) -> NDArray[np.uint8]:
    try:
        return np.frombuffer(hashlib.sha256(member.read_bytes()).digest(), np.uint8)
    except OSError:
        return np.zeros(SUM_BYTES, np.uint8)
