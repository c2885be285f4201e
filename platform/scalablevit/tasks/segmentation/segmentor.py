"""MMSegmentation's Semantic FPN and UperNet over our pyramids; the only file that imports mmseg."""

import math
import warnings
from collections.abc import Callable
from typing import Any, TypeAlias

import torch.nn.functional as F
from torch import Tensor

from scalablevit.config.task import Segmentation
from scalablevit.data.labels import IGNORE
from scalablevit.models.backbone import Pyramid, build_pyramid

with warnings.catch_warnings():
    # The pure-Python build of mmcv warns at its import of compiled operators, which nothing here uses.
    warnings.simplefilter("ignore")
    from mmengine.model import initialize
    from mmseg.models import EncoderDecoder
    from mmseg.models import utils as mmseg_parts
    from mmseg.registry import MODELS

BACKBONE = "TimmPyramid"
"""Name of `models.backbone.build_pyramid` in MMSegmentation's registry: with
`custom_imports = dict(imports=["scalablevit.tasks.segmentation.segmentor"])` a plain configuration has
`backbone=dict(type="TimmPyramid", name="scalablevit_small", drop_path_rate=0.2)`."""
MODELS.register_module(name=BACKBONE, module=build_pyramid)

Upsample = mmseg_parts.Upsample
"""The layer that enlarges maps in Semantic FPN's head."""

MmsegConfig: TypeAlias = dict[str, Any]
"""A module in MMSegmentation's registry format: `type` names a class, and the other keys are that class's arguments."""

FPN_HEAD_CHANNELS = 128
UPER_HEAD_CHANNELS = 512
AUXILIARY_CHANNELS = 256


class Segmentor(EncoderDecoder):  # type: ignore[misc]  # mmseg is untyped
    """MMSegmentation's EncoderDecoder with one `forward` for losses and logits.

    Parameters are named as in MMSegmentation (`backbone`, `neck`, `decode_head`, `auxiliary_head`), so that its plain
    EncoderDecoder loads them. Images are normalized by the caller.

    Args:
        pyramid: the backbone, with its weights.
        heads: `head_configs` for the pyramid's channels.
    """

    def __init__(self, pyramid: Pyramid, heads: MmsegConfig) -> None:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", module="mmseg")  # advice on its own defaults
            # mmseg builds every part from a configuration; the backbone is built already, since heads need its channels
            super().__init__(backbone={"type": lambda: pyramid}, **heads)
        for part in heads:
            # not `init_weights()`, which would log the initialization of every parameter
            initialize(getattr(self, part), getattr(self, part).init_cfg)

    def forward(self, images: Tensor, masks: Tensor | None = None) -> Any:
        """Return logits, or with masks the losses.

        Args:
            images: normalized float (B, 3, H, W).
            masks: integer labels (B, H, W), 255 ignored.

        Returns:
            Without masks: logits (B, classes, ceil(H / 4), ceil(W / 4)) of the decode head. With masks, by name:
            `loss_ce` of the decode head; where there is an auxiliary head `loss_aux`, already weighted; and `acc`, the
            share of labelled pixels that the decode head gets right. The means of the losses run over all pixels,
            ignored ones included, as is MMSegmentation's default.
        """
        features = self.extract_feat(images)
        if masks is None:
            return self.decode_head(features)
        # not mmseg's `loss`: its accuracy selects by value, for which the host must wait for a GPU in every step
        labels = masks.long()
        logits = _resize_to(self.decode_head(features), labels)
        losses = {"loss_ce": _cross_entropy(logits, labels), "acc": _accuracy(logits.detach(), labels)}
        if self.with_auxiliary_head:
            auxiliary = _cross_entropy(_resize_to(self.auxiliary_head(features), labels), labels)
            losses["loss_aux"] = self.auxiliary_head.loss_decode.loss_weight * auxiliary
        return losses

    def no_weight_decay(self) -> set[str]:
        """Return names of the backbone's parameters without weight decay, besides norms and biases."""
        return {f"backbone.{name}" for name in self.backbone.no_weight_decay()}

    def group_matcher(self, coarse: bool = False) -> Callable[[str], float]:
        """Return a function from a parameter's name to its layer, for `timm.optim.param_groups_layer_decay`.

        Neck and heads are after the last layer.
        """
        layers = {f"backbone.{name}": float(layer) for name, layer in self.backbone.layer_indices().items()}
        return lambda name: layers.get(name, math.inf)


