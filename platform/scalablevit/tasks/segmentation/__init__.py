"""Semantic segmentation."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from scalablevit.tasks.registry import TaskKind

if TYPE_CHECKING:
    from scalablevit.config.recipe import Stage
    from scalablevit.tasks.examination import Examination
    from scalablevit.tasks.tally import Tally
    from scalablevit.tasks.task import Task


class SegmentationKind(TaskKind):
    """See `TaskKind`."""

    def build_task(self, stage: "Stage", classes: tuple[str, ...]) -> "Task":
        """Return the task of a stage."""
        from scalablevit.tasks.segmentation.task import SegmentationTask

        return SegmentationTask(stage, classes)

    def build_error_analysis(self, classes: Sequence[str]) -> "Examination":
        """Return the confusions and the mean IoU of each image."""
        from scalablevit.tasks.segmentation.error_analysis import MaskExamination

        return MaskExamination(classes)

    def build_sample_statistics(self, metric: str, classes: Sequence[str]) -> "Tally":
        """Return the pixels of each class in each image."""
        from scalablevit.tasks.segmentation.bootstrap import OverlapTally

        return OverlapTally(len(classes), metric)


KIND: TaskKind = SegmentationKind()
