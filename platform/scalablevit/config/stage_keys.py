"""The keys that a stage has, given its kinds, and which of them it reads."""

import typing
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel

from scalablevit.config.recipe import Stage
from scalablevit.config.section import kind_of, sections_in
from scalablevit.config.strict_yaml import YamlMapping

ANY_KEY = "*"
"""In a dotted path: any key of a section that has no fixed keys."""
Values = Callable[[str], Sequence[Any]]
"""Returns the values that a key, by its dotted path in the stage, may have."""


@dataclass(frozen=True)
class Condition:
    """When a key is read."""

    needed: str
    """What to write so that the key is read, for errors."""
    keys: tuple[str, ...]
    """Dotted paths, in the stage, of the keys that decide whether it is read."""
    fits: Callable[[Any], bool]
    """Whether a value of one of `keys` lets it be read."""
    all_needed: bool = False
    """Whether all of `keys` must fit; else one is enough."""


def _other_than(*values: str) -> Callable[[Any], bool]:
    """Return a test for any other value; values that the schema refuses pass it, since they are another mistake."""
    return lambda value: value not in values


_KIND = "optimizer.schedule.kind"
_HEAD = "task.head"
_MASKS = Condition("data.source: mask_pairs", ("data.source",), _other_than("image_folder", "tar_shards", "coco"))
_ANNOTATIONS = Condition("data.source: coco", ("data.source",), _other_than("image_folder", "tar_shards", "mask_pairs"))
_ADAMW = Condition("optimizer.name: adamw", ("optimizer.name",), _other_than("sgd"))
_MASK_RCNN = Condition("task.head: mask_rcnn", (_HEAD,), _other_than("retinanet"))
_WARMUP = Condition(
    "a warm-up: optimizer.schedule.warmup_epochs or warmup_steps above 0",
    ("optimizer.schedule.warmup_epochs", "optimizer.schedule.warmup_steps"),
    bool,
)

CONDITIONS = {
    "data.train.masks": _MASKS,
    "data.val.masks": _MASKS,
    "data.train.annotations": _ANNOTATIONS,
    "data.val.annotations": _ANNOTATIONS,
    "data.mix_prob": Condition("data.mixup or data.cutmix above 0", ("data.mixup", "data.cutmix"), bool),
    "data.mixup_switch_prob": Condition(
        "both data.mixup and data.cutmix above 0", ("data.mixup", "data.cutmix"), bool, all_needed=True
    ),
    "task.auxiliary_loss_weight": Condition("task.head: upernet", (_HEAD,), _other_than("semantic_fpn")),
    "task.neck_channels": Condition("task.head: semantic_fpn", (_HEAD,), _other_than("upernet")),
    "task.head_channels": _MASK_RCNN,
    "task.proposals": _MASK_RCNN,
    "task.roi_samples": _MASK_RCNN,
    "optimizer.betas": _ADAMW,
    "optimizer.eps": _ADAMW,
    "optimizer.momentum": Condition("optimizer.name: sgd", ("optimizer.name",), _other_than("adamw")),
    "optimizer.schedule.min_lr": Condition(f"{_KIND}: cosine or polynomial", (_KIND,),
                                           _other_than("multistep", "constant")),
    "optimizer.schedule.power": Condition(f"{_KIND}: polynomial", (_KIND,),
                                          _other_than("cosine", "multistep", "constant")),
    "optimizer.schedule.gamma": Condition(f"{_KIND}: multistep", (_KIND,),
                                          _other_than("cosine", "polynomial", "constant")),
    "optimizer.schedule.warmup_lr": _WARMUP,
    "training.cpu_linear": Condition(
        "training.precision: float32 and training.compile: false", ("training.precision", "training.compile"),
        lambda value: value not in ("bfloat16", "blocks") and value is not True, all_needed=True,
    ),
    "training.nonfinite.limit": Condition(
        "training.nonfinite.action: skip or rollback", ("training.nonfinite.action",), _other_than("stop")
    ),
}  # fmt: skip
"""For keys that are not always read: when they are, by their dotted path in the stage."""
SEARCH_CONDITIONS = {
    **CONDITIONS,
    "data.color_jitter": Condition("data.rand_augment: null", ("data.rand_augment",), lambda value: value is None),
    "training.ema_warmup": Condition("training.ema_decay", ("training.ema_decay",), lambda value: value is not None),
    "optimizer.schedule.warmup_prefix": _WARMUP,
}
"""The same for parameters of a search, with keys that recipes may have without effect, as those of the papers have."""


