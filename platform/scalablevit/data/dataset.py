"""A key of the sampler to a sample ready for its batch, or to the reason why there is none."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NotRequired, TypedDict

import numpy as np
from numpy.typing import NDArray
from torch.utils.data import Dataset

from scalablevit.config.data import Data, MaskPairs
from scalablevit.data.coco import Annotations
from scalablevit.data.decoding import BadSample, read_image, read_mask
from scalablevit.data.instances import Instances, decoded
from scalablevit.data.labels import annotated_size_mismatch, label_table, size_mismatch, to_labels
from scalablevit.data.sampler import Key
from scalablevit.data.samples import Sample, Source
from scalablevit.data.transforms import augment, augment_instances, eval_transform, train_transform


class Item(TypedDict):
    """One sample."""

    image: NDArray[np.uint8]
    """(height, width, 3), RGB."""
    index: int
    """Number in the source."""
    label: NotRequired[int]
    """Class, for image folders."""
    mask: NotRequired[NDArray[np.uint8]]
    """(height, width) labels, 255 ignored, for mask pairs; in evaluation of the original size, not the image's."""
    boxes: NotRequired[NDArray[np.float32]]
    """(n, 4) x1, y1, x2, y2 in the image's pixels, for COCO in training; crowds are left out."""
    labels: NotRequired[NDArray[np.int64]]
    """(n,) classes of the boxes."""
    masks: NotRequired[NDArray[np.uint8]]
    """(n, height, width), of the boxes."""
    instances: NotRequired[Instances]
    """For COCO in evaluation: in pixels of the original image, whose size it carries."""


@dataclass(frozen=True, slots=True)
class Bad:
    """A sample that could not be read: it is counted and named, never replaced."""

    index: int
    path: str
    reason: str


class SampleDataset(Dataset[Item | Bad]):
    """Reads and transforms the samples of one split.

    Args:
        source: the split's samples.
        data: the recipe's data section.
        seed: the recipe's seed.
        train: augment (training split) or only prepare (evaluation).
    """

    def __init__(self, source: Source, data: Data, seed: int, *, train: bool) -> None:
        self.source = source
        self.seed = seed
        self.train = train
        self.max_pixels = data.max_pixels
        self.transform = train_transform(data) if train else eval_transform(data)
        self.table = label_table(data, source.classes) if isinstance(data, MaskPairs) else None

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, key: Key) -> Item | Bad:
        sample = self.source[key.index]
        try:
            return self._read(sample, key)
        except BadSample as bad:
            return Bad(key.index, bad.path, bad.reason)

    def _read(self, sample: Sample, key: Key) -> Item:
        image = read_image(sample.image, self.max_pixels)
        if self.source.annotations is not None:
            return self._with_instances(sample, key, image, self.source.annotations)
        labels = self._read_labels(sample, image.shape[:2])
        if self.train:
            image, labels = augment(self.transform, self.seed, key, image, labels)
        else:
            image = self.transform(image=image)["image"]
        item = Item(image=image, index=key.index)
        if sample.label is not None:
            item["label"] = sample.label
        if labels is not None:
            item["mask"] = labels
        return item

    def _with_instances(self, sample: Sample, key: Key, image: NDArray[np.uint8], annotations: Annotations) -> Item:
        found = annotations.of_image(key.index)
        if image.shape[:2] != found.size:
            raise BadSample(str(sample.image), annotated_size_mismatch(image.shape, found.size))
        if not self.train:
            return Item(image=self.transform(image=image)["image"], index=key.index, instances=found)
        told_apart = ~found.crowd
        kept = [mask for mask, keep in zip(found.masks or [], told_apart, strict=False) if keep]
        masks = None if found.masks is None else decoded(kept, found.size)
        image, boxes, labels, masks = augment_instances(
            self.transform, self.seed, key, image, found.boxes[told_apart], found.labels[told_apart], masks
        )
        item = Item(image=image, index=key.index, boxes=boxes, labels=labels)
        if masks is not None:
            item["masks"] = masks
        return item

    def _read_labels(self, sample: Sample, size: Sequence[int]) -> NDArray[np.uint8] | None:
        if sample.mask is None or self.table is None:
            return None
        mask = read_mask(sample.mask, self.max_pixels)
        if mask.shape != tuple(size):
            raise BadSample(str(sample.mask), size_mismatch(mask.shape, size))
        try:
            return to_labels(mask, self.table)
        except ValueError as error:
            raise BadSample(str(sample.mask), str(error)) from error
