"""Object detection and instance segmentation."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from scalablevit.tasks.registry import TaskKind

if TYPE_CHECKING:
    from pathlib import Path

    import numpy as np
    from numpy.typing import NDArray
    from PIL import Image

    from scalablevit.config.recipe import Stage
    from scalablevit.inspection.statistics import DataStatistics
    from scalablevit.tasks.capabilities import Costs, Predictor
    from scalablevit.tasks.columns import ColumnType
    from scalablevit.tasks.drawing import Drawing
    from scalablevit.tasks.error_analysis import ErrorAnalysis
    from scalablevit.tasks.export import Export
    from scalablevit.tasks.output import Output, PredictionDict
    from scalablevit.tasks.preprocessing import TaskPreprocessing
    from scalablevit.tasks.sample_statistics import SampleStatistics
    from scalablevit.tasks.task import Task

MAX_SCORE_THRESHOLD = 0.1
"""Largest `task.score_threshold` without a warning."""


class DetectionKind(TaskKind):
    """The kind `detection`; implements `TaskKind`."""

    class_column = "labels"

    def build_task(self, stage: "Stage", classes: tuple[str, ...]) -> "Task":
        """Return the task of a stage."""
        from scalablevit.tasks.detection.task import DetectionTask

        return DetectionTask(stage, classes)

    def data_warnings(self, stage: "Stage", statistics: "DataStatistics") -> "tuple[str, ...]":
        """Warn of anchors of another size than the objects, and of detections that the metric would count."""
        from scalablevit.tasks.detection.anchor_sizes import anchor_warnings

        threshold = getattr(stage.task, "score_threshold", 0.0)
        dropped = (
            f"task.score_threshold {threshold:g} drops detections that COCO's average precision counts, too: "
            "val/box_ap is lower than other tools report; 0.05 is usual"
        )
        return (*anchor_warnings(stage, statistics), *([dropped] if threshold > MAX_SCORE_THRESHOLD else []))

    def build_costs(self, stage: "Stage", classes: tuple[str, ...]) -> "Costs":
        """Return the counter of a detector's parameters and multiply-accumulates."""
        from scalablevit.tasks.detection.costs import DetectorCosts

        return DetectorCosts(stage, classes)

    def build_predictor(self, stage: "Stage", classes: tuple[str, ...]) -> "Predictor":
        """Return the predictor of the objects in an image."""
        from scalablevit.tasks.detection.predictor import DetectionPredictor

        return DetectionPredictor(stage, classes)

    def build_error_analysis(self, classes: Sequence[str]) -> "ErrorAnalysis":
        """Return an error analysis by the F1 of each image, with precision by recall over all images."""
        from scalablevit.tasks.detection.error_analysis import BoxErrorAnalysis

        return BoxErrorAnalysis(classes)

    def build_sample_statistics(self, metric: str, classes: Sequence[str]) -> "SampleStatistics":
        """Return the statistics of an average precision: each image's matches of detections and annotations."""
        from scalablevit.tasks.detection.bootstrap import PrecisionStatistics

        return PrecisionStatistics(tuple(classes), "mask" if metric == "mask_ap" else "box")

    def build_output(self, classes: Sequence[str], folder: "Path") -> "Output":
        """Return the writer of annotations and overlays."""
        from scalablevit.tasks.detection.outputs import Detections

        return Detections(classes, folder)

    def draw_prediction(
        self, image: "NDArray[np.uint8]", prediction: "PredictionDict", classes: Sequence[str], min_score: float
    ) -> "Image.Image":
        """Return boxes, and masks if there are any, drawn over their image."""
        from scalablevit.tasks.detection.outputs import draw_prediction

        return draw_prediction(image, prediction, classes, min_score)

    def prediction_columns(self, stage: "Stage") -> "dict[str, ColumnType]":
        """Return the types of `boxes`, `scores`, `labels` and, for Mask R-CNN, `masks`."""
        from scalablevit.config.task import head_of
        from scalablevit.tasks.columns import DOUBLE, STRING, ColumnType, array_of

        columns = {"boxes": array_of(array_of(DOUBLE)), "scores": array_of(DOUBLE), "labels": array_of(STRING)}
        if head_of(stage.task) == "mask_rcnn":
            mask: ColumnType = {"type": "object", "properties": {"size": array_of({"type": "long"}), "counts": STRING}}
            columns["masks"] = array_of(mask)
        return columns

    def parse_prediction(self, received: "PredictionDict", size: tuple[int, int]) -> "PredictionDict":
        """Return a server's prediction with the types of `DetectionPrediction.to_dict`."""
        from scalablevit.tasks.detection.outputs import parse_prediction

        return parse_prediction(received, size)

    def drawing(self) -> "Drawing":
        """Return the drawing of images with boxes and masks."""
        from scalablevit.tasks.detection.drawing import BoxDrawing

        return BoxDrawing()

    def export(self) -> "Export":
        """Return the description of how the parts of a detector are exported."""
        from scalablevit.tasks.detection.export import EXPORT

        return EXPORT

    def describe_preprocessing(self, stage: "Stage") -> "TaskPreprocessing":
        """Return how an image is scaled, and the lowest score of a detection."""
        from scalablevit.tasks.detection.export import describe_preprocessing

        return describe_preprocessing(stage)


KIND: TaskKind = DetectionKind()
