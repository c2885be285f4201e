"""Load a search space file, overrides and the base recipe as a checked search, with every mistake named at once."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from scalablevit.config.checking import Locations, check, convert_old_words, did_you_mean, format_location, short_repr
from scalablevit.config.commands import command_name, short_name
from scalablevit.config.errors import UserError, UserErrors
from scalablevit.config.loading import load_and_import, load_recipe, override_recipe, read_mapping
from scalablevit.config.model_names import check_model_name
from scalablevit.config.overrides import Scope, parse_override, record_override, set_value
from scalablevit.config.packages import top_level
from scalablevit.config.recipe import Recipe, Stage
from scalablevit.config.section import PlainValues
from scalablevit.config.shipped import recipe_file
from scalablevit.config.space import MAX_TRIALS, Distribution, Search, Space, Value
from scalablevit.config.stage_keys import SEARCH_CONDITIONS, is_read, value_of
from scalablevit.config.strict_yaml import YamlDict, YamlMapping
from scalablevit.config.task import head_of
from scalablevit.config.task_info import task_info
from scalablevit.config.trial import PBT_CHECKPOINTS, convert_to_trial, set_values, trial_epochs
from scalablevit.config.unused_keys import OF_PIXELS, TIMM_WORDS, explain, wrong_unit

PREFIX = "space."
"""Prefix of overrides of the space; all others are of the base recipe."""

_FIX_FRACTIONS = "a range draws fractions; write `choice: [...]` with whole numbers"

Load = Callable[[Path, Sequence[str], Scope], Recipe]

_NO_EFFECT = "it does not change what is trained"
_OTHER_DATA = "it changes the data, and metrics on different data cannot be compared"
NOT_SEARCHED = {
    "cluster": _NO_EFFECT,
    "tracking": _NO_EFFECT,
    "promotion": _NO_EFFECT,
    "imports": "all trials run the same code",
    "model.init": "all trials start from the same weights, those of the recipe's stage",
    "model.grad_checkpointing": _NO_EFFECT,
    "model.channels_last": _NO_EFFECT,
    "training.compile": _NO_EFFECT,
    "training.deterministic": _NO_EFFECT,
    "training.checkpoint_every": _NO_EFFECT,
    "training.keep": _NO_EFFECT,
    "training.log_every_steps": _NO_EFFECT,
    "training.nonfinite.capture": _NO_EFFECT,
    "training.on_checkpoint_failure": _NO_EFFECT,
    "task.test_time_augmentation": f"{command_name('evaluate')} alone uses it",
    "training.epochs": "the length of a trial is budget.epochs",
    "training.steps": "the length of a trial is budget.epochs",
    "training.evaluate_every": "how often a trial is evaluated is budget.evaluate_every_epochs",
    "data.root": _OTHER_DATA,
    "data.source": _OTHER_DATA,
    "data.train": _OTHER_DATA,
    "data.val": _OTHER_DATA,
    "data.classes": _OTHER_DATA,
    "data.shapes": _OTHER_DATA,
    "data.ignore_index": _OTHER_DATA,
    "data.instance_masks": "it decides which objects are learned; set it in the recipe",
    "data.max_bad_fraction": _NO_EFFECT,
    "data.max_pixels": _OTHER_DATA,
    "data.max_shared_fraction": _NO_EFFECT,
    "data.on_missing_class": _NO_EFFECT,
    "data.reduce_zero_label": _OTHER_DATA,
}
"""Parts of a recipe that cannot be parameters of a search, and why."""

PBT_CHANGEABLE = (
    "optimizer.lr", "optimizer.betas", "optimizer.eps", "optimizer.momentum", "optimizer.weight_decay",
    "optimizer.layer_decay", "optimizer.clip_norm", "optimizer.schedule", "model.drop_path_rate",
    "task.label_smoothing", "data.flip", "data.color_jitter", "data.rand_augment", "data.random_erasing",
    "data.mixup", "data.cutmix", "data.mix_prob", "data.mixup_switch_prob", "data.crop_scale",
    "data.crop_ratio", "data.scale_range",
)  # fmt: skip
"""Parts of a recipe that population-based training (pbt) may change in the middle of a training; others change the
shape of the model, its steps or its optimizer."""


def load_search(
    path: Path,
    overrides: Sequence[str] = (),
    recipe: Recipe | Path | None = None,
    note: Callable[[str], None] | None = None,
    *,
    imports: bool = False,
) -> Search:
    """Read a search space, check it against its base recipe, and name every mistake at once.

    Args:
        path: the space's file.
        overrides: those that begin with `space.` apply to the space (`space.budget.trials=4`; a parameter's
            distribution as a whole: `space.parameters.optimizer.lr={choice: [1e-3, 2e-3]}`), all others to the base
            recipe: to its searched stage and those that this one starts from.
        recipe: the base recipe or its file; None: the one that the space names.
        note: called with a line for each override that does not apply to all stages of the base recipe.
        imports: import the users' code that the base recipe names, unless there is a mistake before that.

    Raises:
        UserError: one mistake, or a file that cannot be read.
        UserErrors: several mistakes, each with file and line or override, value and nearest key.
    """
    merged, locations = read_mapping(path, "space")
    mistakes = _Mistakes(str(path), locations)
    space = base_recipe = None
    for override in overrides:
        with mistakes.collect():
            if is_of_space(override):
                _apply_space_override(override, merged, locations)
    merged, old_words = convert_old_words(Space, merged, locations, str(path))
    mistakes.errors += old_words
    with mistakes.collect():
        space = check(Space, merged, locations, str(path))
    with mistakes.collect():
        others = [override for override in overrides if not is_of_space(override)]
        given_stage = merged.get("stage")
        names = (given_stage,) if isinstance(given_stage, str) else ()
        scope = Scope(f"{short_name('tune')} searches", names=names, note=note)
        given_recipe = merged.get("recipe") if recipe is None else recipe
        load = load_and_import if imports and not mistakes.errors else load_recipe
        base_recipe = _load_base_recipe(path, given_recipe, others, scope, mistakes, load)
    stage_name = _find_stage_name(base_recipe, merged.get("stage"), mistakes) if base_recipe else None
    if base_recipe and stage_name:
        _check_against_recipe(merged, space, base_recipe, stage_name, mistakes)
    if space:
        _check_searcher(space, mistakes)
    if mistakes.errors or space is None or base_recipe is None or stage_name is None:
        raise mistakes.error()
    return Search(path.stem, space, base_recipe, stage_name)


def is_of_space(override: str) -> bool:
    """Return whether an override belongs to the space, not to the base recipe."""
    return override.strip().startswith(PREFIX)


class _Mistakes:
    """The mistakes of a whole search space."""

    def __init__(self, name: str, locations: Locations) -> None:
        self.name = name
        self.locations = locations
        self.errors: list[UserError] = []

    def add(self, what: str, *key_path: str, fix: str = "") -> None:
        """Add a mistake at a key of the space."""
        self.errors.append(UserError(what, where=format_location(key_path, self.locations, self.name), fix=fix))

    @contextmanager
    def collect(self) -> Iterator[None]:
        """Add the mistakes that the block raises, and continue after it."""
        try:
            yield
        except UserError as error:
            self.errors += _errors_in(error)

    def error(self) -> UserError:
        return self.errors[0] if len(self.errors) == 1 else UserErrors(self.errors)


def _errors_in(error: UserError) -> list[UserError]:
    return error.errors if isinstance(error, UserErrors) else [error]


def _apply_space_override(override: str, merged: YamlDict, locations: Locations) -> None:
    """Put one override into the space."""
    (_, *key_path), value, where = parse_override(override)
    if key_path[0] == "parameters" and len(key_path) > 1:
        # a parameter's name is itself a dotted key
        key_path = ["parameters", ".".join(key_path[1:])]
    set_value(merged, key_path, value, where)
    record_override(locations, tuple(key_path), where)


def _load_base_recipe(
    path: Path, given_recipe: Any, overrides: Sequence[str], scope: Scope, mistakes: _Mistakes, load: Load
) -> Recipe | None:
    """Return the base recipe with overrides on top; None after a mistake in its name.

    Args:
        path: the space's file, which a named recipe is relative to.
        given_recipe: a recipe, its file, its name in the space, or anything else that the space has there.
        overrides: those of the recipe.
        scope: the searched stage.
        mistakes: mistakes are added.
        load: loads a recipe file.

    Raises:
        UserError: as `load_recipe`.
    """
    if isinstance(given_recipe, Recipe):
        return override_recipe(
            given_recipe.model_dump(mode="json"), overrides, {}, f"recipe {given_recipe.name}", scope
        )
    if isinstance(given_recipe, Path):
        return load(given_recipe, overrides, scope)
    if given_recipe is None:
        mistakes.add("names no recipe", fix="add `recipe: <file, relative to this one>`, or give one with --recipe")
    if not isinstance(given_recipe, str):
        return None
    file = recipe_file(given_recipe, path.parent)
    try:
        return load(file, overrides, scope)
    except UserError as error:
        if error.where != str(file):
            raise
        # the message names the recipe's file, so the error names the space's key
        mistakes.add(error.what, "recipe", fix=error.fix)
        return None


def _find_stage_name(recipe: Recipe, given_stage: Any, mistakes: _Mistakes) -> str | None:
    """Return the name of the searched stage; None after a mistake."""
    if given_stage is None and len(recipe.stages) == 1:
        return next(iter(recipe.stages))
    if isinstance(given_stage, str) and given_stage in recipe.stages:
        return given_stage
    stages = ", ".join(recipe.stages)
    if given_stage is None:
        mistakes.add(f"names no stage; the recipe has {stages}", fix="add `stage: <name>`")
    elif isinstance(given_stage, str):
        mistakes.add(
            f"no stage {short_repr(given_stage)}{did_you_mean(given_stage, recipe.stages)}",
            "stage",
            fix=f"stages: {stages}",
        )
    return None


def _check_against_recipe(
    merged: YamlMapping, space: Space | None, recipe: Recipe, stage_name: str, mistakes: _Mistakes
) -> None:
    """Check a space against the recipe; where `space` is None, what can be read of the invalid one."""
    plain_recipe = recipe.model_dump(mode="json")
    stage = recipe.stages[stage_name]
    epochs = stage.training.epochs
    if space:
        epochs = trial_epochs(space, stage)
        convert_to_trial(plain_recipe["stages"][stage_name], space)
        try:
            stage = check(Recipe, plain_recipe, {}, "").stages[stage_name]
        except UserError as error:
            for mistake in _errors_in(error):
                mistakes.add(_reason(mistake, "", stage_name)[0], "resources")
            # the trial's own values are refused: the parameters are checked against the recipe's
            plain_recipe = recipe.model_dump(mode="json")
        _check_lengths(space, stage, epochs, mistakes)
    distributions = space.parameters if space else _readable_distributions(merged.get("parameters"))
    if isinstance(merged.get("metric"), str):
        _check_metric(merged["metric"], merged.get("mode", "max"), stage, distributions, mistakes)
    for key, distribution in distributions.items():
        if reason := _why_unused(key, distributions, plain_recipe["stages"][stage_name]):
            mistakes.add(f"{key} {reason[0]}", "parameters", key, fix=reason[1])
        else:
            _check_parameter(key, distribution, plain_recipe, stage_name, epochs, mistakes)
    if space and space.scheduler.kind == "pbt":
        _check_pbt(space, stage, mistakes)


def _readable_distributions(parameters: Any) -> dict[str, Distribution]:
    """Return the parameters whose distributions are valid, of a space that is not."""
    readable = {}
    for key, raw in parameters.items() if isinstance(parameters, dict) else ():
        try:
            readable[key] = check(Distribution, raw, {}, "")
        except UserError:
            continue  # reported with the space's other mistakes
    return readable


def _why_unused(
    key: str, distributions: Mapping[str, Distribution], plain_stage: YamlMapping
) -> tuple[str, str] | None:
    """Return why a parameter has no effect, whatever the others' values, and what to do about it; None: it has one."""

    def values(other: str) -> list[Any]:
        return distributions[other].corners() if other in distributions else [value_of(plain_stage, other)]

    return None if key not in TIMM_WORDS and is_read(key, values, SEARCH_CONDITIONS) else explain(key, plain_stage)


