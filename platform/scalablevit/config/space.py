"""The search space: what is varied around a base recipe and how; what a trial trains; what the search found."""

import itertools
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from scalablevit.config.errors import UserError, UserErrors
from scalablevit.config.loading import (
    Places,
    check,
    claim,
    hashed_part,
    load_recipe,
    located,
    nearest,
    override_recipe,
    parse_override,
    put,
    read_mapping,
    short,
    short_digest,
)
from scalablevit.config.model_names import check_model_name
from scalablevit.config.recipe import Recipe, Stage
from scalablevit.config.section import PositiveInt, Section

Scalar = bool | int | float | str | None
Value = Scalar | list[Scalar]
Positive = Annotated[float, Field(gt=0)]

MAX_TRIALS = 100_000
"""More are refused: the list of trials is drawn before the first one starts."""

PREFIX = "space."
"""Overrides of the space begin with this; all others are the base recipe's."""

METRICS: dict[str, dict[str, Literal["max", "min"]]] = {
    "classification": {"val/top1": "max", "val/top5": "max", "val/top1_low95": "max", "val/loss": "min"},
    "segmentation": {"val/miou": "max", "val/macc": "max", "val/aacc": "max"},
    "detection": {
        f"val/{kind}_{name}": "max"
        for kind in ("box", "mask")
        for name in ("ap", "ap50", "ap75", "ap_small", "ap_medium", "ap_large")
    },
}
"""The figures over all classes that each kind of task reports, and which end of them is the good one.

Known here without importing torch; a test compares.
"""

FRACTIONS = "a range draws fractions; write `choice: [...]` with whole numbers"

_UNTRAINED = "it does not change what is trained"
_OTHER_DATA = "it changes the data, and figures on different data cannot be compared"
NOT_SEARCHED = {
    "cluster": _UNTRAINED,
    "tracking": _UNTRAINED,
    "promotion": _UNTRAINED,
    "training.checkpoint_every": _UNTRAINED,
    "training.keep": _UNTRAINED,
    "training.log_every_steps": _UNTRAINED,
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
    "data.reduce_zero_label": _OTHER_DATA,
}
"""Parts of a recipe that are no parameters of a search, and why."""

PERTURBED = (
    "optimizer.lr", "optimizer.betas", "optimizer.eps", "optimizer.momentum", "optimizer.weight_decay",
    "optimizer.layer_decay", "optimizer.clip_norm", "optimizer.schedule", "model.drop_path_rate",
    "task.label_smoothing", "data.flip", "data.color_jitter", "data.rand_augment", "data.random_erasing",
    "data.mixup", "data.cutmix", "data.mix_probability", "data.mix_switch_probability", "data.crop_scale",
    "data.crop_ratio", "data.scale_range",
)  # fmt: skip
"""Parts of a recipe that may change under a model in training; others change its shape, its steps or its optimizer."""

PBT_CHECKPOINTS = 4
"""Kept of a trial under PBT, so that the one that another trial copies is not pruned meanwhile."""


class Draw(Section):
    """How values of one parameter are drawn; exactly one of the three."""

    uniform: tuple[float, float] | None = None
    """Low and high end; any number between is as likely."""
    loguniform: tuple[float, float] | None = None
    """Low (above 0) and high end; any order of magnitude between is as likely."""
    choice: Annotated[list[Value], Field(min_length=1, max_length=1000)] | None = None
    """Values or lists of values, each as likely; each is tried on the recipe before anything starts."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if [self.uniform, self.loguniform, self.choice].count(None) != 2:
            raise ValueError("give exactly one of uniform, loguniform and choice")
        if ends := self.uniform or self.loguniform:
            low, high = ends
            if not low < high:
                raise ValueError(f"the low end ({low}) must be less than the high end ({high})")
            if self.loguniform and low <= 0:
                raise ValueError(f"the low end ({low}) of loguniform must be above 0")
            if not math.isfinite(high - low):
                raise ValueError(f"the range from {low} to {high} is too wide")
        same = [_identity(value) for value in self.choice or ()]
        if twice := [value for value, key in zip(self.choice or (), same, strict=True) if same.count(key) > 1]:
            raise ValueError(f"choice holds {short(twice[0])} more than once")
        return self

    def corners(self) -> list[Value]:
        """Both ends of a range, or every choice."""
        return list(self.uniform or self.loguniform or self.choice or ())


def _identity(value: Value) -> Any:
    """Equal for values that are the same in a recipe: 1 and 1.0, but not 1 and true."""
    if isinstance(value, list):
        return tuple(_identity(each) for each in value)
    return (isinstance(value, bool), value)


class Budget(Section):
    """What the search may cost."""

    trials: Annotated[int, Field(ge=1, le=MAX_TRIALS)] | None = None
    """Trials; null (grid only): all combinations."""
    epochs: Positive | None = None
    """Longest training of a trial, passes over the training split; null: the recipe's own length. Warm-up and decays
    shrink with it where the recipe's length is in epochs too."""
    evaluate_every_epochs: Positive | None = None
    """Passes between the evaluations of a trial; null: the recipe's own interval."""
    wall_minutes: Positive | None = None
    """Longest time of the trials; those that then train go on when the search is resumed. null: no limit."""


