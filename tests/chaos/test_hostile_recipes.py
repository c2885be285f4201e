"""Wrong recipes: a failing case for every rule of the schema, and thousands of mutated ones.

SCALABLEVIT_FUZZED sets the number of mutated recipes (2000; `make chaos` takes 10 000), SCALABLEVIT_SEED their seed.
"""

import copy
import os
import random
import re
import time
from pathlib import Path
from typing import Any

import pytest
import yaml
from harness.schema_rules import (
    GONE,
    Plain,
    Rule,
    Walk,
    mutate,
    mutate_text,
    raised_at,
    raises_of_validators,
    without_rule,
)
from pydantic import ValidationError

from scalablevit.config.errors import UserError
from scalablevit.config.loading import load_recipe
from scalablevit.config.recipe import Recipe
from scalablevit.config.transforms import TRANSFORMS

REPOSITORY = Path(__file__).parents[2]
SHIPPED = sorted((REPOSITORY / "pipelines" / "recipes").glob("*.yaml"))
FUZZED = int(os.environ.get("SCALABLEVIT_FUZZED", "2000"))
SEED = int(os.environ.get("SCALABLEVIT_SEED", "0"))
LONGEST_S = 2.0

pytestmark = pytest.mark.row("Configuration: a case for every rule, mutated recipes")

# --- recipes in which every section stands, so that every key of the schema has its place ---

STAGE = """
model: {name: resnet18, drop_path_rate: 0.1, init: null, options: {key: 1}}
optimizer:
  lr: 1e-3
  betas: [0.9, 0.99]
  layer_decay: 0.9
  clip_norm: 1.0
  schedule: {kind: multistep, decay_epochs: [1, 2]}
training:
  epochs: 3
  global_batch_size: 8
  ema_decay: 0.9
  evaluate_every: {epochs: 1.0}
  early_stopping: {patience: 2}
  checkpoint_every: {epochs: 1.0}
  keep: {last: 1}
  nonfinite: {action: skip, limit: 2}
cluster: {min_workers: 1, storage: null}
tracking: {uri: null, register_as: null, notify: [finished]}
promotion: {metric: null, min_value: 0.5, max_latency_ms: 10.0, max_weights_mb: 100.0}
imports: [mine]
"""
DATA = """
  root: set
  shapes: {train_images: 1, val_images: 1}
  mean: [0.5, 0.5, 0.5]
  std: [0.5, 0.5, 0.5]
"""
KINDS = {
    "classification": """
data:
  source: image_folder
  train: {images: train, masks: null, annotations: null}
  val: {images: val}
  crop_scale: [0.1, 1.0]
  crop_ratio: [0.75, 1.25]
  rand_augment: {magnitude: 9}
  transforms: [same, same]  # two: one, times the limit, would not be above it
task: {kind: classification}
""",
    "segmentation": """
data:
  source: mask_pairs
  train: {images: train, masks: m}
  val: {images: val, masks: m}
  classes: [a, b]
  scale_range: [0.5, 2.0]
  transforms: [same, same]  # two: one, times the limit, would not be above it
task:
  kind: segmentation
  head: upernet
  head_channels: 64
  sliding: {window: 64, stride: 32}
  test_time_augmentation: {scales: [1.0]}
""",
    "detection": """
data:
  source: coco
  train: {images: train, annotations: t.json}
  val: {images: val, annotations: v.json}
  train_short_sides: [480, 800]
task: {kind: detection, head: mask_rcnn}
""",
}


def same(image: Any, _draws: Any) -> Any:
    """A registered transform, as if of a user's package."""
    return image


same.__module__ = "mine"
TRANSFORMS["same"] = same


def base(kind: str) -> dict[str, Any]:
    stage = yaml.safe_load(KINDS[kind]) | yaml.safe_load(STAGE.replace("1e-3", "0.001"))
    stage["data"] |= yaml.safe_load(DATA)
    tree = {"name": "r", "stages": {"first": stage}}
    return with_sizes(tree) if kind == "classification" else tree


