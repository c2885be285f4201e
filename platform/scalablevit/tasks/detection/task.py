"""Object detection and instance segmentation: torchvision's detectors over our pyramid, COCO's average precision."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from hotcoco import mask as run_lengths
from torch import Tensor, nn

from scalablevit.config.data import CocoInstances, SplitName
from scalablevit.config.errors import UserError
from scalablevit.config.recipe import Stage
from scalablevit.config.task import Detection
from scalablevit.config.task_info import task_info
from scalablevit.data.batch import AnyBatch, Batch, DetectionEvalBatch, DetectionTrainBatch
from scalablevit.data.instances import RunLengths
from scalablevit.data.loader import collate_detection_eval, collate_detection_train
from scalablevit.data.mixing import normalize
from scalablevit.data.transforms import fill_color
from scalablevit.models.backbone import Pyramid, build_pyramid
from scalablevit.tasks.detection.coco_matching import Detections
from scalablevit.tasks.detection.coco_metric import CocoMetric
from scalablevit.tasks.detection.detector import (
    build_detector,
    detect,
    first_label,
    paste_masks,
)


def sections(stage: Stage) -> tuple[Detection, CocoInstances]:
    """Return a detection stage's task section and data section.

    Raises:
        TypeError: the stage is of another kind.
    """
    if not isinstance(stage.task, Detection) or not isinstance(stage.data, CocoInstances):
        raise TypeError(f"not a detection stage: task {stage.task.kind}, source {stage.data.source}")
    return stage.task, stage.data


class DetectionTask:
    """Object detection and instance segmentation; implements `tasks.task.Task`. Boxes are x1, y1, x2, y2 in pixels.

    Raises:
        UserError: there are no classes.
    """

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
        """Return backbone, neck and heads with fresh weights; see `build_detector`."""
        model = self.stage.model
        options: dict[str, Any] = dict(model.options)
        pyramid = build_pyramid(
            model.name, model.drop_path_rate, grad_checkpointing=model.grad_checkpointing, **options
        )
        padding = self._normalized(torch.tensor(fill_color(self.data), dtype=torch.uint8, device="cpu")[None, None])
        return build_detector(self.task, pyramid, len(self.classes), padding.flatten().tolist())

    def backbone(self, model: nn.Module) -> Pyramid:
        """Return the pyramid, without neck and heads."""
        pyramid: Pyramid = model.get_submodule("backbone.body")  # type: ignore[assignment]
        return pyramid

    def collate(self, split: SplitName) -> Callable[[list[Any]], Batch]:
        """Return the function that makes lists of uint8 images (h, w, 3) and their objects, since sizes differ."""
        return collate_detection_train if split == "train" else collate_detection_eval

    def prepare(self, batch: AnyBatch, split: SplitName, seed: Sequence[int]) -> AnyBatch:
        """Return the batch with normalized float images, a list of (3, h, w). Nothing is random: `seed` is not used."""
        return replace(batch, images=[self._normalized(image) for image in batch.images])

    def loss(self, model: nn.Module, batch: DetectionTrainBatch) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the sum of torchvision's losses (a scalar), and each of them to report under its name."""
        targets = [
            {"boxes": boxes, "labels": labels + self._first}
            for boxes, labels in zip(batch.boxes, batch.labels, strict=True)
        ]
        if self.has_masks:
            for target, masks in zip(targets, batch.masks or [], strict=True):
                target["masks"] = masks
        losses = {name: loss.float() for name, loss in model(batch.images, targets).items()}
        return torch.stack(list(losses.values())).sum(), {name: loss.detach() for name, loss in losses.items()}

    def predict(self, model: nn.Module, batch: DetectionEvalBatch) -> list[Detections]:
        """Return the detections of each image in its original pixels, best first."""
        outputs = detect(model, batch.images)
        return [
            self.in_original(output, image, instances.size)
            for output, image, instances in zip(outputs, batch.images, batch.instances, strict=True)
        ]

    def metric(self) -> CocoMetric:
        """Return a fresh metric: average precision of boxes and, for Mask R-CNN, of masks."""
        return CocoMetric(self.classes, masks=self.has_masks)

    def _normalized(self, image: Tensor) -> Tensor:
        """Return a uint8 image (h, w, 3) as normalized float (3, h, w)."""
        return normalize(image[None], self.data.mean, self.data.std, channels_last=self.stage.model.channels_last)[0]

    def in_original(self, output: dict[str, Tensor], image: Tensor, size: tuple[int, int]) -> Detections:
        """Return detections in the original image's pixels.

        Args:
            output: the detector's for one image, in that image's pixels.
            image: the network's input, of which only height and width are read: (..., h, w).
            size: height and width of the original image, pixels.
        """
        vertical, horizontal = size[0] / image.shape[-2], size[1] / image.shape[-1]
        factors = torch.tensor([horizontal, vertical] * 2, device=image.device)
        boxes = output["boxes"].float() * factors
        masks = None
        if self.has_masks:
            pasted = paste_masks(output["masks"].float(), boxes, size)
            masks = [encoded for part in pasted for encoded in _encode_masks(part)]
        labels = output["labels"] - self._first
        return Detections(boxes.cpu(), output["scores"].float().cpu(), labels.cpu(), masks)


def _encode_masks(masks: Tensor) -> list[RunLengths]:
    """Return the run lengths of masks bool (n, height, width)."""
    columns_first = np.asfortranarray(masks.permute(1, 2, 0).cpu().numpy())
    encoded: list[RunLengths] = run_lengths.encode(columns_first)
    return encoded
