"""Images, cluster files and make targets name what exists and agree with each other."""

import os
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest
import yaml
from harness.pages import PAGES
from ray._private.runtime_env import packaging

REPOSITORY = Path(__file__).parents[2]
INFRA = REPOSITORY / "infra"
LOCK = (INFRA / "requirements.lock").read_text(encoding="utf-8")
MAKEFILE = (REPOSITORY / "Makefile").read_text(encoding="utf-8")


def make(*arguments: str, folder: Path = REPOSITORY, **given: str) -> subprocess.CompletedProcess[str]:
    # without the outer make's flags, when the tests are run by `make test`
    env = {key: value for key, value in os.environ.items() if not key.startswith(("MAKE", "UV_")) and key != "MFLAGS"}
    return subprocess.run(
        ["make", *arguments], cwd=folder, env=env | given, capture_output=True, text=True, timeout=60, check=False
    )


# --- the lock file ---


def locked() -> dict[str, set[str]]:
    versions: dict[str, set[str]] = {}
    for name, version in re.findall(r"^([A-Za-z0-9._-]+)==([^\s;\\]+)", LOCK, re.MULTILINE):
        versions.setdefault(re.sub(r"[-_.]+", "-", name).lower(), set()).add(version)
    return versions


def test_the_lock_holds_every_dependency() -> None:
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    wanted = project["dependencies"] + project["optional-dependencies"]["dev"]
    names = {re.sub(r"[-_.]+", "-", re.split(r"[\[<>=!~; ]", line)[0]).lower() for line in wanted}
    assert names - set(locked()) == set()


def test_every_locked_package_has_a_hash_and_opencv_comes_once() -> None:
    for block in re.split(r"\n(?=[A-Za-z0-9])", LOCK.strip()):
        assert "--hash=sha256:" in block, block.splitlines()[0]
        # both builds write the same folder: the one that needs libGL is never installed
        if block.startswith("opencv-python=="):
            assert "sys_platform == 'never'" in block.splitlines()[0]
    assert "opencv-python-headless" in locked()


# --- the image ---


def dockerfile() -> list[list[str]]:
    text = (INFRA / "Dockerfile").read_text(encoding="utf-8").replace("\\\n", " ")
    return [shlex.split(line) for line in text.splitlines() if line and not line.startswith("#")]


def test_the_image_copies_what_exists_and_what_is_let_through() -> None:
    sources = [word for first, *rest in dockerfile() if first == "COPY" for word in rest[:-1]]
    assert set(sources) >= {"platform", "pipelines", "tune_spaces", "infra/requirements.lock"}
    ignore = (INFRA / "Dockerfile.dockerignore").read_text(encoding="utf-8").splitlines()
    for source in sources:
        assert (REPOSITORY / source).exists(), source
        assert f"!{source}" in ignore


def test_the_image_has_the_locked_python_and_the_same_installer() -> None:
    lines = dockerfile()
    assert lines[0] == ["FROM", "python:3.11-slim"]
    version = re.search(r"^UV_VERSION := (\S+)$", MAKEFILE, re.MULTILINE)
    assert version is not None
    assert any(f"uv=={version[1]}" in words for words in lines)
    assert any({"--require-hashes", "--no-deps"} <= set(words) for words in lines)
    assert ["USER", "1000"] in lines


# --- what a job takes along ---


def test_the_runtime_environment_keeps_what_a_job_needs() -> None:
    loaded = yaml.safe_load((INFRA / "runtime_env.yaml").read_text(encoding="utf-8"))
    assert set(loaded) == {"working_dir", "excludes"}
    assert loaded["working_dir"] == "."
    assert not [each for each in loaded["excludes"] if re.search("platform|pipelines|tune_spaces", each)]
    for each in loaded["excludes"]:
        if each.startswith("/"):
            assert (REPOSITORY / each.strip("/")).is_dir(), each


SECRETS = [".env", ".env.production", "server.pem", "tls.key", "id_rsa", "id_rsa.pub", "id_ed25519", ".netrc",
           "credentials.json", ".aws/credentials", "gcp-service-account.json", ".git-credentials",
           "ray_token"]  # fmt: skip


@pytest.mark.parametrize("by", ["excludes", ".rayignore"])
@pytest.mark.parametrize("folder", ["", "pipelines/", "deep/er/"])
def test_no_job_takes_keys_or_passwords_along(by: str, folder: str, tmp_path: Path) -> None:
    """Packed as Ray does: with the runtime environment's list alone, and by a bare `--working-dir .`."""
    place = tmp_path / "tree"
    kept = [f"{folder}{name}" for name in ("environment.py", "keys.py", "recipe.yaml", "credentials.py")]
    for name in [*kept, *(f"{folder}{name}" for name in SECRETS)]:
        (place / name).parent.mkdir(parents=True, exist_ok=True)
        (place / name).write_text("x")
    excludes = yaml.safe_load((INFRA / "runtime_env.yaml").read_text(encoding="utf-8"))["excludes"]
    if by == ".rayignore":
        excludes = []
        shutil.copy(REPOSITORY / ".rayignore", place)
    packed = tmp_path / "packed.zip"
    packaging._zip_files(str(place), excludes, str(packed), include_gitignore=True)
    with zipfile.ZipFile(packed) as archive:
        names = {info.filename for info in archive.infolist() if not info.is_dir()}
    assert names - {".rayignore"} == set(kept)