def value_at(node: Any, *path: str) -> Any:
    """Return the value at a path of plain values; None where there is none."""
    for part in path:
        node = node.get(part) if isinstance(node, dict) else None
    return node


def has_key(stage: YamlMapping, path: Sequence[str]) -> bool:
    """Return whether a stage's schema has a key, given its kinds; sections without fixed keys have every key.

    Args:
        stage: plain values, valid or not.
        path: key path in the stage.
    """
    keys = set(keys_in(Stage, stage))
    return ".".join(path) in keys or ".".join([*path[:-1], ANY_KEY]) in keys


def keys_in(annotation: Any, values: Any) -> Iterator[str]:
    """Yield the dotted keys of all sections of a type, also of sections that the values lack; `ANY_KEY`: any key."""
    if typing.get_origin(annotation) is dict:
        yield ANY_KEY
    for model in models_of_kind(annotation, values):
        for name, field in model.model_fields.items():
            yield name
            yield from (f"{name}.{key}" for key in keys_in(field.annotation, value_at(values, name)))


def models_of_kind(annotation: Any, values: Any) -> list[type[BaseModel]]:
    """Return the section classes of a type; of a union, the one with the values' kind, or all without such a kind.

    Args:
        annotation: type of a field.
        values: plain values of the field.
    """
    models = sections_in(annotation)
    if len(models) < 2:
        return models
    kinds = (value_at(values, "source"), value_at(values, "kind"))
    return [model for model in models if kind_of(model) in kinds] or models


def is_read(key: str, values: Values, conditions: Mapping[str, Condition] = CONDITIONS) -> bool:
    """Return whether a key has an effect with at least one of the values of other keys.

    Args:
        key: dotted path in the stage.
        values: returns the values that another key may have.
        conditions: `CONDITIONS` or `SEARCH_CONDITIONS`.
    """
    condition = conditions.get(key)
    if condition is None:
        return True
    fitting = [any(map(condition.fits, values(decider))) for decider in condition.keys]
    return all(fitting) if condition.all_needed else any(fitting)


def is_read_in(stage: YamlMapping, key: str) -> bool:
    """Return whether a stage, given as plain values, reads a key; see `is_read`."""
    return is_read(key, lambda other: [value_of(stage, other)])


def value_of(stage: YamlMapping, key: str) -> Any:
    """Return the value at a dotted path of a stage's plain values, or the default; None: the stage has no such key."""
    given, value = get_value(stage, key)
    if given:
        return value
    default = default_of(stage, key)
    return None if default is NO_KEY else default


def get_value(stage: YamlMapping, key: str) -> tuple[bool, Any]:
    """Return whether plain values have a key, and its value."""
    node: Any = stage
    for part in key.split("."):
        if not isinstance(node, Mapping) or part not in node:
            return False, None
        node = node[part]
    return True, node


NO_KEY = object()
"""The default of a key that a stage does not have."""


def default_of(stage: YamlMapping, key: str) -> Any:
    """Return the schema's default at a dotted path; `NO_KEY` where the stage's kinds leave no such key."""
    annotation: Any = Stage
    default: Any = None
    node: Any = stage
    for part in key.split("."):
        fields = [model.model_fields[part] for model in models_of_kind(annotation, node) if part in model.model_fields]
        if not fields:
            return NO_KEY
        annotation, default = fields[0].annotation, fields[0].get_default()
        node = node.get(part) if isinstance(node, Mapping) else None
    return default
