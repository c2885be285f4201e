"""From a recipe file and dotted overrides to a checked recipe, with every mistake named at once."""

import difflib
import hashlib
import json
import typing
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from scalablevit.config import strict_yaml, upgrade
from scalablevit.config.errors import UserError, UserErrors
from scalablevit.config.hints import key_hint, section_hint
from scalablevit.config.recipe import Recipe, Stage
from scalablevit.config.section import sections_in
from scalablevit.config.strict_yaml import KeyPath

SECTIONS = tuple(Stage.model_fields)
TOP_KEYS = ("name", "tune")
"""Keys of the recipe itself that an override may set."""
STAGE_NAMES = {"classification": "pretrain", "segmentation": "segment", "detection": "detect"}

Places = dict[KeyPath, str]
"""Where each value came from: `file:line` or the override as written."""

Schema = TypeVar("Schema", bound=BaseModel)


def load_recipe(path: Path, overrides: Sequence[str] = ()) -> Recipe:
    """Read, merge and check a recipe.

    A file holds `name` and the sections of one stage, or `stages`, whose entries are merged over the file's own
    sections. An override `a.b=value` applies to every stage and beats the file; `stages.<name>.a.b=value` applies to
    that stage and beats both.

    Raises:
        UserError: the file is missing or no YAML, or an override is malformed.
        UserErrors: everything that breaks the schema, each with file and line or override, value and nearest key.
    """
    raw, places = read_mapping(path, "recipe")
    return override_recipe(_merge_stages(raw, str(path), places), overrides, places, str(path))


def override_stage(name: str, stage: Mapping[str, Any], overrides: Sequence[str], origin: str) -> Recipe:
    """A recipe of one stage from plain values, such as those kept with a registered model, with overrides on top.

    Raises:
        UserError: as `load_recipe`.
    """
    return override_recipe({"name": "evaluate", "stages": {name: dict(stage)}}, overrides, {}, origin)


def override_recipe(merged: dict[str, Any], overrides: Sequence[str], places: Places, origin: str) -> Recipe:
    """A recipe from plain values, whose `stages` are changed in place, with overrides on top.

    Args:
        merged: `name`, `stages` and whatever else stands at the top of the recipe.
        places: where the values stand; the overrides are added.
        origin: what stands in errors for values without a place.

    Raises:
        UserError: as `load_recipe`.
    """
    for override in overrides:
        _apply(override, merged, places)
    return check(Recipe, merged, places, origin)


