"""Write the pages of reference from the code: recipe keys, search spaces, commands, metrics, the Python API, errors.

    python docs/reference.py FOLDER

needs the environment of `make setup`. `make docs` calls it before the pages are built.
"""

import ast
import inspect
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import scalablevit
from scalablevit.cli import documents
from scalablevit.cli.tree import parser_of
from scalablevit.cli.verbs import VERBS
from scalablevit.config.json_schema import JsonSchema, recipe_schema, space_schema
from scalablevit.config.loading import read_mapping
from scalablevit.config.shipped import RECIPES, SPACES, shipped_files
from scalablevit.config.task_info import TASKS, TaskInfo

PACKAGE = Path(scalablevit.__file__).parent
SECTIONS = "data", "model", "task", "optimizer", "training", "cluster", "tracking", "promotion"


def main() -> int:
    """Write all pages into the folder that is given."""
    folder = Path(sys.argv[1])
    folder.mkdir(parents=True, exist_ok=True)
    pages = {"recipe": recipe_page, "space": space_page, "commands": commands_page, "metrics": metrics_page,
             "json": json_page, "python": python_page, "errors": errors_page}  # fmt: skip
    for name, page in pages.items():
        (folder / f"{name}.md").write_text(page(), encoding="utf-8")
    return 0


# --- keys of files ---


def recipe_page() -> str:
    """Return the page of a recipe's keys: section by section, each kind of data and task by itself."""
    schema = recipe_schema()
    examples = Examples([content for file in shipped_files(RECIPES).values() for content in _stages(file)])
    lines = ["# Recipe keys", "", "A section at the top holds for all stages; a stage's own keys override it.",
             "The example of a key is its value in a shipped recipe.", ""]  # fmt: skip
    top = {name: each for name, each in schema["properties"].items() if name not in SECTIONS}
    lines += ["## Top of the file", "", *_rows(top, "", schema, examples)]
    for section in SECTIONS:
        lines += [f"## {section}", ""]
        for title, definition in _alternatives(schema["properties"][section], schema):
            heading = [f"### {section}: {title}", ""] if title else []
            lines += [*heading, definition.get("description", ""), "",
                      *_rows(definition["properties"], section, schema, examples.of_kind(section, title))]  # fmt: skip
    return "\n".join(lines) + "\n"


def space_page() -> str:
    """Return the page of a search space's keys."""
    schema = space_schema()
    examples = Examples([read_mapping(file, "space")[0] for file in shipped_files(SPACES).values()])
    lines = ["# Search space keys", "", schema.get("description", ""), ""]
    return "\n".join([*lines, *_rows(schema["properties"], "", schema, examples)]) + "\n"


class Examples:
    """Values of keys in files that are shipped."""

    def __init__(self, contents: list[Any]) -> None:
        self._contents = contents

    def of_kind(self, section: str, kind: str) -> "Examples":
        """Return those of the files whose section is of a kind, which its `source` or `kind` names; all without one."""
        sections = [(content, content.get(section)) for content in self._contents]
        return Examples([content for content, found in sections if not kind or
                         (isinstance(found, dict) and kind in (found.get("source"), found.get("kind")))])  # fmt: skip

    def of(self, path: str) -> str:
        """Return the first value found at a dotted path, or nothing."""
        for content in self._contents:
            node: Any = content
            for part in path.split("."):
                node = node.get(part) if isinstance(node, dict) else None
            if node is not None and not isinstance(node, dict):
                return f"`{_yaml(node)}`"
        return ""


def _stages(file: Path) -> Iterator[Any]:
    """Yield a recipe's top and each of its stages, as mappings of sections."""
    content = read_mapping(file, "recipe")[0]
    yield content
    yield from content.get("stages", {}).values()


def _rows(properties: dict[str, JsonSchema], path: str, schema: JsonSchema, examples: Examples) -> list[str]:
    """Return a table of keys; sections within a section follow with their dotted names."""
    rows = ["| key | type | default | meaning | example |", "|---|---|---|---|---|"]
    for key, spec, dotted in _flat(properties, path, schema):
        default = _yaml(spec["default"]) if "default" in spec else ""
        section = _section_of(spec, schema) or {}
        meaning = spec.get("description") or section.get("description", "")
        cells = [f"`{key}`", _type(spec, schema), f"`{default}`" if default else "", meaning, examples.of(dotted)]
        rows.append("| " + " | ".join(_cell(each) for each in cells) + " |")
    return [*rows, ""]


