"""Tar shards with an index, as `pipelines/pack.py` writes them."""

import hashlib
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from pathlib import Path
from typing import Self

from scalablevit.config.data import SplitName, TarShards
from scalablevit.data.shards import Shards, open_shards
from scalablevit.data.sources.base import HASHED_BYTES, THREADS, Sample, Source
from scalablevit.data.sources.class_names import check_names, classes_differ
from scalablevit.data.sources.files import existing_folder
from scalablevit.data.sources.listing import Listing


class TarShardsSource(Source):
    """Images and their labels inside tar files."""

    def __init__(self, data: TarShards, images: Path, listing: Listing) -> None:
        super().__init__(data, images, listing)
        self.shards = Shards(images, listing)

    @classmethod
    def find(cls, data: TarShards, split: SplitName, base: Path, *, alone: bool = False) -> Self:
        """Read the indexes of both splits, which must have the same classes, or of one `alone`."""
        folders = {name: existing_folder(base, part.images, f"data.{name}.images")
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
