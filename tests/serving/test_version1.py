"""What version 1 really wrote (tests/data/version1): evaluated, predicted, promoted, reported, replayed, begun from."""

import hashlib
import json
import re
import shutil
from pathlib import Path
from types import SimpleNamespace

import pandas as pd
import pytest
import safetensors.torch
import torch
from mlflow import MlflowClient
from PIL import Image

from scalablevit.cli import evaluate, predict, promote, replay, report, runs
from scalablevit.cli.tree import parse
from scalablevit.config.data import Shapes
from scalablevit.config.errors import UserError
from scalablevit.config.loading import load_recipe
from scalablevit.config.rewriting import upgrade_text
from scalablevit.config.space_loading import load_search
from scalablevit.config.upgrade import upgrade
from scalablevit.data.batch import LabelBatch, MaskBatch
from scalablevit.data.shapes import write_shapes
from scalablevit.paper.loaded_models import load_models
from scalablevit.pipeline import plan_summary, search
from scalablevit.pipeline.older_runs import older_runs, older_searches
from scalablevit.pipeline.resolve import check_metric, resolve
from scalablevit.serving.model import ImageModel
from scalablevit.tracking import tags
from scalablevit.tracking.connection import connect
from scalablevit.training.capture import batches_file, unpack_batches

VERSION_1 = Path(__file__).parents[1] / "data" / "version1"
WRITTEN_AT = "/root-of-version-1"
FINISHED, HALF, CAPTURED = "old-pretrain-7341480e100e", "old-pretrain-bd78c92e64c4", "old-pretrain-6fbf3b90bdc9"
JOB, SEARCH = "old-9add1844cdb4", "old-pretrain-search-6d1850dbe084"
(FOUR,) = (path.name for path in (VERSION_1 / "runs").glob("four-pretrain-*"))
LATER = ["training.steps=20000", "training.evaluate_every={steps: 50}"]
"""Overrides of the interrupted run."""


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The root that version 1 left, with its data, at another place."""
    root = tmp_path_factory.mktemp("version1")
    shutil.copytree(VERSION_1, root, dirs_exist_ok=True)
    for path in root.rglob("*"):
        if path.suffix in (".json", ".jsonl", ".yaml") or path.name == "MLmodel":
            path.write_text(path.read_text().replace(WRITTEN_AT, str(root)))
    for found in root.rglob("findings.json"):
        for picture in re.findall(r'"picture": "([^"]+)"', found.read_text()):
            Image.new("RGB", (8, 8)).save(found.with_name(picture))
    write_shapes(Shapes(train_images=32, val_images=16, image_size=32), root / "data")
    shutil.copytree(root / "data", root / "data4")
    for folder in (root / "data4" / "classification").glob("*/*"):
        if folder.name in ("star", "triangle"):
            shutil.rmtree(folder)
    for name in ("old.yaml", "space.yaml"):
        (root / name).write_text(upgrade_text((root / name).read_text(), name)[0])
    return root


@pytest.fixture(scope="module")
def registry(root: Path) -> MlflowClient:
    """The registry with the versions old-pretrain/1 and four-pretrain/1 as candidates."""
    client = connect(f"sqlite:///{root}/mlflow.db")
    model = root / "models" / "old-pretrain"
    shutil.copy(root / "runs" / FINISHED / "model" / "weights.safetensors", model / "artifacts")
    kept = json.loads((model / "tags.json").read_text())
    other = root / "models" / "four-pretrain"
    shutil.copytree(root / "runs" / FOUR / "model", other / "artifacts")
    sums = {name: sha256_of(other / "artifacts" / file) for name, file in (
        (tags.WEIGHTS_SHA256, "weights.safetensors"), (tags.CONFIG_SHA256, "config.json"))}  # fmt: skip
    for folder, written in ((model, kept), (other, kept | sums)):
        run = client.create_run(client.create_experiment(folder.name))
        client.create_registered_model(folder.name)
        client.create_model_version(folder.name, str(folder), run.info.run_id, written, await_creation_for=0)
        client.set_registered_model_alias(folder.name, "candidate", "1")
    return client


def sha256_of(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def test_the_fixture_is_small_and_names_no_machine() -> None:
    files = [path for path in VERSION_1.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) < 600_000
    for path in files:
        if path.suffix != ".safetensors":
            text = path.read_text()
            absolute = set(re.findall(r"""(?:^|[\s"'=])(/[A-Za-z][\w.-]*)/""", text, re.MULTILINE))
            assert absolute <= {"/root-of-version-1"}, path
            assert '"host"' not in text or '"host": "host"' in text


