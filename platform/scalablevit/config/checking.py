"""Check plain values against a schema: every mistake is named with location, value, nearest key and what to write."""

import ast
import difflib
import json
import re
import shlex
import typing
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from scalablevit.config import strict_yaml, upgrade
from scalablevit.config.commands import command_line
from scalablevit.config.errors import UndefinedKind, UserError, UserErrors
from scalablevit.config.hints import section_hint, stage_with_hint
from scalablevit.config.recipe import Recipe, Stage
from scalablevit.config.section import SectionError, kind_of, sections_in
from scalablevit.config.stage_keys import NO_KEY, default_of, value_at
from scalablevit.config.strict_yaml import KeyPath, YamlDict, YamlMapping
from scalablevit.config.transforms import UNDEFINED

SECTIONS = tuple(Stage.model_fields)
OVERRIDE = "override "
"""Prefix of the location of a value that an override set."""
MISSING = "is missing"
FORMS = {"classes": ("a file with one name a line", "a list of names")}
"""What can be written for a missing key, in words, where its name does not say it."""
MAX_EXPLAINED = 100
"""Most mistakes that are explained; the others get pydantic's message alone, since an explanation takes time."""
Locations = dict[KeyPath, str]
"""Where each value was written, by its key path: `file:line`, or `override '<as written>'`."""

Schema = TypeVar("Schema", bound=BaseModel)


def check(schema: type[Schema], merged: YamlMapping, locations: Locations, name: str) -> Schema:
    """Return a section of the schema made from plain values; keys of version 1 are mistakes, too.

    Args:
        schema: a recipe, stage, search space or section of one.
        merged: plain values, with stages and overrides merged.
        locations: where the values were written, for errors; locations of old keys are added under the new ones.
        name: what errors name for values without a location.

    Raises:
        UserError: one mistake.
        UserErrors: several mistakes.
    """
    current, errors = convert_old_words(schema, merged, locations, name)
    try:
        # JSON mode: strict, but a list is accepted for a tuple: YAML has no tuples
        valid = schema.model_validate_json(json.dumps(current))
    except ValidationError as error:
        details_by_path: dict[KeyPath, list[ErrorDetails]] = {}
        for detail in error.errors(include_url=False):
            if detail["type"] == "default_factory_not_called":
                continue  # a consequence of another mistake
            # a union gives an error for each of its types at the same path
            details_by_path.setdefault(_key_path(detail, current), []).append(detail)
        several = list(details_by_path.items())
        explained = _drop_renamed(
            {
                path: _explain(schema, path, details, current, locations, name)
                for path, details in several[:MAX_EXPLAINED]
            }
        )
        overridden = any(map(_is_override, locations.values()))
        errors += [_name_stage(path, explained, locations) if overridden else explained[path] for path in explained]
        errors += [
            UserError(details[0]["msg"], where=format_location(path, locations, name))
            for path, details in several[MAX_EXPLAINED:]
        ]
        raise combine_errors(errors) from None
    if errors:
        raise combine_errors(errors)
    return valid


def convert_old_words(
    schema: type[BaseModel], merged: YamlMapping, locations: Locations, name: str
) -> tuple[YamlDict, list[UserError]]:
    """Convert keys and values of version 1 to the current version; each of them is an error, and so is another version.

    Args:
        schema: as for `check`.
        merged: as for `check`; it is not changed.
        locations: as for `check`; locations of old keys are added under the new ones.
        name: as for `check`.

    Returns:
        The converted values, in which the schema can then find other mistakes, and the errors.
    """
    current, renames = upgrade.convert(merged)
    errors = [_old_word_error(rename, locations, name) for rename in renames]
    for key_path, location in list(locations.items()):
        locations.setdefault(upgrade.new_key_path(key_path), location)
    if "version" not in schema.model_fields:
        return current, errors
    version = current.get("version", upgrade.VERSION)
    if (type(version), version) != (int, upgrade.VERSION):
        errors.insert(0, _version_error(current.pop("version"), locations, name))
    return current, errors


def _old_word_error(rename: upgrade.Rename, locations: Locations, name: str) -> UserError:
    """Return the error for an old key or value, with the new one and how to rewrite it."""
    location = _location_of(rename.path, locations, name)
    fix = _new_override_hint(location) if _is_override(location) else _upgrade_command(location)
    old = f"{rename.old!r} " if rename.is_value else ""
    return UserError(
        f"{old}was renamed; write {rename.new} (recipe version {upgrade.VERSION})",
        where=format_location(rename.path, locations, name),
        fix=fix,
    )


