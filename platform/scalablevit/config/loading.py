"""From a recipe file and dotted overrides to a checked recipe, with every mistake named at once."""

import difflib
import hashlib
import json
import typing
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from scalablevit.config import strict_yaml
from scalablevit.config.errors import UserError, UserErrors
from scalablevit.config.recipe import Recipe, Stage
from scalablevit.config.strict_yaml import KeyPath

SECTIONS = tuple(Stage.model_fields)
STAGE_NAMES = {"classification": "pretrain", "segmentation": "segment", "detection": "detect"}

Places = dict[KeyPath, str]
"""Where each value of the merged recipe came from: `file:line` or the override as written."""


def load_recipe(path: Path, overrides: Sequence[str] = ()) -> Recipe:
    """Read, merge and check a recipe.

    A file holds `name` and the sections of one stage, or `stages`, whose entries are merged over the file's own
    sections. An override `a.b=value` applies to every stage and beats the file; `stages.<name>.a.b=value` applies to
    that stage and beats both.

    Raises:
        UserError: the file is missing or no YAML, or an override is malformed.
        UserErrors: everything that breaks the schema, each with file and line or override, value and nearest key.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"cannot read the recipe: {error}", where=str(path), fix=_available(path)) from None
    raw, lines = strict_yaml.load(text, str(path))
    if not isinstance(raw, dict):
        raise UserError("a recipe is a mapping of sections", where=str(path))
    places: Places = {}
    merged = _merge_stages(raw, lines, str(path), places)
    for override in overrides:
        _apply(override, merged, places)
    return check(merged, places, str(path))


def override_stage(name: str, stage: Mapping[str, Any], overrides: Sequence[str], origin: str) -> Recipe:
    """A recipe of one stage from plain values, such as those kept with a registered model, with overrides on top.

    Raises:
        UserError: as `load_recipe`.
    """
    merged: dict[str, Any] = {"name": "evaluate", "stages": {name: dict(stage)}}
    places: Places = {}
    for override in overrides:
        _apply(override, merged, places)
    return check(merged, places, origin)


def check(merged: Mapping[str, Any], places: Places, name: str) -> Recipe:
    """Validate a merged recipe of plain values; `places` names the origin of its values in errors."""
    try:
        # JSON mode: strict, but a list may stand for a tuple, as it does in YAML
        return Recipe.model_validate_json(json.dumps(merged))
    except ValidationError as error:
        found: dict[KeyPath, list[ErrorDetails]] = {}
        for detail in error.errors():
            # a union gives an error for each of its types at the same path
            found.setdefault(_recipe_path(detail, merged), []).append(detail)
        errors = [_explain(key_path, details, places, name) for key_path, details in found.items()]
        # one mistake in a shared section shows up in every stage
        distinct = list({str(each): each for each in errors}.values())
        raise UserErrors(distinct) if len(distinct) > 1 else distinct[0] from None


def _available(path: Path) -> str:
    folder = path.parent
    if not folder.is_dir():
        return "check the path"
    near = difflib.get_close_matches(path.name, [p.name for p in folder.glob("*.yaml")], n=3, cutoff=0.3)
    return f"in {folder}: {', '.join(near)}" if near else "check the path"


def _merge_stages(raw: dict[str, Any], lines: strict_yaml.Lines, name: str, places: Places) -> dict[str, Any]:
    """Bring both forms of file into `{name, stages: {...}}`, recording where each value stands."""
    shared = {key: value for key, value in raw.items() if key in SECTIONS}
    rest = {key: value for key, value in raw.items() if key not in SECTIONS}
    stages = rest.get("stages")
    if stages is None:
        task = shared.get("task")
        kind = task.get("kind") if isinstance(task, dict) else None
        stages = {STAGE_NAMES.get(str(kind), "stage"): {}}
    for key_path, line in lines.items():
        places[key_path] = f"{name}:{line}"
    if not isinstance(stages, dict) or not all(isinstance(stage, dict) for stage in stages.values()):
        raise UserError("`stages` is a mapping of stage names to sections", where=places.get(("stages",), name))
    for stage_name in stages:
        for key_path, line in lines.items():
            if key_path and key_path[0] in SECTIONS:
                places.setdefault(("stages", stage_name, *key_path), f"{name}:{line}")
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
    where = f"override {override!r}"
    key, equals, text = override.partition("=")
    path = key.strip().split(".")
    if not equals or not all(path):
        raise UserError("an override is written key.sub=value", where=where)
    value, _ = strict_yaml.load(text, where)
    if path == ["name"]:
        merged["name"] = value
        places[("name",)] = where
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
            f"no section {rest[0]!r}{_nearest(rest[0], SECTIONS)}", where=where, fix=f"sections: {', '.join(SECTIONS)}"
        )
    for stage in targets:
        _set(stages[stage], rest, value, where)
        full = ("stages", stage, *rest)
        for known in [p for p in places if p[: len(full)] == full]:
            del places[known]
        places[full] = where
        for length in range(3, len(full)):
            # a section that only this override made
            places.setdefault(full[:length], where)
    if path[0] != "stages":
        places[tuple(rest)] = where


def _set(node: dict[str, Any], path: Sequence[str], value: Any, where: str) -> None:
    """Set a value, copying the mappings on the way: stages may share them."""
    for depth, part in enumerate(path[:-1]):
        child = {} if node.get(part) is None else node[part]
        if not isinstance(child, dict):
            raise UserError(f"{'.'.join(path[: depth + 1])} is no section but {_short(child)}", where=where)
        node[part] = dict(child)
        node = node[part]
    node[path[-1]] = value


def _nearest(key: str, names: Sequence[str]) -> str:
    near = difflib.get_close_matches(key, names, n=1, cutoff=0.5)
    return f"; did you mean {near[0]!r}?" if near else ""


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 100 else f"{text[:97]}..."


def _recipe_path(detail: ErrorDetails, merged: Mapping[str, Any]) -> KeyPath:
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


def _explain(key_path: KeyPath, details: Sequence[ErrorDetails], places: Places, name: str) -> UserError:
    """Pydantic's errors at one path in the words of the recipe: place, key, value, what is allowed."""
    place = next((places[key_path[:n]] for n in range(len(key_path), -1, -1) if key_path[:n] in places), name)
    dotted = ".".join(str(part) for part in _as_written(key_path, place, places))
    where = f"{place}: {dotted}" if dotted else place
    first = details[0]
    match first["type"]:
        case "extra_forbidden":
            names = _siblings(first["loc"])
            near = _nearest(str(key_path[-1]), names)
            return UserError(
                f"unknown key {_short(key_path[-1])}{near}", where=where, fix=f"known here: {', '.join(names)}"
            )
        case "missing":
            return UserError("is missing", where=where, fix="add it")
        case "union_tag_not_found":
            return UserError("is missing, and decides what else stands here", where=where, fix="add it")
        case "union_tag_invalid":
            return UserError(f"must be {first['ctx']['expected_tags']}, got {_short(first['ctx']['tag'])}", where=where)
    messages = [detail["msg"].removeprefix("Value error, ") for detail in details]
    what = " or ".join(dict.fromkeys(message[:1].lower() + message[1:] for message in messages))
    value = first["input"]
    return UserError(what if isinstance(value, dict | list) else f"{what}, got {_short(value)}", where=where)


