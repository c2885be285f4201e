"""The kinds of task: each is loaded from the module that its `TaskInfo` names, when it is first needed."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from importlib import import_module
from typing import TYPE_CHECKING

from scalablevit.config.task_info import task_info

if TYPE_CHECKING:  # they load torch, which a client of a server does not need
    from pathlib import Path

    import numpy as np
    from numpy.typing import NDArray
    from PIL import Image

    from scalablevit.config.recipe import Stage
    from scalablevit.config.section import OptionValue
    from scalablevit.inspection.statistics import DataStatistics
    from scalablevit.tasks.capabilities import Augmentation, Costs, Predictor
    from scalablevit.tasks.columns import ColumnType
    from scalablevit.tasks.drawing import Drawing
    from scalablevit.tasks.error_analysis import ErrorAnalysis
    from scalablevit.tasks.export import Export
    from scalablevit.tasks.output import Output, PredictionDict
    from scalablevit.tasks.preprocessing import TaskPreprocessing
    from scalablevit.tasks.sample_statistics import SampleStatistics
    from scalablevit.tasks.task import Task


class TaskKind(ABC):
    """Builds everything that a kind of task can do. The module that its `TaskInfo` names has an instance as `KIND`.

    Each method imports what it needs by itself, since every worker pays for imports.
    """

    class_column: str
    """The key of a prediction's `to_dict()` whose value names classes."""

    @abstractmethod
    def build_task(self, stage: "Stage", classes: tuple[str, ...]) -> "Task":
        """Return the task of a stage for some classes.

        Raises:
            UserError: the stage cannot be trained on these classes.
        """

    def check_training(self, stage: "Stage") -> None:  # noqa: B027 - most kinds refuse nothing
        """Refuse a stage that can be evaluated but not trained: before a training, and again in each of its workers.

        What refuses to be built (`build_task`) could not be evaluated or promoted either.

        Raises:
            UserError: with what to change.
        """

    @abstractmethod
    def build_costs(self, stage: "Stage", classes: tuple[str, ...]) -> "Costs":
        """Return the counter of parameters and multiply-accumulates of a stage's model.

        Raises:
            UserError: as `build_task`.
        """

    @abstractmethod
    def build_predictor(self, stage: "Stage", classes: tuple[str, ...]) -> "Predictor":
        """Return the predictor of single images for a stage's model."""

    def build_augmentation(self, stage: "Stage", classes: tuple[str, ...]) -> "Augmentation | None":
        """Return the test-time augmentation that the stage's recipe asks for; None: there is none."""
        return None

    @abstractmethod
    def build_error_analysis(self, classes: Sequence[str]) -> "ErrorAnalysis":
        """Return a fresh error analysis, which scores the predictions for single images."""

    @abstractmethod
    def build_sample_statistics(self, metric: str, classes: Sequence[str]) -> "SampleStatistics":
        """Return empty per-sample statistics of a metric that promotion may name, for its confidence interval.

        Args:
            metric: one of the task's promotable metrics.
            classes: names, in the order of the network's outputs.
        """

    @abstractmethod
    def build_output(self, classes: Sequence[str], folder: "Path") -> "Output":
        """Return the writer of batch predictions to a folder."""

    @abstractmethod
    def parse_prediction(self, received: "PredictionDict", size: tuple[int, int]) -> "PredictionDict":
        """Return a server's prediction with the Python types that a prediction's own `to_dict()` has.

        Args:
            received: from a server's JSON.
            size: height and width of the image, pixels.

        Raises:
            ValueError, TypeError, KeyError: this is no prediction for an image of that size.
        """

    def draw_prediction(
        self, image: "NDArray[np.uint8]", prediction: "PredictionDict", classes: Sequence[str], min_score: float
    ) -> "Image.Image | None":
        """Return a prediction drawn on its image; None: this kind of task draws none.

        Args:
            image: RGB (height, width, 3).
            prediction: for this image.
            classes: names, in the order of the network's outputs.
            min_score: detections with a lower score, 0 to 1, are left out.

        Raises:
            UserError: the prediction is for an image of another size.
        """
        return None

    def prediction_columns(self, stage: "Stage") -> "dict[str, ColumnType]":
        """Return the type of each key of a prediction, for a registered model's signature; empty: no outputs named."""
        return {}

    @abstractmethod
    def drawing(self) -> "Drawing":
        """Return the drawing of images with ground truth and predictions."""

    @abstractmethod
    def export(self) -> "Export":
        """Return the description of how networks are exported."""

    @abstractmethod
    def describe_preprocessing(self, stage: "Stage") -> "TaskPreprocessing":
        """Return how an image is prepared for an exported network; see `serving.preprocessing`."""

    def data_warnings(self, stage: "Stage", statistics: "DataStatistics") -> "tuple[str, ...]":
        """Return what of the stage's task does not fit its data, with the numbers and what to change."""
        return ()

    def automatic_values(self, stage: "Stage") -> "dict[str, OptionValue]":
        """Return the values in effect for keys that the stage's recipe leaves open, by their dotted keys."""
        return {}


def task_kind(kind: str) -> TaskKind:
    """Return the `TaskKind` of a kind of task, such as `classification`.

    Raises:
        UserError: there is no such kind.
    """
    loaded: TaskKind = import_module(task_info(kind).module).KIND
    return loaded


def build_task(stage: "Stage", classes: tuple[str, ...]) -> "Task":
    """Return a stage's task; imports only what that task needs.

    Raises:
        UserError: the stage cannot be trained on these classes.
    """
    return task_kind(stage.task.kind).build_task(stage, classes)