def _new_override_hint(location: str) -> str:
    """Return what to write in place of an override with old words."""
    new = upgrade.new_override(ast.literal_eval(location.removeprefix(OVERRIDE)))
    key, _, value = new.partition("=")
    hint = section_hint(key.split("."))
    # `training.stop_after=5`: a value in place of a section is refused under the new name, too
    return hint if hint and not isinstance(strict_yaml.load(value, "")[0], dict) else f"write {new!r}"


def _version_error(version: Any, locations: Locations, name: str) -> UserError:
    """Return the error for another version, with the known ones and how to upgrade the file."""
    location = _location_of(("version",), locations, name)
    problem = upgrade.version_problem(version)
    what, fix = problem or (
        f"version {version}; the versions are 1 and {upgrade.VERSION}, and this platform reads {upgrade.VERSION}",
        _upgrade_command(location),
    )
    if problem and str(version) in ("1", "1.0"):
        fix = f"write version: 1, then {_upgrade_command(location)}"
    if _is_override(location):
        fix = "leave it out: a file states its version"
    return UserError(what, where=format_location(("version",), locations, name), fix=fix)


def _upgrade_command(location: str) -> str:
    file, colon, line = location.rpartition(":")
    return f"{command_line('recipe')} upgrade {shlex.quote(file if colon and line.isdecimal() else location)}"


def combine_errors(errors: Sequence[UserError]) -> UserError:
    """Return one error for all mistakes, without repeats: a mistake in a shared section occurs in every stage."""
    distinct = list({str(error): error for error in errors}.values())
    return UserErrors(distinct) if len(distinct) > 1 else distinct[0]


def stage_override_hint(path: Sequence[int | str], names: Sequence[str]) -> str:
    """Return how to write an override for some stages only: `write stages.<name>.<key>=... ...`.

    Args:
        path: key path in a stage.
        names: of the stages.
    """
    key = ".".join(map(str, path))
    return "write " + " ".join(f"stages.{name}.{key}=..." for name in names)


def did_you_mean(key: str, names: Iterable[str]) -> str:
    """Return `; did you mean '<name>'?` with the name that is most like the key; empty when none is like it.

    Args:
        key: what the user wrote.
        names: what can be written there.
    """
    near = _most_like(key, names)
    return f"; did you mean {near!r}?" if near else ""


def _most_like(key: str, names: Iterable[str], likeness: float = 0.5) -> str:
    """Return the name that is most like the key; empty when none is as like it, of 1."""
    return next(iter(difflib.get_close_matches(key, list(names), n=1, cutoff=likeness)), "")


def short_repr(value: Any) -> str:
    """Return the `repr` of a value, cut to 100 characters."""
    text = repr(value)
    return text if len(text) <= 100 else f"{text[:97]}..."


def format_location(key_path: KeyPath, locations: Locations, name: str) -> str:
    """Return location and dotted key for an error: `<file>:<line>: <key>`.

    Args:
        key_path: path of the key.
        locations: where the values were written; the innermost section with a location counts.
        name: what is returned in place of the location if there is none.
    """
    location = _location_of(key_path, locations, name)
    dotted = ".".join(str(part) for part in _written_path(key_path, location, locations))
    return ": ".join(part for part in (location, dotted) if part)


def _location_of(key_path: KeyPath, locations: Locations, name: str) -> str:
    """Return the location of a key, or of the innermost section around it that has one, else `name`."""
    return next((locations[key_path[:n]] for n in range(len(key_path), -1, -1) if key_path[:n] in locations), name)


def _key_path(detail: ErrorDetails, merged: YamlMapping) -> KeyPath:
    """Return the key path of an error as the user wrote it: pydantic's location without the names of union members."""
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


def _drop_renamed(explained: Mapping[KeyPath, UserError]) -> dict[KeyPath, UserError]:
    """Drop errors of missing keys that are given under another name, since that name has an error of its own."""
    renamed = {
        # the first word: a note may follow
        (path[:2] if path[:1] == ("stages",) else (), error.fix.removeprefix("write ").partition(" ")[0])
        for path, error in explained.items()
        if error.fix.startswith("write ")
    }

    def is_renamed(path: KeyPath) -> bool:
        stage = path[:2] if path[:1] == ("stages",) else ()
        return (stage, ".".join(map(str, path[len(stage) :]))) in renamed

    return {path: error for path, error in explained.items() if error.what != MISSING or not is_renamed(path)}


