"""What a trial of a search trains: the searched stage with the trial's values, shortened to the budget."""

import json
from collections.abc import Mapping
from typing import Any

from scalablevit.config.checking import check
from scalablevit.config.data import default_resize
from scalablevit.config.errors import UserError
from scalablevit.config.overrides import set_value
from scalablevit.config.recipe import Recipe, Stage
from scalablevit.config.section import PlainValues
from scalablevit.config.space import Search, Space, Value
from scalablevit.config.strict_yaml import YamlDict

PBT_CHECKPOINTS = 4
"""Checkpoints kept of a trial under PBT, so that the one that another trial copies is not deleted meanwhile."""


def trial_epochs(space: Space, stage: Stage) -> float | None:
    """Return the longest training of a trial in epochs; None: the recipe gives steps, and the budget nothing."""
    return space.budget.epochs or stage.training.epochs


def trial_gpus(search: Search) -> float:
    """Return the GPUs of each worker of a trial."""
    return (search.space.resources or search.recipe.stages[search.stage].cluster).gpus_per_worker


def convert_to_trial(stage: PlainValues, space: Space) -> None:
    """Convert the plain values of a stage, in place, to a trial's: length, evaluations, checkpoints, resources."""
    training = stage["training"]
    if space.budget.epochs is not None:
        if training["epochs"] is not None:
            _scale_schedule(stage["optimizer"]["schedule"], space.budget.epochs / training["epochs"], space)
        training |= {"epochs": space.budget.epochs, "steps": None}
    if space.budget.evaluate_every_epochs is not None:
        training["evaluate_every"] = {"epochs": space.budget.evaluate_every_epochs}
    training["checkpoint_every"] = None
    training["keep"] = {"last": PBT_CHECKPOINTS if space.scheduler.kind == "pbt" else 1, "best": 1}
    if space.resources is not None:
        # trials of different sizes would not be comparable: no elasticity
        stage["cluster"] |= {**space.resources.model_dump(mode="json"), "min_workers": None}


def _scale_schedule(schedule: PlainValues, factor: float, space: Space) -> None:
    """Shorten what the schedule has in epochs or steps as much as the trial is shorter, except searched parameters.

    A trial must rank values as the full training would. Under a warm-up of full length, the best learning rate of the
    trials is one at which the full training, which stays at its peak for long, diverges (measured on the demo).
    """
    path = "optimizer.schedule."
    if path + "warmup_epochs" not in space.parameters:
        schedule["warmup_epochs"] *= factor
    if path + "warmup_steps" not in space.parameters:
        schedule["warmup_steps"] = round(schedule["warmup_steps"] * factor)
    if path + "decay_epochs" not in space.parameters:
        schedule["decay_epochs"] = [epoch * factor for epoch in schedule["decay_epochs"]]


def trial_stage(search: Search, values: Mapping[str, Value]) -> Stage:
    """Return what a trial trains: the searched stage with the values, the budget's length and the trial's resources.

    Args:
        search: the space with its base recipe.
        values: by dotted path in the stage.

    Raises:
        UserError: the values, each valid, do not fit together; they are named.
    """
    whole = search.recipe.model_dump(mode="json")
    convert_to_trial(whole["stages"][search.stage], search.space)
    return _with_values(whole, search.stage, values).stages[search.stage]


def with_values(recipe: Recipe, stage: str, values: Mapping[str, Value]) -> Recipe:
    """Return the recipe with the values in one stage, and without its search; nothing else is changed.

    Args:
        recipe: the recipe.
        stage: name of the stage.
        values: by dotted path in the stage.

    Raises:
        UserError: the values do not fit together; they are named.
    """
    return _with_values({**recipe.model_dump(mode="json"), "tune": None}, stage, values)


def _with_values(whole: PlainValues, stage: str, values: Mapping[str, Value]) -> Recipe:
    values_text = ", ".join(f"{path}={json.dumps(value)}" for path, value in values.items())
    try:
        set_values(whole["stages"][stage], values)
        return check(Recipe, whole, {}, "")
    except UserError as error:
        raise UserError(f"these values make no valid recipe: {values_text or 'none'}\n{error}") from None


def set_values(stage: YamlDict, values: Mapping[str, Value]) -> None:
    """Set values in the plain values of a stage, in place.

    `data.eval_resize`, which plain values always have, keeps its ratio to another `data.image_size`.

    Args:
        stage: plain values, valid but for sections that others replace.
        values: by dotted path in the stage.

    Raises:
        UserError: something on the way to a value is no mapping, or a path is too long.
    """
    size, resized = (stage["data"].get(key) for key in ("image_size", "eval_resize"))
    for path, value in values.items():
        set_value(stage, path.split("."), value, path)
    new = values.get("data.image_size")
    if resized is not None and isinstance(new, int) and 0 < new < 10**6 and "data.eval_resize" not in values:
        usual = resized == default_resize(size)
        stage["data"]["eval_resize"] = default_resize(new) if usual else min(round(resized * new / size), 4096)


def value_at(stage: Stage, path: str) -> Any:
    """Return the plain value at a dotted path of a stage.

    Raises:
        KeyError: the stage has no such path.
    """
    node: Any = stage.model_dump(mode="json")
    for part in path.split("."):
        if not isinstance(node, dict) or part not in node:
            raise KeyError(path)
        node = node[part]
    return node
