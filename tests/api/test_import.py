"""`import scalablevit`: at once, and all that it promises is there."""

import ast
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from harness.heads import ROOT, TINY

import scalablevit as sv

PACKAGE = Path(sv.__file__).parent


def run_python(code: str) -> str:
    """What a fresh process prints."""
    return subprocess.run([sys.executable, "-c", code], env={"PYTHONPATH": str(PACKAGE.parent)}, check=True, text=True,
                          capture_output=True, timeout=280).stdout  # fmt: skip


def test_the_import_and_a_recipe_load_nothing_heavy() -> None:
    said = run_python(
        "import sys, scalablevit as sv\n"
        "heavy = {'torch', 'ray', 'mlflow', 'numpy'}\n"
        "print(sorted((heavy | {'pydantic', 'yaml'}) & set(sys.modules)))\n"
        f"print(sv.load_recipe({str(TINY)!r}, 'training.seed=3').stages['detect'].training.seed)\n"
        "print(sorted(heavy & set(sys.modules)))"
    )
    assert said.splitlines() == ["[]", "3", "[]"]


def test_models_are_registered_with_timm() -> None:
    said = run_python(
        "import timm\n"
        "before = timm.list_models('scalablevit*')\n"
        "import scalablevit.models\n"
        "model = timm.create_model('scalablevit_tiny', num_classes=3)\n"
        "print(before, timm.list_models('scalablevit*'), model.num_classes)"
    )
    assert said.strip() == ("[] ['scalablevit_base', 'scalablevit_large', 'scalablevit_small', 'scalablevit_tiny'] 3")


@pytest.mark.parametrize("name", [name for name in sv.__all__ if name[0] != "_"])
def test_each_public_name_is_there(name: str) -> None:
    assert name in dir(sv)
    assert getattr(sv, name).__name__ == name
    assert getattr(sv, name).__doc__


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="has no attribute 'load_recpie'"):
        sv.load_recpie  # noqa: B018


def test_type_checkers_see_the_same_names() -> None:
    tree = ast.parse((PACKAGE / "__init__.py").read_text())
    (block,) = [node for node in tree.body if isinstance(node, ast.If)]
    seen = {each.module.removeprefix("scalablevit."): {name.name for name in each.names}
            for each in block.body if isinstance(each, ast.ImportFrom)}  # fmt: skip
    assert seen == {module: set(names) for module, names in sv._MODULES.items()}
    assert sorted(name for names in seen.values() for name in names) == [name for name in sv.__all__ if name[0] != "_"]


def test_the_package_says_that_it_is_typed() -> None:
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())
    assert (PACKAGE / "py.typed").is_file()
    assert "py.typed" in settings["tool"]["setuptools"]["package-data"]["scalablevit"]