def _check_parameter(
    key: str,
    distribution: Distribution,
    plain_recipe: PlainValues,
    stage_name: str,
    epochs: float | None,
    mistakes: _Mistakes,
) -> None:
    """Add a mistake for a parameter that cannot be searched, or whose ends or choices the recipe refuses."""
    for part, why in NOT_SEARCHED.items():
        if _is_within(key, part):
            mistakes.add(f"{key} is not searched: {why}", "parameters", key)
            return
    refused: dict[tuple[str, str], list[Value]] = {}
    for value in distribution.corners():
        for reason in _reasons_against(key, value, plain_recipe, stage_name, epochs):
            refused.setdefault(reason, []).append(value)
    for (what, fix), values in refused.items():
        whole_numbers = "integer" in what and distribution.choice is None
        which = ", ".join(short_repr(value) for value in values[:3]) + (", ..." if len(values) > 3 else "")
        advice = _FIX_FRACTIONS if whole_numbers else fix
        mistakes.add(f"the recipe refuses {which}: {what}", "parameters", key, fix=advice)


def _reasons_against(
    key: str, value: Value, plain_recipe: PlainValues, stage_name: str, epochs: float | None
) -> list[tuple[str, str]]:
    """Return why the base recipe refuses a value of a parameter, and what to do about it; empty: it does not."""
    changed = {
        **plain_recipe,
        "stages": {**plain_recipe["stages"], stage_name: dict(plain_recipe["stages"][stage_name])},
    }
    try:
        set_values(changed["stages"][stage_name], {key: value})
        stage = check(Recipe, changed, {}, "").stages[stage_name]
        if key == "model.name":
            dense = task_info(stage.task.kind).needs_pyramid
            check_model_name(stage.model.name, dense=dense, registered=bool(stage.imports))
    except UserError as error:
        return [_reason(mistake, key, stage_name) for mistake in _errors_in(error)]
    if wrong := key in OF_PIXELS and wrong_unit(value):
        return [wrong]
    return [(reason, "") for other, reason in _find_too_long(stage, epochs).items() if other == key]