def with_sizes(tree: dict[str, Any]) -> dict[str, Any]:
    """Add what the other kinds refuse."""
    tree["stages"]["first"]["training"]["image_size_schedule"] = [{"size": 64, "epochs": 1.0}]
    return tree


# --- rules, read from the schema ---


RULES: list[Rule] = [
    rule
    for kind in KINDS
    for rule in Walk(Recipe, kind, with_sizes(base(kind))).rules()
    if kind == "classification" or rule.path[2:3] in (("data",), ("task",))  # the other sections are the same
]


def refusal(tree: Any, tmp_path: Path) -> UserError:
    """What a recipe is refused with; an empty error when it is accepted."""
    file = tmp_path / "r.yaml"
    file.write_text(yaml.dump(tree, Dumper=Plain, sort_keys=False, allow_unicode=True), encoding="utf-8")
    try:
        load_recipe(file)
    except UserError as error:
        return error
    return UserError("accepted")


@pytest.mark.parametrize("kind", KINDS)
def test_the_recipes_that_rules_are_tried_on_are_right(kind: str, tmp_path: Path):
    file = tmp_path / "r.yaml"
    file.write_text(yaml.safe_dump(base(kind)))
    assert load_recipe(file).stages["first"].task.kind == kind


@pytest.mark.parametrize("kind", KINDS)
def test_every_rule_refuses_with_place_and_value(kind: str, tmp_path: Path):
    """In one test for each kind: a thousand cases of a few milliseconds."""
    wrong = []
    for rule in (rule for rule in RULES if rule.kind == kind):
        said = str(refusal(rule.broken(base(rule.kind)), tmp_path))
        key, shown = ".".join(str(part) for part in rule.path), rule.shown
        if len(rule.path) <= 2 and rule.path[0] == "stages":  # answered before the schema is looked at
            gone = len(rule.path) == 1 and rule.value in (GONE, None)
            key, shown = ("", "is missing") if gone else ("stages", "")
        # a missing key has no line: the place is then that of its section, or of the file
        place = re.search(rf"{re.escape(str(tmp_path / 'r.yaml'))}(:\d+)?: ", said)
        if not place or key not in said or shown not in said:
            wrong.append(f"{rule} -> {said}")
    assert not wrong, "\n".join(wrong)


def test_there_is_a_rule_for_every_constraint_of_every_field():
    missing, count = without_rule(Recipe, RULES)
    assert not missing
    assert count > 100
    for rule in ("tag", "enum", "null", "type", "required", "additionalProperties", "anyOf"):
        assert any(each.keyword == rule for each in RULES)


# --- validators: rules that the schema cannot tell ---

