"""What a model costs, and blank batches to time its steps on."""

import torch
from torch import Tensor, nn

from image_tags.task import TaggingTask
from scalablevit.config.recipe import Stage
from scalablevit.data.batch import LabelBatch
from scalablevit.models.counting import Cost, count_cost, describe_cost
from scalablevit.tasks.capabilities import GREY


class TagCosts:
    """See `scalablevit.tasks.capabilities.Costs`."""

    def __init__(self, stage: Stage, classes: tuple[str, ...]) -> None:
        self.task = TaggingTask(stage, classes)

    @property
    def size(self) -> tuple[int, int]:
        return self.task.data.image_size, self.task.data.image_size

    def count(self) -> Cost:
        with torch.device("meta"):
            model = self.task.build_model()
        return count_cost(model, (1, 3, *self.size))

    def describe(self) -> str:
        return describe_cost(self.task.stage.model.name, self.count())

    def blank_batch(self, samples: int) -> LabelBatch:
        return LabelBatch(
            images=torch.full((samples, *self.size, 3), GREY, dtype=torch.uint8),
            labels=torch.zeros(samples, len(self.task.classes), dtype=torch.int64),
            samples=samples,
        )

    def countable_loss(self, model: nn.Module, batch: LabelBatch) -> Tensor:
        return self.task.loss(model, batch)[0]
