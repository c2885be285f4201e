"""Every rule of the schema refuses what breaks it, and lengths in steps come out exact."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel, ValidationError

from scalablevit.config.checking import check
from scalablevit.config.errors import UserError, UserErrors
from scalablevit.config.recipe import Length, Recipe, Stage


def recipe(kind: str = "classification") -> dict[str, Any]:
    """The least that each kind of stage needs."""
    data: dict[str, Any] = {"root": "r", "train": {"images": "train"}, "val": {"images": "val"}}
    task: dict[str, Any] = {"kind": kind}
    if kind == "classification":
        data["source"] = "image_folder"
    elif kind == "detection":
        data["source"] = "coco"
        data["train"]["annotations"] = data["val"]["annotations"] = "instances.json"
        task["head"] = "mask_rcnn"
    else:
        data |= {"source": "mask_pairs", "classes": ["a", "b"]}
        data["train"]["masks"] = data["val"]["masks"] = "masks"
        task["head"] = "upernet"
    stage = {
        "data": data,
        "model": {"name": "scalablevit_tiny"},
        "task": task,
        "optimizer": {"lr": 0.1},
        "training": {"epochs": 1, "global_batch_size": 4},
    }
    return {"name": "r", "stages": {"first": stage}}


def changed(kind: str, *changes: tuple[str, Any]) -> dict[str, Any]:
    whole = recipe(kind)
    for dotted, value in changes:
        node = whole["stages"]["first"]
        *parents, key = dotted.split(".")
        for parent in parents:
            node = node.setdefault(parent, {})
        node[key] = value
    return whole


@pytest.mark.parametrize("kind", ["classification", "segmentation", "detection"])
def test_the_least_recipe_is_accepted(kind: str) -> None:
    assert check(Recipe, recipe(kind), {}, "f").name == "r"


@pytest.mark.parametrize(("side", "resized"), [(224, 256), (112, 128), (16, 18), (4096, 4096)])
def test_the_evaluations_crop_is_as_large_a_part_of_the_image_as_imagenets(side: int, resized: int) -> None:
    whole = check(Recipe, changed("classification", ("data.image_size", side)), {}, "f")
    assert whole.stages["first"].data.eval_resize == resized


def test_a_wrong_size_is_one_mistake() -> None:
    with pytest.raises(UserError) as caught:
        check(Recipe, changed("classification", ("data.image_size", "large")), {}, "f")
    assert str(caught.value).count("\n") == 0 and "image_size" in str(caught.value)


REFUSED = [
    # data
    ("classification", [("data.train.images", "/abs")], "inside data.root"),
    ("classification", [("data.val.images", "a/../../b")], "inside data.root"),
    ("segmentation", [("data.val.masks", "../b")], "inside data.root"),
    ("classification", [("data.shapes", {"train_images": 0, "val_images": 1})], "greater than or equal to 1"),
    ("classification", [("data.shapes", {"train_images": 1, "val_images": 1, "image_size": 31})], "equal to 32"),
    ("classification", [("data.std", [0.1, 0.0, 0.1])], "greater than 0"),
    ("classification", [("data.std", [0.1, 0.1])], "at least 3"),
    ("classification", [("data.mean", [0.1, 0.1, 0.1, 0.1])], "at most 3"),
    ("classification", [("data.flip", 1.1)], "less than or equal to 1"),
    ("classification", [("data.color_jitter", -0.1)], "greater than or equal to 0"),
    ("classification", [("data.max_bad_fraction", 2)], "less than or equal to 1"),
    ("classification", [("data.max_pixels", 0)], "greater than or equal to 1"),
    ("classification", [("data.image_size", 15)], "greater than or equal to 16"),
    ("classification", [("data.eval_resize", 223)], "eval_resize (223) must be at least image_size (224)"),
    ("classification", [("data.crop_scale", [0.0, 1.0])], "must be [min, max] with 0 < min <= max"),
    ("classification", [("data.crop_scale", [0.5, 0.4])], "must be [min, max] with 0 < min <= max"),
    ("classification", [("data.crop_ratio", [2.0, 1.0])], "crop_ratio [2.0, 1.0] must be [min, max] with min <= max"),
    ("classification", [("data.rand_augment", {"magnitude": 11})], "less than or equal to 10"),
    ("classification", [("data.random_erasing", 1.5)], "less than or equal to 1"),
    ("classification", [("data.mixup", -1)], "greater than or equal to 0"),
    ("classification", [("data.cutmix", -1)], "greater than or equal to 0"),
    ("classification", [("data.mix_prob", 2)], "less than or equal to 1"),
    ("classification", [("data.mixup_switch_prob", 2)], "less than or equal to 1"),
    ("classification", [("data.repeated_augmentation", 0)], "greater than or equal to 1"),
    ("segmentation", [("data.train.masks", None)], "needed by the mask_pairs source"),
    ("segmentation", [("data.ignore_index", 256)], "less than or equal to 255"),
    ("segmentation", [("data.short_side", 300), ("data.long_side", 299)], "at least short_side (300)"),
    ("segmentation", [("data.scale_range", [2.0, 0.5])], "scale_range [2.0, 0.5] must be [min, max] with min <= max"),
    ("segmentation", [("data.crop_size", 8)], "greater than or equal to 16"),
    ("detection", [("data.train.annotations", None)], "needed by the coco source"),
    ("detection", [("data.val.annotations", None)], "needed by the coco source"),
    ("detection", [("data.train.annotations", "../instances.json")], "inside data.root"),
    ("detection", [("data.val.annotations", "/instances.json")], "inside data.root"),
    ("detection", [("data.short_side", 15)], "greater than or equal to 16"),
    ("detection", [("data.long_side", 799)], "long_side (799) must be at least short_side (800)"),
    ("detection", [("data.train_short_sides", [480, 1400])], "end above long_side (1333)"),
    ("detection", [("data.val.annotations", "a\0.json")], "inside data.root"),
    ("detection", [("data.short_side", 10**9)], "less than or equal to 4096"),
    ("detection", [("task.anchor_size", 10**5)], "less than or equal to 512"),
    ("detection", [("data.train_short_sides", [800, 480])], "train_short_sides [800, 480] must be [min, max]"),
    ("detection", [("data.train_short_sides", [15, 480])], "greater than or equal to 16"),
    ("detection", [("data.train_short_sides", [480])], "data.train_short_sides.1: is missing"),
    ("detection", [("data.train_short_sides", 480)], "array"),
    ("detection", [("data.instance_masks", "yes")], "boolean"),
    ("detection", [("data.crop_size", 512)], "unknown key 'crop_size'"),
    # model
    ("classification", [("model.drop_path_rate", 1.0)], "less than 1"),
    # task
    ("classification", [("task.label_smoothing", 1.0)], "less than 1"),
    ("segmentation", [("task.head", "unet")], "'semantic_fpn' or 'upernet'"),
    ("segmentation", [("task.neck_channels", 0)], "greater than or equal to 1"),
    ("segmentation", [("task.auxiliary_loss_weight", -1)], "greater than or equal to 0"),
    ("segmentation", [("task.dropout", 1.0)], "less than 1"),
    ("segmentation", [("task.sliding", {"window": 64, "stride": 65})], "stride (65) must be at most window (64)"),
    ("segmentation", [("task.test_time_augmentation", {"scales": []})], "at least 1"),
    ("segmentation", [("task.test_time_augmentation", {"scales": [0.0]})], "greater than 0"),
    ("detection", [("task.head", "faster_rcnn")], "'retinanet' or 'mask_rcnn'"),
    ("detection", [("task.neck_channels", 7)], "greater than or equal to 8"),
    ("detection", [("task.head_channels", 0)], "greater than or equal to 1"),
    ("detection", [("task.anchor_size", 3)], "greater than or equal to 4"),
    ("detection", [("task.proposals", 0)], "greater than or equal to 1"),
    ("detection", [("task.roi_samples", 0)], "greater than or equal to 1"),
    ("detection", [("task.score_threshold", 1.0)], "less than 1"),
    ("detection", [("task.score_threshold", -0.1)], "greater than or equal to 0"),
    ("detection", [("task.nms_threshold", 0.0)], "greater than 0"),
    ("detection", [("task.nms_threshold", 1.1)], "less than or equal to 1"),
    ("detection", [("task.max_detections", 0)], "greater than or equal to 1"),
    # optimizer
    ("classification", [("optimizer.name", "lion")], "'adamw' or 'sgd'"),
    ("classification", [("optimizer.lr", 0)], "greater than 0"),
    ("classification", [("optimizer.lr", 11)], "less than or equal to 10"),
    ("classification", [("optimizer.betas", [0.9, 1.0])], "less than 1"),
    ("classification", [("optimizer.eps", 0)], "greater than 0"),
    ("classification", [("optimizer.momentum", 1)], "less than 1"),
    ("classification", [("optimizer.weight_decay", -0.1)], "greater than or equal to 0"),
    ("classification", [("optimizer.layer_decay", 1.1)], "less than or equal to 1"),
    ("classification", [("optimizer.clip_norm", 0)], "greater than 0"),
    ("classification", [("optimizer.schedule", {"warmup_epochs": 1, "warmup_steps": 1})], "not both"),
    ("classification", [("optimizer.schedule", {"kind": "multistep"})], "decay_epochs belong to"),
    ("classification", [("optimizer.schedule", {"decay_epochs": [1]})], "decay_epochs belong to"),
    ("classification", [("optimizer.schedule", {"kind": "multistep", "decay_epochs": [2, 1]})], "must rise"),
    ("classification", [("optimizer.schedule", {"kind": "multistep", "decay_epochs": [1, 1]})], "must rise"),
    ("classification", [("optimizer.schedule", {"power": 0})], "greater than 0"),
    ("classification", [("optimizer.schedule", {"warmup_lr": -1})], "greater than or equal to 0"),
    ("classification", [("optimizer.schedule", {"gamma": 1.1})], "less than or equal to 1"),
    # training
    ("classification", [("training.steps", 5)], "exactly one of epochs and steps"),
    ("classification", [("training.epochs", None)], "exactly one of epochs and steps"),
    ("classification", [("training.epochs", 0)], "greater than 0"),
    (
        "classification",
        [("training.accumulation_steps", 5)],
        "global_batch_size (4) must be at least accumulation_steps (5)",
    ),
    ("classification", [("training.precision", "float16")], "'float32' or 'bfloat16'"),
    ("classification", [("training.seed", -1)], "greater than or equal to 0"),
    ("classification", [("training.seed", 2**31)], "less than"),
    ("classification", [("training.ema_decay", 1.0)], "less than 1"),
    ("classification", [("training.compile", "model")], "boolean or input should be 'blocks'"),
    ("classification", [("training.evaluate_every", {"epochs": 1, "steps": 1})], "exactly one of epochs and steps"),
    ("classification", [("training.checkpoint_every", {})], "exactly one of epochs and steps"),
    ("classification", [("training.early_stopping", {"patience": 0})], "greater than or equal to 1"),
    (
        "classification",
        [("training.image_size_schedule", [{"size": 64, "epochs": 1}, {"size": 32, "epochs": 1}])],
        "the sizes [64, 32] must rise",
    ),
    (
        "classification",
        [("training.image_size_schedule", [{"size": 224, "epochs": 1}])],
        "the last size, 224, must be below data.image_size (224)",
    ),
    ("classification", [("training.image_size_schedule", [{"size": 64}])], "exactly one of epochs and steps"),
    ("segmentation", [("training.image_size_schedule", [{"size": 64, "epochs": 1}])], "no fixed size to schedule"),
    ("detection", [("training.image_size_schedule", [{"size": 64, "epochs": 1}])], "no fixed size to schedule"),
    ("classification", [("training.keep", {"last": 0})], "greater than or equal to 1"),
    ("classification", [("training.log_every_steps", 0)], "greater than or equal to 1"),
    # cluster and tracking
    ("classification", [("cluster.workers", 0)], "greater than or equal to 1"),
    ("classification", [("cluster.workers", 2), ("cluster.min_workers", 3)], "(3) must be at most workers (2)"),
    ("classification", [("cluster.storage", "file:///nfs/runs")], "storage is a folder, not file:///nfs/runs"),
    ("classification", [("cluster.workers", 3), ("training.accumulation_steps", 2)], "(3 x 2 = 6)"),
    ("classification", [("cluster.cpus_per_worker", 0)], "greater than 0"),
    ("classification", [("cluster.gpus_per_worker", -1)], "greater than or equal to 0"),
    ("classification", [("tracking.experiment", "")], "at least 1"),
    ("classification", [("tracking.register_as", "a/b")], "pattern"),
    ("classification", [("tracking.notify", ["done"])], "'finished', 'failed', 'promoted', 'refused' or 'stalled'"),
    # stage
    ("classification", [("task", {"kind": "segmentation", "head": "upernet"})], "needs data.source mask_pairs"),
    ("segmentation", [("task", {"kind": "classification"})], "needs data.source image_folder"),
    (
        "segmentation",
        [("task", {"kind": "detection", "head": "retinanet"})],
        "task detection needs data.source coco, not mask_pairs",
    ),
    (
        "detection",
        [("task", {"kind": "segmentation", "head": "upernet"})],
        "task segmentation needs data.source mask_pairs, not coco",
    ),
    ("detection", [("task", {"kind": "classification"})], "task classification needs data.source image_folder"),
    ("detection", [("data.instance_masks", False)], "data.instance_masks must be true"),
]


@pytest.mark.parametrize(("kind", "changes", "said"), REFUSED, ids=lambda value: str(value)[:60])
def test_each_rule_refuses(kind: str, changes: list[tuple[str, Any]], said: str) -> None:
    with pytest.raises(UserError) as caught:
        check(Recipe, changed(kind, *changes), {}, "f")
    assert said in str(caught.value)


@pytest.mark.parametrize(
    "changes",
    [
        [("task.head", "retinanet"), ("data.instance_masks", False)],
        [("task.head", "retinanet"), ("data.instance_masks", True)],
        [("data.train_short_sides", [480, 480])],
        [("data.train_short_sides", None)],
        [("data.short_side", 640), ("data.long_side", 640)],
        [("task.score_threshold", 0), ("task.nms_threshold", 1)],
    ],
    ids=str,
)
def test_what_detection_allows(changes: list[tuple[str, Any]]) -> None:
    assert check(Recipe, changed("detection", *changes), {}, "f").stages["first"].task.kind == "detection"


@pytest.mark.parametrize(("sides", "pixels"), [(None, 80_000), ((90, 150), 80_000), ((90, 300), 120_000)])
def test_pixels_of_a_training_image_are_those_of_the_largest(sides: tuple[int, int] | None, pixels: int) -> None:
    sizes = [("data.short_side", 200), ("data.long_side", 400), ("data.train_short_sides", sides)]
    assert check(Recipe, changed("detection", *sizes), {}, "f").stages["first"].data.training_pixels == pixels


@pytest.mark.parametrize(
    ("stages", "said"),
    [
        ({}, "at least one stage"),
        ({"First": {}}, "pattern"),
        ({"first": {"init": "stage:first"}}, "no earlier stage (none)"),
        ({"first": {"init": "stage:second"}, "second": {}}, "no earlier stage (none)"),
        ({"first": {}, "second": {"init": "stage:frist"}}, "no earlier stage (first)"),
    ],
)
def test_the_chain_of_stages(stages: dict[str, dict[str, str]], said: str) -> None:
    whole = recipe()
    stage = whole["stages"]["first"]
    whole["stages"] = {name: stage | {"model": stage["model"] | model} for name, model in stages.items()}
    with pytest.raises(UserError) as caught:
        check(Recipe, whole, {}, "f")
    assert said in str(caught.value)


def test_a_stage_may_start_from_an_earlier_one() -> None:
    whole = recipe()
    stage = whole["stages"]["first"]
    whole["stages"]["second"] = stage | {"model": stage["model"] | {"init": "stage:first"}}
    assert check(Recipe, whole, {}, "f").stages["second"].model.init == "stage:first"


@pytest.mark.parametrize("name", ["", "a b", "-a", "../a", "a" * 81, "a/b"])
def test_names_that_could_not_be_folders(name: str) -> None:
    with pytest.raises(UserError, match="name"):
        check(Recipe, recipe() | {"name": name}, {}, "f")


def sections(model: type[BaseModel], seen: set[type[BaseModel]]) -> set[type[BaseModel]]:
    """All models of the schema, found through pydantic's own definitions."""
    found: list[Any] = [field.annotation for field in model.model_fields.values()]
    seen.add(model)
    while found:
        part = found.pop()
        if isinstance(part, type) and issubclass(part, BaseModel):
            if part not in seen:
                sections(part, seen)
        else:
            found.extend(getattr(part, "__args__", ()))
    return seen


