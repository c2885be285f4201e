"""Training on a GPU through the worker: every task, precision and way of compiling, resumed (`make test-gpu`)."""

from pathlib import Path

import pytest
import torch
from harness.ranks import Attempt, newest, run_attempts

from scalablevit.config.recipe import Stage
from scalablevit.data.batch import Batch
from scalablevit.data.loader import prefetch
from scalablevit.training.worker import WorkerConfig

pytestmark = pytest.mark.gpu

LENGTH = {"checkpoint_every": {"steps": 1}, "log_every_steps": 1, "ema_decay": 0.9}
TASKS = ("classification", "segmentation", "detection")


def on_gpu(stage: Stage, folder: Path, stop_at: int | None = None) -> Attempt:
    """An attempt of a stage with all of its random values, loaded by two processes through pinned memory."""
    return Attempt(WorkerConfig(stage.model_dump_json(), str(folder), str(folder), None), stop_at, device="cuda")


def with_a_stop(stage: Stage, folder: Path) -> list[Attempt]:
    """The stage in one go, and stopped before its fourth step and resumed."""
    return [on_gpu(stage, folder / "whole"), on_gpu(stage, folder / "cut", 3), on_gpu(stage, folder / "cut")]


@pytest.fixture
def stages(make_stage, make_segmentation, make_detection):
    """Builds the stage of a task from a rate of stochastic depth and overrides of its training section."""
    makers = dict(zip(TASKS, (make_stage, make_segmentation, make_detection), strict=True))
    mixed = {"data": {"mixup": 0.8, "cutmix": 1.0, "random_erasing": 0.25}}

    def make(task: str, drop_path: float = 0.2, **training: object) -> Stage:
        return makers[task](
            **(mixed if task == "classification" else {}),
            model={"name": "scalablevit_tiny", "drop_path_rate": drop_path},
            training={"steps": 6, "global_batch_size": 12, "evaluate_every": {"steps": 6}, **LENGTH, **training},
            cluster={"gpus_per_worker": 1, "cpus_per_worker": 2, "loader_workers": 2},
        )

    return make


def losses(result: dict[str, object], after: int = 0) -> dict[int, float]:
    """Of the steps behind one."""
    told = {record["step"]: record["metrics"] for record in result["records"] if "train/loss" in record["metrics"]}
    return {step: metrics["train/loss"] for step, metrics in told.items() if step > after}


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("task", TASKS)
def test_a_stopped_training_goes_on_as_one_that_was_not(stages, tmp_path, task, precision):
    stage = stages(task, precision=precision)
    whole, first, second = run_attempts(with_a_stop(stage, tmp_path), 1, tmp_path)
    assert (whole["reason"], first, second["reason"]) == ("finished", {}, "finished")
    assert losses(second, 3) == pytest.approx(losses(whole, 3), rel=2e-2), "the kernels' order of sums is not fixed"
    assert newest(str(tmp_path / "cut")).step == 6
    weights = newest(str(tmp_path / "cut")).files["model"]
    assert all(torch.isfinite(tensor).all() for tensor in weights.values() if tensor.is_floating_point())


@pytest.mark.parametrize("task", ["classification", "segmentation"])
def test_a_deterministic_training_is_resumed_bit_for_bit_or_names_what_is_not(stages, tmp_path, task):
    stage = stages(task, deterministic=True)
    whole, _, _ = run_attempts(with_a_stop(stage, tmp_path), 1, tmp_path)
    ends = [newest(str(tmp_path / way)).files["model"] for way in ("whole", "cut")]
    different = [name for name, tensor in ends[0].items() if not torch.equal(tensor, ends[1][name])]
    assert not different or whole["nondeterministic"], different


@pytest.mark.parametrize("compiling", ["blocks", True])
def test_a_compiled_training_learns_what_an_eager_one_does(stages, tmp_path, compiling):
    ways = {"eager": False, "compiled": compiling}
    runs = [on_gpu(stages("classification", 0.0, compile=way), tmp_path / name) for name, way in ways.items()]
    eager, compiled = run_attempts(runs, 1, tmp_path)
    assert losses(compiled) == pytest.approx(losses(eager), rel=1e-3)


def test_batches_copied_ahead_arrive_whole_and_in_order():
    images = [torch.full((64, 64), number, dtype=torch.uint8).pin_memory() for number in range(50)]
    batches = [Batch(images=image, samples=1) for image in images]
    for number, batch in enumerate(prefetch(iter(batches), torch.device("cuda"))):
        assert batch.images.is_cuda
        torch.randn(512, 512, device="cuda") @ torch.randn(512, 512, device="cuda")
        assert torch.equal(batch.images.cpu(), images[number])
    assert number == 49
