"""What people of the field type first leads to our key, or to what to do instead."""

import re
from pathlib import Path

import pytest

from scalablevit.config.errors import UserError
from scalablevit.config.hints import (
    AS_SECTION,
    AUGMENTATION,
    KEYS,
    LISTS,
    NOTES,
    SENTENCES,
    SIZES,
    key_hint,
    schema_keys,
)
from scalablevit.config.loading import load_recipe
from scalablevit.config.recipe import Stage
from scalablevit.config.stage_keys import has_key

RECIPE = """\
name: one
version: 2
data: {source: image_folder, root: pictures, train: {images: train}, val: {images: val}}
model: {name: scalablevit_tiny}
task: {kind: classification}
optimizer: {lr: 1e-3}
training: {epochs: 2, global_batch_size: 8}
"""
KNOWN = {path for paths in schema_keys().values() for path in paths}


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    path = tmp_path / "r.yaml"
    path.write_text(RECIPE)
    return path


def refusal(path: Path, *overrides: str) -> str:
    with pytest.raises(UserError) as caught:
        load_recipe(path, overrides)
    return str(caught.value)


def test_a_required_key_under_another_name_is_one_mistake(recipe: Path) -> None:
    """Its own hint has a note after the key."""
    recipe.write_text(RECIPE.replace("global_batch_size", "batch_size"))
    said = refusal(recipe)
    assert "write training.global_batch_size (" in said and "is missing" not in said, said


def dotted_keys(text: str) -> list[str]:
    return re.findall(rf"\b(?:{'|'.join(Stage.model_fields)})(?:\.[a-z_]+)+", text)


def test_every_target_is_in_the_schema() -> None:
    assert set(KEYS.values()) <= KNOWN
    assert set(NOTES) <= set(KEYS.values()) and set(AS_SECTION) <= KNOWN
    assert {*SIZES, *AUGMENTATION} <= KNOWN
    texts = " ".join([*SENTENCES.values(), *NOTES.values(), *AS_SECTION.values()])
    assert len(dotted_keys(texts)) > 10
    assert set(dotted_keys(texts)) <= KNOWN


def test_no_name_is_in_both_tables() -> None:
    assert len({*KEYS, *SENTENCES, *LISTS}) == len(KEYS) + len(SENTENCES) + len(LISTS)


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("learning_rate", "optimizer.lr"), ("batch_size", "training.global_batch_size"),
        ("batch", "training.global_batch_size"), ("num_workers", "cluster.loader_workers"),
        ("workers", "cluster.loader_workers"), ("max_epochs", "training.epochs"), ("num_epochs", "training.epochs"),
        ("early_stopping", "training.early_stopping"), ("patience", "training.early_stopping.patience"),
        ("amp", "training.precision: bfloat16"), ("fp16", "training.precision: bfloat16"),
        ("bf16", "training.precision: bfloat16"), ("mixed_precision", "training.precision: bfloat16"),
        ("num_classes", "is read from the data"), ("pretrained", "model.init"),
        ("resume", "submit the same command again"), ("resume_from", "submit the same command again"),
        ("checkpoint", "model.init"), ("gpus", "cluster.gpus_per_worker"), ("num_gpus", "cluster.gpus_per_worker"),
        ("device", "cluster.gpus_per_worker"), ("devices", "cluster.gpus_per_worker"),
        ("img_size", "data.image_size"), ("imgsz", "data.image_size"), ("input_size", "data.image_size"),
        ("drop_path", "model.drop_path_rate"), ("wd", "optimizer.weight_decay"), ("momentum", "optimizer.momentum"),
        ("freeze", "not available yet"), ("class_weights", "not available yet"), ("weights", "model.init"),
        ("scheduler", "optimizer.schedule"), ("warmup", "optimizer.schedule.warmup_epochs"),
        ("ema", "training.ema_decay"), ("model_ema_warmup", "training.ema_warmup"),
        ("seed", "training.seed"), ("project", "tracking.experiment"),
        ("exp_name", "tracking.experiment"), ("log_interval", "training.log_every_steps"),
        ("save_dir", "cluster.storage"), ("output_dir", "--root"), ("dataset", "write data"),
        ("augment", "data.rand_augment"), ("precision", "training.precision"), ("mixup", "data.mixup"),
        ("notifications", "write tracking.notify (as [finished, failed]"), ("webhook_url", "write tracking.notify:"),
        ("global_batch", "training.global_batch_size"), ("Learning-Rate", "optimizer.lr"),
    ],
)  # fmt: skip
def test_what_people_type_first(recipe: Path, name: str, hint: str) -> None:
    """As a bare override, in a section of an override and of the file, and at the file's top."""
    place = "tracking" if name != "project" else "model"
    said = [refusal(recipe, f"{name}=1"), refusal(recipe, f"{place}.{name}=1"),
            refusal(recipe, f"stages.pretrain.{place}.{name}=1")]  # fmt: skip
    recipe.write_text(f"{RECIPE}{name}: 1\n")
    said.append(refusal(recipe))
    recipe.write_text(f"{RECIPE}{place}: {{{name}: 1}}\n" if place == "tracking" else RECIPE.replace(
        "{name: scalablevit_tiny}", f"{{name: scalablevit_tiny, {name}: 1}}"))  # fmt: skip
    said.append(refusal(recipe))
    assert all(hint in each.partition("fix: ")[2] for each in said), "\n".join(said)
    assert f"r.yaml:{8 if place == 'tracking' else 4}: {place}.{name}: unknown key {name!r}" in said[-1]