def test_every_section_is_frozen_and_closed() -> None:
    all_sections = sections(Recipe, set())
    assert len(all_sections) >= 20
    for section in all_sections:
        assert section.model_config["frozen"]
        assert section.model_config["extra"] == "forbid"
        assert section.model_config["strict"]
    stage = check(Recipe, recipe(), {}, "f").stages["first"]
    with pytest.raises(ValidationError, match="frozen"):
        stage.training.seed = 3  # type: ignore[misc]


def test_every_key_is_explained() -> None:
    silent = {
        f"{section.__name__}.{name}"
        for section in sections(Stage, set())
        for name, field in section.model_fields.items()
        if not field.description
    }
    say_all = {
        *Stage.model_fields,
        "source",
        "kind",
        "name",
        "schedule",
        "keep",
        "nonfinite",
        "epochs",
        "steps",
        "head",
    }
    assert {key.partition(".")[2] for key in silent} <= say_all


# --- lengths ---


def stage_with(**training: Any) -> Stage:
    whole = recipe()
    whole["stages"]["first"]["training"] = {"global_batch_size": 8} | training
    return check(Recipe, whole, {}, "f").stages["first"]


def test_epochs_become_steps_without_rounding_each_epoch() -> None:
    """100 samples in batches of 8 are 12.5 steps an epoch, so 2 epochs are 25 steps and not 24 or 26."""
    length = Length.of(stage_with(epochs=2, evaluate_every={"epochs": 1}, checkpoint_every={"steps": 7}), 100)
    assert (length.steps_per_epoch, length.total, length.evaluate_every, length.checkpoint_every) == (12.5, 25, 12, 7)


