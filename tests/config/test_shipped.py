"""Recipes and search spaces by name."""

from pathlib import Path

import pytest

from scalablevit.config.errors import UserError
from scalablevit.config.loading import load_recipe
from scalablevit.config.run_hash import stage_hash
from scalablevit.config.shipped import DEMO, RECIPES, SPACES, recipe_file, shipped_files, space_file
from scalablevit.config.space_loading import load_search

REPOSITORY = Path(__file__).parents[2]


def test_the_folders_are_those_of_the_checkout() -> None:
    assert (RECIPES, SPACES) == (REPOSITORY / "pipelines" / "recipes", REPOSITORY / "tune_spaces")
    assert {"demo", "imagenet_scalablevit_small"} <= set(shipped_files(RECIPES))
    assert list(shipped_files(SPACES)) == sorted(shipped_files(SPACES))


def test_the_runs_of_the_demo_keep_their_names() -> None:
    """With another hash, everybody's runs train again from zero."""
    stages = load_recipe(RECIPES / DEMO).stages
    assert {name: stage_hash(stage, "data") for name, stage in stages.items()} == {
        "pretrain": "82ca70af49ed",
        "segment": "8015d48b097d",
        "detect": "668b727a2bc8",
    }


def test_a_name_is_a_shipped_one_unless_there_is_such_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert recipe_file("demo") == RECIPES / "demo.yaml"
    assert space_file("demo") == SPACES / "demo.yaml"
    for path in ("demo.yaml", "./demo", "other/demo", "nonesuch", "", "a\0b", "x" * 5000):
        assert recipe_file(path) == Path(path)
    (tmp_path / "demo").mkdir()  # a folder is no recipe
    assert recipe_file("demo") == RECIPES / "demo.yaml"
    (tmp_path / "cifar10").write_text("mine")
    assert recipe_file("cifar10") == Path("cifar10")
    assert recipe_file("cifar10", tmp_path / "elsewhere") == RECIPES / "cifar10.yaml"


def test_a_space_names_a_shipped_recipe_or_one_beside_it(tmp_path: Path) -> None:
    space = tmp_path / "own.yaml"
    space.write_text("recipe: cifar10\nmetric: val/top1\nbudget: {trials: 2}\n"
                     "parameters: {optimizer.lr: {choice: [0.001, 0.002]}}\n")  # fmt: skip
    assert load_search(space).recipe.name == "cifar10"
    content = (RECIPES / "cifar10.yaml").read_text()
    (tmp_path / "cifar10").write_text(content.replace("name: cifar10", "name: mine"))
    assert load_search(space).recipe.name == "mine"
    space.write_text(space.read_text().replace("recipe: cifar10", "recipe: cifar11"))
    with pytest.raises(UserError, match="cannot read the recipe") as caught:
        load_search(space)
    assert "recipe" in caught.value.where