STAGES = {
    "segmentation": {"task": {"kind": "segmentation"}, "data": {"source": "mask_pairs"}},
    "detection": {"task": {"kind": "detection"}, "data": {"source": "coco"}},
}


@pytest.mark.parametrize(
    ("name", "segmentation", "detection"),
    [
        ("imgsz", "write data.crop_size", "write data.short_side"),
        ("data.image_size", "write data.crop_size", "write data.short_side"),
        ("data.img_size", "write data.crop_size", "write data.short_side"),
        ("randaugment", "only classification has data.rand_augment", "only classification has data.rand_augment"),
        ("aa", "only classification has data.rand_augment", "only classification has data.rand_augment"),
        ("reprob", "only classification has data.random_erasing", "only classification has data.random_erasing"),
        ("data.mixup", "only classification has data.mixup", "only classification has data.mixup"),
        ("mixup_alpha", "only classification has data.mixup", "only classification has data.mixup"),
        ("cutmix_alpha", "only classification has data.cutmix", "only classification has data.cutmix"),
        ("mixup_prob", "only classification has data.mix_prob", "only classification has data.mix_prob"),
        ("smoothing", "only classification has task.label_smoothing", "only classification has task.label_smoothing"),
        ("augment", "write data.color_jitter, data.scale_range, data.flip or data.transforms",
         "write data.color_jitter, data.train_short_sides or data.flip"),
        ("lr0", "write optimizer.lr", "write optimizer.lr"),
        ("task.anchor_size", "only detection has task.anchor_size", ""),
    ],
)  # fmt: skip
def test_a_hint_is_for_a_key_that_the_stage_has(name: str, segmentation: str, detection: str) -> None:
    for kind, hint in (("segmentation", segmentation), ("detection", detection)):
        assert key_hint(name.split("."), STAGES[kind]).removeprefix("leave it out: ") == hint


@pytest.mark.parametrize("kind", STAGES)
def test_what_a_hint_says_can_be_written(kind: str) -> None:
    """No hint leads to a key that is refused, with another hint or none."""
    for name in (*KEYS, *LISTS, *schema_keys()):
        hint = key_hint([name.rpartition(".")[2]], STAGES[kind])
        if hint.startswith("write ") and name not in SENTENCES:
            assert all(has_key(STAGES[kind], key.split(".")) for key in dotted_keys(hint.partition(" (")[0])), hint


