"""What a stage says when tracking is away, and where it starts from."""

import ast
import os
import re
import subprocess
import sys
from dataclasses import replace
from functools import cache
from importlib import metadata
from pathlib import Path

import pytest
import torch
from packaging.requirements import Requirement
from safetensors.torch import save_file

from scalablevit.config.errors import UserError
from scalablevit.config.loading import load_recipe
from scalablevit.config.task_info import TASKS
from scalablevit.models.backbone import build_classifier
from scalablevit.pipeline.export_weights import export_weights
from scalablevit.pipeline.registration import SERVING_PACKAGES
from scalablevit.pipeline.resolve import resolve
from scalablevit.pipeline.stage import Job, _begin, _look_up_version, flatten
from scalablevit.run_files import CONFIG
from scalablevit.runs.result import StageResult, load_result
from scalablevit.runs.run_store import RunStore
from scalablevit.runs.session import RunSession
from scalablevit.tracking.outbox import Outbox, read_lines
from scalablevit.tracking.records import DatasetRecord, ParamsRecord
from scalablevit.training.checkpoint import CheckpointStore
from scalablevit.training.state import Snapshot
from scalablevit.training.worker_result import TrainingEnd

RESULT = StageResult(
    name="pretrain",
    run_name="run",
    uid="0" * 32,
    folder="/runs/run",
    metric="val/top1",
    value=0.5,
    step=3,
    metrics={"val/top1": 0.5},
    classes=("a", "b"),
    images_per_s=1.0,
    minutes=1.0,
    reason="finished",
    checkpoint="step_000000003-00000000",
    weights_sha256="1" * 64,
    registered_as="model",
    lineage={},
)


@pytest.fixture
def small(tmp_path):
    return Path(__file__).parents[1] / "end_to_end" / "tiny.yaml"


@pytest.mark.parametrize("damaged", [False, True])
def test_a_damaged_best_checkpoint_that_another_replaces_is_said(damaged, small, tmp_path, capsys):
    resolved = resolve(load_recipe(small), tmp_path, ["pretrain"])[0]
    store = RunStore.open("run", None, tmp_path)
    checkpoints = CheckpointStore(store.location)
    stem = "model" if resolved.stage.training.ema_decay is None else "ema"
    for step, value in ((4, 0.5), (8, 0.75)):
        meta = {"step": step, "last_metrics": {"val/top1": value}, **({"cpu_linear": "onednn"} if step == 8 else {})}
        name = checkpoints.write(Snapshot(step, {stem: {"w": torch.zeros(2)}}, meta), value)
    if damaged:
        (Path(checkpoints.folder) / name / f"{stem}.safetensors").write_bytes(b"x")
    outcome = TrainingEnd(
        step=8, best_step=8, best_value=0.75, best_metrics={}, last_metrics={"val/top1": 0.75}, seconds=1.0,
        spent={"data": 0.0, "checkpoint": 0.0, "evaluation": 0.0}, reason="finished", detail="", device="A chip",
    )  # fmt: skip
    result = export_weights("recipe", resolved, {}, store, "0" * 32, outcome, 1.0)
    used = "torch" if damaged else "onednn"  # the older checkpoint is of before the choice
    assert store.read_json(CONFIG)["stage"]["training"]["cpu_linear"] == used
    assert result.device == "A chip"
    said = ("the best checkpoint, of step 8 with val/top1 0.7500, is damaged or missing; exported in its place: "
            "step 4 with val/top1 0.5000")  # fmt: skip
    assert result.step == (4 if damaged else 8)
    assert result.reason == (f"finished: {said}" if damaged else "finished")
    assert capsys.readouterr().out.splitlines() == ([f"[pretrain] {said}"] if damaged else [])


def test_an_outage_after_the_last_record_costs_no_finished_stage_and_shows_no_password(tmp_path):
    """Port 9 refuses: the version cannot be looked up, and the stage is finished all the same."""
    store = RunStore.open("run", None, tmp_path)
    uri = "http://someone:canary-4711@127.0.0.1:9"
    with RunSession(store, uri) as session:
        finished = _look_up_version(Job(tmp_path, "recipe", "1" * 32, uri), RESULT, session)
    assert finished.version == "" and finished.value == 0.5
    assert finished.tracking and "canary-4711" not in finished.tracking


def test_results_are_read_back_as_they_were_saved(tmp_path):
    store = RunStore.open("run", None, tmp_path)
    assert load_result(store) is None
    RESULT.save(store)
    assert load_result(store) == replace(RESULT, skipped=True)
    store.write_json("result.json", {**store.read_json("result.json"), "of_a_later_version": 1})
    assert load_result(store) == replace(RESULT, skipped=True)


def test_a_file_of_the_run_that_is_no_json_object_is_named(tmp_path):
    store = RunStore.open("run", None, tmp_path)
    for text in (b"{", b"[1]", b"null"):
        store.write("result.json", text)
        with pytest.raises(UserError, match="not readable as JSON"):
            load_result(store)