def head_channels(task: Segmentation) -> int:
    """Return the channels of the decode head: the recipe's, or the head's default."""
    return task.head_channels or (FPN_HEAD_CHANNELS if task.head == "semantic_fpn" else UPER_HEAD_CHANNELS)


def head_configs(task: Segmentation, channels: tuple[int, ...], num_classes: int) -> MmsegConfig:
    """Return neck, decode head and auxiliary head as in MMSegmentation's ADE20K configurations, for its registry.

    Semantic FPN (Kirillov et al., arXiv 1901.02446): feature pyramid and FPNHead. UperNet (Xiao et al., arXiv
    1807.10221): UPerHead on the backbone's maps, and an FCNHead on the map of stride 16 for training. Batch norm is
    the plain one; `torch.nn.SyncBatchNorm.convert_sync_batchnorm` finds it.

    Args:
        task: the recipe's task.
        channels: of the backbone's maps with strides 4, 8, 16 and 32.
        num_classes: at least 2.
    """
    common: MmsegConfig = {
        "num_classes": num_classes,
        "norm_cfg": {"type": "BN", "requires_grad": True},
        "align_corners": False,
        "ignore_index": IGNORE,
    }
    levels = {"in_index": [0, 1, 2, 3], "dropout_ratio": task.dropout, "loss_decode": _loss_config(1.0)}
    if task.head == "semantic_fpn":
        width = task.neck_channels
        return {
            "neck": {"type": "FPN", "in_channels": list(channels), "out_channels": width, "num_outs": 4},
            "decode_head": {
                "type": "FPNHead",
                "in_channels": [width] * 4,
                "feature_strides": list(Pyramid.strides),
                "channels": head_channels(task),
                **levels,
                **common,
            },
        }
    heads: MmsegConfig = {
        "decode_head": {
            "type": "UPerHead",
            "in_channels": list(channels),
            "channels": head_channels(task),
            **levels,
            **common,
        }
    }
    if task.auxiliary_loss_weight:
        heads["auxiliary_head"] = {
            "type": "FCNHead",
            "in_channels": channels[2],
            "in_index": 2,
            "channels": AUXILIARY_CHANNELS,
            "num_convs": 1,
            "concat_input": False,
            "dropout_ratio": task.dropout,
            "loss_decode": _loss_config(task.auxiliary_loss_weight),
            **common,
        }
    return heads


def _loss_config(weight: float) -> MmsegConfig:
    return {"type": "CrossEntropyLoss", "use_sigmoid": False, "loss_weight": weight}


def _resize_to(logits: Tensor, labels: Tensor) -> Tensor:
    """Return logits (B, classes, h, w) at the size of labels (B, H, W)."""
    return F.interpolate(logits, labels.shape[-2:], mode="bilinear", align_corners=False)


def _cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """Return the mean over all pixels (a scalar), to which ignored ones add 0."""
    # reduced by itself: on a GPU the loss's own sum is not deterministic
    return F.cross_entropy(logits, labels, ignore_index=IGNORE, reduction="none").mean()


def _accuracy(logits: Tensor, labels: Tensor) -> Tensor:
    """Return the fraction of labelled pixels whose largest logit is that of their label, a scalar."""
    # on CPUs `max` is up to five times as fast as `argmax` and `topk`
    right = logits.max(dim=1).indices == labels
    return right.sum() / (labels != IGNORE).sum().clamp(min=1)
