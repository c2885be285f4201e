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
from torchvision.ops.poolers import initLevelMapper

from scalablevit.config.task import Detection
from scalablevit.models.backbone import Pyramid
from scalablevit.tasks.detection.anchor_sizes import anchor_sides

STRIDE = 32
"""Heights and widths of batches are padded to multiples of this, in pixels."""
ROI_SIZE, MASK_ROI_SIZE = 7, 14
"""Side, in cells, of a pooled region in the box head and in the mask head."""
PASTED_ELEMENTS = 16 * 2**20
"""Most mask pixels that are float32 at a time: 64 MiB."""
ASPECT_RATIOS = (0.5, 1.0, 2.0)
"""Height over width of the anchors."""
_NEW_STD = 0.01


class FeaturePyramid(nn.Module):
    """Backbone and neck: maps of one width, with further coarser levels (FPN, Lin et al., arXiv 1612.03144).

    Args:
        body: the backbone, with its weights.
        neck: makes the pyramid of the backbone's maps.
        out_channels: of the pyramid's maps; torchvision's detectors read it.
    """

    def __init__(self, body: Pyramid, neck: FeaturePyramidNetwork, out_channels: int) -> None:
        super().__init__()
        self.body = body
        self.fpn = neck
        self.out_channels = out_channels

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Return maps (B, out_channels, h, w) of images (B, 3, H, W), finest first; the backbone's are "0", "1", ..."""
        maps = OrderedDict((str(level), feature_map) for level, feature_map in enumerate(self.body(images)))
        levels: dict[str, Tensor] = self.fpn(maps)
        return levels


def padded_size(image: Tensor) -> tuple[int, int]:
    """Return height and width of an image (..., h, w) that is padded for itself: multiples of `STRIDE`."""
    height, width = (STRIDE * math.ceil(side / STRIDE) for side in image.shape[-2:])
    return height, width


class Batching(GeneralizedRCNNTransform):  # type: ignore[misc]  # torchvision's detectors are untyped
    """Stacks and pads images, and nothing else: the task resizes, normalizes and maps detections back.

    Args:
        fill: normalized colour of the padding, one value per channel. Not zeros, as torchvision pads: from them a fresh
            ScalableViT makes tokens of exactly zero, where LayerNorms multiply gradients by 1 / sqrt(eps) each, to
            10^7 in all (measured).
    """

    def __init__(self, fill: Sequence[float]) -> None:
        super().__init__(0, 0, [], [], size_divisible=STRIDE, _skip_resize=True)
        self.fill = tuple(fill)

    def forward(
        self, images: list[Tensor], targets: list[dict[str, Tensor]] | None = None
    ) -> tuple[ImageList, list[dict[str, Tensor]] | None]:
        """Return normalized images (3, h, w) padded at the right and bottom to one size, and the targets unchanged.

        Height and width are multiples of `STRIDE`.
        """
        sizes = [(int(image.shape[-2]), int(image.shape[-1])) for image in images]
        height, width = (max(sides) for sides in zip(*map(padded_size, images), strict=True))
        stacked = images[0].new_tensor(self.fill)[None, :, None, None].repeat(len(images), 1, height, width)
        for slot, image, (h, w) in zip(stacked, images, sizes, strict=True):
            slot[:, :h, :w] = image
        return ImageList(stacked, sizes), targets

    def postprocess(self, result: list[dict[str, Tensor]], *_sizes: Any) -> list[dict[str, Tensor]]:
        """Return detections unchanged: boxes in the input's pixels, masks (n, 1, 28, 28) within their boxes."""
        return result


class Anchors(AnchorGenerator):  # type: ignore[misc]  # torchvision's detectors are untyped
    """Anchors in float32: in bfloat16, the maps' type under autocast, they are off by whole pixels in large images."""

    def set_cell_anchors(self, dtype: torch.dtype, device: torch.device) -> None:
        """Move the anchors to the maps' device, but keep float32."""
        super().set_cell_anchors(torch.float32, device)