class Scheduler(Section):
    """Which trials are stopped before their end, or go on with other values."""

    kind: Literal["none", "asha", "median", "pbt"] = "none"
    """asha: only the best go on at each rung; median: the worse half stops; pbt: the worse copy the better."""
    grace_epochs: Positive = 1.0
    """asha, median: no trial is stopped earlier."""
    reduction_factor: Annotated[float, Field(gt=1)] = 3.0
    """asha: one of so many trials goes on from rung to rung."""
    perturb_epochs: Positive | None = None
    """pbt: passes between two times of copying; needed there."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if (self.kind == "pbt") != (self.perturb_epochs is not None):
            raise ValueError("perturb_epochs belongs to, and is needed by, kind: pbt")
        return self


class Resources(Section):
    """What one trial takes from the Ray cluster; in place of the recipe's `cluster` section."""

    workers: PositiveInt = 1
    """Processes that train a trial together."""
    cpus_per_worker: Positive = 1.0
    """CPUs reserved for a worker."""
    gpus_per_worker: Annotated[float, Field(ge=0)] = 0.0
    """GPUs reserved for a worker; a fraction lets trials of one worker share a GPU."""
    loader_workers: Annotated[int, Field(ge=0, le=1024)] = 0
    """Data-loading processes of each worker; 0: in the worker itself."""


class Space(Section):
    """A search around a base recipe."""

    recipe: str | None = None
    """The base recipe's file, relative to the space's own; not read where the recipe is given otherwise."""
    stage: str | None = None
    """The stage that is searched; null: the recipe's only one."""
    metric: str
    """Figure of the evaluation by which trials are compared, each at its best evaluation: `val/...`."""
    mode: Literal["max", "min"] = "max"
    """Which end of the metric is the good one."""
    searcher: Literal["random", "grid", "tpe"] = "random"
    """random: independent draws; grid: combinations of choices; tpe: Optuna's, which learns from earlier trials."""
    seed: Annotated[int, Field(ge=0, lt=2**31)] = 0
    """Decides what is drawn (the training seed is the recipe's)."""
    scheduler: Scheduler = Scheduler()
    budget: Budget = Budget()
    concurrency: PositiveInt | None = None
    """Trials at a time; null: as many as the cluster has room for."""
    resources: Resources | None = None
    """Of one trial; null: the recipe's `cluster` section."""
    keep_best: PositiveInt = 3
    """Trials of the search whose best checkpoint stays."""
    parameters: dict[str, Draw]
    """What is varied: dotted paths in the stage, such as `optimizer.lr`, and how values are drawn."""


@dataclass(frozen=True)
class Search:
    """A space held against its base recipe."""

    name: str
    """File stem of the space."""
    space: Space
    recipe: Recipe
    """The base recipe, with the user's overrides."""
    stage: str
    """Name of the searched stage."""


