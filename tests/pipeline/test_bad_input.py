"""Bad input is answered before Ray starts: place, value and remedy, exit code 2, no traceback."""

import json
import shutil
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import cv2
import numpy as np
import pytest
import yaml

from scalablevit.cli import analyse, main, plan, report, runs
from scalablevit.cli.tree import parse
from scalablevit.config.data import Shapes
from scalablevit.config.errors import UserError
from scalablevit.data.shapes import write_shapes

ROOT = Path(__file__).resolve().parents[2]
PAPER = ROOT / "pipelines" / "recipes" / "imagenet_scalablevit_small.yaml"


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """A root with a small data set for both stages."""
    root = tmp_path_factory.mktemp("root")
    write_shapes(Shapes(train_images=18, val_images=12, image_size=48), root / "data")
    return root


@pytest.fixture
def root(data, tmp_path):
    """A copy of the data that a test may damage."""
    shutil.copytree(data, tmp_path / "root")
    return tmp_path / "root"


@pytest.fixture(scope="module")
def recipe(tmp_path_factory):
    tree = yaml.safe_load((ROOT / "tests" / "end_to_end" / "tiny.yaml").read_text())
    tree["data"] = {"root": "data"}
    tree["cluster"] = {"workers": 1}
    path = tmp_path_factory.mktemp("recipe") / "small.yaml"
    path.write_text(yaml.safe_dump(tree, sort_keys=False))
    return path


def resolved(recipe, root, *overrides):
    """The first two gates, in this process; what a user would read."""
    from scalablevit.config.errors import UserError
    from scalablevit.config.loading import load_recipe
    from scalablevit.pipeline.resolve import resolve

    with pytest.raises(UserError) as caught:
        resolve(load_recipe(recipe, overrides), root)
    return str(caught.value)


def test_the_undamaged_recipe_passes(recipe, root):
    from scalablevit.config.loading import load_recipe
    from scalablevit.pipeline.resolve import resolve

    pretrain, segment, detect = resolve(load_recipe(recipe), root)
    assert (pretrain.train_samples, segment.parents, detect.parents) == (18, ("pretrain",), ("pretrain",))


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("optimizer.lrr=1e-3", ["unknown key 'lrr'", "did you mean 'lr'", "override 'optimizer.lrr=1e-3'"]),
        ("optimizer.lr=.inf", ["optimizer.lr", "inf"]),
        ("training.global_batch_size=0", ["training.global_batch_size", "got 0"]),
        ("training.global_batch_size=many", ["training.global_batch_size", "'many'"]),
        ("cluster.workers=100", ["training.global_batch_size", "some micro-batches would be empty"]),
        ("stages.segment.model.init=stage:nowhere", ["stage:nowhere", "no earlier stage"]),
        ("model.name=scalablevit_tny", ["unknown architecture 'scalablevit_tny'", "scalablevit_tiny"]),
        ("data.root=elsewhere", ["elsewhere", "stage pretrain", "stage segment", "stage detect"]),
        ("stages.pretrain.data.train.images=clasification/train", ["clasification", "data.train.images"]),
        ("stages.pretrain.model.init=weights.pth", ["no such file", "weights.pth", "model.init"]),
        ("optimizer.schedule.warmup_steps=500", ["warm-up (500 steps)", "training (12 steps"]),
    ],
)
def test_wrong_values_are_named_with_their_place(override, expected, recipe, root):
    message = resolved(recipe, root, override)
    for part in expected:
        assert part in message, message


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("data.train.annotations=null", ["train.annotations and val.annotations are needed by the coco source"]),
        ("data.val.annotations=../val.json", ["data.val.annotations", "'../val.json'", "without '..'"]),
        ("data.instance_masks=false", ["mask_rcnn", "data.instance_masks must be true"]),
        ("data.long_side=100", ["long_side (100) must be at least short_side (160)"]),
        ("data.train_short_sides=[320, 256]", ["train_short_sides [320, 256] must be [min, max]"]),
        ("task={kind: segmentation, head: upernet}", ["task segmentation needs data.source mask_pairs, not coco"]),
        ("task.head=yolo", ["task.head", "'retinanet' or 'mask_rcnn'", "'yolo'"]),
        ("task.anchor_sizes=8", ["unknown key 'anchor_sizes'", "did you mean 'anchor_size'"]),
    ],
)
def test_wrong_values_of_detection_are_named_with_their_place(override, expected, root):
    message = resolved(ROOT / "pipelines" / "recipes" / "coco_subset.yaml", root, override)
    for part in expected:
        assert part in message, message


