"""Load a recipe file and dotted overrides as a checked recipe, with every mistake named at once."""

import difflib
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from scalablevit.config import strict_yaml, upgrade
from scalablevit.config.checking import SECTIONS, Locations, check, format_location, short_repr
from scalablevit.config.errors import UndefinedKind, UserError, UserErrors, raise_all
from scalablevit.config.overrides import ALL_STAGES, ReachedStages, Scope, apply, chain_notes, parse_all, scope_notes
from scalablevit.config.recipe import Recipe
from scalablevit.config.shipped import RECIPES, SPACES, shipped_files
from scalablevit.config.stage_keys import value_at
from scalablevit.config.strict_yaml import YamlDict, YamlMapping
from scalablevit.config.task_info import TASKS
from scalablevit.config.unused_keys import find_unused
from scalablevit.config.user_code import KEY, find_packages, import_user_code


def load_recipe(path: Path, overrides: Sequence[str] = (), scope: Scope = ALL_STAGES) -> Recipe:
    """Read, merge and check a recipe; nothing that it names under `imports` is imported.

    A file holds `name` and the sections of one stage, or `stages`, whose entries are merged over the file's own
    sections. An override `a.b=value` replaces the file's value in every stage that reads the key, of those that the
    script runs and those that they start from. `stages.<name>.a.b=value` applies to that stage alone and goes before
    both.

    Args:
        path: the recipe's file.
        overrides: as typed, such as `optimizer.lr=1e-4`.
        scope: the stages that the script runs.

    Raises:
        UserError: one mistake, or a file that is missing or not YAML.
        UserErrors: all wrong overrides, everything that breaks the schema and every value without effect, each with
            file and line or override, value and nearest key.
    """
    raw, locations = read_mapping(path, "recipe")
    return override_recipe(_merge_stages(raw, str(path), locations), overrides, locations, str(path), scope)


def load_and_import(path: Path, overrides: Sequence[str] = (), scope: Scope = ALL_STAGES) -> Recipe:
    """Read and check a recipe as `load_recipe` does, and import the users' code that it names.

    Nothing is imported while there is any other mistake. The imported code may register names, such as kinds of task,
    so the recipe is checked again afterwards.

    Args:
        path: as for `load_recipe`.
        overrides: as for `load_recipe`.
        scope: as for `load_recipe`.

    Raises:
        UserError: as `load_recipe`, and as `import_user_code`.
    """
    raw, locations = read_mapping(path, "recipe")
    merged = _merge_stages(raw, str(path), locations)
    try:
        override_recipe(merged, overrides, locations, str(path), replace(scope, note=None))
    except UserError as error:
        raise_all(drop_unknown_kinds(error))
    _import_all(merged["stages"], locations, str(path))
    return load_recipe(path, overrides, scope)


def drop_unknown_kinds(error: UserError) -> list[UserError]:
    """Return the mistakes in an error of `load_recipe`, without kinds that users' code may still register."""
    return [mistake for mistake in _errors_in(error) if not (isinstance(mistake, UndefinedKind) and mistake.unread)]


def _import_all(stages: YamlMapping, locations: Locations, origin: str) -> None:
    """Import the modules that stages name, after all of them were found.

    Raises:
        UserError: as `import_user_code`.
    """
    imports = {
        format_location(("stages", name, KEY), locations, origin): stage.get(KEY, ()) for name, stage in stages.items()
    }
    errors: list[UserError] = []
    for where, modules in imports.items():
        try:
            find_packages(modules, where)
        except UserError as error:
            errors.append(error)
    raise_all(errors)
    for where, modules in imports.items():
        import_user_code(modules, where=where)


def _with_imports(error: UserError, stages: YamlMapping) -> UserError:
    """Add to the error of an unknown kind whether a module of `imports` could register it."""
    names = [name for stage in stages.values() for name in _imports_in(stage)]
    if not isinstance(error, UndefinedKind) or not names:
        return error
    unread = tuple(name for name in dict.fromkeys(names) if name not in sys.modules)
    fix = (
        f"if {unread[0]} registers it, import that first: reading a recipe imports nothing"
        if unread
        else f"{', '.join(dict.fromkeys(names))} registered no such name (scalablevit.register_...)"
    )
    error.fix, error.unread = fix, unread
    return error


def _imports_in(stage: YamlMapping) -> list[str]:
    """Return the names under `imports` of plain values, valid or not."""
    names = stage.get(KEY)
    return [name for name in names if isinstance(name, str)] if isinstance(names, list | tuple) else []


def _errors_in(error: UserError) -> list[UserError]:
    return error.errors if isinstance(error, UserErrors) else [error]


def override_stage(name: str, stage: YamlMapping, overrides: Sequence[str], origin: str) -> Recipe:
    """Return a recipe of one stage from plain values, such as those stored with a registered model, and overrides.

    Args:
        name: name of the stage.
        stage: its plain values, which are not changed.
        overrides: as typed.
        origin: what errors name for values without a location.

    Raises:
        UserError: as `load_recipe`.
    """
    return override_recipe({"name": "evaluate", "stages": {name: dict(stage)}}, overrides, {}, origin)


