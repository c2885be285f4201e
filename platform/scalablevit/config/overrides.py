"""Dotted overrides: to which stages of a recipe each applies, and how its value is set there."""

import difflib
import json
import shlex
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from scalablevit.config import strict_yaml
from scalablevit.config.checking import (
    OVERRIDE,
    SECTIONS,
    Locations,
    did_you_mean,
    short_repr,
    stage_override_hint,
)
from scalablevit.config.commands import command_name
from scalablevit.config.errors import UserError, mask_credentials, raise_all
from scalablevit.config.hints import stage_with_hint
from scalablevit.config.recipe import Recipe, Stage
from scalablevit.config.space import Space
from scalablevit.config.stage_keys import has_key, is_read_in, keys_in, value_at
from scalablevit.config.strict_yaml import KeyPath, YamlDict, YamlMapping
from scalablevit.config.task_info import TASKS

TOP_KEYS = ("name", "tune")
"""Keys of the recipe itself that an override may set."""
SAME_IN_ALL = (["tracking"], ["tracking", "uri"], ["tracking", "experiment"])
"""Keys whose value a recipe's stages must share: an override of them goes to all stages."""
KINDS = (["data", "source"], ["task", "kind"])
"""Paths of the keys that decide which other keys their section has."""


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
    """Called with a line for each override that does not apply to all stages of the recipe, that leaves values of the
    file without effect, or that changes how stages belong together (`chain_notes`)."""

    def runs(self, name: str, stage: YamlMapping) -> bool:
        """Return whether the script runs a stage, given as plain values."""
        return (not self.names or name in self.names) and self.kind in (None, value_at(stage, "task", "kind"))


ALL_STAGES = Scope()
"""The scope of a script that runs all stages."""


def scope_notes(overrides: Sequence["Override"], stages: Sequence[str], locations: Locations) -> Iterator[str]:
    """Yield a line for each override that names no stage and does not apply to all stages of the recipe.

    Args:
        overrides: those of stages.
        stages: names of all stages of the recipe.
        locations: where the values were set, with all overrides applied.
    """
    for override in overrides:
        names = [name for name in stages if locations.get(("stages", name, *override.path)) == override.where]
        if override.stage is None and names != list(stages):
            targets = ", ".join(names) or "no stage (other overrides replace it)"
            yield f"{mask_credentials(override.text.strip())} applies to: {targets}"


def chain_notes(
    overrides: Sequence["Override"], inits: YamlMapping, recipe: Recipe, locations: Locations
) -> Iterator[str]:
    """Yield a line for each override that names no stage and changes how stages belong together.

    That is: stages no longer start from an earlier one, or several stages register versions of one model.

    Args:
        overrides: those of stages.
        inits: `model.init` of every stage without the overrides.
        recipe: the recipe with the overrides.
        locations: where the values were set, with all overrides applied.
    """
    for override in overrides:
        names = [
            name
            for name in recipe.stages
            if override.stage is None and locations.get(("stages", name, *override.path)) == override.where
        ]
        text = mask_credentials(override.text.strip())
        if override.path in (["model"], ["model", "init"]):
            for parent in recipe.stages:
                left = [name for name in names if inits[name] == f"stage:{parent}" != recipe.stages[name].model.init]
                if left:
                    yield f"{text}: {', '.join(left)} no longer start{'s' * (len(left) == 1)} from {parent}"
        registered = {recipe.stages[name].tracking.register_as for name in names}
        if override.path in (["tracking"], ["tracking", "register_as"]) and len(names) > 1 and registered != {None}:
            yield f"{text}: {', '.join(names)} register versions of one model"


class Override(NamedTuple):
    """An override of a value within a stage."""

    text: str
    """As typed."""
    stage: str | None
    """The stage that it names; None: it names none."""
    path: list[str]
    """Key path within the stage."""
    value: Any
    where: str
    """How errors name it."""