def _reason(error: UserError, key: str, stage_name: str) -> tuple[str, str]:
    """Return what is wrong and what to do about it; the key only where it is not the parameter's own."""
    wrong = error.where.removeprefix(f"stages.{stage_name}").removeprefix(".")
    return (error.what if wrong in ("", key) else f"{wrong}: {error.what}"), error.fix


def _is_within(key: str, part: str) -> bool:
    return key == part or key.startswith(f"{part}.")


def _find_too_long(stage: Stage, epochs: float | None) -> dict[str, str]:
    """Return why keys of the schedule do not fit into a training of so many epochs, by key.

    Those given in steps, and a length in steps, cannot be compared before the data is known.
    """
    schedule = stage.optimizer.schedule
    reasons = {}
    if epochs is not None and schedule.warmup_epochs >= epochs:
        reasons["optimizer.schedule.warmup_epochs"] = (
            f"a warm-up of {schedule.warmup_epochs:g} epochs is not over when a trial ends ({epochs:g} epochs)"
        )
    start = schedule.warmup_epochs if schedule.warmup_prefix else 0.0
    if epochs is not None and schedule.decay_epochs and start + schedule.decay_epochs[-1] >= epochs:
        after = f"{schedule.decay_epochs[-1]:g} epochs" + (f" after {start:g} of warm-up" if start else "")
        reasons["optimizer.schedule.decay_epochs"] = (
            f"the decay after {after} is beyond the end of a trial ({epochs:g} epochs)"
        )
    return reasons