def _as_written(key_path: KeyPath, place: str, places: Places) -> KeyPath:
    """Without `stages.<name>` where the file has no stages, or the value stands in a section that they share."""
    if key_path[:1] != ("stages",) or len(key_path) < 3:
        return key_path
    return key_path[2:] if ("stages",) not in places or places.get(key_path[2:]) == place else key_path


def _siblings(loc: tuple[int | str, ...]) -> list[str]:
    """Names of the keys allowed beside the last part of a pydantic location."""
    if loc[0] != "stages":
        return [*Recipe.model_fields, *SECTIONS]
    models: list[type[BaseModel]] = [Stage]
    for part in loc[2:-1]:
        # the kind of a union is a part of the location, but no key of the recipe
        of_kind = [model for model in models if _kind(model) == part]
        models = of_kind or [
            found
            for model in models
            for field, info in model.model_fields.items()
            if field == part
            for found in _models_in(info.annotation)
        ]
    return [name for model in models for name in model.model_fields]


def _models_in(annotation: Any) -> list[type[BaseModel]]:
    """All sections named in a type."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [model for part in typing.get_args(annotation) for model in _models_in(part)]


def _kind(model: type[BaseModel]) -> str | None:
    """What a section's `source` or `kind` must be for it to be chosen."""
    for key in ("source", "kind"):
        if key in model.model_fields:
            return str(typing.get_args(model.model_fields[key].annotation)[0])
    return None


def hashed_part(stage: Stage) -> dict[str, Any]:
    """What makes a stage's run the same run: all but cluster, tracking, logging, retention and the data's place."""
    part = stage.model_dump(mode="json", exclude={"cluster", "tracking"})
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
    text = json.dumps([hashed_part(stage), data_digest, list(parents)], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:12]
