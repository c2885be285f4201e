"""Rewrite a recipe or search space file in the current version's keys; comments, order and formatting stay."""

from dataclasses import dataclass

import yaml

from scalablevit.config import strict_yaml
from scalablevit.config.errors import UserError, raise_all
from scalablevit.config.recipe import Recipe, Stage
from scalablevit.config.strict_yaml import KeyPath, YamlDict
from scalablevit.config.upgrade import VERSION, Rename, convert, format_conflict, version_problem

QUOTES = ("'", '"')


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
    """Return whether the keys of a file are those of a search space; else they are a recipe's."""
    return "parameters" in raw or "metric" in raw


def upgrade_text(text: str, name: str) -> tuple[str, list[Change]]:
    """Rewrite the text of a recipe or search space in the current version's keys.

    Args:
        text: the file's content, with its own line ends.
        name: the file, for errors.

    Returns:
        The new text, and what was changed, by line; empty: the file is of the current version already.

    Raises:
        UserError: it is no YAML, no recipe and no search space, or of a version that this platform does not know; or
            old and new keys are in the same section; or it cannot be rewritten in place.
    """
    raw, _, node = strict_yaml.load_with_nodes(text, name)
    if not isinstance(raw, dict) or not isinstance(node, yaml.MappingNode) or not _is_known(raw):
        raise UserError("is neither a recipe nor a search space", where=name, fix="name the file of one")
    if problem := version_problem(raw.get("version", VERSION)):
        raise UserError(problem[0], where=name, fix=problem[1])
    converted, renames = convert(raw)
    _refuse_conflicts(renames, node, name)
    edits_and_changes = [_rename_edit(rename, node, text) for rename in renames] + _version_edits(raw, node, text)
    edits = sorted((edit for edit, _ in edits_and_changes), key=lambda edit: edit.start, reverse=True)
    changed = text
    for edit in edits:
        changed = changed[: edit.start] + edit.text + changed[edit.end :]
    if strict_yaml.load(changed, name)[0] != {**converted, "version": VERSION}:
        raise UserError("cannot be rewritten in place", where=name, fix="write the new words by hand: "
                        + "; ".join(change.what for _, change in edits_and_changes))  # fmt: skip
    return changed, sorted((change for _, change in edits_and_changes), key=lambda change: change.line)


def _is_known(raw: YamlDict) -> bool:
    return is_space(raw) or bool({*Stage.model_fields, *Recipe.model_fields} & {*raw})


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
    """Return the edit that replaces the text of a scalar; its quotes stay."""
    start, end = node.start_mark.index, node.end_mark.index
    written = text[start:end]
    if written.count(old) == 1:
        return _Edit(start, end, written.replace(old, new))
    quote = written[0] if written.startswith(QUOTES) else ""
    return _Edit(start, end, quote + new + quote)


def _version_edits(raw: YamlDict, node: yaml.MappingNode, text: str) -> list[tuple[_Edit, Change]]:
    """Return the edit that states the current version; empty where the file states it."""
    if raw.get("version") == VERSION:
        return []
    if "version" in raw:
        value = _find_nodes(node, ("version",))[1]
        change = Change(value.start_mark.line + 1, f"version: {raw['version']} -> {VERSION}")
        return [(_Edit(value.start_mark.index, value.end_mark.index, str(VERSION)), change)]
    edit = _new_line(node, text)
    return [(edit, Change(text.count("\n", 0, edit.start) + 1, f"version: {VERSION} is added"))]


def _new_line(node: yaml.MappingNode, text: str) -> _Edit:
    """Return the edit that adds the version after the name; without a name, after the first key."""
    first = node.start_mark.index
    if node.flow_style:
        return _Edit(first + 1, first + 1, f"version: {VERSION}, ")
    line_end = "\r\n" if "\r\n" in text else "\n"
    key, value = next((pair for pair in node.value if pair[0].value == "name"), node.value[0])
    margin = " " * node.start_mark.column
    end = text.find("\n", value.end_mark.index)
    one_line = isinstance(value, yaml.ScalarNode) and key.start_mark.line == value.end_mark.line
    if not one_line or end < 0:
        return _Edit(first, first, f"version: {VERSION}{line_end}{margin}")
    return _Edit(end + 1, end + 1, f"{margin}version: {VERSION}{line_end}")


def _find_nodes(node: yaml.Node, path: KeyPath) -> tuple[yaml.Node, yaml.Node]:
    """Return the nodes of the key and the value at a key path; of an entry of a list, its own node twice."""
    key = value = node
    for part in path:
        if isinstance(value, yaml.MappingNode):
            key, value = next(pair for pair in value.value if pair[0].value == part)
        else:
            key = value = value.value[int(part)]
    return key, value
