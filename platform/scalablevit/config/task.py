"""The recipe's task sections: one for each kind of training."""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from scalablevit.config.data import CocoInstances, Data
from scalablevit.config.section import PositiveInt, Section

SHOWN_SCORE = 0.3
"""Least score of a detection that is drawn, or counted as found, where single images are looked at."""


class TaskSection(Section):
    """Base class of the task sections."""

    def check_data(self, data: Data) -> None:
        """Refuse data that the task cannot learn from although its source fits.

        Raises:
            ValueError: with what must be changed.
        """


class Classification(TaskSection):
    """Image classification."""

    kind: Literal["classification"]
    """One class an image."""
    label_smoothing: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Mass spread over all classes."""


class Sliding(Section):
    """Sliding-window inference: overlapping windows, logits averaged."""

    window: Annotated[int, Field(ge=16, le=16_384)]
    """Side of the window, pixels."""
    stride: Annotated[int, Field(ge=1, le=16_384)]
    """Step between windows, pixels."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.stride > self.window:
            raise ValueError(f"stride ({self.stride}) must be at most window ({self.window}), or pixels are left out")
        return self


class TestTimeAugmentation(Section):
    """Predictions averaged over scales and mirror images."""

    __test__ = False

    scales: Annotated[tuple[Annotated[float, Field(gt=0)], ...], Field(min_length=1)]
    """Factors on the evaluation size."""
    flip: bool = True
    """Also the horizontal mirror image of each."""


class Segmentation(TaskSection):
    """Semantic segmentation through MMSegmentation's heads."""

    kind: Literal["segmentation"]
    """A class for every pixel."""
    head: Literal["semantic_fpn", "upernet"]
    """MMSegmentation's head over the feature pyramid."""
    neck_channels: PositiveInt = 256
    """Semantic FPN: channels of the feature pyramid."""
    head_channels: PositiveInt | None = None
    """Channels of the head; null: 128 for Semantic FPN, 512 for UperNet."""
    auxiliary_loss_weight: Annotated[float, Field(ge=0)] = 0.4
    """UperNet: weight of the auxiliary FCN head on the stride-16 map; 0: no such head."""
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.1
    """Dropout before the classifying convolution."""
    sliding: Sliding | None = None
    """Sliding-window evaluation; null: whole images."""
    test_time_augmentation: TestTimeAugmentation | None = None
    """Multi-scale and flip evaluation by `evaluate`; null: off."""


class Detection(TaskSection):
    """Object detection and instance segmentation through torchvision's detectors."""

    kind: Literal["detection"]
    """Boxes, and with Mask R-CNN masks, of objects."""
    head: Literal["retinanet", "mask_rcnn"]
    """RetinaNet: boxes; Mask R-CNN: boxes and masks."""
    neck_channels: Annotated[int, Field(ge=8, le=4096)] = 256
    """Channels of the feature pyramid and of the convolutions after it."""
    head_channels: Annotated[int, Field(ge=1, le=65_536)] = 1024
    """Mask R-CNN: width of the two linear layers of its box head."""
    anchor_size: Annotated[int, Field(ge=4, le=512)] = 32
    """Side of the anchors on the finest level, pixels; it doubles from level to level."""
    proposals: Annotated[int, Field(ge=1, le=100_000)] = 1000
    """Mask R-CNN: regions taken from a level and kept from all of them in evaluation; twice as many in training."""
    roi_samples: Annotated[int, Field(ge=1, le=100_000)] = 512
    """Mask R-CNN: regions of an image that the box head is trained on."""
    score_threshold: Annotated[float, Field(ge=0, lt=1)] = 0.05
    """Detections below this score are dropped."""
    nms_threshold: Annotated[float, Field(gt=0, le=1)] = 0.5
    """Of two boxes of a class that overlap by more (intersection over union), the weaker one is dropped."""
    max_detections: PositiveInt = 100
    """Most detections of an image; COCO's metrics count 100 of them at most."""

    def check_data(self, data: Data) -> None:
        """Refuse data without masks for Mask R-CNN.

        Raises:
            ValueError: there are none.
        """
        if self.head == "mask_rcnn" and isinstance(data, CocoInstances) and not data.instance_masks:
            raise ValueError("task.head mask_rcnn learns from masks: data.instance_masks must be true")


Task = Annotated[Classification | Segmentation | Detection, Field(discriminator="kind")]


def head_of(task: Task) -> str | None:
    """Return a task's `head`; None for a task without a choice of heads."""
    head: str | None = getattr(task, "head", None)
    return head
