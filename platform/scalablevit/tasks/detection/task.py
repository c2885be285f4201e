"""Object detection and instance segmentation: torchvision's detectors over our pyramid, COCO's average precision."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from faster_coco_eval import mask as run_lengths
from torch import Tensor, nn

from scalablevit.config.data import CocoInstances, SplitName
from scalablevit.config.errors import UserError
from scalablevit.config.recipe import Stage
from scalablevit.config.task import Detection
from scalablevit.config.task_info import task_info
from scalablevit.data.batch import AnyBatch, Batch, BoxBatch, InstanceBatch
from scalablevit.data.instances import RunLengths
from scalablevit.data.loader import collate_detection_eval, collate_detection_train
from scalablevit.data.mixing import normalize
from scalablevit.data.transforms import fill_color
from scalablevit.models.backbone import Pyramid, build_pyramid
from scalablevit.tasks.detection.coco_metric import CocoMetric, Detections
from scalablevit.tasks.detection.detector import (
    STRIDE,
    build_detector,
    first_label,
    paste_masks,
)


def sections(stage: Stage) -> tuple[Detection, CocoInstances]:
    """Return a stage's sections of task and data.

    Raises:
        TypeError: it is a stage of another kind.
    """
    if not isinstance(stage.task, Detection) or not isinstance(stage.data, CocoInstances):
        raise TypeError(f"not a detection stage: task {stage.task.kind}, source {stage.data.source}")
    return stage.task, stage.data


class DetectionTask:
    """See `tasks.task.Task`. Boxes are x1, y1, x2, y2 in pixels."""

    best_metric = task_info("detection").best_metric
    one_size = False

    def __init__(self, stage: Stage, classes: tuple[str, ...]) -> None:
        task, data = sections(stage)
        if not classes:
            raise UserError("detection needs at least 1 class", where="data.train.annotations", fix="add categories")
        self.stage = stage
        self.task = task
        self.data = data
        self.classes = classes
        self.has_masks = task.head == "mask_rcnn"
        self._first = first_label(task)

    def build_model(self) -> nn.Module:
        """Backbone, neck and heads with fresh weights."""
        model = self.stage.model
        options: dict[str, Any] = dict(model.options)
        pyramid = build_pyramid(
            model.name, model.drop_path_rate, grad_checkpointing=model.grad_checkpointing, **options
        )
        padding = self._normalized(torch.tensor(fill_color(self.data), dtype=torch.uint8, device="cpu")[None, None])
        return build_detector(self.task, pyramid, len(self.classes), padding.flatten().tolist())

    def backbone(self, model: nn.Module) -> Pyramid:
        """The pyramid; neck and heads stay new."""
        pyramid: Pyramid = model.get_submodule("backbone.body")  # type: ignore[assignment]
        return pyramid

    def collate(self, split: SplitName) -> Callable[[list[Any]], Batch]:
        """Lists, since each image has its own size."""
        return collate_detection_train if split == "train" else collate_detection_eval

    def prepare(self, batch: AnyBatch, split: SplitName, seed: Sequence[int]) -> AnyBatch:
        """`image` becomes a list of float (3, h, w); nothing is drawn from `seed`."""
        return replace(batch, image=[self._normalized(image) for image in batch.image])

    def loss(self, model: nn.Module, batch: BoxBatch) -> tuple[Tensor, dict[str, Tensor]]:
        """Sum of torchvision's losses, each of which is also reported under its name.

        A rank without any image still takes part in the step, with one that shows nothing: all is 0 there.
        """
        device = next(model.parameters()).device
        seen = batch if batch.samples else self._nothing(device)
        targets = [
            {"boxes": boxes, "labels": labels + self._first}
            for boxes, labels in zip(seen.boxes, seen.labels, strict=True)
        ]
        if self.has_masks:
            for target, masks in zip(targets, seen.masks or [], strict=True):
                target["masks"] = masks
        losses = {name: loss.float() for name, loss in model(seen.image, targets).items()}
        if not batch.samples:
            losses = {name: loss * 0.0 for name, loss in losses.items()}
        return torch.stack(list(losses.values())).sum(), {name: loss.detach() for name, loss in losses.items()}

    def predict(self, model: nn.Module, batch: InstanceBatch) -> list[Detections]:
        """Return the detections of each image in its original pixels, best first."""
        found = model(batch.image)
        return [
            self.in_original(each, image, truth.size)
            for each, image, truth in zip(found, batch.image, batch.instances, strict=True)
        ]

    def metric(self) -> CocoMetric:
        """Average precision of boxes and, of Mask R-CNN, of masks."""
        return CocoMetric(self.classes, masks=self.has_masks)

    def _normalized(self, image: Tensor) -> Tensor:
        return normalize(image[None], self.data.mean, self.data.std, channels_last=self.stage.model.channels_last)[0]

    def _nothing(self, device: torch.device) -> BoxBatch:
        """A black image without objects."""
        side = 2 * STRIDE  # one of STRIDE would leave the batch norms of a backbone a single value
        return BoxBatch(
            image=[torch.zeros((3, side, side), device=device)],
            boxes=[torch.zeros((0, 4), device=device)],
            labels=[torch.zeros(0, dtype=torch.int64, device=device)],
            masks=[torch.zeros((0, side, side), dtype=torch.uint8, device=device)],
            samples=0,
        )

    def in_original(self, found: dict[str, Tensor], image: Tensor, size: tuple[int, int]) -> Detections:
        """Bring detections from the network's image (3, h, w) to one of `size` (height, width)."""
        vertical, horizontal = size[0] / image.shape[-2], size[1] / image.shape[-1]
        factors = torch.tensor([horizontal, vertical] * 2, device=image.device)
        boxes = found["boxes"].float() * factors
        masks = None
        if self.has_masks:
            pasted = paste_masks(found["masks"].float(), boxes, size)
            masks = [each for part in pasted for each in _encode_masks(part)]
        labels = found["labels"] - self._first
        return Detections(boxes.cpu(), found["scores"].float().cpu(), labels.cpu(), masks)


def _encode_masks(masks: Tensor) -> list[RunLengths]:
    """Run lengths of masks bool (n, height, width)."""
    columns_first = np.asfortranarray(masks.permute(1, 2, 0).cpu().numpy().astype(np.uint8))
    encoded: list[RunLengths] = run_lengths.encode(columns_first)
    return encoded
