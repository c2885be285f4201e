"""Parameters and multiply-accumulates of segmentation models, and blank batches."""

import torch
from torch import Tensor, nn

from scalablevit.config.recipe import Stage
from scalablevit.data.batch import MaskBatch
from scalablevit.models.counting import Cost, count_cost
from scalablevit.tasks.capabilities import GREY
from scalablevit.tasks.dense_cost import describe_dense_cost
from scalablevit.tasks.segmentation.task import SegmentationTask


class SegmentorCosts:
    """Counts a segmentor's parameters and multiply-accumulates; implements `tasks.capabilities.Costs`."""

    def __init__(self, stage: Stage, classes: tuple[str, ...]) -> None:
        self._task = SegmentationTask(stage, classes)

    @property
    def size(self) -> tuple[int, int]:
        """Return the recipe's `data.short_side` and `data.long_side` as height and width, in pixels."""
        return self._task.data.short_side, self._task.data.long_side

    def count(self) -> Cost:
        """Return the cost; the auxiliary head counts as parameters, not as multiply-accumulates."""
        with torch.device("meta"):
            model = self._task.build_model()
        return count_cost(model, (1, 3, *self.size))

    def describe(self) -> str:
        """Return one line with the cost, and the paper's values where the paper has this model."""
        return describe_dense_cost(self._task.task.head, self._task.stage.model.name, self.count(), self.size)

    def blank_batch(self, samples: int) -> MaskBatch:
        """Return grey crops (samples, crop, crop, 3), all pixels of the first class."""
        side = self._task.data.crop_size
        images = torch.full((samples, side, side, 3), GREY, dtype=torch.uint8)
        masks = torch.zeros((samples, side, side), dtype=torch.uint8)
        return MaskBatch(images=images, masks=masks, samples=samples)

    def countable_loss(self, model: nn.Module, batch: MaskBatch) -> Tensor:
        """Return the task's own loss, a scalar."""
        return self._task.loss(model, batch)[0]