Change = tuple[str, Any]
VALIDATORS: list[tuple[str, list[Change], str]] = [
    ("classification", [("data.root", "~somebody/set")], "data.root"),
    ("classification", [("data.root", "s3://bucket/set")], "s3:// is not read yet"),
    ("classification", [("data.train.images", "/abs")], "inside data.root"),
    ("classification", [("data.train.images", "a/../..")], "inside data.root"),
    ("segmentation", [("data.val.masks", "..")], "inside data.root"),
    ("detection", [("data.val.annotations", "../v.json")], "inside data.root"),
    ("classification", [("data.eval_resize", 100)], "eval_resize (100)"),
    ("classification", [("data.crop_scale", [0.5, 0.4])], "crop_scale [0.5, 0.4]"),
    ("classification", [("data.crop_scale", [0.0, 0.4])], "crop_scale [0.0, 0.4]"),
    ("classification", [("data.crop_ratio", [2.0, 0.4])], "crop_ratio [2.0, 0.4]"),
    ("segmentation", [("data.train.masks", None)], "train.masks and val.masks are needed"),
    ("segmentation", [("data.long_side", 100)], "long_side (100)"),
    ("segmentation", [("data.scale_range", [2.0, 0.5])], "scale_range [2.0, 0.5]"),
    ("detection", [("data.val.annotations", None)], "val.annotations are needed"),
    ("detection", [("data.long_side", 100)], "long_side (100)"),
    ("detection", [("data.train_short_sides", [90, 80])], "[90, 80] must be [min, max]"),
    ("detection", [("data.train_short_sides", [90, 1400])], "end above long_side"),
    ("segmentation", [("task.sliding.stride", 65)], "stride (65)"),
    ("classification", [("optimizer.schedule.warmup_epochs", 1.0), ("optimizer.schedule.warmup_steps", 2)], "not both"),
    ("classification", [("optimizer.schedule.decay_epochs", [])], "decay_epochs belong to"),
    ("classification", [("optimizer.schedule.kind", "cosine")], "decay_epochs belong to"),
    ("classification", [("optimizer.schedule.decay_epochs", [2, 1])], "[2.0, 1.0] must rise"),
    ("classification", [("training.evaluate_every", {})], "exactly one of epochs and steps"),
    ("classification", [("training.evaluate_every.steps", 3)], "exactly one of epochs and steps"),
    ("classification", [("training.steps", 3)], "exactly one of epochs and steps"),
    ("classification", [("training.epochs", None)], "exactly one of epochs and steps"),
    ("classification", [("training.accumulation_steps", 9)], "global_batch_size (8)"),
    ("classification", [("training.image_size_schedule", [{"size": 64, "steps": 1}] * 2)], "[64, 64] must rise"),
    (
        "classification",
        [("training.image_size_schedule", [{"size": 224, "steps": 1}])],
        "must be below data.image_size",
    ),
    ("detection", [("training.image_size_schedule", [{"size": 64, "steps": 1}])], "have no fixed size to schedule"),
    ("classification", [("cluster.gpus_per_worker", 1.5)], "gpus_per_worker (1.5)"),
    ("classification", [("cluster.gpus_per_worker", 0.5), ("cluster.workers", 2)], "gpus_per_worker (0.5)"),
    ("classification", [("cluster.storage", "s3://key:secret@bucket/runs")], "without credentials"),
    ("classification", [("cluster.min_workers", 2)], "min_workers (2)"),
    ("classification", [("cluster.storage", "file:///nfs/runs")], "storage is a folder"),
    ("classification", [("data", yaml.safe_load(KINDS["detection"])["data"] | {"root": "r"})], "needs data.source"),
    ("detection", [("data.instance_masks", False)], "data.instance_masks must be true"),
    ("classification", [("promotion.metric", "miou")], "promotion.metric must be top1 or top5 here, not miou"),
    ("detection", [("task.head", "retinanet"), ("promotion.metric", "mask_ap")], "must be box_ap here, not mask_ap"),
    ("classification", [("cluster.workers", 3), ("training.accumulation_steps", 4)], "(3 x 4 = 12)"),
    ("classification", [("imports", ["mine", "mine"])], "a name occurs twice"),
    ("classification", [("imports", ["mine", "os.path"])], "os.path belongs to Python itself"),
    ("classification", [("imports", ["theirs"])], "transform same is defined by mine"),
    ("segmentation", [("data.transforms", ["absent"])], "no transform 'absent' is registered"),
]


def with_changes(kind: str, changes: list[Change]) -> dict[str, Any]:
    tree = base(kind)
    for dotted, value in changes:
        node = tree["stages"]["first"]
        *parents, key = dotted.split(".")
        for parent in parents:
            node = node[parent]
        node[key] = value
    return tree


def chains() -> list[tuple[dict[str, Any], str]]:
    """What the recipe as a whole is refused for."""
    stage = base("classification")["stages"]["first"]
    later = stage | {"model": stage["model"] | {"init": "stage:second"}}
    elsewhere = stage | {"tracking": {"uri": "http://elsewhere"}}
    return [
        ({"name": "r", "stages": {}}, "at least one stage"),
        ({"name": "r", "stages": {"first": later, "second": stage}}, "'stage:second', which is no earlier stage"),
        ({"name": "r", "stages": {"first": stage, "second": elsewhere}}, "must be the same in all stages"),
    ]


