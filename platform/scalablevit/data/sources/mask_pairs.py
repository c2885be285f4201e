"""Images and masks under the same relative names."""

from collections import Counter
from pathlib import Path
from typing import Self

import numpy as np
from numpy.typing import NDArray

from scalablevit.config.data import MaskPairs, SplitName
from scalablevit.config.errors import UserError
from scalablevit.data.decoding import BadSample, read_mask
from scalablevit.data.labels import label_table, size_mismatch, to_labels
from scalablevit.data.sources.base import Example, Sample, Source
from scalablevit.data.sources.class_names import class_names
from scalablevit.data.sources.files import (
    IMAGE_SUFFIXES,
    existing_folder,
    first,
    list_files,
    refuse_links,
    stem,
    suffix,
)
from scalablevit.data.sources.listing import Listing, Names


class MaskPairsSource(Source):
    """Images with a PNG of class ids of the same relative name each.

    Args:
        masks: folder of the PNGs.
    """

    def __init__(self, data: MaskPairs, images: Path, masks: Path, listing: Listing) -> None:
        super().__init__(data, images, listing)
        self.masks = masks
        self.table = label_table(data, self.classes)

    @classmethod
    def find(cls, data: MaskPairs, split: SplitName, base: Path) -> Self:
        """Find the images of a split and the mask of each."""
        part = data.train if split == "train" else data.val
        classes = class_names(data.classes, base)
        label_table(data, classes)  # refuses impossible combinations of classes and ignored values
        images = existing_folder(base, part.images, f"data.{split}.images")
        masks = existing_folder(base, part.masks or "", f"data.{split}.masks")
        image_files, mask_files = list_files(images, base), list_files(masks, base)
        refuse_links([*image_files.links, *mask_files.links], base, f"data.{split}")
        names = [name for name in image_files.files if suffix(name) in IMAGE_SUFFIXES]
        if not names:
            raise UserError(
                f"no images in {images}", where=f"data.{split}.images", fix="name the folder that holds them"
            )
        pngs = [name for name in mask_files.files if name.endswith(".png")]
        _check_pairs(names, pngs, images, masks, f"data.{split}")
        ignored = [
            *(name for name in image_files.files if suffix(name) not in IMAGE_SUFFIXES),
            *(name for name in mask_files.files if not name.endswith(".png")),
        ]
        listing = Listing({"classes": classes, "ignored": ignored}, Names.of(names).arrays())
        return cls(data, images, masks, listing)

    def read(self, i: int) -> Example:
        """Decode image i and its mask."""
        sample = self._sample(i)
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
        name = self.names[i]
        return Sample(image=self.images / name, label=None, mask=self.masks / _mask_name(name))

    def _files(self, i: int) -> list[str]:
        name = self.names[i]
        return [f"{self.images}/{name}", f"{self.masks}/{_mask_name(name)}"]


def _mask_name(image_name: str) -> str:
    return f"{stem(image_name)}.png"


def _check_pairs(images: list[str], masks: list[str], image_folder: Path, mask_folder: Path, where: str) -> None:
    """Every image has one mask and every mask one image."""
    stems = {stem(name) for name in images}
    if len(stems) < len(images):
        counts = Counter(map(stem, images))
        twice = [name for name in images if counts[stem(name)] > 1]
        raise UserError(
            f"images of {image_folder} share a name and so a mask: {first(twice)}",
            where=f"{where}.images",
            fix="rename or remove one of each",
        )
    mask_stems = {stem(name) for name in masks}
    problems = []
    if lonely := [name for name in images if stem(name) not in mask_stems]:
        problems.append(f"{len(lonely)} images of {image_folder} have no mask in {mask_folder}: {first(lonely)}")
    if lonely := [name for name in masks if stem(name) not in stems]:
        problems.append(f"{len(lonely)} masks of {mask_folder} have no image in {image_folder}: {first(lonely)}")
    if problems:
        raise UserError(
            "; ".join(problems),
            where=f"{where}.masks",
            fix="a mask is a PNG with its image's relative name (a/b.jpg and a/b.png)",
        )
