"""The dataset: from the sampler's key to a transformed sample, or to the reason why it cannot be read."""

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
    """One transformed sample."""

    image: NDArray[np.uint8]
    """(height, width, 3), RGB."""
    index: int
    """Index in the source."""
    label: NotRequired[int | NDArray[np.uint8]]
    """Labelled images: the class index; or (classes,): 1 for each class that the image has, else 0."""
    mask: NotRequired[NDArray[np.uint8]]
    """Mask pairs: (height, width) labels, 255 ignored; in evaluation of the original size, not the image's."""
    boxes: NotRequired[NDArray[np.float32]]
    """COCO in training: (n, 4) x1, y1, x2, y2 in the image's pixels, without crowds."""
    labels: NotRequired[NDArray[np.int64]]
    """COCO in training: (n,) class indices of the boxes."""
    masks: NotRequired[NDArray[np.uint8]]
    """COCO in training, where masks are read: (n, height, width), 0 or 1, of the boxes."""
    instances: NotRequired[Instances]
    """COCO in evaluation: the objects in pixels of the original image."""


@dataclass(frozen=True, slots=True)
class ImageSizes:
    """Sides of training images by the step that a sample is in, so that all of a step have one size."""

    phases: tuple[tuple[int, int], ...]
    """(end, side), as in `Length.image_sizes`."""
    global_batch_size: int

    def side(self, key: Key, samples: int) -> int:
        """Return the side in pixels of a sample of the stream over so many samples; 0: that of the data section."""
        step = (key.epoch * samples + key.position) // self.global_batch_size
        return next((side for end, side in self.phases if step < end), 0)


@dataclass(frozen=True, slots=True)
class Bad:
    """A sample that could not be read: it is counted and reported, never replaced."""

    index: int
    """Index in the source."""
    path: str
    reason: str
    changed: bool = False
    """Whether its contents have changed since the run began, which ends the run."""


class SampleDataset(Dataset[Item | Bad]):
    """Reads and transforms the samples of one split.

    Args:
        source: the split's samples.
        data: the recipe's data section.
        seed: the recipe's seed.
        train: true: augment, for the training split; false: the transform of evaluation.
        sizes: of the training images, where they change with the step; None: `data.image_size`.
    """

    def __init__(
        self, source: Source, data: DataSection, seed: int, *, train: bool, sizes: ImageSizes | None = None
    ) -> None:
        self.source = source
        self.seed = seed
        self.train = train
        self.transform = train_transform(data) if train else eval_transform(data)
        self.sizes = sizes or ImageSizes((), 1)
        self.transforms = {side: train_transform(data.model_copy(update={"image_size": side}))
                           for _, side in self.sizes.phases}  # fmt: skip
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
            transform = self.transforms.get(self.sizes.side(key, len(self.source)), self.transform)
            image, labels = augment(transform, self.seed, key, image, labels)
            image = apply_registered(self.registered, self.seed, key, image)
        else:
            image = self.transform(image=image)["image"]
        item = Item(image=image, index=key.index)
        if example.label is not None:
            item["label"] = example.label
        if labels is not None:
            item["mask"] = labels
        return item

    def _with_instances(self, key: Key, image: NDArray[np.uint8], instances: Instances) -> Item:
        if not self.train:
            return Item(image=self.transform(image=image)["image"], index=key.index, instances=instances)
        single = ~instances.crowd
        kept = [mask for mask, keep in zip(instances.masks or [], single, strict=False) if keep]
        masks = None if instances.masks is None else decode_masks(kept, instances.size)
        image, boxes, labels, masks = augment_instances(
            self.transform, self.seed, key, image, instances.boxes[single], instances.labels[single], masks
        )
        item = Item(image=image, index=key.index, boxes=boxes, labels=labels)
        if masks is not None:
            item["masks"] = masks
        return item
