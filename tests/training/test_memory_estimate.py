"""Memory counted on fake tensors against what a real step keeps and a real training leaves on disk."""

import pytest
import torch
from torch import Tensor

from scalablevit.config.recipe import Length
from scalablevit.tasks.registry import build_task, task_kind
from scalablevit.tasks.task import Task
from scalablevit.training import worker
from scalablevit.training.checkpoint import CheckpointStore
from scalablevit.training.loop import TrainContext
from scalablevit.training.memory_estimate import estimate_memory, kept_bytes
from scalablevit.training.worker import WorkerConfig

WITHIN = 0.15
CLASSES = ("circle", "cross", "ring", "square", "star", "triangle")
IMAGES = 4


def counted(stage, task: Task, images: int = IMAGES) -> int:
    with torch.device("meta"):
        model = task.build_model()
    return kept_bytes(stage, task, model, images)


def saved(stage, task: Task) -> int:
    """Bytes that autograd saves in a real forward pass, without the weights."""
    torch.manual_seed(0)
    model = task.build_model().train()
    weights = {each.untyped_storage().data_ptr() for each in [*model.parameters(), *model.buffers()]}
    sizes: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            sizes[storage.data_ptr()] = storage.nbytes()
        return tensor

    context = TrainContext(stage, Length.of(stage, 64), task, torch.device("cpu"), 0, 1)
    costs = task_kind(stage.task.kind).build_costs(stage, task.classes)
    batch = task.prepare(costs.blank_batch(IMAGES), "train", (0,))
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor), context.autocast():
        loss, _ = task.loss(model, batch)
    assert torch.isfinite(loss)
    return sum(sizes.values())


@pytest.mark.parametrize(
    ("kind", "sections"),
    [
        ("classification", {"training": {"precision": "bfloat16"}, "data": {"mixup": 0.8, "random_erasing": 1.0}}),
        ("segmentation", {"task": {"head": "upernet"}, "model": {"name": "resnet18"}}),
        ("detection", {}),
        ("detection", {"task": {"head": "retinanet"}}),
    ],
)
def test_activations_are_what_autograd_saves(kind, sections, request):
    fixture = {"classification": "make_stage", "segmentation": "make_segmentation", "detection": "make_detection"}[kind]
    stage = request.getfixturevalue(fixture)(**sections)
    task = build_task(stage, CLASSES)
    assert counted(stage, task) == pytest.approx(saved(stage, task), rel=WITHIN)


def test_activations_by_a_gpus_rules_and_recomputed(make_stage):
    on_gpu = {"cluster": {"gpus_per_worker": 1}}
    whole, half, recomputed = (
        counted(
            stage, build_task(stage, CLASSES), images=256
        )  # few ones keep less than the weights' copies in bfloat16
        for stage in (
            make_stage(**on_gpu),
            make_stage(**on_gpu, training={"precision": "bfloat16"}),
            make_stage(**on_gpu, model={"grad_checkpointing": True}),
        )
    )
    assert whole / 2 < half < 0.8 * whole  # norms and softmaxes stay in float32
    assert 0 < recomputed < whole


@pytest.mark.parametrize("options", [{"name": "adamw"}, {"name": "sgd"}])
def test_state_and_checkpoint_of_a_real_training(options, make_stage, tmp_path):
    short = {"steps": 1, "global_batch_size": IMAGES, "evaluate_every": {"steps": 1}, "ema_decay": 0.9}
    stage = make_stage(optimizer=options, training=short)
    foretold = estimate_memory(stage, build_task(stage, CLASSES), IMAGES)
    given = WorkerConfig(stage.model_dump_json(), str(tmp_path), str(tmp_path), init_weights=None)
    ended = worker.run(given, 0, 1, torch.device("cpu"), lambda records, node: None).training
    assert ended is not None and ended.reason == "finished"
    (entry,) = CheckpointStore(str(tmp_path)).entries()
    folder = tmp_path / "checkpoints" / entry.name
    on_disk = {file.stem: file.stat().st_size for file in folder.glob("*.safetensors")}
    assert foretold.weights == pytest.approx(on_disk["model"], rel=WITHIN)
    assert foretold.moments == pytest.approx(on_disk["optimizer"], rel=WITHIN)
    assert foretold.average == pytest.approx(on_disk["ema"], rel=WITHIN)
    assert foretold.checkpoint == pytest.approx(sum(f.stat().st_size for f in folder.iterdir()), rel=WITHIN)
    assert foretold.gradients == pytest.approx(foretold.weights, rel=WITHIN)  # a few buffers have none
