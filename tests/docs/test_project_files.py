"""What the files in the root state: licence, notice, citation, changelog, contributing, security."""

import ast
import hashlib
import re
import tomllib
from typing import Any

import pytest
import yaml
from harness.pages import PAGES, REPOSITORY, blocks, spans

import scalablevit

APACHE_2 = "cfc7749b96f63bd31c3c42b5c471bf756814053e847c10f3eb003417bc523d30"
"""SHA-256 of the text that the Apache Software Foundation publishes."""
SECURITY, CONTRIBUTING = REPOSITORY / "SECURITY.md", REPOSITORY / "CONTRIBUTING.md"


@pytest.fixture(scope="module")
def project() -> dict[str, Any]:
    """The whole pyproject.toml."""
    return tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def citation() -> dict[str, Any]:
    found = yaml.safe_load((REPOSITORY / "CITATION.cff").read_text(encoding="utf-8"))
    assert isinstance(found, dict)
    return found


def test_the_licence_is_apaches_text_unchanged() -> None:
    content = (REPOSITORY / "LICENSE").read_bytes()
    assert hashlib.sha256(content).hexdigest() == APACHE_2
    assert "Copyright [yyyy] [name of copyright owner]" in content.decode(), "its appendix is not filled in"


def test_the_notice_names_owner_and_what_is_bundled() -> None:
    lines = (REPOSITORY / "NOTICE").read_text(encoding="utf-8").splitlines()
    assert lines[:2] == ["scalablevit", "Copyright 2026 the scalablevit authors"]
    paths = re.findall(r"\b(?:tests|pipelines|platform|infra)/[\w./]*\w", "\n".join(lines))
    assert len(paths) >= 8
    assert [path for path in paths if not (REPOSITORY / path).exists()] == []


def test_every_picture_and_table_of_others_is_in_the_notice() -> None:
    """Files that are neither code, nor text of ours, nor below a folder that the notice names."""
    notice = (REPOSITORY / "NOTICE").read_text(encoding="utf-8")
    named = ("tests/cases/data/", "tests/data/version1/", "pipelines/pictures/", "tests/data/parity/")
    assert all(folder in notice for folder in named)
    ours = {".py", ".pyc", ".md", ".yaml", ".html", ".typed"}
    tops = [REPOSITORY / top for top in ("platform", "pipelines", "tune_spaces", "tests")]
    files = [file for top in tops for file in top.rglob("*") if file.is_file() and file.suffix not in ours]
    paths = {str(file.relative_to(REPOSITORY)) for file in files if "__pycache__" not in file.parts}
    left = {path for path in paths if not path.startswith(named) and path not in notice}
    left = {path for path in left if ".egg-info/" not in path and not re.search(r"(^|/)\.", path)}
    assert left == set(), "say in NOTICE whose work these are"


def test_the_citation_has_the_version_and_the_papers_seven_authors(citation: dict[str, Any]) -> None:
    assert citation["cff-version"] == "1.2.0"
    assert {"message", "title", "authors"} <= citation.keys(), "what the format asks for"
    assert (citation["title"], citation["license"]) == ("scalablevit", "Apache-2.0")
    assert citation["version"] == scalablevit.__version__
    (paper,) = citation["references"]
    assert [f"{author['given-names']} {author['family-names']}" for author in paper["authors"]] == [
        "Rui Yang", "Hailong Ma", "Jie Wu", "Yansong Tang", "Xuefeng Xiao", "Min Zheng", "Xiu Li"]  # fmt: skip
    assert paper["title"] == ("ScalableViT: Rethinking the Context-oriented Generalization of Vision Transformer") and (
        paper["type"],
        paper["year"],
    ) == ("conference-paper", 2022)
    assert [each["value"] for each in paper["identifiers"]] == ["arXiv:2203.10790"]


def test_the_newest_version_heads_the_changelog() -> None:
    text = (REPOSITORY / "CHANGELOG.md").read_text(encoding="utf-8")
    versions = re.findall(r"^## \[([^\]]+)\] - (?:Unreleased|\d{4}-\d\d-\d\d)$", text, re.MULTILINE)
    assert versions[0] == scalablevit.__version__
    assert len(versions) == len(re.findall(r"^## ", text, re.MULTILINE)) == len(set(versions))
    kinds = set(re.findall(r"^### (.+)$", text, re.MULTILINE))
    assert kinds <= {"Added", "Changed", "Deprecated", "Removed", "Fixed", "Security"}


def test_these_pages_are_read_by_the_tests_of_pages() -> None:
    """Their commands are run, their paths and links looked up."""
    assert {SECURITY, CONTRIBUTING, REPOSITORY / "CHANGELOG.md"} <= set(PAGES)


def test_every_claim_of_security_names_a_test_that_is_there() -> None:
    rows = [line for line in SECURITY.read_text(encoding="utf-8").splitlines() if line.startswith("| ")][1:]
    assert len(rows) >= 10
    for row in rows:
        files = re.findall(r"`(tests/[\w/]+\.py)`: ((?:`test_\w+`(?:, )?)+)", row)
        assert files, f"without a test: {row}"
        for file, names in files:
            tree = ast.parse((REPOSITORY / file).read_text(encoding="utf-8"))
            there = {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}
            assert set(re.findall(r"`(test_\w+)`", names)) <= there, row


@pytest.mark.parametrize("page", [SECURITY, CONTRIBUTING], ids=lambda page: page.name)
def test_every_test_path_and_make_target_is_there(page: Any) -> None:
    code = spans(page) + [line for _, content in blocks(page) for line in content.splitlines()]
    paths = {word for span in code for word in re.findall(r"\btests/[\w/.]*\w", span)}
    targets = {target for span in code for target in re.findall(r"^make ([\w-]+)", span)}
    assert paths and targets
    assert [path for path in sorted(paths) if not (REPOSITORY / path).exists()] == []
    assert targets <= make_targets()


def test_contributing_names_every_target_that_checks_something() -> None:
    named = {target for span in spans(CONTRIBUTING) for target in re.findall(r"^make ([\w-]+)", span)}
    checks = {target for target in make_targets() if target.startswith(("test", "bench", "chaos", "lint", "overfit"))}
    assert checks and checks <= named


@pytest.mark.parametrize("page", [CONTRIBUTING, REPOSITORY / "docs" / "how_it_works.md"], ids=lambda page: page.name)
def test_pages_have_the_layers_that_import_linter_holds(page: Any, project: dict[str, Any]) -> None:
    (contract,) = (each for each in project["tool"]["importlinter"]["contracts"] if each["type"] == "layers")
    held = [set(re.findall(r"\w+", layer)) for layer in reversed(contract["layers"])]
    (text,) = (content for language, content in blocks(page) if language == "text")
    assert [set(re.findall(r"\w+", layer)) for layer in text.split("<")] == held


def make_targets() -> set[str]:
    """All targets of the Makefile."""
    makefile = (REPOSITORY / "Makefile").read_text(encoding="utf-8")
    (phony,) = re.findall(r"^\.PHONY: (.+)$", makefile, re.MULTILINE)
    return set(phony.split())
