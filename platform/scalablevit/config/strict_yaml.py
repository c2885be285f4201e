"""YAML as people expect it: repeated keys are refused, `1e-3` is a number, and the line of every key is known."""

import re
from collections.abc import Mapping
from typing import Any, TypeAlias

import yaml

from scalablevit.config.errors import UserError

KeyPath = tuple[str | int, ...]
Lines = dict[KeyPath, int]
YamlMapping: TypeAlias = Mapping[str, Any]
"""A mapping read from YAML or an older file, before a schema has checked it: any keys, any values. Read only."""
YamlDict: TypeAlias = dict[str, Any]
"""The same, where it may be changed."""

MAX_DEPTH = 20
"""Most levels of nesting; a recipe has six."""

MAX_VALUES = 10_000
"""Most keys and values in a file, checked before it is parsed any further; the largest recipe has some hundreds."""

_TAG = "tag:yaml.org,2002:"


def _error(problem: str, part: Any) -> yaml.MarkedYAMLError:
    """Return PyYAML's own error, at the start of an event or node."""
    return yaml.MarkedYAMLError(problem=problem, problem_mark=part.start_mark)


class _Loader(yaml.SafeLoader):
    """SafeLoader with YAML 1.2 scalars: PyYAML reads `1e-3` as text, `no` as false and a date as an object."""

    yaml_implicit_resolvers: dict[str, list[tuple[str, re.Pattern[str]]]] = {}  # noqa: RUF012 (PyYAML's own way)
    depth = 0
    values = 0

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        event: Any = self.peek_event()  # type: ignore[no-untyped-call]
        if isinstance(event, yaml.AliasEvent):
            raise _error("aliases (*name) are not used here", event)
        if event.tag is not None:
            raise _error("tags (!name) are not used here", event)
        if self.depth == MAX_DEPTH:
            raise _error(f"nested deeper than {MAX_DEPTH} levels", event)
        self.values += 1
        if self.values > MAX_VALUES:
            raise _error(f"has more than {MAX_VALUES} keys and values", event)
        self.depth += 1
        node = super().compose_node(parent, index)
        self.depth -= 1
        return node


for _name, _pattern, _first in (
    ("bool", r"(?:true|True|TRUE|false|False|FALSE)$", "tTfF"),
    ("null", r"(?:~|null|Null|NULL)$", "~nN"),
    ("null", r"$", [""]),
    ("int", r"[-+]?[0-9]+$", "-+0123456789"),
    (
        "float",
        r"[-+]?(?:\.[0-9]+|[0-9]+\.[0-9]*|[0-9]+(?=[eE]))(?:[eE][-+]?[0-9]+)?$"
        r"|[-+]?\.(?:inf|Inf|INF)$|\.(?:nan|NaN|NAN)$",
        "-+0123456789.",
    ),
):
    _Loader.add_implicit_resolver(_TAG + _name, re.compile(_pattern), list(_first))


def _int(loader: _Loader, node: yaml.ScalarNode) -> int:
    """Convert a scalar to an int, always in decimal: YAML 1.1 would read 010 as octal."""
    return int(loader.construct_scalar(node))


def _float(loader: _Loader, node: yaml.ScalarNode) -> float:
    text = str(loader.construct_scalar(node)).lower()
    return float(text.replace(".inf", "inf").replace(".nan", "nan"))


_Loader.add_constructor(_TAG + "int", _int)
_Loader.add_constructor(_TAG + "float", _float)


def _walk(node: yaml.Node, path: KeyPath, lines: Lines) -> None:
    """Record the line of every key, turn keys into text, and refuse a key that occurs twice."""
    lines.setdefault(path, node.start_mark.line + 1)
    if isinstance(node, yaml.MappingNode):
        key_lines: dict[str, int] = {}
        for key, value in node.value:
            if not isinstance(key, yaml.ScalarNode):
                raise _error("a key must be plain text", key)
            # `1` and `01`, or `true` and `True`, would become one key otherwise
            key.tag = _TAG + "str"
            _refuse_odd_characters(key)
            if key.value in key_lines:
                raise _error(
                    f"key {key.value!r} stands twice (first in line {key_lines[key.value]}); keep one of them", key
                )
            key_lines[key.value] = key.start_mark.line + 1
            lines[(*path, key.value)] = key_lines[key.value]
            _walk(value, (*path, key.value), lines)
    elif isinstance(node, yaml.SequenceNode):
        for index, value in enumerate(node.value):
            _walk(value, (*path, index), lines)
    else:
        _refuse_odd_characters(node)


def _refuse_odd_characters(node: yaml.Node) -> None:
    """Refuse a zero character, which ends a path for the system, and half of one (`"\\ud800"`), which no file has."""
    if "\0" in node.value:
        raise _error("holds a zero character", node)
    try:
        node.value.encode()
    except UnicodeEncodeError:
        raise _error("holds half a character", node) from None


def load(text: str, name: str) -> tuple[Any, Lines]:
    """Parse one YAML document safely.

    Args:
        text: the document.
        name: of the file or override, for errors.

    Returns:
        The plain value, whose mappings have text keys, and the 1-based line of each key path in it.

    Raises:
        UserError: the text is no YAML, or has a repeated key, an alias or a tag; with name and line.
    """
    value, lines, _ = load_with_nodes(text, name)
    return value, lines


def load_with_nodes(text: str, name: str) -> tuple[Any, Lines, yaml.Node | None]:
    """Parse as `load`, and also return the document's node, whose marks give positions in the text.

    Args:
        text: as for `load`.
        name: as for `load`.

    Returns:
        As `load`, and the node; None for an empty document.

    Raises:
        UserError: as `load`.
    """
    try:
        loader = _Loader(text)
        node = loader.get_single_node()
        if node is None:
            return None, {}, None
        lines: Lines = {}
        _walk(node, (), lines)
        return loader.construct_document(node), lines, node
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        where = f"{name}:{mark.line + 1}" if mark else name
        begin = text[: mark.index + 1].rpartition("\n")[2] if mark else ""
        fix = "indent with spaces, not tabs" if begin.lstrip(" ").startswith("\t") else ""
        raise UserError(f"not readable as YAML: {error.problem}", where=where, fix=fix) from None
    except (yaml.YAMLError, ValueError) as error:
        # characters that YAML does not allow, numbers of thousands of digits
        raise UserError(f"not readable as YAML: {str(error).splitlines()[0]}", where=name) from None
