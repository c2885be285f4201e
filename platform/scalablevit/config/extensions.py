"""Kinds of task and source that users' own code adds to the recipe's schema."""

import re
import types
import typing
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar

from scalablevit.config.data import DataSection
from scalablevit.config.errors import UserError
from scalablevit.config.packages import refuse_unimportable, top_level
from scalablevit.config.promotion import Promotion
from scalablevit.config.recipe import Recipe, Stage
from scalablevit.config.section import Section, kind_of
from scalablevit.config.task import TaskSection
from scalablevit.config.task_info import TASKS, MetricInfo, TaskInfo, task_info

S = TypeVar("S", bound=Section)


def register_task(info: TaskInfo, section: type[TaskSection]) -> None:
    """Add a kind of task, which recipes then may name as `task.kind`.

    Call it when your package is imported, and name the package under `imports` in the recipe. Registering the same
    class again is harmless.

    Args:
        info: what is known of the task; the module that it names must define `KIND`, a `tasks.registry.TaskKind`.
        section: the recipe's `task` section, with `kind: Literal["<info.kind>"]`.

    Raises:
        UserError: the two do not fit together, or the name is taken.
    """
    where = f"register_task {info.kind!r}"
    _check_section(section, "kind", TaskSection, where)
    if kind_of(section) != info.kind:
        raise UserError(f"its section has the kind {kind_of(section)!r}", where=where, fix="write one name in both")
    if not info.metrics:
        raise UserError("it reports no metric", where=where, fix="name at least the one that decides, first")
    if info.metrics[0].better != "max":
        raise UserError(
            f"its first metric {info.metrics[0].name} decides which checkpoint is best, and less of it is better",
            where=where,
            fix="name one first of which more is better",
        )
    taken = {other.stage_name: other.kind for other in TASKS.values() if other.kind != info.kind}
    if info.stage_name in taken or info.stage_name == "full":
        owner = taken.get(info.stage_name, "all stages")
        raise UserError(f"the stage name {info.stage_name!r} means {owner}", where=where, fix="choose another one")
    _add("task", section, where)
    _allow_promotion([metric.name for metric in info.metrics if metric.promotable])
    metrics = (*info.metrics, *(registered.info for (kind, _), registered in METRICS.items() if kind == info.kind))
    TASKS[info.kind] = replace(info, sources=_merge(info.sources, _sources_of.get(info.kind, ())), metrics=metrics)


@dataclass(frozen=True)
class RegisteredMetric:
    """A metric that users' code adds to a task."""

    info: MetricInfo
    build: Callable[[tuple[str, ...]], Any]
    """Makes a fresh `tasks.task.Metric` for the names of the classes."""


METRICS: dict[tuple[str, str], RegisteredMetric] = {}
"""Metrics of users' code, by kind of task and name."""


def register_metric(kind: str, info: MetricInfo, build: Callable[[tuple[str, ...]], Any]) -> None:
    """Add a metric to those that evaluations of a task report, in stages that import your package.

    It gets the same batches and predictions as the task's own metric, is reported as `val/<name>`, and a search may
    compare trials by it. Registering the same function or class again is harmless.

    Args:
        kind: of the task, one of ours or a registered one.
        info: its name, and whether larger or smaller values are better.
        build: a function or class that makes a fresh `tasks.task.Metric` for the names of the classes, in the order of
            the network's outputs; its `compute` gives `val/<name>` alone.

    Raises:
        UserError: there is no such task; the name is not valid, or taken; other processes cannot import `build`; or
            `info` says that promotion compares models by the metric, for which the task itself has to give statistics
            of single samples.
    """
    where, task = f"register_metric {info.name!r}", task_info(kind)
    refuse_unimportable(build, where)
    if not re.fullmatch(r"[a-z][a-z0-9_]*", info.name):
        raise UserError("is not a valid name", where=where, fix="write lowercase letters, digits and _")
    if info.promotable or info.heads:
        raise UserError("promotable and heads are for a task's own metrics", where=where, fix="leave them out")
    other = METRICS.get((kind, info.name))
    if other is None and info.name in [metric.name for metric in task.metrics]:
        raise UserError(f"task {kind} reports {info.name} itself", where=where, fix="choose another name")
    if other and (other.build.__module__, other.build.__qualname__) != (build.__module__, build.__qualname__):
        raise UserError(f"is taken by {other.info.package}", where=where, fix="choose another name")
    METRICS[kind, info.name] = RegisteredMetric(replace(info, package=top_level(build.__module__)), build)
    kept = tuple(metric for metric in task.metrics if metric.name != info.name)
    TASKS[kind] = replace(task, metrics=(*kept, METRICS[kind, info.name].info))


def registered_metrics(stage: Stage) -> list[RegisteredMetric]:
    """Return the metrics that the packages which a stage imports add to its task."""
    packages = set(map(top_level, stage.imports))
    return [
        registered
        for (kind, _), registered in METRICS.items()
        if kind == stage.task.kind and registered.info.package in packages
    ]


