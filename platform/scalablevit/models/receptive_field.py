"""The effective receptive field of one attention layer (Luo et al., arXiv 1701.04128), measured by gradients."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from scalablevit.models.attention import WindowAttention

WINDOWS = 3
"""Least number of windows on each side of the map, so that the measured one has neighbours all around."""


@dataclass(frozen=True)
class ReceptiveField:
    """Gradient energy of every output in one window, at every token of the map.

    Attributes:
        energy: (window height, window width, H, W): squared Frobenius norm of the Jacobian of an output token, all of
            its channels, by an input token.
        top: the window's first row on the map, in tokens.
        left: the window's first column on the map, in tokens.
    """

    energy: Tensor
    top: int
    left: int

    @property
    def inside(self) -> tuple[slice, slice]:
        """Return the rows and columns of the map that the window covers."""
        height, width = self.energy.shape[:2]
        return slice(self.top, self.top + height), slice(self.left, self.left + width)

    def share_outside(self) -> float:
        """Return the fraction of the energy, over all outputs of the window, from tokens of other windows: 0 to 1."""
        outside = self.energy.clone()
        outside[:, :, *self.inside] = 0
        return float(outside.sum() / self.energy.sum())

    def radius(self, share: float = 0.95) -> float:
        """Return the distance from the output, in tokens, within which `share` (0 to 1) of all outputs' energy is."""
        height, width, rows, columns = self.energy.shape
        vertical = torch.arange(rows) - torch.arange(self.top, self.top + height)[:, None]
        horizontal = torch.arange(columns) - torch.arange(self.left, self.left + width)[:, None]
        squared = vertical[:, None, :, None] ** 2 + horizontal[None, :, None, :] ** 2
        by_distance = torch.bincount(squared.flatten(), weights=self.energy.flatten()).cumsum(0)
        return math.sqrt(int((by_distance < share * by_distance[-1]).sum()))

    def reached(self) -> tuple[int, int]:
        """Return the fewest and the most tokens that one output depends on at all."""
        counts = (self.energy > 0).flatten(2).sum(-1)
        return int(counts.min()), int(counts.max())


def receptive_field(layer: WindowAttention, tokens: Tensor, seed: int = 0) -> ReceptiveField:
    """Return the receptive field of the outputs of the window in the middle of the map.

    Jacobians are not formed: for a vector of random signs g, the expectation of |J^T g|^2 is the sum of squares of J
    (Hutchinson 1990). Every map of `tokens` has signs of its own, and their mean is taken. A zero is exact: no gradient
    reaches that token.

    Args:
        layer: in training or eval mode, which do not differ.
        tokens: (B, H, W, C), the layer's input; more maps make the estimate better.
        seed: of the signs.

    Raises:
        ValueError: a side of the map has less than `WINDOWS` windows.
    """
    height, width = tokens.shape[1:3]
    win_h, win_w = (min(side or length, length) for side, length in zip(layer.window, (height, width), strict=True))
    if min(-(-height // win_h), -(-width // win_w)) < WINDOWS:
        raise ValueError(
            f"a map of {height} x {width} tokens has less than {WINDOWS} windows of {win_h} x {win_w} a side"
        )
    top, left = (-(-height // win_h) // 2) * win_h, (-(-width // win_w) // 2) * win_w
    inputs = tokens.detach().requires_grad_()
    out = layer(inputs)
    signs = torch.randint(2, out.shape, generator=torch.Generator().manual_seed(seed)).to(out) * 2 - 1
    signed = (out * signs).sum(dim=(0, -1))
    energy = [
        torch.autograd.grad(signed[row, column], inputs, retain_graph=True)[0].double().square().sum(-1).mean(0)
        for row in range(top, top + win_h)
        for column in range(left, left + win_w)
    ]
    return ReceptiveField(torch.stack(energy).unflatten(0, (win_h, win_w)).cpu(), top, left)
