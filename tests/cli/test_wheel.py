"""The package as a wheel: everything that the command needs lies in it."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from scalablevit import __version__
from scalablevit.config.shipped import RECIPES, SPACES

REPOSITORY = Path(__file__).parents[2]
SOURCES = ("pyproject.toml", "README.md", "LICENSE", "NOTICE", "platform", "pipelines", "tune_spaces")


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder into which the wheel is installed; what it depends on is where it is for the tests."""
    place = tmp_path_factory.mktemp("wheel")
    (place / "tree").mkdir()
    for source in (REPOSITORY / name for name in SOURCES):
        if source.is_dir():
            ignored = shutil.ignore_patterns("__pycache__", "*.egg-info")
            shutil.copytree(source, place / "tree" / source.name, symlinks=True, ignore=ignored)
        elif source.exists():
            shutil.copy(source, place / "tree")
    pip("wheel", "--no-build-isolation", "--wheel-dir", str(place), str(place / "tree"))
    (wheel,) = place.glob("*.whl")
    pip("install", "--no-compile", "--target", str(place / "installed"), str(wheel))
    shutil.rmtree(place / "tree")
    return place / "installed"


def pip(command: str, *arguments: str) -> None:
    given = [sys.executable, "-m", "pip", command, "--no-deps", "--no-index", "--quiet", *arguments]
    done = subprocess.run(given, capture_output=True, text=True, timeout=280, check=False)
    assert done.returncode == 0, done.stderr


def scalablevit(installed: Path, folder: Path, *arguments: str) -> "subprocess.CompletedProcess[str]":
    """Give the command in a folder."""
    others = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    return subprocess.run(
        [sys.executable, str(installed / "bin" / "scalablevit"), *arguments], cwd=folder, capture_output=True,
        text=True, timeout=280, check=False, env={**others, "PYTHONPATH": str(installed)},
    )  # fmt: skip


def test_the_wheel_holds_what_the_command_needs(installed: Path, tmp_path: Path) -> None:
    package = installed / "scalablevit"
    for folder in (RECIPES, SPACES):
        for path in folder.glob("*.yaml"):
            assert (package / folder.name / path.name).read_bytes() == path.read_bytes()
    source = REPOSITORY / "platform" / "scalablevit"
    shipped = {path.relative_to(source) for path in source.rglob("*") if path.is_file() and path.suffix != ".pyc"}
    missing = shipped - {path.relative_to(package) for path in package.rglob("*")}
    assert not missing
    version = scalablevit(installed, tmp_path, "--version")
    assert version.stdout == f"scalablevit {__version__}\n"
    assert (installed / f"scalablevit-{__version__}.dist-info").is_dir()


def test_the_command_finds_what_is_shipped_and_names_itself(installed: Path, tmp_path: Path) -> None:
    listed = scalablevit(installed, tmp_path, "recipe", "list")
    assert (
        listed.returncode == 0 and f"--recipe NAME, of the files in {installed}/scalablevit/recipes:" in listed.stdout
    )
    # the space names its recipe; the root is refused once both are read
    refused = scalablevit(installed, tmp_path, "tune", "--space", "pretrain", "--root", "session_latest")
    assert refused.returncode == 2 and "is in a Ray session folder" in refused.stderr
    wrong = scalablevit(installed, tmp_path, "segment", "--recipe", "demo", "stages.detect.training.seed=7")
    assert "has no effect here: scalablevit segment runs segment" in wrong.stderr
    assert "fix: leave it out; scalablevit full runs all stages" in wrong.stderr
    assert scalablevit(installed, tmp_path, "pack", "--help").stdout.startswith("usage: scalablevit pack [-h]")


@pytest.mark.long
def test_a_dry_run_from_another_folder(installed: Path, tmp_path: Path) -> None:
    done = scalablevit(installed, tmp_path, "full", "--dry-run", "--root", str(tmp_path / "root"))
    assert done.returncode == 0, done.stderr
    assert "no --recipe given: running the demo, demo.yaml" in done.stdout
    assert done.stdout.endswith("dry run: nothing was started\n") and not (tmp_path / "root" / "runs").exists()