def load_search(path: Path, overrides: Sequence[str] = (), recipe: Recipe | None = None) -> Search:
    """Read a space, hold it against its base recipe, and name every mistake at once.

    Args:
        path: the space's file.
        overrides: those that begin with `space.` apply to the space (`space.budget.trials=4`; a parameter's draw as a
            whole: `space.parameters.optimizer.lr={choice: [1e-3, 2e-3]}`), all others to the base recipe.
        recipe: the base recipe; None: the one that the space names.

    Raises:
        UserError: one mistake, or a file that cannot be read.
        UserErrors: several mistakes, each with file and line or override, value and nearest key.
    """
    merged, places = read_mapping(path, "space")
    mistakes = _Mistakes(str(path), places)
    space = base = None
    for override in overrides:
        with mistakes.gathered():
            if is_of_space(override):
                _apply(override, merged, places)
    with mistakes.gathered():
        space = check(Space, merged, places, str(path))
    with mistakes.gathered():
        others = [override for override in overrides if not is_of_space(override)]
        base = _base_recipe(path, merged.get("recipe"), others, recipe, mistakes)
    stage = _stage_name(base, merged.get("stage"), mistakes) if base else None
    if base and stage:
        _check_against_recipe(merged, space, base, stage, mistakes)
    if space:
        _check_searcher(space, mistakes)
    if mistakes.found or space is None or base is None or stage is None:
        raise mistakes.error()
    return Search(path.stem, space, base, stage)


def is_of_space(override: str) -> bool:
    """Whether an override belongs to the space, not to the base recipe."""
    return override.strip().startswith(PREFIX)


class _Mistakes:
    """Mistakes gathered over a whole space."""

    def __init__(self, name: str, places: Places) -> None:
        self.name = name
        self.places = places
        self.found: list[UserError] = []

    def add(self, what: str, *key_path: str, fix: str = "") -> None:
        """Note a mistake at a key of the space."""
        self.found.append(UserError(what, where=located(key_path, self.places, self.name), fix=fix))

    @contextmanager
    def gathered(self) -> Iterator[None]:
        """Note what the block raises, and go on."""
        try:
            yield
        except UserError as error:
            self.found += _each(error)

    def error(self) -> UserError:
        return self.found[0] if len(self.found) == 1 else UserErrors(self.found)


def _each(error: UserError) -> list[UserError]:
    return error.errors if isinstance(error, UserErrors) else [error]


def _apply(override: str, merged: dict[str, Any], places: Places) -> None:
    """Put one override into the space."""
    (_, *path), value, where = parse_override(override)
    if path[0] == "parameters" and len(path) > 1:
        # a parameter's name is itself a dotted path
        path = ["parameters", ".".join(path[1:])]
    put(merged, path, value, where)
    claim(places, tuple(path), where)


def _base_recipe(
    path: Path, named: Any, overrides: Sequence[str], recipe: Recipe | None, mistakes: _Mistakes
) -> Recipe | None:
    """The recipe given, else the one named, with overrides on top; None after a mistake in its name."""
    if recipe is not None:
        return override_recipe(recipe.model_dump(mode="json"), overrides, {}, f"recipe {recipe.name}")
    if named is None:
        mistakes.add("names no recipe", fix="add `recipe: <file, relative to this one>`, or give one with --recipe")
    if not isinstance(named, str):
        return None
    file = path.parent / named
    try:
        return load_recipe(file, overrides)
    except UserError as error:
        if error.where != str(file):
            raise
        # the file itself is wrong, and named in the message: say who asked for it
        mistakes.add(error.what, "recipe", fix=error.fix)
        return None


def _stage_name(recipe: Recipe, named: Any, mistakes: _Mistakes) -> str | None:
    """The searched stage; None after a mistake."""
    if named is None and len(recipe.stages) == 1:
        return next(iter(recipe.stages))
    if named in recipe.stages if isinstance(named, str) else False:
        return str(named)
    stages = ", ".join(recipe.stages)
    if named is None:
        mistakes.add(f"names no stage; the recipe has {stages}", fix="add `stage: <name>`")
    elif isinstance(named, str):
        mistakes.add(f"no stage {short(named)}{nearest(named, recipe.stages)}", "stage", fix=f"stages: {stages}")
    return None


