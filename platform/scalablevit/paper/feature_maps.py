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
"""Inches of a picture's side."""


@dataclass(frozen=True)
class Row:
    """An image as a model sees it, and what the model makes of it.

    Attributes:
        name: of the model, as printed next to the row.
        image: (h, w, 3), uint8.
        maps: by what stands above each: (H, W), see `contrast`.
    """

    name: str
    image: NDArray[np.uint8]
    maps: dict[str, NDArray[np.float32]]


def blocks_of(model: ScalableViT) -> list[Block]:
    """All blocks in order; what the paper calls the n-th block is number n - 1 here."""
    return [block for stage in model.stages for block in cast("Sequence[Block]", stage)]


def stage_ends(model: ScalableViT) -> list[int]:
    """The last block of each stage but the last, counted from 1: 2, 4 and 24 in ScalableViT-S."""
    return list(accumulate(len(cast("Sequence[Block]", stage)) for stage in model.stages))[:-1]


def attention_name(attention: nn.Module) -> str:
    """The kind of a block's attention by the paper's abbreviation."""
    if not isinstance(attention, WindowAttention):
        return "SSA"
    return {"lim": "IWSA", "lem": "WSA + LEM", "none": "WSA"}[attention.local_interaction]


def capture_features(model: ScalableViT, modules: Sequence[nn.Module], images: Tensor) -> list[tuple[Tensor, Tensor]]:
    """What modules of a model are given and what they answer, (B, H, W, C) each.

    Args:
        model: in evaluation mode.
        modules: those of interest, each taking one map.
        images: normalised, (B, 3, h, w).
    """
    seen: dict[nn.Module, tuple[Tensor, Tensor]] = {}

    def keep(module: nn.Module, given: tuple[Any, ...], answer: Tensor) -> None:
        seen[module] = given[0], answer

    handles = [module.register_forward_hook(keep) for module in modules]
    try:
        with torch.no_grad():
            model.forward_features(images)
    finally:
        for handle in handles:
            handle.remove()
    return [seen[module] for module in modules]


def contrast(tokens: Tensor) -> NDArray[np.float32]:
    """How far each token lies from the mean token of its map: (H, W, C) -> (H, W).

    The paper does not say how its Figure 2 makes a picture of C channels. Of the plain ways (norm, mean over channels)
    this one shows objects most clearly: what all tokens share does not count.
    """
    distance: NDArray[np.float32] = (tokens - tokens.mean(dim=(0, 1))).norm(dim=-1).float().cpu().numpy()
    return distance


def save_features(rows: Sequence[Row], file: Path) -> None:
    """Draw images next to their maps, a row each.

    Args:
        rows: all with as many maps.
        file: a PNG.
    """
    columns = 1 + max(len(row.maps) for row in rows)
    figure = Figure(figsize=(CELL * columns + 0.6, (CELL + 0.25) * len(rows) + 0.7), layout="constrained")
    axes = figure.subplots(len(rows), columns, squeeze=False)
    for row, places in zip(rows, axes, strict=True):
        places[0].imshow(row.image)
        places[0].set_ylabel(row.name, fontsize="small")
        for place, (title, values) in zip(places[1:], row.maps.items(), strict=True):
            place.imshow(values, cmap="viridis", interpolation="nearest")
            place.set_title(title, fontsize="small")
        for place in places:
            place.set_xticks([])
            place.set_yticks([])
    figure.suptitle(
        "Distance of each token from its map's mean token\n(each map from its least, blue, to its greatest, yellow)",
        fontsize="medium",
    )
    save(figure, file)
