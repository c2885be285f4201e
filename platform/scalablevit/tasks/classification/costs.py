"""Parameters and multiply-accumulates of classifiers, and blank batches."""

import torch
from torch import Tensor, nn

from scalablevit.config.recipe import Stage
from scalablevit.data.batch import LabelBatch
from scalablevit.models.counting import Cost, count_cost, describe_cost
from scalablevit.tasks.capabilities import GREY
from scalablevit.tasks.classification.task import ClassificationTask


class ClassifierCosts:
    """Counts a classifier's parameters and multiply-accumulates; implements `tasks.capabilities.Costs`."""

    def __init__(self, stage: Stage, classes: tuple[str, ...]) -> None:
        self._task = ClassificationTask(stage, classes)

    @property
    def size(self) -> tuple[int, int]:
        """Return height and width of the evaluation crop, in pixels."""
        side = self._task.data.image_size
        return side, side

    def count(self) -> Cost:
        """Return the cost of one evaluation crop."""
        with torch.device("meta"):
            model = self._task.build_model()
        return count_cost(model, (1, 3, *self.size))

    def describe(self) -> str:
        """Return one line with the cost, and the paper's values where the paper has this model."""
        return describe_cost(self._task.stage.model.name, self.count())

    def blank_batch(self, samples: int) -> LabelBatch:
        """Return grey images (samples, height, width, 3), all of the first class."""
        images = torch.full((samples, *self.size, 3), GREY, dtype=torch.uint8)
        labels = torch.zeros(samples, dtype=torch.int64)
        return LabelBatch(images=images, labels=labels, samples=samples)

    def countable_loss(self, model: nn.Module, batch: LabelBatch) -> Tensor:
        """Return the task's own loss, a scalar."""
        return self._task.loss(model, batch)[0]
