"""Keys without effect next to the stage's other values, and values in a wrong unit: errors where a person wrote them.

No schema refuses them, since stored stages, which hold every default, stay readable.
"""

import copy
import json
from collections.abc import Mapping, Sequence
from typing import Any

from scalablevit.config.checking import OVERRIDE, Locations, format_location, short_repr
from scalablevit.config.errors import UserError, mask_credentials
from scalablevit.config.hints import SENTENCES
from scalablevit.config.overrides import Override
from scalablevit.config.stage_keys import (
    CONDITIONS,
    NO_KEY,
    SEARCH_CONDITIONS,
    default_of,
    get_value,
    is_read_in,
    value_of,
)
from scalablevit.config.strict_yaml import YamlDict, YamlMapping

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
OF_PIXELS = ("data.mean", "data.std")
"""Keys in the unit of pixels after scaling to 0..1, which other tools have in 0..255."""


def wrong_unit(values: Any) -> tuple[str, str] | None:
    """Return why a value of `OF_PIXELS` is in another unit, and what to do about it; None: it is not."""
    numbers = values if isinstance(values, list | tuple) else ()
    if not all(isinstance(number, int | float) for number in numbers) or max(numbers, default=0) <= 1:
        return None
    fix = "give it for pixels of 0..1"
    if max(numbers) <= 255:
        fix = f"write [{', '.join(f'{number / 255:.3g}' for number in numbers)}]"
    return f"is above 1, and images are scaled to 0..1 first, got {short_repr(values)}", fix


def explain(key: str, stage: YamlMapping) -> tuple[str, str]:
    """Return what is wrong with a key of `SEARCH_CONDITIONS`, `TIMM_WORDS` or `OF_PIXELS` in a stage, and the way out.

    Args:
        key: dotted path in the stage.
        stage: plain values of the stage.
    """
    if key in TIMM_WORDS:
        return "is decided by other keys, not by options of the architecture", TIMM_WORDS[key]
    if wrong := key in OF_PIXELS and wrong_unit(value_of(stage, key)):
        return wrong
    condition = SEARCH_CONDITIONS[key]
    values = {decider: value_of(stage, decider) for decider in condition.keys}
    unfit = [f"{decider}: {_format_value(value)}" for decider, value in values.items() if not condition.fits(value)]
    return f"has no effect with {' and '.join(unfit)}", f"leave it out, or write {condition.needed}"


def find_unused(
    stages: Mapping[str, YamlMapping], overrides: Sequence[Override], locations: Locations, origin: str
) -> tuple[list[UserError], list[str]]:
    """Find values without effect or in a wrong unit that people wrote.

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
        if key in CONDITIONS and any(is_read_in(stages[name], key) for name in names):
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
        if get_value(stage, key)[0] and not _is_default(stage, key) and not is_read_in(stage, key):
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
        wrong = [key for key in OF_PIXELS if wrong_unit(value_of(stage, key))]
        for key in (*CONDITIONS, *TIMM_WORDS, *wrong):
            location = _find_location(name, key, overrides, locations)
            if location and get_value(stage, key)[0] and (key in TIMM_WORDS or default_of(stage, key) is not NO_KEY):
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


def _is_default(stage: YamlMapping, key: str) -> bool:
    default = default_of(stage, key)
    return bool(get_value(stage, key)[1] == (list(default) if isinstance(default, tuple) else default))


def _format_value(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)[:100]
