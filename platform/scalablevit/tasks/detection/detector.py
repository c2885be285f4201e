"""torchvision's RetinaNet and Mask R-CNN over our pyramids; the only file that imports torchvision.models.detection."""

import math
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves
from torchvision.models.detection import MaskRCNN, RetinaNet
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor, TwoMLPHead
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.mask_rcnn import MaskRCNNHeads, MaskRCNNPredictor
from torchvision.models.detection.roi_heads import paste_masks_in_image
from torchvision.models.detection.transform import GeneralizedRCNNTransform
from torchvision.ops import FeaturePyramidNetwork, sigmoid_focal_loss
from torchvision.ops import boxes as boxes_of_torchvision
from torchvision.ops.feature_pyramid_network import LastLevelMaxPool, LastLevelP6P7

from scalablevit.config.task import Detection
from scalablevit.models.backbone import Pyramid

STRIDE = 32
"""Batches are padded to multiples of it, pixels."""
ROI_SIZE, MASK_ROI_SIZE = 7, 14
"""Cells on a side of what the box and the mask head see of a region."""
PASTED_ELEMENTS = 16 * 2**20
"""Largest number of mask pixels that are floats at a time: 64 MB."""
ASPECT_RATIOS = (0.5, 1.0, 2.0)
_NEW_STD = 0.01


class FeaturePyramid(nn.Module):
    """A backbone's maps, brought to one width and two further levels (FPN, Lin et al., arXiv 1612.03144).

    Args:
        body: the backbone, with its weights.
        neck: makes the pyramid of them.
        out_channels: of the pyramid's maps; torchvision's detectors read it.
    """

    def __init__(self, body: Pyramid, neck: FeaturePyramidNetwork, out_channels: int) -> None:
        super().__init__()
        self.body = body
        self.fpn = neck
        self.out_channels = out_channels

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Images (B, 3, H, W) to maps (B, out_channels, h, w), finest first; those of the backbone are "0", "1", ..."""
        maps = OrderedDict((str(number), each) for number, each in enumerate(self.body(images)))
        levels: dict[str, Tensor] = self.fpn(maps)
        return levels


class Batching(GeneralizedRCNNTransform):  # type: ignore[misc]  # torchvision's detectors are untyped
    """Stacks images, and nothing else: sizes, normalization and the way back to the original belong to the task.

    Args:
        fill: normalized colour of the padding, of each channel. Not zeros, as torchvision pads: of them a fresh
            ScalableViT makes tokens of exactly zero, where LayerNorms multiply gradients by 1 / sqrt(eps) each, to
            10^7 in all (measured).
    """

    def __init__(self, fill: Sequence[float]) -> None:
        super().__init__(0, 0, [], [], size_divisible=STRIDE, _skip_resize=True)
        self.fill = tuple(fill)

    def forward(
        self, images: list[Tensor], targets: list[dict[str, Tensor]] | None = None
    ) -> tuple[ImageList, list[dict[str, Tensor]] | None]:
        """Normalized images (3, h, w), padded at the right and bottom to one size, a multiple of 32."""
        sizes = [(int(image.shape[-2]), int(image.shape[-1])) for image in images]
        height, width = (STRIDE * math.ceil(max(sides) / STRIDE) for sides in zip(*sizes, strict=True))
        stacked = images[0].new_tensor(self.fill)[None, :, None, None].repeat(len(images), 1, height, width)
        for slot, image, (h, w) in zip(stacked, images, sizes, strict=True):
            slot[:, :h, :w] = image
        return ImageList(stacked, sizes), targets

    def postprocess(self, result: list[dict[str, Tensor]], *_sizes: Any) -> list[dict[str, Tensor]]:
        """Detections as they are: boxes in the input's pixels, masks (n, 1, 28, 28) in their boxes."""
        return result


class Anchors(AnchorGenerator):  # type: ignore[misc]  # torchvision's detectors are untyped
    """Anchors in full precision: those of a bfloat16 map would be rounded too, by whole pixels in large images."""

    def set_cell_anchors(self, dtype: torch.dtype, device: torch.device) -> None:
        """Move the anchors to the maps' device, not to their type."""
        super().set_cell_anchors(torch.float32, device)


class OverPyramid(nn.Module):
    """What optimizers ask a detector over a `FeaturePyramid` for."""

    backbone: FeaturePyramid

    def no_weight_decay(self) -> set[str]:
        """The backbone's parameters that are kept from weight decay as well as norms and biases."""
        return {f"backbone.body.{name}" for name in self.backbone.body.no_weight_decay()}

    def group_matcher(self, coarse: bool = False) -> Callable[[str], float]:
        """Layer of a parameter by its name, for `timm.optim.param_groups_layer_decay`: neck and heads come last."""
        layers = {f"backbone.body.{name}": float(layer) for name, layer in self.backbone.body.layer_indices().items()}
        return lambda name: layers.get(name, math.inf)