def _check_against_recipe(
    merged: Mapping[str, Any], space: Space | None, recipe: Recipe, stage: str, mistakes: _Mistakes
) -> None:
    """Hold what can be read of a space, which need not be valid as a whole, against the recipe."""
    whole = recipe.model_dump(mode="json")
    base = recipe.stages[stage]
    epochs = base.training.epochs
    if space:
        epochs = trial_epochs(space, base)
        _shape(whole["stages"][stage], space)
        try:
            base = check(Recipe, whole, {}, "").stages[stage]
        except UserError as error:
            for each in _each(error):
                mistakes.add(_reason(each, "", stage)[0], "resources")
            whole = recipe.model_dump(mode="json")
        _check_lengths(space, base, epochs, mistakes)
    draws = space.parameters if space else _readable(merged.get("parameters"))
    if isinstance(merged.get("metric"), str):
        _check_metric(merged["metric"], merged.get("mode", "max"), base, mistakes)
    for path, draw in draws.items():
        _check_parameter(path, draw, whole, stage, epochs, mistakes)
    if space and space.scheduler.kind == "pbt":
        _check_pbt(space, base, mistakes)


def _readable(parameters: Any) -> dict[str, Draw]:
    """Those parameters whose draws are valid, of a space that is not."""
    found = {}
    for path, raw in parameters.items() if isinstance(parameters, dict) else ():
        try:
            found[path] = check(Draw, raw, {}, "")
        except UserError:
            continue  # named with the space's other mistakes
    return found


def _check_parameter(
    path: str, draw: Draw, whole: dict[str, Any], stage: str, epochs: float | None, mistakes: _Mistakes
) -> None:
    """Refuse a path that is not searched, and ends or choices that the recipe refuses."""
    for part, why in NOT_SEARCHED.items():
        if _is_within(path, part):
            mistakes.add(f"{path} is not searched: {why}", "parameters", path)
            return
    refused: dict[tuple[str, str], list[Value]] = {}
    for value in draw.corners():
        for reason in _reasons_against(path, value, whole, stage, epochs):
            refused.setdefault(reason, []).append(value)
    for (what, fix), values in refused.items():
        whole_numbers = "integer" in what and draw.choice is None
        which = ", ".join(short(value) for value in values[:3]) + (", ..." if len(values) > 3 else "")
        mistakes.add(f"the recipe refuses {which}: {what}", "parameters", path, fix=FRACTIONS if whole_numbers else fix)


def _reasons_against(
    path: str, value: Value, whole: dict[str, Any], stage: str, epochs: float | None
) -> list[tuple[str, str]]:
    """What speaks against one value of a parameter in the base recipe, and what to do about it."""
    changed = {**whole, "stages": {**whole["stages"], stage: dict(whole["stages"][stage])}}
    try:
        put(changed["stages"][stage], path.split("."), value, "")
        found = check(Recipe, changed, {}, "").stages[stage]
        if path == "model.name":
            check_model_name(found.model.name, dense=found.task.kind != "classification")
    except UserError as error:
        return [_reason(each, path, stage) for each in _each(error)]
    return [(reason, "") for key, reason in _too_long(found, epochs).items() if key == path]


def _reason(error: UserError, path: str, stage: str) -> tuple[str, str]:
    """What is wrong and its remedy; the key only where it is not the parameter's own."""
    key = error.where.removeprefix(f"stages.{stage}").removeprefix(".")
    return (error.what if key in ("", path) else f"{key}: {error.what}"), error.fix


def _is_within(path: str, part: str) -> bool:
    return path == part or path.startswith(f"{part}.")


def _too_long(stage: Stage, epochs: float | None) -> dict[str, str]:
    """Parts of the schedule, by key, that a training of so many epochs does not reach the end of.

    Those given in steps, and a length in steps, cannot be compared before the data is known.
    """
    schedule = stage.optimizer.schedule
    found = {}
    if epochs is not None and schedule.warmup_epochs >= epochs:
        found["optimizer.schedule.warmup_epochs"] = (
            f"a warm-up of {schedule.warmup_epochs:g} epochs is not over when a trial ends ({epochs:g} epochs)"
        )
    if epochs is not None and schedule.decay_epochs and schedule.decay_epochs[-1] >= epochs:
        found["optimizer.schedule.decay_epochs"] = (
            f"the decay after {schedule.decay_epochs[-1]:g} epochs lies beyond the end of a trial ({epochs:g} epochs)"
        )
    return found


