"""What recipes may say: the sections of the data and of the task, and what is known of the task without torch."""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from scalablevit.config.data import LabelledImages
from scalablevit.config.task import TaskSection
from scalablevit.config.task_info import MetricInfo, TaskInfo


class TagTable(LabelledImages):
    """Images, and for each split a CSV file (`train.annotations`, `val.annotations`) of `image,tag,tag,...` lines."""

    source: Literal["tag_table"]
    tags: Annotated[list[str], Field(min_length=1)]
    """Every tag, in the order of the network's outputs."""

    @model_validator(mode="after")
    def _check_tables(self) -> Self:
        if any(split.annotations is None for split in (self.train, self.val)):
            raise ValueError("train.annotations and val.annotations are needed by the tag_table source")
        return self


class Tagging(TaskSection):
    """Any number of tags for each image."""

    kind: Literal["tagging"]
    threshold: Annotated[float, Field(gt=0, lt=1)] = 0.5
    """A tag counts as given from this probability on."""


TAGGING = TaskInfo(
    kind="tagging",
    module="image_tags.kind",
    stage_name="tag",
    sources=("tag_table",),
    metrics=(MetricInfo("f1", promotable=True), MetricInfo("loss", better="min")),
    class_metrics={"recall": "Found share of the images that have it"},
    needs_pyramid=False,
    output_files=("tags.csv",),
    confusion_unit="images",
    drawn_in_pairs=False,
)
