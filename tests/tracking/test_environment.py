"""What a run was made with."""

import json
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import pytest

from scalablevit.tracking.environment import (
    code_digest,
    environment_info,
    git_version,
    installed_version,
    pin_requirements,
)


@pytest.fixture
def package(tmp_path: Path) -> Path:
    package = tmp_path / "repository" / "pkg"
    (package / "sub").mkdir(parents=True)
    (package / "__init__.py").write_text("")
    (package / "sub" / "a.py").write_text("a = 1\n")
    return package


def git(folder: Path, *arguments: str) -> str:
    identity = ["-c", "user.name=n", "-c", "user.email=e@x"]
    command = ["git", "-C", str(folder), *identity, *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


def test_equal_code_has_an_equal_digest_wherever_it_lies(package: Path, tmp_path: Path) -> None:
    digest = code_digest(package)
    (package / "sub" / "__pycache__").mkdir()
    (package / "sub" / "__pycache__" / "a.pyc").write_bytes(b"byte code")
    (package / "recipes").mkdir()  # a wheel and an upload have files where a checkout has a link
    (package / "recipes" / "demo.yaml").write_text("name: demo\n")
    assert code_digest(package) == digest
    moved = tmp_path / "elsewhere"
    package.rename(moved)
    assert code_digest(moved) == digest


def test_any_change_of_code_changes_the_digest(package: Path) -> None:
    digests = {code_digest(package)}
    (package / "sub" / "a.py").write_text("a = 2\n")
    digests.add(code_digest(package))
    (package / "sub" / "a.py").rename(package / "sub" / "b.py")
    digests.add(code_digest(package))
    (package / "empty.py").write_text("")
    digests.add(code_digest(package))
    assert len(digests) == 4


def test_the_commit_of_the_packages_own_repository(package: Path) -> None:
    assert git_version(package) is None
    git(package.parent, "init", "-q")
    (package.parent / "README.md").write_text("of somebody else")
    git(package.parent, "add", "README.md")
    git(package.parent, "commit", "-q", "-m", "first")
    assert git_version(package) is None
    git(package.parent, "add", "pkg")
    git(package.parent, "commit", "-q", "-m", "second")
    commit = git(package.parent, "rev-parse", "HEAD")
    assert git_version(package) == {"commit": commit, "modified": False}
    (package / "sub" / "a.py").write_text("a = 3\n")
    assert git_version(package) == {"commit": commit, "modified": True}


def test_the_environment_is_ready_for_json(package: Path) -> None:
    info = json.loads(json.dumps(environment_info(package)))
    assert info["packages"]["mlflow"] == version("mlflow")
    assert (info["code"]["digest"], info["code"]["git"]) == (code_digest(package), None)
    assert info["python"].startswith("3.")


def test_requirements_are_the_installed_versions() -> None:
    assert pin_requirements(["safetensors", "torch"]) == [
        f"safetensors=={version('safetensors')}",
        f"torch=={version('torch')}",
    ]
    with pytest.raises(PackageNotFoundError):
        pin_requirements(["no-such-package-at-all"])


def test_a_package_with_damaged_metadata_is_counted_and_hides_no_other(
    package: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What pip leaves of an installation that was interrupted, or a disk of a file."""
    sound = environment_info(package)
    for name, content in {"emptied": None, "nameless": b"Version: 1\n", "garbled": b"Name: \xff\xfe\nVersion: 1\n",
                          "mlflow": b"Metadata-Version: 2.1\nName: mlflow\n"}.items():  # fmt: skip
        info = tmp_path / "site" / f"{name}-1.0.dist-info"
        info.mkdir(parents=True)
        if content is not None:
            (info / "METADATA").write_bytes(content)
    newer = tmp_path / "site" / "torch-999.0.dist-info"
    newer.mkdir()
    (newer / "METADATA").write_text("Name: torch\nVersion: 999.0\n")
    monkeypatch.syspath_prepend(tmp_path / "site")
    found = environment_info(package)
    assert found["damaged_packages"] - sound["damaged_packages"] == 4
    assert found["packages"] == {**sound["packages"], "torch": "999.0"}, "of two, the one that Python imports"
    names = ["garbled", "mlflow", "torch"]
    assert [installed_version(name) for name in names] == ["unknown", "unknown", "999.0"]
    assert pin_requirements(names) == ["garbled", "mlflow", "torch==999.0"]
