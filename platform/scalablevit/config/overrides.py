"""Dotted overrides: which stages of a recipe each applies to, and how it gets there."""

import difflib
import shlex
import typing
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import BaseModel

from scalablevit.config import strict_yaml
from scalablevit.config.checking import (
    OVERRIDE,
    SECTIONS,
    Locations,
    did_you_mean,
    kind_of,
    short_repr,
    stage_override_hint,
)
from scalablevit.config.commands import command_name
from scalablevit.config.errors import UserError, mask_credentials, raise_all
from scalablevit.config.hints import key_hint
from scalablevit.config.recipe import Stage
from scalablevit.config.section import sections_in
from scalablevit.config.strict_yaml import KeyPath, YamlDict, YamlMapping
from scalablevit.config.task_info import TASKS

TOP_KEYS = ("name", "tune")
"""Keys of the recipe itself that an override may set."""
SAME_IN_ALL = (["tracking"], ["tracking", "uri"], ["tracking", "experiment"])
"""Keys whose value a recipe's stages must share: an override of them goes to all stages."""
ANY_KEY = "*"
"""Stands for the keys of a section that has no fixed ones."""
KINDS = (["data", "source"], ["task", "kind"])
"""Keys that decide which others their section has."""


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
    """Called with a line for each override that does not apply to all stages of the recipe, or that leaves values of
    the file without effect."""

    def runs(self, name: str, stage: YamlMapping) -> bool:
        """Whether the script runs a stage, given as plain values."""
        return (not self.names or name in self.names) and self.kind in (None, _value_at(stage, "task", "kind"))


ALL_STAGES = Scope()
"""Of a script that runs all stages."""


def scope_notes(overrides: Sequence["Override"], stages: Sequence[str], locations: Locations) -> Iterator[str]:
    """A line for each override that names no stage and does not apply to all of the recipe's."""
    for override in overrides:
        names = [name for name in stages if locations.get(("stages", name, *override.path)) == override.where]
        if override.stage is None and names != list(stages):
            targets = ", ".join(names) or "no stage (other overrides replace it)"
            yield f"{mask_credentials(override.text.strip())} applies to: {targets}"


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


def parse_all(
    overrides: Sequence[str], merged: YamlDict, locations: Locations, errors: list[UserError]
) -> list[Override]:
    """Overrides of stages, those that name one last, since they beat the others; those of the recipe are applied."""
    parsed = []
    for override in overrides:
        try:
            path, value, where = parse_override(override)
            if len(path) == 1 and path[0] in TOP_KEYS:
                merged[path[0]] = value
                locations[tuple(path)] = where
            else:
                parsed.append(_for_stages(override, path, value, where, merged["stages"]))
        except UserError as error:
            errors.append(error)
    return sorted(parsed, key=lambda override: override.stage is not None)


def _for_stages(text: str, path: list[str], value: Any, where: str, stages: YamlMapping) -> Override:
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
            f"no section {path[0]!r}{did_you_mean(path[0], SECTIONS)}",
            where=where,
            fix=key_hint(path) or f"sections: {', '.join(SECTIONS)}",
        )
    return Override(text, stage, path, value, where)


def apply(override: Override, reach: "Reach", stages: YamlDict, locations: Locations) -> None:
    """Put one override into the stages that it applies to.

    Raises:
        UserError: it applies to none, or something on the way is no section.
        UserErrors: it gives several stages a kind that some of them cannot have.
    """
    names = reach.targets(override)
    if override.path in KINDS and len(names) > 1:
        reach.refuse_misfits(override, names)
    for name in names:
        set_value(stages[name], override.path, override.value, override.where)
        record_override(locations, ("stages", name, *override.path), override.where, above=2)
    if override.stage is None and not set(names).isdisjoint(reach.reached):
        locations[tuple(override.path)] = override.where


@dataclass(frozen=True)
class Reach:
    """Which stages the overrides of a script can apply to."""

    scope: Scope
    stages: Mapping[str, YamlDict]
    """All of the recipe, with all overrides on top whether they fit or not: their kinds decide which keys they have."""
    running: list[str]
    """Those that the script runs."""
    reached: list[str]
    """Those, and the ones that they start from."""

    @classmethod
    def of(cls, overrides: Sequence[Override], stages: Mapping[str, YamlDict], scope: Scope) -> "Reach":
        """Work out what a script runs; all stages where it would run none, which the script refuses later."""
        preview = _preview(overrides, stages, [])
        running = [name for name in preview if scope.runs(name, preview[name])] or list(preview)
        preview = _preview(overrides, stages, running)
        reached = with_parents(running, {name: _value_at(stage, "model", "init") for name, stage in preview.items()})
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
        return UserError(what, where=override.where, fix=f"leave it out; {command_name('full')} runs all stages")

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
                what,
                where=f"{override.where}: stages.{name}.{key}",
                fix=stage_override_hint(override.path, fitting or [name]),
            )
            for name, what in misfits.items()
        ]
        raise_all(errors)


