"""Parameters and multiply-accumulates of detectors, and blank batches."""

import torch
from torch import Tensor, nn

from scalablevit.config.recipe import Stage
from scalablevit.data.batch import DetectionTrainBatch
from scalablevit.models.counting import Cost, count_cost
from scalablevit.tasks.capabilities import GREY
from scalablevit.tasks.dense_cost import describe_dense_cost
from scalablevit.tasks.detection.detector import CostProbe, countable_loss
from scalablevit.tasks.detection.task import DetectionTask

COST_ASPECT = 1.6
"""Long over short side of the image that costs are given for: 800 x 1280 in the paper."""
BOX_REGIONS, MASK_REGIONS = 1000, 100
"""Regions of Mask R-CNN's heads that costs are given for, as in the paper's tables."""
BLANK_OBJECTS = 5
"""Objects in a blank image: one for each level of the pyramid."""


class DetectorCosts:
    """Counts a detector's parameters and multiply-accumulates; implements `tasks.capabilities.Costs`."""

    def __init__(self, stage: Stage, classes: tuple[str, ...]) -> None:
        self._task = DetectionTask(stage, classes)

    @property
    def size(self) -> tuple[int, int]:
        """Return height and width, in pixels, of the image that `count` counts for."""
        data = self._task.data
        return data.short_side, min(round(COST_ASPECT * data.short_side), data.long_side)

    def count(self) -> Cost:
        """Return the cost of one image; for Mask R-CNN with 1000 regions in the box head and 100 in the mask head."""
        with torch.device("meta"):
            model = self._task.build_model()
        return count_cost(CostProbe(model, BOX_REGIONS, MASK_REGIONS), (1, 3, *self.size))

    def describe(self) -> str:
        """Return one line with the cost, and the paper's values where the paper has this model."""
        return describe_dense_cost(self._task.task.head, self._task.stage.model.name, self.count(), self.size)

    def blank_batch(self, samples: int) -> DetectionTrainBatch:
        """Return grey images of `size` (height, width, 3), each with `BLANK_OBJECTS` boxes as large as anchors."""
        height, width = self.size
        sides = [min(self._task.task.anchor_size * 2**level, height, width) for level in range(BLANK_OBJECTS)]
        masks = torch.zeros((BLANK_OBJECTS, height, width), dtype=torch.uint8)
        for mask, side in zip(masks, sides, strict=True):
            mask[:side, :side] = 1
        return DetectionTrainBatch(
            images=[torch.full((height, width, 3), GREY, dtype=torch.uint8)] * samples,
            boxes=[torch.tensor([[0, 0, side, side] for side in sides], dtype=torch.float32)] * samples,
            labels=[torch.zeros(BLANK_OBJECTS, dtype=torch.int64)] * samples,
            masks=[masks] * samples if self._task.has_masks else None,
            samples=samples,
        )

    def countable_loss(self, model: nn.Module, batch: DetectionTrainBatch) -> Tensor:
        """Return a scalar loss of as many regions as the heads are trained on at most."""
        return countable_loss(model, batch.images, self._task.task.roi_samples)
