"""From a recipe file and dotted overrides to a checked recipe, with every mistake named at once."""

import difflib
import hashlib
import json
import re
import typing
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from scalablevit.config import strict_yaml
from scalablevit.config.errors import UserError, UserErrors, masked
from scalablevit.config.recipe import SOURCES, Recipe, Stage
from scalablevit.config.strict_yaml import KeyPath

SECTIONS = tuple(Stage.model_fields)
TOP_KEYS = ("name", "tune")
"""Keys of the recipe itself that an override may set."""
STAGE_NAMES = {"classification": "pretrain", "segmentation": "segment", "detection": "detect"}
"""Stage of a file without `stages`, and script that runs such stages, by kind of task."""
SAME_IN_ALL = (["tracking"], ["tracking", "uri"], ["tracking", "experiment"])
"""Keys whose value a recipe's stages must share: an override of them goes to all stages."""
OVERRIDE = "override "
"""Begins the place of what an override set."""
ANY_KEY = "*"
"""Stands for the keys of a section that has no fixed ones."""
KINDS = (["data", "source"], ["task", "kind"])
"""Keys that decide which others their section has."""

Places = dict[KeyPath, str]
"""Where each value came from: `file:line` or the override as written."""

Schema = TypeVar("Schema", bound=BaseModel)


@dataclass(frozen=True)
class Scope:
    """Which stages of a recipe a script runs. Its overrides go to those and to the stages that they start from."""

    script: str = "this script runs"
    """What errors say before the names of the stages."""
    kind: str | None = None
    """Run only the stages of this kind of task; None: of any."""
    names: tuple[str, ...] = ()
    """Run only these stages; empty: all."""
    note: Callable[[str], None] | None = None
    """Called with a line for each override that does not apply to all stages of the recipe."""

    def runs(self, name: str, stage: Mapping[str, Any]) -> bool:
        """Whether the script runs a stage, given as plain values."""
        return (not self.names or name in self.names) and self.kind in (None, _at(stage, "task", "kind"))


WHOLE = Scope()
"""Of a script that runs all stages."""


def load_recipe(path: Path, overrides: Sequence[str] = (), scope: Scope = WHOLE) -> Recipe:
    """Read, merge and check a recipe.

    A file holds `name` and the sections of one stage, or `stages`, whose entries are merged over the file's own
    sections. An override `a.b=value` beats the file; it applies to the stages that have the key, of those that the
    script runs and those that they start from. `stages.<name>.a.b=value` applies to that stage and beats both.

    Args:
        path: the recipe's file.
        overrides: as written.
        scope: the stages that the script runs.

    Raises:
        UserError: a lone mistake, or a file that is missing or no YAML.
        UserErrors: all wrong overrides and everything that breaks the schema, each with file and line or override,
            value and nearest key.
    """
    raw, places = read_mapping(path, "recipe")
    return override_recipe(_merge_stages(raw, str(path), places), overrides, places, str(path), scope)


def override_stage(name: str, stage: Mapping[str, Any], overrides: Sequence[str], origin: str) -> Recipe:
    """A recipe of one stage from plain values, such as those kept with a registered model, with overrides on top.

    Raises:
        UserError: as `load_recipe`.
    """
    return override_recipe({"name": "evaluate", "stages": {name: dict(stage)}}, overrides, {}, origin)


def override_recipe(
    merged: dict[str, Any], overrides: Sequence[str], places: Places, origin: str, scope: Scope = WHOLE
) -> Recipe:
    """A recipe from plain values, whose `stages` are changed in place, with overrides on top.

    Args:
        merged: `name`, `stages` and whatever else stands at the top of the recipe.
        overrides: as written.
        places: where the values stand; the overrides are added.
        origin: what stands in errors for values without a place.
        scope: the stages that the script runs.

    Raises:
        UserError: as `load_recipe`.
    """
    errors: list[UserError] = []
    parsed = _parse_all(overrides, merged, places, errors)
    reach = Reach.of(parsed, merged["stages"], scope)
    for each in parsed:
        try:
            _apply(each, reach, merged["stages"], places)
        except UserError as error:
            errors += error.errors if isinstance(error, UserErrors) else [error]
    try:
        recipe = check(Recipe, merged, places, origin)
    except UserError as error:
        errors += error.errors if isinstance(error, UserErrors) else [error]
    if errors:
        raise UserErrors(errors) if len(errors) > 1 else errors[0]
    if scope.note is not None:
        for line in _summary(parsed, list(recipe.stages), places):
            scope.note(line)
    return recipe


