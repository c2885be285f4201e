"""The table of what the pages claim and the tests that show it: `python tests/docs/claims.py [CHECKOUT]`.

A line for each claim and test file: page, the claim's first words, the file, and the test functions in it. Compare two
checkouts with `diff`.
"""

import ast
import re
import sys
from collections.abc import Iterator
from pathlib import Path

PAGES = ("*.md", "pipelines/*.md", "platform/*.md", "tune_spaces/*.md", "infra/*.md", "docs/**/*.md")
SUITES = ("test-long", "test-real", "test-browser", "test-gpu", "chaos", "overfit-coco", "bench", "bench-quick",
          "tune-demo", "full")  # fmt: skip
WORDS = 12
_FILE = re.compile(r"tests/[\w/]+(?:\.py)?")
_SUITE = re.compile(r"make (" + "|".join(sorted(SUITES, key=len, reverse=True)) + r")\b")


def claims(page: str) -> Iterator[tuple[str, list[str]]]:
    """The blocks of a page (paragraphs, list items, rows) that name tests, and what they name."""
    for block in re.split(r"\n\s*\n|\n(?=[-*|] |\d+\. )", page):
        named = [*_FILE.findall(block), *(f"make {suite}" for suite in _SUITE.findall(block))]
        if named:
            yield " ".join(re.sub(r"[`*_|]", " ", block).split()[:WORDS]), sorted(set(named))


def functions(file: Path) -> list[str]:
    """Names of the tests in a file."""
    tree = ast.parse(file.read_text(encoding="utf-8"))
    return sorted(node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef) and
                  node.name.startswith("test_"))  # fmt: skip


def rows(root: Path) -> Iterator[str]:
    """The table's lines."""
    for pattern in PAGES:
        for page in sorted(root.glob(pattern)):
            for claim, named in claims(page.read_text(encoding="utf-8")):
                for name in named:
                    files = [] if name.startswith("make") else _files(root / name)
                    if not files:
                        yield f"{page.relative_to(root)} | {claim} | {name}"
                    for file in files:
                        for function in functions(file):
                            yield f"{page.relative_to(root)} | {claim} | {file.relative_to(root)} | {function}"


def _files(path: Path) -> list[Path]:
    return sorted(path.rglob("test_*.py")) if path.is_dir() else [path] if path.suffix == ".py" else []


if __name__ == "__main__":
    print("\n".join(dict.fromkeys(rows(Path(*sys.argv[1:2]).resolve()))))
