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

from scalablevit.models.attention import DepthwiseConv, LocalInteraction, ScalableAttention, Window, WindowAttention
from scalablevit.models.weights import fit_tensors

AttentionKind = Literal["window", "scalable", "plain_window"]
HeadKind = Literal["released", "linear"]

NORM_EPS = 1e-6
MLP_RATIO = 4
HEAD_WIDTH = 4096

_log = logging.getLogger(__name__)


class PatchEmbedding(nn.Module):
    """Overlapping convolution and LayerNorm: (B, C_in, H, W) -> (B, ceil(H / stride), ceil(W / stride), C).

    Args:
        in_chans: C_in.
        dim: C.
        kernel_size: side of the kernel, an odd number.
        stride: of the convolution.
    """

    def __init__(self, in_chans: int, dim: int, kernel_size: int, stride: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(in_chans, dim, kernel_size, stride, padding=kernel_size // 2)
        self.norm = nn.LayerNorm(dim, eps=NORM_EPS)

    def forward(self, x: Tensor) -> Tensor:
        # Channels-last in, channels-last out: the permuted map is then contiguous, and the norm copies nothing.
        x = self.proj(x.contiguous(memory_format=torch.channels_last))
        return self.norm(x.permute(0, 2, 3, 1))  # type: ignore[no-any-return]


class PositionEncodingGenerator(nn.Module):
    """Adds to a map (B, H, W, C) its depth-wise 3 x 3 convolution: conditional position encoding (arXiv 2102.10882)."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.proj = nn.Sequential(DepthwiseConv(dim, padding=1))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.proj(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)  # type: ignore[no-any-return]


def compute_dtype(x: Tensor) -> torch.dtype:
    """Return the dtype of a linear layer's output for `x`: autocast's where it is enabled, else that of `x`."""
    device = x.device.type
    # autocast knows only real devices, and torch.compile of 2.11 cannot trace the query which devices it knows
    if device == "meta" or not torch.is_autocast_enabled(device):
        return x.dtype
    return torch.get_autocast_dtype(device)


class BranchNorm(nn.LayerNorm):
    """LayerNorm at the start of a branch, with an output in `compute_dtype`.

    Autocast leaves a norm in float32 on CUDA. Cast once here, the map is read by all layers at half size.
    """

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).to(compute_dtype(x))


class Block(nn.Module):
    """Pre-norm attention and MLP, each a residual branch.

    Args:
        dim: channels C.
        attention: (B, H, W, C) -> (B, H, W, C).
        drop_prob: probability with which an image skips a branch in training (stochastic depth).
    """

    def __init__(self, dim: int, attention: nn.Module, drop_prob: float) -> None:
        super().__init__()
        self.norm1 = BranchNorm(dim, eps=NORM_EPS)
        self.attn = attention
        self.norm2 = BranchNorm(dim, eps=NORM_EPS)
        self.mlp = Mlp(dim, hidden_features=MLP_RATIO * dim)
        self.drop_prob = drop_prob

    def forward(self, x: Tensor, scales: Tensor | None = None) -> Tensor:
        """Return a map (B, H, W, C) of a map (B, H, W, C).

        Args:
            x: the map.
            scales: (2, B, 1, 1, 1), factors of both branches for each image, see `draw_branch_scales`; None: 1.
        """
        attended = self.attn(self.norm1(x))
        x = x + (attended if scales is None else attended * scales[0])
        transformed = self.mlp(self.norm2(x))
        return x + (transformed if scales is None else transformed * scales[1])  # type: ignore[no-any-return]


def draw_branch_scales(drop_probs: Sequence[float], like: Tensor) -> Tensor:
    """Return stochastic depth's random factors of a stage's branches (Huang et al., arXiv 1603.09382).

    They are drawn at once: at small batches a GPU waits for kernels to start, and each block would start four for its
    own. The probabilities are evenly spaced, so they are made on the device without a copy from the host.

    Args:
        drop_probs: p of each block, evenly spaced.
        like: the stage's input, with B images along the first dimension; gives device and dtype.

    Returns:
        (blocks, 2, B, 1, 1, 1): 0 for a branch that an image skips, else 1 / (1 - p).
    """
    keep_probs = torch.linspace(1 - drop_probs[0], 1 - drop_probs[-1], len(drop_probs), device=like.device)
    keep_probs = keep_probs.view(-1, 1, 1, 1, 1, 1)
    return (keep_probs.expand(-1, 2, like.shape[0], 1, 1, 1).bernoulli() / keep_probs).to(compute_dtype(like))


LayerPatterns: TypeAlias = list[tuple[str, tuple[int, ...] | None]]
"""timm's format: a regular expression for parameter names, whose groups are a layer's index, and the index's suffix."""


class ScalableViT(nn.Module):
    """ScalableViT (Yang et al., ECCV 2022), with the names and shapes of the released checkpoints.

    Args:
        channels: C of each stage.
        num_heads: attention heads of each stage.
        depths: blocks of each stage.
        spatial_reductions: SSA's r_n of each stage, see `ScalableAttention`.
        channel_ratios: SSA's r_c of each stage, see `ScalableAttention`.
        in_chans: channels of the image.
        num_classes: 0: no head; the model then returns pooled features (B, C).
        global_pool: `avg`, or `` for unpooled NHWC output.
        window: (height, width) of IWSA's windows in tokens, or one number for both; None spans the side (stripes).
        local_interaction: `lim`, `lem` or `none` (plain windows), see `WindowAttention`.
        attention_pattern: kinds of attention, which a stage's blocks take in turn: `window` (IWSA), `scalable` (SSA) or
            `plain_window` (WSA whatever `local_interaction` is, for models where it replaces SSA).
        wide_value: form of SSA's values, see `ScalableAttention`.
        head: `released`: Linear to 4096, LayerNorm, GELU, Linear to the classes; `linear`: one Linear.
        feature_norms: add norms for the maps of the earlier stages, which `forward_intermediates(norm=True)` uses; the
            last stage's map has the classifier's norm. On for `features_only`.
        drop_rate: dropout before the head, 0 to 1.
        drop_path_rate: stochastic depth of the last block, 0 to 1; it rises linearly from 0 over all blocks.

    Raises:
        ValueError: an argument has a value that is not listed here, or widths do not fit the heads.
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
        """Return names of the position-encoding generator's parameters; timm exempts 1-D norms and biases itself."""
        return {f"pos_block.{name}" for name, _ in self.pos_block.named_parameters()}

    def group_matcher(self, coarse: bool = False) -> dict[str, str | LayerPatterns]:
        """Return layer groups for timm: the stem, the stages (coarse) or their blocks, then norms and the head.

        A stage's patch embedding and position encoding are in the layer of its first block.
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
        """Return the whole head."""
        return self.head

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """Replace the head by a fresh one of the same kind; with 0 classes by an identity."""
        self.num_classes = num_classes
        if global_pool is not None:
            self.global_pool = _check_choice(global_pool, ("avg", ""), "global_pool")
        like = next(self.parameters())
        self.head = self._build_head().to(like.device, like.dtype).train(self.training)
        self.head.apply(_init_parameters)

    def _forward_stage(self, stage: int, x: Tensor) -> Tensor:
        """Return a stage's map (B, H', W', C) of the earlier stage's, (B, C_in, H, W)."""
        x = self.patch_embeds[stage](x)
        blocks = cast("list[Block]", self.stages[stage])
        drop_probs = [block.drop_prob for block in blocks]
        scales = draw_branch_scales(drop_probs, x) if self.training and any(drop_probs) else None
        for index, block in enumerate(blocks):
            of_block = None if scales is None or not block.drop_prob else scales[index]
            x = checkpoint(block, x, of_block) if self.grad_checkpointing else block(x, of_block)
            if index == 0:
                x = self.pos_block[stage](x)
        return x

    def _normalize(self, stage: int, x: Tensor) -> Tensor:
        """Return a stage's map (B, H, W, C) after its norm, or unchanged where the model has none for it."""
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
        """Return what `forward_features` returns, and the maps after the chosen stages.

        Args:
            x: images (B, in_chans, H, W).
            indices: the chosen stages, from 0; an int n: the last n; None: all.
            norm: apply the norms of `feature_norms`; a model without them has a norm for the last map alone.
            stop_early: skip the stages after the last chosen one.
            output_fmt: `NCHW` (channels-last views) or `NHWC`.
            intermediates_only: return the maps alone.

        Raises:
            ValueError: another `output_fmt`.
        """
        _check_choice(output_fmt, ("NCHW", "NHWC"), "output_fmt")
        take, last = feature_take_indices(len(self.stages), indices)
        intermediates = []
        for stage in range(last + 1 if stop_early else len(self.stages)):
            x = self._forward_stage(stage, x)
            if stage in take:
                kept = self._normalize(stage, x) if norm else x
                intermediates.append(kept.permute(0, 3, 1, 2) if output_fmt == "NCHW" else kept)
            x = x.permute(0, 3, 1, 2)
        if intermediates_only:
            return intermediates
        x = x.permute(0, 2, 3, 1)
        return (self.norm(x) if stage == len(self.feature_info) - 1 else x), intermediates

    def prune_intermediate_layers(
        self, indices: int | list[int] = 1, prune_norm: bool = False, prune_head: bool = True
    ) -> list[int]:
        """Drop the stages after the last chosen one, norms of maps that are not chosen, and the head.

        Args:
            indices: the chosen stages, as in `forward_intermediates`.
            prune_norm: drop all norms after stages.
            prune_head: drop the head; without the last stage it is always dropped.

        Returns:
            Indices of the chosen stages.
        """
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
        """Return normalized tokens (B, ceil(H / 32), ceil(W / 32), C) of images (B, in_chans, H, W)."""
        for stage in range(len(self.stages)):
            x = self._forward_stage(stage, x).permute(0, 3, 1, 2)
        return self._normalize(len(self.stages) - 1, x.permute(0, 2, 3, 1))

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """Return logits (B, num_classes) of tokens (B, H, W, C), or with `pre_logits` the pooled features (B, C)."""
        if self.global_pool == "avg":
            x = x.mean(dim=(1, 2))
        x = self.head_drop(x)
        return x if pre_logits else self.head(x)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits (B, num_classes) of images (B, in_chans, H, W)."""
        return self.forward_head(self.forward_features(x))


def _check_choice(value: str, allowed: tuple[str, ...], name: str) -> str:
    if value not in allowed:
        raise ValueError(f"{name} is one of {', '.join(map(repr, allowed))}, not {value!r}")
    return value


def _init_parameters(module: nn.Module) -> None:
    """Initialize a module as the released model does."""
    if isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.02)
        nn.init.zeros_(module.bias)
    elif isinstance(module, nn.Conv2d):
        fan_out = math.prod(module.kernel_size) * module.out_channels // module.groups
        nn.init.normal_(module.weight, std=math.sqrt(2 / fan_out))
        if module.bias is not None:
            nn.init.zeros_(module.bias)


def checkpoint_filter_fn(state_dict: dict[str, Any], model: nn.Module) -> dict[str, Tensor]:
    """Return the state dict that timm's loader takes, from a released checkpoint or one of this project.

    The released names are this model's own. A head for another number of classes keeps its fresh weights, with a
    warning.

    Raises:
        UserError: anything else is missing, also where timm itself would not be strict.
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
    """Return a model for demos and tests, not in the paper: 1.6 M parameters, fast on a CPU at 64 to 128 pixels."""
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
    """Return ScalableViT-S: 32.0 M parameters in the released form, 32.4 M with `wide_value=True`."""
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
    """Return ScalableViT-B: 81.9 M parameters."""
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
    """Return ScalableViT-L: 109.3 M parameters as released (the paper says 104.9 M)."""
    args: dict[str, Any] = {
        "channels": (128, 256, 512, 1024),
        "num_heads": (4, 8, 16, 32),
        "depths": (2, 6, 12, 4),
        "channel_ratios": (0.25, 0.5, 1, 1),
        "drop_path_rate": 0.5,
    }
    return _create("scalablevit_large", pretrained, **args | kwargs)
