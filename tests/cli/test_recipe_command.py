"""`pipelines/recipe.py upgrade`: files rewritten in place, or left as they are."""

import errno
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from scalablevit.cli.recipe import run
from scalablevit.cli.tree import parse
from scalablevit.config.errors import UserError
from scalablevit.config.loading import load_recipe
from scalablevit.config.space_loading import load_search

REPOSITORY = Path(__file__).parents[2]
RECIPE = """\
name: mine  # of me
data: {source: image_folder, root: pictures, train: {images: train}, val: {images: val}}
model: {name: scalablevit_tiny}
task: {kind: classification}
optimizer: {lr: 1e-3}
training: {epochs: 2, global_batch: 8}  # small
"""
SPACE = """\
recipe: my.yaml
metric: val/top1
budget: {trials: 2}
parameters: {training.global_batch: {choice: [8, 16]}}
"""


@pytest.fixture
def mine(tmp_path: Path) -> Path:
    path = tmp_path / "my.yaml"
    path.write_text(RECIPE)
    return path


def upgrade(*arguments: str | Path) -> int:
    return run(parse("recipe", ["upgrade", *map(str, arguments)]))


def test_a_recipe_and_a_space_are_rewritten(mine: Path, capsys: pytest.CaptureFixture[str]) -> None:
    space = mine.with_name("space.yaml")
    space.write_text(SPACE)
    mine.chmod(0o640)
    assert upgrade(space, mine) == 0  # in any order: both are rewritten before one is checked
    assert capsys.readouterr().out.splitlines() == [
        f"{space}:2: version: 2 is added",
        f"{space}:4: parameters.training.global_batch -> training.global_batch_size",
        f"{mine}:2: version: 2 is added",
        f"{mine}:6: training.global_batch -> global_batch_size",
    ]
    assert mine.read_text() == RECIPE.replace("# of me\n", "# of me\nversion: 2\n").replace("batch:", "batch_size:")
    assert load_recipe(mine).stages["pretrain"].training.global_batch_size == 8
    assert load_search(space).space.version == 2
    assert mine.stat().st_mode & 0o777 == 0o640
    assert sorted(path.name for path in mine.parent.iterdir()) == ["my.yaml", "space.yaml"]
    assert upgrade(mine) == 0
    assert capsys.readouterr().out == f"{mine}: already version 2\n"


