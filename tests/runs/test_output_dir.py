"""A folder is filled at once or stays as it was, and nothing that was written is lost on the way."""

import os
from pathlib import Path

import pytest

from scalablevit.config.errors import UserError
from scalablevit.runs import output_dir
from scalablevit.runs.output_dir import refuse_unusable, write_folder


@pytest.fixture
def out(tmp_path: Path) -> Path:
    """An earlier answer, `masks/0.png`, and something of the user's."""
    (tmp_path / "out" / "masks").mkdir(parents=True)
    (tmp_path / "out" / "masks" / "0.png").write_text("old")
    (tmp_path / "out" / "mine.txt").write_text("kept")
    return tmp_path / "out"


def write(folder: Path, and_beside: Path | None = None) -> None:
    (folder / "masks").mkdir()
    (folder / "masks" / "1.png").write_text("new")
    if and_beside is not None:
        and_beside.mkdir()
        (and_beside / "theirs").write_text("")


def fail(folder: Path) -> None:
    write(folder)
    raise ValueError("within")


def contents(folder: Path) -> dict[str, str]:
    return {str(path.relative_to(folder)): path.read_text() for path in folder.rglob("*") if path.is_file()}


def test_what_is_replaced_gives_way_and_the_rest_stays(out):
    with write_folder(out, ("masks", "labels.csv")) as made:
        write(made)
        assert (out / "masks" / "0.png").exists()
    assert contents(out.parent) == {"out/masks/1.png": "new", "out/mine.txt": "kept"}


def test_an_interrupt_while_the_old_is_removed_loses_nothing_new(out, monkeypatch, capsys):
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(output_dir.shutil, "rmtree", interrupted)
    with pytest.raises(KeyboardInterrupt), write_folder(out, ("masks",)) as made:
        write(made)
    assert contents(out)["masks/1.png"] == "new" and not (out / "masks" / "0.png").exists()
    assert str(made) in capsys.readouterr().err


def test_what_cannot_take_its_place_is_kept_and_named(out):
    """`masks` is not among what is replaced."""
    with pytest.raises(UserError, match="cannot write") as failed, write_folder(out, ("mine.txt",)) as made:
        write(made)
    assert str(made) in failed.value.fix
    found = contents(out)
    assert found.pop("masks/0.png") == "old" and sorted(found.values()) == ["kept", "new"]


def test_a_folder_that_appears_meanwhile_is_left_alone(tmp_path):
    with pytest.raises(UserError, match="cannot write") as failed, write_folder(tmp_path / "out") as made:
        write(made, and_beside=tmp_path / "out")
    assert str(made) in failed.value.fix and contents(made) == {"masks/1.png": "new"}


@pytest.mark.parametrize("name", ["out", "new/out"])
def test_a_block_that_fails_leaves_all_as_it_was(out, name):
    before = contents(out.parent)
    with pytest.raises(ValueError, match="within"), write_folder(out.parent / name, ("masks",)) as made:
        fail(made)
    assert contents(out.parent) == before and not made.exists()


def test_a_folder_that_is_there_needs_no_writable_one_around_it(out, monkeypatch):
    """As a mounted one of a container has none."""
    access = os.access
    around = out.parent
    monkeypatch.setattr(os, "access", lambda path, mode: access(path, mode) and (mode == os.F_OK or path != around))
    refuse_unusable(out)
    with pytest.raises(UserError, match="no folder that can be written to"):
        refuse_unusable(around / "new")
    with write_folder(out) as made:
        assert made.is_relative_to(out)


@pytest.mark.parametrize("name", ["out", "new", "deep/new"])
def test_what_a_killed_run_left_is_named(out, name):
    place = out.parent / name
    refuse_unusable(place)
    killed = write_folder(place)
    left = killed.__enter__()
    with pytest.raises(UserError, match=r"\.partial-") as refused:
        refuse_unusable(place)
    assert str(left) in str(refused.value)
