"""The search space: what is varied around a base recipe and how, and what that may cost."""

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from scalablevit.config.checking import short_repr
from scalablevit.config.recipe import Recipe
from scalablevit.config.run_hash import code_part, hashed_part, short_digest
from scalablevit.config.section import PositiveInt, Section

Scalar = bool | int | float | str | None
Value = Scalar | list[Scalar]
Positive = Annotated[float, Field(gt=0)]

MAX_TRIALS = 100_000
"""Most trials of a search: the list of trials is made before the first one starts."""


class Distribution(Section):
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
            raise ValueError(f"choice holds {short_repr(twice[0])} more than once")
        return self

    def corners(self) -> list[Value]:
        """Return both ends of a range, or every choice."""
        return list(self.uniform or self.loguniform or self.choice or ())


def _identity(value: Value) -> Any:
    """Return a key that is equal for values that are the same in a recipe: for 1 and 1.0, but not for 1 and true."""
    if isinstance(value, list):
        return tuple(_identity(item) for item in value)
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
    """Longest time of the trials; those that then train go on under another one, or with `tune --no-retrain`. null: no
    limit."""


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

    version: Literal[2] = 2
    """Version of the keys of recipes and search spaces; files without it are read as this one."""
    recipe: str | None = None
    """The base recipe: its file, relative to the space's own, or a shipped one's name; not read where it is given
    otherwise."""
    stage: str | None = None
    """The stage that is searched; null: the recipe's only one."""
    metric: str
    """Metric of the evaluation by which trials are compared, each at its best evaluation: `val/...`."""
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
    parameters: dict[str, Distribution]
    """What is varied: dotted paths in the stage, such as `optimizer.lr`, and how values are drawn."""


@dataclass(frozen=True)
class Search:
    """A search space, checked against its base recipe."""

    name: str
    """File stem of the space."""
    space: Space
    recipe: Recipe
    """The base recipe, with the user's overrides."""
    stage: str
    """Name of the searched stage."""


def search_hash(search: Search, data_digest: str, parents: Sequence[str] = ()) -> str:
    """Return the hash that names a search's run: twelve hexadecimal digits.

    It depends on all that decides the trials' results, and not on how many trials there are, the wall time, the
    checkpoints that are kept, or the resources other than the number of workers.

    Args:
        search: the space with its base recipe.
        data_digest: digest of the searched stage's data.
        parents: hashes of the stages that it starts from.

    Raises:
        UserError: a package that the stage imports is not here.
    """
    base, space = search.recipe.stages[search.stage], search.space
    part = space.model_dump(
        mode="json",
        exclude={
            "recipe": True, "stage": True, "concurrency": True, "keep_best": True, "resources": True,
            "budget": {"trials", "wall_minutes"},
        },
    )  # fmt: skip
    # a list keeps the file's order, in which parameters are sampled
    part["parameters"] = list(part["parameters"].items())
    part["workers"] = space.resources.workers if space.resources else base.cluster.workers
    return short_digest([hashed_part(base), part, data_digest, list(parents), *code_part(base)])


def combinations(space: Space) -> list[dict[str, Value]]:
    """Return the values of a grid's trials, by dotted path: all combinations, or the first `budget.trials` of them.

    The last parameter changes fastest.
    """
    values = itertools.product(*(distribution.corners() for distribution in space.parameters.values()))
    return [
        dict(zip(space.parameters, combination, strict=True))
        for combination in itertools.islice(values, space.budget.trials)
    ]