class PyramidRetinaNet(OverPyramid, RetinaNet):  # type: ignore[misc]  # torchvision's detectors are untyped
    """RetinaNet over a `FeaturePyramid`."""


class PyramidMaskRCNN(OverPyramid, MaskRCNN):  # type: ignore[misc]  # torchvision's detectors are untyped
    """Mask R-CNN over a `FeaturePyramid`."""


def build_detector(task: Detection, pyramid: Pyramid, num_classes: int, fill: Sequence[float]) -> nn.Module:
    """The detector of a recipe's task.

    New layers are drawn as the paper says: the pyramid by Xavier, the others from a normal distribution of standard
    deviation 0.01. The bias of RetinaNet's classifier stays what focal loss needs.

    Args:
        task: the recipe's task.
        pyramid: the backbone, with its weights.
        num_classes: at least 1, without a background.
        fill: normalized colour of padding, see `Batching`.

    Returns:
        In training mode `model(images, targets)` gives the losses by name, in evaluation mode `model(images)` a dict
        with `boxes`, `scores`, `labels` and, of Mask R-CNN, `masks` for each image. Images are a list of normalized
        (3, h, w); targets hold `boxes` (n, 4), `labels` (n,) and, for Mask R-CNN, `masks` (n, h, w). Labels count from
        `first_label(task)`.
    """
    model: nn.Module = (
        _retinanet(task, pyramid, num_classes) if task.head == "retinanet" else _mask_rcnn(task, pyramid, num_classes)
    )
    model.transform = Batching(fill)
    for head in _heads(model):
        head.register_forward_hook(_in_float)
    return model


def first_label(task: Detection) -> int:
    """The number of the first class: Mask R-CNN keeps 0 for the background."""
    return int(task.head == "mask_rcnn")


