"""The two attentions of ScalableViT, IWSA and SSA, on NHWC tokens of any height and width."""

import logging
from typing import Literal, cast

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.attention import SDPBackend, sdpa_kernel

LocalInteraction = Literal["lim", "lem", "none"]
Window = tuple[int | None, int | None]

# The fused CUDA kernels put the batch on a grid axis, and CUDA allows 65,535 blocks there: 1,024 images of 224 x 224
# already make 65,536 windows in stage 1. Larger batches are cut along the batch, where attention is independent.
CUDA_BATCH_LIMIT = 65_535

# Of equal widths on an H100, forward and backward over stage 1's windows: 0.71, 1.30, 1.56 and 4.07 ms for efficient,
# torch's own choice, cuDNN and flash, whose tiles are larger than a window. Math is for shapes that none of them takes.
CUDA_KERNELS = [
    SDPBackend.EFFICIENT_ATTENTION,
    SDPBackend.CUDNN_ATTENTION,
    SDPBackend.FLASH_ATTENTION,
    SDPBackend.MATH,
]

_log = logging.getLogger(__name__)


def attend(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: Tensor | None = None,
    scale: float | None = None,
    batch_limit: int | None = None,
) -> Tensor:
    """Return scaled dot-product attention, by the fastest kernel of the device.

    On a CPU in bfloat16 that is two products around a softmax: torch's fused kernel for 49 keys takes 1.2x their time
    forward and 4 to 6x with backward, while in float32 it takes 0.8x.

    Args:
        q: (B, heads, N, D).
        k: (B, heads, M, D).
        v: (B, heads, M, Dv).
        mask: bool (B, 1, 1, M), true where a key is no padding; None: no padding.
        scale: factor of the scores; None: D^-0.5.
        batch_limit: largest B of one kernel; None: the device's limit.

    Returns:
        (B, heads, N, Dv).
    """
    head_dim, value_dim = q.shape[-1], v.shape[-1]
    scale = head_dim**-0.5 if scale is None else scale
    on_cpu = q.device.type == "cpu"
    if on_cpu and q.dtype == torch.bfloat16:
        return attend_by_products(q, k, v, mask, scale)
    limit = batch_limit or (CUDA_BATCH_LIMIT if q.is_cuda else q.shape[0])
    if q.shape[0] > limit:
        pieces = [slice(start, start + limit) for start in range(0, q.shape[0], limit)]
        return torch.cat([attend(q[p], k[p], v[p], None if mask is None else mask[p], scale, limit) for p in pieces])
    if q.is_cuda and head_dim == value_dim and not torch.are_deterministic_algorithms_enabled():
        with sdpa_kernel(CUDA_KERNELS, set_priority=True):
            return functional.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=scale)
    if not on_cpu or head_dim == value_dim:
        return functional.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=scale)
    # The fused CPU kernel takes D = Dv only; zero channels make them equal and change no result.
    width = max(head_dim, value_dim)
    q, k, v = (functional.pad(t, (0, width - t.shape[-1])) if t.shape[-1] < width else t for t in (q, k, v))
    return functional.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=scale)[..., :value_dim]


def attend_by_products(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, scale: float) -> Tensor:
    """Return what `attend` returns, by two products with scores (B, heads, N, M) in memory."""
    scores = q @ (k * scale).transpose(-2, -1)
    if mask is not None:
        scores = scores.masked_fill(~mask, float("-inf"))
    return scores.softmax(dim=-1) @ v


class DepthwiseConv(nn.Conv2d):
    """Depth-wise convolution (B, C, H, W) -> (B, C, H', W'), in float32 also under a CPU's bfloat16 autocast.

    There its backward pass in bfloat16 takes 2.5 times as long as in float32. The output has the type of the input.

    Args:
        dim: channels C.
        kernel_size: side of the kernel.
        stride: of the convolution.
        padding: zeros at each border.
    """

    def __init__(self, dim: int, kernel_size: int = 3, stride: int = 1, padding: int = 0) -> None:
        super().__init__(dim, dim, kernel_size, stride, padding, groups=dim)

    def forward(self, x: Tensor) -> Tensor:
        # first the device: autocast knows only real ones, and models are counted on "meta"
        if x.device.type != "cpu" or not torch.is_autocast_enabled("cpu"):
            return super().forward(x)
        with torch.autocast("cpu", enabled=False):
            return super().forward(x.float()).to(x.dtype)


