"""The search spaces that are shipped: each fits its recipe, and searches around the recipe's own values."""

from pathlib import Path

import pytest

from scalablevit.config.space import Search
from scalablevit.config.space_loading import load_search
from scalablevit.config.trial import trial_epochs, trial_stage, value_at, with_values

REPOSITORY = Path(__file__).parents[2]
SPACES = sorted((REPOSITORY / "tune_spaces").glob("*.yaml"))


@pytest.fixture(params=SPACES, ids=lambda path: path.stem)
def search(request: pytest.FixtureRequest) -> Search:
    return load_search(request.param)


def test_which_are_shipped() -> None:
    names = {"cifar10", "demo", "detect", "pretrain", "pretrain_base", "pretrain_large", "segment"}
    assert {path.stem for path in SPACES} == names


def test_the_recipes_own_values_lie_inside(search: Search) -> None:
    """For the paper's recipes these are the paper's values."""
    base = search.recipe.stages[search.stage]
    for path, draw in search.space.parameters.items():
        low, high = draw.corners()
        own = value_at(base, path)
        assert low < own < high if own is not None else path == "model.drop_path_rate"


def test_learning_rate_and_drop_path_are_searched(search: Search) -> None:
    assert {"optimizer.lr", "model.drop_path_rate"} <= set(search.space.parameters)


@pytest.mark.parametrize("end", [0, 1])
def test_the_ends_together_are_trials_and_recipes(search: Search, end: int) -> None:
    values = {path: draw.corners()[end] for path, draw in search.space.parameters.items()}
    trial = trial_stage(search, values)
    whole = with_values(search.recipe, search.stage, values).stages[search.stage]
    for path, value in values.items():
        assert value_at(trial, path) == value_at(whole, path) == value
    assert trial.training.epochs == trial_epochs(search.space, search.recipe.stages[search.stage])


def test_early_stopping_has_evaluations_to_go_by(search: Search) -> None:
    """Of a trial that asha stops at its first rung, at least one evaluation is there."""
    trial = trial_stage(search, {})
    assert search.space.scheduler.kind == "asha"
    assert trial.training.evaluate_every.epochs is not None
    assert trial.training.evaluate_every.epochs <= search.space.scheduler.grace_epochs


@pytest.mark.parametrize(
    ("name", "size"), [("pretrain", "small"), ("pretrain_base", "base"), ("pretrain_large", "large")]
)
def test_pretraining_of_all_sizes(name: str, size: str) -> None:
    search = load_search(REPOSITORY / "tune_spaces" / f"{name}.yaml")
    assert search.recipe.stages[search.stage].model.name == f"scalablevit_{size}"
