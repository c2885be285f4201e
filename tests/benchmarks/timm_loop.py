"""A plain training loop of timm's own parts: dataset, loader with prefetcher, Mixup, optimizer, scheduler.

    python tests/benchmarks/timm_loop.py <stage as JSON> <run folder> <file for rates and score>

It does what the stage says, in one process and thread, as timm's training script does by default. The run folder is
not used: nothing is saved.
"""

import json
import sys
import time
from pathlib import Path
from typing import Any

import timm
import torch
from benchmarks.rates import WINDOW
from timm.data import FastCollateMixup, create_dataset, create_loader
from timm.loss import SoftTargetCrossEntropy
from timm.optim import create_optimizer_v2
from timm.scheduler import create_scheduler_v2
from timm.utils import dispatch_clip_grad
from torch import nn

import scalablevit.models  # noqa: F401  registers the variants
from scalablevit.config.recipe import Stage

CPU = torch.device("cpu")


def main() -> int:
    stage = Stage.model_validate_json(Path(sys.argv[1]).read_text())
    torch.set_num_threads(1)
    torch.manual_seed(stage.training.seed)
    root = Path(stage.data.root)
    train = create_dataset("", root=str(root / stage.data.train.images), is_training=True)
    val = create_dataset("", root=str(root / stage.data.val.images))
    classes = len(train.reader.class_to_idx)
    model = timm.create_model(stage.model.name, num_classes=classes)
    rates = fit(model, train_loader(train, stage, classes), stage)
    score = top1(model, loader(val, stage))
    Path(sys.argv[3]).write_text(json.dumps({"rates": rates, "score": score}))
    return 0


def loader(dataset: Any, stage: Stage, **options: Any) -> Any:
    """Batches of normalized images in this process."""
    data = stage.data
    return create_loader(
        dataset, data.image_size, stage.training.global_batch_size, interpolation="bilinear", mean=data.mean,
        std=data.std,
        crop_pct=data.image_size / data.eval_resize, num_workers=0, persistent_workers=False, device=CPU, **options,
    )  # fmt: skip


def train_loader(dataset: Any, stage: Stage, classes: int) -> Any:
    """With the stage's augmentation; batches are mixed where they are put together, as bytes."""
    data = stage.data
    mixup = FastCollateMixup(
        mixup_alpha=data.mixup, cutmix_alpha=data.cutmix, prob=data.mix_prob,
        switch_prob=data.mixup_switch_prob, label_smoothing=stage.task.label_smoothing, num_classes=classes,
    )  # fmt: skip
    return loader(
        dataset, stage, is_training=True, scale=data.crop_scale, ratio=data.crop_ratio, hflip=data.flip,
        color_jitter=data.color_jitter, re_prob=data.random_erasing, re_mode="pixel", collate_fn=mixup,
    )  # fmt: skip


def fit(model: nn.Module, batches: Any, stage: Stage) -> list[float]:
    """Train; images a second of each window of steps after the first."""
    wanted, epochs = stage.optimizer, int(stage.training.epochs or 0)
    optimizer = create_optimizer_v2(model, "adamw", lr=wanted.lr, weight_decay=wanted.weight_decay)
    scheduler, _ = create_scheduler_v2(
        optimizer, "cosine", num_epochs=epochs, min_lr=wanted.schedule.min_lr, warmup_lr=wanted.schedule.warmup_lr,
        warmup_epochs=wanted.schedule.warmup_epochs, step_on_epochs=False, updates_per_epoch=len(batches),
    )  # fmt: skip
    loss_of = SoftTargetCrossEntropy()
    rates, step, since = [], 0, time.perf_counter()
    model.train()
    for _ in range(epochs):
        for images, targets in batches:
            optimizer.zero_grad()
            loss_of(model(images), targets).backward()
            dispatch_clip_grad(model.parameters(), wanted.clip_norm)
            optimizer.step()
            step += 1
            scheduler.step_update(step)
            if step % WINDOW == 0:
                now = time.perf_counter()
                rates.append(WINDOW * stage.training.global_batch_size / (now - since))
                since = now
    return rates[1:]


@torch.no_grad()
def top1(model: nn.Module, batches: Any) -> float:
    """Fraction of the pictures whose class is found."""
    model.eval()
    hits = [(model(images).argmax(1) == labels).float() for images, labels in batches]
    return float(torch.cat(hits).mean())


if __name__ == "__main__":
    sys.exit(main())
