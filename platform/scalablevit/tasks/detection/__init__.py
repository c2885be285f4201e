"""Object detection and instance segmentation."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from scalablevit.tasks.registry import TaskKind

if TYPE_CHECKING:
    from scalablevit.config.recipe import Stage
    from scalablevit.tasks.examination import Examination
    from scalablevit.tasks.tally import Tally
    from scalablevit.tasks.task import Task


class DetectionKind(TaskKind):
    """See `TaskKind`."""

    def build_task(self, stage: "Stage", classes: tuple[str, ...]) -> "Task":
        """Return the task of a stage."""
        from scalablevit.tasks.detection.task import DetectionTask

        return DetectionTask(stage, classes)

    def build_error_analysis(self, classes: Sequence[str]) -> "Examination":
        """Return the precision by recall, and the F1 of each image."""
        from scalablevit.tasks.detection.error_analysis import BoxExamination

        return BoxExamination(classes)

    def build_sample_statistics(self, metric: str, classes: Sequence[str]) -> "Tally":
        """Return the matches of each image."""
        from scalablevit.tasks.detection.bootstrap import PrecisionTally

        return PrecisionTally(tuple(classes), "mask" if metric == "mask_ap" else "box")


KIND: TaskKind = DetectionKind()
