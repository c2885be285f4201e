"""The kinds of task, each found by the module that its `TaskInfo` names when something of it is needed."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from importlib import import_module
from typing import TYPE_CHECKING

from scalablevit.config.task_info import task_info

if TYPE_CHECKING:  # torch and whatever else: who reads the answer of a server needs none of it
    from pathlib import Path

    from scalablevit.config.recipe import Stage
    from scalablevit.config.section import OptionValue
    from scalablevit.inspection.statistics import DataStatistics
    from scalablevit.tasks.capabilities import Augmentation, Costs, Predictor
    from scalablevit.tasks.columns import ColumnType
    from scalablevit.tasks.drawing import Drawing
    from scalablevit.tasks.error_analysis import ErrorAnalysis
    from scalablevit.tasks.export import Export
    from scalablevit.tasks.output import Answer, Output
    from scalablevit.tasks.preprocessing import TaskPreprocessing
    from scalablevit.tasks.sample_statistics import SampleStatistics
    from scalablevit.tasks.task import Task


class TaskKind(ABC):
    """What a kind of task can do. The module named by its `TaskInfo` has an instance of it as `KIND`.

    Each method imports what it needs by itself, since every worker pays for imports.
    """

    class_column: str
    """The column of an answer that names classes."""

    @abstractmethod
    def build_task(self, stage: "Stage", classes: tuple[str, ...]) -> "Task":
        """Return the task of a stage for some classes.

        Raises:
            UserError: the stage cannot be trained on these classes.
        """

    @abstractmethod
    def build_costs(self, stage: "Stage", classes: tuple[str, ...]) -> "Costs":
        """Return what a stage's model costs; raises what `build_task` does."""

    @abstractmethod
    def build_predictor(self, stage: "Stage", classes: tuple[str, ...]) -> "Predictor":
        """Return what predicts single images with a stage's model."""

    def build_augmentation(self, stage: "Stage", classes: tuple[str, ...]) -> "Augmentation | None":
        """Return the test-time augmentation that the stage's recipe asks for; None: there is none."""
        return None

    @abstractmethod
    def build_error_analysis(self, classes: Sequence[str]) -> "ErrorAnalysis":
        """Return what tells how wrong a model is on single images."""

    @abstractmethod
    def build_sample_statistics(self, metric: str, classes: Sequence[str]) -> "SampleStatistics":
        """Return per-sample statistics of a metric that promotion may name, for its confidence interval.

        Args:
            metric: one of the task's promotable metrics.
            classes: names, in the order of the network's outputs.
        """

    @abstractmethod
    def build_output(self, classes: Sequence[str], folder: "Path") -> "Output":
        """Return what writes the answers of batch prediction into a folder."""

    @abstractmethod
    def read_answer(self, received: "Answer", size: tuple[int, int]) -> "Answer":
        """Return the answer of a server as the task gives it in the model's own process.

        Args:
            received: from a server.
            size: height and width of the image.

        Raises:
            ValueError, TypeError, KeyError: this is no answer to an image of that size.
        """

    def answer_columns(self, stage: "Stage") -> "dict[str, ColumnType]":
        """Return the columns of an answer with their types, for a registered model's signature; empty: not said."""
        return {}

    @abstractmethod
    def drawing(self) -> "Drawing":
        """Return how images with truth and predictions are drawn."""

    @abstractmethod
    def export(self) -> "Export":
        """Return how networks are exported."""

    @abstractmethod
    def describe_preprocessing(self, stage: "Stage") -> "TaskPreprocessing":
        """Return what is done to an image before an exported network sees it; see `serving.preprocessing`."""

    def data_warnings(self, stage: "Stage", statistics: "DataStatistics") -> "tuple[str, ...]":
        """Return what of the stage's task does not fit its data, with the numbers and what to change."""
        return ()

    def automatic_values(self, stage: "Stage") -> "dict[str, OptionValue]":
        """Return values that the stage's recipe leaves open, by their dotted keys."""
        return {}


def task_kind(kind: str) -> TaskKind:
    """Return what a kind of task can do.

    Raises:
        UserError: there is no such kind.
    """
    found: TaskKind = import_module(task_info(kind).module).KIND
    return found


def build_task(stage: "Stage", classes: tuple[str, ...]) -> "Task":
    """Return a stage's task; imports only what that task needs.

    Raises:
        UserError: the stage cannot be trained on these classes.
    """
    return task_kind(stage.task.kind).build_task(stage, classes)
