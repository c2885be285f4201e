"""Keys that do nothing beside the recipe's other values: refused where a person wrote them."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from scalablevit.config.errors import UserError, UserErrors
from scalablevit.config.hints import schema_keys
from scalablevit.config.loading import load_recipe, override_stage
from scalablevit.config.overrides import Scope
from scalablevit.config.space_loading import load_search
from scalablevit.config.stage_keys import CONDITIONS
from scalablevit.config.stored import stored_stage, to_store
from scalablevit.config.unused_keys import drop_unused

BASE = {
    "classification": """
data: {source: image_folder, root: set, train: {images: t}, val: {images: v}}
model: {name: resnet18}
task: {kind: classification}
optimizer: {lr: 0.001}
training: {epochs: 4, global_batch_size: 8}
""",
    "segmentation": """
data: {source: mask_pairs, root: set, classes: [a, b], train: {images: t, masks: m}, val: {images: v, masks: m}}
model: {name: resnet18}
task: {kind: segmentation, head: semantic_fpn}
optimizer: {lr: 0.001}
training: {epochs: 4, global_batch_size: 8}
""",
    "detection": """
data: {source: coco, root: set, train: {images: t, annotations: t.json}, val: {images: v, annotations: v.json}}
model: {name: resnet18}
task: {kind: detection, head: retinanet}
optimizer: {lr: 0.001}
training: {epochs: 4, global_batch_size: 8}
""",
}

Values = dict[str, Any]
# kind, the key with a value without effect, and what gives it one
CASES: list[tuple[str, str, Any, Values]] = [
    ("classification", "data.train.masks", "m", {}),
    ("classification", "data.val.masks", "m", {}),
    ("classification", "data.train.annotations", "a.json", {}),
    ("segmentation", "data.val.annotations", "a.json", {}),
    ("detection", "data.train.masks", "m", {}),
    ("classification", "data.mix_prob", 0.5, {"data.mixup": 0.2}),
    ("classification", "data.mix_prob", 0.5, {"data.cutmix": 1.0}),
    ("classification", "data.mixup_switch_prob", 0.3, {"data.mixup": 0.2, "data.cutmix": 1.0}),
    ("segmentation", "task.auxiliary_loss_weight", 0.2, {"task.head": "upernet"}),
    ("detection", "task.head_channels", 256, {"task.head": "mask_rcnn"}),
    ("detection", "task.proposals", 100, {"task.head": "mask_rcnn"}),
    ("detection", "task.roi_samples", 100, {"task.head": "mask_rcnn"}),
    ("classification", "optimizer.momentum", 0.8, {"optimizer.name": "sgd"}),
    ("classification", "optimizer.schedule.power", 2.0, {"optimizer.schedule.kind": "polynomial"}),
    (
        "classification",
        "optimizer.schedule.gamma",
        0.5,
        {"optimizer.schedule.kind": "multistep", "optimizer.schedule.decay_epochs": [2]},
    ),
    ("classification", "optimizer.schedule.warmup_lr", 1e-6, {"optimizer.schedule.warmup_steps": 2}),
    ("classification", "optimizer.schedule.warmup_lr", 1e-6, {"optimizer.schedule.warmup_epochs": 0.5}),
    ("classification", "training.nonfinite.limit", 5, {"training.nonfinite.action": "skip"}),
]
# the other way round: read by default, and what takes the effect away
TAKEN: list[tuple[str, str, Any, Values]] = [
    ("classification", "data.mixup_switch_prob", 0.3, {"data.mixup": 0.2}),
    ("segmentation", "task.neck_channels", 64, {"task.head": "upernet"}),
    ("classification", "optimizer.betas", [0.9, 0.95], {"optimizer.name": "sgd"}),
    ("classification", "optimizer.eps", 1e-6, {"optimizer.name": "sgd"}),
    ("classification", "training.cpu_linear", "onednn", {"training.precision": "bfloat16"}),
    ("classification", "training.cpu_linear", "torch", {"training.compile": "blocks"}),
    ("classification", "training.cpu_linear", "onednn", {"training.compile": True}),
    ("classification", "optimizer.schedule.min_lr", 1e-5, {"optimizer.schedule.kind": "constant"}),
    (
        "classification",
        "optimizer.schedule.min_lr",
        1e-5,
        {"optimizer.schedule.kind": "multistep", "optimizer.schedule.decay_epochs": [2]},
    ),
]
REFUSED = [(kind, key, value, {}) for kind, key, value, _ in CASES] + TAKEN


def recipe(kind: str, values: Values) -> dict[str, Any]:
    stage: dict[str, Any] = yaml.safe_load(BASE[kind])
    for dotted, value in values.items():
        *sections, key = dotted.split(".")
        node = stage
        for section in sections:
            node = node.setdefault(section, {})
        node[key] = value
    return {"name": "r", **stage}


def write(folder: Path, tree: dict[str, Any]) -> Path:
    (folder / "r.yaml").write_text(yaml.safe_dump(tree, sort_keys=False))
    return folder / "r.yaml"


def refusal(path: Path, *overrides: str) -> str:
    with pytest.raises(UserError) as caught:
        load_recipe(path, overrides)
    return str(caught.value)


@pytest.mark.parametrize(("kind", "key", "value", "others"), REFUSED)
def test_a_value_without_effect_is_refused_with_its_line(
    kind: str, key: str, value: Any, others: Values, tmp_path: Path
) -> None:
    path = write(tmp_path, recipe(kind, {**others, key: value}))
    lines = path.read_text().splitlines()
    said = refusal(path)
    number = next(number for number, line in enumerate(lines, 1) if line.strip().startswith(key.rpartition(".")[2]))
    if not key.startswith("data.val"):
        assert f"{path}:{number}: {key}: has no effect with " in said
    assert f": {key}: has no effect with " in said and "fix: leave it out, or write " in said
    assert CONDITIONS[key].keys[0] in said


@pytest.mark.parametrize(("kind", "key", "value", "others"), [case for case in CASES if case[3]])
def test_the_same_value_loads_where_it_is_read(kind: str, key: str, value: Any, others: Values, tmp_path: Path) -> None:
    load_recipe(write(tmp_path, recipe(kind, {**others, key: value})))


@pytest.mark.parametrize(("kind", "key", "value", "others"), REFUSED)
def test_an_override_without_effect_is_refused(kind: str, key: str, value: Any, others: Values, tmp_path: Path) -> None:
    path = write(tmp_path, recipe(kind, others))
    for override in (f"{key}={value!r}", f"stages.{next(iter(load_recipe(path).stages))}.{key}={value!r}"):
        assert f"override {override!r}" in refusal(path, override)


def test_an_override_of_a_whole_section_is_looked_into(tmp_path: Path) -> None:
    path = write(tmp_path, recipe("classification", {}))
    said = refusal(
        path, "optimizer={lr: 0.1, momentum: 0.8, schedule: {power: 2}}", "optimizer.schedule.warmup_steps=3"
    )
    assert said.count("override 'optimizer={lr") == 2
    assert "optimizer.momentum: has no effect" in said and "optimizer.schedule.power: has no effect" in said


@pytest.mark.parametrize(("kind", "key", "value", "others"), REFUSED)
def test_a_default_that_a_file_spells_out_is_no_mistake(
    kind: str, key: str, value: Any, others: Values, tmp_path: Path
) -> None:
    stage = next(iter(load_recipe(write(tmp_path, recipe(kind, others))).stages.values())).model_dump(mode="json")
    for part in key.split("."):
        stage = stage[part]
    path = write(tmp_path, recipe(kind, {**others, key: stage}))
    load_recipe(path)
    assert "has no effect" in refusal(path, f"{key}={stage if stage is not None else 'null'}")


def test_every_key_with_a_condition_is_in_the_schema_and_has_a_case() -> None:
    known = {path for paths in schema_keys().values() for path in paths}
    for key, condition in CONDITIONS.items():
        assert {key, *condition.keys} <= known, key
    assert {key for _, key, _, _ in REFUSED} == set(CONDITIONS)


def test_all_mistakes_are_named_at_once(tmp_path: Path) -> None:
    path = write(tmp_path, recipe("classification", {"optimizer.momentum": 0.8, "data.mix_prob": 0.5, "model.nmae": 1}))
    said = refusal(path, "optimizer.schedule.power=3", "optimizer.lrr=1")
    for part in ("optimizer.momentum", "data.mix_prob", "'nmae'", "optimizer.schedule.power", "'lrr'"):
        assert part in said


# --- stages ---


def two_stages(tmp_path: Path, shared: str, first: str, second: str) -> Path:
    sections = BASE["classification"].replace("optimizer: {lr: 0.001}", f"optimizer: {{lr: 0.001, {shared}}}")
    text = f"name: r\n{sections}\nstages:\n  one: {{optimizer: {{{first}}}}}\n  two: {{optimizer: {{{second}}}}}\n"
    (tmp_path / "r.yaml").write_text(text)
    return tmp_path / "r.yaml"


def test_a_shared_value_counts_when_one_stage_reads_it(tmp_path: Path) -> None:
    load_recipe(two_stages(tmp_path, "momentum: 0.8", "name: sgd", "name: adamw"))
    said = refusal(two_stages(tmp_path, "momentum: 0.8", "name: adamw", "name: adamw"))
    assert said.count("has no effect") == 1 and "r.yaml:6: optimizer.momentum" in said


def test_a_stage_s_own_value_counts_by_itself(tmp_path: Path) -> None:
    said = refusal(two_stages(tmp_path, "weight_decay: 0.1", "name: sgd, momentum: 0.8", "momentum: 0.8"))
    assert said.count("has no effect") == 1 and "stages.two.optimizer.momentum" in said


def test_an_override_for_all_stages_counts_when_one_reads_it(tmp_path: Path) -> None:
    path = two_stages(tmp_path, "weight_decay: 0.1", "name: sgd", "name: adamw")
    stages = load_recipe(path, ["optimizer.momentum=0.8"]).stages
    assert [stage.optimizer.momentum for stage in stages.values()] == [0.8, 0.9]  # 0.9: the default
    assert "stages.two.optimizer.momentum" in refusal(path, "stages.two.optimizer.momentum=0.8")


def test_the_sources_of_a_chain_share_their_splits(tmp_path: Path) -> None:
    """The masks of the second stage's source stand in the section that the first one, of image folders, shares."""
    (tmp_path / "r.yaml").write_text("""\
name: r
data: {root: set, train: {images: t, masks: m}, val: {images: v, masks: m}}
model: {name: resnet18}
optimizer: {lr: 0.001}
training: {epochs: 4, global_batch_size: 8}
stages:
  one: {data: {source: image_folder}, task: {kind: classification}}
  two: {data: {source: mask_pairs, classes: [a, b]}, task: {kind: segmentation, head: upernet}}
""")
    load_recipe(tmp_path / "r.yaml")