def _explain(
    schema: type[BaseModel],
    key_path: KeyPath,
    details: Sequence[ErrorDetails],
    current: YamlMapping,
    locations: Locations,
    name: str,
) -> UserError:
    """Return one error, in the words of the file, for pydantic's errors at one key path."""
    where = format_location(key_path, locations, name)
    first = details[0]
    match first["type"]:
        case "extra_forbidden":
            _, hint = stage_with_hint(key_path, _stages_at(schema, key_path, current))
            if hint:
                return UserError(f"unknown key {short_repr(key_path[-1])}", where=where, fix=hint)
            key, names = short_repr(key_path[-1]), _siblings(schema, first["loc"])
            if near := _most_like(str(key_path[-1]), names, 0.65):  # below it, another key is often meant
                section = key_path[2:-1] if key_path[:1] == ("stages",) else key_path[:-1]
                fix = f"write {'.'.join(map(str, (*section, near)))}"
                return UserError(f"unknown key {key}; did you mean {near!r}?", where=where, fix=fix)
            hint = did_you_mean(str(key_path[-1]), names)
            return UserError(f"unknown key {key}{hint}", where=where, fix=f"known here: {', '.join(names)}")
        case "missing":
            types = _types_at(schema, first["loc"])
            literals = [typing.get_args(each) for each in types if typing.get_origin(each) is typing.Literal]
            choices = literals[0] if literals else FORMS.get(str(key_path[-1]), ())
            return UserError(MISSING, where=where, fix=_add_hint(choices))
        case "union_tag_not_found":
            kinds = [kind_of(section) for each in _types_at(schema, first["loc"]) for section in sections_in(each)]
            fix = _add_hint(kinds)
            return UserError("is missing, and decides which other keys there are", where=where, fix=fix)
        case "union_tag_invalid":
            what = f"must be {first['ctx']['expected_tags']}, got {short_repr(first['ctx']['tag'])}"
            return UndefinedKind(what, where=where)
    if first["type"] == UNDEFINED:
        return UndefinedKind(first["msg"], where=where)
    if first["type"] == "literal_error" and key_path[-2:] == ("promotion", "metric"):
        return UndefinedKind(f"{_first_lower(first['msg'])}, got {short_repr(first['input'])}", where=where)
    messages = [detail["msg"].removeprefix("Value error, ") for detail in details]
    what = " or ".join(dict.fromkeys(map(_first_lower, messages)))
    value = first["input"]
    if isinstance(value, dict | list):
        return _explain_section(key_path, first, what, current, locations, name)
    fix = section_hint(key_path) if first["type"] in ("model_type", "model_attributes_type", "dict_type") else ""
    return UserError(f"{what}, got {short_repr(value)}", where=where, fix=fix)


def _explain_section(
    key_path: KeyPath, detail: ErrorDetails, what: str, current: YamlMapping, locations: Locations, name: str
) -> UserError:
    """Return the error for keys of a section that do not fit together, at an override of one of them, if any."""
    path = _named_key(key_path, what, locations)
    error = detail.get("ctx", {}).get("error")
    fix, key = (error.fix, error.key) if isinstance(error, SectionError) else ("", ())
    if path is None:
        return UserError(what, where=format_location((*key_path, *key), locations, name), fix=fix)
    if not key_path:  # the recipe's own errors name the key
        return UserError(what, where=locations[path])
    if what.startswith("give ") and (other := _other_key(path, what, current)):
        dotted = ".".join(map(str, (*_written_path(path, locations[path], locations)[:-1], other[0])))
        both = _is_override(locations.get((*path[:-1], other[0]), ""))
        fix = "leave one of the overrides out" if both else f"add {dotted}={json.dumps(other[1], default=str)}"
    return UserError(what, where=format_location(path, locations, name), fix=fix)


def _other_key(path: KeyPath, what: str, current: YamlMapping) -> tuple[str, Any] | None:
    """Return the other key of a section that an error names, and its default; None: it has no other value."""
    *section, last = map(str, path[2:] if path[:1] == ("stages",) else path)
    given = value_at(current, *map(str, path[:-1]))
    for key in given if isinstance(given, dict) else ():
        default = default_of({}, ".".join([*section, key]))
        if key != last and default not in (NO_KEY, given[key]) and _names(what, key):
            return key, default
    return None


def _named_key(key_path: KeyPath, what: str, locations: Locations) -> KeyPath | None:
    """Return the path of the last override of a key that the error of its section names; None: there is none.

    Of an error of the whole recipe, whose line says nothing, it is that of any key in a stage.
    """
    below = [
        path
        for path, location in reversed(locations.items())
        if path[: len(key_path)] == key_path and (_is_override(location) if key_path else len(path) > 2)
    ]
    for start in (len(key_path), 2):  # 2: the recipe's own errors may name a key without its stage
        for path in below:
            if len(path) > start and _names(what, ".".join(map(str, path[start:]))):
                return path
    return None


def _names(what: str, key: str) -> bool:
    """Return whether a text names a dotted key, not only a part of a longer one."""
    return re.search(rf"(?<![\w.]){re.escape(key)}(?!\.?\w)", what) is not None


