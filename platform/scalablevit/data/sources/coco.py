"""Images with instances in COCO's json format."""

from collections.abc import Sequence
from pathlib import Path
from typing import Self

import numpy as np
from numpy.typing import NDArray

from scalablevit.config.data import CocoInstances, SplitName
from scalablevit.config.errors import UserError
from scalablevit.data.coco import Annotations, read_annotations
from scalablevit.data.decoding import BadSample
from scalablevit.data.labels import annotated_size_mismatch
from scalablevit.data.sources.annotated_names import ImageFiles
from scalablevit.data.sources.base import IGNORED, Example, Sample, Source
from scalablevit.data.sources.class_names import refuse_alike
from scalablevit.data.sources.files import is_inside, is_special, list_files, refuse_links, require_folder
from scalablevit.data.sources.listing import Listing, Names


class CocoSource(Source):
    """Images and the objects in them."""

    def __init__(self, data: CocoInstances, images: Path, listing: Listing) -> None:
        super().__init__(data, images, listing)
        self.annotations: Annotations = Annotations.from_listing(listing)

    @classmethod
    def find(cls, data: CocoInstances, split: SplitName, base: Path, *, alone: bool = False) -> Self:  # noqa: ARG003
        """Read the annotations of a split and hold them against its folder of images."""
        part = data.train if split == "train" else data.val
        where = f"data.{split}.annotations"
        folder = require_folder(base, part.images, f"data.{split}.images")
        file = base / (part.annotations or "")
        if not is_inside(file, base.resolve()):
            raise UserError(f"{file} leads out of {base}", where=where, fix="name a file inside data.root")
        found = list_files(folder, base)
        refuse_links(found.links, base, f"data.{split}.images")
        annotations = read_annotations(
            file, where, masks=data.instance_masks, max_bad_fraction=data.max_bad_fraction,
            files=ImageFiles(folder, base, found.files),
        )  # fmt: skip
        refuse_alike([name for _, name in annotations.categories], where)
        annotated = set(annotations.names)
        inside = base.resolve()
        unlisted = annotated.difference(found.files)  # absent or hidden: not looked at yet
        strange = (name for name in unlisted if not is_inside(folder / name, inside) or is_special(folder / name))
        refuse_links(sorted(str(folder / name) for name in strange), base, where)
        facts = {
            "classes": [name for _, name in annotations.categories],
            **annotations.facts(),
        }
        ignored = Names.of(name for name in found.files if name not in annotated)
        return cls(data, folder, Listing(facts, annotations.arrays() | ignored.arrays(IGNORED)))

    def _relabelled(self, numbers: NDArray[np.int64], classes: Sequence[str]) -> Listing:
        listing = super()._relabelled(numbers, classes)
        listing.arrays["objects_labels"] = numbers[self.annotations.labels]
        listing.facts["categories"] = [self.annotations.categories[int(i)] for i in np.argsort(numbers)]
        return listing

    @property
    def notes(self) -> tuple[str, ...]:
        """What cleaning the annotations and matching file names did, a line each."""
        return self.annotations.notes

    def read(self, i: int) -> Example:
        """Decode image i; its objects are those of the annotations."""
        path, objects = self.images / self.names[i], self.annotations.of_image(i)
        self.refuse_changed(i)
        image = self._image(path)
        if image.shape[:2] != objects.size:
            raise BadSample(str(path), annotated_size_mismatch(image.shape, objects.size))
        return Example(image, instances=objects)

    def _sample(self, i: int) -> Sample:
        return Sample(image=self.images / self.names[i], label=None, mask=None)
