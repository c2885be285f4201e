"""Rewrite a recipe or search space file in the current version's keys; comments, order and formatting stay."""

from dataclasses import dataclass
from typing import Any, cast

import yaml

from scalablevit.config import strict_yaml
from scalablevit.config.errors import UserError, raise_all
from scalablevit.config.overrides import set_value
from scalablevit.config.recipe import Recipe, Stage
from scalablevit.config.space import Space
from scalablevit.config.strict_yaml import KeyPath, YamlDict
from scalablevit.config.upgrade import VERSION, Rename, convert, format_conflict, version_problem

QUOTES = ("'", '"')
BLOCK_STYLES = ("|", ">")
RECIPE_KEYS = {*Recipe.model_fields, *Stage.model_fields}
"""Keys at the top of recipes, in either form of their files."""


@dataclass(frozen=True)
class Change:
    """One change of a file."""

    line: int
    """Line in the file before the change, 1-based."""
    what: str
    """Dotted key, and the old and the new word."""


@dataclass(frozen=True)
class _Edit:
    """Text that replaces the characters from `start` up to `end`."""

    start: int
    end: int
    text: str


def is_space(raw: YamlDict) -> bool:
    """Return whether more of a file's keys are a search space's than a recipe's."""
    return len({*Space.model_fields} & {*raw}) > len(RECIPE_KEYS & {*raw})


def upgrade_text(text: str, name: str) -> tuple[str, list[Change]]:
    """Rewrite the text of a recipe or search space in the current version's keys.

    A text that states no version and has no old word is of the current version, and stays as it is.

    Args:
        text: the file's content, with its own line ends.
        name: the file, for errors.

    Returns:
        The new text, and what was changed, by line; empty: the file is of the current version already.

    Raises:
        UserError: it is no YAML, no recipe and no search space, or a stage that a run stored; or of a version that this
            platform does not know; or old and new keys are in the same section; or it cannot be rewritten in place.
    """
    raw, lines, node = strict_yaml.load_with_nodes(text, name)
    if not isinstance(raw, dict) or not isinstance(node, yaml.MappingNode) or not _is_known(raw):
        raise UserError("is neither a recipe nor a search space", where=name, fix="name the file of one")
    if not is_space(raw) and "name" not in raw:
        raise UserError("has no `name`: it is no recipe, or it is the stage of a run, which is read in any version",
                        where=name, fix="add the name of a recipe; leave the files of runs as they are")  # fmt: skip
    if problem := version_problem(raw.get("version", VERSION)):
        raise UserError(problem[0], where=f"{name}:{lines[('version',)]}: version", fix=problem[1])
    converted, renames = convert(raw)
    if not renames and raw.get("version", VERSION) == VERSION:
        return text, []
    _refuse_conflicts(renames, node, name)
    # renames first: of two edits at one place the first is made first, so that it cannot replace what the other adds
    edits_and_changes = [_rename_edit(rename, node, text) for rename in renames] + _version_edits(raw, node, text)
    for path in _averaging_sections(raw):
        edits_and_changes.append(_warmup_edit(node, path, text))
        set_value(converted, [*map(str, path), "ema_warmup"], False, name)
    edits = sorted((edit for edit, _ in edits_and_changes), key=lambda edit: edit.start, reverse=True)
    changed = text
    for edit in edits:
        changed = changed[: edit.start] + edit.text + changed[edit.end :]
    if strict_yaml.load(changed, name)[0] != {**converted, "version": VERSION}:
        raise UserError("cannot be rewritten in place", where=name, fix="write the new words by hand: "
                        + "; ".join(change.what for _, change in edits_and_changes))  # fmt: skip
    return changed, sorted((change for _, change in edits_and_changes), key=lambda change: change.line)


def _is_known(raw: YamlDict) -> bool:
    """Return whether a file has a section of ours; other programs' files may have a `name` and a `version`, too."""
    return any(isinstance(raw.get(key), dict) for key in ("stages", "parameters", *Stage.model_fields))


def _refuse_conflicts(renames: list[Rename], node: yaml.Node, name: str) -> None:
    errors = [
        UserError(
            format_conflict(rename),
            where=f"{name}:{_find_nodes(node, rename.path)[0].start_mark.line + 1}",
            fix="keep one",
        )
        for rename in renames
        if rename.conflict
    ]
    raise_all(errors)


