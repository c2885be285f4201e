"""The source of images with a label mask each, under the same relative name."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from scalablevit.config.data import MaskPairs, Split, SplitName
from scalablevit.config.errors import UserError
from scalablevit.data.decoding import BadSample, read_mask
from scalablevit.data.labels import label_table, size_mismatch, to_labels
from scalablevit.data.sources.base import IGNORED, Example, Sample, Source
from scalablevit.data.sources.class_names import class_names
from scalablevit.data.sources.files import (
    IMAGE_SUFFIXES,
    describe_skipped,
    list_files,
    refuse_links,
    require_folder,
    suffix,
)
from scalablevit.data.sources.listing import Listing, Names
from scalablevit.data.sources.mask_names import match_masks

_MASKS = "mask_"
"""Prefix of the names of the listing's arrays that hold the masks' names."""


class MaskPairsSource(Source):
    """Images with a mask of class ids each.

    Args:
        data: the recipe's data section.
        images: folder of the images.
        masks: folder of the masks.
        listing: of the files in both.
    """

    data: MaskPairs

    def __init__(self, data: MaskPairs, images: Path, masks: Path, listing: Listing) -> None:
        super().__init__(data, images, listing)
        self.masks = masks
        self.mask_names = Names.from_listing(listing, _MASKS)
        self.table = label_table(data, self.classes)
        if (new_indices := listing.facts.get("class_numbers")) is not None:
            is_class = self.table < len(new_indices)
            self.table[is_class] = np.array(new_indices, np.uint8)[self.table[is_class]]

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle the constructor's arguments."""
        return type(self), (self.data, self.images, self.masks, self.listing)

    @classmethod
    def of(cls, data: MaskPairs, base: Path, part: Split, listing: Listing) -> Self:  # type: ignore[override]
        """Return the source of a stored listing, without reading the folders."""
        return cls(data, base / part.images, base / (part.masks or ""), listing)

    @classmethod
    def find(cls, data: MaskPairs, split: SplitName, base: Path, *, alone: bool = False) -> Self:  # noqa: ARG003
        """Find the images of a split and the mask of each.

        Args:
            data: the recipe's data section.
            split: which split.
            base: folder of the data set.
            alone: has no effect: the recipe names the classes.

        Raises:
            UserError: there are fewer than two classes, no images, or images and masks do not match.
        """
        part = data.train if split == "train" else data.val
        classes = class_names(data.classes, base)
        if len(classes) < 2:
            raise UserError(
                f"masks need at least 2 classes, not {len(classes)} ({', '.join(classes)})",
                where="data.classes",
                fix="name the background too, as the class of its mask value",
            )
        label_table(data, classes)  # refuses impossible combinations of classes and ignored values
        images = require_folder(base, part.images, f"data.{split}.images")
        masks = require_folder(base, part.masks or "", f"data.{split}.masks")
        image_files, mask_files = list_files(images, base), list_files(masks, base)
        refuse_links([*image_files.links, *mask_files.links], base, f"data.{split}")
        names = [name for name in image_files.files if suffix(name) in IMAGE_SUFFIXES]
        if not names:
            raise UserError(
                f"no images in {images}; {describe_skipped(image_files.files)}",
                where=f"data.{split}.images",
                fix="name the folder that holds them",
            )
        matched = match_masks(names, mask_files.files, images, masks, f"data.{split}")
        used = set(matched)
        ignored = [
            *image_files.hidden,
            *mask_files.hidden,
            *(name for name in image_files.files if suffix(name) not in IMAGE_SUFFIXES),
            *(name for name in mask_files.files if name not in used),
        ]
        arrays = {**Names.of(names).arrays(), **Names.of(matched).arrays(_MASKS)}
        return cls(data, images, masks, Listing({"classes": classes}, {**arrays, **Names.of(ignored).arrays(IGNORED)}))

    def _relabel(self, new_indices: NDArray[np.int64], classes: Sequence[str]) -> Listing:
        listing = super()._relabel(new_indices, classes)
        earlier = self.listing.facts.get("class_numbers", range(len(classes)))
        listing.facts["class_numbers"] = [int(new_indices[index]) for index in earlier]
        return listing

    def _with_listing(self, listing: Listing) -> Self:
        return type(self)(self.data, self.images, self.masks, listing)

    def read(self, i: int) -> Example:
        """Return image i, decoded, with its mask as labels.

        Raises:
            BadSample: image or mask cannot be decoded, their sizes differ, or the mask has unknown values.
            ChangedSample: the contents of one of them have changed.
        """
        sample = self._sample(i)
        self.refuse_changed(i)
        image = self._image(sample.image)
        return Example(image, mask=self._labels(str(sample.mask), image))

    def _labels(self, path: str, image: NDArray[np.uint8]) -> NDArray[np.uint8]:
        mask = read_mask(Path(path), self.data.max_pixels)
        if mask.shape != image.shape[:2]:
            raise BadSample(path, size_mismatch(mask.shape, image.shape[:2]))
        try:
            return to_labels(mask, self.table)
        except ValueError as error:
            raise BadSample(path, str(error)) from error

    def _sample(self, i: int) -> Sample:
        return Sample(image=self.images / self.names[i], label=None, mask=self.masks / self.mask_names[i])

    def groups(self) -> list[tuple[Path, Names]]:
        """Return folder and names of the images, and of the masks."""
        return [(self.images, self.names), (self.masks, self.mask_names)]
