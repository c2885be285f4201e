"""A detector's selection from its dense head's outputs, as a module of its own."""

import copy
from collections import OrderedDict
from contextlib import AbstractContextManager
from typing import Any

from torch import Tensor, nn

from scalablevit.tasks.detection.detector import image_list, sizes_as_inputs
from scalablevit.tasks.export import Selection, Size


class DetectorSelection(Selection):
    """Selects detections from maps and the dense head's outputs, by torchvision's own code on given values.

    Args:
        model: of `detector.build_detector`, in eval mode; it is copied.
        size: height and width of the network's input, pixels.
        first: the network's label of the first class, see `detector.first_label`.
    """

    def __init__(self, model: Any, size: Size, first: int) -> None:
        super().__init__()
        self.model: Any = copy.deepcopy(model)
        self.size, self.first = size, first
        self.two_stages = hasattr(model, "rpn")
        self.model.transform, self.model.backbone, head = _Given(), _Given(), _Given()
        if self.two_stages:
            self.model.rpn.head = head
        else:
            self.model.head = head

    def forward(self, outputs: tuple[Tensor, ...], size: Tensor) -> tuple[Tensor, ...]:
        """Return the detections in one image.

        Args:
            outputs: of `export.PyramidAndHeads` for one image.
            size: (2,) the image's height and width without padding, pixels.

        Returns:
            boxes (n, 4) in the input's pixels, scores (n,), labels (n,) from 0 and, for Mask R-CNN, masks (n, 28, 28):
            probabilities within the boxes.
        """
        image = outputs[0].new_zeros((1, 3, *self.size))
        if self.two_stages:
            levels = len(outputs) // 3
            head: Any = list(outputs[levels : 2 * levels]), list(outputs[2 * levels :])
            self.model.rpn.head.value = head
        else:
            levels = len(outputs) - 2
            self.model.head.value = {"cls_logits": outputs[-2], "bbox_regression": outputs[-1]}
        maps = enumerate(outputs[:levels])
        self.model.backbone.value = OrderedDict((str(level), feature_map) for level, feature_map in maps)
        self.model.transform.value = image_list(image, size), None
        detections = self.model([image[0]])[0]
        masks = (detections["masks"][:, 0],) if "masks" in detections else ()
        return detections["boxes"], detections["scores"], detections["labels"] - self.first, *masks

    def tracing(self) -> AbstractContextManager[None]:
        """Return the context manager to enter while this module is traced."""
        return sizes_as_inputs()


class _Given(nn.Module):
    """Replaces a part of a detector by outputs that are computed already."""

    value: Any = None

    def forward(self, *_inputs: Any) -> Any:
        return self.value

    def postprocess(self, detections: Any, *_sizes: Any) -> Any:
        """Return detections unchanged."""
        return detections
