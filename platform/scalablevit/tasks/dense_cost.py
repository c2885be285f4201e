"""Parameters and multiply-accumulates of a segmentation model, beside the paper's figures."""

from dataclasses import dataclass

import torch

from scalablevit.config.recipe import Stage
from scalablevit.models.counting import Cost, count_cost
from scalablevit.tasks.segmentation import SegmentationTask

IMAGE_SIZE = (512, 2048)
"""Height and width at which the paper counts, for Semantic FPN and for UperNet."""


@dataclass(frozen=True)
class PaperRow:
    """Parameters in millions, "FLOPs" in G, and mIoU in percent on ADE20K, for UperNet also multi-scale with flip."""

    parameters_m: float
    gflops: float
    miou: float
    miou_augmented: float | None = None


# ScalableViT, tables of ADE20K results; S fits with wide_value=True.
PAPER_SEGMENTATION = {
    ("semantic_fpn", "scalablevit_small"): PaperRow(30.4, 174, 44.9),
    ("semantic_fpn", "scalablevit_base"): PaperRow(79.0, 270, 48.4),
    ("semantic_fpn", "scalablevit_large"): PaperRow(105.5, 402, 49.4),
    ("upernet", "scalablevit_small"): PaperRow(56.5, 931, 48.5, 49.4),
    ("upernet", "scalablevit_base"): PaperRow(107.0, 1029, 49.5, 50.4),
    ("upernet", "scalablevit_large"): PaperRow(135.5, 1162, 49.7, 50.7),
}


def dense_cost(stage: Stage, classes: tuple[str, ...], size: tuple[int, int] = IMAGE_SIZE) -> Cost:
    """Cost of one image of height and width `size`, counted without arithmetic or memory.

    The parameters include the auxiliary head's, which is part of training; the multiply-accumulates do not.
    """
    task = SegmentationTask(stage, classes)
    with torch.device("meta"):
        model = task.build_model()
    return count_cost(model, (1, 3, *size))


def dense_cost_beside_paper(stage: Stage, cost: Cost) -> str:
    """One line with the cost, and the paper's figures where the paper has the model."""
    assert stage.task.kind == "segmentation"
    line = (
        f"{stage.model.name} with {stage.task.head}: {cost.parameters / 1e6:.2f} M parameters, "
        f"{cost.macs / 1e9:.1f} GFLOPs as the paper counts (multiply-accumulates of convolutions and linear layers), "
        f"{cost.macs_with_attention / 1e9:.1f} G with attention"
    )
    row = PAPER_SEGMENTATION.get((stage.task.head, stage.model.name))
    size = f"{IMAGE_SIZE[0]}x{IMAGE_SIZE[1]}"
    return line if row is None else f"{line}; paper, ADE20K at {size}: {row.parameters_m} M, {row.gflops} GFLOPs"
