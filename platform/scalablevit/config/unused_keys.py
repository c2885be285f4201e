"""Keys that have no effect next to the stage's other values; an error where a person wrote them."""

import copy
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from scalablevit.config.checking import OVERRIDE, Locations, format_location
from scalablevit.config.errors import UserError, mask_credentials
from scalablevit.config.hints import SENTENCES
from scalablevit.config.overrides import Override, models_of_kind
from scalablevit.config.recipe import Stage
from scalablevit.config.strict_yaml import YamlDict, YamlMapping

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
    "optimizer.schedule.warmup_lr": Condition(
        "a warm-up: optimizer.schedule.warmup_epochs or warmup_steps above 0",
        ("optimizer.schedule.warmup_epochs", "optimizer.schedule.warmup_steps"),
        bool,
    ),
    "training.nonfinite.limit": Condition(
        "training.nonfinite.action: skip or rollback", ("training.nonfinite.action",), _other_than("stop")
    ),
}  # fmt: skip
"""For keys that are not always read: when they are, by their dotted path in the stage."""

_NO_WEIGHTS = "write model.init: a file, timm:<tag> or models:/<name>@<alias>"
TIMM_WORDS = {
    "model.options.num_classes": SENTENCES["num_classes"],
    "model.options.in_chans": "leave it out: images are read as RGB",
    **dict.fromkeys(
        ("model.options.features_only", "model.options.out_indices"),
        "leave it out: dense tasks take the four maps that they need",
    ),
    **dict.fromkeys(
        (
            "model.options.pretrained",
            "model.options.checkpoint_path",
            "model.options.pretrained_cfg",
            "model.options.pretrained_cfg_overlay",
        ),
        _NO_WEIGHTS,
    ),
    **{
        f"model.options.{key}": f"write model.{key}"
        for key in ("name", "drop_path_rate", "grad_checkpointing", "channels_last")
    },
}
"""timm's own arguments that are no options of an architecture here, and what to write instead."""


def is_read(key: str, values: Values) -> bool:
    """Return whether a key has an effect with at least one of the values of other keys.

    Args:
        key: dotted path in the stage.
        values: returns the values that another key may have.
    """
    condition = CONDITIONS.get(key)
    if condition is None:
        return True
    fitting = [any(map(condition.fits, values(decider))) for decider in condition.keys]
    return all(fitting) if condition.all_needed else any(fitting)


def explain(key: str, stage: YamlMapping) -> tuple[str, str]:
    """Return why a key of `CONDITIONS` or `TIMM_WORDS` has no effect in a stage, and what to do about it.

    Args:
        key: dotted path in the stage.
        stage: plain values of the stage.
    """
    if key in TIMM_WORDS:
        return "is decided by other keys, not by options of the architecture", TIMM_WORDS[key]
    condition = CONDITIONS[key]
    values = {decider: value_of(stage, decider) for decider in condition.keys}
    unfit = [f"{decider}: {_format_value(value)}" for decider, value in values.items() if not condition.fits(value)]
    return f"has no effect with {' and '.join(unfit)}", f"leave it out, or write {condition.needed}"


def value_of(stage: YamlMapping, key: str) -> Any:
    """Return the value at a dotted path of a stage's plain values, or the default; None: the stage has no such key."""
    given, value = _get(stage, key)
    if given:
        return value
    default = _default(stage, key)
    return None if default is _NO_KEY else default


