"""Models evaluated on data whose classes come in another order, and of which only the validation split is there."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from harness.toys import finished_run, make_root, stage_of
from PIL import Image

from scalablevit.cli import evaluate
from scalablevit.cli.tree import parse
from scalablevit.config.errors import TrainingFailed, UserError
from scalablevit.config.recipe import Stage
from scalablevit.config.task_info import TASKS
from scalablevit.data.sources.opening import open_source
from scalablevit.pipeline import cluster
from scalablevit.serving.score import score
from scalablevit.training import launch
from scalablevit.training.data_listing import store_listings
from scalablevit.training.worker import WorkerConfig, run

SIZED = "stages.detect.task.score_threshold=0.0"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return make_root(tmp_path / "root")


def config_of(root: Path, name: str) -> dict:
    return json.loads((root / "runs" / name / "model" / "config.json").read_text())


def metrics(root: Path, stage: Stage, run_name: str, classes: list[str]) -> dict[str, float]:
    """What the workers of `evaluate.py` compute."""
    weights = str(root / "runs" / run_name / "model" / "weights.safetensors")
    listed = root / "listed"
    store_listings(str(listed), {"val": open_source(stage.data, "val", root, classes)})
    worker_config = WorkerConfig(
        stage.model_dump_json(), "", str(root), weights, evaluate_only=True, data_listing=str(listed)
    )
    result = run(worker_config, 0, 1, torch.device("cpu"), lambda records, node: None)
    assert result.error is None, result
    return result.metrics


def reverse_masks(root: Path) -> list[str]:
    """Number the classes of the masks the other way round, in masks and list."""
    base = root / "data" / "segmentation"
    names = (base / "classes.txt").read_text().split()
    for file in (base / "annotations" / "val").iterdir():
        Image.fromarray(len(names) - 1 - np.asarray(Image.open(file))).save(file)
    (base / "classes.txt").write_text("\n".join(reversed(names)))
    return names


def reverse_categories(root: Path) -> list[str]:
    """Give the categories ids in the other order."""
    file = root / "data" / "detection" / "annotations" / "instances_val.json"
    tree = json.loads(file.read_text())
    ids = [each["id"] for each in tree["categories"]]
    new = dict(zip(ids, reversed(ids), strict=True))
    for each in tree["categories"]:
        each["id"] = new[each["id"]]
    for each in tree["annotations"]:
        each["category_id"] = new[each["category_id"]]
    file.write_text(json.dumps(tree))
    return [each["name"] for each in tree["categories"]]


def remove_training(root: Path) -> None:
    for folder in root.glob("data/*/**/train"):
        shutil.rmtree(folder)
    (root / "data/detection/annotations/instances_train.json").unlink()


@pytest.mark.parametrize(("name", "change"), [("segment", reverse_masks), ("detect", reverse_categories)])
def test_another_order_of_the_datas_classes_gives_the_same_metrics(
    root: Path, name: str, change: Callable[[Path], list[str]]
) -> None:
    overrides = [SIZED] if name == "detect" else []
    made, stage = finished_run(root, name, *overrides), stage_of(name, *overrides)
    classes = config_of(root, made)["classes"]
    wanted = metrics(root, stage, made, classes)
    assert sorted(change(root)) == sorted(classes)
    remove_training(root)
    assert metrics(root, stage, made, classes) == wanted
    assert any(value > 0 for value in wanted.values())
    if name == "segment":  # an untrained detector finds nothing in any order: of that, tests/data/test_coco.py
        assert metrics(root, stage, made, classes[::-1]) != wanted, "the order matters"
    weights = str(root / "runs" / made / "model" / "weights.safetensors")
    metric = {"segment": "miou", "detect": "box_ap"}[name]
    scored = score(stage.model_dump_json(), classes, weights, str(root), metric, 1, str(root / "listed"))
    assert len(scored.per_sample.indices) == 12


def test_a_model_whose_classes_are_not_sorted_is_right_on_class_folders(root: Path) -> None:
    made, stage = finished_run(root, "pretrain"), stage_of("pretrain")
    folder = root / "runs" / made / "model"
    classes = config_of(root, made)["classes"]
    wanted = metrics(root, stage, made, classes)
    order = np.random.default_rng(0).permutation(len(classes))
    tensors = safetensors.torch.load_file(folder / "weights.safetensors")
    head = [key for key in tensors if "head" in key and tensors[key].shape[0] == len(classes)]
    assert head
    for key in head:
        tensors[key] = tensors[key][order].contiguous()
    safetensors.torch.save_file(tensors, folder / "weights.safetensors")
    remove_training(root)
    found = metrics(root, stage, made, [classes[i] for i in order])
    assert found == pytest.approx(wanted, abs=1e-6)


def test_the_command_needs_the_validation_split_alone(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    made = finished_run(root, "segment")
    reverse_masks(root)
    remove_training(root)
    assert evaluate.run(parse("evaluate", [made, "--root", str(root), "--dry-run"])) == 0
    said = capsys.readouterr().out
    assert "12 validation samples" in said and "training" not in said


def test_other_class_names_are_refused_with_both_lists(root: Path) -> None:
    made = finished_run(root, "pretrain")
    classes = config_of(root, made)["classes"]
    (root / "data/classification/val" / classes[0]).rename(root / "data/classification/val/zebra")
    with pytest.raises(UserError) as caught:
        evaluate.run(parse("evaluate", [made, "--root", str(root), "--dry-run"]))
    message = str(caught.value)
    assert f"the data has the classes {', '.join(classes[1:])}, zebra; the model has {', '.join(classes)}" in message
    assert f"only the data has zebra; only the model has {classes[0]}" in message


def test_the_command_says_what_its_metrics_leave_out(root: Path, capsys, monkeypatch, tmp_path: Path) -> None:
    """And every node must see the weights and the folder of the listing, which need not be those of run storage."""
    made, document = finished_run(root, "pretrain"), tmp_path / "metrics.json"
    cut = next((root / "data/classification/val").rglob("*.jpg"))
    cut.write_bytes(cut.read_bytes()[:-20])
    needed: list[str] = []

    def connect(stages, _root, *, files):
        assert all(Path(path).exists() for path in files)
        assert [stage.stage.cluster.storage for stage in stages] == [None], "nobody need be able to write there"
        needed.extend(files)

    monkeypatch.setattr(cluster, "connect", connect)
    in_process = lambda _stage, config, *_: run(config, 0, 1, torch.device("cpu"), lambda records, node: None)  # noqa: E731
    monkeypatch.setattr(launch, "launch", in_process)
    given = [
        made,
        "--root",
        str(root),
        "data.max_bad_fraction=0.1",
        "cluster.storage=/read/only",
        "--json",
        str(document),
    ]
    assert evaluate.run(parse("evaluate", given)) == 0
    said = capsys.readouterr().out
    assert ["val/bad_samples", "1"] in map(str.split, said.splitlines())
    assert "\n1 of 12 validation samples could not be decoded: no metric has them\n" in said
    assert "  seen        not compared with what it was trained on: its run has no listing of that\n" in said
    assert json.loads(document.read_text())["val/bad_samples"] == 1
    assert [Path(path).name for path in needed[:1]] == ["weights.safetensors"]
    assert Path(needed[1]).parent == root / "runs" and not Path(needed[1]).exists()


def test_a_failed_evaluation_promises_no_checkpoint() -> None:
    message = str(TrainingFailed("", "a worker died"))
    assert "the same command begins it again" in message and "checkpoint" not in message


def test_of_many_classes_the_best_and_the_worst_are_printed():
    classes = {f"val/box_ap/c{number}": number / 100 for number in range(30)}
    kept, folded = evaluate._fold_classes({"val/box_ap": 0.1, **classes}, TASKS["detection"])
    ends = [*range(evaluate.SHOWN_CLASSES), *range(30 - evaluate.SHOWN_CLASSES, 30)]
    assert list(kept) == ["val/box_ap", *(f"val/box_ap/c{number}" for number in ends)] and folded == 10
    few = dict(list(classes.items())[:20])
    assert evaluate._fold_classes(few, TASKS["detection"]) == (few, 0)