def _flat(
    properties: dict[str, JsonSchema], path: str, schema: JsonSchema, prefix: str = ""
) -> Iterator[tuple[str, JsonSchema, str]]:
    """Yield (key, its schema, its whole path), keys of inner sections after the section itself."""
    for name, spec in properties.items():
        key, dotted = prefix + name, f"{path}.{name}" if path else name
        yield key, spec, dotted
        inner = _section_of(spec, schema)
        if inner is not None:
            yield from _flat(inner["properties"], dotted, schema, f"{key}.")


def _alternatives(spec: JsonSchema, schema: JsonSchema) -> list[tuple[str, JsonSchema]]:
    """Return a section's forms: (value of `source` or `kind`, schema), or one without a title."""
    found = [_resolved(each, schema) for each in spec.get("anyOf", [spec])]
    if len(found) == 1:
        return [("", found[0])]
    return [(str(_const(each)), each) for each in found]


def _const(definition: JsonSchema) -> Any:
    return next(each["const"] for each in definition["properties"].values() if "const" in each)


def _section_of(spec: JsonSchema, schema: JsonSchema) -> JsonSchema | None:
    """Return the schema of a value that is a section, also of one that may be null."""
    for each in [spec, *spec.get("anyOf", [])]:
        if "$ref" in each and "properties" in (found := _resolved(each, schema)):
            return found
    return None


def _resolved(spec: JsonSchema, schema: JsonSchema) -> JsonSchema:
    reference = spec.get("$ref")
    return schema["$defs"][reference.rpartition("/")[2]] if reference else spec


def _type(spec: JsonSchema, schema: JsonSchema) -> str:
    """Return a type in words, with its range."""
    if "anyOf" in spec:
        return " or ".join(dict.fromkeys(_type(each, schema) for each in spec["anyOf"]))
    if "$ref" in spec:
        found = _resolved(spec, schema)
        return "section" if "properties" in found else _type(found, schema)
    if "const" in spec or "enum" in spec:
        return " or ".join(f"`{value}`" for value in spec.get("enum", [spec.get("const")]))
    kind = {"integer": "whole number", "number": "number", "boolean": "true or false", "string": "text",
            "null": "null", "array": "list", "object": "mapping"}.get(spec.get("type", ""), "any value")  # fmt: skip
    return kind + _range(spec)


def _range(spec: JsonSchema) -> str:
    bounds = [f"{sign} {spec[name]}" for name, sign in (("minimum", "from"), ("exclusiveMinimum", "above"),
                                                        ("maximum", "to"), ("exclusiveMaximum", "below"))
              if name in spec and spec[name] not in (10**12,)]  # fmt: skip
    return f" {' '.join(bounds)}" if bounds else ""


def _yaml(value: Any) -> str:
    if isinstance(value, bool) or value is None:
        return {True: "true", False: "false", None: "null"}[value]
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(_yaml, value))}]"
    return f"{value:g}" if isinstance(value, float) else str(value)


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


# --- commands, metrics, Python ---


def commands_page() -> str:
    """Return the page of commands, each with its help as it is printed."""
    lines = ["# Commands", "", "`scalablevit VERB`, or `python pipelines/VERB.py` in a checkout and in jobs.", ""]
    for verb, entry in VERBS.items():
        parser = parser_of(verb)
        parser.prog = f"scalablevit {verb}"
        lines += [f"## scalablevit {verb}", "", entry.description, ""]
        lines += ["```text", parser.format_help().strip(), "```", ""]
    return "\n".join(lines)


def json_page() -> str:
    """Return the page of what commands print with `--json`."""
    lines = ["# JSON", "", inspect.getdoc(documents) or "", "",
             "The document is all that is on standard output. What people read, also an error, is on standard error;",
             "after an error (exit code 2) there is no document.", ""]  # fmt: skip
    for document in documents.DOCUMENTS:
        schema = document.model_json_schema()
        lines += [f"## {document.schema_name}", "", inspect.getdoc(document) or "", "",
                  f"`schema` is `{document.schema_name}`, `version` is {document.version}.", "",
                  "| key | type | meaning |", "|---|---|---|",
                  *_document_rows(schema["properties"], schema), ""]  # fmt: skip
    return "\n".join(lines)