def read_mapping(path: Path, what: str) -> tuple[dict[str, Any], Places]:
    """A YAML file whose document is a mapping, and where each of its values stands.

    Args:
        what: what the file is, for errors: `recipe`, `space`.

    Raises:
        UserError: the file is missing, no YAML or no mapping.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, ValueError) as error:  # ValueError: no UTF-8, or no possible path
        raise UserError(f"cannot read the {what}: {error}", where=str(path), fix=_available(path)) from None
    raw, lines = strict_yaml.load(text, str(path))
    if not isinstance(raw, dict):
        raise UserError(f"a {what} is a mapping of keys to values", where=str(path))
    return raw, {key_path: f"{path}:{line}" for key_path, line in lines.items()}


def check(schema: type[Schema], merged: Mapping[str, Any], places: Places, name: str) -> Schema:
    """Validate plain values; `places` names their origin in errors, `name` that of values without a place.

    Raises:
        UserErrors: everything that breaks the schema (a lone mistake: UserError).
    """
    current, errors = without_old_words(schema, merged, places, name)
    try:
        # JSON mode: strict, but a list may stand for a tuple, as it does in YAML
        valid = schema.model_validate_json(json.dumps(current))
    except ValidationError as error:
        found: dict[KeyPath, list[ErrorDetails]] = {}
        for detail in error.errors():
            if detail["type"] == "default_factory_not_called":
                continue  # it follows from another mistake
            # a union gives an error for each of its types at the same path
            found.setdefault(_key_path(detail, current), []).append(detail)
        errors += [_explain(schema, key_path, details, places, name) for key_path, details in found.items()]
        raise _together(errors) from None
    if errors:
        raise _together(errors)
    return valid


def without_old_words(
    schema: type[BaseModel], merged: Mapping[str, Any], places: Places, name: str
) -> tuple[dict[str, Any], list[UserError]]:
    """Convert what people wrote to the current version, with an error for each old word and for another version.

    Args:
        places: the places of old keys are added under the new ones.

    Returns:
        The converted values, whose other mistakes can then be found, and the errors.
    """
    current, renames = upgrade.convert(merged)
    errors = [_old_word(each, places, name) for each in renames]
    for key_path, place in list(places.items()):
        places.setdefault(upgrade.new_key_path(key_path), place)
    if "version" not in schema.model_fields:
        return current, errors
    version = current.get("version", upgrade.VERSION)
    if (type(version), version) != (int, upgrade.VERSION):
        errors.insert(0, _other_version(current.pop("version"), places, name))
    return current, errors


def _old_word(rename: upgrade.Rename, places: Places, name: str) -> UserError:
    """Name the new word for an old one, and how it gets there."""
    place = _place(rename.path, places, name)
    if place.startswith("override "):
        fix = f"write {upgrade.new_override(place.removeprefix('override ')[1:-1])!r}"
    else:
        fix = _upgrade_command(place)
    old = f"{rename.old!r} " if rename.is_value else ""
    return UserError(
        f"{old}was renamed; write {rename.new} (recipe version {upgrade.VERSION})",
        where=located(rename.path, places, name),
        fix=fix,
    )


def _other_version(version: Any, places: Places, name: str) -> UserError:
    """Say which versions there are, and how a file gets to the current one."""
    problem = upgrade.version_problem(version)
    what, fix = problem or (
        f"version {version}; the versions are 1 and {upgrade.VERSION}, and this platform reads {upgrade.VERSION}",
        _upgrade_command(_place(("version",), places, name)),
    )
    return UserError(what, where=located(("version",), places, name), fix=fix)


def _upgrade_command(place: str) -> str:
    file, colon, line = place.rpartition(":")
    return f"python pipelines/recipe.py upgrade {file if colon and line.isdecimal() else place}"


def _together(errors: Sequence[UserError]) -> UserError:
    """One error for all mistakes; one in a shared section shows up in every stage."""
    distinct = list({str(each): each for each in errors}.values())
    return UserErrors(distinct) if len(distinct) > 1 else distinct[0]


def _available(path: Path) -> str:
    folder = path.parent
    try:
        names = [other.name for other in folder.iterdir() if other.suffix == ".yaml"]
    except (OSError, ValueError):
        return "check the path"
    near = difflib.get_close_matches(path.name, names, n=3, cutoff=0.3)
    return f"in {folder}: {', '.join(near)}" if near else "check the path"


def _merge_stages(raw: dict[str, Any], name: str, places: Places) -> dict[str, Any]:
    """Bring both forms of file into `{name, stages: {...}}`, recording where each value stands."""
    shared = {key: value for key, value in raw.items() if key in SECTIONS}
    rest = {key: value for key, value in raw.items() if key not in SECTIONS}
    stages = rest.get("stages")
    if stages is None:
        task = shared.get("task")
        kind = task.get("kind") if isinstance(task, dict) else None
        stages = {STAGE_NAMES.get(str(kind), "stage"): {}}
    if not isinstance(stages, dict) or not all(isinstance(stage, dict) for stage in stages.values()):
        raise UserError("`stages` is a mapping of stage names to sections", where=places.get(("stages",), name))
    of_sections = {key_path: place for key_path, place in places.items() if key_path and key_path[0] in SECTIONS}
    for stage_name in stages:
        for key_path, place in of_sections.items():
            places.setdefault(("stages", stage_name, *key_path), place)
    rest["stages"] = {stage_name: _deep_merge(shared, stage) for stage_name, stage in stages.items()}
    return rest


def _deep_merge(base: Any, over: Any) -> Any:
    """`over` on top of `base`; a mapping that picks another kind (`kind`, `source`) replaces the whole section."""
    if not (isinstance(base, dict) and isinstance(over, dict)):
        return over
    for tag in ("kind", "source"):
        if tag in base and over.get(tag, base[tag]) != base[tag]:
            return over
    merged = dict(base)
    for key, value in over.items():
        merged[key] = _deep_merge(base[key], value) if key in base else value
    return merged


def _apply(override: str, merged: dict[str, Any], places: Places) -> None:
    """Put one override into the merged recipe."""
    path, value, where = parse_override(override)
    if len(path) == 1 and path[0] in TOP_KEYS:
        merged[path[0]] = value
        places[tuple(path)] = where
        return
    stages: dict[str, Any] = merged["stages"]
    targets, rest = list(stages), path
    if path[0] == "stages":
        if len(path) < 3 or path[1] not in stages:
            raise UserError(
                f"this recipe's stages are {', '.join(stages)}",
                where=where,
                fix="write stages.<name>.<section>.<key>=value",
            )
        targets, rest = [path[1]], path[2:]
    if rest[0] not in SECTIONS:
        raise UserError(
            f"no section {rest[0]!r}{nearest(rest[0], SECTIONS)}",
            where=where,
            fix=key_hint(rest) or f"sections: {', '.join(SECTIONS)}",
        )
    for stage in targets:
        put(stages[stage], rest, value, where)
        claim(places, ("stages", stage, *rest), where, above=2)
    if path[0] != "stages":
        places[tuple(rest)] = where


def parse_override(override: str) -> tuple[list[str], Any, str]:
    """Key path and value of `key.sub=value`, and how errors name the override.

    Raises:
        UserError: it is written otherwise.
    """
    where = f"override {override!r}"
    key, equals, text = override.partition("=")
    path = key.strip().split(".")
    if not equals or not all(path):
        raise UserError("an override is written key.sub=value", where=where)
    value, _ = strict_yaml.load(text, where)
    return path, value, where


def path_in_stage(override: str) -> list[str]:
    """Key path of an override within a stage, whether it is written for one stage or for all."""
    path, _, _ = parse_override(override)
    return path[2:] if path[0] == "stages" else path


def claim(places: Places, key_path: KeyPath, where: str, above: int = 0) -> None:
    """Record that an override set `key_path`, and made the sections on the way that were not there.

    Args:
        above: length of the part of the path that was there for sure.
    """
    for known in [each for each in places if each[: len(key_path)] == key_path]:
        del places[known]
    places[key_path] = where
    for length in range(above + 1, len(key_path)):
        places.setdefault(key_path[:length], where)


def put(node: dict[str, Any], path: Sequence[str], value: Any, where: str) -> None:
    """Set a value, copying the mappings on the way: stages may share them.

    Raises:
        UserError: something on the way is no mapping, or the path is too long.
    """
    if len(path) > strict_yaml.MAX_DEPTH:
        raise UserError(f"nested deeper than {strict_yaml.MAX_DEPTH} levels", where=where)
    for depth, part in enumerate(path[:-1]):
        child = {} if node.get(part) is None else node[part]
        if not isinstance(child, dict):
            raise UserError(f"{'.'.join(path[: depth + 1])} is no section but {short(child)}", where=where)
        node[part] = dict(child)
        node = node[part]
    node[path[-1]] = value


def nearest(key: str, names: Iterable[str]) -> str:
    """`; did you mean ...?` when one of the names is near, else nothing."""
    near = difflib.get_close_matches(key, list(names), n=1, cutoff=0.5)
    return f"; did you mean {near[0]!r}?" if near else ""


def short(value: Any) -> str:
    """A value as errors show it."""
    text = repr(value)
    return text if len(text) <= 100 else f"{text[:97]}..."


def located(key_path: KeyPath, places: Places, name: str) -> str:
    """Place and key as errors name them; the place is that of the innermost section known, else `name`."""
    place = _place(key_path, places, name)
    dotted = ".".join(str(part) for part in _as_written(key_path, place, places))
    return ": ".join(part for part in (place, dotted) if part)


def _place(key_path: KeyPath, places: Places, name: str) -> str:
    """The place of a key, or of the innermost section on its way that has one, else `name`."""
    return next((places[key_path[:n]] for n in range(len(key_path), -1, -1) if key_path[:n] in places), name)


def _key_path(detail: ErrorDetails, merged: Mapping[str, Any]) -> KeyPath:
    """The key path of an error as the user wrote it: pydantic's location less the names of union members."""
    node: Any = merged
    path: list[str | int] = []
    for part in detail["loc"]:
        if part in (node if isinstance(node, dict) else range(len(node)) if isinstance(node, list) else ()):
            node = node[part]
        elif detail["type"] != "missing" or part != detail["loc"][-1]:
            continue
        path.append(part)
    if detail["type"] in ("union_tag_invalid", "union_tag_not_found"):
        path.append(detail["ctx"]["discriminator"].strip("'"))
    return tuple(path)


