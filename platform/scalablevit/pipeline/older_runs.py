"""Find runs and searches of recipe version 1 that the same command does not continue."""

import glob
import re
from collections.abc import Iterator
from pathlib import Path

from scalablevit.config.checking import check
from scalablevit.config.errors import UserError
from scalablevit.config.run_hash import hashed_part
from scalablevit.config.section import PlainValues
from scalablevit.config.space import Search, Space
from scalablevit.config.stored import parse_stored, stored_recipe, stored_stage
from scalablevit.config.strict_yaml import YamlMapping
from scalablevit.config.upgrade import upgrade
from scalablevit.pipeline.resolve import ResolvedStage
from scalablevit.run_files import BASE_RECIPE, RECIPE, RUNS, SPACE, TRIAL_TABLE
from scalablevit.runs.result import load_result
from scalablevit.runs.status import store_of

BEGUN = "{} was begun with recipe version 1 and is not continued: this is a new {}"
FINISHED = "{} was finished with recipe version 1 and is not taken over: this is a new {}"


def older_runs(recipe: str, resolved: ResolvedStage, root: Path) -> list[str]:
    """Return a line for each run of the same stage that version 1 left; nothing once the new run has a folder.

    Args:
        recipe: name of the recipe.
        resolved: what is to be trained; runs with other values are not named.
        root: the platform's root.
    """
    if (root / RUNS / resolved.run_name).exists():
        return []
    wanted = hashed_part(resolved.stage)
    return [
        (FINISHED if _is_finished(folder) else BEGUN).format(folder, "run")
        for folder, raw in _version_1(root, f"{recipe}-{resolved.name}-", RECIPE)
        if _hashed_part(raw) == wanted
    ]


def older_searches(search: Search, name: str, root: Path) -> list[str]:
    """Return a line for each search with the same space and recipe that version 1 left.

    Args:
        search: what is to be searched.
        name: of its run; if that has a folder, nothing is returned.
        root: the platform's root.
    """
    if (root / RUNS / name).exists():
        return []
    return [
        (FINISHED if (folder / TRIAL_TABLE).is_file() else BEGUN).format(folder, "search")
        for folder, raw in _version_1(root, f"{search.recipe.name}-{search.stage}-search-", SPACE)
        if _is_same_search(search, folder, raw)
    ]


def _version_1(root: Path, prefix: str, file: str) -> Iterator[tuple[Path, YamlMapping]]:
    """Yield the folders of runs that are named after a hash, and what version 1 stored in a file of each."""
    for path in sorted((root / RUNS).glob(f"{glob.escape(prefix)}*/{file}")):
        if re.fullmatch("[0-9a-f]{12}", path.parent.name.removeprefix(prefix)):
            raw = _read(path)
            if raw and "version" not in raw:
                yield path.parent, raw


def _read(path: Path) -> YamlMapping:
    """Return a stored YAML mapping; empty when it cannot be read."""
    try:
        raw = parse_stored(path.read_bytes(), str(path))
    except (OSError, UserError):
        return {}
    return raw if isinstance(raw, dict) else {}


def _hashed_part(raw: YamlMapping) -> PlainValues | None:
    """Return the values of a stored stage that are part of its run's identity; None: they are refused today."""
    try:
        return hashed_part(stored_stage(raw))
    except UserError:
        return None


def _is_same_search(search: Search, folder: Path, raw: YamlMapping) -> bool:
    try:
        space = check(Space, upgrade(raw), {}, "")
        base = stored_recipe(_read(folder / BASE_RECIPE))
    except UserError:
        return False
    same = ("parameters", "metric", "mode", "searcher", "seed", "scheduler")
    return (
        all(getattr(space, key) == getattr(search.space, key) for key in same)
        and search.stage in base.stages
        and hashed_part(base.stages[search.stage]) == hashed_part(search.recipe.stages[search.stage])
    )


def _is_finished(folder: Path) -> bool:
    try:
        return load_result(store_of(folder)) is not None
    except UserError:
        return False
