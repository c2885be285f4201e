"""The packing script: what it says, and what it refuses."""

import shutil
from pathlib import Path

import pytest
from PIL import Image

from scalablevit.cli import pack
from scalablevit.cli.exit_codes import run_command
from scalablevit.cli.tree import parse
from scalablevit.config.errors import UserError


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("cat", "dog"):
        (tmp_path / "plain" / name).mkdir(parents=True)
        Image.new("RGB", (40, 30)).save(tmp_path / "plain" / name / "1.jpg")
    (tmp_path / "plain/cat/notes.txt").write_text("x")
    return tmp_path / "plain"


def run(*arguments: object) -> int:
    return pack.run(parse("pack", [str(argument) for argument in arguments]))


def test_dry_run_then_packing(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(folder, tmp_path / "new/made", "--dry-run", "--short-side", "16") == 0
    said = capsys.readouterr().out
    assert "2 images of 2 classes" in said and "1 other files left out" in said and "nothing was written" in said
    assert [path.name for path in tmp_path.iterdir()] == ["plain"]
    assert run(folder, tmp_path / "new/made") == 0
    assert "2 samples in 1 shards" in capsys.readouterr().out
    assert sorted(path.name for path in (tmp_path / "new/made").iterdir()) == ["000000.tar", "index.json"]


def test_images_without_a_class_are_named(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.copy(folder / "cat/1.jpg", folder / "lost.jpg")
    assert run(folder, tmp_path / "made") == 0
    said = capsys.readouterr().out
    assert "2 other files left out: 1 .jpg (lost.jpg), 1 .txt (cat/notes.txt)" in said
    assert "note: 1 images beside the class folders have no class and are left out: lost.jpg\n" in said
    assert "2 samples in 1 shards" in said


def test_what_cannot_be_packed(folder: Path, tmp_path: Path) -> None:
    for source, target, message in (
        (tmp_path / "gone", tmp_path / "made", "no folder"),
        (tmp_path / ("x" * 300), tmp_path / "made", "File name too long"),
        (folder / "cat", tmp_path / "made", "holds no class folders"),
        (folder, folder, "exists"),
    ):
        with pytest.raises(UserError, match=message) as caught:
            run(source, target)
        assert caught.value.fix


@pytest.mark.parametrize("target", ["plain/made", "plain/cat/new/made", "alias/made"])
def test_shards_do_not_get_among_the_images(folder: Path, tmp_path: Path, target: str) -> None:
    (tmp_path / "alias").symlink_to(folder)
    with pytest.raises(UserError, match="is in FOLDER") as caught:
        run(folder, tmp_path / target)
    assert caught.value.where == "TARGET" and caught.value.fix
    assert sorted(path.name for path in folder.rglob("*")) == ["1.jpg", "1.jpg", "cat", "dog", "notes.txt"]


def test_a_folder_one_level_too_high_is_noted(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run(folder, tmp_path / "made", "--dry-run")
    assert "too high" not in capsys.readouterr().out
    for split in ("train", "val"):
        shutil.copytree(folder, tmp_path / "splits" / split)
    run(tmp_path / "splits", tmp_path / "made", "--dry-run")
    assert "train, val hold only folders: is FOLDER one level too high?" in capsys.readouterr().out


def test_a_mistake_is_exit_code_2(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_command(lambda: run(tmp_path / "gone", tmp_path / "made")) == 2
    assert "Traceback" not in capsys.readouterr().err
    with pytest.raises(SystemExit) as caught:
        run(folder, tmp_path / "made", "--quality", "101")
    assert caught.value.code == 2