# --- an override that picks another optimizer, schedule or head ---


@pytest.mark.parametrize(
    ("kind", "values", "override", "left"),
    [
        (
            "classification",
            {"optimizer.name": "adamw", "optimizer.betas": [0.9, 0.95], "optimizer.eps": 1e-6},
            "optimizer.name=sgd",
            "optimizer.betas, optimizer.eps",
        ),
        ("classification", {"optimizer.schedule.min_lr": 1e-5}, "optimizer.schedule.kind=constant",
         "optimizer.schedule.min_lr"),
        ("classification", {"data.mixup": 0.2, "data.mix_prob": 0.5}, "data.mixup=0", "data.mix_prob"),
        ("detection", {"task.head": "mask_rcnn", "task.roi_samples": 64}, "task.head=retinanet", "task.roi_samples"),
    ],
)  # fmt: skip
def test_what_the_file_says_for_another_choice_is_noted(
    kind: str, values: Values, override: str, left: str, tmp_path: Path
) -> None:
    path, notes = write(tmp_path, recipe(kind, values)), []
    found = load_recipe(path, [override], Scope(note=notes.append))
    assert notes == [f"override {override!r} leaves without effect: {left}"]
    assert load_recipe(path, [override]) == found


# --- what nobody wrote ---


def test_stored_stages_hold_what_they_hold(tmp_path: Path) -> None:
    path = write(tmp_path, recipe("classification", {"optimizer.betas": [0.9, 0.95]}))
    (stage,) = load_recipe(path, ["optimizer.name=sgd"]).stages.values()
    assert stored_stage(to_store(stage)) == stage
    plain = stage.model_dump(mode="json")
    assert override_stage("evaluate", plain, ["data.root=elsewhere"], "kept").stages["evaluate"].optimizer.name == "sgd"
    assert override_stage("evaluate", plain, ["optimizer.schedule.kind=constant"], "kept")
    with pytest.raises(UserError, match=r"optimizer\.momentum=0\.5.*: has no effect with optimizer\.name: adamw"):
        override_stage("evaluate", {**plain, "optimizer": {"lr": 0.1}}, ["optimizer.momentum=0.5"], "kept")