def _summary(overrides: Sequence["Override"], stages: Sequence[str], places: Places) -> Iterator[str]:
    """A line for each override that names no stage and does not apply to all of the recipe's."""
    for each in overrides:
        names = [name for name in stages if places.get(("stages", name, *each.path)) == each.where]
        if each.stage is None and names != list(stages):
            where = ", ".join(names) or "no stage (other overrides replace it)"
            yield f"{masked(each.text.strip())} applies to: {where}"


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
    try:
        # JSON mode: strict, but a list may stand for a tuple, as it does in YAML
        return schema.model_validate_json(json.dumps(merged))
    except ValidationError as error:
        found: dict[KeyPath, list[ErrorDetails]] = {}
        for detail in error.errors():
            if detail["type"] == "default_factory_not_called":
                continue  # it follows from another mistake
            # a union gives an error for each of its types at the same path
            found.setdefault(_key_path(detail, merged), []).append(detail)
        explained = {key_path: _explain(schema, key_path, details, places, name) for key_path, details in found.items()}
        errors = [_with_stage(key_path, explained, places) for key_path in explained]
        # one mistake in a shared section shows up in every stage
        distinct = list({str(each): each for each in errors}.values())
        raise UserErrors(distinct) if len(distinct) > 1 else distinct[0] from None


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


class Override(NamedTuple):
    """An override of a value within a stage."""

    text: str
    """As written."""
    stage: str | None
    """The stage that it names; None: it names none."""
    path: list[str]
    """Within the stage."""
    value: Any
    where: str
    """How errors name it."""


def _parse_all(
    overrides: Sequence[str], merged: dict[str, Any], places: Places, errors: list[UserError]
) -> list[Override]:
    """Overrides of stages, those that name one last, since they beat the others; those of the recipe are applied."""
    parsed = []
    for override in overrides:
        try:
            path, value, where = parse_override(override)
            if len(path) == 1 and path[0] in TOP_KEYS:
                merged[path[0]] = value
                places[tuple(path)] = where
            else:
                parsed.append(_for_stages(override, path, value, where, merged["stages"]))
        except UserError as error:
            errors.append(error)
    return sorted(parsed, key=lambda each: each.stage is not None)


def _for_stages(text: str, path: list[str], value: Any, where: str, stages: Mapping[str, Any]) -> Override:
    stage = None
    if path[0] == "stages":
        if len(path) < 3 or path[1] not in stages:
            raise UserError(
                f"this recipe's stages are {', '.join(stages)}",
                where=where,
                fix="write stages.<name>.<section>.<key>=value",
            )
        stage, path = path[1], path[2:]
    if path[0] not in SECTIONS:
        raise UserError(
            f"no section {path[0]!r}{nearest(path[0], SECTIONS)}", where=where, fix=f"sections: {', '.join(SECTIONS)}"
        )
    return Override(text, stage, path, value, where)


def _apply(override: Override, reach: "Reach", stages: dict[str, Any], places: Places) -> None:
    """Put one override into the stages that it applies to.

    Raises:
        UserError: it applies to none, or something on the way is no section.
        UserErrors: it gives several stages a kind that some of them cannot have.
    """
    names = reach.targets(override)
    if override.path in KINDS and len(names) > 1:
        reach.refuse_misfits(override, names)
    for name in names:
        put(stages[name], override.path, override.value, override.where)
        claim(places, ("stages", name, *override.path), override.where, above=2)
    if override.stage is None and not set(names).isdisjoint(reach.reached):
        places[tuple(override.path)] = override.where


