"""Classifiers and four-map pyramids from ScalableViT or any timm architecture."""

from collections.abc import Container
from difflib import get_close_matches
from typing import Any, cast

import timm
import torch
from timm.layers import PatchEmbed
from timm.models import FeatureInfo, get_pretrained_cfg, group_parameters, is_model, list_models
from torch import Tensor, nn

from scalablevit.config.errors import UserError
from scalablevit.models.scalablevit import default_cfgs

STRIDES = (4, 8, 16, 32)


class Pyramid(nn.Module):
    """A timm model that returns maps with strides 4, 8, 16 and 32; its parameters keep timm's names under `body.`.

    Args:
        body: the timm model.
        indices: of the maps in timm's `feature_info`, finest first.
        norm: apply the model's norms to the maps.

    Attributes:
        channels: channels of the maps.
        strides: (4, 8, 16, 32), or the last of them after `drop_finest`.
        pretrained_cfg: timm's configuration of the architecture.
    """

    strides: tuple[int, ...] = STRIDES

    def __init__(self, body: Any, indices: tuple[int, ...], norm: bool) -> None:
        super().__init__()
        info: list[dict[str, Any]] = FeatureInfo(body.feature_info, indices).get_dicts()
        self.channels = tuple(int(level["num_chs"]) for level in info)
        self.pretrained_cfg = body.pretrained_cfg
        self.norm = norm
        self.indices = body.prune_intermediate_layers(list(indices), prune_norm=not norm)
        self.body: Any = body

    def forward(self, images: Tensor) -> list[Tensor]:
        """Return NCHW maps of normalized images (B, C, H, W), each (B, channels[i], ceil(H / s), ceil(W / s))."""
        return self.body.forward_intermediates(  # type: ignore[no-any-return]
            images, indices=self.indices, norm=self.norm, output_fmt="NCHW", intermediates_only=True
        )

    def drop_finest(self, count: int) -> None:
        """Return all maps but the finest `count` from now on.

        The norms of dropped maps are frozen: a parameter that requires a gradient and never gets one stops
        DistributedDataParallel.
        """
        for norm in list(getattr(self.body, "feature_norms", []))[:count]:
            norm.requires_grad_(False)
        self.indices, self.channels = self.indices[count:], self.channels[count:]
        self.strides = self.strides[count:]

    def no_weight_decay(self) -> set[str]:
        """Return names of the parameters that the architecture exempts from weight decay, besides norms and biases."""
        names = self.body.no_weight_decay() if hasattr(self.body, "no_weight_decay") else set()
        return {f"body.{name}" for name in names}

    def layer_indices(self) -> dict[str, int]:
        """Return the layer index of each parameter, from 0 at the stem, for layer-wise learning-rate decay."""
        layers = group_parameters(self.body, self.body.group_matcher(coarse=False), reverse=True)
        return {f"body.{name}": index for name, index in layers.items()}


def build_classifier(
    name: str,
    num_classes: int,
    drop_path_rate: float | None = None,
    *,
    grad_checkpointing: bool = False,
    channels_last: bool = False,
    **kwargs: Any,
) -> nn.Module:
    """Return an untrained classifier: images (B, C, H, W) -> logits (B, num_classes).

    Args:
        name: a timm architecture, without a pretrained tag.
        num_classes: at least 1.
        drop_path_rate: stochastic depth, 0 to 1; None keeps the architecture's own default.
        grad_checkpointing: recompute activations in the backward pass.
        channels_last: memory format of the 4-D weights; images should have the same.
        kwargs: further arguments of the architecture.

    Raises:
        UserError: unknown architecture, or arguments it does not take.
    """
    model = _build(name, drop_path_rate, num_classes=num_classes, **kwargs)
    return cast("nn.Module", _configure(model, name, grad_checkpointing, channels_last))