def _explain(
    schema: type[BaseModel], key_path: KeyPath, details: Sequence[ErrorDetails], places: Places, name: str
) -> UserError:
    """Pydantic's errors at one path in the words of the file: place, key, value, what is allowed."""
    where = located(key_path, places, name)
    first = details[0]
    match first["type"]:
        case "extra_forbidden":
            hint = key_hint(key_path) if schema in (Recipe, Stage) else ""
            if hint:
                return UserError(f"unknown key {short(key_path[-1])}", where=where, fix=hint)
            names = _siblings(schema, first["loc"])
            near = nearest(str(key_path[-1]), names)
            return UserError(
                f"unknown key {short(key_path[-1])}{near}", where=where, fix=f"known here: {', '.join(names)}"
            )
        case "missing":
            return UserError("is missing", where=where, fix="add it")
        case "union_tag_not_found":
            return UserError("is missing, and decides what else stands here", where=where, fix="add it")
        case "union_tag_invalid":
            return UserError(f"must be {first['ctx']['expected_tags']}, got {short(first['ctx']['tag'])}", where=where)
    messages = [detail["msg"].removeprefix("Value error, ") for detail in details]
    what = " or ".join(dict.fromkeys(message[:1].lower() + message[1:] for message in messages))
    value = first["input"]
    if isinstance(value, dict | list):
        return UserError(what, where=where)
    fix = section_hint(key_path) if first["type"] in ("model_type", "model_attributes_type", "dict_type") else ""
    return UserError(f"{what}, got {short(value)}", where=where, fix=fix)