def override_recipe(
    merged: YamlDict, overrides: Sequence[str], locations: Locations, origin: str, scope: Scope = ALL_STAGES
) -> Recipe:
    """Return a recipe from plain values and overrides.

    Args:
        merged: `name`, `stages` and whatever else is at the top level of the recipe; it is changed in place.
        overrides: as typed.
        locations: where the values were written; those of the overrides are added.
        origin: what errors name for values without a location.
        scope: the stages that the script runs.

    Raises:
        UserError: as `load_recipe`.
    """
    errors: list[UserError] = []
    parsed = parse_all(overrides, merged, locations, errors, scope)
    inits = {name: value_at(stage, "model", "init") for name, stage in merged["stages"].items()}
    reach = ReachedStages.of(parsed, merged["stages"], scope)
    for override in parsed:
        try:
            apply(override, reach, merged["stages"], locations)
        except UserError as error:
            errors += _errors_in(error)
    try:
        recipe = check(Recipe, merged, locations, origin)
    except UserError as error:
        errors += _errors_in(error)
    errors = [_with_imports(error, merged["stages"]) for error in errors]
    unused, left_unused = find_unused(upgrade.convert(merged)[0]["stages"], parsed, locations, origin)
    errors += unused
    raise_all(errors)
    if scope.note is not None:
        applied = scope_notes(parsed, list(recipe.stages), locations)
        for line in (*applied, *chain_notes(parsed, inits, recipe, locations), *left_unused):
            scope.note(line)
    return recipe


def read_mapping(path: Path, what: str) -> tuple[YamlDict, Locations]:
    """Return the mapping in a YAML file, and the location (`<path>:<line>`) of each value.

    Args:
        path: the file.
        what: what the file is, for errors: `recipe` or `space`.

    Raises:
        UserError: the file is missing, not YAML or not a mapping.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise UserError(f"cannot read the {what}: {error}", where=str(path), fix="save the file as UTF-8") from None
    except (OSError, ValueError) as error:  # ValueError: an impossible path
        raise UserError(f"cannot read the {what}: {error}", where=str(path), fix=_available(path, what)) from None
    raw, lines = strict_yaml.load(text, str(path))
    if not isinstance(raw, dict):
        raise UserError(f"a {what} is a mapping of keys to values", where=str(path))
    return raw, {key_path: f"{path}:{line}" for key_path, line in lines.items()}


def _available(path: Path, what: str) -> str:
    """Return a hint with the names most like a missing file's: of files in its folder, and of shipped ones."""
    folder = path.parent
    shipped = difflib.get_close_matches(path.stem, shipped_files(SPACES if what == "space" else RECIPES), n=3)
    try:
        names = [other.name for other in folder.iterdir() if other.suffix == ".yaml"]
    except (OSError, ValueError):
        names = []
    near = difflib.get_close_matches(path.name, names, n=3, cutoff=0.3)
    hints = [f"in {folder}: {', '.join(near)}"] if near else []
    if shipped and len(path.parts) == 1:
        hints.append(f"shipped: {', '.join(shipped)}")
    return "; ".join(hints) or "check the path"


def _merge_stages(raw: YamlDict, name: str, locations: Locations) -> YamlDict:
    """Convert a file of one stage or of several to `{name, stages: {...}}`, and add the location of each value.

    Raises:
        UserError: `stages` is no mapping, a stage is none, or there are too many.
        UserErrors: several stages are no mappings.
    """
    shared = {key: value for key, value in raw.items() if key in SECTIONS}
    rest = {key: value for key, value in raw.items() if key not in SECTIONS}
    stages = rest.get("stages")
    if stages is None:
        task = shared.get("task")
        kind = task.get("kind") if isinstance(task, dict) else None
        info = TASKS.get(str(kind))
        stages = {info.stage_name if info else "stage": {}}
    if not isinstance(stages, dict):
        raise UserError("`stages` is a mapping of stage names to sections", where=locations.get(("stages",), name))
    # `segment:` with nothing below it: all its sections are those at the top
    stages = {stage_name: {} if stage is None else stage for stage_name, stage in stages.items()}
    raise_all(
        [
            UserError(
                f"a stage is a mapping of sections, got {short_repr(stage)}",
                where=format_location(("stages", stage_name), locations, name),
            )
            for stage_name, stage in stages.items()
            if not isinstance(stage, dict)
        ]
    )
    if len(stages) * len(locations) > strict_yaml.MAX_VALUES:
        raise UserError(f"has {len(stages)} stages, too many for {len(locations)} keys and values", where=name)
    of_sections = {
        key_path: location for key_path, location in locations.items() if key_path and key_path[0] in SECTIONS
    }
    for stage_name in stages:
        for key_path, location in of_sections.items():
            locations.setdefault(("stages", stage_name, *key_path), location)
    rest["stages"] = {stage_name: _deep_merge(shared, stage) for stage_name, stage in stages.items()}
    return rest


def _deep_merge(base: Any, over: Any) -> Any:
    """Return `over` merged over `base`; a section of another `kind` or `source` replaces the whole section."""
    if not (isinstance(base, dict) and isinstance(over, dict)):
        return over
    for tag in ("kind", "source"):
        if tag in base and over.get(tag, base[tag]) != base[tag]:
            return over
    merged = dict(base)
    for key, value in over.items():
        merged[key] = _deep_merge(base[key], value) if key in base else value
    return merged
