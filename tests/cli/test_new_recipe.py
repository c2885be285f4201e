"""A new recipe is complete: with data in its folders it loads as it is, by the loader and by its schema."""

import json
from pathlib import Path

import jsonschema
import pytest

from scalablevit.cli.new_recipe import SCHEMA_FILE, template_names
from scalablevit.cli.tree import main
from scalablevit.config.loading import load_recipe, read_mapping


@pytest.mark.parametrize("template", template_names())
def test_a_new_recipe_loads(tmp_path: Path, capsys: pytest.CaptureFixture[str], template: str) -> None:
    file = tmp_path / "mine" / "my recipe.yaml"
    assert main("recipe", ["new", template, str(file)]) == 0
    recipe = load_recipe(file)
    assert recipe.name == ("my-fine-tune" if template == "fine_tune" else "my") and len(recipe.stages) == 1
    said = capsys.readouterr().out
    assert f"--recipe '{file}' --dry-run" in said
    assert ("model.init (null: random weights)" in said) == (
        "models:/" in (next(iter(recipe.stages.values())).model.init or "")
    )
    assert "make full ARGS='--recipe '" in said
    (stage,) = recipe.stages
    assert f"registered as {recipe.name}-{stage}\n" in file.read_text()
    assert f"{stage}.py --recipe" in said
    first, *_ = file.read_text().splitlines()
    assert first == f"# yaml-language-server: $schema={SCHEMA_FILE}"
    schema = json.loads((file.parent / SCHEMA_FILE).read_text())
    content = json.loads(json.dumps(read_mapping(file, "recipe")[0]))
    jsonschema.validate(content, schema, jsonschema.Draft202012Validator)


def test_a_file_that_is_there_is_kept(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "recipe.yaml"
    file.write_text("mine")
    assert main("recipe", ["new", "segment", str(file)]) == 2
    assert "is there already" in capsys.readouterr().err and file.read_text() == "mine"
    assert not (tmp_path / SCHEMA_FILE).exists()


def test_the_schema_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main("recipe", ["schema"]) == 0
    assert "stages" in json.loads(capsys.readouterr().out)["properties"]
    assert main("recipe", ["schema", "--space"]) == 0
    assert "searcher" in json.loads(capsys.readouterr().out)["properties"]
