"""The check of a recipe's data: every bad sample named with its reason, and what to do next."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

from scalablevit.cli import check_data, pack
from scalablevit.cli.tree import parse
from scalablevit.config.errors import UserError
from scalablevit.config.loading import load_recipe
from scalablevit.inspection import check
from scalablevit.pipeline.resolve import resolve

ROOT = Path(__file__).resolve().parents[2]
SIDE = 64


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A platform root with eight images in each split of an image folder."""
    draws = np.random.default_rng(0)
    for split in ("train", "val"):
        for name in ("cat", "dog"):
            (tmp_path / "set" / split / name).mkdir(parents=True)
            for number in range(4):
                noise = draws.integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8)  # no image twice
                Image.fromarray(noise).save(tmp_path / "set" / split / name / f"{number}.jpg")
    return tmp_path


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    tree = {
        "name": "r",
        "data": {"source": "image_folder", "root": "set", "train": {"images": "train"}, "val": {"images": "val"}},
        "model": {"name": "resnet18"},
        "task": {"kind": "classification"},
        "optimizer": {"lr": 0.1},
        "training": {"epochs": 1, "global_batch_size": 4},
    }
    path = tmp_path / "r.yaml"
    path.write_text(yaml.safe_dump(tree))
    return path


def run(recipe: Path, root: Path, *arguments: str) -> int:
    return check_data.run(parse("check-data", ["--recipe", str(recipe), "--root", str(root), *arguments]))


