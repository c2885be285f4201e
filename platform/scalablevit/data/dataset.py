"""A key of the sampler to a sample ready for its batch, or to the reason why there is none."""

from dataclasses import dataclass
from typing import NotRequired, TypedDict

import numpy as np
from numpy.typing import NDArray
from torch.utils.data import Dataset

from scalablevit.config.data import DataSection
from scalablevit.data.decoding import BadSample, ChangedSample
from scalablevit.data.instances import Instances, decode_masks
from scalablevit.data.sampler import Key
from scalablevit.data.sources.base import Source
from scalablevit.data.transforms import (
    apply_registered,
    augment,
    augment_instances,
    eval_transform,
    registered_transforms,
    train_transform,
)


class Item(TypedDict):
    """One sample."""

    image: NDArray[np.uint8]
    """(height, width, 3), RGB."""
    index: int
    """Number in the source."""
    label: NotRequired[int | NDArray[np.uint8]]
    """Class, for image folders; or (classes,): 1 for each class that the image has."""
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
    changed: bool = False
    """Its contents are not those that the run began with: the run ends."""


class SampleDataset(Dataset[Item | Bad]):
    """Reads and transforms the samples of one split.

    Args:
        source: the split's samples.
        data: the recipe's data section.
        seed: the recipe's seed.
        train: augment (training split) or only prepare (evaluation).
    """

    def __init__(self, source: Source, data: DataSection, seed: int, *, train: bool) -> None:
        self.source = source
        self.seed = seed
        self.train = train
        self.transform = train_transform(data) if train else eval_transform(data)
        self.registered = registered_transforms(data) if train else ()

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, key: Key) -> Item | Bad:
        try:
            return self._read(key)
        except BadSample as bad:
            return Bad(key.index, bad.path, bad.reason, isinstance(bad, ChangedSample))

    def _read(self, key: Key) -> Item:
        example = self.source.read(key.index)
        if example.instances is not None:
            return self._with_instances(key, example.image, example.instances)
        image, labels = example.image, example.mask
        if self.train:
            image, labels = augment(self.transform, self.seed, key, image, labels)
            image = apply_registered(self.registered, self.seed, key, image)
        else:
            image = self.transform(image=image)["image"]
        item = Item(image=image, index=key.index)
        if example.label is not None:
            item["label"] = example.label
        if labels is not None:
            item["mask"] = labels
        return item

    def _with_instances(self, key: Key, image: NDArray[np.uint8], found: Instances) -> Item:
        if not self.train:
            return Item(image=self.transform(image=image)["image"], index=key.index, instances=found)
        told_apart = ~found.crowd
        kept = [mask for mask, keep in zip(found.masks or [], told_apart, strict=False) if keep]
        masks = None if found.masks is None else decode_masks(kept, found.size)
        image, boxes, labels, masks = augment_instances(
            self.transform, self.seed, key, image, found.boxes[told_apart], found.labels[told_apart], masks
        )
        item = Item(image=image, index=key.index, boxes=boxes, labels=labels)
        if masks is not None:
            item["masks"] = masks
        return item
