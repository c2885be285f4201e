"""Write the recipe that a run uses into a file: every key of every stage with its value."""

from collections.abc import Sequence
from pathlib import Path

import yaml

from scalablevit.config.recipe import Recipe
from scalablevit.config.unused_keys import drop_unused
from scalablevit.io import write_file
from scalablevit.pipeline.resolve import ResolvedStage
from scalablevit.runs.result import without_secrets

PLANS = Path("cache", "plans")
"""Folder, below the platform's root, for the recipe of the last dry run of each name."""


def resolved_text(recipe: Recipe, stages: Sequence[ResolvedStage]) -> str:
    """Return the recipe of these stages as YAML that can be run again, without tracking address and search.

    Args:
        recipe: the recipe that they are of.
        stages: what is to be trained.
    """
    stage_values = {stage.name: drop_unused(without_secrets(stage.stage).model_dump(mode="json")) for stage in stages}
    tree = {"name": recipe.name, "version": recipe.version, "stages": stage_values}
    note = (
        f"# The search ({recipe.tune}) is left out: these are the values as they are before it.\n"
        if recipe.tune
        else ""
    )
    return note + str(yaml.safe_dump(tree, sort_keys=False, allow_unicode=True))


def write_resolved(recipe: Recipe, stages: Sequence[ResolvedStage], file: Path) -> None:
    """Write the resolved recipe and print where it is; if the disk refuses it, print that instead.

    Args:
        recipe: the recipe that the stages are of.
        stages: what is to be trained.
        file: its folder is created.
    """
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        write_file(file, resolved_text(recipe, stages).encode(), durable=False)
    except OSError as error:
        print(f"the resolved recipe was not written to {file}: {error.strerror or error}", flush=True)
        return
    print(f"resolved recipe: {file}", flush=True)