def _as_written(key_path: KeyPath, place: str, places: Places) -> KeyPath:
    """Without `stages.<name>` where the file has no stages, or the value stands in a section that they share."""
    if key_path[:1] != ("stages",) or len(key_path) < 3:
        return key_path
    return key_path[2:] if ("stages",) not in places or places.get(key_path[2:]) == place else key_path


def _siblings(schema: type[BaseModel], loc: tuple[int | str, ...]) -> list[str]:
    """Names of the keys allowed beside the last part of a pydantic location."""
    types: list[Any] = [schema]
    for part in loc[:-1]:
        types = [inner for each in types for inner in _inside(each, part)]
    names = [name for each in types for model in sections_in(each) for name in model.model_fields]
    # the sections of a recipe may also stand at its top
    return [*names, *SECTIONS] if types == [Recipe] else names


def _inside(annotation: Any, part: int | str) -> list[Any]:
    """The types that may stand under one part of a pydantic location."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        if part in annotation.model_fields:
            return [annotation.model_fields[str(part)].annotation]
        # the kind of a union is a part of the location, but no key of the file
        return [annotation] if _kind(annotation) == part else []
    if typing.get_origin(annotation) is dict:
        return [typing.get_args(annotation)[1]]
    return [inner for each in typing.get_args(annotation) for inner in _inside(each, part)]


def _kind(model: type[BaseModel]) -> str | None:
    """What a section's `source` or `kind` must be for it to be chosen."""
    for key in ("source", "kind"):
        if key in model.model_fields:
            return str(typing.get_args(model.model_fields[key].annotation)[0])
    return None


def hashed_part(stage: Stage) -> dict[str, Any]:
    """What makes a stage's run the same run.

    All but cluster, tracking, promotion, logging, retention and the data's place.
    """
    part = stage.model_dump(mode="json", exclude={"cluster", "tracking", "promotion"})
    part["data"].pop("root")
    for name, field in type(stage.training).model_fields.items():
        if isinstance(field.json_schema_extra, dict) and field.json_schema_extra.get("hashed") is False:
            part["training"].pop(name)
    return part


def stage_hash(stage: Stage, data_digest: str, parents: Sequence[str] = ()) -> str:
    """Twelve hexadecimal digits that name a stage's run.

    Args:
        stage: the resolved stage.
        data_digest: digest of its data.
        parents: hashes of the stages that it starts from.
    """
    return short_digest([upgrade.VERSION, hashed_part(stage), data_digest, list(parents)])


def short_digest(value: Any) -> str:
    """Twelve hexadecimal digits of a plain value, whatever the order of its keys."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:12]