@pytest.mark.parametrize("model", [FINISHED, "models:/old-pretrain@candidate", FOUR, "models:/four-pretrain/1"])
def test_evaluated_up_to_the_cluster(
    root: Path, registry: MlflowClient, model: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Also one whose gate compares top-5 accuracy of four classes, which version 1 took."""
    assert evaluate.run(parse("evaluate", [model, "--root", str(root), "--dry-run"])) == 0
    file = root / "cache" / "plans" / "evaluate.yaml"
    assert f"resolved recipe: {file}\n" in capsys.readouterr().out
    written = file.read_text()
    assert "global_batch_size: 8" in written and "version: 2" in written and "patience: 5" in written
    assert "action: rollback" in written and "on_checkpoint_failure: continue" in written


@pytest.mark.parametrize("model", [FINISHED, "models:/old-pretrain@candidate", FOUR])
def test_predicted(root: Path, registry: MlflowClient, model: str, tmp_path: Path) -> None:
    images = root / ("data4" if model == FOUR else "data") / "classification" / "val"
    arguments = [model, str(images), "--out", str(tmp_path / "out"), "--root", str(root)]
    assert predict.run(parse("predict", arguments)) == 0
    lines = (tmp_path / "out" / "labels.csv").read_text().splitlines()
    assert lines[0] == "file,label,probability,top5"
    assert len(lines) == 1 + len(list(images.rglob("*.jpg")))


def test_promoted(root: Path, registry: MlflowClient, capsys: pytest.CaptureFixture[str]) -> None:
    assert promote.run(parse("promote", ["old-pretrain", "--root", str(root)])) == 0
    assert registry.get_model_version_by_alias("old-pretrain", "champion").version in (1, "1")
    evidence = json.loads(registry.get_model_version("old-pretrain", "1").tags[tags.PROMOTION_EVIDENCE])
    assert (evidence["gate"]["min_value"], evidence["gate"]["require_significance"]) == (0.0, False)
    assert evidence["candidate"]["value"] == pytest.approx(0.1875)  # as version 1 recorded


def test_a_gate_of_top_5_of_four_classes(root: Path, registry: MlflowClient) -> None:
    with pytest.raises(UserError, match="more than five classes; the data has 4") as caught:
        promote.run(parse("promote", ["four-pretrain", "--root", str(root)]))
    assert "promotion.metric=top1" in str(caught.value)
    assert promote.run(parse("promote", ["four-pretrain", "promotion.metric=top1", "--root", str(root)])) == 0


def test_served(root: Path) -> None:
    folder = root / "runs" / FOUR / "model"
    model, context = ImageModel(), SimpleNamespace(
        artifacts={"config": str(folder / "config.json"), "weights": str(folder / "weights.safetensors")}
    )  # fmt: skip
    model.load_context(context)
    image = next((root / "data4").rglob("*.jpg")).read_bytes()
    predictions = model.predict(context, pd.DataFrame([[image]]))
    assert len(predictions["probabilities"][0]) == 4


@pytest.mark.parametrize("run", [JOB, FINISHED, FOUR, HALF, CAPTURED, SEARCH])
def test_reported(root: Path, run: str) -> None:
    page = root / "runs" / run / "report.html"
    page.unlink(missing_ok=True)
    assert report.run(parse("report", [run, "--root", str(root)])) == 0
    text = page.read_text()
    assert "top1" in text
    assert ("top4" in text) == (run == FOUR)  # as it was recorded


def test_listed_and_shown(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert runs.run(parse("runs", ["list", "--root", str(root)])) == 0
    assert runs.run(parse("runs", ["show", HALF, "--root", str(root)])) == 0
    assert "killed" in capsys.readouterr().out


def test_replayed(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder,) = (root / "runs" / CAPTURED).glob("not_finite/step_*")
    assert replay.run(parse("replay", [str(folder)])) == 0
    assert "step 8, 1 rank(s)" in capsys.readouterr().out


def test_captured_batches_have_todays_fields(root: Path) -> None:
    (file,) = (root / "runs" / CAPTURED).glob(f"not_finite/step_*/{batches_file(0)}")
    stored = safetensors.torch.load_file(file)
    (batch,) = unpack_batches(stored, LabelBatch)
    assert batch.samples == 4
    for field, former in ((batch.images, "0/image"), (batch.indices, "0/index"), (batch.labels, "0/label")):
        assert torch.equal(field, stored[former])
    lists = {"0/samples": torch.tensor(2), "0/image/1": torch.ones(1), "0/image/0": torch.zeros(1)}
    (of_lists,) = unpack_batches({**lists, "0/mask": torch.ones(2)}, MaskBatch)
    assert of_lists.images == [torch.zeros(1), torch.ones(1)] and torch.equal(of_lists.masks, torch.ones(2))


def test_looked_into(root: Path) -> None:
    (subject,) = load_models([FINISHED], [], root)
    assert subject.stage.training.global_batch_size == 8
    assert subject.stage.training.ema_warmup is False  # version 1 did not know it


@pytest.mark.parametrize("init", [f"runs/{FINISHED}/model/weights.safetensors", "models:/old-pretrain@candidate"])
def test_started_from(root: Path, registry: MlflowClient, init: str) -> None:
    recipe = load_recipe(root / "old.yaml", [f"model.init={init}"])
    (stage,) = resolve(recipe, root)
    assert stage.init_weights is not None
    assert (
        stage.init_weights.sha256
        == json.loads((root / "runs" / FINISHED / "result.json").read_text())["weights_sha256"]
    )
    assert stage.init_weights.keep_head(stage.classes)


# --- what the same command does now ---


def named(root: Path, *overrides: str) -> list[str]:
    recipe = load_recipe(root / "old.yaml", overrides)
    return older_runs(recipe.name, resolve(recipe, root)[0], root)


def test_a_run_of_version_1_is_named_as_one_that_does_not_go_on(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = root / "runs"
    begun = f"{folder / HALF} was begun with recipe version 1 and is not continued: this is a new run"
    assert named(root, *LATER) == [begun]
    assert named(root, *LATER, "cluster.cpus_per_worker=2") == [begun]
    assert named(root) == [
        f"{folder / FINISHED} was finished with recipe version 1 and is not taken over: this is a new run"
    ]
    assert named(root, "training.seed=1") == named(root, "name=other") == []
    recipe = load_recipe(root / "old.yaml", LATER)
    stages = resolve(recipe, root)
    torch.manual_seed(0)
    plan_summary.print_plan(recipe.name, stages, root)
    assert f"  note          {begun}\n" in capsys.readouterr().out
    new = folder / stages[0].run_name
    new.mkdir()  # the new run has begun
    assert named(root, *LATER) == []
    new.rmdir()


def test_a_search_of_version_1_is_named(root: Path) -> None:
    found = load_search(root / "space.yaml")
    stages = resolve(found.recipe, root)
    name = search.search_name(found, stages[-1])
    assert name != SEARCH
    assert older_searches(found, name, root) == [
        f"{root / 'runs' / SEARCH} was finished with recipe version 1 and is not taken over: this is a new search"
    ]
    other = load_search(root / "space.yaml", ["space.seed=1"])
    assert older_searches(other, search.search_name(other, stages[-1]), root) == []
    with pytest.raises(UserError, match="there is nothing to resume"):
        search.check_begun(found, stages[-1], root)


def test_files_of_a_search_can_be_upgraded(root: Path) -> None:
    for file in ("best_recipe.yaml", "base_recipe.yaml"):
        text = (root / "runs" / SEARCH / file).read_text()
        path = root / file
        path.write_text(upgrade_text(text, file)[0])
        recipe = load_recipe(path)
        assert recipe.version == 2 and recipe.stages["pretrain"].training.early_stopping is not None


def test_a_damaged_run_is_no_obstacle(root: Path, tmp_path: Path) -> None:
    shutil.copytree(root / "runs" / HALF, tmp_path / "runs" / HALF)
    recipe = load_recipe(root / "old.yaml", LATER)
    (stage,) = resolve(recipe, root)
    assert len(older_runs(recipe.name, stage, tmp_path)) == 1
    for content in ("[", "- a", "data: {}", ""):
        (tmp_path / "runs" / HALF / "recipe.yaml").write_text(content)
        assert older_runs(recipe.name, stage, tmp_path) == []


def test_a_later_version_is_refused(root: Path, tmp_path: Path) -> None:
    shutil.copytree(root / "runs" / FINISHED, tmp_path / "runs" / FINISHED)
    path = tmp_path / "runs" / FINISHED / "model" / "config.json"
    config = json.loads(path.read_text())
    path.write_text(json.dumps(config | {"stage": upgrade(config["stage"]) | {"version": 3}}))
    with pytest.raises(UserError, match="version 3; this platform is too old") as caught:
        evaluate.run(parse("evaluate", [FINISHED, "--root", str(tmp_path), "--dry-run"]))
    assert str(path) in str(caught.value)


# --- top-5 accuracy ---


def test_top_5_of_five_classes_or_fewer_is_refused_with_the_data(root: Path) -> None:
    few = ["data.root=data4", "data.shapes=null"]
    resolve(load_recipe(root / "old.yaml", ["promotion.metric=top5"]), root)
    with pytest.raises(UserError, match=r"stage pretrain: promotion\.metric: top-5 accuracy is reported only where"):
        resolve(load_recipe(root / "old.yaml", [*few, "promotion.metric=top5"]), root)
    by_top5 = load_search(root / "space.yaml", ["space.metric=val/top5"])
    check_metric(by_top5, resolve(by_top5.recipe, root)[-1])
    by_top5 = load_search(root / "space.yaml", [*few, "space.metric=val/top5"])
    with pytest.raises(UserError, match=r"space space: metric: top-5 accuracy .* the data has 4"):
        check_metric(by_top5, resolve(by_top5.recipe, root)[-1])