class WindowAttention(nn.Module):
    """Interactive window-based self-attention (IWSA, Yang et al., ECCV 2022): attention in windows plus a convolution.

    Args:
        dim: channels C.
        num_heads: heads; `dim` is a multiple of it.
        window: (height, width) in tokens. `None` spans the whole side, so `(7, None)` are horizontal and `(None, 7)`
            vertical stripes; a side longer than the map is cut to the map.
        local_interaction: `lim` convolves the values re-merged into the full map, so that information crosses the
            windows' borders; `lem` convolves each window's values by itself, zeros beyond its border; `none` is plain
            window attention (WSA), without the convolution's parameters.

    Raises:
        ValueError: `dim` is no multiple of `num_heads`, or another argument has a value that is not listed here.
    """

    def __init__(
        self, dim: int, num_heads: int, window: Window = (7, 7), local_interaction: LocalInteraction = "lim"
    ) -> None:
        super().__init__()
        if dim % num_heads:
            raise ValueError(f"dim {dim} is not a multiple of num_heads {num_heads}")
        if any(side is not None and side < 1 for side in window):
            raise ValueError(f"window {window} has a side below 1 token; None spans the whole side")
        if local_interaction not in ("lim", "lem", "none"):
            raise ValueError(f"local_interaction is 'lim', 'lem' or 'none', not {local_interaction!r}")
        self.num_heads = num_heads
        self.window = window
        self.local_interaction = local_interaction
        self.qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)
        if local_interaction != "none":
            self.lim_func = DepthwiseConv(dim, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """Return a map (B, H, W, C) of a map (B, H, W, C) of any height and width."""
        batch, height, width, dim = x.shape
        win_h = min(self.window[0] or height, height)
        win_w = min(self.window[1] or width, width)
        rows, columns = -(-height // win_h), -(-width // win_w)
        bottom, right = rows * win_h - height, columns * win_w - width
        real, mask = None, None
        if bottom or right:
            x = functional.pad(x, (0, 0, 0, right, 0, bottom))
            real = _real_positions(height, width, (rows, win_h), (columns, win_w), x.device)
            mask = real[None, :, None, None].expand(batch, -1, 1, 1, -1).flatten(0, 1)

        # Windows are cut before qkv, so that C channels are copied, not 3 C; q, k and v are views of the product.
        x = x.reshape(batch, rows, win_h, columns, win_w, dim).transpose(2, 3)
        qkv = self.qkv(x.reshape(-1, win_h * win_w, dim)).chunk(3, dim=-1)
        q, k, v = (t.unflatten(2, (self.num_heads, -1)).transpose(1, 2) for t in qkv)
        out = attend(q, k, v, mask)
        out = out.transpose(1, 2).reshape(batch, rows, columns, win_h, win_w, dim)

        values = qkv[2].unflatten(1, (win_h, win_w)).unflatten(0, (batch, rows, columns))
        if self.local_interaction == "lem":
            if real is not None:
                values = values * real.view(1, rows, columns, win_h, win_w, 1)
            out = out + self._convolve(values.flatten(0, 2)).reshape(out.shape)
        out = out.transpose(2, 3)
        if self.local_interaction == "lim":
            value_map = values.transpose(2, 3).reshape(batch, rows * win_h, columns * win_w, dim)
            exchanged = self._convolve(value_map[:, :height, :width])
            if bottom or right:
                exchanged = functional.pad(exchanged, (0, 0, 0, right, 0, bottom))
            # The sum has the layout of its first term: it merges the windows, which then need no copy of their own.
            out = exchanged.reshape(out.shape) + out
        out = out.reshape(batch, rows * win_h, columns * win_w, dim)
        if bottom or right:
            # a linear layer computes a non-contiguous map by batched products
            out = out[:, :height, :width].contiguous()
        return self.proj(out)  # type: ignore[no-any-return]

    def _convolve(self, maps: Tensor) -> Tensor:
        """Return the paper's F of maps (N, H, W, C), in the same shape; the permuted view is channels-last: no copy."""
        return self.lim_func(maps.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)  # type: ignore[no-any-return]


def _real_positions(
    height: int, width: int, vertical: tuple[int, int], horizontal: tuple[int, int], device: torch.device
) -> Tensor:
    """Return which positions of each window are on the map, not on its padding: bool (windows, positions).

    `vertical` and `horizontal` are (windows, side). Every window has at least one such position, so no softmax is over
    an empty set.
    """
    (rows, win_h), (columns, win_w) = vertical, horizontal
    in_height = (torch.arange(rows * win_h, device=device) < height).view(rows, 1, win_h, 1)
    in_width = (torch.arange(columns * win_w, device=device) < width).view(1, columns, 1, win_w)
    return (in_height & in_width).reshape(rows * columns, win_h * win_w)


class ScalableAttention(nn.Module):
    """Scalable self-attention (SSA, Yang et al., ECCV 2022): reduced keys and values, q and k of scaled width.

    With C' = int(C * channel_ratio) and `spatial_reduction` > 1, q and k have C' channels and the values C, as in the
    released models, or also C' ("wide value", the form that fits the paper's parameter counts of S). With
    `spatial_reduction` 1 it is plain attention. The map's sides need not be multiples of the reduction: the strided
    convolution pads zeros at the bottom and right, and each of its outputs covers at least one token.

    Args:
        dim: channels C.
        num_heads: heads; C and C' are multiples of it.
        spatial_reduction: r_n.
        channel_ratio: r_c; 1 where r_n is 1.
        wide_value: the form of the values. None starts in the released form and takes the form of the first checkpoint
            that is loaded, by the shape of its `v.weight`; an explicit value never changes, and a checkpoint of the
            other form fails to load.

    Raises:
        ValueError: C or C' is no multiple of `num_heads`, or r_c is not 1 although r_n is.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        spatial_reduction: int = 1,
        channel_ratio: float = 1.0,
        wide_value: bool | None = None,
    ) -> None:
        super().__init__()
        scaled = int(dim * channel_ratio)
        if dim % num_heads or scaled % num_heads:
            raise ValueError(f"dim {dim} and its scaled width {scaled} must be multiples of num_heads {num_heads}")
        if spatial_reduction == 1 and channel_ratio != 1:
            raise ValueError(f"without spatial reduction the channel ratio is 1, not {channel_ratio}")
        self.num_heads = num_heads
        self.scale = (dim // num_heads * channel_ratio) ** -0.5
        self.spatial_reduction = spatial_reduction
        if spatial_reduction == 1:
            self.q = nn.Linear(dim, dim)
            self.kv = nn.Linear(dim, 2 * dim)
            self.proj = nn.Linear(dim, dim)
            return
        value = scaled if wide_value else dim
        self.q = nn.Linear(dim, scaled)
        self.reduction = nn.Sequential(
            DepthwiseConv(dim, spatial_reduction, stride=spatial_reduction),
            nn.Conv2d(dim, scaled, kernel_size=1),
        )
        self.norm_act = nn.Sequential(nn.LayerNorm(scaled), nn.GELU())
        self.k = nn.Linear(scaled, scaled)
        self.v = nn.Linear(scaled, value)
        self.proj = nn.Linear(value, dim)
        if wide_value is None:
            self.register_load_state_dict_pre_hook(_adopt_value_form)  # type: ignore[no-untyped-call]

    def forward(self, x: Tensor) -> Tensor:
        """Return a map (B, H, W, C) of a map (B, H, W, C) of any height and width."""
        batch, height, width, _ = x.shape
        q = self.q(x).flatten(1, 2)
        if self.spatial_reduction == 1:
            k, v = self.kv(x).flatten(1, 2).chunk(2, dim=-1)
        else:
            reduced = self._reduce(x)
            k, v = self.k(reduced), self.v(reduced)
        q, k, v = (t.unflatten(2, (self.num_heads, -1)).transpose(1, 2) for t in (q, k, v))
        out = attend(q, k, v, scale=self.scale).transpose(1, 2).reshape(batch, height, width, -1)
        return self.proj(out)  # type: ignore[no-any-return]

    def _reduce(self, x: Tensor) -> Tensor:
        """Return the reduced tokens (B, ceil(H / r_n) * ceil(W / r_n), C') of a map (B, H, W, C)."""
        step = self.spatial_reduction
        bottom, right = -x.shape[1] % step, -x.shape[2] % step
        if bottom or right:
            x = functional.pad(x, (0, 0, 0, right, 0, bottom))
        depthwise, pointwise = self.reduction
        # compiled for a GPU, the sum over each patch reads the map once; cuDNN takes 3.5 times as long with backward
        by_sum = x.is_cuda and torch.compiler.is_compiling()
        x = self._patch_sums(x) if by_sum else depthwise(x.permute(0, 3, 1, 2))
        return self.norm_act(pointwise(x).permute(0, 2, 3, 1).flatten(1, 2))  # type: ignore[no-any-return]

    def _patch_sums(self, x: Tensor) -> Tensor:
        """Return the depth-wise convolution of (B, H, W, C), whose stride is its kernel: (B, C, H / r_n, W / r_n)."""
        depthwise, step = cast("nn.Conv2d", self.reduction[0]), self.spatial_reduction
        patches = x.unflatten(2, (-1, step)).unflatten(1, (-1, step))  # B, rows, r, columns, r, C
        weights = depthwise.weight[:, 0].permute(1, 2, 0)[:, None]  # r, 1, r, C
        sums = (patches * weights).sum(dim=(2, 4)) + cast("Tensor", depthwise.bias)
        return sums.to(x.dtype).permute(0, 3, 1, 2)  # type: ignore[no-any-return]


def _adopt_value_form(module: nn.Module, state_dict: dict[str, Tensor], prefix: str, *_: object) -> None:
    """Reshape `v` and `proj` to the checkpoint's form of values, if it is the other one of the two.

    The parameters stay the same objects, so that an optimizer built before loading still refers to them.
    """
    weight = state_dict.get(prefix + "v.weight")
    if not isinstance(module, ScalableAttention) or weight is None:
        return
    scaled, dim = module.q.out_features, module.q.in_features
    if weight.shape == module.v.weight.shape or weight.shape not in ((scaled, scaled), (dim, scaled)):
        return
    value = weight.shape[0]
    module.v.out_features = module.proj.in_features = value
    module.v.weight.data = module.v.weight.new_zeros(value, scaled)
    module.v.bias.data = module.v.bias.new_zeros(value)
    module.proj.weight.data = module.proj.weight.new_zeros(dim, value)
    _log.info("%s takes the checkpoint's %s form", prefix, "wide-value" if value == scaled else "released")