@dataclass(frozen=True)
class Reach:
    """Which stages the overrides of a script can apply to."""

    scope: Scope
    stages: Mapping[str, dict[str, Any]]
    """All of the recipe, with all overrides on top whether they fit or not: their kinds decide which keys they have."""
    running: list[str]
    """Those that the script runs."""
    reached: list[str]
    """Those, and the ones that they start from."""

    @classmethod
    def of(cls, overrides: Sequence[Override], stages: Mapping[str, dict[str, Any]], scope: Scope) -> "Reach":
        """Work out what a script runs; all stages where it would run none, which the script refuses later."""
        seen = _preview(overrides, stages, [])
        running = [name for name in seen if scope.runs(name, seen[name])] or list(seen)
        seen = _preview(overrides, stages, running)
        reached = with_parents(running, {name: _at(stage, "model", "init") for name, stage in seen.items()})
        return cls(scope, _preview(overrides, stages, reached), running, reached)

    def targets(self, override: Override) -> list[str]:
        """The stages that an override applies to. A key that none has goes where the check finds the nearest key.

        Raises:
            UserError: only stages that are not reached have the key.
        """
        if override.path in SAME_IN_ALL and override.stage is None:
            return list(self.stages)
        if override.stage is not None:
            having = [override.stage]
        else:
            having = [name for name, stage in self.stages.items() if _has_key(stage, override.path)]
        if not having:
            return self._closest(override.path)
        targets = [name for name in having if name in self.reached]
        if not targets:
            raise self._without_effect(override, having)
        return targets

    def _closest(self, path: Sequence[str]) -> list[str]:
        """The stage with the nearest key, first of those that are reached; none in a recipe without stages."""
        others = [name for name in self.stages if name not in self.reached]
        ranked = sorted([*self.reached, *others], key=lambda name: -_closeness(self.stages[name], path))
        return ranked[:1]

    def _without_effect(self, override: Override, having: Sequence[str]) -> UserError:
        parents = [name for name in self.reached if name not in self.running]
        what = f"has no effect here: {self.scope.script} {', '.join(self.running)}"
        if parents:
            what += f" (starting from {', '.join(parents)})"
        if override.stage is None:
            what += f"; {'.'.join(override.path)} is a key of {', '.join(having)}"
        return UserError(what, where=override.where, fix="leave it out; pipelines/full.py runs all stages")

    def refuse_misfits(self, override: Override, names: Sequence[str]) -> None:
        """Refuse a source that the task of one of several stages cannot take: each of its keys would be wrong.

        Raises:
            UserErrors: all stages that it does not fit (one: UserError).
        """
        misfits = {name: what for name in names if (what := _misfit(self.stages[name])) is not None}
        fitting = [name for name in names if name not in misfits]
        key = ".".join(override.path)
        errors = [
            UserError(
                what, where=f"{override.where}: stages.{name}.{key}", fix=_advice(override.path, fitting or [name])
            )
            for name, what in misfits.items()
        ]
        if errors:
            raise UserErrors(errors) if len(errors) > 1 else errors[0]


def _misfit(stage: Mapping[str, Any]) -> str | None:
    """Why a task cannot learn from its source of data; None: it can, or one of the two is unknown."""
    kind, source = _at(stage, "task", "kind"), _at(stage, "data", "source")
    fitting = next((sources for known, sources in SOURCES.items() if known == kind), ())
    if not fitting or source in fitting or not any(source in sources for sources in SOURCES.values()):
        return None
    return f"task {kind} needs data.source {' or '.join(fitting)}, not {source}"


def _preview(
    overrides: Sequence[Override], stages: Mapping[str, dict[str, Any]], names: Sequence[str]
) -> dict[str, dict[str, Any]]:
    """The stages with the overrides on top as far as they can be put there; those that name none go to `names`."""
    preview = {name: dict(stage) for name, stage in stages.items()}
    for each in overrides:
        for name in names if each.stage is None else [each.stage]:
            with suppress(UserError):  # reported when it is applied
                put(preview[name], each.path, each.value, each.where)
    return preview


def with_parents(wanted: Iterable[str], inits: Mapping[str, Any]) -> list[str]:
    """The wanted stages and all that they start from, in the recipe's order.

    Args:
        wanted: names of stages.
        inits: `model.init` of every stage of the recipe, in its order.
    """
    needed, left = set[str](), list(wanted)
    while left:
        name = left.pop()
        if name in inits and name not in needed:
            needed.add(name)
            init = inits[name]
            left += [init.removeprefix("stage:")] if isinstance(init, str) and init.startswith("stage:") else []
    return [name for name in inits if name in needed]


def _at(node: Any, *path: str) -> Any:
    """The value at a path of plain values; None where there is none."""
    for part in path:
        node = node.get(part) if isinstance(node, dict) else None
    return node


def _has_key(stage: Mapping[str, Any], path: Sequence[str]) -> bool:
    """Whether the schema of a stage, whose kinds decide it, has a key; free-form sections have every key."""
    keys = set(_keys(Stage, stage))
    return ".".join(path) in keys or ".".join([*path[:-1], ANY_KEY]) in keys


def _closeness(stage: Mapping[str, Any], path: Sequence[str]) -> float:
    """Likeness of a path to the nearest key of a stage's schema, from 0 to 1."""
    dotted = difflib.SequenceMatcher(b=".".join(path))
    ratios = []
    for key in _keys(Stage, stage):
        dotted.set_seq1(key)
        ratios.append(dotted.ratio())
    return max(ratios)