def test_what_is_written_down_for_people_loads_again(tmp_path: Path) -> None:
    path = write(tmp_path, recipe("classification", {"optimizer.betas": [0.9, 0.95], "data.rand_augment": {}}))
    found = load_recipe(path, ["optimizer.name=sgd"])
    (stage,) = found.stages.values()
    shown = drop_unused(stage.model_dump(mode="json"))
    assert "betas" not in shown["optimizer"] and shown["optimizer"]["eps"] == 1e-8
    again = load_recipe(write(tmp_path, {"name": "r", "stages": {"pretrain": shown}})).stages["pretrain"]
    assert again.model_copy(update={"optimizer": stage.optimizer}) == stage


# --- model.options ---


@pytest.mark.parametrize(
    ("option", "instead"),
    [
        ("num_classes: 10", "the number of classes is read from the data"),
        ("pretrained: true", "write model.init"),
        ("checkpoint_path: w.pth", "write model.init"),
        ("drop_path_rate: 0.1", "write model.drop_path_rate"),
        ("in_chans: 1", "images are read as RGB"),
        ("features_only: true", "leave it out"),
        ("grad_checkpointing: true", "write model.grad_checkpointing"),
    ],
)
def test_timm_s_own_words_name_the_key_to_use(option: str, instead: str, tmp_path: Path) -> None:
    name, value = option.split(": ")
    path = write(tmp_path, recipe("classification", {f"model.options.{name}": yaml.safe_load(value)}))
    said = refusal(path)
    assert f"model.options.{name}" in said and instead in said and "r.yaml:" in said
    path = write(tmp_path, recipe("classification", {}))
    assert instead in refusal(path, f"model.options.{name}={value}")
    assert instead in refusal(path, f"model.options={{{option}}}")


