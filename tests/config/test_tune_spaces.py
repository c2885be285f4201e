"""The search spaces, as data: their paths exist in the base recipe and both ends of each range are recipes."""

from pathlib import Path
from typing import Any

import pytest

from scalablevit.config import strict_yaml
from scalablevit.config.errors import UserError
from scalablevit.config.loading import load_recipe

REPOSITORY = Path(__file__).parents[2]
SPACES = sorted((REPOSITORY / "tune_spaces").glob("*.yaml"))


@pytest.fixture(params=SPACES, ids=lambda path: path.stem)
def space(request: pytest.FixtureRequest) -> dict[str, Any]:
    loaded = strict_yaml.load(request.param.read_text(encoding="utf-8"), str(request.param))[0]
    assert isinstance(loaded, dict)
    return loaded


def test_pretraining_has_a_space() -> None:
    assert [path.name for path in SPACES] == ["pretrain.yaml"]


def test_it_names_recipe_metric_direction_and_searcher(space: dict[str, Any]) -> None:
    assert set(space) == {"recipe", "metric", "mode", "searcher", "parameters"}
    assert space["metric"] == "val/top1"
    assert space["mode"] == "max"
    assert space["searcher"] in ("random", "grid", "tpe")
    assert set(space["parameters"]) == {"optimizer.lr", "model.drop_path_rate"}


def test_ranges_rise_and_their_ends_are_valid_in_the_recipe(space: dict[str, Any]) -> None:
    recipe = REPOSITORY / space["recipe"]
    base = load_recipe(recipe)
    for path, choice in space["parameters"].items():
        ((kind, (low, high)),) = choice.items()
        assert kind in ("uniform", "loguniform")
        assert low < high
        assert kind != "loguniform" or low > 0
        for value in (low, high):
            resolved = load_recipe(recipe, [f"{path}={value!r}"])
            found: Any = next(iter(resolved.stages.values()))
            for part in path.split("."):
                found = getattr(found, part)
            assert found == value
        # the paper's value lies inside
        paper: Any = next(iter(base.stages.values()))
        for part in path.split("."):
            paper = getattr(paper, part)
        assert low < paper < high


def test_a_path_that_the_recipe_lacks_is_refused(space: dict[str, Any]) -> None:
    """What the check above rests on."""
    with pytest.raises(UserError, match="did you mean 'drop_path_rate'"):
        load_recipe(REPOSITORY / space["recipe"], ["model.drop_path=0.1"])