def test_a_dry_run_writes_nothing(mine: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert upgrade("--dry-run", mine) == 0
    assert mine.read_text() == RECIPE
    out = capsys.readouterr().out
    assert f"{mine}:6: training.global_batch -> global_batch_size" in out and "nothing was written" in out


def test_when_one_file_cannot_be_upgraded_none_is(mine: Path) -> None:
    both, broken = mine.with_name("both.yaml"), mine.with_name("broken.yaml")
    both.write_text(RECIPE.replace("global_batch: 8", "global_batch: 8, global_batch_size: 8"))
    broken.write_text("name: [\n")
    with pytest.raises(UserError) as caught:
        upgrade(mine, both, broken, mine.with_name("none.yaml"))
    said = str(caught.value)
    assert f"{both}:6: training.global_batch and its new name global_batch_size are both given" in said
    assert f"{broken}:2: not readable as YAML" in said and f"{mine.with_name('none.yaml')}: cannot be read" in said
    assert mine.read_text() == RECIPE


@pytest.mark.parametrize("long_first", [True, False])
def test_when_one_file_cannot_be_written_none_is(
    mine: Path, capsys: pytest.CaptureFixture[str], long_first: bool
) -> None:
    """The name is so long that there is none for a new file next to it."""
    long = mine.with_name(f"{'r' * 245}.yaml")
    long.write_text(RECIPE)
    with pytest.raises(UserError, match="File name too long") as caught:
        upgrade(*((long, mine) if long_first else (mine, long)))
    assert caught.value.where == str(long) and "writable" not in caught.value.fix
    assert mine.read_text() == long.read_text() == RECIPE and len(list(mine.parent.iterdir())) == 2
    assert capsys.readouterr().out == ""


def test_a_file_that_cannot_be_replaced_is_named_with_those_that_were(
    mine: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As one that is mounted into a container."""
    mounted = mine.with_name("mounted.yaml")
    mounted.write_text(RECIPE)
    replace = Path.replace

    def refuse(part: Path, target: Path) -> Path:
        if target == mounted:
            raise OSError(errno.EBUSY, os.strerror(errno.EBUSY))
        return replace(part, target)

    monkeypatch.setattr(Path, "replace", refuse)
    with pytest.raises(UserError, match="cannot be written: Device or resource busy; replaced already: ") as caught:
        upgrade(mine, mounted)
    assert caught.value.where == str(mounted) and caught.value.what.endswith(f"replaced already: {mine}")
    assert "version: 2" in mine.read_text() and mounted.read_text() == RECIPE and len(list(mine.parent.iterdir())) == 2


def test_new_entries_of_folders_reach_the_disk(mine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folders = []
    monkeypatch.setattr("scalablevit.cli.recipe.sync_folder", folders.append)
    assert upgrade(mine) == 0 and folders == [mine.parent]


def test_a_folder_that_is_not_writable(mine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    monkeypatch.setattr("scalablevit.cli.recipe.written_part", refuse)
    with pytest.raises(UserError, match=r"(?s)cannot be written: Permission denied.*make its folder writable"):
        upgrade(mine)
    assert mine.read_text() == RECIPE


def test_what_a_run_stored_stays_as_it_is(tmp_path: Path) -> None:
    """It says by which version it was begun."""
    version_1 = REPOSITORY / "tests" / "data" / "version1" / "runs"
    for name, file, said in (
        ("old-pretrain-bd78c92e64c4", "recipe.yaml", "has no `name`"),
        ("old-pretrain-search-6d1850dbe084", "space.yaml", "belongs to a search"),
        ("old-pretrain-search-6d1850dbe084", "base_recipe.yaml", "belongs to a search"),
    ):
        copied = tmp_path / name
        shutil.copytree(version_1 / name, copied, dirs_exist_ok=True)
        before = (copied / file).read_bytes()
        with pytest.raises(UserError, match=said) as caught:
            upgrade(copied / file)
        assert caught.value.where == str(copied / file)
        assert (copied / file).read_bytes() == before


def test_foreign_files_stay_as_they_are(tmp_path: Path) -> None:
    file = tmp_path / "environment.yml"
    file.write_text("name: conda\nchannels: [defaults]\n")
    with pytest.raises(UserError, match="is neither a recipe nor a search space"):
        upgrade(file)
    assert file.read_text() == "name: conda\nchannels: [defaults]\n"


def test_a_recipe_with_a_metric_is_checked_as_a_recipe(mine: Path) -> None:
    mine.write_text(RECIPE.replace("model:", "metric: val/top1\nmodel:"))
    with pytest.raises(UserError) as caught:
        upgrade(mine)
    said = str(caught.value)
    assert said.startswith(f"{mine}:4: metric: unknown key 'metric'") and said.count("\n") == 1


def test_mistakes_that_remain_are_reported(mine: Path) -> None:
    mine.write_text(RECIPE.replace("lr: 1e-3", "learning_rate: 1e-3"))
    with pytest.raises(UserError) as caught:
        upgrade(mine)
    assert f"{mine}:6: optimizer.learning_rate: unknown key" in str(caught.value)
    assert "global_batch_size: 8" in mine.read_text()


def test_a_space_without_a_recipe_is_checked_by_itself(tmp_path: Path) -> None:
    space = tmp_path / "space.yaml"
    space.write_text(SPACE.replace("recipe: my.yaml\n", ""))
    assert upgrade(space) == 0
    space.write_text(space.read_text().replace("trials: 2", "trials: 0"))
    with pytest.raises(UserError, match=r"budget\.trials"):
        upgrade(space)


def test_a_link_stays_a_link(mine: Path) -> None:
    link = mine.with_name("link.yaml")
    link.symlink_to(mine)
    assert upgrade(link) == 0
    assert link.is_symlink() and "version: 2" in mine.read_text()


def test_a_disk_that_is_full(mine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing of a half-written file is left."""

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(UserError, match="cannot be written: No space left on device"):
        upgrade(mine)
    assert mine.read_text() == RECIPE and list(mine.parent.iterdir()) == [mine]


def test_the_script(mine: Path) -> None:
    """Exit codes, without a traceback and without torch."""
    command = [sys.executable, "-X", "importtime", "pipelines/recipe.py", "upgrade", str(mine)]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0 and "global_batch_size" in done.stdout
    assert not {"torch", "ray", "mlflow"} & {line.rpartition("|")[2].strip() for line in done.stderr.splitlines()}
    mine.write_text("[]\n")
    done = subprocess.run([*command[:1], *command[3:]], cwd=REPOSITORY, capture_output=True, text=True, timeout=60,
                          check=False)  # fmt: skip
    assert done.returncode == 2 and "neither a recipe nor a search space" in done.stderr
    assert "Traceback" not in done.stderr and mine.read_text() == "[]\n"