def _check_lengths(space: Space, stage: Stage, epochs: float | None, mistakes: _Mistakes) -> None:
    """Add a mistake for each length within a trial that is not shorter than the trial."""
    if space.budget.epochs is not None:
        for key, reason in _find_too_long(stage, epochs).items():
            if key not in space.parameters:
                mistakes.add(
                    f"{key}: {reason}",
                    "budget",
                    "epochs",
                    fix=f"raise budget.epochs, or shorten it for trials and retraining: {key}=...",
                )
    if epochs is None or space.scheduler.kind == "none":
        return
    field = "perturb_epochs" if space.scheduler.kind == "pbt" else "grace_epochs"
    length = getattr(space.scheduler, field)
    if length >= epochs:
        mistakes.add(f"{length:g} is not less than the {epochs:g} epochs of a trial", "scheduler", field)
    interval = stage.training.evaluate_every.epochs
    if interval is not None and interval >= epochs:
        mistakes.add(
            f"a trial of {epochs:g} epochs is evaluated every {interval:g} epochs, that is, only at its end: "
            f"{space.scheduler.kind} could not act",
            "budget",
            "evaluate_every_epochs",
            fix="set budget.evaluate_every_epochs",
        )


def _check_metric(
    metric: str, mode: Any, stage: Stage, distributions: Mapping[str, Distribution], mistakes: _Mistakes
) -> None:
    """Add a mistake for a metric that some trial does not report, or a mode that looks for its worst value."""
    heads = distributions["task.head"].corners() if "task.head" in distributions else [head_of(stage.task)]
    packages = {"", *map(top_level, stage.imports)}
    reported = [info for info in task_info(stage.task.kind).metrics_with(heads) if info.package in packages]
    directions = {info.reported_as: info.better for info in reported}
    if metric not in directions:
        # of version 1, which reported them for so few classes; there is no val/top5 for these either
        of_few = metric in ("val/top2", "val/top3", "val/top4")
        near = "" if of_few else did_you_mean(metric, directions)
        mistakes.add(
            f"task {stage.task.kind} reports no {short_repr(metric)}{near}",
            "metric",
            fix=f"it reports {', '.join(directions)}" + (" (val/top5 of more than five classes)" if of_few else ""),
        )
    elif mode in ("max", "min") and mode != directions[metric]:
        mistakes.add(
            f"{mode} would search for the worst model by {metric}", "mode", fix=f"set `mode: {directions[metric]}`"
        )


