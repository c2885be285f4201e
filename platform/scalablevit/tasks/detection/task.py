"""Object detection and instance segmentation: torchvision's detectors over our pyramid, COCO's average precision."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from faster_coco_eval import mask as run_lengths
from numpy.typing import NDArray
from torch import Tensor, nn

from scalablevit.config.data import CocoInstances, SplitName
from scalablevit.config.errors import UserError
from scalablevit.config.recipe import Stage
from scalablevit.config.task import Detection
from scalablevit.config.task_info import task_info
from scalablevit.data.instances import RunLengths
from scalablevit.data.loader import Batch, collate_detection_eval, collate_detection_train
from scalablevit.data.mixing import normalize
from scalablevit.data.transforms import fill_color, prepare_image
from scalablevit.models.backbone import Pyramid, build_pyramid
from scalablevit.models.counting import Cost, count_cost
from scalablevit.tasks.dense_cost import dense_cost_beside_paper
from scalablevit.tasks.detection.coco_metric import CocoMetric
from scalablevit.tasks.detection.detector import (
    STRIDE,
    CostProbe,
    build_detector,
    countable_loss,
    first_label,
    pasted_masks,
)
from scalablevit.tasks.predictions import DetectionPrediction
from scalablevit.tasks.task import GREY, NOTHING_LEFT_OUT

COST_ASPECT = 1.6
"""Long over short side of the image that costs are given for: 800 x 1280 in the paper."""
BOX_REGIONS, MASK_REGIONS = 1000, 100
"""Regions of Mask R-CNN's heads that costs are given for, as in the paper's metrics."""
BLANK_OBJECTS = 5
"""In a blank image: one for each level of the pyramid."""


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

    def cost(self) -> Cost:
        """At `cost_size`; of Mask R-CNN with 1000 regions in the box head and 100 in the mask head."""
        with torch.device("meta"):
            model = self.build_model()
        return count_cost(CostProbe(model, BOX_REGIONS, MASK_REGIONS), (1, 3, *self.cost_size))

    @property
    def cost_size(self) -> tuple[int, int]:
        """Height and width of the image that `cost` is given for."""
        return self.data.short_side, min(round(COST_ASPECT * self.data.short_side), self.data.long_side)

    def cost_beside_paper(self) -> str:
        """The detector's line."""
        return dense_cost_beside_paper(self.task.head, self.stage.model.name, self.cost(), self.cost_size)

    def collate(self, split: SplitName) -> Callable[[list[Any]], Batch]:
        """Lists, since each image has its own size."""
        return collate_detection_train if split == "train" else collate_detection_eval

    def prepare(self, batch: Batch, split: SplitName, seed: Sequence[int]) -> Batch:
        """`image` becomes a list of float (3, h, w); nothing is drawn from `seed`."""
        return {**batch, "image": [self._normalized(image) for image in batch["image"]]}

    def loss(self, model: nn.Module, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """Sum of torchvision's losses, each of which is also reported under its name.

        A rank without any image still takes part in the step, with one that shows nothing: all is 0 there.
        """
        device = next(model.parameters()).device
        seen = batch if batch["samples"] else self._nothing(device)
        targets = [
            {"boxes": boxes, "labels": labels + self._first}
            for boxes, labels in zip(seen["boxes"], seen["labels"], strict=True)
        ]
        if self.has_masks:
            for target, masks in zip(targets, seen["masks"], strict=True):
                target["masks"] = masks
        losses = {name: loss.float() for name, loss in model(seen["image"], targets).items()}
        if not batch["samples"]:
            losses = {name: loss * 0.0 for name, loss in losses.items()}
        return torch.stack(list(losses.values())).sum(), {name: loss.detach() for name, loss in losses.items()}

    def blank_batch(self, samples: int) -> Batch:
        """Images of `cost_size`, each with some boxes of one class as large as anchors."""
        height, width = self.cost_size
        sides = [min(self.task.anchor_size * 2**level, height, width) for level in range(BLANK_OBJECTS)]
        masks = torch.zeros((BLANK_OBJECTS, height, width), dtype=torch.uint8)
        for mask, side in zip(masks, sides, strict=True):
            mask[:side, :side] = 1
        each: dict[str, Tensor] = {
            "image": torch.full((height, width, 3), GREY, dtype=torch.uint8),
            "boxes": torch.tensor([[0, 0, side, side] for side in sides], dtype=torch.float32),
            "labels": torch.zeros(BLANK_OBJECTS, dtype=torch.int64),
            **({"masks": masks} if self.has_masks else {}),
        }
        return {
            **{name: [tensor] * samples for name, tensor in each.items()},
            "samples": samples,
            **NOTHING_LEFT_OUT,
        }

    def countable_loss(self, model: nn.Module, batch: Batch) -> Tensor:
        """With as many regions as the heads are trained on at the most."""
        return countable_loss(model, batch["image"], self.task.roi_samples)

    def predict(self, model: nn.Module, batch: Batch) -> list[dict[str, Any]]:
        """Detections of each image in its original pixels, best first.

        `boxes` float (n, 4), `scores` (n,), `labels` (n,) from 0 and, of Mask R-CNN, `masks`: n compressed run lengths.
        """
        found = model(batch["image"])
        return [
            self._in_original(each, image, truth.size)
            for each, image, truth in zip(found, batch["image"], batch["instances"], strict=True)
        ]

    @property
    def augmented_data(self) -> CocoInstances:
        """Detection has no test-time augmentation."""
        return self.data

    def predict_augmented(self, model: nn.Module, batch: Batch) -> list[dict[str, Any]]:
        """As `predict`."""
        return self.predict(model, batch)

    def metric(self) -> CocoMetric:
        """Average precision of boxes and, of Mask R-CNN, of masks."""
        return CocoMetric(self.classes, masks=self.has_masks)

    def predict_image(self, model: nn.Module, image: NDArray[np.uint8], device: torch.device) -> DetectionPrediction:
        """Return the detections in one decoded image, best first."""
        prepared = prepare_image(self.stage, image, device)[0]
        found = self._in_original(model([prepared])[0], prepared, (image.shape[0], image.shape[1]))
        masks: tuple[RunLengths, ...] = tuple(
            {"size": list(m["size"]), "counts": _text(m["counts"])} for m in found.get("masks", ())
        )
        return DetectionPrediction(
            self.classes,
            boxes=found["boxes"].numpy(),
            scores=found["scores"].numpy(),
            labels=found["labels"].numpy(),
            masks_rle=masks if self.has_masks else None,
        )

    def answer(self, model: nn.Module, image: NDArray[np.uint8], device: torch.device) -> dict[str, Any]:
        """See `DetectionPrediction.answer`."""
        return self.predict_image(model, image, device).answer()

    def _normalized(self, image: Tensor) -> Tensor:
        return normalize(image[None], self.data.mean, self.data.std, channels_last=self.stage.model.channels_last)[0]

    def _nothing(self, device: torch.device) -> Batch:
        """A black image without objects."""
        side = 2 * STRIDE  # one of STRIDE would leave the batch norms of a backbone a single value
        return {
            "image": [torch.zeros((3, side, side), device=device)],
            "boxes": [torch.zeros((0, 4), device=device)],
            "labels": [torch.zeros(0, dtype=torch.int64, device=device)],
            "masks": [torch.zeros((0, side, side), dtype=torch.uint8, device=device)],
        }

    def _in_original(self, found: dict[str, Tensor], image: Tensor, size: tuple[int, int]) -> dict[str, Any]:
        """Bring detections from the network's image (3, h, w) to one of `size` (height, width)."""
        vertical, horizontal = size[0] / image.shape[-2], size[1] / image.shape[-1]
        factors = torch.tensor([horizontal, vertical] * 2, device=image.device)
        boxes = found["boxes"].float() * factors
        result: dict[str, Any] = {
            "boxes": boxes.cpu(),
            "scores": found["scores"].float().cpu(),
            "labels": (found["labels"] - self._first).cpu(),
        }
        if self.has_masks:
            pasted = pasted_masks(found["masks"].float(), boxes, size)
            result["masks"] = [each for part in pasted for each in _encoded(part)]
        return result


def _encoded(masks: Tensor) -> list[dict[str, Any]]:
    """Run lengths of masks bool (n, height, width)."""
    columns_first = np.asfortranarray(masks.permute(1, 2, 0).cpu().numpy().astype(np.uint8))
    encoded: list[dict[str, Any]] = run_lengths.encode(columns_first)
    return encoded


def _text(counts: bytes | str) -> str:
    return counts.decode() if isinstance(counts, bytes) else counts