def test_an_empty_class_is_named(recipe, root):
    (root / "data" / "classification" / "train" / "aardvark").mkdir()
    assert "aardvark" in resolved(recipe, root)


def test_a_mask_of_another_size_is_named(recipe, root):
    mask = sorted((root / "data" / "segmentation" / "annotations" / "train").glob("*.png"))[2]
    cv2.imwrite(str(mask), np.zeros((48, 40), np.uint8))
    message = resolved(recipe, root)
    assert mask.name in message and "40 x 48" in message and "48 x 48" in message


def test_mask_ids_out_of_range_are_named(recipe, root):
    mask = sorted((root / "data" / "segmentation" / "annotations" / "val").glob("*.png"))[1]
    cv2.imwrite(str(mask), np.full((48, 48), 77, np.uint8))
    message = resolved(recipe, root)
    assert mask.name in message and "77" in message


def test_splits_with_other_categories_are_named(recipe, root):
    """The same names under other ids would be other classes in files that people exchange."""
    file = root / "data" / "detection" / "annotations" / "instances_val.json"
    content = json.loads(file.read_text())
    next(each for each in content["categories"] if each["name"] == "star")["id"] = 99
    content["annotations"] = [{**each, "category_id": 1} for each in content["annotations"]]
    file.write_text(json.dumps(content))
    message = resolved(recipe, root)
    assert "only train has 8 (star)" in message and "only val has 99 (star)" in message
    assert "stage detect" in message and "data.val.annotations" in message


def test_annotations_that_contradict_each_other_are_named(recipe, root):
    file = root / "data" / "detection" / "annotations" / "instances_train.json"
    content = json.loads(file.read_text())
    content["annotations"][3]["bbox"] = [1, 2, float("nan"), 4]
    file.write_text(json.dumps(content))
    message = resolved(recipe, root)
    assert str(file) in message and "number 3 (id 4)" in message and "not four finite numbers" in message


def test_several_mistakes_are_reported_at_once(recipe, root):
    message = resolved(recipe, root, "optimizer.lr=-1", "training.seed=x", "model.nme=resnet18")
    assert all(part in message for part in ("optimizer.lr", "training.seed", "model.nme"))


def run(*arguments, timeout=280):
    return subprocess.run(
        [sys.executable, *map(str, arguments)], capture_output=True, text=True, timeout=timeout, cwd="/", check=False
    )


def test_more_workers_than_the_machine_has_is_answered_with_the_arithmetic(recipe, root, capsys, monkeypatch):
    """In this process: what the model costs comes first, and takes ten seconds of imports."""
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    code = main("full", ["--recipe", str(recipe), "--root", str(root), "cluster.workers=8",
                             "cluster.cpus_per_worker=1000"])  # fmt: skip
    said = capsys.readouterr()
    assert code == 2, said.err
    assert "8 x 1000 = 8000 CPU asked" in said.err and "cluster.workers" in said.err
    assert "Traceback" not in said.err + said.out


def test_scripts_answer_a_wrong_recipe_with_exit_code_2_and_no_traceback(recipe, root):
    for script in ("full.py", "pretrain.py", "segment.py", "detect.py"):
        done = run(ROOT / "pipelines" / script, "--recipe", recipe, "--root", root, "optimizer.lrr=1")
        assert done.returncode == 2
        assert "did you mean 'lr'" in done.stderr and "Traceback" not in done.stderr