def test_parameters_hold_resolved_values_and_the_first_place_of_the_data(small, tmp_path):
    """MLflow never changes a parameter: an attempt that finds the data elsewhere must not be refused."""
    resolved = resolve(load_recipe(small), tmp_path, ["pretrain"])[0]
    store = RunStore.open("run", None, tmp_path)
    outbox = Outbox(store.outbox)
    for root in (tmp_path, tmp_path / "moved"):
        _begin(Job(root, "recipe", "1" * 32, "sqlite://"), resolved, None, store, outbox, "0" * 32)
    records = [line.record for line in read_lines(store.outbox)]
    params = [name for each in records if isinstance(each, ParamsRecord) for name in each.params.items()]
    place = tmp_path / resolved.stage.data.root
    assert [value for name, value in params if name == "data.root"] == [str(place)]
    assert len({name for name, _ in params}) == len(set(params))
    assert ("resolved.warmup_steps", str(resolved.length.warmup)) in params
    assert ("resolved.evaluate_every_steps", str(resolved.length.evaluate_every)) in params
    sources = [each.source for each in records if isinstance(each, DatasetRecord)]
    assert sources == [str(place)] * 2 + [str(tmp_path / "moved" / resolved.stage.data.root)] * 2


def test_nested_settings_become_dotted_names():
    assert flatten({"a": {"b": 1, "c": {"d": None}}, "e": {}}) == {"a.b": 1, "a.c.d": None, "e": {}}


LOADED = """
import sys
import scalablevit.data.decoding, scalablevit.serving.network, scalablevit.tasks.task
print(*(module.__file__ for name, module in sys.modules.items() if name.startswith("scalablevit.")))
"""
"""Names the files of ours that a registered model imports, whatever its task."""


def with_requirements(names):
    """Normalized names of distributions and of all that they require, directly or not."""
    found, left = set(), list(names)
    while left:
        name = re.sub(r"[-_.]+", "-", left.pop()).lower()
        if name in found:
            continue
        found.add(name)
        left += requirements_of(name)
    return found


@cache
def requirements_of(name):
    """Names of the distributions that one requires itself."""
    try:
        wanted = [Requirement(each) for each in metadata.requires(name) or ()]
    except metadata.PackageNotFoundError:
        return []
    return [each.name for each in wanted if each.marker is None or each.marker.evaluate({"extra": ""})]


def test_a_registered_model_lists_what_it_imports():
    paths = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run([sys.executable, "-c", LOADED], env=paths, capture_output=True, text=True, check=True)
    owners = metadata.packages_distributions()
    imported = {name for file in done.stdout.split() for name in imports_of(Path(file))}
    imported.discard("scalablevit")  # travels with the model, installed or not
    needed = {re.sub(r"[-_.]+", "-", owner).lower() for name in imported for owner in owners.get(name, ())}
    assert {"torch", "pillow", "simplejpeg"} <= needed
    for kind, info in TASKS.items():
        assert needed - with_requirements([*SERVING_PACKAGES, *info.serving_packages]) == set(), kind


def imports_of(file: Path) -> set[str]:
    """Top-level names of what a module imports when it is itself imported."""
    found = set()
    for node in ast.parse(file.read_text()).body:
        if isinstance(node, ast.Import):
            found |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found.add(str(node.module).partition(".")[0])
    return found


def test_a_misspelt_registered_model_is_answered_before_anything_trains(small, tmp_path):
    with pytest.raises(UserError) as caught:
        resolve(load_recipe(small, ["stages.pretrain.model.init=models:/nobody@candidate"]), tmp_path, ["pretrain"])
    assert "models:/nobody@candidate" in str(caught.value) and "stage pretrain" in str(caught.value)


def test_a_timm_tag_that_is_not_cached_is_answered_before_anything_trains(small, tmp_path):
    overrides = ["model.name=resnet18", "stages.pretrain.model.init=timm:resnet18.a1_in1k", "model.drop_path_rate=null"]
    with pytest.raises(UserError, match="not in this machine's cache"):
        resolve(load_recipe(small, overrides), tmp_path, ["pretrain"])


def test_other_initial_weights_at_the_same_path_are_another_run(small, tmp_path):
    weights = tmp_path / "weights.safetensors"
    model = load_recipe(small).stages["pretrain"].model.name
    names = []
    for classes in (3, 4):
        save_file(build_classifier(model, classes).state_dict(), weights)
        recipe = load_recipe(small, [f"stages.pretrain.model.init={weights}"])
        names.append(resolve(recipe, tmp_path, ["pretrain"])[0].run_name)
    assert names[0] != names[1]


def test_a_tracking_address_that_would_lose_things_is_refused_early(small, tmp_path):
    with pytest.raises(UserError, match="relative to the current folder"):
        resolve(load_recipe(small, ["tracking.uri=sqlite:///mlflow.db"]), tmp_path)
