"""What saving, tracking and evaluating cost a worker, measured in this process without Ray."""

import argparse
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import timm
import torch
from benchmarks.rows import Row
from benchmarks.timing import interleaved, speed_up, spread
from benchmarks.toy_stage import recipe, stage_of, write_pictures
from timm.utils.model_ema import ModelEmaV3
from torch.nn import functional

from scalablevit.config.recipe import Keep, Length, Optimizer
from scalablevit.data.dataset import SampleDataset
from scalablevit.data.sources.opening import open_source
from scalablevit.run_files import CALLBACK_LOG
from scalablevit.tasks.registry import build_task
from scalablevit.tracking.callback import OutboxCallback
from scalablevit.training import worker
from scalablevit.training.callbacks import eval_batches_of
from scalablevit.training.checkpoint import BackgroundWriter, CheckpointStore
from scalablevit.training.evaluate import evaluate
from scalablevit.training.loop import TrainContext
from scalablevit.training.optim import build_optimizer
from scalablevit.training.state import Record, TrainState

MINUTE_S = 60.0
STEPS_BESIDE_A_WRITE = 2
"""Of ScalableViT-S on one core they take longer than the write does."""
EVALUATION_BATCH = 8
UID = "0" * 32
CPU = torch.device("cpu")


# --- saving ---


def checkpoint_rows(options: argparse.Namespace, settings: dict[str, Any]) -> list[Row]:
    """How long a save holds the loop, and what the write behind it costs the next steps."""
    rounds, name, side, batch = 3 if options.quick else 9, "scalablevit_small", 224, 4
    held, seconds, size = checkpoint_times(name, side, batch, rounds)
    settings |= {"model": name, "side": side, "batch": batch, "held_s": held, "times": spread(seconds)}
    return checkpoint_metrics(held, seconds, size)


def checkpoint_times(name: str, side: int, batch: int, rounds: int) -> tuple[list[float], dict[str, list[float]], int]:
    """Seconds that saves held the loop; of some steps without and with a save before them; bytes of a checkpoint."""
    torch.set_num_threads(1)
    state = state_of(name)
    images, labels = torch.randn(batch, 3, side, side), torch.arange(batch)
    held: list[float] = []
    with tempfile.TemporaryDirectory(prefix="bench-") as folder:
        writer = BackgroundWriter(CheckpointStore(folder), Keep())

        def train() -> None:
            for _ in range(STEPS_BESIDE_A_WRITE):
                step(state, images, labels)

        def save_and_train() -> None:
            begun = time.perf_counter()
            writer.submit(state.snapshot(), None)
            held.append(time.perf_counter() - begun)
            train()
            writer.wait()
            if writer.failed:
                raise RuntimeError(writer.failed)

        seconds = interleaved({"plain": train, "saving": save_and_train}, rounds, 1, time.perf_counter)
    return held[1:], seconds, state.snapshot_bytes()


def state_of(name: str) -> TrainState:
    """A model with AdamW and an average of its weights, before its first step."""
    torch.manual_seed(0)
    model = timm.create_model(name)
    return TrainState(model, build_optimizer(model, Optimizer(lr=1e-6)), ModelEmaV3(model, decay=0.9999))


def step(state: TrainState, images: torch.Tensor, labels: torch.Tensor) -> None:
    functional.cross_entropy(state.model(images), labels).backward()
    state.optimizer.step()
    state.optimizer.zero_grad()
    assert state.ema is not None
    state.ema.update(state.model)
    state.step += 1


def checkpoint_metrics(held: list[float], seconds: dict[str, list[float]], size: int) -> list[Row]:
    """Shares of a minute with one checkpoint."""
    whole = statistics.median(seconds["saving"]) - statistics.median(seconds["plain"])
    what = f"AdamW + EMA, {size / 2**20:.0f} MiB, one a minute, of wall time"
    return [
        Row("checkpoint, loop held", 1.0, 100 * statistics.median(held) / MINUTE_S, what, at_most=True, unit="%"),
        Row("checkpoint, with steps beside the write", None, 100 * whole / MINUTE_S, what, unit="%"),
    ]


