"""Pictures of a search: its history, which parameters mattered, which values went together, and every trial's curve."""

import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import optuna
from matplotlib import pyplot as plt
from matplotlib.figure import Figure
from optuna.trial import TrialState, create_trial
from optuna.visualization import matplotlib as views

from scalablevit.config.space import Distribution, Space
from scalablevit.tuning.sampling import as_category, distribution
from scalablevit.tuning.trials import Trial, ranked
from scalablevit.viz.style import plain

SIZE = (9.0, 5.5)
"""Inches."""


def save_plots(trials: Sequence[Trial], space: Space, folder: Path) -> list[Path]:
    """Draw what the trials allow: importance needs at least two trials that differ in value.

    Returns:
        The files written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    files = [_saved(_curves(trials, space), folder / "curves.png")]
    study = as_study(trials, space)
    values = {trial.value for trial in study.trials}
    drawn: dict[str, Callable[..., Any]] = {"history": views.plot_optimization_history}
    if len(values) > 1:
        drawn |= {"parallel_coordinates": views.plot_parallel_coordinate, "importance": views.plot_param_importances}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        # Optuna lays its figures out itself and matplotlib says so at each of them
        warnings.simplefilter("ignore", UserWarning)
        for name, draw in drawn.items():
            if study.trials:
                axes = draw(study, target_name=plain(space.metric))
                for lines in axes.collections:
                    # Optuna's blue fades to white, and with it the worst trials
                    lines.set_cmap("viridis_r" if space.mode == "min" else "viridis")
                files.append(_saved(axes.figure, folder / f"{name}.png"))
    return files


def as_study(trials: Sequence[Trial], space: Space) -> optuna.Study:
    """The evaluated trials as an Optuna study in memory, for its plots."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(direction="minimize" if space.mode == "min" else "maximize")
    distributions = {path: distribution(_written(parameter)) for path, parameter in space.parameters.items()}
    for trial in sorted(ranked(trials, space.mode), key=lambda trial: trial.number):
        if (best := trial.best(space.mode)) is not None:
            params = {path: _category(value) for path, value in trial.values.items()}
            done = create_trial(state=TrialState.COMPLETE, value=best[1], params=params, distributions=distributions)
            study.add_trial(done)
    return study


def _written(parameter: Distribution) -> Distribution:
    """With choices as matplotlib is to write them."""
    if parameter.choice is None:
        return parameter
    return parameter.model_copy(update={"choice": [_category(choice) for choice in parameter.choice]})


def _category(value: Any) -> Any:
    """As Optuna takes it, and matplotlib writes it."""
    category = as_category(value)
    return plain(category) if isinstance(category, str) else category


def _curves(trials: Sequence[Trial], space: Space) -> Figure:
    figure, axes = plt.subplots()
    leading = ranked(trials, space.mode)[:3]
    for trial in trials:
        points = sorted(trial.curve.items())
        if not points:
            continue
        place = leading.index(trial) if trial in leading else None
        color = "0.75" if place is None else f"C{place}"
        label = None if place is None else f"trial {trial.number}"
        axes.plot(*zip(*points, strict=True), marker="o", markersize=3, color=color, label=label,
                  zorder=1 if place is None else 2)  # fmt: skip
    axes.set(xlabel="step", ylabel=plain(space.metric), title="Evaluations of all trials; the best in colour")
    if leading:
        axes.legend()
    return figure


def _saved(figure: Figure, path: Path) -> Path:
    figure.set_size_inches(*SIZE)
    figure.savefig(path, dpi=110, bbox_inches="tight")
    plt.close(figure)
    return path