def _check_lengths(space: Space, base: Stage, epochs: float | None, mistakes: _Mistakes) -> None:
    """Refuse lengths within a trial that are not shorter than the trial."""
    if space.budget.epochs is not None:
        for key, reason in _too_long(base, epochs).items():
            if key not in space.parameters:
                mistakes.add(
                    f"{key}: {reason}",
                    "budget",
                    "epochs",
                    fix=f"raise budget.epochs, or shorten it for trials and retraining: {key}=...",
                )
    if epochs is None or space.scheduler.kind == "none":
        return
    key = "perturb_epochs" if space.scheduler.kind == "pbt" else "grace_epochs"
    length = getattr(space.scheduler, key)
    if length >= epochs:
        mistakes.add(f"{length:g} is not less than the {epochs:g} epochs of a trial", "scheduler", key)
    interval = base.training.evaluate_every.epochs
    if interval is not None and interval >= epochs:
        mistakes.add(
            f"a trial of {epochs:g} epochs is evaluated every {interval:g} epochs, that is, only at its end: "
            f"{space.scheduler.kind} could not act",
            "budget",
            "evaluate_every_epochs",
            fix="set budget.evaluate_every_epochs",
        )


def _check_metric(metric: str, mode: Any, base: Stage, mistakes: _Mistakes) -> None:
    names = METRICS[base.task.kind]
    if base.task.kind == "detection" and base.task.head != "mask_rcnn":
        names = {name: good for name, good in names.items() if not name.startswith("val/mask_")}
    if metric not in names:
        mistakes.add(
            f"task {base.task.kind} reports no {short(metric)}{nearest(metric, names)}",
            "metric",
            fix=f"it reports {', '.join(names)}",
        )
    elif mode in ("max", "min") and mode != names[metric]:
        mistakes.add(f"{mode} would search for the worst model by {metric}", "mode", fix=f"set `mode: {names[metric]}`")


def _check_searcher(space: Space, mistakes: _Mistakes) -> None:
    """Refuse parameters and numbers of trials that do not fit the searcher."""
    if not space.parameters:
        mistakes.add("the space is empty", "parameters", fix="name at least one, such as `optimizer.lr`")
    for path in space.parameters:
        for other in space.parameters:
            if path != other and _is_within(path, other):
                mistakes.add(f"{path} lies within {other}, which is searched too", "parameters", path)
    if space.searcher != "grid":
        if space.budget.trials is None:
            mistakes.add(f"trials are needed by searcher {space.searcher}", "budget", fix="set budget.trials")
        return
    ranges = [path for path, draw in space.parameters.items() if draw.choice is None]
    for path in ranges:
        mistakes.add("a grid needs `choice`, not a range", "parameters", path, fix="list its values")
    if ranges or not space.parameters:
        return
    sizes = [len(draw.corners()) for draw in space.parameters.values()]
    there, wanted = math.prod(sizes), space.budget.trials
    arithmetic = f"{' x '.join(map(str, sizes))} = {there}" if len(sizes) > 1 else str(there)
    if wanted is not None and wanted > there:
        mistakes.add(f"{wanted} trials are more than the grid's combinations ({arithmetic})", "budget", "trials")
    if wanted is None and there > MAX_TRIALS:
        mistakes.add(
            f"the grid has too many combinations ({arithmetic}; at most {MAX_TRIALS} trials)",
            "parameters",
            fix="leave out choices, or set budget.trials",
        )


def _check_pbt(space: Space, base: Stage, mistakes: _Mistakes) -> None:
    if space.searcher != "random":
        mistakes.add(f"scheduler pbt needs searcher random, not {space.searcher}", "searcher")
    if base.cluster.workers > 1:
        mistakes.add(
            f"scheduler pbt needs trials of one worker, not of {base.cluster.workers}",
            *(("resources", "workers") if space.resources else ("scheduler", "kind")),
            fix="set resources.workers to 1",
        )
    for path in space.parameters:
        if not any(_is_within(path, part) for part in PERTURBED):
            mistakes.add(
                "pbt changes values while a model trains, which this one does not allow",
                "parameters",
                path,
                fix=f"it may change {', '.join(PERTURBED)}",
            )


