"""Image classification."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from scalablevit.tasks.registry import TaskKind

if TYPE_CHECKING:
    from pathlib import Path

    import numpy as np
    from numpy.typing import NDArray
    from PIL import Image

    from scalablevit.config.recipe import Stage
    from scalablevit.tasks.capabilities import Costs, Predictor
    from scalablevit.tasks.columns import ColumnType
    from scalablevit.tasks.drawing import Drawing
    from scalablevit.tasks.error_analysis import ErrorAnalysis
    from scalablevit.tasks.export import Export
    from scalablevit.tasks.output import Output, PredictionDict
    from scalablevit.tasks.preprocessing import TaskPreprocessing
    from scalablevit.tasks.sample_statistics import SampleStatistics
    from scalablevit.tasks.task import Task


class ClassificationKind(TaskKind):
    """The kind `classification`; implements `TaskKind`."""

    class_column = "probabilities"

    def build_task(self, stage: "Stage", classes: tuple[str, ...]) -> "Task":
        """Return the task of a stage."""
        from scalablevit.tasks.classification.task import ClassificationTask

        return ClassificationTask(stage, classes)

    def build_costs(self, stage: "Stage", classes: tuple[str, ...]) -> "Costs":
        """Return the counter of a classifier's parameters and multiply-accumulates."""
        from scalablevit.tasks.classification.costs import ClassifierCosts

        return ClassifierCosts(stage, classes)

    def build_predictor(self, stage: "Stage", classes: tuple[str, ...]) -> "Predictor":
        """Return the predictor of an image's classes."""
        from scalablevit.tasks.classification.predictor import ClassPredictor

        return ClassPredictor(stage, classes)

    def build_error_analysis(self, classes: Sequence[str]) -> "ErrorAnalysis":
        """Return an error analysis by the cross-entropy of each image."""
        from scalablevit.tasks.classification.error_analysis import ClassErrorAnalysis

        return ClassErrorAnalysis(classes)

    def build_sample_statistics(self, metric: str, classes: Sequence[str]) -> "SampleStatistics":
        """Return the statistics of top-1 or top-5: whether each image's class is among the most probable ones."""
        from scalablevit.tasks.classification.bootstrap import HitStatistics

        return HitStatistics(int(metric.removeprefix("top")))

    def build_output(self, classes: Sequence[str], folder: "Path") -> "Output":
        """Return the writer of a table of labels."""
        from scalablevit.tasks.classification.outputs import Labels

        return Labels(classes, folder)

    def draw_prediction(
        self, image: "NDArray[np.uint8]", prediction: "PredictionDict", classes: Sequence[str], min_score: float
    ) -> "Image.Image":
        """Return the image with its most probable classes below."""
        from scalablevit.tasks.classification.outputs import draw_prediction

        return draw_prediction(image, prediction, classes)

    def prediction_columns(self, stage: "Stage") -> "dict[str, ColumnType]":
        """Return the types of `class`, `probability` and `probabilities`."""
        from scalablevit.tasks.columns import DOUBLE, STRING

        return {"class": STRING, "probability": DOUBLE, "probabilities": {"type": "map", "values": DOUBLE}}

    def parse_prediction(self, received: "PredictionDict", size: tuple[int, int]) -> "PredictionDict":
        """Return a server's prediction with the types of `ClassificationPrediction.to_dict`."""
        from scalablevit.tasks.classification.outputs import parse_prediction

        return parse_prediction(received, size)

    def drawing(self) -> "Drawing":
        """Return the drawing of images with their class."""
        from scalablevit.tasks.classification.drawing import ClassDrawing

        return ClassDrawing()

    def export(self) -> "Export":
        """Return the description of how a classifier is exported."""
        from scalablevit.tasks.classification.export import EXPORT

        return EXPORT

    def describe_preprocessing(self, stage: "Stage") -> "TaskPreprocessing":
        """Return how an image is resized and cropped."""
        from scalablevit.tasks.classification.export import describe_preprocessing

        return describe_preprocessing(stage)


KIND: TaskKind = ClassificationKind()