class OverPyramid(nn.Module):
    """Mixin with timm's parameter groups for a detector over a `FeaturePyramid`."""

    backbone: FeaturePyramid

    def no_weight_decay(self) -> set[str]:
        """Return names of the backbone's parameters without weight decay, besides norms and biases."""
        return {f"backbone.body.{name}" for name in self.backbone.body.no_weight_decay()}

    def group_matcher(self, coarse: bool = False) -> Callable[[str], float]:
        """Return a function from a parameter's name to its layer, for `timm.optim.param_groups_layer_decay`.

        Neck and heads are after the last layer.
        """
        layers = {f"backbone.body.{name}": float(layer) for name, layer in self.backbone.body.layer_indices().items()}
        return lambda name: layers.get(name, math.inf)


class PyramidRetinaNet(OverPyramid, RetinaNet):  # type: ignore[misc]  # torchvision's detectors are untyped
    """RetinaNet over a `FeaturePyramid`."""


class PyramidMaskRCNN(OverPyramid, MaskRCNN):  # type: ignore[misc]  # torchvision's detectors are untyped
    """Mask R-CNN over a `FeaturePyramid`."""


def build_detector(task: Detection, pyramid: Pyramid, num_classes: int, fill: Sequence[float]) -> nn.Module:
    """Return the detector of a recipe's task.

    New layers are initialized as the paper says: the neck by Xavier, the others from a normal distribution of standard
    deviation 0.01. The bias of RetinaNet's classifier keeps the value that focal loss needs.

    Args:
        task: the recipe's task.
        pyramid: the backbone, with its weights.
        num_classes: at least 1, without a background.
        fill: normalized colour of padding, see `Batching`.

    Returns:
        A module. In training mode `model(images, targets)` returns the losses by name, in eval mode `model(images)` a
        dict for each image with `boxes`, `scores`, `labels` and, for Mask R-CNN, `masks` (n, 1, 28, 28) within the
        boxes. Images are a list of normalized (3, h, w); targets hold `boxes` (n, 4), `labels` (n,) and, for Mask
        R-CNN, `masks` (n, h, w). Boxes are x1, y1, x2, y2 in the images' pixels. Labels count from `first_label(task)`.
    """
    model: nn.Module = (
        _retinanet(task, pyramid, num_classes) if task.head == "retinanet" else _mask_rcnn(task, pyramid, num_classes)
    )
    model.transform = Batching(fill)
    for head in _heads(model):
        head.register_forward_hook(_in_float)
    return model


def detect(model: nn.Module, images: Sequence[Tensor]) -> list[dict[str, Tensor]]:
    """Return what a detector in eval mode returns for each image, in their order, whatever images come together.

    Padding changes what a detector finds, so only images that need none to have one size are in a batch.

    Args:
        model: of `build_detector`.
        images: normalized (3, h, w).
    """
    alike: dict[tuple[int, int], list[int]] = {}
    for index, image in enumerate(images):
        alike.setdefault(padded_size(image), []).append(index)
    found = {
        index: output
        for indices in alike.values()
        for index, output in zip(indices, model([images[index] for index in indices]), strict=True)
    }
    return [found[index] for index in range(len(images))]


def first_label(task: Detection) -> int:
    """Return the label of the first class, 0 or 1: Mask R-CNN reserves 0 for the background."""
    return int(task.head == "mask_rcnn")