def _keys(annotation: Any, values: Any) -> Iterator[str]:
    """Dotted keys of all sections that may stand in a type, also those left out; `ANY_KEY`: every key is allowed."""
    if typing.get_origin(annotation) is dict:
        yield ANY_KEY
    for model in _models_of_kind(annotation, values):
        for name, field in model.model_fields.items():
            yield name
            yield from (f"{name}.{key}" for key in _keys(field.annotation, _at(values, name)))


def _models_of_kind(annotation: Any, values: Any) -> list[type[BaseModel]]:
    """The section in a type; of a union the one that the values' kind picks, or all while there is no such kind."""
    models = _models_in(annotation)
    if len(models) < 2:
        return models
    kinds = (_at(values, "source"), _at(values, "kind"))
    return [model for model in models if _kind(model) in kinds] or models


def _advice(path: Sequence[int | str], names: Sequence[str]) -> str:
    """How to write an override for some stages only."""
    key = ".".join(map(str, path))
    return "write " + " ".join(f"stages.{name}.{key}=..." for name in names)


def parse_override(override: str) -> tuple[list[str], Any, str]:
    """Key path and value of `key.sub=value`, and how errors name the override.

    Raises:
        UserError: it is written otherwise.
    """
    where = f"{OVERRIDE}{override!r}"
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
    place = next((places[key_path[:n]] for n in range(len(key_path), -1, -1) if key_path[:n] in places), name)
    dotted = ".".join(str(part) for part in _as_written(key_path, place, places))
    return ": ".join(part for part in (place, dotted) if part)


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
    return UserError(what if isinstance(value, dict | list) else f"{what}, got {short(value)}", where=where)


def _as_written(key_path: KeyPath, place: str, places: Places) -> KeyPath:
    """Without `stages.<name>` where the file has no stages, or the value stands in a section that they share."""
    if key_path[:1] != ("stages",) or len(key_path) < 3:
        return key_path
    return key_path[2:] if ("stages",) not in places or places.get(key_path[2:]) == place else key_path


def _with_stage(key_path: KeyPath, explained: Mapping[KeyPath, UserError], places: Places) -> UserError:
    """An error that names its stage, where an override gave several stages a value that not all refuse alike."""
    error = explained[key_path]
    path = _shared_override(key_path, error, places)
    if not path:
        return error
    where, names = places[path], _stages_given(path, places)
    others = [explained.get(("stages", name, *key_path[2:])) for name in names]
    if len(names) < 2 or all(other is not None and other.what == error.what for other in others):
        return error
    # where all refuse it, each for a reason of its own, each needs its own value
    accepting = [name for name, other in zip(names, others, strict=True) if other is None] or [str(key_path[1])]
    fix = "; ".join(part for part in (error.fix, _advice(path, accepting)) if part)
    return UserError(error.what, where=f"{where}: {'.'.join(map(str, key_path))}", fix=fix)


def _stages_given(path: KeyPath, places: Places) -> list[str]:
    """Names of the stages whose value at a path is from the override that holds for several."""
    return [
        str(key_path[1])
        for key_path, place in places.items()
        if place == places[path] and key_path[:1] == ("stages",) and key_path[2:] == path
    ]


def _shared_override(key_path: KeyPath, error: UserError, places: Places) -> KeyPath:
    """Path within a stage of the override for several stages that an error in a stage is about; else empty."""
    if key_path[:1] != ("stages",) or len(key_path) < 2:
        return ()
    stage, section = key_path[:2], key_path[2:]
    for length in range(len(section), 0, -1):
        if (place := places.get((*stage, *section[:length]))) is not None:
            if _is_override(place) and places.get(section[:length]) == place:
                return section[:length]
            break
    # several keys that do not fit together: an error of their section, which names them
    for path, place in places.items():
        named = ".".join(map(str, path[len(section) :]))
        if (
            path[:1] != ("stages",)
            and _is_override(place)
            and path[: len(section)] == section
            and places.get((*stage, *path)) == place
            and re.search(rf"\b{re.escape(named)}\b", error.what)
        ):
            return path
    return ()


def _is_override(place: str) -> bool:
    return place.startswith(OVERRIDE)


def _siblings(schema: type[BaseModel], loc: tuple[int | str, ...]) -> list[str]:
    """Names of the keys allowed beside the last part of a pydantic location."""
    types: list[Any] = [schema]
    for part in loc[:-1]:
        types = [inner for each in types for inner in _inside(each, part)]
    names = [name for each in types for model in _models_in(each) for name in model.model_fields]
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
    return short_digest([hashed_part(stage), data_digest, list(parents)])


def short_digest(value: Any) -> str:
    """Twelve hexadecimal digits of a plain value, whatever the order of its keys."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:12]
