"""Editors accept what the loader accepts, and mark misspelt keys and values out of range."""

import json
from typing import Any

import jsonschema
import pytest
import yaml

from scalablevit.config.json_schema import recipe_schema, space_schema
from scalablevit.config.loading import read_mapping
from scalablevit.config.shipped import RECIPES, SPACES, shipped_files

RECIPE = jsonschema.Draft202012Validator(recipe_schema())
SPACE = jsonschema.Draft202012Validator(space_schema())
FILES = [(RECIPE, each) for each in shipped_files(RECIPES).values()]
FILES += [(SPACE, each) for each in shipped_files(SPACES).values()]


def test_both_are_schemas() -> None:
    for validator in (RECIPE, SPACE):
        jsonschema.Draft202012Validator.check_schema(validator.schema)


@pytest.mark.parametrize(("validator", "file"), FILES, ids=lambda value: getattr(value, "stem", ""))
def test_shipped_files_fit(validator: Any, file: Any) -> None:
    content = json.loads(json.dumps(read_mapping(file, "recipe")[0]))
    assert [error.message for error in validator.iter_errors(content)] == []


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ("training: {epoch: 3}", "epoch"),
        ("optimizer: {lr: -1}", "-1"),
        ("stages: {a: {data: {image_siz: 3}}}", "image_siz"),
        ("learning_rate: 0.1", "learning_rate"),
        ("task: {kind: clasification}", "clasification"),
        ("training: {precision: float16}", "float16"),
    ],
)
def test_mistakes_are_marked(change: str, word: str) -> None:
    errors = list(RECIPE.iter_errors({"name": "n", **yaml.safe_load(change)}))
    assert errors and word in str(errors[0])


def test_keys_have_descriptions_for_editors() -> None:
    training = recipe_schema()["$defs"]["Training"]["properties"]
    assert training["global_batch_size"]["description"].startswith("Samples of one optimizer step")
    assert training["accumulation_steps"]["default"] == 1
