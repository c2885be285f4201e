"""Plots of a search: Optuna's plots of its history, importances and values, and the curves of all trials."""

import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import optuna
from matplotlib import pyplot as plt
from matplotlib.figure import Figure
from optuna.study import StudyDirection
from optuna.visualization import matplotlib as optuna_plots

from scalablevit.viz.palette import class_hex
from scalablevit.viz.style import DPI, plain

SIZE = (9.0, 5.5)
"""Width and height in inches."""
COLORED_TRIALS = 3
"""Number of the best trials whose curves are drawn in colour."""


def save_plots(
    study: optuna.Study, curves: Mapping[int, Mapping[int, float]], ranking: Sequence[int], metric: str, folder: Path
) -> list[Path]:
    """Write curves.png, history.png, parallel_coordinates.png and importance.png, as far as the trials allow.

    history.png needs a trial; parallel_coordinates.png and importance.png need two different values of the metric.

    Args:
        study: the evaluated trials.
        curves: by the trial's number, the metric by step.
        ranking: numbers of the evaluated trials, the best first.
        metric: name of the metric.
        folder: folder of the files, created if it does not exist.

    Returns:
        The files written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    files = [_save(_draw_curves(curves, ranking[:COLORED_TRIALS], metric), folder / "curves.png")]
    values = {trial.value for trial in study.trials}
    plots: dict[str, Callable[..., Any]] = {"history": optuna_plots.plot_optimization_history}
    if len(values) > 1:
        plots |= {
            "parallel_coordinates": optuna_plots.plot_parallel_coordinate,
            "importance": optuna_plots.plot_param_importances,
        }
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        # Optuna lays its figures out itself, and matplotlib warns about that at each of them
        warnings.simplefilter("ignore", UserWarning)
        for name, draw in plots.items():
            if study.trials:
                axes = draw(study, target_name=plain(metric))
                for lines in axes.collections:
                    # Optuna's blues end in white, in which the worst trials could not be seen
                    lines.set_cmap("viridis_r" if study.direction == StudyDirection.MINIMIZE else "viridis")
                files.append(_save(axes.figure, folder / f"{name}.png"))
    return files


def _draw_curves(curves: Mapping[int, Mapping[int, float]], leading: Sequence[int], metric: str) -> Figure:
    figure, axes = plt.subplots()
    for number, curve in curves.items():
        points = sorted(curve.items())
        if not points:
            continue
        rank = leading.index(number) if number in leading else None
        color = "0.75" if rank is None else class_hex(rank)
        label = None if rank is None else f"trial {number}"
        axes.plot(*zip(*points, strict=True), marker="o", markersize=3, color=color, label=label,
                  zorder=1 if rank is None else 2)  # fmt: skip
    axes.set(xlabel="step", ylabel=plain(metric), title="Evaluations of all trials; the best in colour")
    if leading:
        axes.legend()
    return figure


def _save(figure: Figure, path: Path) -> Path:
    figure.set_size_inches(*SIZE)
    figure.savefig(path, dpi=DPI, bbox_inches="tight")
    plt.close(figure)
    return path