def _document_rows(properties: dict[str, JsonSchema], schema: JsonSchema, prefix: str = "") -> Iterator[str]:
    """Yield a row for each key; those of a mapping within follow, `[]` for each entry of a list, `{}` of a mapping."""
    for name, spec in properties.items():
        yield f"| `{prefix}{name}` | {_cell(_type(spec, schema))} | {_cell(spec.get('description', ''))} |"
        for mark, inner in (("", spec), ("[]", spec.get("items", {})), ("{}", spec.get("additionalProperties"))):
            found = _section_of(inner, schema) if isinstance(inner, dict) else None
            if found is not None:
                yield from _document_rows(found["properties"], schema, f"{prefix}{name}{mark}.")


def metrics_page() -> str:
    """Return the page of metrics by kind of task."""
    lines = ["# Metrics", "", "Evaluations report each as `val/<name>`. The first one decides which checkpoint is",
             "best. `promotion.metric` and a search's `metric` name one of them.", ""]  # fmt: skip
    for info in TASKS.values():
        lines += [f"## {info.kind}", "", "| metric | better | promotion can compare by it | only with |",
                  "|---|---|---|---|", *_metric_rows(info), ""]  # fmt: skip
        lines += [f"- `val/{name}/<class>`: {words} of each class." for name, words in info.class_metrics.items()]
        lines.append("")
    return "\n".join(lines)


def _metric_rows(info: TaskInfo) -> list[str]:
    better = {"max": "larger", "min": "smaller"}
    return [f"| `{each.reported_as}` | {better[each.better]} | {'yes' if each.promotable else 'no'} | "
            f"{', '.join(f'`task.head: {head}`' for head in each.heads)} |" for each in info.metrics]  # fmt: skip


def python_page() -> str:
    """Return the page of the public Python API, from its docstrings."""
    lines = ["# Python", "", "```python", "import scalablevit as sv", "```", ""]
    for name in sorted(scalablevit.__all__):
        found = getattr(scalablevit, name)
        if not callable(found):
            continue
        lines += [f"## sv.{name}", "", *_described(f"sv.{name}", found)]
        if inspect.isclass(found):
            for method, function in inspect.getmembers(found, inspect.isfunction):
                if not method.startswith("_") and function.__module__.startswith("scalablevit"):
                    lines += [f"### sv.{name}.{method}", "", *_described(method, function)]
    return "\n".join(lines) + "\n"


def _described(title: str, found: Any) -> list[str]:
    try:
        signature = f"{title}{inspect.signature(found)}".replace("scalablevit.", "")
    except ValueError:  # a class without a signature of its own
        signature = title
    return ["```python", signature, "```", "", "```text", inspect.getdoc(found) or "", "```", ""]


# --- errors ---


def errors_page() -> str:
    """Return the page of all sentences that tell a user of a mistake, by the part that says them."""
    lines = ["# Messages", "", "Every message says where the mistake is and what to do. `...` stands for a value.", ""]
    for file in sorted(PACKAGE.rglob("*.py")):
        rows = list(_errors(file))
        if rows:
            lines += [f"## {file.relative_to(PACKAGE).with_suffix('')}", "", "| message | what to do |", "|---|---|"]
            lines += [f"| {_cell(what)} | {_cell(fix)} |" for what, fix in sorted(set(rows))] + [""]
    return "\n".join(lines)


def _errors(file: Path) -> Iterator[tuple[str, str]]:
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "UserError" and node.args:
            fix = next((each.value for each in node.keywords if each.arg == "fix"), None)
            if re.search("[a-z]{3}", _text(node.args[0])):  # else all of it is filled in, elsewhere in the code
                yield _text(node.args[0]), "" if fix is None else _text(fix)


def _text(node: ast.expr) -> str:
    """Return a message as it is printed, with `...` for what is filled in."""
    if isinstance(node, ast.Constant):
        return str(node.value)
    if isinstance(node, ast.JoinedStr):
        return "".join(_text(each) if isinstance(each, ast.Constant) else "..." for each in node.values)
    return "..."


if __name__ == "__main__":
    sys.exit(main())