def _stages_at(schema: type[BaseModel], key_path: KeyPath, current: YamlMapping) -> dict[str, YamlMapping]:
    """Return the plain values of the stages that a key is in, by name: at a recipe's top of all; empty for a space."""
    if schema is Stage:
        return {"": current}
    stages = current.get("stages") if schema is Recipe else None
    if not isinstance(stages, dict):
        return {}
    inside = key_path[:1] == ("stages",) and len(key_path) > 2
    return {name: stage for name, stage in stages.items() if not inside or name == key_path[1]}


def _add_hint(choices: Sequence[Any]) -> str:
    """Return how to add a missing key, with the values that it can have where these are a choice."""
    return f"add it: {' or '.join(map(str, choices))}" if choices else "add it"


def _first_lower(message: str) -> str:
    return message[:1].lower() + message[1:]


def _written_path(key_path: KeyPath, location: str, locations: Locations) -> KeyPath:
    """Return the path as written: without `stages.<name>` where the file has no stages, or they share the section."""
    if key_path[:1] != ("stages",) or len(key_path) < 3:
        return key_path
    return key_path[2:] if ("stages",) not in locations or locations.get(key_path[2:]) == location else key_path


def _name_stage(key_path: KeyPath, explained: Mapping[KeyPath, UserError], locations: Locations) -> UserError:
    """Return the error with its stage named, where one override set several stages and not all refuse it alike."""
    error = explained[key_path]
    path = _shared_override(key_path, error, locations)
    if not path:
        return error
    where, names = locations[path], _stages_of_override(path, locations)
    others = [explained.get(("stages", name, *key_path[2:])) for name in names]
    if len(names) < 2 or all(other is not None and other.what == error.what for other in others):
        return error
    # if all refuse it for different reasons, each needs a value of its own
    accepting = [name for name, other in zip(names, others, strict=True) if other is None] or [str(key_path[1])]
    fix = "; ".join(part for part in (error.fix, stage_override_hint(path, accepting)) if part)
    return type(error)(error.what, where=f"{where}: {'.'.join(map(str, key_path))}", fix=fix)


def _stages_of_override(path: KeyPath, locations: Locations) -> list[str]:
    """Return the names of the stages whose value at a path comes from the same override."""
    return [
        str(key_path[1])
        for key_path, location in locations.items()
        if location == locations[path] and key_path[:1] == ("stages",) and key_path[2:] == path
    ]


def _shared_override(key_path: KeyPath, error: UserError, locations: Locations) -> KeyPath:
    """Return the path of the override of several stages that an error in a stage is about; empty: there is none."""
    if key_path[:1] != ("stages",) or len(key_path) < 2:
        return ()
    stage, section = key_path[:2], key_path[2:]
    for length in range(len(section), 0, -1):
        if (location := locations.get((*stage, *section[:length]))) is not None:
            if _is_override(location) and locations.get(section[:length]) == location:
                return section[:length]
            break
    # keys that do not fit together: the error is at their section, and its text names them
    for path, location in locations.items():
        named = ".".join(map(str, path[len(section) :]))
        if (
            path[:1] != ("stages",)
            and _is_override(location)
            and path[: len(section)] == section
            and locations.get((*stage, *path)) == location
            and re.search(rf"\b{re.escape(named)}\b", error.what)
        ):
            return path
    return ()


def _is_override(location: str) -> bool:
    return location.startswith(OVERRIDE)


def _siblings(schema: type[BaseModel], loc: tuple[int | str, ...]) -> list[str]:
    """Return the names of the keys allowed next to the last part of a pydantic location."""
    types = _types_at(schema, loc[:-1])
    names = [name for annotation in types for model in sections_in(annotation) for name in model.model_fields]
    # the sections of a recipe may also be at its top level
    return [*names, *SECTIONS] if types == [Recipe] else names


def _types_at(schema: type[BaseModel], loc: tuple[int | str, ...]) -> list[Any]:
    """Return the types that may be at a pydantic location."""
    types: list[Any] = [schema]
    for part in loc:
        types = [inner for parent in types for inner in _types_under(parent, part)]
    return types


def _types_under(annotation: Any, part: int | str) -> list[Any]:
    """Return the types that may be under one part of a pydantic location."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        if part in annotation.model_fields:
            return [annotation.model_fields[str(part)].annotation]
        # pydantic's location has the kind of a union, which is no key of the file
        return [annotation] if kind_of(annotation) == part else []
    if typing.get_origin(annotation) is dict:
        return [typing.get_args(annotation)[1]]
    return [inner for member in typing.get_args(annotation) for inner in _types_under(member, part)]
