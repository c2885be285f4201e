"""Semantic segmentation: MMSegmentation's heads over our pyramid, mIoU at the masks' own size."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from scalablevit.config.data import MaskPairs, SplitName
from scalablevit.config.errors import UserError
from scalablevit.config.recipe import Stage
from scalablevit.config.task import Segmentation
from scalablevit.config.task_info import task_info
from scalablevit.data.batch import MaskBatch
from scalablevit.data.loader import collate_segmentation_eval, collate_segmentation_train
from scalablevit.data.mixing import normalize
from scalablevit.models.backbone import Pyramid, build_pyramid
from scalablevit.tasks.segmentation.confusion import ConfusionMetric
from scalablevit.tasks.segmentation.dense_inference import Size, best_labels, iter_views
from scalablevit.tasks.segmentation.segmentor import Segmentor, head_configs


def sections(stage: Stage) -> tuple[Segmentation, MaskPairs]:
    """Return a segmentation stage's task section and data section.

    Raises:
        TypeError: the stage is of another kind.
    """
    if not isinstance(stage.task, Segmentation) or not isinstance(stage.data, MaskPairs):
        raise TypeError(f"not a segmentation stage: task {stage.task.kind}, source {stage.data.source}")
    return stage.task, stage.data


class SegmentationTask:
    """Semantic segmentation on crops; implements `tasks.task.Task`.

    Raises:
        UserError: fewer than 2 classes.
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
        self._micro_batch = _micro_batch(stage)
        self._needs_two = _needs_two(stage)

    def build_model(self) -> Segmentor:
        """Return backbone, neck and heads with fresh weights."""
        model = self.stage.model
        options: dict[str, Any] = dict(model.options)
        pyramid = build_pyramid(
            model.name, model.drop_path_rate, grad_checkpointing=model.grad_checkpointing, **options
        )
        return Segmentor(pyramid, head_configs(self.task, pyramid.channels, len(self.classes)))

    def backbone(self, model: nn.Module) -> Pyramid:
        """Return the pyramid, without neck and heads."""
        pyramid: Pyramid = model.get_submodule("backbone")  # type: ignore[assignment]
        return pyramid

    def collate(self, split: SplitName) -> Callable[[list[Any]], MaskBatch]:
        """Return the function that collates uint8 images and masks.

        In training it stacks images (N, crop, crop, 3) and masks (N, crop, crop); in evaluation it makes lists of
        images (h, w, 3) and masks (height, width).
        """
        return collate_segmentation_train if split == "train" else collate_segmentation_eval

    def prepare(self, batch: MaskBatch, split: SplitName, seed: Sequence[int]) -> MaskBatch:
        """Return the batch with normalized images: float (N, 3, crop, crop), in evaluation a list of (3, h, w).

        Nothing is random, so `seed` is not used.
        """
        images = batch.images
        if split == "train":
            return replace(batch, images=self._normalized(images))
        return replace(batch, images=[self._normalized(image[None])[0] for image in images])

    def loss(self, model: nn.Module, batch: MaskBatch) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the sum of the heads' cross-entropies (a scalar), each a mean over all pixels, and its parts.

        The parts to report are `loss_ce`, `loss_aux` (weighted) where UperNet has its auxiliary head, and `acc`, the
        fraction of labelled pixels that are right.
        """
        parts = model(*self._fill_up(batch.images, batch.masks))
        loss = torch.stack([part for name, part in parts.items() if name.startswith("loss")]).sum()
        return loss, {name: part.detach() for name, part in parts.items()}

    def predict(self, model: nn.Module, batch: MaskBatch) -> list[Tensor]:
        """Return label maps uint8 (height, width) at the masks' sizes."""
        return self.label_maps(model, batch.images, [_size(mask) for mask in batch.masks])

    def label_maps(self, model: nn.Module, images: list[Tensor], sizes: list[Size]) -> list[Tensor]:
        """Return label maps uint8 (height, width) of normalized images (3, h, w).

        Args:
            model: in eval mode.
            images: of any sizes.
            sizes: height and width of each label map.
        """
        views = iter_views(model, images, self.task.sliding, self.max_pixels)
        labels = {index: best_labels(view, sizes[index]) for index, view in views}
        return [labels[index] for index in range(len(images))]

    @property
    def max_pixels(self) -> int:
        """Return the pixels of a training micro-batch: where it fits in memory, so does inference on as many."""
        return max(1, self._micro_batch) * self.data.crop_size**2

    def metric(self) -> ConfusionMetric:
        """Return a fresh metric: mIoU, mean and pixel accuracy, IoU of each class."""
        return ConfusionMetric(self.classes)

    def _normalized(self, images: Tensor) -> Tensor:
        """Return uint8 images (N, h, w, 3) as normalized float (N, 3, h, w)."""
        return normalize(images, self.data.mean, self.data.std, channels_last=self.stage.model.channels_last)

    def _fill_up(self, images: Tensor, masks: Tensor) -> tuple[Tensor, Tensor]:
        """Return the batch with a single image, left when bad samples were skipped, repeated if batch norm needs two.

        That changes no mean.
        """
        if len(images) == 1 and self._needs_two:
            return images.repeat(2, 1, 1, 1), masks.repeat(2, 1, 1)
        return images, masks


def check_micro_batch(stage: Stage) -> None:
    """Refuse a training with micro-batches too small for the head's batch norm; what is trained needs no check.

    Raises:
        UserError: with the smallest batch that would do.
    """
    task, _ = sections(stage)
    cluster, training = stage.cluster, stage.training
    if _needs_two(stage) and _micro_batch(stage) < 2:
        raise UserError(
            f"{training.global_batch_size} images over {cluster.workers} workers and {training.accumulation_steps} "
            f"micro-batches leave some with one image, which gives {task.head}'s batch norm no variance",
            where="training.global_batch_size",
            fix=f"at least {2 * cluster.workers * training.accumulation_steps}, or fewer workers or accumulation steps",
        )


def _micro_batch(stage: Stage) -> int:
    """Return the fewest images of a micro-batch, before bad ones are skipped."""
    return stage.training.global_batch_size // stage.cluster.workers // stage.training.accumulation_steps


def _needs_two(stage: Stage) -> bool:
    """Return whether a batch norm gets no variance from one image."""
    task, data = sections(stage)
    cluster = stage.cluster
    synchronized = cluster.gpus_per_worker > 0 and (cluster.min_workers or cluster.workers) > 1
    # UperNet pools a map to 1 x 1, and stride 32 makes one of small crops: one image gives no statistics there.
    return (task.head == "upernet" or data.crop_size <= 32) and not synchronized


def _size(image: Tensor) -> Size:
    return image.shape[-2], image.shape[-1]