def _check_searcher(space: Space, mistakes: _Mistakes) -> None:
    """Add a mistake for each parameter and number of trials that does not fit the searcher."""
    if not space.parameters:
        mistakes.add("the space is empty", "parameters", fix="name at least one, such as `optimizer.lr`")
    for key in space.parameters:
        for other in space.parameters:
            if key != other and _is_within(key, other):
                mistakes.add(f"{key} is within {other}, which is searched too", "parameters", key)
    if space.searcher != "grid":
        if space.budget.trials is None:
            mistakes.add(f"trials are needed by searcher {space.searcher}", "budget", fix="set budget.trials")
        return
    ranges = [key for key, distribution in space.parameters.items() if distribution.choice is None]
    for key in ranges:
        mistakes.add("a grid needs `choice`, not a range", "parameters", key, fix="list its values")
    if ranges or not space.parameters:
        return
    sizes = [len(distribution.corners()) for distribution in space.parameters.values()]
    available, requested = math.prod(sizes), space.budget.trials
    arithmetic = f"{' x '.join(map(str, sizes))} = {available}" if len(sizes) > 1 else str(available)
    if requested is not None and requested > available:
        mistakes.add(f"{requested} trials are more than the grid's combinations ({arithmetic})", "budget", "trials")
    if requested is None and available > MAX_TRIALS:
        mistakes.add(
            f"the grid has too many combinations ({arithmetic}; at most {MAX_TRIALS} trials)",
            "parameters",
            fix="leave out choices, or set budget.trials",
        )


def _check_pbt(space: Space, stage: Stage, mistakes: _Mistakes) -> None:
    if space.searcher != "random":
        mistakes.add(f"scheduler pbt needs searcher random, not {space.searcher}", "searcher")
    if stage.cluster.workers > 1:
        mistakes.add(
            f"scheduler pbt needs trials of one worker, not of {stage.cluster.workers}",
            *(("resources", "workers") if space.resources else ("scheduler", "kind")),
            fix="set resources.workers to 1",
        )
    interval, perturb = stage.training.evaluate_every.epochs, space.scheduler.perturb_epochs
    # evaluations every so many steps cannot be compared before the data is known; the rest is rounding
    if interval and perturb and perturb / interval > PBT_CHECKPOINTS + 1e-6:
        mistakes.add(
            f"a trial is evaluated {perturb / interval:g} times in {perturb:g} epochs, every {interval:g} epochs, and "
            f"its {PBT_CHECKPOINTS} latest checkpoints are kept: the one that another trial continues from may be gone",
            "scheduler",
            "perturb_epochs",
            fix=f"set budget.evaluate_every_epochs to {perturb / PBT_CHECKPOINTS:g} or more, or lower "
            f"scheduler.perturb_epochs to {interval * PBT_CHECKPOINTS:g} or less",
        )
    for key in space.parameters:
        if not any(_is_within(key, part) for part in PBT_CHANGEABLE):
            mistakes.add(
                f"pbt changes values while a model trains, and {key} cannot be changed then",
                "parameters",
                key,
                fix=f"it may change {', '.join(PBT_CHANGEABLE)}",
            )
