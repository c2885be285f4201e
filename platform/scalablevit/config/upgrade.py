"""Convert recipes and search spaces of version 1 to version 2, which renamed some keys and values."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import yaml

from scalablevit.config import strict_yaml
from scalablevit.config.errors import UserError
from scalablevit.config.strict_yaml import YamlDict, YamlMapping

VERSION = 2
"""Version of the recipes and search spaces that this platform reads and writes."""

KEYS = {
    "data.repeats": "repeated_augmentation",
    "data.mix_probability": "mix_prob",
    "data.mix_switch_probability": "mixup_switch_prob",
    "training.global_batch": "global_batch_size",
    "training.accumulation": "accumulation_steps",
    "training.stop_after": "early_stopping",
    "training.early_stopping.evaluations_without_gain": "patience",
    "training.not_finite": "nonfinite",
    "training.on_failed_checkpoint": "on_checkpoint_failure",
    "promotion.sure": "require_significance",
    "promotion.least": "min_value",
}
"""New name of each renamed key, by its dotted path in a stage; the sections before it have their new names."""

VALUES = {
    "training.nonfinite.action": {"roll_back": "rollback"},
    "training.on_checkpoint_failure": {"go_on": "continue"},
}
"""New name of each renamed value, by the new dotted path of its key."""

KeyPath = tuple[str | int, ...]


@dataclass(frozen=True)
class Rename:
    """An old key or value in a recipe or search space."""

    path: KeyPath
    """Key path of the old key, or of the old value, as written."""
    old: str
    new: str
    is_value: bool = False
    conflict: bool = False
    """Whether the new key is there too."""


def convert(raw: Any) -> tuple[Any, list[Rename]]:
    """Convert plain values of version 1 to version 2; those of version 2 stay as they are.

    Args:
        raw: a recipe, in either form of its file; a stage; or a search space.

    Returns:
        The converted copy, in the same order, and what was renamed. If a section has both the old and the new key, the
            copy has the new one.
    """
    renames: list[Rename] = []
    if not isinstance(raw, Mapping):
        return raw, renames
    inner = {"stages": _convert_stages, "parameters": _convert_parameters}
    converted = {
        key: inner[key](value, renames)
        if key in inner and isinstance(value, Mapping)
        else _convert_section(value, (key,), key, renames)
        for key, value in raw.items()
    }
    return converted, renames


def upgrade(raw: Any, where: str = "") -> YamlDict:
    """Convert stored plain values of any version to the current one.

    Args:
        raw: a stored recipe, stage or search space; without `version` it is of version 1.
        where: the file, for errors.

    Raises:
        UserError: it is no mapping, the version is later than the current one or is no version, or a section has both
            an old key and its new name.
    """
    if not isinstance(raw, Mapping):
        raise UserError("holds no stage, recipe or search space", where=where, fix="restore the file from a copy")
    version = raw.get("version", 1)
    if problem := version_problem(version):
        raise UserError(f"was stored with {problem[0]}", where=where, fix=problem[1])
    converted, renames = convert(raw) if version == 1 else (dict(raw), [])
    for rename in renames:
        if rename.conflict:
            raise UserError(format_conflict(rename), where=where, fix="keep one of them")
    return {"version": VERSION, **{key: value for key, value in converted.items() if key != "version"}}


def version_problem(version: Any) -> tuple[str, str] | None:
    """Return why a version cannot be read, and what to do about it; None for versions that exist."""
    if type(version) is not int or version < 1:
        meant = 1 if str(version) in ("1", "1.0") else VERSION
        return f"version {version!r}; the versions are 1 and {VERSION}", f"write version: {meant}"
    if version > VERSION:
        return f"version {version}; this platform is too old for it and reads version {VERSION}", "update the platform"
    return None


def format_conflict(rename: Rename) -> str:
    """Return what is wrong where a section has both the old and the new key."""
    return f"{_dotted(rename.path)} and its new name {rename.new} are both given"


def new_path(path: Sequence[str]) -> list[str]:
    """Translate a key path in a stage to version 2."""
    new_parts: list[str] = []
    for part in path:
        new_parts.append(KEYS.get(".".join([*new_parts, part]), part))
    return new_parts


def new_key_path(path: KeyPath) -> KeyPath:
    """Translate a key path in a recipe or search space to version 2."""
    parts = tuple(map(str, path))
    if parts[:1] == ("stages",):
        return (*path[:2], *_names(path[2:]))
    if parts[:1] == ("parameters",) and len(path) > 1:
        return (path[0], ".".join(new_path(parts[1].split("."))), *path[2:])
    return _names(path)


def new_override(override: str) -> str:
    """Translate an override, `key.sub=value`, to version 2: its key, and the keys and values within its value.

    Raises:
        UserError: the value is no YAML.
    """
    key, _, text = override.partition("=")
    parts = key.strip().split(".")
    value, _ = strict_yaml.load(text, override)
    space = parts[:1] == ["space"]
    keys = parts[1:] if space else parts
    if space and keys[:1] == ["parameters"]:  # the name of a parameter is a dotted path
        keys = ["parameters", *filter(None, [".".join(keys[1:])])]
    node = value
    for part in reversed(keys):
        node = {part: node}
    new, new_keys = convert(node)[0], list[str]()
    for _ in keys:
        ((part, new),) = new.items()
        new_keys.append(part)
    return ".".join([*parts[:1], *new_keys] if space else new_keys) + "=" + (text if new == value else _flow_text(new))


def _flow_text(value: Any) -> str:
    """Return a value as YAML in one line."""
    text: str = yaml.safe_dump(value, default_flow_style=True, sort_keys=False, allow_unicode=True, width=math.inf)
    return text.removesuffix("...\n").strip()


def _names(path: KeyPath) -> KeyPath:
    """Return `new_path` of a path that may have indices of lists."""
    texts = new_path([str(part) for part in path])
    return tuple(part if isinstance(part, int) else text for part, text in zip(path, texts, strict=True))


def _convert_stages(stages: YamlMapping, renames: list[Rename]) -> YamlDict:
    return {name: _convert_section(stage, ("stages", name), "", renames) for name, stage in stages.items()}


def _convert_parameters(parameters: YamlMapping, renames: list[Rename]) -> YamlDict:
    """Convert parameters of a search space: their names are dotted paths, their choices may be old values."""
    result: YamlDict = {}
    for name, distribution in parameters.items():
        path, new = ("parameters", name), ".".join(new_path(str(name).split(".")))
        if new != str(name):
            renames.append(Rename(path, name, new, conflict=new in parameters))
            if new in parameters:
                continue
        choices = distribution.get("choice") if isinstance(distribution, Mapping) else None
        if isinstance(choices, list):
            values = [_convert_value(v, (*path, "choice", n), new, renames) for n, v in enumerate(choices)]
            distribution = {**distribution, "choice": values}  # noqa: PLW2901
        result[new] = distribution
    return result


def _convert_section(node: Any, path: KeyPath, at: str, renames: list[Rename]) -> Any:
    """Convert a section, or a value in one, whose dotted path in the stage is `at`."""
    if not isinstance(node, Mapping):
        return _convert_value(node, path, at, renames)
    result: YamlDict = {}
    for key, value in node.items():
        new = KEYS.get(f"{at}.{key}") or str(key)
        if new != str(key):
            renames.append(Rename((*path, key), key, new, conflict=new in node))
            if new in node:
                continue
        result[new] = _convert_section(value, (*path, key), f"{at}.{new}" if at else new, renames)
    return result


def _convert_value(value: Any, path: KeyPath, at: str, renames: list[Rename]) -> Any:
    if not isinstance(value, str) or value not in VALUES.get(at, {}):
        return value
    new = VALUES[at][value]
    renames.append(Rename(path, value, new, is_value=True))
    return new


def _dotted(path: KeyPath) -> str:
    return ".".join(map(str, path))