# --- means and standard deviations in 0..255 ---


def test_means_and_deviations_of_0_to_255_are_refused_with_those_of_0_to_1(tmp_path: Path) -> None:
    of_bytes = {"data.mean": [123.675, 116.28, 103.53], "data.std": [58.395, 57.12, 57.375]}
    path = write(tmp_path, recipe("classification", of_bytes))
    with pytest.raises(UserErrors) as caught:
        load_recipe(path)
    mean, std = caught.value.errors
    assert mean.where == f"{path}:9: data.mean" and "[123.675, 116.28, 103.53]" in mean.what
    assert (mean.fix, std.fix) == ("write [0.485, 0.456, 0.406]", "write [0.229, 0.224, 0.225]")
    path = write(tmp_path, recipe("segmentation", {}))
    assert "fix: write [0.5, 0.5, 0.5]" in refusal(path, "data.mean=[127.5, 127.5, 127.5]")
    load_recipe(path, ["data.mean=[0, 0, 0]", "data.std=[1, 1, 1]"])
    load_recipe(path, ["data.mean=[1, 1, 1]"])
    assert "fix: give it for pixels of 0..1" in refusal(path, f"data.mean=[{10**400}, 0, 0]")
    assert "greater than 0" in refusal(path, "data.std=[0, a, 1]") and "255" not in refusal(path, "data.mean=abc")


def test_what_was_stored_with_such_means_is_still_read(tmp_path: Path) -> None:
    (stage,) = load_recipe(write(tmp_path, recipe("classification", {}))).stages.values()
    plain = stage.model_dump(mode="json")
    plain["data"]["mean"] = [123.675, 116.28, 103.53]
    assert stored_stage({"version": 2, **plain}).data.mean[0] == 123.675
    assert override_stage("evaluate", plain, ["data.root=elsewhere"], "kept")


def test_a_search_over_means_of_0_to_255_is_refused(tmp_path: Path) -> None:
    said = space_refusal(space(tmp_path, "classification", {}, "data.mean: {choice: [[0.5, 0.5, 0.5], [127.5, 0, 0]]}"))
    assert "data.mean: the recipe refuses [127.5, 0, 0]: is above 1" in said and "write [0.5, 0, 0]" in said


# --- search spaces ---