def paste_masks(masks: Tensor, boxes: Tensor, size: tuple[int, int]) -> Iterator[Tensor]:
    """Masks at an image's size, some at a time.

    Args:
        masks: probabilities (n, 1, m, m) within the boxes.
        boxes: (n, 4) in the image's pixels.
        size: height and width of the image.

    Yields:
        bool (k, height, width), in the order of `masks`.
    """
    count = max(1, PASTED_ELEMENTS // (size[0] * size[1]))
    for part, where in zip(masks.split(count), boxes.split(count), strict=True):
        yield paste_masks_in_image(part, where, size)[:, 0] >= 0.5


def image_list(images: Tensor, size: Tensor) -> ImageList:
    """Return images (1, 3, H, W) as torchvision's detectors take them, of a height and width that are computed."""
    return ImageList(images, [(size[0], size[1])])


@contextmanager
def sizes_as_inputs() -> Iterator[None]:
    """While a detector is traced, clip boxes to the image size that it is given: torchvision would fix the number."""
    usual = boxes_of_torchvision.clip_boxes_to_image
    boxes_of_torchvision.clip_boxes_to_image = _clipped
    try:
        yield
    finally:
        boxes_of_torchvision.clip_boxes_to_image = usual


def _clipped(boxes: Tensor, size: tuple[Tensor, Tensor]) -> Tensor:
    height, width = (side.to(boxes.dtype) for side in size)
    limits = torch.stack([width, height, width, height])
    return torch.minimum(boxes.clamp(min=0), limits)


class CostProbe(nn.Module):
    """What a detector computes for images and a number of regions, without the parts between that select them.

    For counting on meta or fake tensors, where there is nothing to select from.

    Args:
        model: of `build_detector`.
        box_regions: regions that the box head sees.
        mask_regions: regions that the mask head sees.
    """

    def __init__(self, model: Any, box_regions: int, mask_regions: int) -> None:
        super().__init__()
        self.model = model
        self.regions = box_regions, mask_regions

    def forward(self, images: Tensor) -> list[Any]:
        """Images (B, 3, H, W) to what each head says of them or of its regions."""
        maps = list(self.model.backbone(images).values())
        if isinstance(self.model, RetinaNet):
            return [self.model.head(maps)]
        heads, channels = self.model.roi_heads, self.model.backbone.out_channels
        boxed = images.new_empty(self.regions[0], channels, ROI_SIZE, ROI_SIZE)
        masked = images.new_empty(self.regions[1], channels, MASK_ROI_SIZE, MASK_ROI_SIZE)
        return [
            self.model.rpn.head(maps),
            heads.box_predictor(heads.box_head(boxed)),
            heads.mask_predictor(heads.mask_head(masked)),
        ]


def countable_loss(model: Any, images: list[Tensor], roi_samples: int) -> Tensor:
    """A scalar that keeps as much for its backward pass as a detector's losses, by its largest parts.

    Args:
        model: of `build_detector`.
        images: as it takes them.
        roi_samples: regions of an image that Mask R-CNN's box head is trained on; its mask head gets those that show
            an object, at most a quarter of them.
    """
    regions = roi_samples * len(images)
    stacked = model.transform(images)[0].tensors
    outputs = CostProbe(model, regions, regions // 4)(stacked)
    if isinstance(model, RetinaNet):
        scores = outputs[0].pop("cls_logits")
        outputs.append(sigmoid_focal_loss(scores, torch.zeros_like(scores)))
    return torch.stack([each.sum() for each in tree_leaves(outputs)]).sum()


def _retinanet(task: Detection, pyramid: Pyramid, num_classes: int) -> Any:
    """Levels P3 to P7; P6 comes from C5 (Lin et al., arXiv 1708.02002)."""
    width = task.neck_channels
    pyramid.drop_finest(1)
    extra = LastLevelP6P7(pyramid.channels[-1], width)
    extra.use_P5 = False  # torchvision takes P5 instead wherever C5 happens to have as many channels as the pyramid
    sizes = tuple(
        tuple(int(task.anchor_size * 2**level * 2 ** (third / 3)) for third in range(3)) for level in range(5)
    )
    model: Any = PyramidRetinaNet(
        _feature_pyramid(pyramid, width, extra),
        num_classes,
        anchor_generator=Anchors(sizes, (ASPECT_RATIOS,) * len(sizes)),
        score_thresh=task.score_threshold,
        nms_thresh=task.nms_threshold,
        detections_per_img=task.max_detections,
    )
    prior = model.head.classification_head.cls_logits.bias.detach().clone()
    _initialize(model.head)
    with torch.no_grad():
        model.head.classification_head.cls_logits.bias.copy_(prior)
    return model


def _mask_rcnn(task: Detection, pyramid: Pyramid, num_classes: int) -> Any:
    """Levels P2 to P6 (He et al., arXiv 1703.06870)."""
    width = task.neck_channels
    sizes = tuple((task.anchor_size * 2**level,) for level in range(5))
    model: Any = PyramidMaskRCNN(
        _feature_pyramid(pyramid, width, LastLevelMaxPool()),
        rpn_anchor_generator=Anchors(sizes, (ASPECT_RATIOS,) * len(sizes)),
        rpn_pre_nms_top_n_train=2 * task.proposals,
        rpn_pre_nms_top_n_test=task.proposals,
        rpn_post_nms_top_n_train=2 * task.proposals,
        rpn_post_nms_top_n_test=task.proposals,
        box_head=TwoMLPHead(width * ROI_SIZE**2, task.head_channels),
        box_predictor=FastRCNNPredictor(task.head_channels, num_classes + 1),
        box_score_thresh=task.score_threshold,
        box_nms_thresh=task.nms_threshold,
        box_detections_per_img=task.max_detections,
        box_batch_size_per_image=task.roi_samples,
        mask_head=MaskRCNNHeads(width, (width,) * 4, 1),
        mask_predictor=MaskRCNNPredictor(width, width, num_classes + 1),
    )
    _initialize(model.rpn)
    _initialize(model.roi_heads)
    return model


def _feature_pyramid(pyramid: Pyramid, width: int, extra: nn.Module) -> FeaturePyramid:
    neck = FeaturePyramidNetwork(list(pyramid.channels), width, extra_blocks=extra)
    for module in neck.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.xavier_uniform_(module.weight)
            nn.init.constant_(module.bias, 0.0)  # type: ignore[arg-type]  # a pyramid without norms has biases
    return FeaturePyramid(pyramid, neck, width)


def _initialize(part: nn.Module) -> None:
    for module in part.modules():
        if isinstance(module, nn.Conv2d | nn.ConvTranspose2d | nn.Linear):
            nn.init.normal_(module.weight, std=_NEW_STD)
            nn.init.constant_(module.bias, 0.0)  # type: ignore[arg-type]  # none of torchvision's goes without


def _heads(model: Any) -> list[nn.Module]:
    """The parts whose outputs become boxes, scores, masks and losses."""
    if isinstance(model, RetinaNet):
        return [model.head]
    return [model.rpn.head, model.roi_heads.box_predictor, model.roi_heads.mask_predictor]


def _in_float(_head: nn.Module, _inputs: Any, outputs: Any) -> Any:
    """A head's outputs in float32 also under autocast: boxes are decoded in the type of what the head says of them."""
    if isinstance(outputs, Tensor):
        return outputs.float()
    if isinstance(outputs, dict):
        return {name: each.float() for name, each in outputs.items()}
    return type(outputs)(_in_float(_head, _inputs, each) for each in outputs)
