"""What people of the field type first leads to our key, or to what to do instead."""

import re
from pathlib import Path

import pytest

from scalablevit.config.errors import UserError
from scalablevit.config.hints import AS_SECTION, KEYS, NOTES, SENTENCES, key_hint, schema_keys
from scalablevit.config.loading import load_recipe
from scalablevit.config.recipe import Stage

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
    texts = " ".join([*SENTENCES.values(), *NOTES.values(), *AS_SECTION.values()])
    assert len(dotted_keys(texts)) > 10
    assert set(dotted_keys(texts)) <= KNOWN


def test_no_name_is_in_both_tables() -> None:
    assert not set(KEYS) & set(SENTENCES)


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
    assert "unknown key 'lrr'; did you mean 'lr'?" in said and "known here: name, lr" in said
    assert "no section 'optimiser'; did you mean 'optimizer'?" in refusal(recipe, "optimiser.nmae=1")
