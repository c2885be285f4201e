"""The recipes and search spaces that come with the package, by name."""

from pathlib import Path

_PACKAGE = Path(__file__).resolve().parents[1]
RECIPES = (_PACKAGE / "recipes").resolve()
"""Folder of the recipes. In a checkout the package holds links to this folder and the next, an installed one copies."""
SPACES = (_PACKAGE / "tune_spaces").resolve()
"""Folder of the search spaces."""
DEMO = "demo.yaml"
"""File name of the recipe, and of the search space, that are used when none is given."""


def shipped_files(folder: Path) -> dict[str, Path]:
    """Return the shipped files of a folder (`RECIPES` or `SPACES`) by name, sorted."""
    return {path.stem: path for path in sorted(folder.glob("*.yaml"))}


def recipe_file(given: str, folder: Path = Path()) -> Path:
    """Return the file of a recipe.

    Args:
        given: a path, or the name of a shipped recipe, such as `imagenet_scalablevit_small`.
        folder: what paths are relative to. A file there goes before a shipped one of the same name.
    """
    return _find(given, folder, RECIPES)


def space_file(given: str, folder: Path = Path()) -> Path:
    """Return the file of a search space; see `recipe_file`."""
    return _find(given, folder, SPACES)


def _find(given: str, folder: Path, shipped: Path) -> Path:
    named, own = shipped_files(shipped).get(given), folder / given
    return own if named is None or own.is_file() else named
