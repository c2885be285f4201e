"""A search as an Optuna study, for Optuna's plots."""

from collections.abc import Sequence
from typing import Any

import optuna
from optuna.trial import TrialState, create_trial

from scalablevit.config.space import Distribution, Space
from scalablevit.tuning.sampling import as_category, distribution
from scalablevit.tuning.trials import Trial, rank_trials
from scalablevit.viz.style import plain


def as_study(trials: Sequence[Trial], space: Space) -> optuna.Study:
    """Return the evaluated trials as an Optuna study in memory, for Optuna's plots."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(direction="minimize" if space.mode == "min" else "maximize")
    distributions = {path: distribution(_plain_choices(parameter)) for path, parameter in space.parameters.items()}
    for trial in sorted(rank_trials(trials, space.mode), key=lambda trial: trial.number):
        if (best := trial.best(space.mode)) is not None:
            params = {path: _category(value) for path, value in trial.values.items()}
            complete = create_trial(
                state=TrialState.COMPLETE, value=best[1], params=params, distributions=distributions
            )
            study.add_trial(complete)
    return study


def _plain_choices(parameter: Distribution) -> Distribution:
    """Return a parameter whose choices are as `_category` gives them."""
    if parameter.choice is None:
        return parameter
    return parameter.model_copy(update={"choice": [_category(choice) for choice in parameter.choice]})


def _category(value: Any) -> Any:
    """Return a value as Optuna can store it and matplotlib writes it literally."""
    category = as_category(value)
    return plain(category) if isinstance(category, str) else category