def parse_all(
    overrides: Sequence[str], merged: YamlDict, locations: Locations, errors: list[UserError], scope: Scope
) -> list[Override]:
    """Return the overrides of stages, those that name a stage last, since they replace the others.

    Args:
        overrides: as typed.
        merged: plain values of the recipe; overrides of the recipe itself (`TOP_KEYS`) are applied to it.
        locations: where the values were written; those of the applied overrides are added.
        errors: mistakes are added.
        scope: the stages that the script runs.
    """
    parsed = []
    for override in overrides:
        try:
            path, value, where = parse_override(override)
            if len(path) == 1 and path[0] in TOP_KEYS:
                merged[path[0]] = value
                locations[tuple(path)] = where
            else:
                parsed.append(_for_stages(override, path, value, where, merged["stages"], scope))
        except UserError as error:
            errors.append(error)
    return sorted(parsed, key=lambda override: override.stage is not None)


def _for_stages(
    text: str, path: list[str], value: Any, where: str, stages: Mapping[str, YamlDict], scope: Scope
) -> Override:
    """Return an override of a value within a stage.

    Raises:
        UserError: it names a stage that the recipe does not have, a whole stage, or no section.
    """
    stage = None
    if path[0] == "stages":
        _refuse_other_stages(path, where, stages)
        stage, path = path[1], path[2:]
    if path[0] not in SECTIONS:
        given = f"{'.'.join(path)}={text.partition('=')[2].strip()}"  # without the stage that it names
        hint = _section_hint(given, path, {stage: stages[stage]} if stage else stages, scope)
        near = "" if hint else did_you_mean(path[0], SECTIONS)
        raise UserError(f"no section {path[0]!r}{near}", where=where, fix=hint or f"sections: {', '.join(SECTIONS)}")
    return Override(text, stage, path, value, where)


def _refuse_other_stages(path: Sequence[str], where: str, stages: YamlMapping) -> None:
    """Refuse `stages.<name>...` of a stage that is not in the recipe, or of a whole stage.

    Raises:
        UserError: it is one of these.
    """
    name = path[1] if len(path) > 1 and path[1] in stages else "<name>"
    fix = f"write stages.{name}.<section>.<key>=value"
    if len(path) > 1 and path[1] not in stages:
        what = f"no stage {path[1]!r}{did_you_mean(path[1], stages)}; this recipe's stages are {', '.join(stages)}"
        raise UserError(what, where=where, fix=fix)
    if len(path) < 3:
        what = f"an override sets a section or a key of a stage; this recipe's stages are {', '.join(stages)}"
        raise UserError(what, where=where, fix=fix)


def _section_hint(given: str, path: Sequence[str], stages: Mapping[str, YamlDict], scope: Scope) -> str:
    """Return what to write in place of an override that begins with no section; empty when nothing is known of it.

    Args:
        given: the override within a stage, as `key.sub=value`.
        path: its key path.
        stages: plain values of the stages that it may mean.
        scope: the stages that the script runs.
    """
    if path[0] in stages:
        return f"write stages.{given}" if len(path) > 1 else f"write stages.{path[0]}.<section>.<key>=value"
    running = {name: stage for name, stage in stages.items() if scope.runs(name, stage)}
    _, hint = stage_with_hint(path, running or stages)
    if ".".join(path) in keys_in(Space, {}) and (len(path) > 1 or not hint):
        return f"write space.{given} for {command_name('tune')}"
    return hint