def test_both_lists_of_secrets_are_the_same_and_hit_nothing_of_ours() -> None:
    excludes = yaml.safe_load((INFRA / "runtime_env.yaml").read_text(encoding="utf-8"))["excludes"]
    lines = (REPOSITORY / ".rayignore").read_text(encoding="utf-8").splitlines()
    ignored = [line for line in lines if not line.startswith("#")]
    assert set(ignored) <= set(excludes)
    hit = packaging._get_excludes(REPOSITORY, ignored)
    ours = [path for part in ("platform", "pipelines", "tune_spaces") for path in (REPOSITORY / part).rglob("*")]
    assert ours and not [path for path in ours if hit(path)]


def test_uploads_have_the_shipped_recipes_as_files(tmp_path: Path) -> None:
    """In the package they are links, which Ray follows, for a job's working folder and for what workers get."""
    for folder, below in ((REPOSITORY / "platform", "scalablevit/"), (REPOSITORY / "platform" / "scalablevit", "")):
        packed = tmp_path / "packed.zip"
        packaging._zip_files(str(folder), [], str(packed), include_gitignore=True)
        with zipfile.ZipFile(packed) as archive:
            for name, source in (("recipes", "pipelines/recipes"), ("tune_spaces", "tune_spaces")):
                content = (REPOSITORY / source / "demo.yaml").read_bytes()
                assert archive.read(f"{below}{name}/demo.yaml") == content


def test_platform_is_no_package() -> None:
    """With an __init__.py it would hide the standard library's module of that name."""
    assert not (REPOSITORY / "platform" / "__init__.py").exists()


# --- make ---


@pytest.mark.parametrize("target", ["help", "setup", "full", "test", "test-real", "lint", "lock", "head-stop", "clean"])
def test_make_targets_expand(target: str) -> None:
    done = make("--dry-run", target)
    assert done.returncode == 0, done.stderr
    assert done.stdout


def test_set_up_is_done_again_when_what_it_installs_changes(tmp_path: Path) -> None:
    (tmp_path / "infra").mkdir()
    files = ["Makefile", "pyproject.toml", "infra/requirements.lock"]
    for name in files:
        shutil.copy(REPOSITORY / name, tmp_path / name)
    stamps = set()
    for name in files:  # the first one decides nothing
        with (tmp_path / name).open("a") as file:
            file.write("# changed\n")
        done = make("--dry-run", "setup", folder=tmp_path)
        assert "uv pip install" in done.stdout and "--editable .\n" in done.stdout
        stamps |= set(re.findall(r"^touch (\S+/installed-\w+)$", done.stdout, re.MULTILINE))
    assert len(stamps) == 3


def test_help_names_every_target() -> None:
    declared = re.search(r"^\.PHONY: (.+)$", MAKEFILE, re.MULTILINE)
    assert declared is not None
    said = make("help").stdout
    assert all(f"make {target} " in said for target in set(declared[1].split()) - {"help"})


def test_an_unfit_python_is_named_with_the_way_out(tmp_path: Path) -> None:
    done = make("setup", "PYTHON=false", f"VENV={tmp_path / 'venv'}")
    assert done.returncode != 0
    assert "error: false is missing or older than 3.11" in done.stdout
    assert not (tmp_path / "venv").exists()


def test_the_machines_certificates_are_trusted_unless_the_user_says_otherwise() -> None:
    """uv alone would trust its own list only, and fail behind a proxy where pip works."""
    show = ("--eval=show: ; @echo $$UV_SYSTEM_CERTS", "show")
    assert make(*show, "CERTIFICATES=/some/bundle.crt").stdout == "true\n"
    assert make(*show, "CERTIFICATES=").stdout == "false\n"
    assert make(*show, "CERTIFICATES=/some/bundle.crt", UV_SYSTEM_CERTS="0").stdout == "0\n"


def test_what_the_pages_write_into_the_repository_is_ignored_and_so_not_uploaded() -> None:
    text = "".join(page.read_text(encoding="utf-8") for page in PAGES)
    folders = set(re.findall(r"--out (\w+/)", text))
    assert {"predictions/", "exported/"} <= folders
    assert {f"/{folder}" for folder in folders} <= set((REPOSITORY / ".gitignore").read_text().splitlines())


def test_ci_calls_what_make_has() -> None:
    script = REPOSITORY / ".ci" / "run"
    assert os.access(script, os.X_OK)
    assert subprocess.run(["bash", "-n", str(script)], timeout=20, check=False).returncode == 0
    targets = set(re.findall(r"\bmake ([a-z-]+)", script.read_text(encoding="utf-8")))
    assert {"test", "full", "head-stop"} <= targets
    for target in targets:
        assert re.search(rf"^{target}:", MAKEFILE, re.MULTILINE), target


# --- what a run of tests did not run ---

SKIPPING = """
import pytest

@pytest.fixture
def server():
    pytest.skip("no PostgreSQL")

def test_one(server): ...
def test_other(server): ...
@pytest.mark.skipif(True, reason="no weed")
def test_store(): ...
def test_that_runs(): ...
"""


def test_the_last_line_counts_what_was_not_run_and_says_for_want_of_what(tmp_path: Path) -> None:
    (tmp_path / "test_skipping.py").write_text(SKIPPING)
    command = [sys.executable, "-m", "pytest", "-q", "-c", os.devnull, "-p", "harness.not_run", str(tmp_path)]
    said = subprocess.run(command, cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(REPOSITORY / "tests")},
                          capture_output=True, text=True, timeout=60, check=True).stdout.splitlines()  # fmt: skip
    assert said[-2].startswith("1 passed, 3 skipped")
    assert said[-1] == "not run: 3 tests: 2 (no PostgreSQL), 1 (no weed)"