def paste_masks(masks: Tensor, boxes: Tensor, size: tuple[int, int]) -> Iterator[Tensor]:
    """Yield masks at an image's size, a few at a time, so that memory is bounded (`PASTED_ELEMENTS`).

    Args:
        masks: probabilities (n, 1, m, m) within the boxes.
        boxes: (n, 4): x1, y1, x2, y2 in the image's pixels.
        size: height and width of the image, pixels.

    Yields:
        bool (k, height, width), in the order of `masks`; true where the probability is at least 0.5.
    """
    count = max(1, PASTED_ELEMENTS // (size[0] * size[1]))
    for part, where in zip(masks.split(count), boxes.split(count), strict=True):
        yield paste_masks_in_image(part, where, size)[:, 0] >= 0.5


def image_list(images: Tensor, size: Tensor) -> ImageList:
    """Return images (1, 3, H, W) as torchvision's `ImageList`.

    Args:
        images: one image, padded.
        size: (2,) height and width without padding; a tensor, so that tracing does not fix them.
    """
    return ImageList(images, [(size[0], size[1])])


@contextmanager
def sizes_as_inputs() -> Iterator[None]:
    """Keep the image size an input while a detector is traced: torchvision's own clipping of boxes would fix it."""
    original = boxes_of_torchvision.clip_boxes_to_image
    boxes_of_torchvision.clip_boxes_to_image = _clip_boxes
    try:
        yield
    finally:
        boxes_of_torchvision.clip_boxes_to_image = original


def _clip_boxes(boxes: Tensor, size: tuple[Tensor, Tensor]) -> Tensor:
    """Return boxes (n, 4) clipped to an image's height and width, both tensors."""
    height, width = (side.to(boxes.dtype) for side in size)
    limits = torch.stack([width, height, width, height])
    return torch.minimum(boxes.clamp(min=0), limits)


class CostProbe(nn.Module):
    """A detector's layers on images and a given number of regions, without the code that selects regions.

    It counts on meta or fake tensors, which have no values to select by.

    Args:
        model: of `build_detector`.
        box_regions: regions of the box head, in all images.
        mask_regions: regions of the mask head, in all images.
    """

    def __init__(self, model: Any, box_regions: int, mask_regions: int) -> None:
        super().__init__()
        self.model = model
        self.regions = box_regions, mask_regions

    def forward(self, images: Tensor) -> list[Any]:
        """Return each head's outputs for images (B, 3, H, W), or for its regions."""
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
    """Return a scalar that saves about as much for its backward pass as a detector's losses: its largest parts.

    Args:
        model: of `build_detector`.
        images: normalized, each (3, h, w).
        roi_samples: regions of an image that Mask R-CNN's box head is trained on. Its mask head is trained on those
            with an object, at most a quarter of them.
    """
    regions = roi_samples * len(images)
    stacked = model.transform(images)[0].tensors
    outputs = CostProbe(model, regions, regions // 4)(stacked)
    if isinstance(model, RetinaNet):
        scores = outputs[0].pop("cls_logits")
        outputs.append(sigmoid_focal_loss(scores, torch.zeros_like(scores)))
    return torch.stack([output.sum() for output in tree_leaves(outputs)]).sum()


def _retinanet(task: Detection, pyramid: Pyramid, num_classes: int) -> Any:
    """Return RetinaNet on levels P3 to P7; P6 is made from C5 (Lin et al., arXiv 1708.02002)."""
    width = task.neck_channels
    pyramid.drop_finest(1)
    extra = LastLevelP6P7(pyramid.channels[-1], width)
    extra.use_P5 = False  # torchvision takes P5 instead where C5 has as many channels as the pyramid
    sizes = anchor_sides(task)
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
    """Return Mask R-CNN on levels P2 to P6 (He et al., arXiv 1703.06870)."""
    width = task.neck_channels
    sizes = anchor_sides(task)
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
    strides = pyramid.strides
    for pool in (model.roi_heads.box_roi_pool, model.roi_heads.mask_roi_pool):
        # torchvision would guess them from the first batch, wrongly where its images are far below their padded height
        pool.scales = [1 / stride for stride in strides]
        pool.map_levels = initLevelMapper(int(math.log2(strides[0])), int(math.log2(strides[-1])))
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
            nn.init.constant_(module.bias, 0.0)  # type: ignore[arg-type]  # all of torchvision's have a bias


def _heads(model: Any) -> list[nn.Module]:
    """Return the modules whose outputs become boxes, scores, masks and losses."""
    if isinstance(model, RetinaNet):
        return [model.head]
    return [model.rpn.head, model.roi_heads.box_predictor, model.roi_heads.mask_predictor]


def _in_float(_head: nn.Module, _inputs: Any, outputs: Any) -> Any:
    """Return a head's outputs in float32, also under autocast: boxes are decoded in the type of the head's outputs."""
    if isinstance(outputs, Tensor):
        return outputs.float()
    if isinstance(outputs, dict):
        return {name: output.float() for name, output in outputs.items()}
    return type(outputs)(_in_float(_head, _inputs, output) for output in outputs)