def space(tmp_path: Path, kind: str, values: Values, parameters: str, metric: str = "val/top1") -> Path:
    write(tmp_path, recipe(kind, values))
    lines = "".join(f"  {line}\n" for line in parameters.splitlines())
    text = f"recipe: r.yaml\nmetric: {metric}\nbudget: {{trials: 2}}\nparameters:\n{lines}"
    (tmp_path / "space.yaml").write_text(text)
    return tmp_path / "space.yaml"


def space_refusal(path: Path) -> str:
    with pytest.raises(UserError) as caught:
        load_search(path)
    return str(caught.value)


@pytest.mark.parametrize(
    ("kind", "metric", "parameter", "needed"),
    [
        ("classification", "val/top1", "optimizer.momentum: {uniform: [0.5, 0.95]}", "optimizer.name: sgd"),
        ("segmentation", "val/miou", "task.auxiliary_loss_weight: {choice: [0.0, 0.2, 0.4]}", "task.head: upernet"),
        ("segmentation", "val/miou", "optimizer.schedule.power: {choice: [0.9, 1.0]}", "kind: polynomial"),
        ("classification", "val/top1", "data.mix_prob: {choice: [1.0]}", "data.mixup or data.cutmix"),
        ("classification", "val/top1", "model.options.pretrained: {choice: [true]}", "write model.init"),
    ],
)
def test_a_parameter_without_effect_is_refused(
    kind: str, metric: str, parameter: str, needed: str, tmp_path: Path
) -> None:
    said = space_refusal(space(tmp_path, kind, {}, parameter, metric))
    assert "space.yaml:5: parameters." in said and needed in said
    assert "has no effect" in said or "write model.init" in said


@pytest.mark.parametrize(
    ("parameter", "values", "needed"),
    [
        ("data.color_jitter: {uniform: [0, 0.4]}", {"data.rand_augment": {}}, "data.rand_augment: null"),
        ("training.ema_warmup: {choice: [true, false]}", {}, "training.ema_decay"),
        ("optimizer.schedule.warmup_prefix: {choice: [true, false]}", {}, "a warm-up"),
    ],
)
def test_what_a_file_may_say_without_effect_is_not_searched(
    parameter: str, values: Values, needed: str, tmp_path: Path
) -> None:
    key, _, value = parameter.partition(": ")
    said = space_refusal(space(tmp_path, "classification", values, parameter))
    assert f"{key} has no effect with " in said and needed in said
    load_recipe(write(tmp_path, recipe("classification", {**values, key: yaml.safe_load(value).popitem()[1][1]})))
    effect = {"data.color_jitter": {}, "training.ema_warmup": {"training.ema_decay": 0.99}}
    load_search(space(tmp_path, "classification", effect.get(key, {"optimizer.schedule.warmup_epochs": 1}), parameter))


@pytest.mark.parametrize(
    "parameters",
    [
        "optimizer.momentum: {uniform: [0.5, 0.95]}\noptimizer.name: {choice: [sgd, adamw]}",
        "data.mix_prob: {choice: [0.5, 1.0]}\ndata.mixup: {uniform: [0.0, 0.4]}",
        "optimizer.schedule.power: {choice: [0.9, 1.0]}\noptimizer.schedule.kind: {choice: [polynomial]}",
    ],
)
def test_a_parameter_that_some_trial_reads_is_searched(parameters: str, tmp_path: Path) -> None:
    load_search(space(tmp_path, "classification", {}, parameters))


def test_a_metric_that_one_of_the_heads_lacks_is_refused(tmp_path: Path) -> None:
    heads = "task.head: {choice: [retinanet, mask_rcnn]}"
    assert "reports no 'val/mask_ap'" in space_refusal(space(tmp_path, "detection", {}, heads, "val/mask_ap"))
    load_search(space(tmp_path, "detection", {}, "task.head: {choice: [mask_rcnn]}", "val/mask_ap"))


@pytest.mark.parametrize(
    "key",
    ["task.test_time_augmentation", "training.on_checkpoint_failure", "model.init", "model.grad_checkpointing",
     "model.channels_last", "training.compile", "training.deterministic", "data.max_pixels"],
)  # fmt: skip
def test_keys_that_no_training_reads_are_not_searched(key: str, tmp_path: Path) -> None:
    said = space_refusal(space(tmp_path, "segmentation", {}, f"{key}: {{choice: [null]}}", "val/miou"))
    assert f"{key} is not searched" in said
