"""A search over values with which no model can be built is refused before its trials."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from scalablevit.config.errors import UserError, UserErrors
from scalablevit.config.recipe import Length
from scalablevit.config.space_loading import load_search
from scalablevit.pipeline import searched_models
from scalablevit.pipeline.resolve import ResolvedStage
from scalablevit.pipeline.searched_models import check_searched_models, trial_warnings

CLASSES = ("cat", "dog")
RECIPE = {
    "name": "r",
    "model": {"name": "vgg11"},
    "optimizer": {"lr": 0.001},
    "training": {"epochs": 2, "global_batch_size": 8},
    "data": {"root": "d", "source": "image_folder", "train": {"images": "t"}, "val": {"images": "v"}, "image_size": 32},
    "task": {"kind": "classification"},
}


def checked(root: Path, parameters: dict[str, list[Any]], budget: float | None = None, **sections: Any) -> list[str]:
    """Check a space over choices, around the recipe with other sections; gives the warnings."""
    space = {"recipe": "r.yaml", "metric": "val/top1", "searcher": "grid", "stage": "pretrain",
             "budget": {"epochs": budget},
             "parameters": {key: {"choice": values} for key, values in parameters.items()}}  # fmt: skip
    (root / "r.yaml").write_text(json.dumps({**RECIPE, **sections}))
    (root / "space.yaml").write_text(json.dumps(space))
    search = load_search(root / "space.yaml")
    stages = [
        ResolvedStage(
            name=name, stage=stage, run_name=f"r-{name}-0", hash="0", digest="content:0", classes=CLASSES,
            train_samples=96, val_samples=25, unreadable=0, ignored=(), notes=(), length=Length.of(stage, 96),
        ) for name, stage in search.recipe.stages.items()
    ]  # fmt: skip
    if len(stages) > 1:
        stages[1] = replace(stages[1], parents=(stages[0].name,))
    warnings = trial_warnings(search, stages)
    check_searched_models(search, stages, root)
    return warnings


def test_stochastic_depth_of_an_architecture_without_it(tmp_path: Path) -> None:
    with pytest.raises(UserError) as caught:
        checked(tmp_path, {"model.drop_path_rate": [None, 0.1]})
    assert caught.value.where == "space space: parameters.model.drop_path_rate"
    assert caught.value.what.startswith("no trial can have 0.1: vgg11 cannot be built with")


def test_a_value_that_another_parameter_gives_an_effect_passes(tmp_path: Path) -> None:
    checked(tmp_path, {"model.drop_path_rate": [None, 0.1], "model.name": ["vgg11", "resnet18"]})
    checked(tmp_path, {"optimizer.lr": [0.1, 0.2]})


def test_every_value_that_fails_is_named(tmp_path: Path) -> None:
    """Batch norm has no statistics of single images, and vgg11 no option of that name."""
    resnet = {"model": {"name": "resnet18"}}
    with pytest.raises(UserError, match="no trial can have 1: 1 images over 1 workers"):
        checked(tmp_path, {"training.global_batch_size": [1, 8]}, **resnet)
    with pytest.raises(UserErrors) as caught:
        checked(tmp_path, {"model.options.nothing": [1, 2]})
    assert len(caught.value.errors) == 2


def test_where_nothing_passes_no_single_parameter_is_blamed(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no trial can have any of these values: vgg11 cannot be built") as caught:
        checked(tmp_path, {"training.global_batch_size": [8, 16], "model.options.nothing": [1, 2]})
    assert caught.value.where == "space space: parameters.training.global_batch_size, model.options.nothing"


def test_an_architecture_that_cannot_start_from_the_parents_weights(tmp_path: Path) -> None:
    stages = {"first": {}, "pretrain": {"model": {"init": "stage:first"}}}
    with pytest.raises(UserError, match=r"no trial can have \"resnet18\": lacks \d+ of the model's"):
        checked(tmp_path, {"model.name": ["vgg11", "resnet18"]}, stages=stages)


def test_a_space_of_many_models_is_left_to_its_trials(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(searched_models, "MOST_MODELS", 1)
    checked(tmp_path, {"model.drop_path_rate": [None, 0.1]})


def test_a_warm_up_in_steps_that_no_trial_ends_is_refused(tmp_path: Path) -> None:
    """A trial's epoch has 12 steps; a recipe in steps is not shortened in proportion. Its rate would stay near 0."""
    training = {"training": {"steps": 120, "global_batch_size": 8}}
    optimizer = {"optimizer": {"lr": 0.001, "schedule": {"warmup_steps": 20}}}
    rates: dict[str, list[Any]] = {"optimizer.weight_decay": [0.1, 0.2]}
    with pytest.raises(UserError) as caught:
        checked(tmp_path, rates, budget=1, **training, **optimizer)
    assert caught.value.where == "space space: budget.epochs, optimizer.schedule"
    assert "the warm-up (20 steps) is not shorter than the training (12 steps" in caught.value.what
    (warning,) = checked(tmp_path, rates, budget=2, **training, **optimizer)
    assert (
        warning.startswith("of a trial: the learning rate reaches ") and "first 20 of the curve's 24 steps" in warning
    )
    assert checked(tmp_path, rates, **training, **optimizer) == []
    with pytest.raises(UserError, match=r"no trial can have 20: the warm-up \(20 steps\)"):
        checked(tmp_path, {"optimizer.schedule.warmup_steps": [2, 20]}, budget=1, **training)


@pytest.mark.parametrize(
    "parameters", [{"optimizer.schedule.warmup_steps": [2, 4]}, {"training.global_batch_size": [2, 4]}]
)
def test_a_warm_up_or_length_that_is_searched_is_not_the_recipes(tmp_path: Path, parameters: dict[str, Any]) -> None:
    training = {"training": {"steps": 120, "global_batch_size": 8}}
    optimizer = {"optimizer": {"lr": 0.001, "schedule": {"warmup_steps": 20}}}
    assert checked(tmp_path, parameters, budget=1, **training, **optimizer) == []


def test_early_stopping_of_the_full_training_is_no_warning_of_a_trial(tmp_path: Path) -> None:
    training = {"epochs": 20, "global_batch_size": 8, "early_stopping": {"patience": 5}}
    assert checked(tmp_path, {"optimizer.weight_decay": [0.1, 0.2]}, budget=1, training=training) == []