_sources_of: dict[str, tuple[str, ...]] = {}
"""Sources that were registered for a kind of task, which may itself be registered later."""


def add_source_section(section: type[DataSection], tasks: Sequence[str]) -> None:
    """Add a data section, which recipes then may choose by `data.source`; see `data.sources.opening.register_source`.

    Args:
        section: with `source: Literal["<name>"]`.
        tasks: kinds of task that learn from it.

    Raises:
        UserError: it is no such section, or its name is taken.
    """
    where = f"register_source {getattr(section, '__name__', section)}"
    _check_section(section, "source", DataSection, where)
    name = str(kind_of(section))
    _add("data", section, where)
    for kind in tasks:
        _sources_of[kind] = _merge(_sources_of.get(kind, ()), [name])
        if kind in TASKS:
            TASKS[kind] = replace(TASKS[kind], sources=_merge(TASKS[kind].sources, [name]))


def _merge(first: Iterable[str], more: Iterable[str]) -> tuple[str, ...]:
    return tuple(dict.fromkeys([*first, *more]))


def _check_section(section: Any, key: str, base: Any, where: str) -> None:
    """Refuse what cannot be a section of its kind.

    Raises:
        UserError: it is no subclass of the base, does not say its name, or other processes cannot import it.
    """
    bases = typing.get_args(base) or (base,)
    if not isinstance(section, type) or not issubclass(section, bases):
        names = " or ".join(allowed.__name__ for allowed in bases)
        raise UserError(f"{section!r} is no subclass of {names}", where=where, fix="derive the section's class from it")
    field = getattr(section, "model_fields", {}).get(key)
    choices = typing.get_args(field.annotation) if field else ()
    if len(choices) != 1 or not isinstance(choices[0], str) or not choices[0].isidentifier():
        raise UserError(
            f"{section.__name__} does not say which {key} it is", where=where, fix=f'write {key}: Literal["<name>"]'
        )
    _check_fields(section, key, [allowed for allowed in bases if issubclass(section, allowed)], where)
    refuse_unimportable(section, where)


def _check_fields(section: type[Section], key: str, bases: Sequence[type[Section]], where: str) -> None:
    """Refuse a section that declares a key of its base class again with another type, which workers would meet first.

    Raises:
        UserError: it does, or it has a key that only other base classes apply.
    """
    fix = f"give your key another name, or only another default, in {section.__name__}"
    for base in bases:
        if "transforms" in section.model_fields and "transforms" not in base.model_fields and base is not TaskSection:
            what = f"{section.__name__} redeclares transforms, which {base.__name__} does not apply"
            raise UserError(what, where=where, fix=fix)
        for name, ours in base.model_fields.items():
            given = section.model_fields[name].annotation
            if name != key and not _narrows(given, ours.annotation):
                what = f"{section.__name__} redeclares {name} ({given} in place of {ours.annotation})"
                raise UserError(what.replace("<class '", "").replace("'>", ""), where=where, fix=fix)


def _narrows(given: Any, ours: Any) -> bool:
    """Return whether all values of a type can stand for those of another: parts of a union, or subclasses."""
    if given == ours or typing.get_origin(given) is typing.Literal:
        return True
    if isinstance(given, types.UnionType):
        return all(_narrows(part, ours) for part in typing.get_args(given))
    allowed = typing.get_args(ours) if isinstance(ours, types.UnionType) else (ours,)
    return given in allowed or any(isinstance(one, type) and isinstance(given, type) and issubclass(given, one)
                                   for one in allowed)  # fmt: skip


def _add(key: str, section: type[Section], where: str) -> None:
    """Add a section to the types allowed for a key of `Stage`, in place of an earlier definition of the same class.

    Raises:
        UserError: another class has its name.
    """
    field = Stage.model_fields[key]
    name, kept = kind_of(section), []
    for other in typing.get_args(field.annotation):
        if kind_of(other) != name:
            kept.append(other)
        elif (other.__module__, other.__qualname__) != (section.__module__, section.__qualname__):
            raise UserError(
                f"{name!r} is taken by {other.__module__}.{other.__qualname__}", where=where, fix="choose another name"
            )
    field.annotation = typing.Union[*kept, section]  # type: ignore[assignment]
    rebuild_schema()


def _allow_promotion(metrics: Iterable[str]) -> None:
    """Add metrics to the values that `promotion.metric` may have."""
    field = Promotion.model_fields["metric"]
    literal, none_type = typing.get_args(field.annotation)
    names = _merge(typing.get_args(literal), metrics)
    field.annotation = typing.Literal[names] | none_type
    rebuild_schema()


def rebuild_schema() -> None:
    """Rebuild the validators of stages and recipes, after a field's type has changed."""
    Promotion.model_rebuild(force=True)
    Stage.model_rebuild(force=True)
    Recipe.model_rebuild(force=True)