def _misfit(stage: YamlMapping) -> str | None:
    """Why a task cannot learn from its source of data; None: it can, or one of the two is unknown."""
    kind, source = _value_at(stage, "task", "kind"), _value_at(stage, "data", "source")
    fitting = next((info.sources for info in TASKS.values() if info.kind == kind), ())
    if not fitting or source in fitting or not any(source in info.sources for info in TASKS.values()):
        return None
    return f"task {kind} needs data.source {' or '.join(fitting)}, not {source}"


def _preview(
    overrides: Sequence[Override], stages: Mapping[str, YamlDict], names: Sequence[str]
) -> dict[str, YamlDict]:
    """The stages with the overrides on top as far as they can be put there; those that name none go to `names`."""
    preview = {name: dict(stage) for name, stage in stages.items()}
    for override in overrides:
        for name in names if override.stage is None else [override.stage]:
            with suppress(UserError):  # reported when it is applied
                set_value(preview[name], override.path, override.value, override.where)
    return preview


def with_parents(wanted: Iterable[str], inits: YamlMapping) -> list[str]:
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


def _value_at(node: Any, *path: str) -> Any:
    """The value at a path of plain values; None where there is none."""
    for part in path:
        node = node.get(part) if isinstance(node, dict) else None
    return node


def _has_key(stage: YamlMapping, path: Sequence[str]) -> bool:
    """Whether the schema of a stage, whose kinds decide it, has a key; free-form sections have every key."""
    keys = set(_keys(Stage, stage))
    return ".".join(path) in keys or ".".join([*path[:-1], ANY_KEY]) in keys


def _closeness(stage: YamlMapping, path: Sequence[str]) -> float:
    """Likeness of a path to the nearest key of a stage's schema, from 0 to 1."""
    dotted = difflib.SequenceMatcher(b=".".join(path))
    ratios = []
    for key in _keys(Stage, stage):
        dotted.set_seq1(key)
        ratios.append(dotted.ratio())
    return max(ratios)


def _keys(annotation: Any, values: Any) -> Iterator[str]:
    """Yield the dotted keys of all sections of a type, also those left out; `ANY_KEY`: every key is allowed."""
    if typing.get_origin(annotation) is dict:
        yield ANY_KEY
    for model in models_of_kind(annotation, values):
        for name, field in model.model_fields.items():
            yield name
            yield from (f"{name}.{key}" for key in _keys(field.annotation, _value_at(values, name)))


def models_of_kind(annotation: Any, values: Any) -> list[type[BaseModel]]:
    """The section in a type; of a union the one that the values' kind picks, or all while there is no such kind."""
    models = sections_in(annotation)
    if len(models) < 2:
        return models
    kinds = (_value_at(values, "source"), _value_at(values, "kind"))
    return [model for model in models if kind_of(model) in kinds] or models


def parse_override(override: str) -> tuple[list[str], Any, str]:
    """Key path and value of `key.sub=value`, and how errors name the override.

    Raises:
        UserError: it is written otherwise.
    """
    where = f"{OVERRIDE}{override!r}"
    key, equals, text = override.partition("=")
    path = key.strip().split(".")
    if not equals or not all(path):
        recipe = not equals and Path(override).suffix in (".yaml", ".yml")
        fix = f"--recipe {shlex.quote(override)}" if recipe else "as in training.epochs=10"
        raise UserError("an override is written key.sub=value", where=where, fix=fix)
    value, _ = strict_yaml.load(text, where)
    return path, value, where


def path_in_stage(override: str) -> list[str]:
    """Key path of an override within a stage, whether it is written for one stage or for all."""
    path, _, _ = parse_override(override)
    return path[2:] if path[0] == "stages" else path


def record_override(locations: Locations, key_path: KeyPath, where: str, above: int = 0) -> None:
    """Record that an override set `key_path`, and made the sections on the way that were not there.

    Args:
        above: length of the part of the path that was there for sure.
    """
    for known in [path for path in locations if path[: len(key_path)] == key_path]:
        del locations[known]
    locations[key_path] = where
    for length in range(above + 1, len(key_path)):
        locations.setdefault(key_path[:length], where)


def set_value(node: YamlDict, path: Sequence[str], value: Any, where: str) -> None:
    """Set a value, copying the mappings on the way: stages may share them.

    Raises:
        UserError: something on the way is no mapping, or the path is too long.
    """
    if len(path) > strict_yaml.MAX_DEPTH:
        raise UserError(f"nested deeper than {strict_yaml.MAX_DEPTH} levels", where=where)
    for depth, part in enumerate(path[:-1]):
        child = {} if node.get(part) is None else node[part]
        if not isinstance(child, dict):
            raise UserError(f"{'.'.join(path[: depth + 1])} is no section but {short_repr(child)}", where=where)
        node[part] = dict(child)
        node = node[part]
    node[path[-1]] = value
