"""The values of each trial: drawn beforehand (random), enumerated (grid), or proposed one by one (TPE)."""

import json
from collections.abc import Callable
from typing import Any, TypedDict, cast

import numpy as np
import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution
from ray.tune.search.optuna import OptunaSearch

from scalablevit.config.space import Distribution, Space, combinations

Values = dict[str, Any]
"""Sampled value by dotted recipe path."""


class ProposedTrial(TypedDict):
    """A trial as Tune gets it."""

    number: int
    """Number of the trial in the search, from 0."""
    values: Values
    curve: list[tuple[int, float]]
    """Step and metric of the evaluations that are known, in order of steps."""


class TrialConfig(TypedDict):
    """A trial's configuration as Tune has it; plain values, which population-based training copies and changes."""

    trial: ProposedTrial


def draw(space: Space, number: int) -> Values:
    """Return the values of a trial of a random search, which depend on the space's seed and the number alone.

    Parameters are drawn in the order of the file: a parameter added at its end leaves the others' values unchanged.

    Args:
        space: the search space.
        number: number of the trial, from 0.
    """
    generator = np.random.default_rng([space.seed, number])
    return {path: _sample(parameter, generator) for path, parameter in space.parameters.items()}


def _sample(parameter: Distribution, generator: np.random.Generator) -> Any:
    if parameter.uniform is not None:
        return float(generator.uniform(*parameter.uniform))
    if parameter.loguniform is not None:
        low, high = np.log(parameter.loguniform)
        return float(np.clip(np.exp(generator.uniform(low, high)), *parameter.loguniform))
    choices = parameter.choice or []  # the schema has exactly one of the three
    return choices[int(generator.integers(len(choices)))]


def enumerate_values(space: Space) -> list[Values]:
    """Return the values of all trials of a random or grid search, in the order of the trials."""
    if space.searcher == "grid":
        return combinations(space)
    return [draw(space, number) for number in range(space.budget.trials or 0)]


def distribution(parameter: Distribution) -> BaseDistribution:
    """Return a parameter as an Optuna distribution; choices that are lists become JSON text."""
    if parameter.uniform is not None:
        return FloatDistribution(*parameter.uniform)
    if parameter.loguniform is not None:
        return FloatDistribution(*parameter.loguniform, log=True)
    return CategoricalDistribution([as_category(choice) for choice in parameter.choice or []])


def as_category(choice: Any) -> Any:
    """Return a choice as Optuna can store it: a list as JSON text."""
    return json.dumps(choice) if isinstance(choice, list | tuple) else choice


class TPESearcher(OptunaSearch):
    """Optuna's TPE, whose proposals are numbered and known to the caller before their trial starts.

    Args:
        space: the search space.
        known: values of the trials that exist already: they are proposed again first, in the same order, so that later
            proposals are based on their results, new or replayed.
        propose: stores the values of a proposal, and returns the trial's configuration.
    """

    def __init__(self, space: Space, known: list[Values], propose: Callable[[Values], TrialConfig]) -> None:
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self._parameters = space.parameters
        self._propose = propose
        points = [{path: as_category(value) for path, value in values.items()} for values in known]
        super().__init__(
            {path: distribution(parameter) for path, parameter in space.parameters.items()},
            metric="score",
            mode="max",
            points_to_evaluate=points,
            sampler=optuna.samplers.TPESampler(seed=space.seed, multivariate=True),
        )

    def __getstate__(self) -> dict[str, None]:
        """Return nothing: Tune writes its searcher into snapshots, which we never read."""
        return {}

    def __deepcopy__(self, memo: dict[int, Any]) -> "TPESearcher":
        """Return the searcher itself: Tune's copy, which it uses, must have the caller's list of trials."""
        return self

    def suggest(self, trial_id: str) -> dict[str, Any] | None:
        """Return the next trial's configuration; None: no trial at the moment. Tune calls this."""
        proposed = super().suggest(trial_id)
        if proposed is None:
            return None
        values = {path: self._from_category(path, value) for path, value in proposed.items()}
        return cast(dict[str, Any], self._propose(values))

    def _from_category(self, path: str, value: Any) -> Any:
        choices = self._parameters[path].choice
        return value if choices is None else next(choice for choice in choices if as_category(choice) == value)

    def save(self, checkpoint_path: str) -> None:
        """Do nothing: a search continues from its trials' folders, never from Tune's snapshots."""

    def restore(self, checkpoint_path: str) -> None:
        """Do nothing, like `save`."""