# --- tracking ---


def tracking_rows(options: argparse.Namespace, settings: dict[str, Any]) -> list[Row]:
    """Time in the outbox, as if Ray Train's controller wrote it on the step's path, of the time of training."""
    steps = 60 if options.quick else 240
    spent, seconds = tracking_times(steps)
    settings |= {"steps": steps, "recipe": recipe(Path("data"), 1, steps), "report_s": spent}
    return tracking_metrics(spent, seconds, steps)


def tracking_times(steps: int, pictures: int = 512) -> tuple[list[float], float]:
    """Seconds that each report of a training took to the disk, and those of the training with them."""
    spent: list[float] = []
    with tempfile.TemporaryDirectory(prefix="bench-") as name:
        folder = Path(name)
        write_pictures(folder, train=pictures)
        callback = OutboxCallback(folder / "outbox", UID)

        def send(records: list[Record], node: dict[str, float]) -> None:
            begun = time.perf_counter()
            report = {"records": [record.as_dict() for record in records], "node": {"rank": 0, **node}}
            callback.after_report(None, [report], None)
            spent.append(time.perf_counter() - begun)

        stage = stage_of(recipe(folder, 1, steps))
        worker_config = worker.WorkerConfig(stage.model_dump_json(), str(folder / "run"), str(folder), None)
        result = worker.run(worker_config, 0, 1, CPU, send)
        if result.training is None or (folder / "outbox" / CALLBACK_LOG).exists():
            raise RuntimeError(f"the training failed, or a report was not recorded: {result}")
    return spent, result.training.seconds


def tracking_metrics(spent: list[float], seconds: float, steps: int) -> list[Row]:
    """Share of the training's time."""
    each = f"{1000 * sum(spent) / steps:.2f} ms of a step of {1000 * seconds / steps:.0f} ms, {len(spent)} reports"
    return [Row("tracking, outbox calls", 0.5, 100 * sum(spent) / seconds, each, at_most=True, unit="%")]


# --- evaluating ---


def evaluation_rows(options: argparse.Namespace, settings: dict[str, Any]) -> list[Row]:
    """Evaluation from JPEG files to metrics, beside passes over the same batches that are ready in memory."""
    rounds, pictures, name, side = 3 if options.quick else 9, 16 if options.quick else 32, "scalablevit_small", 224
    seconds = evaluation_times(name, side, pictures, rounds)
    settings |= {"model": name, "side": side, "images": pictures, "clock": "process_time", "times": spread(seconds)}
    return [Row("evaluation", 0.95, speed_up(seconds, "evaluation", "inference"), "passes over batches in memory")]


def evaluation_times(name: str, side: int, pictures: int, rounds: int) -> dict[str, list[float]]:
    """Processor seconds of both, all in one thread."""
    torch.set_num_threads(1)
    resize = side * 8 // 7
    with tempfile.TemporaryDirectory(prefix="bench-") as place:
        folder = Path(place)
        write_pictures(folder, train=8, val=pictures, side=resize)
        sections = recipe(folder, 1, 1) | {"model": {"name": name}}
        sections["data"] |= {"image_size": side, "eval_resize": resize}
        sections["training"] |= {"global_batch_size": EVALUATION_BATCH}
        stage = stage_of(sections)
        source = open_source(stage.data, "val", folder)
        task = build_task(stage, source.classes)
        context = TrainContext(stage, Length.of(stage, len(source)), task, CPU, rank=0, world=1)
        samples = SampleDataset(source, stage.data, stage.training.seed, train=False)
        model = task.build_model().eval()
        ready = [task.prepare(batch, "val", ()).images for batch in eval_batches_of(context, samples)]

        def whole() -> None:
            evaluate(task, model, eval_batches_of(context, samples), context.autocast(), most_bad=0.0)

        @torch.no_grad()
        def passes() -> None:
            for images in ready:
                model(images)

        return interleaved({"evaluation": whole, "inference": passes}, rounds, 1)
