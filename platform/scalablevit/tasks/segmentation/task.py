"""Semantic segmentation: MMSegmentation's heads over our pyramid, mIoU at the masks' own size."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from scalablevit.config.data import MaskPairs, SplitName
from scalablevit.config.errors import UserError
from scalablevit.config.recipe import Stage
from scalablevit.config.task import Segmentation, TestTimeAugmentation
from scalablevit.config.task_info import task_info
from scalablevit.data.labels import IGNORE
from scalablevit.data.loader import Batch, collate_segmentation_eval, collate_segmentation_train
from scalablevit.data.mixing import normalize
from scalablevit.data.transforms import prepare_image, scaled_size
from scalablevit.models.backbone import Pyramid, build_pyramid
from scalablevit.models.counting import Cost, count_cost
from scalablevit.tasks.dense_cost import dense_cost_beside_paper
from scalablevit.tasks.predictions import SegmentationPrediction
from scalablevit.tasks.segmentation.confusion import ConfusionMetric
from scalablevit.tasks.segmentation.dense_inference import Size, View, averaged_labels, best_labels, see
from scalablevit.tasks.segmentation.segmentor import Segmentor, head_configs
from scalablevit.tasks.task import GREY, NOTHING_LEFT_OUT


def sections(stage: Stage) -> tuple[Segmentation, MaskPairs]:
    """Return a stage's sections of task and data.

    Raises:
        TypeError: it is a stage of another kind.
    """
    if not isinstance(stage.task, Segmentation) or not isinstance(stage.data, MaskPairs):
        raise TypeError(f"not a segmentation stage: task {stage.task.kind}, source {stage.data.source}")
    return stage.task, stage.data


class SegmentationTask:
    """See `tasks.task.Task`.

    Raises:
        UserError: fewer than 2 classes, or micro-batches too small for the head's batch norm.
    """

    best_metric = task_info("segmentation").best_metric
    one_size = False

    def __init__(self, stage: Stage, classes: tuple[str, ...]) -> None:
        task, data = sections(stage)
        if len(classes) < 2:
            raise UserError(
                f"segmentation needs at least 2 classes, not {len(classes)} ({', '.join(classes) or 'none'})",
                where="data.classes",
                fix="name the background too",
            )
        self.stage = stage
        self.task = task
        self.data = data
        self.classes = classes
        cluster, training = stage.cluster, stage.training
        # the fewest images of a micro-batch, before bad ones are left out
        self._micro_batch = training.global_batch_size // cluster.workers // training.accumulation_steps
        synchronized = cluster.gpus_per_worker > 0 and (cluster.min_workers or cluster.workers) > 1
        # UperNet pools a map to 1 x 1, and stride 32 makes one of small crops: one image gives no statistics there.
        self._needs_two = (self.task.head == "upernet" or self.data.crop_size <= 32) and not synchronized
        if self._needs_two and self._micro_batch < 2:
            raise UserError(
                f"{training.global_batch_size} images over {cluster.workers} workers and {training.accumulation_steps} "
                f"micro-batches leave some with one image, which gives {self.task.head}'s batch norm no variance",
                where="training.global_batch_size",
                fix=f"at least {2 * cluster.workers * training.accumulation_steps}, or fewer workers or "
                "accumulation steps",
            )

    def build_model(self) -> Segmentor:
        """Backbone, neck and heads with fresh weights; initial weights belong into `.backbone`."""
        model = self.stage.model
        options: dict[str, Any] = dict(model.options)
        pyramid = build_pyramid(
            model.name, model.drop_path_rate, grad_checkpointing=model.grad_checkpointing, **options
        )
        return Segmentor(pyramid, head_configs(self.task, pyramid.channels, len(self.classes)))

    def backbone(self, model: nn.Module) -> Pyramid:
        """The pyramid; neck and heads stay new."""
        pyramid: Pyramid = model.get_submodule("backbone")  # type: ignore[assignment]
        return pyramid

    def cost(self) -> Cost:
        """At `short_side` x `long_side`; the auxiliary head counts as parameters, not as multiply-accumulates."""
        with torch.device("meta"):
            model = self.build_model()
        return count_cost(model, (1, 3, *self.cost_size))

    @property
    def cost_size(self) -> tuple[int, int]:
        """Height and width of the image that `cost` is given for."""
        return self.data.short_side, self.data.long_side

    def cost_beside_paper(self) -> str:
        """The segmentor's line."""
        return dense_cost_beside_paper(self.task.head, self.stage.model.name, self.cost(), self.cost_size)

    def collate(self, split: SplitName) -> Callable[[list[Any]], Batch]:
        """Training: one uint8 tensor (N, crop, crop, 3) and masks (N, crop, crop); evaluation: lists of both."""
        return collate_segmentation_train if split == "train" else collate_segmentation_eval

    def prepare(self, batch: Batch, split: SplitName, seed: Sequence[int]) -> Batch:
        """`image` becomes float (N, 3, crop, crop), in evaluation a list of (3, h, w); nothing is drawn from `seed`."""
        images = batch["image"]
        if split == "train":
            return {**batch, "image": self._normalized(images)}
        return {**batch, "image": [self._normalized(image[None])[0] for image in images]}

    def loss(self, model: nn.Module, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """Cross-entropy of the head, plus the weighted one of UperNet's auxiliary head, means over all pixels.

        Reports `loss_ce`, `loss_aux` where there is one, and `acc`, the share of labelled pixels that are right.
        """
        found = model(*self._enough(batch["image"], batch["mask"]))
        loss = torch.stack([part for name, part in found.items() if name.startswith("loss")]).sum()
        return loss, {name: part.detach() for name, part in found.items()}

    def blank_batch(self, samples: int) -> Batch:
        """All of the first class."""
        side = self.data.crop_size
        images = torch.full((samples, side, side, 3), GREY, dtype=torch.uint8)
        masks = torch.zeros((samples, side, side), dtype=torch.uint8)
        return {"image": images, "mask": masks, "samples": samples, **NOTHING_LEFT_OUT}

    def countable_loss(self, model: nn.Module, batch: Batch) -> Tensor:
        """`loss` itself."""
        return self.loss(model, batch)[0]

    def predict(self, model: nn.Module, batch: Batch) -> list[Tensor]:
        """Label maps uint8 (height, width) at the masks' sizes."""
        return self._labels(model, batch["image"], [_size(mask) for mask in batch["mask"]])

    @property
    def augmented_data(self) -> MaskPairs:
        """The data section whose evaluation images have the largest size that `predict_augmented` looks at."""
        augmentation = self.task.test_time_augmentation
        largest = max(augmentation.scales) if augmentation else 1.0
        if largest <= 1:
            return self.data
        sides = {"short_side": int(self.data.short_side * largest), "long_side": int(self.data.long_side * largest)}
        return self.data.model_copy(update=sides)

    def predict_augmented(self, model: nn.Module, batch: Batch) -> list[Tensor]:
        """Label maps as from `predict`, of probabilities averaged over the recipe's scales and mirror images.

        Each image is brought to the sizes that its mask's size implies, so images may come in any size; those that
        `augmented_data` describes lose no detail.
        """
        augmentation = self.task.test_time_augmentation
        if augmentation is None:
            return self.predict(model, batch)
        sizes = [_size(mask) for mask in batch["mask"]]
        return [
            averaged_labels(list(self._augmented_views(model, image, size, augmentation)), size)
            for image, size in zip(batch["image"], sizes, strict=True)
        ]

    def metric(self) -> ConfusionMetric:
        """mIoU, mean and pixel accuracy, IoU of each class."""
        return ConfusionMetric(self.classes)

    def predict_image(self, model: nn.Module, image: NDArray[np.uint8], device: torch.device) -> SegmentationPrediction:
        """Return the label map of one decoded image, at its own size."""
        prepared = prepare_image(self.stage, image, device)[0]
        labels = self._labels(model, [prepared], [(image.shape[0], image.shape[1])])[0]
        return SegmentationPrediction(self.classes, labels.cpu().numpy())

    def answer(self, model: nn.Module, image: NDArray[np.uint8], device: torch.device) -> dict[str, Any]:
        """See `SegmentationPrediction.answer`."""
        return self.predict_image(model, image, device).answer()

    @property
    def _max_pixels(self) -> int:
        """Pixels of a training micro-batch: a pass without gradients over as many fits wherever training does."""
        return max(1, self._micro_batch) * self.data.crop_size**2

    def _normalized(self, images: Tensor) -> Tensor:
        return normalize(images, self.data.mean, self.data.std, channels_last=self.stage.model.channels_last)

    def _enough(self, images: Tensor, masks: Tensor) -> tuple[Tensor, Tensor]:
        """A batch that the network can take although bad samples were left out of it.

        A lone image stands twice where batch norm needs two, which changes no mean. A rank without any image still
        takes part in the step, with ignored pixels: loss and gradients are 0.
        """
        if len(images) == 1 and self._needs_two:
            return images.repeat(2, 1, 1, 1), masks.repeat(2, 1, 1)
        if len(images) == 0:
            side = self.data.crop_size
            return images.new_zeros((2, 3, side, side)), masks.new_full((2, side, side), IGNORE)
        return images, masks

    def _labels(self, model: nn.Module, images: list[Tensor], sizes: list[Size]) -> list[Tensor]:
        views = see(model, images, self.task.sliding, self._max_pixels)
        labels = {number: best_labels(view, sizes[number]) for number, view in views}
        return [labels[number] for number in range(len(images))]

    def _augmented_views(
        self, model: nn.Module, image: Tensor, size: Size, augmentation: TestTimeAugmentation
    ) -> Iterator[View]:
        """What the network says of an image (3, h, w), whose mask has `size`, at each scale and of its mirror image."""
        for scale in augmentation.scales:
            seen = scaled_size(*size, int(self.data.short_side * scale), int(self.data.long_side * scale))
            scaled = _resized(image, seen)
            inputs = [scaled, scaled.flip(-1)] if augmentation.flip else [scaled]
            for number, view in see(model, inputs, self.task.sliding, self._max_pixels):
                yield view.mirrored() if number == 1 else view


def _resized(image: Tensor, size: Size) -> Tensor:
    """A normalised image (3, h, w) at another size, averaged over areas where it shrinks."""
    if _size(image) == size:
        return image
    return F.interpolate(image[None], size, mode="bilinear", align_corners=False, antialias=True)[0]


def _size(image: Tensor) -> Size:
    return image.shape[-2], image.shape[-1]