@pytest.mark.parametrize(
    ("path", "hint"),
    [
        ("image_size", "write data.image_size"), ("images", "write data.train.images or data.val.images"),
        ("masks", "write data.train.masks or data.val.masks"), ("kind", "write task.kind or optimizer.schedule.kind"),
        ("annotations", "write data.train.annotations or data.val.annotations"),
        ("task.name", "write model.name or optimizer.name"),
        ("optimizer.schedule.steps", "write optimizer.schedule.decay_epochs"), ("steps", "write training.steps"),
        ("model.path", "write model.init ("), ("cluster.path", "write cluster.storage"), ("path", "write data.root"),
        ("data.train.path", "write data.train.images"),
        ("gpus", "write cluster.workers: <number of GPUs> and cluster.gpus_per_worker: 1"),
    ],
)  # fmt: skip
def test_our_own_keys_and_names_that_depend_on_the_section(path: str, hint: str) -> None:
    assert key_hint(path.split(".")).startswith(hint)


def test_a_dotted_key_at_the_top_of_a_file_is_named_with_its_section(recipe: Path) -> None:
    recipe.write_text(f"{RECIPE}data.image_size: 64\nimage_size: 64\n")
    said = refusal(recipe)
    assert (
        "r.yaml:8: data.image_size: unknown key 'data.image_size'\n  fix: write image_size in the section data" in said
    )
    assert "r.yaml:9: image_size: unknown key 'image_size'\n  fix: write data.image_size" in said


@pytest.mark.parametrize("name", [name for name in KEYS if "." not in name])
def test_a_hint_stands_alone(recipe: Path, name: str) -> None:
    """Not next to the name of a section that only looks like it."""
    assert "did you mean" not in refusal(recipe, f"{name}=1")


def test_a_key_in_the_wrong_section_is_named_with_its_path() -> None:
    assert key_hint(("stages", "first", "model", "lr")) == "write optimizer.lr"
    assert key_hint(("model", "seed")) == "write training.seed"
    assert key_hint(("trainer", "max_epochs")) == "write training.epochs"


@pytest.mark.parametrize("path", [("data", "crop_size"), ("optimizer", "lrr"), ("model", "name"), (), ("stages", "a")])
def test_what_nothing_is_known_of(path: tuple[str, ...]) -> None:
    """Also a key whose only place is the one where another kind would have it."""
    assert key_hint(path) == ""


@pytest.mark.parametrize(
    ("override", "hint"),
    [("optimizer=adamw", "write optimizer: {name: ..., lr: ...}"), ("model=resnet50", "write model: {name: ...}"),
     ("data=/photos", "write data: {source: ..."), ("task=classification", "write task: {kind: ...}"),
     ("optimizer.schedule=cosine", "write optimizer.schedule: {kind: ...}"),
     ("training.early_stopping=5", "write training.early_stopping: {patience: ...}"),
     ("training.evaluate_every=1", "write {epochs: ...} or {steps: ...}")],
)  # fmt: skip
def test_a_value_in_place_of_a_section(recipe: Path, override: str, hint: str) -> None:
    assert hint in refusal(recipe, override)


def test_misspelled_keys_are_answered_as_before(recipe: Path) -> None:
    said = refusal(recipe, "optimizer.lrr=1")
    assert "unknown key 'lrr'; did you mean 'lr'?" in said and said.endswith("fix: write optimizer.lr")
    said = refusal(recipe, "training.batchsize=8")
    assert said.endswith("did you mean 'global_batch_size'?\n  fix: write training.global_batch_size"), said
    for unlike in ("optimizer.qqqqq=1", "optimizer.warm=3"):  # the most alike is `name`
        assert "fix: known here: name, lr, betas" in refusal(recipe, unlike)
    assert "no section 'optimiser'; did you mean 'optimizer'?" in refusal(recipe, "optimiser.nmae=1")
