"""A search's command line, as far as it comes without Ray."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from scalablevit.cli import main

ROOT = Path(__file__).resolve().parents[2]


def tune(*arguments):
    command = [sys.executable, str(ROOT / "pipelines" / "tune.py"), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--space", "nowhere.yaml"], ["nowhere.yaml"]),
        (["space.metric=val/top"], ["val/top", "did you mean 'val/top", "space.metric=val/top"]),
        (["space.parameters.optimizer.lrr={uniform: [0, 1]}"], ["lrr", "did you mean 'lr'"]),
        (["space.budget.trials=0", "space.searcher=best"], ["budget.trials", "got 0", "searcher"]),
        (["optimizer.lr=-1"], ["optimizer.lr", "-1"]),
    ],
)
def test_a_mistake_is_named_before_anything_starts(arguments, expected, tmp_path):
    done = tune("--root", tmp_path, *arguments)
    assert done.returncode == 2 and "Traceback" not in done.stderr, done.stderr
    for part in expected:
        assert part in done.stderr
    assert not (tmp_path / "runs").exists()


def test_the_dry_run_shows_the_plan_and_starts_nothing(tmp_path, capsys):
    """In this process, as below: what the model costs takes ten seconds of imports."""
    shapes = "data.shapes={train_images: 18, val_images: 12, image_size: 48}"
    code = main("tune", ["--root", str(tmp_path), "--dry-run", shapes, "training.global_batch_size=4",
                              "stages.pretrain.data.image_size=32"])  # fmt: skip
    said = capsys.readouterr()
    assert code == 0, said.err
    assert "16, searcher tpe, seed 0" in said.out and "asha: none is stopped before epoch 1" in said.out
    assert not (tmp_path / "runs").exists()


def test_resume_refuses_a_search_that_was_not_begun_before_anything_starts(tmp_path, capsys):
    """Also in the dry run; when it was begun, the dry run passes."""
    shapes = "data.shapes={train_images: 18, val_images: 12, image_size: 48}"
    arguments = ["--root", str(tmp_path), "--dry-run", "--resume", shapes, "training.global_batch_size=4",
                 "stages.pretrain.data.image_size=32"]  # fmt: skip
    code, refused = main("tune", arguments), capsys.readouterr().err
    assert code == 2 and "there is nothing to resume" in refused, refused
    assert not (tmp_path / "runs").exists()
    folder = Path(refused.strip().partition(": ")[0])
    assert folder.parent == tmp_path / "runs"
    folder.mkdir(parents=True)
    (folder / "trials.json").write_text("[]")
    code, said = main("tune", arguments), capsys.readouterr()
    assert code == 0 and "dry run" in said.out, said.err


def test_another_recipe_may_take_the_spaces_place(tmp_path):
    """Here one without the space's stage, which shows that the recipe was read."""
    done = tune("--root", tmp_path, "--dry-run", "--recipe", ROOT / "pipelines" / "recipes" / "coco_subset.yaml",
                "optimizer.lr=1e-4")  # fmt: skip
    assert done.returncode == 2 and "no stage 'pretrain'" in done.stderr and "detect" in done.stderr, done.stderr


def test_a_recipe_names_its_search(tmp_path, capsys):
    """`tune:` of full.py: the space is held against the running recipe, beside which it lies."""
    recipe = {
        "name": "own", "tune": "space.yaml",
        "data": {"source": "image_folder", "root": "demo-data", "train": {"images": "classification/train"},
                 "val": {"images": "classification/val"}, "image_size": 32, "eval_resize": 32,
                 "shapes": {"train_images": 18, "val_images": 12, "image_size": 48}},
        "model": {"name": "scalablevit_tiny"}, "task": {"kind": "classification"}, "optimizer": {"lr": 1e-3},
        "training": {"steps": 4, "global_batch_size": 4},
    }  # fmt: skip
    space = {"metric": "val/top1", "budget": {"trials": 3}, "parameters": {"optimizer.lr": {"uniform": [1e-4, 1e-2]}}}
    (tmp_path / "own.yaml").write_text(json.dumps(recipe))
    (tmp_path / "space.yaml").write_text(json.dumps(space))
    arguments = ["--recipe", str(tmp_path / "own.yaml"), "--root", str(tmp_path / "root"), "--dry-run"]
    code, said = main("full", arguments), capsys.readouterr()
    assert code == 0, said.err
    assert "search space" in said.out and "3, searcher random" in said.out
    (tmp_path / "space.yaml").write_text(json.dumps({**space, "metric": "val/miou"}))
    code, said = main("full", arguments), capsys.readouterr()
    assert code == 2 and "space.yaml" in said.err and "val/miou" in said.err