def test_every_validator_refuses_and_none_is_without_a_case(tmp_path: Path):
    reached = set()
    cases = [(with_changes(kind, changes), said) for kind, changes, said in VALIDATORS] + chains()
    for tree, said in cases:
        error = refusal(tree, tmp_path)
        assert said in str(error) and str(tmp_path / "r.yaml") in str(error)
        assert isinstance(error.__context__, ValidationError)
        reached |= raised_at(error.__context__)
    written = raises_of_validators(Recipe)
    assert len(written) >= 25
    assert written <= reached, f"no case reaches {sorted(written - reached)}"


# --- files that are no recipes ---

RUBBISH = {
    "nothing": b"",
    "zeros": bytes(100),
    "not text": b"\xff\xfe\x00\xd8",
    "a list": b"- a",
    "deep": b"[" * 5000,
    "deep mapping": b"{a: " * 5000,
    "deep lines": b"".join(b" " * n + b"a:\n" for n in range(500)),
    "aliases": b"a: &a [x, x]\nb: &b [*a, *a]\nc: [*b, *b]\n",
    "merge": b"a: {x: 1}\nb: {<<: {x: 2}}\n",
    "tag": b"name: !!python/object/apply:os.system ['true']\n",
    "two documents": b"name: a\n---\nname: b\n",
    "key twice": b"name: a\nname: b\n",
    "key of a list": b"? [a, b]\n: 1\n",
    "huge number": b"name: " + b"9" * 10_000,
    "huge exponent": b"name: r\ntraining: {epochs: 1e999999}\n",
    "tab": b"name:\n\tx: 1\n",
    "half character": b'name: "\\ud800"\n',
    "escape": b"name: \x1b[2J\n",
    "zero character": b'name: r\ndata: {root: "a\\0b"}\n',
    "zero character in a key": b'"na\\0me": r\n',
    "byte order mark": b"\xef\xbb\xbf- a\n",
    "utf-16": "name: r".encode("utf-16"),
    "long line": b"name: " + b"x" * 1_000_000,
    "many keys": b"".join(b"k%d: 1\n" % n for n in range(3000)),
}


@pytest.mark.parametrize("name", RUBBISH)
def test_rubbish_is_refused_quickly(name: str, tmp_path: Path):
    file = tmp_path / "r.yaml"
    file.write_bytes(RUBBISH[name])
    begin = time.process_time()
    with pytest.raises(UserError) as caught:
        load_recipe(file)
    assert time.process_time() - begin < LONGEST_S
    assert str(file) in str(caught.value)
    str(caught.value).encode()


def test_a_recipe_that_cannot_be_opened(tmp_path: Path):
    for file in (tmp_path, tmp_path / "no" / "r.yaml", tmp_path / ("x" * 300)):
        with pytest.raises(UserError, match="cannot read the recipe"):
            load_recipe(file)


# --- mutations ---


def test_mutated_recipes_load_or_are_refused(tmp_path: Path):
    print(f"{FUZZED} recipes from seed {SEED}")
    shipped = [(path.read_text(), yaml.load(path.read_text(), yaml.CSafeLoader)) for path in SHIPPED]
    file = tmp_path / "r.yaml"
    refused, slowest = 0, 0.0
    for number in range(FUZZED):
        draw = random.Random(f"{SEED} {number}")
        text, tree = draw.choice(shipped)
        if draw.random() < 0.2:
            text = mutate_text(text, draw)
        else:
            tree = copy.deepcopy(tree)
            for _ in range(draw.randint(1, 3)):
                mutate(tree, draw)
            text = yaml.dump(tree, Dumper=Plain, allow_unicode=True)
        file.write_bytes(text.encode(errors="surrogatepass"))
        begin = time.process_time()
        try:
            load_recipe(file)
        except UserError as error:
            refused += 1
            assert str(file) in str(error), f"seed {SEED}, recipe {number}: {error}"
            str(error).encode()
        except Exception as error:
            raise AssertionError(f"seed {SEED}, recipe {number}: {error!r}\n{text}") from error
        slowest = max(slowest, time.process_time() - begin)
    print(f"{refused} refused, {FUZZED - refused} loaded, slowest {slowest:.3f} s")
    assert slowest < LONGEST_S
    assert 0.5 * FUZZED < refused < FUZZED


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_no_shipped_recipe_is_refused(path: Path):
    assert load_recipe(path).name == path.stem