def trial_epochs(space: Space, stage: Stage) -> float | None:
    """Longest training of a trial in epochs; None: the recipe gives steps, and the budget nothing."""
    return space.budget.epochs or stage.training.epochs


def _shape(stage: dict[str, Any], space: Space) -> None:
    """Turn the plain values of a stage into those of a trial: length, evaluations, checkpoints, resources."""
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


def _scale_schedule(schedule: dict[str, Any], factor: float, space: Space) -> None:
    """Shorten what the schedule measures in epochs or steps as the trial is shorter; what is searched stays.

    A trial must rank values as the whole training would. Under a warm-up of full length the trial's best learning rate
    is one that the whole training, which stays at its peak for long, does not survive (measured on the demo).
    """
    path = "optimizer.schedule."
    if path + "warmup_epochs" not in space.parameters:
        schedule["warmup_epochs"] *= factor
    if path + "warmup_steps" not in space.parameters:
        schedule["warmup_steps"] = round(schedule["warmup_steps"] * factor)
    if path + "decay_epochs" not in space.parameters:
        schedule["decay_epochs"] = [epoch * factor for epoch in schedule["decay_epochs"]]


def trial_stage(search: Search, values: Mapping[str, Value]) -> Stage:
    """What a trial trains: the searched stage with the values, the budget's length and the trial's resources.

    Raises:
        UserError: the values, each valid, do not fit together; they are named.
    """
    whole = search.recipe.model_dump(mode="json")
    _shape(whole["stages"][search.stage], search.space)
    return _with_values(whole, search.stage, values).stages[search.stage]


def with_values(recipe: Recipe, stage: str, values: Mapping[str, Value]) -> Recipe:
    """The recipe with the values in one stage, nothing else changed, and no search of its own any more.

    Raises:
        UserError: the values do not fit together; they are named.
    """
    return _with_values({**recipe.model_dump(mode="json"), "tune": None}, stage, values)


def _with_values(whole: dict[str, Any], stage: str, values: Mapping[str, Value]) -> Recipe:
    shown = ", ".join(f"{path}={json.dumps(value)}" for path, value in values.items())
    try:
        for path, value in values.items():
            put(whole["stages"][stage], path.split("."), value, path)
        return check(Recipe, whole, {}, "")
    except UserError as error:
        raise UserError(f"these values make no valid recipe: {shown or 'none'}\n{error}") from None


def value_at(stage: Stage, path: str) -> Any:
    """The plain value at a dotted path of a stage.

    Raises:
        KeyError: the stage has no such path.
    """
    node: Any = stage.model_dump(mode="json")
    for part in path.split("."):
        if not isinstance(node, dict) or part not in node:
            raise KeyError(path)
        node = node[part]
    return node


def search_hash(search: Search, data_digest: str, parents: Sequence[str] = ()) -> str:
    """Twelve hexadecimal digits that name a search: all that decides what its trials come to.

    Left out is how much of it is done (trials, wall time), what stays, and where it runs.

    Args:
        search: the space with its base recipe.
        data_digest: digest of the searched stage's data.
        parents: hashes of the stages that it starts from.
    """
    base, space = search.recipe.stages[search.stage], search.space
    part = space.model_dump(
        mode="json",
        exclude={
            "recipe": True, "stage": True, "concurrency": True, "keep_best": True, "resources": True,
            "budget": {"trials", "wall_minutes"},
        },
    )  # fmt: skip
    # a list: draws follow the order of the file
    part["parameters"] = list(part["parameters"].items())
    part["workers"] = space.resources.workers if space.resources else base.cluster.workers
    return short_digest([hashed_part(base), part, data_digest, list(parents)])


def combinations(space: Space) -> list[dict[str, Value]]:
    """The trials of a grid: all combinations or the first `budget.trials`, the last parameter changing fastest."""
    values = itertools.product(*(draw.corners() for draw in space.parameters.values()))
    return [dict(zip(space.parameters, each, strict=True)) for each in itertools.islice(values, space.budget.trials)]
