"""The source of images with instances in COCO's JSON format."""

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
        """Read the annotations of a split, and match them with its folder of images.

        Args:
            data: the recipe's data section.
            split: which split.
            base: folder of the data set.
            alone: has no effect: the splits are compared later.

        Raises:
            UserError, UserErrors: a folder or the file is missing, annotations are wrong, or links lead out of `base`.
        """
        part = data.train if split == "train" else data.val
        where = f"data.{split}.annotations"
        folder = require_folder(base, part.images, f"data.{split}.images")
        file = base / (part.annotations or "")
        if not is_inside(file, base.resolve()):
            raise UserError(f"{file} leads out of {base}", where=where, fix="name a file inside data.root")
        listed = list_files(folder, base)
        refuse_links(listed.links, base, f"data.{split}.images")
        annotations = read_annotations(
            file, where, masks=data.instance_masks, max_bad_fraction=data.max_bad_fraction,
            files=ImageFiles(folder, base, listed.files),
        )  # fmt: skip
        refuse_alike([name for _, name in annotations.categories], where)
        annotated = set(annotations.names)
        inside = base.resolve()
        unlisted = annotated.difference(listed.files)  # absent or hidden, so not checked yet
        strange = (name for name in unlisted if not is_inside(folder / name, inside) or is_special(folder / name))
        refuse_links(sorted(str(folder / name) for name in strange), base, where)
        facts = {
            "classes": [name for _, name in annotations.categories],
            **annotations.facts(),
        }
        ignored = Names.of(name for name in (*listed.hidden, *listed.files) if name not in annotated)
        return cls(data, folder, Listing(facts, annotations.arrays() | ignored.arrays(IGNORED)))

    def _relabel(self, new_indices: NDArray[np.int64], classes: Sequence[str]) -> Listing:
        listing = super()._relabel(new_indices, classes)
        listing.arrays["objects_labels"] = new_indices[self.annotations.labels]
        listing.facts["categories"] = [self.annotations.categories[int(i)] for i in np.argsort(new_indices)]
        return listing

    @property
    def notes(self) -> tuple[str, ...]:
        """Return what cleaning the annotations and matching file names changed, one line each."""
        return self.annotations.notes

    def read(self, i: int) -> Example:
        """Return image i, decoded, with its annotated objects.

        Raises:
            BadSample: the image cannot be decoded, or has another size than in the annotations.
            ChangedSample: its contents have changed.
        """
        path, objects = self.images / self.names[i], self.annotations.of_image(i)
        self.refuse_changed(i)
        image = self._image(path)
        if image.shape[:2] != objects.size:
            raise BadSample(str(path), annotated_size_mismatch(image.shape, objects.size))
        return Example(image, instances=objects)

    def _sample(self, i: int) -> Sample:
        return Sample(image=self.images / self.names[i], label=None, mask=None)
