"""Feature maps after chosen blocks of ScalableViT models, next to the image."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from matplotlib.figure import Figure
from numpy.typing import NDArray
from torch import Tensor, nn

from scalablevit.models.attention import WindowAttention
from scalablevit.models.scalablevit import Block, ScalableViT
from scalablevit.viz.style import save

CELL = 2.3
"""Side of an image in the plot, inches."""


@dataclass(frozen=True)
class Row:
    """A row of the plot: an image as a model's input, and feature maps of the model.

    Attributes:
        name: of the model, printed next to the row.
        image: uint8 (h, w, 3), RGB.
        maps: (H, W) each, see `contrast`, by the title above each.
    """

    name: str
    image: NDArray[np.uint8]
    maps: dict[str, NDArray[np.float32]]


def blocks_of(model: ScalableViT) -> list[Block]:
    """Return all blocks in order; the paper's n-th block has index n - 1."""
    return [block for stage in model.stages for block in cast("Sequence[Block]", stage)]


def stage_ends(model: ScalableViT) -> list[int]:
    """Return the last block of each stage but the last, counted from 1: 2, 4 and 24 in ScalableViT-S."""
    return list(accumulate(len(cast("Sequence[Block]", stage)) for stage in model.stages))[:-1]


def attention_name(attention: nn.Module) -> str:
    """Return the paper's abbreviation of a block's kind of attention."""
    if not isinstance(attention, WindowAttention):
        return "SSA"
    return {"lim": "IWSA", "lem": "WSA + LEM", "none": "WSA"}[attention.local_interaction]


def capture_features(model: ScalableViT, modules: Sequence[nn.Module], images: Tensor) -> list[tuple[Tensor, Tensor]]:
    """Return input and output of some of a model's modules, (B, H, W, C) each.

    Args:
        model: in eval mode.
        modules: of the model; each takes one map.
        images: normalized, (B, 3, h, w).
    """
    captured: dict[nn.Module, tuple[Tensor, Tensor]] = {}

    def capture(module: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> None:
        captured[module] = inputs[0], output

    handles = [module.register_forward_hook(capture) for module in modules]
    try:
        with torch.no_grad():
            model.forward_features(images)
    finally:
        for handle in handles:
            handle.remove()
    return [captured[module] for module in modules]


def contrast(tokens: Tensor) -> NDArray[np.float32]:
    """Return the Euclidean distance of each token from the mean token of its map: (H, W, C) -> (H, W).

    The paper does not say how its Figure 2 reduces C channels to one value. Of the simple ways (norm, mean over
    channels) this one shows objects most clearly: it removes what all tokens share.
    """
    distance: NDArray[np.float32] = (tokens - tokens.mean(dim=(0, 1))).norm(dim=-1).float().cpu().numpy()
    return distance


def save_features(rows: Sequence[Row], file: Path) -> None:
    """Draw images next to their maps, one row for each image and model.

    Args:
        rows: all with the same number of maps.
        file: a PNG.
    """
    columns = 1 + max(len(row.maps) for row in rows)
    figure = Figure(figsize=(CELL * columns + 0.6, (CELL + 0.25) * len(rows) + 0.7), layout="constrained")
    axes = figure.subplots(len(rows), columns, squeeze=False)
    for row, row_axes in zip(rows, axes, strict=True):
        row_axes[0].imshow(row.image)
        row_axes[0].set_ylabel(row.name, fontsize="small")
        for axis, (title, values) in zip(row_axes[1:], row.maps.items(), strict=True):
            axis.imshow(values, cmap="viridis", interpolation="nearest")
            axis.set_title(title, fontsize="small")
        for axis in row_axes:
            axis.set_xticks([])
            axis.set_yticks([])
    figure.suptitle(
        "Distance of each token from its map's mean token\n(each map from its least, blue, to its greatest, yellow)",
        fontsize="medium",
    )
    save(figure, file)
