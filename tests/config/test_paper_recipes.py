"""The paper recipes against section C of the paper's supplement, with the readings that the project fixed."""

import math
import re
from pathlib import Path

import pytest

from scalablevit.config.data import CocoInstances, ImageFolder, MaskPairs
from scalablevit.config.loading import load_recipe
from scalablevit.config.recipe import Length, Stage
from scalablevit.config.schedule import learning_rate
from scalablevit.config.task import Classification, Detection, Segmentation

RECIPES = Path(__file__).parents[2] / "pipelines" / "recipes"
VARIANTS = ("small", "base", "large")
DROP_PATH = {"small": 0.2, "base": 0.5, "large": 0.5}
IMAGENET_TRAIN = 1_281_167
ADE20K_TRAIN = 20_210
COCO_TRAIN = 118_287  # with the images that show none of the classes: they stay, as negatives
COCO_ROWS = [
    (head, schedule, variant)
    for head in ("retinanet", "mask_rcnn")
    for schedule, variants in (("1x", VARIANTS), ("3x", VARIANTS[:2]))
    for variant in variants
]


def only_stage(name: str) -> Stage:
    recipe = load_recipe(RECIPES / f"{name}.yaml")
    assert recipe.name == name
    assert len(recipe.stages) == 1
    return next(iter(recipe.stages.values()))