def test_a_missing_recipe_names_its_neighbours():
    done = run(ROOT / "pipelines" / "full.py", "--recipe", ROOT / "pipelines" / "recipes" / "dmeo.yaml")
    assert done.returncode == 2 and "demo.yaml" in done.stderr


@pytest.mark.parametrize(("script", "kind"), [("segment", "segmentation"), ("detect", "detection")])
def test_a_recipe_without_the_stage_of_a_script_is_refused(script, kind, root):
    cifar10 = ROOT / "pipelines" / "recipes" / "cifar10.yaml"
    done = run(ROOT / "pipelines" / f"{script}.py", "--recipe", cifar10, "--root", root)
    assert done.returncode == 2 and f"no {kind} stage" in done.stderr


@pytest.mark.parametrize(
    "script",
    ["full", "pretrain", "segment", "detect", "analyse", "evaluate", "export", "plan", "predict", "promote", "sync"],
)
def test_every_script_has_help_worth_reading(script):
    done = run(ROOT / "pipelines" / f"{script}.py", "--help")
    assert done.returncode == 0 and len(done.stdout) > 400 and "--root" in done.stdout


@pytest.mark.parametrize(
    ("job", "verb", "arguments"),
    [
        (runs, "runs", ["list"]),
        (report, "report", ["nobody"]),
        (plan, "plan", ["--recipe", str(PAPER), "--step-s", "1", "data.root=nowhere"]),
        (analyse, "analyse", ["features", "nobody", "--out", "."]),
    ],
)
def test_scripts_that_only_look_make_no_root(job, verb, arguments, tmp_path):
    mistyped = tmp_path / "mistyped"
    with suppress(UserError):
        job.run(parse(verb, [*arguments, "--root", str(mistyped)]))
    assert not mistyped.exists()


def test_dry_run_starts_nothing_and_shows_the_plan(recipe, root):
    from safetensors.torch import save_file

    from scalablevit.models.backbone import build_classifier

    save_file(build_classifier("scalablevit_tiny", 3).state_dict(), root / "weights.safetensors")
    given = ["--recipe", str(recipe), "--root", str(root), "--dry-run",
             "stages.pretrain.model.init=weights.safetensors"]  # fmt: skip
    done = run(ROOT / "pipelines" / "full.py", *given)
    assert done.returncode == 0, done.stderr
    for part in ("18 training and 12 validation samples", "learning rate step 0", "M parameters", "16 = 1 worker x",
                 f"resolved recipe: {root}/cache/plans/", "nothing was started"):  # fmt: skip
        assert part in done.stdout
    assert not (root / "runs").exists()
    # the same again is answered without what takes seconds to load
    again = f"""import sys; sys.path.insert(0, {str(ROOT / "platform")!r})
from scalablevit.cli import main
assert main("full", {given}) == 0
print(sorted({{"torch", "ray", "timm", "mlflow", "albumentations"}} & set(sys.modules)))"""
    repeated = run("-c", again)
    assert repeated.stdout.startswith(done.stdout) and repeated.stdout.endswith("\n[]\n"), repeated.stderr


def test_results_hold_the_best_metric_that_tasks_report(make_stages):
    """`TaskInfo` knows each task's best metric without importing torch: both must say the same."""
    from scalablevit.config.task_info import task_info
    from scalablevit.tasks.registry import build_task

    for stage in make_stages:
        assert build_task(stage, ("a", "b", "c")).best_metric == task_info(stage.task.kind).best_metric


@pytest.fixture
def make_stages(recipe):
    from scalablevit.config.loading import load_recipe

    return list(load_recipe(recipe).stages.values())


def test_overrides_may_stand_anywhere_between_the_options():
    options = parse("full", ["optimizer.lr=1e-3", "--dry-run", "data.root=/x", "--root", "/y", "training.seed=1"])
    assert options.overrides == ["optimizer.lr=1e-3", "data.root=/x", "training.seed=1"] and options.root == "/y"
