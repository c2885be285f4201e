"""What a detector does with the outputs of its dense head, as a module by itself."""

import copy
from collections import OrderedDict
from contextlib import AbstractContextManager
from typing import Any

from torch import Tensor, nn

from scalablevit.tasks.detection.detector import image_list, sizes_as_inputs
from scalablevit.tasks.export import Selection, Size


class DetectorSelection(Selection):
    """What a detector does with its maps and its dense head's outputs: torchvision's own code, over given values.

    Args:
        model: of `detector.build_detector`, in evaluation mode; it is copied.
        size: height and width of the network's input.
        first: number of the first class.
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
        """Outputs of `export.PyramidAndHeads` for one image, and its height and width without padding.

        Returns:
            boxes (n, 4) in the input's pixels, scores (n,), labels (n,) from 0 and, of Mask R-CNN, masks (n, 28, 28):
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
        self.model.backbone.value = OrderedDict((str(level), each) for level, each in enumerate(outputs[:levels]))
        self.model.transform.value = image_list(image, size), None
        found = self.model([image[0]])[0]
        masks = (found["masks"][:, 0],) if "masks" in found else ()
        return found["boxes"], found["scores"], found["labels"] - self.first, *masks

    def tracing(self) -> AbstractContextManager[None]:
        """Return what has to be entered while it is traced."""
        return sizes_as_inputs()


class _Given(nn.Module):
    """Stands for a part whose outputs are there already."""

    value: Any = None

    def forward(self, *_inputs: Any) -> Any:
        return self.value

    def postprocess(self, found: Any, *_sizes: Any) -> Any:
        """Detections as they are."""
        return found
