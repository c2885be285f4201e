"""Every message that the page of troubleshooting quotes is one that the code still prints."""

import ast
import re
from functools import cache
from types import ModuleType

import pytest
from harness.pages import REPOSITORY, blocks, load_reference

PAGE = REPOSITORY / "docs" / "troubleshooting.md"
MAKEFILE = REPOSITORY / "Makefile"


@pytest.fixture(scope="module")
def reference() -> ModuleType:
    return load_reference()


@cache
def printed(reference: ModuleType) -> str:
    """All texts of the package and of the local head but docstrings, a line each, with `...` for what is filled in."""
    files = [*sorted(reference.PACKAGE.rglob("*.py")), REPOSITORY / "infra" / "head.py"]
    trees = [ast.parse(file.read_text(encoding="utf-8")) for file in files]
    nodes = [node for tree in trees for node in ast.walk(tree)]
    docstrings = {id(node.value) for node in nodes if isinstance(node, ast.Expr)}
    texts = [reference._text(node) for node in nodes if is_text(node) and id(node) not in docstrings]
    made = re.sub(r"\$\(\w+\)", "...", MAKEFILE.read_text(encoding="utf-8"))
    return "\n".join(map(alike, [*texts, *made.splitlines()]))


def is_text(node: ast.AST) -> bool:
    return isinstance(node, ast.JoinedStr) or (isinstance(node, ast.Constant) and isinstance(node.value, str))


def alike(text: str) -> str:
    """The text on one line, with one `...` for values that follow each other."""
    return re.sub(r"\.{3,}", "...", " ".join(text.split()))


def quoted(content: str) -> list[str]:
    """Messages of a block, those after `fix:` among them; a line that begins with four spaces continues one."""
    lines = re.sub(r"\n {4,}", " ", content).splitlines()
    return [alike(line.strip().removeprefix("fix: ")) for line in lines]


def test_every_quoted_message_is_in_the_code(reference: ModuleType) -> None:
    found = [content for language, content in blocks(PAGE) if language == "text"]
    assert len(found) >= 25
    missing = [line for content in found for line in quoted(content) if line not in printed(reference)]
    assert missing == []


def test_a_message_of_no_code_is_noticed(reference: ModuleType) -> None:
    (line,) = quoted("the data is not to my liking\n")
    assert line not in printed(reference)
    assert quoted("run ... belongs to process ...\n    on ... since ...")[0] in printed(reference)


def test_each_message_has_cause_and_fix() -> None:
    sections = re.split(r"^### ", PAGE.read_text(encoding="utf-8"), flags=re.MULTILINE)[1:]
    assert len(sections) >= 30
    assert [each.splitlines()[0] for each in sections if "**Cause:**" not in each or "**Fix:**" not in each] == []