def test_phases_of_smaller_images_follow_one_another() -> None:
    stage = stage_with(epochs=4, image_size_schedule=[{"size": 96, "epochs": 2.0}, {"size": 128, "steps": 6}])
    length = Length.of(stage, 40)
    assert (length.image_sizes, length.total) == (((10, 96), (16, 128)), 20)
    assert length.work(16) == pytest.approx((10 * 96**2 + 6 * 128**2) / 224**2)
    assert length.work(5) == pytest.approx(5 * 96**2 / 224**2)
    assert length.work(20) == pytest.approx((10 * 96**2 + 6 * 128**2 + 4 * 224**2) / 224**2)
    assert Length.of(stage_with(epochs=4), 40).work(20) == 20


def test_steps_are_taken_as_they_are() -> None:
    length = Length.of(stage_with(steps=33, evaluate_every={"steps": 11}), 100)
    assert (length.total, length.evaluate_every, length.checkpoint_every) == (33, 11, None)


@given(st.integers(1, 10**7), st.integers(1, 4096), st.floats(0.01, 500))
def test_a_stage_always_has_a_step_and_an_evaluation(samples: int, batch: int, epochs: float) -> None:
    length = Length.of(stage_with(epochs=epochs, global_batch_size=batch, evaluate_every={"epochs": 0.001}), samples)
    assert length.total >= 1
    assert length.evaluate_every >= 1
    assert abs(length.total - epochs * samples / batch) <= 1


def test_a_shown_recipe_has_no_tracking_address() -> None:
    """Notebooks keep what they show, and the address may hold a password."""
    given = check(Recipe, changed("classification", ("tracking.uri", "http://bob:s3cret@host")), {}, "")
    assert "host" not in repr(given) and given.stages["first"].tracking.uri == "http://bob:s3cret@host"


def test_a_key_under_another_name_is_one_mistake() -> None:
    given = recipe()
    given["stages"]["first"]["optimizer"] = {"learning_rate": 0.1}
    given["stages"]["second"] = {**given["stages"]["first"], "optimizer": {}}
    with pytest.raises(UserErrors) as caught:
        check(Recipe, given, {}, "f")
    shown = [str(error) for error in caught.value.errors]
    assert len(shown) == 2, shown
    unknown, missing = sorted(shown, key=lambda each: "is missing" in each)
    assert "optimizer.learning_rate: unknown key" in unknown and "write optimizer.lr" in unknown
    assert "optimizer.lr: is missing" in missing
