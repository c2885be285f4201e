"""Semantic segmentation."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from scalablevit.tasks.registry import TaskKind

if TYPE_CHECKING:
    from pathlib import Path

    from scalablevit.config.recipe import Stage
    from scalablevit.config.section import OptionValue
    from scalablevit.tasks.capabilities import Augmentation, Costs, Predictor
    from scalablevit.tasks.columns import ColumnType
    from scalablevit.tasks.drawing import Drawing
    from scalablevit.tasks.error_analysis import ErrorAnalysis
    from scalablevit.tasks.export import Export
    from scalablevit.tasks.output import Answer, Output
    from scalablevit.tasks.preprocessing import TaskPreprocessing
    from scalablevit.tasks.sample_statistics import SampleStatistics
    from scalablevit.tasks.task import Task


class SegmentationKind(TaskKind):
    """See `TaskKind`."""

    class_column = "classes"

    def build_task(self, stage: "Stage", classes: tuple[str, ...]) -> "Task":
        """Return the task of a stage."""
        from scalablevit.tasks.segmentation.task import SegmentationTask

        return SegmentationTask(stage, classes)

    def build_costs(self, stage: "Stage", classes: tuple[str, ...]) -> "Costs":
        """Return what a segmentation model costs."""
        from scalablevit.tasks.segmentation.costs import SegmentorCosts

        return SegmentorCosts(stage, classes)

    def build_predictor(self, stage: "Stage", classes: tuple[str, ...]) -> "Predictor":
        """Return what predicts single images."""
        from scalablevit.tasks.segmentation.predictor import MaskPredictor

        return MaskPredictor(stage, classes)

    def build_augmentation(self, stage: "Stage", classes: tuple[str, ...]) -> "Augmentation | None":
        """Return scales and mirror images, where the recipe has `task.test_time_augmentation`."""
        from scalablevit.tasks.segmentation.augmentation import MaskAugmentation
        from scalablevit.tasks.segmentation.task import sections

        augmentation = sections(stage)[0].test_time_augmentation
        return None if augmentation is None else MaskAugmentation(stage, classes, augmentation)

    def build_error_analysis(self, classes: Sequence[str]) -> "ErrorAnalysis":
        """Return the confusions and the mean IoU of each image."""
        from scalablevit.tasks.segmentation.error_analysis import MaskErrorAnalysis

        return MaskErrorAnalysis(classes)

    def build_sample_statistics(self, metric: str, classes: Sequence[str]) -> "SampleStatistics":
        """Return the pixels of each class in each image."""
        from scalablevit.tasks.segmentation.bootstrap import OverlapStatistics

        return OverlapStatistics(len(classes), metric)

    def build_output(self, classes: Sequence[str], folder: "Path") -> "Output":
        """Return what writes masks, overlays and tables."""
        from scalablevit.tasks.segmentation.outputs import Masks

        return Masks(classes, folder)

    def answer_columns(self, stage: "Stage") -> "dict[str, ColumnType]":
        """Return the mask as a PNG file, and the classes in it with their shares."""
        from scalablevit.tasks.columns import DOUBLE, STRING, array_of

        return {"mask_png": {"type": "binary"}, "classes": array_of(STRING), "shares": array_of(DOUBLE)}

    def read_answer(self, received: "Answer", size: tuple[int, int]) -> "Answer":
        """Return the plain values of an answer."""
        from scalablevit.tasks.segmentation.outputs import read_answer

        return read_answer(received, size)

    def drawing(self) -> "Drawing":
        """Return how images are drawn with label maps."""
        from scalablevit.tasks.segmentation.drawing import MaskDrawing

        return MaskDrawing()

    def export(self) -> "Export":
        """Return how a segmentation model is exported."""
        from scalablevit.tasks.segmentation.export import EXPORT

        return EXPORT

    def describe_preprocessing(self, stage: "Stage") -> "TaskPreprocessing":
        """Return what is done to an image."""
        from scalablevit.tasks.segmentation.export import describe_preprocessing

        return describe_preprocessing(stage)

    def automatic_values(self, stage: "Stage") -> "dict[str, OptionValue]":
        """Return the channels of the head."""
        from scalablevit.tasks.segmentation.segmentor import head_channels
        from scalablevit.tasks.segmentation.task import sections

        task, _ = sections(stage)
        return {"task.head_channels": head_channels(task)} if task.head_channels is None else {}


KIND: TaskKind = SegmentationKind()