@pytest.fixture(params=VARIANTS)
def variant(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def rates(stage: Stage, samples: int) -> dict[str, float]:
    length = Length.of(stage, samples)
    steps = {"first": 0, "warm": length.warmup, "middle": length.total // 2, "end": length.total}
    return {name: learning_rate(step, stage.optimizer, length) for name, step in steps.items()}


class TestImageNet:
    @pytest.fixture
    def stage(self, variant: str) -> Stage:
        return only_stage(f"imagenet_scalablevit_{variant}")

    def test_optimizer(self, stage: Stage) -> None:
        optimizer = stage.optimizer
        assert optimizer.name == "adamw"
        assert optimizer.betas == (0.9, 0.999)
        assert optimizer.weight_decay == 0.05
        assert optimizer.clip_norm == 5
        assert optimizer.layer_decay is None

    def test_length_and_batch(self, stage: Stage) -> None:
        assert stage.training.epochs == 300
        assert stage.training.global_batch_size == 1024
        assert (stage.cluster.workers, stage.training.accumulation_steps) == (8, 1)
        assert Length.of(stage, IMAGENET_TRAIN).total == round(300 * IMAGENET_TRAIN / 1024) == 375_342
        assert stage.training.ema_decay is None
        assert stage.training.early_stopping is None

    def test_learning_rate(self, stage: Stage) -> None:
        length, rate = Length.of(stage, IMAGENET_TRAIN), rates(stage, IMAGENET_TRAIN)
        assert length.warmup == round(5 * IMAGENET_TRAIN / 1024) == 6256
        assert rate["first"] == pytest.approx(1e-6)
        # the cosine runs over all 300 epochs, so that it has lost a little after the 5 of warm-up
        assert rate["warm"] == pytest.approx(1e-5 + (1e-3 - 1e-5) * (1 + math.cos(math.pi * 5 / 300)) / 2, rel=1e-6)
        assert rate["warm"] == pytest.approx(1e-3, rel=1e-3)
        assert rate["middle"] == pytest.approx((1e-3 + 1e-5) / 2)
        assert rate["end"] == pytest.approx(1e-5)
        halfway = learning_rate(length.warmup // 2, stage.optimizer, length)
        assert halfway == pytest.approx((1e-6 + rate["warm"]) / 2)

    def test_augmentation(self, stage: Stage) -> None:
        data = stage.data
        assert isinstance(data, ImageFolder)
        assert (data.image_size, data.eval_resize) == (224, 256)
        assert data.crop_scale == (0.08, 1.0)
        assert data.crop_ratio == pytest.approx((3 / 4, 4 / 3))
        assert data.flip == 0.5
        assert (data.mixup, data.cutmix) == (0.8, 1.0)
        assert (data.mix_prob, data.mixup_switch_prob) == (1.0, 0.5)
        assert data.random_erasing == 0.25
        assert data.repeated_augmentation == 3
        assert data.color_jitter == 0.4
        assert data.rand_augment is not None
        assert (data.rand_augment.magnitude, data.rand_augment.magnitude_std, data.rand_augment.operations) == (
            9,
            0.5,
            2,
        )
        assert isinstance(stage.task, Classification)
        assert stage.task.label_smoothing == 0.1

    def test_model(self, stage: Stage, variant: str) -> None:
        assert stage.model.name == f"scalablevit_{variant}"
        assert stage.model.drop_path_rate == DROP_PATH[variant]
        assert stage.model.init is None
        # only S has the paper's 32.4 M parameters with wide values; B and L have theirs without
        assert stage.model.options == ({"wide_value": True} if variant == "small" else {})


@pytest.mark.parametrize("head", ["semantic_fpn", "upernet"])
class TestADE20K:
    @pytest.fixture
    def stage(self, head: str, variant: str) -> Stage:
        return only_stage(f"ade20k_{head}_scalablevit_{variant}")

    def test_optimizer(self, stage: Stage, head: str) -> None:
        optimizer = stage.optimizer
        assert optimizer.name == "adamw"
        assert optimizer.lr == {"semantic_fpn": 1e-4, "upernet": 6e-5}[head]
        assert optimizer.weight_decay == {"semantic_fpn": 1e-4, "upernet": 1e-2}[head]
        assert optimizer.betas == (0.9, 0.999)
        assert optimizer.clip_norm is None
        assert optimizer.layer_decay is None

    def test_length_and_batch(self, stage: Stage, head: str) -> None:
        assert stage.training.steps == {"semantic_fpn": 80_000, "upernet": 160_000}[head]
        assert stage.training.global_batch_size == 16
        assert (stage.cluster.workers, stage.training.accumulation_steps) == (
            {"semantic_fpn": 4, "upernet": 8}[head],
            1,
        )
        assert stage.training.ema_decay is None

    def test_learning_rate(self, stage: Stage, head: str) -> None:
        length, rate = Length.of(stage, ADE20K_TRAIN), rates(stage, ADE20K_TRAIN)
        assert stage.optimizer.schedule.kind == "polynomial"
        if head == "semantic_fpn":
            assert length.warmup == 0
            assert rate["first"] == rate["warm"] == 1e-4
            assert rate["middle"] == pytest.approx(1e-4 * 0.5**0.9)
        else:
            assert length.warmup == 1500
            assert rate["first"] == 0
            assert rate["warm"] == pytest.approx(6e-5 * (1 - 1500 / 160_000))
            assert rate["middle"] == pytest.approx(3e-5)
        assert rate["end"] == 0

    def test_sizes_and_augmentation(self, stage: Stage, head: str) -> None:
        data = stage.data
        assert isinstance(data, MaskPairs)
        assert (data.short_side, data.long_side, data.crop_size) == (512, 2048, 512)
        assert data.scale_range == (1.0, 1.0)
        assert data.flip == 0.5
        assert data.color_jitter == 0
        assert data.reduce_zero_label
        assert data.ignore_index == 255

    def test_classes(self, stage: Stage, head: str) -> None:
        data = stage.data
        assert isinstance(data, MaskPairs)
        assert isinstance(data.classes, list)
        assert len(set(data.classes)) == 150
        assert (data.classes[0], data.classes[12], data.classes[149]) == ("wall", "person", "flag")

    def test_model(self, stage: Stage, head: str, variant: str) -> None:
        assert stage.model.name == f"scalablevit_{variant}"
        assert stage.model.drop_path_rate == DROP_PATH[variant]
        assert stage.model.init == f"models:/imagenet_scalablevit_{variant}-pretrain@candidate"
        # the form of the weights that it starts from
        assert stage.model.options == only_stage(f"imagenet_scalablevit_{variant}").model.options

    def test_head_and_evaluation(self, stage: Stage, head: str) -> None:
        task = stage.task
        assert isinstance(task, Segmentation)
        assert task.head == head
        assert task.head_channels == {"semantic_fpn": 128, "upernet": 512}[head]
        assert task.sliding is None
        if head == "semantic_fpn":
            assert task.neck_channels == 256
            assert task.test_time_augmentation is None
        else:
            assert task.auxiliary_loss_weight == 0.4
            assert task.test_time_augmentation is not None
            assert task.test_time_augmentation.scales == (0.5, 0.75, 1.0, 1.25, 1.5, 1.75)
            assert task.test_time_augmentation.flip


@pytest.mark.parametrize(("head", "schedule", "variant"), COCO_ROWS)
class TestCOCO:
    @pytest.fixture
    def stage(self, head: str, schedule: str, variant: str) -> Stage:
        return only_stage(f"coco_{head}_{schedule}_scalablevit_{variant}")

    def test_optimizer(self, stage: Stage, head: str, schedule: str, variant: str) -> None:
        optimizer = stage.optimizer
        assert optimizer.name == "adamw"
        assert optimizer.lr == (2e-4 if (head, schedule) == ("mask_rcnn", "1x") else 1e-4)
        assert optimizer.weight_decay == {"1x": 1e-4, "3x": 5e-2}[schedule]
        assert optimizer.betas == (0.9, 0.999)
        assert optimizer.clip_norm is None
        assert optimizer.layer_decay is None

    def test_length_and_batch(self, stage: Stage, head: str, schedule: str, variant: str) -> None:
        length = Length.of(stage, COCO_TRAIN)
        assert stage.training.epochs == {"1x": 12, "3x": 36}[schedule]
        assert stage.training.global_batch_size == 16
        assert (stage.cluster.workers, stage.training.accumulation_steps) == (8, 1)
        assert length.total == {"1x": 88_715, "3x": 266_146}[schedule]
        assert length.decay_steps == {"1x": (59_144, 81_323), "3x": (199_610, 243_967)}[schedule]
        assert length.evaluate_every == 7393
        assert stage.training.ema_decay is None
        assert stage.training.early_stopping is None

    def test_learning_rate(self, stage: Stage, head: str, schedule: str, variant: str) -> None:
        length, peak = Length.of(stage, COCO_TRAIN), stage.optimizer.lr

        def rate(step: int) -> float:
            return learning_rate(step, stage.optimizer, length)

        assert length.warmup == 500
        assert rate(0) == pytest.approx(peak / 1000)
        assert rate(250) == pytest.approx((peak / 1000 + peak) / 2)
        assert rate(500) == peak
        first, second = length.decay_steps
        assert rate(first - 1) == peak
        assert rate(first) == pytest.approx(peak / 10)
        assert rate(second - 1) == pytest.approx(peak / 10)
        assert rate(second) == pytest.approx(peak / 100)
        assert rate(length.total) == pytest.approx(peak / 100)

    def test_sizes_and_augmentation(self, stage: Stage, head: str, schedule: str, variant: str) -> None:
        data = stage.data
        assert isinstance(data, CocoInstances)
        assert (data.short_side, data.long_side) == (800, 1333)
        assert data.train_short_sides == {"1x": None, "3x": (480, 800)}[schedule]
        assert data.flip == 0.5
        assert data.color_jitter == 0
        assert data.group_by_aspect
        assert data.instance_masks == (head == "mask_rcnn")

    def test_files(self, stage: Stage, head: str, schedule: str, variant: str) -> None:
        """The names under which COCO 2017 is published."""
        for split, name in ((stage.data.train, "train2017"), (stage.data.val, "val2017")):
            assert (split.images, split.annotations) == (name, f"annotations/instances_{name}.json")

    def test_model(self, stage: Stage, head: str, schedule: str, variant: str) -> None:
        assert stage.model.name == f"scalablevit_{variant}"
        assert stage.model.drop_path_rate == DROP_PATH[variant]
        assert stage.model.init == f"models:/imagenet_scalablevit_{variant}-pretrain@candidate"
        # the form of the weights that it starts from
        assert stage.model.options == only_stage(f"imagenet_scalablevit_{variant}").model.options

    def test_head(self, stage: Stage, head: str, schedule: str, variant: str) -> None:
        task = stage.task
        assert isinstance(task, Detection)
        assert task.head == head
        assert (task.neck_channels, task.anchor_size) == (256, 32)
        assert (task.score_threshold, task.nms_threshold, task.max_detections) == (0.05, 0.5, 100)
        assert (task.head_channels, task.proposals, task.roi_samples) == (1024, 1000, 512)


def test_no_row_is_missing() -> None:
    rows = {f"imagenet_scalablevit_{each}" for each in VARIANTS}
    rows |= {f"ade20k_{head}_scalablevit_{each}" for head in ("semantic_fpn", "upernet") for each in VARIANTS}
    rows |= {f"coco_{head}_{schedule}_scalablevit_{variant}" for head, schedule, variant in COCO_ROWS}
    assert len(rows) == 3 + 6 + 10
    assert rows <= {path.stem for path in RECIPES.glob("*.yaml")}


def test_the_named_starting_models_are_what_the_recipes_register(variant: str) -> None:
    recipe = load_recipe(RECIPES / f"imagenet_scalablevit_{variant}.yaml")
    (name,) = recipe.stages
    assert recipe.stages[name].tracking.register_as is None  # so `<recipe>-<stage>`
    assert f"{recipe.name}-{name}" == f"imagenet_scalablevit_{variant}-pretrain"


@pytest.mark.parametrize("path", sorted(RECIPES.glob("*_scalablevit_*.yaml")), ids=lambda path: path.stem)
def test_every_value_says_where_it_comes_from(path: Path) -> None:
    """Each setting of the sections that decide the result carries its source: C, cmd, ours, or the paper's metrics."""
    section = ""
    for line in path.read_text().splitlines():
        if line and not line.startswith((" ", "#")):
            section = line.partition(":")[0]
        setting, _, remark = line.partition("  #")
        if section in ("optimizer", "training") and line.startswith("  ") and not setting.endswith(":"):
            assert re.search(r"\b(C|cmd|ours|paper)\b", remark), f"{path.name}: {line}"
