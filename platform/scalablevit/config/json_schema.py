"""JSON schemas of the files that people write, for editors that complete and check keys."""

import json
from typing import Any

from scalablevit.config.recipe import Recipe
from scalablevit.config.space import Space

JsonSchema = dict[str, Any]


def recipe_schema() -> JsonSchema:
    """Return the JSON schema of a recipe file, for editors.

    A file may give a section at its top for all stages and parts of it in a stage. So no key of a section is required,
    and a section without `source` or `kind` is accepted as any variant. `load_recipe` checks what the schema cannot.
    """
    schema = Recipe.model_json_schema()
    definitions = schema["$defs"]
    stage = definitions["Stage"]
    schema["properties"] |= stage["properties"]
    schema["required"] = ["name"]
    for definition in definitions.values():
        definition.pop("required", None)
    return _for_editors(schema)


def space_schema() -> JsonSchema:
    """Return the JSON schema of a search space file, for editors."""
    return _for_editors(Space.model_json_schema())


def schema_text(schema: JsonSchema) -> str:
    """Return a JSON schema as the text of a file."""
    return json.dumps(schema, indent=1, ensure_ascii=False) + "\n"


def _for_editors(schema: JsonSchema) -> JsonSchema:
    """Drop generated titles and defaults that are whole sections; turn `oneOf` into `anyOf`.

    A section of a stage without `source` or `kind` fits several variants, which `oneOf` would refuse.
    """
    kept = {key: value for key, value in schema.items() if not _is_dropped(key, value)}
    if "oneOf" in kept:
        kept["anyOf"] = kept.pop("oneOf")
    return {key: _for_editors_below(value) for key, value in kept.items()}


def _for_editors_below(node: Any) -> Any:
    if isinstance(node, list):
        return [_for_editors_below(item) for item in node]
    return _for_editors(node) if isinstance(node, dict) else node


def _is_dropped(key: str, value: object) -> bool:
    return (key == "title" and isinstance(value, str)) or key == "discriminator" or (
        key == "default" and isinstance(value, dict)
    )  # fmt: skip
