"""A table of images and their tags."""

import csv
from pathlib import Path
from typing import Self

import numpy as np

from image_tags.sections import TagTable
from scalablevit.config.data import SplitName
from scalablevit.config.errors import UserError
from scalablevit.data.sources.base import IGNORED, Sample, Source
from scalablevit.data.sources.files import require_folder
from scalablevit.data.sources.listing import Listing, Names


class TagTableSource(Source):
    """Images with tags, in the order of their table."""

    @classmethod
    def find(cls, data: TagTable, split: SplitName, base: Path, *, alone: bool = False) -> Self:
        """Read the table of a split."""
        part = data.train if split == "train" else data.val
        folder, table = require_folder(base, part.images, f"data.{split}.images"), base / str(part.annotations)
        if not table.is_file():
            raise UserError(
                f"no file {table}", where=f"data.{split}.annotations", fix="name a CSV file inside data.root"
            )
        with table.open(newline="", encoding="utf-8") as file:
            rows = [row for row in csv.reader(file) if row]
        labels = np.zeros((len(rows), len(data.tags)), np.uint8)
        for number, (name, *tags) in enumerate(rows):
            if name.startswith("/") or ".." in name.split("/"):
                raise UserError(f"{name!r} leads out of {folder}", where=str(table), fix="name files inside the folder")
            if unknown := set(tags) - set(data.tags):
                raise UserError(f"{name} has the tag {min(unknown)!r}", where=str(table), fix="add it to data.tags")
            labels[number, [data.tags.index(tag) for tag in tags]] = 1
        names, none = Names.of(row[0] for row in rows), Names.of([])
        arrays = {**names.arrays(), **none.arrays(IGNORED), "labels": labels}
        return cls(data, folder, Listing({"classes": data.tags}, arrays))

    def _sample(self, i: int) -> Sample:
        return Sample(image=self.images / self.names[i], label=self.listing.arrays["labels"][i], mask=None)
