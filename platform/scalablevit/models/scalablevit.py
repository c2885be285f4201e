"""ScalableViT S, B, L and tiny as timm models; tokens stay NHWC from the patch embedding to the head."""

import logging
import math
from collections.abc import Sequence
from typing import Any, Literal, TypeAlias, cast

import torch
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from timm.layers import Mlp, calculate_drop_path_rates
from timm.models import build_model_with_cfg, checkpoint, generate_default_cfgs, register_model
from timm.models._features import feature_take_indices
from torch import Tensor, nn

from scalablevit.models.attention import LocalInteraction, ScalableAttention, Window, WindowAttention
from scalablevit.models.weights import fit_tensors

AttentionKind = Literal["window", "scalable", "plain_window"]
HeadKind = Literal["released", "linear"]

NORM_EPS = 1e-6
MLP_RATIO = 4
HEAD_WIDTH = 4096

_log = logging.getLogger(__name__)


class PatchEmbedding(nn.Module):
    """Overlapping convolution and LayerNorm: (B, C_in, H, W) -> (B, ceil(H / stride), ceil(W / stride), C)."""

    def __init__(self, in_chans: int, dim: int, kernel_size: int, stride: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(in_chans, dim, kernel_size, stride, padding=kernel_size // 2)
        self.norm = nn.LayerNorm(dim, eps=NORM_EPS)

    def forward(self, x: Tensor) -> Tensor:
        # Channels-last in, channels-last out: the permuted map is then contiguous, and the norm copies nothing.
        x = self.proj(x.contiguous(memory_format=torch.channels_last))
        return self.norm(x.permute(0, 2, 3, 1))  # type: ignore[no-any-return]


class PositionEncodingGenerator(nn.Module):
    """Adds a depth-wise 3 x 3 convolution of the map to itself (conditional position encoding), (B, H, W, C)."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.proj = nn.Sequential(nn.Conv2d(dim, dim, kernel_size=3, padding=1, groups=dim))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.proj(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)  # type: ignore[no-any-return]


def computing_type(x: Tensor) -> torch.dtype:
    """The type that a linear layer gives for `x`."""
    device = x.device.type
    # torch asks only about real devices, and torch.compile of 2.11 cannot trace the question which devices it knows
    if device == "meta" or not torch.is_autocast_enabled(device):
        return x.dtype
    return torch.get_autocast_dtype(device)


class BranchNorm(nn.LayerNorm):
    """LayerNorm at the start of a branch, in the type that the branch computes in.

    Autocast leaves a norm in float32 on CUDA. Cast once here, the map is read by all layers at half size.
    """

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).to(computing_type(x))


class Block(nn.Module):
    """Pre-norm attention and MLP."""

    def __init__(self, dim: int, attention: nn.Module, drop_prob: float) -> None:
        super().__init__()
        self.norm1 = BranchNorm(dim, eps=NORM_EPS)
        self.attn = attention
        self.norm2 = BranchNorm(dim, eps=NORM_EPS)
        self.mlp = Mlp(dim, hidden_features=MLP_RATIO * dim)
        self.drop_prob = drop_prob

    def forward(self, x: Tensor, keep: Tensor | None = None) -> Tensor:
        """(B, H, W, C) -> (B, H, W, C); `keep` (2, B, 1, 1, 1) is what the images' branches are multiplied by."""
        attended = self.attn(self.norm1(x))
        x = x + (attended if keep is None else attended * keep[0])
        transformed = self.mlp(self.norm2(x))
        return x + (transformed if keep is None else transformed * keep[1])  # type: ignore[no-any-return]


def draw_keep(drop_probs: Sequence[float], like: Tensor) -> Tensor:
    """Stochastic depth of a stage: (blocks, 2, B, 1, 1, 1), 0 for a branch that an image skips, else 1 / (1 - p).

    Drawn at once: at small batches a GPU waits for kernels to start, and each block would start four for it. The
    probabilities are evenly spaced, so that they are made on the device, for which nothing has to wait.
    """
    kept = torch.linspace(1 - drop_probs[0], 1 - drop_probs[-1], len(drop_probs), device=like.device)
    kept = kept.view(-1, 1, 1, 1, 1, 1)
    return (kept.expand(-1, 2, like.shape[0], 1, 1, 1).bernoulli() / kept).to(computing_type(like))


LayerPatterns: TypeAlias = list[tuple[str, tuple[int, ...] | None]]
"""For timm: a pattern of names, whose groups are a layer's number; numbers that are appended to it, if any."""


class ScalableViT(nn.Module):
    """ScalableViT (Yang et al., ECCV 2022), with the names and shapes of the released checkpoints.

    Args:
        channels, num_heads, depths, spatial_reductions, channel_ratios: one entry per stage.
        in_chans: channels of the image.
        num_classes: 0 leaves the whole head out; the model then returns pooled features.
        global_pool: `avg`, or `` for unpooled NHWC output.
        window: (height, width) of IWSA's windows in tokens, or one number for both; None spans the side (stripes).
        local_interaction: `lim`, `lem` or `none` (plain windows), see `WindowAttention`.
        attention_pattern: kinds of attention that a stage's blocks take in turn: `window` (IWSA), `scalable` (SSA) or
            `plain_window` (WSA whatever `local_interaction` says, as where it replaces SSA).
        wide_value: form of SSA's values, see `ScalableAttention`.
        head: `released`: Linear to 4096, LayerNorm, GELU, Linear to the classes; `linear`: one Linear.
        feature_norms: norms for the maps of the earlier stages, next to the classifier's own norm of the last, used by
            `forward_intermediates(norm=True)`; on for `features_only`.
        drop_rate: dropout before the head.
        drop_path_rate: stochastic depth of the last block; rises linearly from 0 over all blocks.
    """

    def __init__(
        self,
        channels: Sequence[int],
        num_heads: Sequence[int],
        depths: Sequence[int],
        spatial_reductions: Sequence[int] = (8, 4, 2, 1),
        channel_ratios: Sequence[float] = (1.0, 1.0, 1.0, 1.0),
        in_chans: int = 3,
        num_classes: int = 1000,
        global_pool: str = "avg",
        window: int | Window = 7,
        local_interaction: LocalInteraction = "lim",
        attention_pattern: Sequence[AttentionKind] = ("window", "scalable"),
        wide_value: bool | None = None,
        head: HeadKind = "released",
        feature_norms: bool = False,
        drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
    ) -> None:
        super().__init__()
        self.in_chans = in_chans
        self.num_classes = num_classes
        self.global_pool = _check_choice(global_pool, ("avg", ""), "global_pool")
        self.head_kind = _check_choice(head, ("released", "linear"), "head")
        self.num_features = self.head_hidden_size = channels[-1]
        self.output_fmt = "NHWC"
        self.grad_checkpointing = False
        sides: Window = (window, window) if isinstance(window, int) else (window[0], window[1])
        rates = cast("list[list[float]]", calculate_drop_path_rates(drop_path_rate, list(depths), stagewise=True))

        def attention(stage: int, index: int) -> nn.Module:
            dim, heads = channels[stage], num_heads[stage]
            kind = attention_pattern[index % len(attention_pattern)]
            if _check_choice(kind, ("window", "scalable", "plain_window"), "attention") == "scalable":
                return ScalableAttention(dim, heads, spatial_reductions[stage], channel_ratios[stage], wide_value)
            return WindowAttention(dim, heads, sides, local_interaction if kind == "window" else "none")

        self.patch_embeds = nn.ModuleList()
        self.pos_block = nn.ModuleList(PositionEncodingGenerator(dim) for dim in channels)
        self.stages = nn.ModuleList()
        self.feature_info: list[dict[str, Any]] = []
        previous = in_chans
        for stage, dim in enumerate(channels):
            kernel_size, stride = (7, 4) if stage == 0 else (3, 2)
            self.patch_embeds.append(PatchEmbedding(previous, dim, kernel_size, stride))
            self.stages.append(
                nn.ModuleList(Block(dim, attention(stage, index), rate) for index, rate in enumerate(rates[stage]))
            )
            self.feature_info.append({"num_chs": dim, "reduction": 4 * 2**stage, "module": f"stages.{stage}"})
            previous = dim

        earlier = channels[:-1] if feature_norms else ()
        self.feature_norms = nn.ModuleList(nn.LayerNorm(dim, eps=NORM_EPS) for dim in earlier)
        self.norm: nn.Module = nn.LayerNorm(channels[-1], eps=NORM_EPS)
        self.head_drop = nn.Dropout(drop_rate)
        self.head = self._build_head()
        self.apply(_init_parameters)

    def _build_head(self) -> nn.Module:
        if self.num_classes == 0:
            return nn.Identity()
        if self.head_kind == "linear":
            return nn.Linear(self.num_features, self.num_classes)
        return nn.Sequential(
            nn.Linear(self.num_features, HEAD_WIDTH),
            nn.LayerNorm(HEAD_WIDTH, eps=NORM_EPS),
            nn.GELU(),
            nn.Linear(HEAD_WIDTH, self.num_classes),
        )

    def no_weight_decay(self) -> set[str]:
        """Names of the position-encoding generator's parameters (norms and biases are 1-D and left out anyway)."""
        return {f"pos_block.{name}" for name, _ in self.pos_block.named_parameters()}

    def group_matcher(self, coarse: bool = False) -> dict[str, str | LayerPatterns]:
        """Layer groups for timm: the stem, the stages (coarse) or their blocks, then a pyramid's norms and the head.

        A stage's patch embedding and position encoding learn as its first block does.
        """
        stages: LayerPatterns = [(r"^(?:stages|patch_embeds|pos_block)\.(\d+)", None)]
        blocks: LayerPatterns = [
            (r"^stages\.(\d+)\.(\d+)", None),
            (r"^(?:patch_embeds|pos_block)\.(\d+)", (0,)),
        ]
        return {"stem": r"^patch_embeds\.0", "blocks": [*(stages if coarse else blocks), (r"^norm\.", (99999,))]}

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Recompute each block's activations in the backward pass instead of storing them."""
        self.grad_checkpointing = enable

    def get_classifier(self) -> nn.Module:
        """The whole head."""
        return self.head

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """Put a new head of the same kind in place; 0 classes leave it out."""
        self.num_classes = num_classes
        if global_pool is not None:
            self.global_pool = _check_choice(global_pool, ("avg", ""), "global_pool")
        like = next(self.parameters())
        self.head = self._build_head().to(like.device, like.dtype).train(self.training)
        self.head.apply(_init_parameters)

    def _forward_stage(self, stage: int, x: Tensor) -> Tensor:
        """(B, C_in, H, W) -> (B, H', W', C) of the stage."""
        x = self.patch_embeds[stage](x)
        blocks = cast("list[Block]", self.stages[stage])
        drop_probs = [block.drop_prob for block in blocks]
        draws = draw_keep(drop_probs, x) if self.training and any(drop_probs) else None
        for index, block in enumerate(blocks):
            keep = None if draws is None or not block.drop_prob else draws[index]
            x = checkpoint(block, x, keep) if self.grad_checkpointing else block(x, keep)
            if index == 0:
                x = self.pos_block[stage](x)
        return x

    def _normed(self, stage: int, x: Tensor) -> Tensor:
        """The stage's map after its norm, or as it is where the model has none for it."""
        if stage == len(self.feature_info) - 1:
            norm = self.norm
        elif len(self.feature_norms):
            norm = self.feature_norms[stage]
        else:
            return x
        return cast("Tensor", norm(x))

    def forward_intermediates(
        self,
        x: Tensor,
        indices: int | list[int] | None = None,
        norm: bool = False,
        stop_early: bool = False,
        output_fmt: str = "NCHW",
        intermediates_only: bool = False,
    ) -> list[Tensor] | tuple[Tensor, list[Tensor]]:
        """The maps after the chosen stages, and what `forward_features` returns.

        Args:
            x: images (B, in_chans, H, W).
            indices: stages: the last n for a number, all for None.
            norm: with the norms of `feature_norms`; without them only the last map has one.
            stop_early: leave the stages after the last chosen one out.
            output_fmt: `NCHW` (channels-last views) or `NHWC`.
            intermediates_only: return the maps alone.
        """
        _check_choice(output_fmt, ("NCHW", "NHWC"), "output_fmt")
        take, last = feature_take_indices(len(self.stages), indices)
        intermediates = []
        for stage in range(last + 1 if stop_early else len(self.stages)):
            x = self._forward_stage(stage, x)
            if stage in take:
                kept = self._normed(stage, x) if norm else x
                intermediates.append(kept.permute(0, 3, 1, 2) if output_fmt == "NCHW" else kept)
            x = x.permute(0, 3, 1, 2)
        if intermediates_only:
            return intermediates
        x = x.permute(0, 2, 3, 1)
        return (self.norm(x) if stage == len(self.feature_info) - 1 else x), intermediates

    def prune_intermediate_layers(
        self, indices: int | list[int] = 1, prune_norm: bool = False, prune_head: bool = True
    ) -> list[int]:
        """Drop the stages after the last chosen one, norms of maps that are not taken, and the head."""
        take, last = feature_take_indices(len(self.stages), indices)
        complete = last == len(self.feature_info) - 1
        self.patch_embeds = self.patch_embeds[: last + 1]
        self.pos_block = self.pos_block[: last + 1]
        self.stages = self.stages[: last + 1]
        if prune_norm or not complete:
            self.norm = nn.Identity()
        unused = nn.Identity()
        self.feature_norms = nn.ModuleList(
            norm if stage in take and not prune_norm else unused for stage, norm in enumerate(self.feature_norms)
        )
        if not complete:
            self.num_features = self.head_hidden_size = self.feature_info[last]["num_chs"]
        if prune_head or not complete:
            self.reset_classifier(0, "")
        return take

    def forward_features(self, x: Tensor) -> Tensor:
        """Images (B, in_chans, H, W) -> normalised tokens (B, ceil(H / 32), ceil(W / 32), C)."""
        for stage in range(len(self.stages)):
            x = self._forward_stage(stage, x).permute(0, 3, 1, 2)
        return self._normed(len(self.stages) - 1, x.permute(0, 2, 3, 1))

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """Tokens (B, H, W, C) -> logits, or the pooled features before the head."""
        if self.global_pool == "avg":
            x = x.mean(dim=(1, 2))
        x = self.head_drop(x)
        return x if pre_logits else self.head(x)

    def forward(self, x: Tensor) -> Tensor:
        """Images (B, in_chans, H, W) -> logits (B, num_classes)."""
        return self.forward_head(self.forward_features(x))


def _check_choice(value: str, allowed: tuple[str, ...], name: str) -> str:
    if value not in allowed:
        raise ValueError(f"{name} is one of {', '.join(map(repr, allowed))}, not {value!r}")
    return value


def _init_parameters(module: nn.Module) -> None:
    """The released model's initialisation."""
    if isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.02)
        nn.init.zeros_(module.bias)
    elif isinstance(module, nn.Conv2d):
        fan_out = math.prod(module.kernel_size) * module.out_channels // module.groups
        nn.init.normal_(module.weight, std=math.sqrt(2 / fan_out))
        if module.bias is not None:
            nn.init.zeros_(module.bias)


def checkpoint_filter_fn(state_dict: dict[str, Any], model: nn.Module) -> dict[str, Tensor]:
    """Prepare a released or own checkpoint for timm's loader.

    Released names are this model's own. A head of another number of classes stays new and is named; anything else that
    is missing raises `UserError`, also where timm itself would load loosely.
    """
    tensors = state_dict.get("model", state_dict)
    fitted, new, ignored = fit_tensors(model, tensors, "checkpoint")
    if new or ignored:
        _log.warning("new: %s; ignored: %s", ", ".join(new) or "nothing", ", ".join(ignored) or "nothing")
    own = model.state_dict()
    return fitted | {name: own[name] for name in new}


def _create(variant: str, pretrained: bool, **kwargs: Any) -> nn.Module:
    if kwargs.get("features_only"):
        kwargs.setdefault("feature_norms", True)
    feature_cfg = {
        "feature_cls": "getter",
        "out_indices": kwargs.pop("out_indices", (0, 1, 2, 3)),
        "norm": kwargs.get("feature_norms", False),
    }
    if "head" in kwargs:
        classifier = {"classifier": "head" if kwargs["head"] == "linear" else "head.3"}
        kwargs["pretrained_cfg_overlay"] = classifier | (kwargs.pop("pretrained_cfg_overlay", None) or {})
    return build_model_with_cfg(
        ScalableViT,
        variant,
        pretrained,
        pretrained_filter_fn=checkpoint_filter_fn,
        feature_cfg=feature_cfg,
        **kwargs,
    )


def _cfg(classifier: str = "head.3") -> dict[str, Any]:
    return {
        "num_classes": 1000,
        "input_size": (3, 224, 224),
        "pool_size": (7, 7),
        "crop_pct": 0.875,
        "interpolation": "bicubic",
        "mean": IMAGENET_DEFAULT_MEAN,
        "std": IMAGENET_DEFAULT_STD,
        "first_conv": "patch_embeds.0.proj",
        "classifier": classifier,
    }


default_cfgs = generate_default_cfgs(
    {
        "scalablevit_tiny": _cfg(classifier="head"),
        "scalablevit_small": _cfg(),
        "scalablevit_base": _cfg(),
        "scalablevit_large": _cfg(),
    }
)


@register_model
def scalablevit_tiny(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """For demos and tests: 1.6 M parameters, fast on a CPU at 64 to 128 pixels; not in the paper."""
    args: dict[str, Any] = {
        "channels": (24, 48, 96, 160),
        "num_heads": (1, 2, 4, 5),
        "depths": (2, 2, 4, 2),
        "channel_ratios": (1, 1, 1, 1),
        "head": "linear",
        "drop_path_rate": 0.05,
    }
    return _create("scalablevit_tiny", pretrained, **args | kwargs)


@register_model
def scalablevit_small(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """ScalableViT-S: 32.0 M parameters in the released form, 32.4 M with `wide_value=True`."""
    args: dict[str, Any] = {
        "channels": (64, 128, 256, 512),
        "num_heads": (2, 4, 8, 16),
        "depths": (2, 2, 20, 2),
        "channel_ratios": (1.25, 1.25, 1.25, 1),
        "drop_path_rate": 0.2,
    }
    return _create("scalablevit_small", pretrained, **args | kwargs)


@register_model
def scalablevit_base(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """ScalableViT-B: 81.9 M parameters."""
    args: dict[str, Any] = {
        "channels": (96, 192, 384, 768),
        "num_heads": (3, 6, 12, 24),
        "depths": (2, 2, 14, 6),
        "channel_ratios": (2, 1.25, 1.25, 1),
        "drop_path_rate": 0.5,
    }
    return _create("scalablevit_base", pretrained, **args | kwargs)


@register_model
def scalablevit_large(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """ScalableViT-L: 109.3 M parameters as released (the paper says 104.9 M)."""
    args: dict[str, Any] = {
        "channels": (128, 256, 512, 1024),
        "num_heads": (4, 8, 16, 32),
        "depths": (2, 6, 12, 4),
        "channel_ratios": (0.25, 0.5, 1, 1),
        "drop_path_rate": 0.5,
    }
    return _create("scalablevit_large", pretrained, **args | kwargs)
