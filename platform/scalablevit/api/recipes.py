"""Load recipes from files."""

from collections.abc import Iterable
from pathlib import Path

from scalablevit.config.errors import UserError
from scalablevit.config.loading import load_recipe as read_recipe
from scalablevit.config.packages import note_imported, top_level
from scalablevit.config.recipe import Recipe
from scalablevit.config.shipped import recipe_file, space_file
from scalablevit.config.user_code import imports_of


def load_recipe(path: str | Path, *overrides: str) -> Recipe:
    """Read and check a recipe, without looking at its data and without importing torch or what it names itself.

    If your own package defines what the recipe names (a task, a source), `import` it before.

    Args:
        path: the recipe's YAML file, or the name of a shipped recipe, such as "demo".
        overrides: dotted keys as on the command line, such as "optimizer.lr=1e-4" for all stages that read the key and
            "stages.segment.training.epochs=3" for one stage.

    Returns:
        The checked recipe, which cannot be changed: its values are attributes
            (`recipe.stages["pretrain"].optimizer.lr`), and other overrides make another recipe.

    Raises:
        UserError: the file is missing or no YAML, or everything that is wrong in it and in the overrides, each with
            file and line or override, value and nearest key.
    """
    _refuse_other(overrides)
    file = recipe_file(str(Path(path).expanduser()))
    recipe = read_recipe(file, overrides)
    for module in imports_of(recipe):  # which the caller may have imported: later changes of its files are refused
        note_imported(top_level(module))
    if recipe.tune is None:
        return recipe
    # the recipe itself does not know where its file is
    return recipe.model_copy(update={"tune": str(space_file(str(recipe.tune), file.parent).absolute())})


def _refuse_other(overrides: Iterable[object]) -> None:
    for override in overrides:
        if not isinstance(override, str):
            fix = 'give text, one after another: "training.epochs=3", "optimizer.lr=1e-4"'
            raise UserError(f"is a {type(override).__name__}", where="overrides", fix=fix)
