"""Export of a detector: pyramid and dense head; for Mask R-CNN also its box head and mask head."""

import math
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from scalablevit.config.data import Data
from scalablevit.config.recipe import Stage
from scalablevit.tasks.detection.detector import MASK_ROI_SIZE, ROI_SIZE, STRIDE, first_label
from scalablevit.tasks.detection.selection import DetectorSelection
from scalablevit.tasks.detection.task import sections
from scalablevit.tasks.export import Export, FromPixels, Part, Size, flatten_outputs, keep_outputs
from scalablevit.tasks.preprocessing import TaskPreprocessing


class PyramidAndHeads(nn.Module):
    """The dense part of a detector: feature maps, and the dense head's scores and box offsets at every anchor."""

    def __init__(self, detector: Any) -> None:
        super().__init__()
        self.backbone = detector.backbone
        self.two_stages = hasattr(detector, "rpn")
        self.head = detector.rpn.head if self.two_stages else detector.head

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """Return the maps of normalized images (N, 3, H, W), finest first, then scores and box offsets.

        For Mask R-CNN scores and offsets are one tensor for each level; for RetinaNet one tensor for all levels.
        """
        maps = list(self.backbone(images).values())
        if self.two_stages:
            scores, offsets = self.head(maps)
            return (*maps, *scores, *offsets)
        outputs = self.head(maps)
        return (*maps, outputs["cls_logits"], outputs["bbox_regression"])


class MaskHead(nn.Module):
    """Mask R-CNN's mask head and predictor."""

    def __init__(self, heads: Any) -> None:
        super().__init__()
        self.head, self.predictor = heads.mask_head, heads.mask_predictor

    def forward(self, regions: Tensor) -> Tensor:
        """Return logits (R, classes + 1, 28, 28) of pooled regions (R, C, 14, 14)."""
        logits: Tensor = self.predictor(self.head(regions))
        return logits


class BoxHead(nn.Module):
    """Mask R-CNN's box head and predictor."""

    def __init__(self, heads: Any) -> None:
        super().__init__()
        self.head, self.predictor = heads.box_head, heads.box_predictor

    def forward(self, regions: Tensor) -> tuple[Tensor, Tensor]:
        """Return logits (R, classes + 1) and offsets (R, 4 * (classes + 1)) of pooled regions (R, C, 7, 7)."""
        scores, offsets = self.predictor(self.head(regions))
        return scores, offsets


def describe_preprocessing(stage: Stage) -> TaskPreprocessing:
    """Return how images are scaled, and the lowest score of a detection."""
    task, data = sections(stage)
    return TaskPreprocessing(short_side=data.short_side, long_side=data.long_side, score_threshold=task.score_threshold)


def _scaled_sides(stage: Stage) -> Size:
    """Return the sides that images are scaled to, as height and width, rounded up to whole strides."""
    _, data = sections(stage)
    return math.ceil(data.short_side / STRIDE) * STRIDE, math.ceil(data.long_side / STRIDE) * STRIDE


def _parts(model: Any, data: Data, pixels: Tensor, normalized: Tensor) -> list[Part]:
    dense = PyramidAndHeads(model).eval()
    expected = list(dense(normalized))
    levels = len(model.backbone(normalized[:1]))
    by_level = [f"{what}_{level}" for what in ("scores", "offsets") for level in range(levels)]
    names = (*(f"map_{level}" for level in range(levels)), *(by_level if dense.two_stages else ("scores", "offsets")))
    parts = [Part("network", FromPixels(dense, data, keep_outputs), pixels, "pixels", names, expected)]
    if dense.two_stages:
        for name, module, side, outputs in (
            ("box_head", BoxHead(model.roi_heads), ROI_SIZE, ("scores", "offsets")),
            ("mask_head", MaskHead(model.roi_heads), MASK_ROI_SIZE, ("logits",)),
        ):
            regions = F.interpolate(expected[0], (side, side))
            parts.append(Part(name, module.eval(), regions, "regions", outputs, flatten_outputs(module(regions))))
    return parts


def _selection(model: nn.Module, size: Size, stage: Stage) -> DetectorSelection:
    selection = DetectorSelection(model, size, first_label(sections(stage)[0]))
    return selection.eval()


EXPORT = Export(_scaled_sides, parts=_parts, selection=_selection)
