"""Failing cases read from a schema, and mutations: what test_hostile_recipes.py and test_hostile_spaces.py share."""

import ast
import copy
import inspect
import random
import re
import textwrap
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import annotated_types
import yaml
from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo

Path_ = tuple[str | int, ...]


class Plain(yaml.CSafeDumper):
    """Writes what stands in two places twice: our files have no aliases."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


@dataclass(frozen=True)
class Rule:
    """A way in which the value at `path` breaks one keyword of the schema."""

    kind: str
    """Which of several right files is changed."""
    path: Path_
    keyword: str
    value: Any
    """What stands there instead; `GONE` for nothing."""
    shown: str
    """What the message must hold beside place and key."""

    def __str__(self) -> str:
        return f"{self.kind} {'.'.join(map(str, self.path))} {self.keyword} {self.value!r}"[:90]

    def broken(self, tree: dict[str, Any]) -> dict[str, Any]:
        """A right file, changed in place."""
        node: Any = tree
        for part in self.path[:-1]:
            node = node[part]
        if self.value is GONE:
            del node[self.path[-1]]
        else:
            node[self.path[-1]] = self.value
        return tree


GONE = object()
SILENT = {"title", "description", "default", "hashed", "type", "$ref", "properties", "$defs", "discriminator",
          "prefixItems", "oneOf", "items"}  # fmt: skip
"""Keywords that refuse nothing, or are followed by `rules_of`."""
WRONG_TYPE: dict[str, list[Any]] = {
    "integer": ["text", True, 1.5, [1], {}, float("inf"), 10**400],
    "number": ["text", "1", True, [1.0], {}, float("inf"), float("-inf"), float("nan")],
    "string": [3, True, 1.5, ["a"], {}],
    "boolean": ["yes", 1, 0.0, []],
    "array": ["text", 3, {"a": 1}],
    "object": ["text", 3, [1]],
}
WRONG_TEXT = ["", "-", "a/b", "a b", "\N{SNOWMAN}", "../a", "A" * 300]
"""Of these at least one breaks any pattern in the schema."""


class Walk:
    """Follows a schema along a file in which every section stands, so that every key has its place.

    Args:
        elsewhere: keys that cannot all stand in one file; what lies within is looked for only in the file that has it.
    """

    def __init__(
        self, model: type[BaseModel], kind: str, tree: dict[str, Any], elsewhere: tuple[str, ...] = ()
    ) -> None:
        self.kind = kind
        self.tree = tree
        self.elsewhere = elsewhere
        self.schema = model.model_json_schema()

    def rules(self) -> Iterator[Rule]:
        yield from self._of(self.schema, self.tree, ())

    def _rule(self, path: Path_, keyword: str, value: Any, shown: str | None = None) -> Rule:
        plain = "" if isinstance(value, list | dict) else repr(value)
        return Rule(
            self.kind, path, keyword, value, (plain if len(plain) < 60 else plain[:50]) if shown is None else shown
        )

    def _of(self, schema: dict[str, Any], node: Any, path: Path_, *, nullable: bool = False) -> Iterator[Rule]:
        if "$ref" in schema:
            schema = self.schema["$defs"][schema["$ref"].rpartition("/")[2]] | {
                k: v for k, v in schema.items() if k != "$ref"
            }
        if "anyOf" in schema:
            options = [each for each in schema["anyOf"] if each != {"type": "null"}]
            nullable = len(options) < len(schema["anyOf"])
            if len(options) == 1:
                yield from self._of(options[0], node, path, nullable=nullable)
            else:
                yield self._rule(path, "anyOf", {"a": 1})
            return
        if not nullable and path:
            yield self._rule(path, "null", None)
        if "oneOf" in schema:
            tag = schema["discriminator"]["propertyName"]
            yield self._rule((*path, tag), "tag", "nonsense")
            yield self._rule((*path, tag), "tag", GONE, "is missing")
            yield from self._of({"$ref": schema["discriminator"]["mapping"][node[tag]]}, node, path)
            return
        for value in WRONG_TYPE[schema["type"]] if path else []:
            yield self._rule(path, "type", value)
        if node is None and path and path[-1] in self.elsewhere:
            return
        for keyword, bound in schema.items():
            if keyword not in SILENT:
                yield from self._keyword(keyword, bound, schema, node, path)
        for number, item in enumerate(schema.get("prefixItems", [schema["items"]] if "items" in schema else [])):
            yield from self._of(item, node[number], (*path, number))

    def _keyword(self, keyword: str, bound: Any, schema: dict[str, Any], node: Any, path: Path_) -> Iterator[Rule]:
        if keyword in ("required", "additionalProperties", "patternProperties"):
            yield from self._section(keyword, bound, schema, node, path)
        elif keyword == "minItems" and "prefixItems" in schema:  # a pair: what is missing is named by its place
            yield self._rule(path, keyword, node[: bound - 1], "is missing")
        else:
            step = 1 if schema["type"] == "integer" else 1e-6
            broken: dict[str, Callable[[], list[Any]]] = {
                "minimum": lambda: [bound - step],
                "maximum": lambda: [bound + step],
                "exclusiveMinimum": lambda: [bound],
                "exclusiveMaximum": lambda: [bound],
                "minLength": lambda: [""],
                "minItems": lambda: [node[: bound - 1]],
                "maxItems": lambda: [(node * bound)[: bound + 1]],
                "enum": lambda: ["nonsense"],
                "const": list,  # the tag of a union, whose rule is the section's
                "pattern": lambda: [text for text in WRONG_TEXT if not re.search(bound, text)],
            }
            assert keyword in broken, f"no case for the keyword {keyword} at {path}"
            yield from (self._rule(path, keyword, value) for value in broken[keyword]())

    def _section(self, keyword: str, bound: Any, schema: dict[str, Any], node: Any, path: Path_) -> Iterator[Rule]:
        if keyword == "required":
            yield from (self._rule((*path, name), keyword, GONE, "is missing") for name in bound)
        elif keyword == "patternProperties":
            ((pattern, section),) = bound.items()
            bad = [text for text in WRONG_TEXT if not re.search(pattern, text)]
            name, inner = next(iter(node.items()))
            yield from (self._rule((*path, text), keyword, inner, "") for text in bad)
            yield from self._of(section, inner, (*path, name))
        elif bound is False:
            yield self._rule((*path, "nonsense"), "additionalProperties", 3, "unknown key 'nonsense'")
            yield from self._fields(schema["properties"], node, path)
        else:
            name, inner = next(iter(node.items()))
            yield from self._of(bound, inner, (*path, name))

    def _fields(self, properties: dict[str, Any], node: Any, path: Path_) -> Iterator[Rule]:
        for name, field in properties.items():
            # the tag of a union is its own rule, of the section around it
            if "const" not in field:
                yield from self._of(field, node.get(name), (*path, name))


def without_rule(schema: type[BaseModel], rules: list[Rule]) -> tuple[list[str], int]:
    """Constraints of fields that no rule breaks, and how many constraints there are.

    The other way round than `Walk`: from the fields' own annotations, without the JSON schema.
    """
    keywords = {
        annotated_types.Ge: "minimum",
        annotated_types.Le: "maximum",
        annotated_types.Gt: "exclusiveMinimum",
        annotated_types.Lt: "exclusiveMaximum",
    }
    covered = {(rule.path[-1], rule.keyword) for rule in rules} | {
        (rule.path[-2], rule.keyword) for rule in rules if isinstance(rule.path[-1], int)
    }
    missing, count = [], 0
    for model in sections(schema, set()):
        for name, field in model.model_fields.items():
            for constraint in constraints(field):
                count += 1
                if isinstance(constraint, annotated_types.MinLen):
                    wanted = {(name, "minItems"), (name, "minLength")}
                elif isinstance(constraint, annotated_types.MaxLen):
                    wanted = {(name, "maxItems")}
                elif hasattr(constraint, "pattern"):
                    wanted = {(name, "pattern"), ("a b", "patternProperties")}
                else:
                    wanted = {(name, keywords[type(constraint)])}
                if not wanted & covered:
                    missing.append(f"{model.__name__}.{name}: {constraint}")
    return missing, count


def constraints(part: Any) -> Iterator[Any]:
    """Bounds, lengths and patterns in a field, however deep in its type."""
    if isinstance(part, FieldInfo):
        yield from (each for each in part.metadata if type(each).__name__ != "Strict")
        yield from constraints(part.annotation)
    for argument in getattr(part, "__metadata__", ()):
        yield from constraints(argument)
    for argument in getattr(part, "__args__", ()):
        yield from constraints(argument)


def sections(model: type[BaseModel], seen: set[type[BaseModel]]) -> set[type[BaseModel]]:
    found: list[Any] = [field.annotation for field in model.model_fields.values()]
    seen.add(model)
    while found:
        part = found.pop()
        if isinstance(part, type) and issubclass(part, BaseModel):
            if part not in seen:
                sections(part, seen)
        else:
            found.extend(getattr(part, "__args__", ()))
    return seen


def raised_at(error: ValidationError) -> set[tuple[str, int]]:
    """File and line of the validators that refused."""
    found = set()
    for detail in error.errors():
        trace = getattr(detail.get("ctx", {}).get("error"), "__traceback__", None)
        while trace is not None:
            found.add((Path(trace.tb_frame.f_code.co_filename).name, trace.tb_lineno))
            trace = trace.tb_next
    return found


def raises_of_validators(schema: type[BaseModel]) -> set[tuple[str, int]]:
    """File and line of every `raise` in the validators of every section."""
    found = set()
    for model in sections(schema, set()):
        decorators = model.__pydantic_decorators__
        for kind in ("field_validators", "model_validators"):
            for decorator in getattr(decorators, kind).values():
                function = inspect.unwrap(getattr(decorator.func, "__func__", decorator.func))
                lines, first = inspect.getsourcelines(function)
                tree = ast.parse(textwrap.dedent("".join(lines)))
                shift = first - 1
                found |= {
                    (Path(inspect.getfile(function)).name, node.lineno + shift)
                    for node in ast.walk(tree)
                    if isinstance(node, ast.Raise)
                }
        for kind in ("validators", "root_validators"):
            assert not getattr(decorators, kind), "a decorator of the old style has no case"
    return found


EXTREMES: list[Any] = [
    None, True, False, -1, 0, 1, 3, 0.5, -0.0, 1e-320, 1e308, float("inf"), float("nan"), 2**31, 2**63, 10**30, 10**400,
    "", " ", "x", "null", "1", "1e3", "stage:pretrain", "stage:", "models:/a@b", "timm:x", "../..", "/etc/passwd",
    "~root/x", "\0", "\x1b[2J", "\N{SNOWMAN}", "\N{GRINNING FACE}" * 50, "a" * 10_000, "é", "${HOME}", "{0}", "%s",
    "!tag", "*alias", "&a",
    [], [1, "a"], [[[[]]]], [None], [1] * 1000, {}, {"kind": "x"}, {"source": "coco"}, {"": 1}, {"a": {"b": {"c": {}}}},
]  # fmt: skip
KEYS = ["lr", "stages", "data", "task", "kind", "source", "classification", "mask_pairs", "0", "bool", "", "name",
        "__class__", "model_config", "\N{SNOWMAN}", "a.b", "steps", "epochs", "schedule"]  # fmt: skip


ODD_TEXT = [":", "\t", "\0", "{", "]", '"', "- ", "é", "\u2028", "\ud800", "&a ", "? "]


def places_in(node: Any, path: Path_ = ()) -> Iterator[Path_]:
    for key, value in node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ():
        yield (*path, key)
        yield from places_in(value, (*path, key))


def mutate(tree: Any, draw: random.Random) -> None:
    """One change somewhere in a file: gone, renamed, of another type, an extreme, moved or nested deeply."""
    places = list(places_in(tree))
    if not places:
        return
    *parents, key = draw.choice(places)
    node = tree
    for parent in parents:
        node = node[parent]
    action = draw.randrange(8)
    if action == 0:
        del node[key]
    elif action in (1, 2):
        node[key] = copy.deepcopy(draw.choice(EXTREMES))
    elif action == 3 and isinstance(node, dict):
        node[draw.choice([f"{key}x", str(key)[:-1], str(key).upper(), draw.choice(KEYS)])] = node.pop(key)
    elif action == 4 and isinstance(node, dict):
        node[draw.choice(KEYS)] = copy.deepcopy(node[key])
    elif action == 5:
        for _ in range(draw.choice([1, 3, 15, 30])):
            node[key] = {str(key): node[key]} if draw.random() < 0.5 else [node[key]]
    elif action == 6:
        other = draw.choice(places)
        value = tree
        for part in other:
            value = value[part]
        node[key] = copy.deepcopy(value)
    elif isinstance(node[key], int | float) and not isinstance(node[key], bool):
        node[key] = draw.choice([-node[key], node[key] * 10**6, node[key] / 7, str(node[key]), [node[key]]])
    else:
        node[key] = str(node[key]) + draw.choice(["", "\n", "\0", "é", "/../..", " " * 20])


def mutate_text(text: str, draw: random.Random) -> str:
    """One change to the characters of a file."""
    at, length = draw.randrange(len(text)), draw.choice([0, 1, 5, 60])
    lines = text.splitlines(keepends=True)
    match draw.randrange(4):
        case 0:
            return text[:at] + draw.choice(ODD_TEXT) + text[at + length :]
        case 1:
            return text[:at]
        case 2:
            first, second = draw.randrange(len(lines)), draw.randrange(len(lines))
            lines[first], lines[second] = lines[second], lines[first]
            return "".join(lines)
        case _:
            line = draw.randrange(len(lines))
            return "".join([*lines[:line], " " * draw.randrange(1, 5), *lines[line:]])
