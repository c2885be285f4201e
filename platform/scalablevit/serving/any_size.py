"""ScalableViT for torch.export at any size: the same functions of the same weights, by operations for all sizes.

In training a map is padded only where windows or reductions do not divide it, and windows are views of it. That is
fast, but a tracer records the branches that the example input took, so the program is valid for few sizes. Here windows
are gathered by index, every map is padded (by 0 where it divides), and maps are made contiguous before convolutions,
whose kernels a tracer otherwise chooses by strides. This is slower in eager mode; `serving/export.py` compares each
archive with the model itself.
"""

import copy
from collections.abc import Callable
from types import MethodType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from scalablevit.models.attention import ScalableAttention, WindowAttention, attend_by_products
from scalablevit.models.backbone import Pyramid
from scalablevit.models.scalablevit import PatchEmbedding, PositionEncodingGenerator
from scalablevit.tasks.segmentation.segmentor import Upsample


def for_any_size(network: nn.Module) -> nn.Module:
    """Return a copy of a network whose modules can be traced at one size and be used at others.

    Args:
        network: in evaluation mode. Windows with LEM (`local_interaction: lem`) keep their training form, since their
            zero padding is at windows' borders.
    """
    copied = copy.deepcopy(network)
    for module in copied.modules():
        forward = _FORWARDS.get(type(module))
        if forward is not None and getattr(module, "local_interaction", "") != "lem":
            module.forward = MethodType(forward, module)
    return copied


def _attend_windows(self: WindowAttention, x: Tensor) -> Tensor:
    """Do what `WindowAttention.forward` does; x and the result are (N, H, W, C)."""
    _, height, width, _ = x.shape
    win_h, win_w = self.window[0] or height, self.window[1] or width
    rows, columns = (height + win_h - 1) // win_h, (width + win_w - 1) // win_w
    top = (torch.arange(rows)[:, None] * win_h + torch.arange(win_h))[:, None, :, None]
    left = (torch.arange(columns)[:, None] * win_w + torch.arange(win_w))[None, :, None, :]
    inside = ((top < height) & (left < width)).flatten(2)  # (rows, columns, positions)
    # windows are (N, rows, columns, positions, C)
    windows = x[:, top.clamp(max=height - 1), left.clamp(max=width - 1)].flatten(3, 4)
    qkv = self.qkv(windows).chunk(3, dim=-1)
    q, k, v = (t.unflatten(-1, (self.num_heads, -1)).transpose(-2, -3) for t in qkv)
    out = attend_by_products(q, k, v, inside[None, :, :, None, None], q.shape[-1] ** -0.5).transpose(-2, -3).flatten(-2)
    row, column = torch.arange(height)[:, None], torch.arange(width)[None]
    position = (slice(None), row // win_h, column // win_w, row % win_h * win_w + column % win_w)
    merged = out[position]
    if self.local_interaction == "lim":
        merged = merged + _channels_last(self.lim_func(_channels_first(qkv[2][position])))
    return self.proj(merged)  # type: ignore[no-any-return]


def _attend_reduced(self: ScalableAttention, x: Tensor) -> Tensor:
    """Do what `ScalableAttention.forward` does; x and the result are (N, H, W, C)."""
    _, height, width, _ = x.shape
    q = self.q(x).flatten(1, 2)
    if self.spatial_reduction == 1:
        k, v = self.kv(x).flatten(1, 2).chunk(2, dim=-1)
    else:
        step = self.spatial_reduction
        rows, columns = (height + step - 1) // step, (width + step - 1) // step
        padded = F.pad(x, (0, 0, 0, columns * step - width, 0, rows * step - height))
        reduced = self.norm_act(_channels_last(self.reduction(_channels_first(padded))).flatten(1, 2))
        k, v = self.k(reduced), self.v(reduced)
    q, k, v = (t.unflatten(2, (self.num_heads, -1)).transpose(1, 2) for t in (q, k, v))
    out = attend_by_products(q, k, v, None, self.scale).transpose(1, 2).flatten(2)
    return self.proj(out.unflatten(1, (height, width)))  # type: ignore[no-any-return]


def _embed(self: PatchEmbedding, x: Tensor) -> Tensor:
    """Do what `PatchEmbedding.forward` does: x (N, C, H, W) to tokens (N, h, w, dim)."""
    return self.norm(_channels_last(self.proj(x.contiguous())))  # type: ignore[no-any-return]


def _encode_position(self: PositionEncodingGenerator, x: Tensor) -> Tensor:
    """Do what `PositionEncodingGenerator.forward` does; x and the result are (N, H, W, C)."""
    return x + _channels_last(self.proj(_channels_first(x)))


def _contiguous_maps(self: Pyramid, images: Tensor) -> list[Tensor]:
    """Do what `Pyramid.forward` does, with contiguous maps for the convolutions of heads."""
    return [feature_map.contiguous() for feature_map in Pyramid.forward(self, images)]


def _pool(self: nn.AdaptiveAvgPool2d, x: Tensor) -> Tensor:
    """Do what `nn.AdaptiveAvgPool2d.forward` does, which a tracer unrolls into a sum for each cell of one size."""
    sides = self.output_size if isinstance(self.output_size, tuple) else (self.output_size, self.output_size)
    rows, columns = (_averaging_weights(size, side).to(x) for size, side in zip(x.shape[-2:], sides, strict=True))
    return rows @ x @ columns.T


def _averaging_weights(size: int, cells: int | None) -> Tensor:
    """Return the weights (cells, size) of the positions in the mean of each cell; rows sum to 1."""
    cells = cells or size
    cell, position = torch.arange(cells)[:, None], torch.arange(size)[None]
    inside = (position >= cell * size // cells) & (position < ((cell + 1) * size + cells - 1) // cells)
    return inside / inside.sum(dim=1, keepdim=True)


def _upsample(self: Any, x: Tensor) -> Tensor:
    """Do what MMSegmentation's `Upsample.forward` does, which turns symbolic sizes into plain numbers."""
    return F.interpolate(x, self.size, self.scale_factor, self.mode, self.align_corners)


def _channels_first(x: Tensor) -> Tensor:
    return x.permute(0, 3, 1, 2).contiguous()


def _channels_last(x: Tensor) -> Tensor:
    return x.permute(0, 2, 3, 1).contiguous()


_FORWARDS: dict[type, Callable[..., Any]] = {
    WindowAttention: _attend_windows,
    ScalableAttention: _attend_reduced,
    PatchEmbedding: _embed,
    PositionEncodingGenerator: _encode_position,
    Pyramid: _contiguous_maps,
    nn.AdaptiveAvgPool2d: _pool,
    Upsample: _upsample,
}