def apply(override: Override, reach: "ReachedStages", stages: YamlDict, locations: Locations) -> None:
    """Set the value of one override in the stages that it applies to.

    Args:
        override: which.
        reach: the stages that overrides can apply to.
        stages: plain values of all stages; they are changed in place.
        locations: where the values were written; that of the override is added.

    Raises:
        UserError: it applies to no stage, or its path leads through a value that is no section.
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
class ReachedStages:
    """Which stages the overrides of a script can apply to."""

    scope: Scope
    stages: Mapping[str, YamlDict]
    """Plain values of all stages of the recipe with all overrides applied, valid or not: their kinds decide which keys
    they have."""
    running: list[str]
    """Names of the stages that the script runs."""
    reached: list[str]
    """Names of these and of the stages that they start from."""

    @classmethod
    def of(cls, overrides: Sequence[Override], stages: Mapping[str, YamlDict], scope: Scope) -> "ReachedStages":
        """Return which stages a script reaches; all of them where it would run none, which is refused later.

        Args:
            overrides: those of stages.
            stages: plain values of all stages, without the overrides.
            scope: the stages that the script runs.
        """
        preview = _preview(overrides, stages, [])
        running = [name for name in preview if scope.runs(name, preview[name])] or list(preview)
        preview = _preview(overrides, stages, running)
        reached = with_parents(running, {name: value_at(stage, "model", "init") for name, stage in preview.items()})
        return cls(scope, _preview(overrides, stages, reached), running, reached)

    def targets(self, override: Override) -> list[str]:
        """Return the names of the stages that an override applies to.

        A key that no stage has goes to the stage with the most similar key, so that the check names that key.

        Raises:
            UserError: only stages that are not reached have the key, or read it.
        """
        if override.path in SAME_IN_ALL and override.stage is None:
            return list(self.stages)
        if override.stage is not None:
            having = [override.stage]
        else:
            having = [name for name, stage in self.stages.items() if has_key(stage, override.path)]
            key = ".".join(override.path)
            # a stage that has the key but never reads it would get another hash, and train again, for nothing
            having = [name for name in having if is_read_in(self.stages[name], key)] or having
        if not having:
            return self._closest(override.path)
        targets = [name for name in having if name in self.reached]
        if not targets:
            raise self._without_effect(override, having)
        return targets

    def _closest(self, path: Sequence[str]) -> list[str]:
        """Return the stage whose check says best what to write in place of a key that no stage has.

        That is one that the script runs where a hint is known, which depends on the stage; else the one with the most
        similar key, reached ones first. It is empty for a recipe without stages.
        """
        hinted, _ = stage_with_hint(path, {name: self.stages[name] for name in self.running})
        if hinted:
            return [hinted]
        others = [name for name in self.stages if name not in self.reached]
        ranked = sorted([*self.reached, *others], key=lambda name: -_closeness(self.stages[name], path))
        return ranked[:1]

    def _without_effect(self, override: Override, having: Sequence[str]) -> UserError:
        parents = [name for name in self.reached if name not in self.running]
        what = f"has no effect here: {self.scope.script} {', '.join(self.running)}"
        if parents:
            what += f" (starting from {', '.join(parents)})"
        if override.stage is None:
            unread = any(has_key(self.stages[name], override.path) for name in self.reached)
            what += f"; {'.'.join(override.path)} is {'read by' if unread else 'a key of'} {', '.join(having)}"
        return UserError(what, where=override.where, fix=f"leave it out; {command_name('full')} runs all stages")

    def refuse_misfits(self, override: Override, names: Sequence[str]) -> None:
        """Refuse a source that the task of one of several stages cannot take: each of its keys would be an error, too.

        Args:
            override: of one of `KINDS`.
            names: the stages that it applies to.

        Raises:
            UserError: one stage does not fit.
            UserErrors: several stages do not fit.
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
    """Return why a task cannot learn from its source of data; None: it can, or task or source are unknown."""
    kind, source = value_at(stage, "task", "kind"), value_at(stage, "data", "source")
    fitting = next((info.sources for info in TASKS.values() if info.kind == kind), ())
    if not fitting or source in fitting or not any(source in info.sources for info in TASKS.values()):
        return None
    return f"task {kind} needs data.source {' or '.join(fitting)}, not {source}"


def _preview(
    overrides: Sequence[Override], stages: Mapping[str, YamlDict], names: Sequence[str]
) -> dict[str, YamlDict]:
    """Return the stages with the overrides applied as far as possible; those without a stage apply to `names`."""
    preview = {name: dict(stage) for name, stage in stages.items()}
    for override in overrides:
        for name in names if override.stage is None else [override.stage]:
            with suppress(UserError):  # reported when it is applied
                set_value(preview[name], override.path, override.value, override.where)
    return preview