def _rename_edit(rename: Rename, node: yaml.Node, text: str) -> tuple[_Edit, Change]:
    """Return the edit for one old key or value."""
    key, value = _find_nodes(node, rename.path)
    target = value if rename.is_value else key
    dotted = ".".join(map(str, rename.path)) + (":" if rename.is_value else "")
    what = f"{dotted} {rename.old} -> {rename.new}" if rename.is_value else f"{dotted} -> {rename.new}"
    return _replace_edit(target, rename.old, rename.new, text), Change(target.start_mark.line + 1, what)


def _replace_edit(node: yaml.Node, old: str, new: str, text: str) -> _Edit:
    """Return the edit that replaces the text of a scalar; its quotes, and the comments around it, stay."""
    start, end = node.start_mark.index, node.end_mark.index
    style = cast(yaml.ScalarNode, node).style
    if style in BLOCK_STYLES:  # a comment may be in its header, and its end is after the comments that follow it
        start = text.index(old, start + len(text[start:end].splitlines()[0]))
        return _Edit(start, start + len(old), new)
    quote = style or ""
    return _Edit(start, end, quote + new + quote)


def _version_edits(raw: YamlDict, node: yaml.MappingNode, text: str) -> list[tuple[_Edit, Change]]:
    """Return the edit that states the current version; empty where the file states it."""
    if raw.get("version") == VERSION:
        return []
    if "version" in raw:
        value = _find_nodes(node, ("version",))[1]
        change = Change(value.start_mark.line + 1, f"version: {raw['version']} -> {VERSION}")
        return [(_Edit(value.start_mark.index, value.end_mark.index, str(VERSION)), change)]
    edit = _added_key(node, "version", str(VERSION), "name", text)
    return [(edit, Change(_line_of(edit, text), f"version: {VERSION} is added"))]


def _averaging_sections(raw: YamlDict) -> list[KeyPath]:
    """Return the key paths of the `training` sections of a version-1 recipe that average weights.

    Version 1 averaged without a warm-up, and did not know `ema_warmup`, which is true where it is not given.
    """
    if raw.get("version", 1) != 1:
        return []
    stages = raw["stages"] if isinstance(raw.get("stages"), dict) else {}
    parents: list[tuple[KeyPath, Any]] = [((), raw), *((("stages", name), stage) for name, stage in stages.items())]
    sections = [((*path, "training"), parent.get("training")) for path, parent in parents if isinstance(parent, dict)]
    return [
        path
        for path, section in sections
        if isinstance(section, dict) and section.get("ema_decay") is not None and "ema_warmup" not in section
    ]


def _warmup_edit(node: yaml.Node, path: KeyPath, text: str) -> tuple[_Edit, Change]:
    """Return the edit that keeps the average of a `training` section as it was in version 1."""
    edit = _added_key(cast(yaml.MappingNode, _find_nodes(node, path)[1]), "ema_warmup", "false", "ema_decay", text)
    what = f"{'.'.join(map(str, path))}.ema_warmup: false is added: version 1 averaged without a warm-up"
    return edit, Change(_line_of(edit, text), what)


def _added_key(section: yaml.MappingNode, key: str, value: str, after: str, text: str) -> _Edit:
    """Return the edit that adds a key to a section, quoted where the section's first key is.

    The key comes after `after`, or else after the first key that is on one line; between braces, before all others.
    """
    first = section.value[0][0]
    quote = first.style if first.style in QUOTES else ""
    added, start = f"{quote}{key}{quote}: {value}", first.start_mark.index
    if section.flow_style:
        return _Edit(start, start, f"{added}, ")
    line_end = "\r\n" if "\r\n" in text else "\n"
    margin = " " * section.start_mark.column
    for name, content in sorted(section.value, key=lambda pair: pair[0].value != after):
        end = text.find("\n", content.end_mark.index)
        if name.start_mark.line == content.end_mark.line and end >= 0:
            return _Edit(end + 1, end + 1, f"{margin}{added}{line_end}")
    return _Edit(section.start_mark.index, section.start_mark.index, f"{added}{line_end}{margin}")


def _line_of(edit: _Edit, text: str) -> int:
    """Return the line of an edit in the text before it, 1-based."""
    return text.count("\n", 0, edit.start) + 1


def _find_nodes(node: yaml.Node, path: KeyPath) -> tuple[yaml.Node, yaml.Node]:
    """Return the nodes of the key and the value at a key path; of an entry of a list, its own node twice."""
    key = value = node
    for part in path:
        if isinstance(value, yaml.MappingNode):
            key, value = next(pair for pair in value.value if pair[0].value == part)
        else:
            key = value = value.value[int(part)]
    return key, value
