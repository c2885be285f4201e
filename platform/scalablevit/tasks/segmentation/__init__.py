"""Semantic segmentation."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from scalablevit.tasks.registry import TaskKind

if TYPE_CHECKING:
    from pathlib import Path

    import numpy as np
    from numpy.typing import NDArray
    from PIL import Image

    from scalablevit.config.recipe import Stage
    from scalablevit.config.section import OptionValue
    from scalablevit.tasks.capabilities import Augmentation, Costs, Predictor
    from scalablevit.tasks.columns import ColumnType
    from scalablevit.tasks.drawing import Drawing
    from scalablevit.tasks.error_analysis import ErrorAnalysis
    from scalablevit.tasks.export import Export
    from scalablevit.tasks.output import Output, PredictionDict
    from scalablevit.tasks.preprocessing import TaskPreprocessing
    from scalablevit.tasks.sample_statistics import SampleStatistics
    from scalablevit.tasks.task import Task


class SegmentationKind(TaskKind):
    """The kind `segmentation`; implements `TaskKind`."""

    class_column = "classes"

    def build_task(self, stage: "Stage", classes: tuple[str, ...]) -> "Task":
        """Return the task of a stage."""
        from scalablevit.tasks.segmentation.task import SegmentationTask

        return SegmentationTask(stage, classes)

    def check_training(self, stage: "Stage") -> None:
        """Refuse micro-batches too small for the head's batch norm."""
        from scalablevit.tasks.segmentation.task import check_micro_batch

        check_micro_batch(stage)

    def build_costs(self, stage: "Stage", classes: tuple[str, ...]) -> "Costs":
        """Return the counter of a segmentation model's parameters and multiply-accumulates."""
        from scalablevit.tasks.segmentation.costs import SegmentorCosts

        return SegmentorCosts(stage, classes)

    def build_predictor(self, stage: "Stage", classes: tuple[str, ...]) -> "Predictor":
        """Return the predictor of an image's label map."""
        from scalablevit.tasks.segmentation.predictor import MaskPredictor

        return MaskPredictor(stage, classes)

    def build_augmentation(self, stage: "Stage", classes: tuple[str, ...]) -> "Augmentation | None":
        """Return the average over scales and mirror images, where the recipe has `task.test_time_augmentation`."""
        from scalablevit.tasks.segmentation.augmentation import MaskAugmentation
        from scalablevit.tasks.segmentation.task import sections

        augmentation = sections(stage)[0].test_time_augmentation
        return None if augmentation is None else MaskAugmentation(stage, classes, augmentation)

    def build_error_analysis(self, classes: Sequence[str]) -> "ErrorAnalysis":
        """Return an error analysis by the mean IoU of each image."""
        from scalablevit.tasks.segmentation.error_analysis import MaskErrorAnalysis

        return MaskErrorAnalysis(classes)

    def build_sample_statistics(self, metric: str, classes: Sequence[str]) -> "SampleStatistics":
        """Return the statistics of mIoU or an accuracy: each image's pixels by class."""
        from scalablevit.tasks.segmentation.bootstrap import OverlapStatistics

        return OverlapStatistics(len(classes), metric)

    def build_output(self, classes: Sequence[str], folder: "Path") -> "Output":
        """Return the writer of masks, overlays and tables."""
        from scalablevit.tasks.segmentation.outputs import Masks

        return Masks(classes, folder)

    def draw_prediction(
        self, image: "NDArray[np.uint8]", prediction: "PredictionDict", classes: Sequence[str], min_score: float
    ) -> "Image.Image":
        """Return the label map drawn over its image, with a legend below."""
        from scalablevit.tasks.segmentation.outputs import draw_prediction

        return draw_prediction(image, prediction, classes)

    def prediction_columns(self, stage: "Stage") -> "dict[str, ColumnType]":
        """Return the types of `mask_png`, `classes` and `shares`."""
        from scalablevit.tasks.columns import DOUBLE, STRING, array_of

        return {"mask_png": {"type": "binary"}, "classes": array_of(STRING), "shares": array_of(DOUBLE)}

    def parse_prediction(self, received: "PredictionDict", size: tuple[int, int]) -> "PredictionDict":
        """Return a server's prediction with the types of `SegmentationPrediction.to_dict`."""
        from scalablevit.tasks.segmentation.outputs import parse_prediction

        return parse_prediction(received, size)

    def drawing(self) -> "Drawing":
        """Return the drawing of images with label maps."""
        from scalablevit.tasks.segmentation.drawing import MaskDrawing

        return MaskDrawing()

    def export(self) -> "Export":
        """Return the description of how a segmentation model is exported."""
        from scalablevit.tasks.segmentation.export import EXPORT

        return EXPORT

    def describe_preprocessing(self, stage: "Stage") -> "TaskPreprocessing":
        """Return how an image is scaled, and the windows of evaluation."""
        from scalablevit.tasks.segmentation.export import describe_preprocessing

        return describe_preprocessing(stage)

    def automatic_values(self, stage: "Stage") -> "dict[str, OptionValue]":
        """Return the head's channels, where the recipe leaves them open."""
        from scalablevit.tasks.segmentation.segmentor import head_channels
        from scalablevit.tasks.segmentation.task import sections

        task, _ = sections(stage)
        return {"task.head_channels": head_channels(task)} if task.head_channels is None else {}


KIND: TaskKind = SegmentationKind()
