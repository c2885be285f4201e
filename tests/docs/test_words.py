"""What users read has the field's words: words of ours that have been replaced stay out of help, keys and messages."""

import argparse
import ast
import re
from collections.abc import Iterator

from harness.pages import REPOSITORY

from scalablevit.cli.tree import parser_of
from scalablevit.cli.verbs import VERBS
from scalablevit.config.json_schema import JsonSchema, recipe_schema, space_schema

REPLACED = (
    "figures?", "headlines?", "examinations?", "examines?", "tally", "complaints", "pictures?", "screen", "spool",
    "shipper", "delivery", "footprint", "instants", "mend", "anew", "beside", "behind", "lies", "stands", "answers?",
    "answered",
    "is told", "given back", "gives up",
)  # fmt: skip
ALLOWED = (
    r"Figure [12]",  # of the paper
    r"(server|cluster|node) (that )?(does not |has not )?answer(s|ed)?",  # machines do
    r"not every node answered",
)
MESSAGES = {"UserError", "BadSample", "TrainingFailed", "print"}
_WORDS = re.compile(rf"\b({'|'.join(REPLACED)})\b", re.IGNORECASE)


def replaced_words(text: str) -> list[str]:
    for allowed in ALLOWED:
        text = re.sub(allowed, "", text)
    return _WORDS.findall(text)


def help_texts() -> Iterator[tuple[str, str]]:
    """Help of all commands and of their own verbs."""
    for verb in VERBS:
        parser = parser_of(verb)
        yield verb, parser.format_help()
        for action in parser._actions:
            if isinstance(action, argparse._SubParsersAction):
                yield from ((f"{verb} {name}", inner.format_help()) for name, inner in action.choices.items())


def keys_and_meanings(schema: JsonSchema) -> Iterator[tuple[str, str]]:
    for definition in [schema, *schema["$defs"].values()]:
        for key, spec in definition.get("properties", {}).items():
            yield key, f"{key.replace('_', ' ')} {spec.get('description', '')}"


def messages() -> Iterator[tuple[str, str]]:
    """Texts in calls that speak to the user."""
    for file in sorted((REPOSITORY / "platform" / "scalablevit").rglob("*.py")):
        for call in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(call, ast.Call) and isinstance(call.func, ast.Name) and call.func.id in MESSAGES:
                for node in ast.walk(call):
                    if isinstance(node, ast.Constant) and isinstance(node.value, str):
                        yield f"{file.name}:{node.lineno}", node.value


def test_words_that_were_replaced_stay_out() -> None:
    found = [*help_texts(), *keys_and_meanings(recipe_schema()), *keys_and_meanings(space_schema()), *messages()]
    assert len(found) > 1000
    wrong = {place: words for place, text in found if (words := replaced_words(" ".join(text.split())))}
    assert wrong == {}


def test_a_replaced_word_is_found_and_an_allowed_one_is_not() -> None:
    assert replaced_words("the headline figures of the answer") == ["headline", "figures", "answer"]
    assert replaced_words("Figure 2: make sure that the server answers; the Ray cluster does not answer") == []
