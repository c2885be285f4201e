"""A training on paper: its arithmetic by hand, where its metrics are from, and what it refuses."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from scalablevit.cli import plan
from scalablevit.cli.tree import parse
from scalablevit.config.data import Shapes
from scalablevit.config.errors import UserError
from scalablevit.config.loading import load_recipe
from scalablevit.data.shapes import write_shapes
from scalablevit.pipeline.prediction import PredictionInputs, predict
from scalablevit.training.memory_estimate import MemoryEstimate

TINY = Path(__file__).parents[1] / "end_to_end" / "tiny.yaml"
IMAGENET = Path(__file__).parents[2] / "pipelines" / "recipes" / "imagenet_scalablevit_small.yaml"
MEMORY = MemoryEstimate(weights=1000, gradients=900, moments=1800, average=1000, activations=5000)


def run(root: Path, *arguments: str) -> int:
    return plan.run(parse("plan", ["--recipe", str(TINY), "--stage", "pretrain", "--root", str(root), *arguments]))


def test_arithmetic_by_hand():
    overrides = ["training.epochs=2", "training.steps=null", "training.global_batch_size=16", "cluster.workers=4",
                 "training.evaluate_every={steps: 6}", "training.checkpoint_every={steps: 4}",
                 "training.keep={last: 2, best: 1}"]  # fmt: skip
    stage = load_recipe(TINY, overrides).stages["pretrain"]
    given = PredictionInputs(devices=4, train_images=160, val_images=30, step_s=0.5, step_images=2, bandwidth_gb_s=9e-7,
                  decoded_per_s=4.0, price_per_hour=3.0)  # fmt: skip
    found = predict(stage, given, MEMORY)
    assert found.steps == 20
    assert (found.images_per_device, found.compute_s) == (4, 1.0)
    assert (found.exchange_bytes, found.exchange_s) == (1350, pytest.approx(1.5))  # 2 x 3/4 x 900, at 900 bytes/s
    assert found.efficiency == pytest.approx(0.4)
    assert found.images_per_s == pytest.approx(6.4)
    assert found.training_hours == pytest.approx(20 * 2.5 / 3600)
    assert found.evaluations == 4  # 6, 12, 18, 20
    assert found.evaluation_hours == pytest.approx(4 * 8 * 0.25 / 3 / 3600)  # 8 of 30 images on the fullest device
    assert found.checkpoints == 7  # also at 4, 8, 16; 12 and 20 once
    assert found.checkpoint_traffic_bytes == 7 * 3800
    assert found.checkpoint_storage_bytes == 4 * 3800
    assert found.decode_cores == pytest.approx(1.6)
    assert found.cost == pytest.approx(3.0 * 4 * found.hours)
    alone = predict(stage, replace(given, devices=1, decoded_per_s=None, price_per_hour=None), MEMORY)
    assert (alone.exchange_bytes, alone.efficiency, alone.decode_cores, alone.cost) == (0, 1.0, None, None)


def test_a_paper_recipe_without_its_data(tmp_path, capsys):
    file = tmp_path / "plan.json"
    arguments = ["--recipe", str(IMAGENET), "--root", str(tmp_path), "--devices", "16", "--step-s", "0.2",
                 "--step-images", "128", "--decode-rate", "700", "--price", "2", "--json", str(file),
                 "model.name=scalablevit_tiny", "model.options={}"]  # fmt: skip
    assert plan.run(parse("plan", arguments)) == 0
    told, metrics = capsys.readouterr().out, json.loads(file.read_text())
    assert told.startswith("prediction for imagenet_scalablevit_small, stage pretrain: nothing of this has been run")
    assert "1281167 training and 50000 validation images, 1000 classes: as imagenet is published" in told
    assert "16 x GPU, 64 images each in a step, 64 at a time" in told
    assert "assumes a ring at 10 GB/s" in told
    assert metrics["prediction"]["steps"] == 375_342
    assert metrics["prediction"]["compute_s"] == pytest.approx(0.1)
    assert metrics["prediction"]["images_per_s"] < 1024 / 0.1
    assert metrics["given"]["classes"] == 1000
    assert metrics["memory_bytes"]["total"] > metrics["memory_bytes"]["checkpoint"] > 0


def test_measured_on_this_machine_where_the_data_is(tmp_path, capsys):
    write_shapes(Shapes(train_images=12, val_images=6, image_size=64), tmp_path / "data")
    file = tmp_path / "plan.json"
    overrides = ["data.root=data", "data.shapes=null", "training.global_batch_size=4", "cluster.workers=2"]
    assert run(tmp_path, "--measure", "--devices", "1", "--json", str(file), *overrides) == 0
    told, metrics = capsys.readouterr().out, json.loads(file.read_text())
    assert f"12 training and 6 validation images, 6 classes: counted in {tmp_path / 'data'}" in told
    assert "measured here on 1 CPU thread: median of 10" in told
    assert metrics["prediction"]["compute_s"] == metrics["given"]["step_s"] > 0
    assert metrics["prediction"]["decode_cores"] > 0


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "--step-s: no step time"),
        (["--step-s", "1", "--measure"], "--step-s: given and to be measured at once"),
        (["--step-s", "nan"], "--step-s: must be a number above 0, not nan"),
        (["--step-s", "1", "--devices", "0"], "--devices: must be at least 1, not 0"),
        (["--step-s", "1", "--devices", "17"], "is less than cluster.workers x"),
        (["--step-s", "1", "--bandwidth", "0"], "--bandwidth: must be a number above 0, not 0"),
        (["--step-s", "1", "--stage", "nothing"], "--stage: no stage 'nothing' in recipe tiny"),
        (["--step-s", "1", "--json", "not/there.json"], "--json: no folder not"),
        (["--step-s", "1", "data.shapes=null", "--classes", "3"], "fix: give --train-images, --val-images"),
    ],
)
def test_what_is_refused(arguments, said, tmp_path):
    with pytest.raises(UserError) as caught:
        run(tmp_path, *arguments)
    assert said in str(caught.value)


def test_a_recipe_of_several_stages_needs_a_name(tmp_path):
    with pytest.raises(UserError, match="recipe tiny has several stages") as caught:
        plan.run(parse("plan", ["--recipe", str(TINY), "--root", str(tmp_path), "--step-s", "1"]))
    assert caught.value.fix == "name one of pretrain, segment, detect"


def test_a_gpus_step_is_not_measured_on_a_cpu(tmp_path, monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with pytest.raises(UserError, match="the recipe computes on GPUs"):
        run(tmp_path, "--measure", "cluster.gpus_per_worker=1")