def build_pyramid(
    name: str,
    drop_path_rate: float | None = None,
    *,
    grad_checkpointing: bool = False,
    channels_last: bool = False,
    **kwargs: Any,
) -> Pyramid:
    """Return an untrained feature pyramid; images may have any size.

    Arguments as in `build_classifier`. ScalableViT applies a LayerNorm to each of its maps (not with
    `feature_norms=False`); other architectures return their maps as timm does.

    Raises:
        UserError: unknown architecture, arguments it does not take, or no maps with strides 4, 8, 16 and 32.
    """
    if name in default_cfgs:
        kwargs.setdefault("feature_norms", True)
    body = _build(name, drop_path_rate, num_classes=0, **kwargs)
    pyramid = Pyramid(body, _pyramid_indices(body, name), norm=bool(kwargs.get("feature_norms")))
    if isinstance(patches := getattr(body, "patch_embed", None), PatchEmbed):
        patches.dynamic_img_pad = True  # sides that are not multiples of the patch are padded, not refused
    _configure(body, name, grad_checkpointing, channels_last)
    return pyramid


def _pyramid_indices(body: Any, name: str) -> tuple[int, ...]:
    """Return the index of the last map of each stride in timm's `feature_info`."""
    strides = [level["reduction"] for level in getattr(body, "feature_info", [])]
    if not hasattr(body, "forward_intermediates") or not set(STRIDES) <= set(strides):
        raise UserError(
            f"{name} gives maps with strides {strides or 'unknown'}; dense tasks need 4, 8, 16 and 32",
            where="model.name",
            fix="choose an architecture marked 'pyramid' in config/model_names.txt, such as scalablevit_small",
        )
    return tuple(len(strides) - 1 - strides[::-1].index(stride) for stride in STRIDES)


def check_architecture(name: str) -> None:
    """Refuse a name that is not registered with timm.

    Raises:
        UserError: with similar names.
    """
    if not is_model(name) or "." in name:
        similar = get_close_matches(name.partition(".")[0], list_models())
        raise UserError(
            f"unknown architecture {name!r}",
            where="model.name",
            fix=f"use timm's name without a tag (weights go to model.init); similar: {', '.join(similar) or 'none'}",
        )


def _build(name: str, drop_path_rate: float | None, **kwargs: Any) -> Any:
    check_architecture(name)
    if drop_path_rate is not None:
        kwargs["drop_path_rate"] = drop_path_rate
    try:
        model = timm.create_model(name, **(_any_size(name, kwargs) | kwargs))
    except (TypeError, ValueError, AssertionError, RuntimeError) as error:
        arguments = ", ".join(f"{key}={value!r}" for key, value in kwargs.items())
        raise UserError(
            f"{name} cannot be built with {arguments}: {error}",
            where="model",
            fix="correct or remove that entry of model.options, or model.drop_path_rate",
        ) from error
    # some architectures accept the argument and ignore it
    if drop_path_rate and not any(getattr(module, "drop_prob", None) for module in model.modules()):
        raise UserError(
            f"{name} has no stochastic depth, so drop_path_rate={drop_path_rate} would do nothing",
            where="model.drop_path_rate",
            fix="set it to 0 or null",
        )
    return model


def _any_size(name: str, arguments: Container[str]) -> dict[str, bool]:
    """Return timm's argument that lets an architecture of a fixed image size take any, unless a size is given."""
    config = get_pretrained_cfg(name)
    if config is None or not config.fixed_input_size or "img_size" in arguments:
        return {}
    with torch.device("meta"):
        model = timm.create_model(name)
    return {"dynamic_img_size": True} if hasattr(model, "dynamic_img_size") else {}


def _configure(model: Any, name: str, grad_checkpointing: bool, channels_last: bool) -> Any:
    if grad_checkpointing:
        try:
            model.set_grad_checkpointing(True)
        except (AttributeError, AssertionError) as error:
            raise UserError(
                f"{name} does not support gradient checkpointing",
                where="model.grad_checkpointing",
                fix="set it to false",
            ) from error
    return model.to(memory_format=torch.channels_last) if channels_last else model
