"""Check the lengths and the models of a search's trials before the first one starts."""

import itertools
import json
import math
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

from scalablevit.config.errors import UserError, raise_all
from scalablevit.config.space import Search, Value
from scalablevit.config.trial import trial_stage
from scalablevit.pipeline.init_weights import check_init_weights, check_parent_fit
from scalablevit.pipeline.plan_cache import cached_facts
from scalablevit.pipeline.plan_summary import model_facts, schedule_warnings
from scalablevit.pipeline.resolve import ResolvedStage, compute_length

CHECKED = (
    "model.", "data.image_size", "data.crop_size", "training.global_batch_size", "training.accumulation_steps",
    "optimizer.schedule.warmup_steps",
)  # fmt: skip
"""How parameters begin that decide whether a model can be built and run, or how long a warm-up is."""
LENGTH = ("optimizer.schedule", "training.")
"""How parameters begin that decide a trial's length or schedule, which the recipe's own values then are not."""
MOST_MODELS = 32
"""Most combinations of values that are tried; a space with more is not checked, since each takes up to seconds."""


def trial_warnings(search: Search, stages: Sequence[ResolvedStage]) -> list[str]:
    """Return what the plan warns of in a trial, and not in the searched stage, which may be longer.

    Not of early stopping, which is meant for the full training.

    Args:
        search: the space with its base recipe.
        stages: the searched stage among others.

    Raises:
        UserError: the warm-up is not shorter than a trial.
    """
    if any(key.startswith(LENGTH) for key in search.space.parameters):
        return []
    searched = next(stage for stage in stages if stage.name == search.stage)
    stage = trial_stage(search, {})
    stage = stage.model_copy(update={"training": stage.training.model_copy(update={"early_stopping": None})})
    try:
        length = compute_length(stage, searched.train_samples)
    except UserError as error:
        raise UserError(error.what, where=f"space {search.name}: budget.epochs, {error.where}", fix=error.fix) from None
    known = schedule_warnings(searched)
    return [
        f"of a trial: {warning}"
        for warning in schedule_warnings(replace(searched, stage=stage, length=length))
        if warning not in known
    ]


def check_searched_models(search: Search, stages: Sequence[ResolvedStage], root: Path) -> None:
    """Refuse values with which no trial's model can be built, run, or start from the stage's initial weights.

    Args:
        search: the space with its base recipe.
        stages: the searched stage and those before it.
        root: the platform's root, where passed checks are cached.

    Raises:
        UserError: there is such a value, as a rate of stochastic depth for an architecture that has none.
        UserErrors: there are several.
    """
    choices = {
        key: distribution.corners() for key, distribution in search.space.parameters.items() if key.startswith(CHECKED)
    }
    if not choices or math.prod(map(len, choices.values())) > MOST_MODELS:
        return
    resolved = {stage.name: stage for stage in stages}
    searched = resolved[search.stage]
    parent = resolved[searched.parents[0]] if searched.parents else None
    failures: dict[tuple[str, str], UserError | None] = {}
    for combination in itertools.product(*choices.values()):
        values = dict(zip(choices, combination, strict=True))
        failure = _failure(search, values, searched, parent, root)
        for key, value in values.items():
            at = (key, json.dumps(value))
            failures[at] = failure if failures.get(at, failure) is not None else None
    if len(choices) > 1 and failure is not None and None not in failures.values():  # any of the keys may be the cause
        raise UserError(f"no trial can have any of these values: {failure.what}",
                        where=f"space {search.name}: parameters.{', '.join(choices)}",
                        fix="change these parameters, or the recipe's model")  # fmt: skip
    raise_all([
        UserError(f"no trial can have {value}: {failure.what}", where=f"space {search.name}: parameters.{key}",
                  fix="leave the value out of the space, or change the recipe's model")
        for (key, value), failure in failures.items() if failure is not None
    ])  # fmt: skip


def _failure(
    search: Search, values: dict[str, Value], searched: ResolvedStage, parent: ResolvedStage | None, root: Path
) -> UserError | None:
    """Return why a trial with some values cannot train; None: it can."""
    try:
        stage = trial_stage(search, values)
        compute_length(stage, searched.train_samples)
        trial = replace(searched, stage=stage)
        cached_facts(stage, searched.classes, root, partial(model_facts, trial))
        if searched.init_weights is not None:
            check_init_weights(stage, searched.init_weights, searched.classes, root)
        if parent is not None:
            check_parent_fit(stage, searched.classes, parent.stage, parent.classes, root)
    except UserError as error:
        return error
    return None
