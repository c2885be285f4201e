"""What the task can do besides training: drawing, error analysis, tables, export, and the statistics of promotion."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch.nn.functional as F
from matplotlib.axes import Axes
from numpy.typing import NDArray
from torch import Tensor

from image_tags.costs import TagCosts
from image_tags.predictor import TagPredictor
from image_tags.task import TaggingTask, counts_of, f1_of
from scalablevit.config.recipe import Stage
from scalablevit.data.batch import LabelBatch
from scalablevit.data.names import printable
from scalablevit.data.transforms import MiddleOfStrip
from scalablevit.tasks.error_analysis import ErrorDetails, SampleScore
from scalablevit.tasks.export import Export
from scalablevit.tasks.output import PredictionDict, Table
from scalablevit.tasks.preprocessing import TaskPreprocessing
from scalablevit.tasks.registry import TaskKind
from scalablevit.viz.samples import Image, draw_image, resize_for_plot
from scalablevit.viz.style import plain

HALF = 0.5


class TaggingKind(TaskKind):
    """See `TaskKind`."""

    class_column = "tags"

    def build_task(self, stage: Stage, classes: tuple[str, ...]) -> TaggingTask:
        return TaggingTask(stage, classes)

    def build_costs(self, stage: Stage, classes: tuple[str, ...]) -> TagCosts:
        return TagCosts(stage, classes)

    def build_predictor(self, stage: Stage, classes: tuple[str, ...]) -> TagPredictor:
        return TagPredictor(stage, classes)

    def build_error_analysis(self, classes: Sequence[str]) -> "TagErrors":
        return TagErrors(classes)

    def build_sample_statistics(self, metric: str, classes: Sequence[str]) -> "TagStatistics":
        return TagStatistics()

    def build_output(self, classes: Sequence[str], folder: Path) -> "Tags":
        return Tags(classes, folder)

    def parse_prediction(self, received: PredictionDict, size: tuple[int, int]) -> PredictionDict:
        shares = {str(name): float(value) for name, value in received["probabilities"].items()}
        return {"tags": [str(tag) for tag in received["tags"]], "probabilities": shares}

    def drawing(self) -> "TagDrawing":
        return TagDrawing()

    def export(self) -> Export:
        return Export(lambda stage: (stage.data.image_size, stage.data.image_size))

    def describe_preprocessing(self, stage: Stage) -> TaskPreprocessing:
        data = stage.data
        return TaskPreprocessing(
            short_side=data.eval_resize,
            rounding="half_even",
            shrink_filter="bilinear_antialiased" if data.antialias else "bilinear",
            antialias=data.antialias,
            longest_strip=MiddleOfStrip.LONGEST,
            center_crop=data.image_size,
        )


class TagErrors:
    """The loss of each image."""

    measure = "by the mean loss of an image's tags, the highest first"

    def __init__(self, classes: Sequence[str]) -> None:
        self.classes = classes

    def update(self, predictions: Tensor, batch: LabelBatch) -> list[SampleScore]:
        labels = batch.labels
        losses = F.binary_cross_entropy_with_logits(predictions, labels.float(), reduction="none").mean(dim=1).tolist()
        found = []
        for index, label, logits, loss in zip(batch.indices.tolist(), labels, predictions, losses, strict=True):
            words = f"{self._named(label > 0)}, predicted {self._named(logits.sigmoid() >= HALF)}; loss {loss:.2f}"
            found.append(SampleScore(index, loss, words))
        return found

    def details(self) -> ErrorDetails:
        return {}

    def _named(self, chosen: Tensor) -> str:
        return " ".join(name for name, on in zip(self.classes, chosen.tolist(), strict=True) if on) or "no tag"


class TagStatistics:
    """Right, superfluous and missing tags of each image."""

    def __init__(self) -> None:
        self.indices: list[int] = []
        self._counts: list[list[float]] = []

    def update(self, predictions: Tensor, batch: LabelBatch) -> None:
        self._counts += counts_of(predictions, batch.labels, HALF).sum(dim=2).T.tolist()
        self.indices += batch.indices.tolist()

    def metric(self, chosen: NDArray[np.int64]) -> float:
        right, wrong, missing = np.array(self._counts)[chosen].sum(axis=0).tolist()
        return f1_of(right, wrong, missing)


class Tags(Table):
    """`tags.csv`: a line for each image."""

    name = "tags.csv"
    header = ("file", "tags")

    def write_pictures(self, name: str, image: NDArray[np.uint8], prediction: PredictionDict) -> PredictionDict:
        return prediction

    def add(self, name: str, prediction: PredictionDict) -> None:
        self.write(printable(name), " ".join(prediction["tags"]))


class TagDrawing:
    """An image with the numbers of its tags, as a tuple."""

    def draw_training_image(
        self, axes: Axes, image: Image, batch: LabelBatch, index: int, classes: Sequence[str]
    ) -> None:
        axes.set_title(plain(self.caption(self.ground_truth_of(batch, index), classes)), fontsize="x-small")
        self.draw(axes, image, None)

    def ground_truth_of(self, batch: LabelBatch, index: int) -> tuple[int, ...]:
        return tuple(batch.labels[index].nonzero().flatten().tolist())

    def prediction_of(self, prediction: Tensor, ground_truth: Any) -> tuple[int, ...]:
        return tuple((prediction.sigmoid() >= HALF).nonzero().flatten().tolist())

    def size(self, image: Image, tags: Any) -> tuple[int, int]:
        return image.shape[0], image.shape[1]

    def caption(self, tags: tuple[int, ...], classes: Sequence[str]) -> str:
        return ": " + (" ".join(classes[index] for index in tags) or "none")

    def draw(self, axes: Axes, image: Image, tags: Any, classes: Sequence[str] = ()) -> None:
        draw_image(axes, resize_for_plot(image, image.shape[:2]), image.shape[:2])

    def classes_in(self, tags: Any) -> list[int]:
        return []


KIND: TaskKind = TaggingKind()