def find_unused(
    stages: Mapping[str, YamlMapping], overrides: Sequence[Override], locations: Locations, origin: str
) -> tuple[list[UserError], list[str]]:
    """Find values without effect that people wrote.

    A value in a section that stages share counts as read where one of them reads it. A value of the file that is the
    default is no mistake. Nor is one that only an override makes useless (by another optimizer, schedule or head): it
    is noted.

    Args:
        stages: plain values with the overrides on top, valid or not.
        overrides: those of stages.
        locations: where the values were written; values without a location are defaults.
        origin: what errors name for values without a location.

    Returns:
        The mistakes, and a line for each override that leaves values of the file without effect.
    """
    errors: list[UserError] = []
    ineffective: dict[str, dict[str, None]] = {}
    for (key, location, _), names in _group_written_values(stages, overrides, locations).items():
        stage = stages[names[0]]
        if key in CONDITIONS and any(_is_read_in(stages[name], key) for name in names):
            continue
        if key in CONDITIONS and not location.startswith(OVERRIDE):
            if _is_default(stage, key):
                continue
            deciding = [
                _find_location(name, decider, overrides, locations)
                for name in names
                for decider in CONDITIONS[key].keys
            ]
            if override := next((written for written in deciding if written and written.startswith(OVERRIDE)), None):
                ineffective.setdefault(override, {})[key] = None
                continue
        what, fix = explain(key, stage)
        path = ("stages", names[0], *key.split("."))
        errors.append(UserError(what, where=format_location(path, {**locations, path: location}, origin), fix=fix))
    return errors, [
        mask_credentials(f"{location} leaves without effect: {', '.join(keys)}")
        for location, keys in ineffective.items()
    ]


def drop_unused(stage: YamlMapping) -> YamlDict:
    """Return a stage's plain values without those that a recipe file may not have: neither read nor the default."""
    copied: YamlDict = copy.deepcopy(dict(stage))
    for key in CONDITIONS:
        if _get(stage, key)[0] and not _is_default(stage, key) and not _is_read_in(stage, key):
            *sections, last = key.split(".")
            node = copied
            for part in sections:
                node = node[part]
            del node[last]
    return copied


def _group_written_values(
    stages: Mapping[str, YamlMapping], overrides: Sequence[Override], locations: Locations
) -> dict[tuple[str, str, str], list[str]]:
    """Return names of stages by key, location and, where the value is the stage's own, stage (else empty)."""
    written: dict[tuple[str, str, str], list[str]] = {}
    for name, stage in stages.items():
        for key in (*CONDITIONS, *TIMM_WORDS):
            location = _find_location(name, key, overrides, locations)
            if location and _get(stage, key)[0] and (key in TIMM_WORDS or _default(stage, key) is not _NO_KEY):
                shared = location.startswith(OVERRIDE) or locations.get(tuple(key.split("."))) == location
                written.setdefault((key, location, "" if shared else name), []).append(name)
    return written


def _find_location(name: str, key: str, overrides: Sequence[Override], locations: Locations) -> str | None:
    """Return the location of a stage's value, a line or an override; None: nobody wrote it."""
    path = key.split(".")
    for length in range(len(path), 0, -1):
        location = locations.get(("stages", name, *path[:length]))
        # an override is also the location of sections that it created
        if location and (
            length == len(path)
            or any(override.where == location and override.path == path[:length] for override in overrides)
        ):
            return location
    return None


def _get(stage: YamlMapping, key: str) -> tuple[bool, Any]:
    """Return whether plain values have a key, and its value."""
    node: Any = stage
    for part in key.split("."):
        if not isinstance(node, Mapping) or part not in node:
            return False, None
        node = node[part]
    return True, node


_NO_KEY = object()


def _default(stage: YamlMapping, key: str) -> Any:
    """Return the schema's default at a dotted path; `_NO_KEY` where the stage's kinds leave no such key."""
    annotation: Any = Stage
    default: Any = None
    node: Any = stage
    for part in key.split("."):
        fields = [model.model_fields[part] for model in models_of_kind(annotation, node) if part in model.model_fields]
        if not fields:
            return _NO_KEY
        annotation, default = fields[0].annotation, fields[0].get_default()
        node = node.get(part) if isinstance(node, Mapping) else None
    return default


def _is_default(stage: YamlMapping, key: str) -> bool:
    default = _default(stage, key)
    return bool(_get(stage, key)[1] == (list(default) if isinstance(default, tuple) else default))


def _is_read_in(stage: YamlMapping, key: str) -> bool:
    return is_read(key, lambda other: [value_of(stage, other)])


def _format_value(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)[:100]
