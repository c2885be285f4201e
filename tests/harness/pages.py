"""What is in the README pages and in docs/: code blocks, commands, paths and links."""

import importlib.util
import re
import textwrap
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

REPOSITORY = Path(__file__).parents[2]
PAGES = [*sorted(REPOSITORY.glob("*.md")),
         *(page for top in ("pipelines", "platform", "tune_spaces", "infra", "docs")
           for page in sorted((REPOSITORY / top).glob("*.md")))]  # fmt: skip
PROGRAMS = ("bash", "cd", "chromium", "curl", "docker", "eval", "export", "git", "kubectl", "make", "mlflow", "pip",
            "prometheus", "promtool", "pytest", "python", "python3", "ray", "sbatch", "scalablevit", "scancel", "sh",
            "source", "uv", "wget")  # fmt: skip
"""By which a command is known in a sentence; blocks hold nothing else."""

_FENCE = re.compile(r"^( *)```(\w*)\n(.*?)^\1```$", re.MULTILINE | re.DOTALL)
_SPAN = re.compile(r"`([^`]+)`")
_LINK = re.compile(r"\]\(([^)\s]+)\)")
_HEADING = re.compile(r"^#+ (.+)$", re.MULTILINE)


@dataclass(frozen=True)
class Command:
    """A command as a page has it, on one line."""

    page: str
    text: str
    mention: bool = False
    """In a sentence, where positional arguments may be left out."""


def blocks(page: Path) -> list[tuple[str, str]]:
    """Language and content of each fenced block."""
    return [(language, textwrap.dedent(content)) for _, language, content in _FENCE.findall(_text(page))]


def written(language: str) -> list[str]:
    """Content of all pages' blocks in a language."""
    return [content for page in PAGES for found, content in blocks(page) if found == language]


def prose(page: Path) -> str:
    """The page without its blocks."""
    return _FENCE.sub("", _text(page))


def spans(page: Path) -> list[str]:
    """Code in sentences and tables; what is wrapped comes on one line."""
    return [" ".join(span.split()) for span in _SPAN.findall(prose(page))]


def commands(page: Path) -> list[Command]:
    """All commands of a page: every line of shell blocks, those in sentences, tables and printed text."""
    name, found = str(page.relative_to(REPOSITORY)), []
    for language, content in blocks(page):
        lines = content.replace("\\\n", " ").splitlines()
        if language == "sh":
            found += [Command(name, line) for line in lines if line.strip()]
        elif language == "console":
            found += [Command(name, line[2:]) for line in lines if line.startswith("$ ")]
        elif language == "text":
            found += [Command(name, each) for line in lines for each in re.findall(r"\.venv/bin/.*", line)]
    return found + [Command(name, span, mention=True) for span in spans(page) if _is_command(span)]


def paths(page: Path) -> set[str]:
    """Paths of this repository that a page names, `{a,b}` written out."""
    tops = r"(?:docs|platform|pipelines|tune_spaces|infra|tests)/[^\s<>]*"
    named = {word for span in spans(page) for word in span.split() if re.fullmatch(tops, word)}
    return {path for word in named for path in _written_out(word)}


def links(page: Path) -> list[str]:
    """Targets of links inside the repository."""
    return [target for target in _LINK.findall(prose(page)) if "://" not in target]


def anchors(page: Path) -> set[str]:
    """Headings as links name them."""
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in _HEADING.findall(prose(page))}


def load_reference() -> ModuleType:
    """Return `docs/reference.py`, which writes the pages of reference."""
    spec = importlib.util.spec_from_file_location("docs_reference", REPOSITORY / "docs" / "reference.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _text(page: Path) -> str:
    return page.read_text(encoding="utf-8")


def _is_command(span: str) -> bool:
    """Whether it is a program with arguments, after what is set for it."""
    first, *rest = re.sub(r"^([A-Z_]+=\S* )*", "", span).split()
    return bool(rest) and (Path(first).name in PROGRAMS or first.endswith(".py"))


def _written_out(path: str) -> list[str]:
    choice = re.search(r"\{([^}]*)\}", path)
    if choice is None:
        return [path]
    return [each for part in choice[1].split(",") for each in _written_out(path.replace(choice[0], part, 1))]