def with_parents(wanted: Iterable[str], inits: YamlMapping) -> list[str]:
    """Return the names of stages and of all stages that they start from, in the recipe's order.

    Args:
        wanted: names of stages.
        inits: `model.init` of every stage of the recipe, in its order.
    """
    needed, pending = set[str](), list(wanted)
    while pending:
        name = pending.pop()
        if name in inits and name not in needed:
            needed.add(name)
            init = inits[name]
            pending += [init.removeprefix("stage:")] if isinstance(init, str) and init.startswith("stage:") else []
    return [name for name in inits if name in needed]


def _closeness(stage: YamlMapping, path: Sequence[str]) -> float:
    """Return the similarity of a path to the most similar key of a stage's schema, from 0 to 1."""
    dotted = difflib.SequenceMatcher(b=".".join(path))
    ratios = []
    for key in keys_in(Stage, stage):
        dotted.set_seq1(key)
        ratios.append(dotted.ratio())
    return max(ratios)


def parse_override(override: str) -> tuple[list[str], Any, str]:
    """Return key path and value of `key.sub=value`, and how errors name the override.

    Raises:
        UserError: it has no `=`, an empty key, or a value that is no YAML or holds a YAML comment.
    """
    where = f"{OVERRIDE}{override!r}"
    key, equals, text = override.partition("=")
    path = key.strip().split(".")
    if not equals or not all(path):
        recipe = not equals and Path(override).suffix in (".yaml", ".yml")
        fix = f"--recipe {shlex.quote(override)}" if recipe else "as in training.epochs=10"
        raise UserError("an override is written key.sub=value", where=where, fix=fix)
    return path, _load_value(key.strip(), text, where), where


def _load_value(key: str, text: str, where: str) -> Any:
    """Return the value of an override.

    Raises:
        UserError: it is no YAML, or a part of it is a YAML comment, which would be lost.
    """
    try:
        value, _, node = strict_yaml.load_with_nodes(text, where)
    except UserError as error:
        # an override has no lines
        raise UserError(error.what, where=where, fix=error.fix) from None
    rest = text[node.end_mark.index :] if node else text
    if rest.lstrip().startswith("#"):
        fix = f"quote the value, as in {key}={json.dumps(text.strip(), ensure_ascii=False)!r}, or leave the comment out"
        raise UserError(f"{rest.strip()!r} is a comment in YAML: the value would be {short_repr(value)}", where=where,
                        fix=fix)  # fmt: skip
    return value


def path_in_stage(override: str) -> list[str]:
    """Return the key path of an override within a stage, whether it names a stage or not.

    Raises:
        UserError: as `parse_override`.
    """
    path, _, _ = parse_override(override)
    return path[2:] if path[0] == "stages" else path


def overridden_tracking_uri(overrides: Iterable[str]) -> str | None:
    """Return `tracking.uri` as the last of some overrides sets it; None: none does, or to null.

    Args:
        overrides: as typed, of one stage or of a recipe of one stage.

    Raises:
        UserError: as `parse_override`, or the value is no text.
    """
    uri = None
    for override in overrides:
        _, value, where = parse_override(override)
        path = path_in_stage(override)
        if path == ["tracking"] and isinstance(value, dict) and "uri" in value:
            uri = value["uri"]
        elif path == ["tracking", "uri"]:
            uri = value
        if not isinstance(uri, str | None):
            raise UserError(f"tracking.uri is no address, got {short_repr(uri)}", where=where,
                            fix="write tracking.uri=http://<server>")  # fmt: skip
    return uri


def record_override(locations: Locations, key_path: KeyPath, where: str, above: int = 0) -> None:
    """Record that an override set a key, and the sections around it that did not exist.

    Args:
        locations: changed in place; locations below the key are dropped.
        key_path: path of the key.
        where: how errors name the override.
        above: how many leading parts of the path existed before, such as 2 for `stages`, `<name>`.
    """
    for known in [path for path in locations if path[: len(key_path)] == key_path]:
        del locations[known]
    locations[key_path] = where
    for length in range(above + 1, len(key_path)):
        locations.setdefault(key_path[:length], where)


def set_value(node: YamlDict, path: Sequence[str], value: Any, where: str) -> None:
    """Set a value in a mapping, and copy the inner mappings on the way: stages may share them.

    Args:
        node: plain values; changed in place.
        path: key path of the value.
        value: the new value.
        where: how errors name the override.

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
