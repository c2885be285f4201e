"""Receptive fields of attention layers as plots next to each other."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from torch import Tensor

from scalablevit.models.receptive_field import ReceptiveField
from scalablevit.viz.style import save

CELL = 3.4
"""Side of a map in the plot, inches."""
FAINTEST = 1e-6
"""Low end of the colours, as a fraction of the strongest token's energy. Tokens that no gradient reaches are white."""


def save_fields(fields: Mapping[str, ReceptiveField], file: Path) -> None:
    """Draw for each layer the mean receptive field of its window's outputs, and below it that of a corner output.

    Args:
        fields: by the title above each; all of maps with the same windows.
        file: a PNG.
    """
    figure = Figure(figsize=(CELL * len(fields) + 1.2, 2 * CELL + 1.2), layout="constrained")
    axes = figure.subplots(2, len(fields), squeeze=False)
    for column, (name, field) in enumerate(fields.items()):
        axes[0, column].set_title(f"{name}\n{describe_field(field)}", fontsize="medium")
        _draw(axes[0, column], field, field.energy.mean(dim=(0, 1)))
        _draw(axes[1, column], field, field.energy[0, 0])
        axes[1, column].plot(field.left, field.top, "x", color="red", markersize=7)
        axes[1, column].set_xlabel("column of the token map")
    outputs = fields[name].energy[..., 0, 0].numel()
    for row, what in enumerate((f"mean of the window's {outputs} outputs", "the output marked in red")):
        axes[row, 0].set_ylabel(f"{what}\nrow of the token map")
    mappable = axes[0, 0].images[0]
    figure.colorbar(mappable, ax=axes, shrink=0.6, label="gradient energy of an input token, of the strongest token's")
    figure.suptitle("Effective receptive field of one layer (white: no gradient; grey lines: windows)")
    save(figure, file)


def describe_field(field: ReceptiveField) -> str:
    """Return a receptive field's metrics as text, three lines."""
    low, high = field.reached()
    height, width = field.energy.shape[2:]
    return (
        f"{100 * field.share_outside():.1f} % from outside the window,\n"
        f"95 % within {field.radius():.1f} tokens,\n"
        f"one output reaches {low if low == high else f'{low} to {high}'} of {height * width} tokens"
    )


def _draw(axes: Axes, field: ReceptiveField, energy: Tensor) -> None:
    """Draw the energies (H, W) of the tokens in the measured window and in the windows around it."""
    win_h, win_w, height, width = field.energy.shape
    top, bottom = max(0, field.top - win_h), min(height, field.top + 2 * win_h)
    left, right = max(0, field.left - win_w), min(width, field.left + 2 * win_w)
    relative = (energy / energy.max()).numpy()
    # only unreached tokens are masked; fainter ones than `FAINTEST` get its colour
    values = np.ma.masked_where(relative == 0, np.maximum(relative, FAINTEST))
    axes.imshow(values, cmap=colormaps["viridis"], norm=LogNorm(FAINTEST, 1), interpolation="nearest")
    for row in range(top, bottom + 1, win_h):
        axes.axhline(row - 0.5, color="0.5", linewidth=1)
    for column in range(left, right + 1, win_w):
        axes.axvline(column - 0.5, color="0.5", linewidth=1)
    axes.set_xticks(range(left, right + 1, win_w))
    axes.set_yticks(range(top, bottom + 1, win_h))
    axes.set_xlim(left - 0.5, right - 0.5)
    axes.set_ylim(bottom - 0.5, top - 0.5)