def cut(file: Path) -> None:
    content = file.read_bytes()
    file.write_bytes(content[: len(content) * 2 // 3])


def test_sound_data_in_both_modes(root, recipe, capsys):
    assert run(recipe, root) == 0
    said = capsys.readouterr().out
    assert "r" in said and "pretrain/train: 8 samples" in said and "pretrain/val: 8 samples" in said
    assert f"Nothing bad. Next: python pipelines/full.py --recipe {recipe} --root {root} --dry-run" in said
    assert run(recipe, root, "--quick") == 0
    assert "without --quick" in capsys.readouterr().out


def test_every_bad_sample_is_named_with_its_reason(root, recipe, capsys):
    for number in range(4):
        (root / f"set/train/cat/{number}.jpg").write_text("<html>")
    for number in range(2, 4):
        cut(root / f"set/val/dog/{number}.jpg")
    assert run(recipe, root) == 1
    said = capsys.readouterr().out
    for number in range(4):
        assert f"{root}/set/train/cat/{number}.jpg\tnot an image" in said
    assert f"{root}/set/val/dog/3.jpg\tthe file is cut short" in said
    assert "pretrain/train: 4 samples cannot be read (0.5 of them, above data.max_bad_fraction 0.01)" in said
    assert "6 bad samples. Correct or replace" in said


def test_below_the_threshold_is_said(root, recipe, capsys):
    cut(root / "set/train/cat/0.jpg")
    assert run(recipe, root, "data.max_bad_fraction=0.2") == 1
    assert "not above data.max_bad_fraction 0.2): training leaves them out" in capsys.readouterr().out


def test_headers_do_not_show_what_decoding_does(root, recipe, capsys):
    cut(root / "set/train/cat/0.jpg")
    assert run(recipe, root, "--quick") == 0
    assert "All headers are sound" in capsys.readouterr().out
    assert run(recipe, root) == 1


def test_a_decoded_file_is_not_decoded_again(root, recipe, capsys, monkeypatch):
    cut(root / "set/train/cat/0.jpg")
    assert run(recipe, root) == 1
    first = capsys.readouterr().out
    monkeypatch.setattr(check, "_pool", None)  # whoever decodes anything fails
    assert run(recipe, root) == 1
    assert capsys.readouterr().out == first
    with pytest.raises(TypeError):
        run(recipe, root, "--again")


def test_a_check_again_replaces_the_kept_result(root, recipe, capsys):
    assert run(recipe, root) == 0
    files = sorted((root / "cache/checks").iterdir())
    for file in files:
        verdict = {"path": "cat/0.jpg", "reason": "cannot be read: Stale file handle"}
        file.write_text(json.dumps(json.loads(file.read_text()) | {"unreadable": [verdict]}))
    assert run(recipe, root) == 1
    assert "Stale file handle" in capsys.readouterr().out
    assert run(recipe, root, "--again") == 0
    assert run(recipe, root) == 0
    assert "Stale file handle" not in capsys.readouterr().out
    assert sorted((root / "cache/checks").iterdir()) == files


def test_what_keeps_a_split_from_being_listed_does_not_hide_the_other(root, recipe, capsys):
    cut(root / "set/train/cat/0.jpg")
    for file in (root / "set/val/dog").iterdir():
        file.unlink()
    with pytest.raises(UserError, match="1 class folders"):
        run(recipe, root)
    assert "train/cat/0.jpg\tthe file is cut short" in capsys.readouterr().out


def test_what_the_splits_hold_is_a_table_and_warnings_are_lines(root, recipe, capsys):
    shutil.copy(root / "set/train/cat/0.jpg", root / "set/train/cat/notes.txt")
    for number in range(90):
        file = root / f"set/train/dog/many{number}.png"
        Image.fromarray(np.full((8, 8, 3), number, np.uint8)).save(file)
    assert run(recipe, root) == 0
    said = capsys.readouterr().out
    rows = [line.split("  ") for line in said.splitlines()]
    rows = [[cell.strip() for cell in row if cell] for row in rows]
    for row in (["images", "98", "8"], ["images of cat", "4", "4"], ["images of dog", "94", "4"],
                ["left out: .txt", "1 (cat/notes.txt)"], ["also in training", "0 of 8"]):  # fmt: skip
        assert row in rows, said
    assert "pretrain: warning: train: 1 of 2 classes have less than a tenth" in said
    assert "Nothing is refused; warnings: 1. Next:" in said


def test_what_a_dry_run_refuses_is_refused_with_the_same_words(root, recipe, capsys):
    shutil.copy(root / "set/train/cat/0.jpg", root / "set/val/dog/copy.jpg")
    cut(root / "set/val/dog/3.jpg")
    with pytest.raises(UserError) as checked:
        run(recipe, root)
    said = capsys.readouterr().out
    assert "dog/3.jpg\tthe file is cut short" in said and "1 of 9" in said, "all is printed before"
    with pytest.raises(UserError) as planned:
        resolve(load_recipe(recipe, ["data.max_bad_fraction=0.5"]), root)
    assert "1 of 9 validation images are training images" in str(planned.value)
    assert str(planned.value) == f"stage pretrain: {checked.value}"
    assert run(recipe, root, "data.max_shared_fraction=0.2", "--quick") == 0
    assert "Warnings: 1." in capsys.readouterr().out


def test_tar_shards(root, recipe, capsys):
    for split in ("train", "val"):
        assert pack.run(parse("pack", [str(root / "set" / split), str(root / "packed" / split)])) == 0
    shards = ["data.source=tar_shards", "data.root=packed"]
    assert run(recipe, root, "--quick", *shards) == 0
    assert "pretrain/train: 8 samples, 0 other files" in capsys.readouterr().out
    cut(root / "packed/val/000000.tar")
    with pytest.raises(UserError, match=f"1 shards are damaged: {root}/packed/val/000000.tar has"):
        run(recipe, root, *shards)


def test_stages_on_the_same_data_are_checked_once(root, recipe, capsys):
    tree = yaml.safe_load(recipe.read_text())
    recipe.write_text(yaml.safe_dump(tree | {"stages": {"one": {}, "two": {}}}))
    assert run(recipe, root, "--quick") == 0
    said = capsys.readouterr().out
    assert said.count("8 samples") == 2 and "one/train" in said and "two/train" not in said


def test_names_of_any_bytes_can_be_printed(root, recipe):
    """Through the script: its output is a pipe of strict UTF-8."""
    cut(root / "set/train/cat/0.jpg")
    odd = b"\xe4 \x1b[2J\n\xc3\xa9.jpg"
    (root / "set/train/cat/0.jpg").rename(root / "set/train/cat" / odd.decode(errors="surrogateescape"))
    done = subprocess.run(
        [sys.executable, ROOT / "pipelines/check_data.py", "--recipe", recipe, "--root", root, "--quick",
         "data.max_pixels=1000"],
        capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == 1, done.stderr
    assert r"set/train/cat/\udce4 \x1b[2J\né.jpg" in done.stdout
    assert "16 bad samples" in done.stdout


@pytest.mark.parametrize("mistake", [["data.rooot=x"], ["data.root=nowhere"], ["--recipe", "nowhere.yaml"]])
def test_a_users_mistake_is_exit_code_2(root, recipe, mistake):
    done = subprocess.run(
        [sys.executable, ROOT / "pipelines/check_data.py", "--recipe", recipe, "--root", root, *mistake],
        capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == 2
    assert "Traceback" not in done.stderr and "fix:" in done.stderr


def test_pixel_formats_are_warned_about_and_colour_masks_get_true_advice(root, recipe, capsys):
    for number in range(4):
        Image.fromarray(np.full((SIDE, SIDE), 4095, np.uint16)).save(root / f"set/train/cat/deep{number}.png")
    Image.new("RGBA", (SIDE, SIDE)).save(root / "set/val/dog/clear.png")
    assert run(recipe, root) == 0
    said = capsys.readouterr().out
    assert "pretrain: warning: train: 4 of 4 images of 16 or 32 bits that were looked at may become too dark" in said
    assert "values up to 4095 in a 16-bit file: mean 16.0 of 255 after scaling by 65535" in said
    assert "pretrain: warning: val: 1 of 9 images: transparent pixels" in said
    (root / "set/masks").mkdir()
    for file in (root / "set/val/cat").iterdir():
        Image.new("RGB", (SIDE, SIDE), (128, 0, 0)).save(root / "set/masks" / f"{file.stem}.png")
    tree = yaml.safe_load(recipe.read_text())
    split = {"images": "val/cat", "masks": "masks"}
    tree["data"] |= {"source": "mask_pairs", "classes": ["a", "b"], "train": split, "val": dict(split)}
    tree["data"] |= {"max_shared_fraction": 1.0}
    tree["task"] = {"kind": "segmentation", "head": "semantic_fpn"}
    recipe.write_text(yaml.safe_dump(tree))
    assert run(recipe, root) == 1
    said = capsys.readouterr().out
    assert "coded by colour: 1 distinct colours, (128, 0, 0)" in said
    assert "4 masks do not fit: training refuses them; write masks with one channel of class ids" in said
