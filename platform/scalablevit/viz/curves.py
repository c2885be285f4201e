"""A run's curves as one plot: loss, metrics of evaluations, learning rate, gradient and speed."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from scalablevit.viz.palette import class_hex
from scalablevit.viz.style import save

SIZE = (11.0, 6.5)
"""Width and height in inches."""

Rows = Mapping[int, Mapping[str, float | str]]
"""Metrics by step and name; NaN and infinities may be strings."""


def save_curves(rows: Rows, best_metric: str, file: Path) -> None:
    """Draw the metrics of a run into a file.

    Args:
        rows: metrics by step; panels without metrics stay empty.
        best_metric: name of the evaluations' metric to draw, with a mark at its best value.
        file: the PNG file, replaced as a whole.
    """
    figure = Figure(figsize=SIZE, layout="constrained")  # not pyplot: stages draw in parallel threads
    loss, evaluation, rate, speed = figure.subplots(2, 2).flat
    for index, name in enumerate(("train/loss", "val/loss")):
        _line(loss, rows, name, index)
    _line(evaluation, rows, best_metric, marker="o")
    _mark_best(evaluation, rows, best_metric)
    _line(rate, rows, "train/lr")
    gradient = rate.twinx()
    _line(gradient, rows, "train/grad_norm", 1)
    gradient.set_yscale("log")
    _line(speed, rows, "train/images_per_s")
    waiting = speed.twinx()
    _line(waiting, rows, "train/data_wait", 1)
    waiting.set_ylim(0, 1)
    for panel in ([loss], [evaluation], [rate, gradient], [speed, waiting]):
        curves = [line for axes in panel for line in axes.get_lines() if not str(line.get_label()).startswith("_")]
        if curves:
            panel[0].legend(handles=curves, loc="best", fontsize="small")
        panel[0].set_xlabel("step")
        panel[0].grid(alpha=0.3)
    save(figure, file)


def points(rows: Rows, name: str) -> tuple[list[int], list[float]]:
    """Return steps and values of a metric, in order of steps, without values that are not finite."""
    pairs = [(step, float(row[name])) for step, row in sorted(rows.items()) if name in row]
    finite = [(step, value) for step, value in pairs if np.isfinite(value)]
    return [step for step, _ in finite], [value for _, value in finite]


def _line(axes: Axes, rows: Rows, name: str, color_index: int = 0, *, marker: str | None = None) -> None:
    steps, values = points(rows, name)
    if steps:
        axes.plot(
            steps, values, label=name, color=class_hex(color_index), marker=marker or ("." if len(steps) < 3 else None)
        )


def _mark_best(axes: Axes, rows: Rows, name: str) -> None:
    steps, values = points(rows, name)
    if steps:
        best = int(np.argmax(values))
        axes.axvline(steps[best], color="0.6", linestyle=":")
        axes.set_title(f"best {name} {values[best]:.4f} at step {steps[best]}", fontsize="medium")
