"""Image classification: mixed soft targets in training; top-1, and of more than five classes top-5, in evaluation."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from statistics import NormalDist
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from scalablevit.config.data import LabelledImages, SplitName
from scalablevit.config.promotion import TOP5_CLASSES
from scalablevit.config.recipe import Stage
from scalablevit.config.task import Classification
from scalablevit.config.task_info import task_info
from scalablevit.data.batch import LabelBatch
from scalablevit.data.loader import collate_classification
from scalablevit.data.mixing import mix, normalize, random_erasing
from scalablevit.models.backbone import build_classifier


def sections(stage: Stage) -> tuple[Classification, LabelledImages]:
    """Return a classification stage's task section and data section.

    Raises:
        TypeError: the stage is of another kind.
    """
    if not isinstance(stage.task, Classification) or not isinstance(stage.data, LabelledImages):
        raise TypeError(f"not a classification stage: task {stage.task.kind}, source {stage.data.source}")
    return stage.task, stage.data


class ClassificationTask:
    """Image classification on soft labels; implements `tasks.task.Task`."""

    best_metric = task_info("classification").best_metric
    one_size = True

    def __init__(self, stage: Stage, classes: tuple[str, ...]) -> None:
        task, data = sections(stage)
        self.stage = stage
        self.data = data
        self.smoothing = task.label_smoothing
        self.classes = classes

    def build_model(self) -> nn.Module:
        """Return a classifier with fresh weights: images (N, 3, H, W) to logits (N, classes)."""
        model = self.stage.model
        options: dict[str, Any] = {"grad_checkpointing": model.grad_checkpointing, **model.options}
        return build_classifier(model.name, len(self.classes), model.drop_path_rate, **options)

    def backbone(self, model: nn.Module) -> nn.Module:
        """Return the whole classifier; a head for other classes keeps its fresh weights."""
        return model

    def collate(self, split: SplitName) -> Callable[[list[Any]], LabelBatch]:
        """Return the function that stacks uint8 images (N, H, W, 3) and labels (N,), for both splits."""
        return collate_classification

    def prepare(self, batch: LabelBatch, split: SplitName, seed: Sequence[int]) -> LabelBatch:
        """Return the batch with float images (N, 3, H, W) and, in training, soft labels (N, classes) as `targets`."""
        data = self.data
        images = normalize(batch.images, data.mean, data.std, channels_last=self.stage.model.channels_last)
        if split == "val":
            return replace(batch, images=images)
        rng = np.random.default_rng(list(seed))
        # erased before mixed, as in DeiT's training, which the paper's follows
        images = random_erasing(images, data.random_erasing, rng)
        images, targets = mix(
            images,
            batch.labels,
            classes=len(self.classes),
            mixup=data.mixup,
            cutmix=data.cutmix,
            probability=data.mix_prob,
            switch_probability=data.mixup_switch_prob,
            smoothing=self.smoothing,
            rng=rng,
        )
        return replace(batch, images=images, targets=targets)

    def loss(self, model: nn.Module, batch: LabelBatch) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the cross-entropy with the soft labels, mean over the batch (a scalar); nothing else is reported."""
        logits = model(batch.images)
        return F.cross_entropy(logits.float(), batch.targets), {}

    def predict(self, model: nn.Module, batch: LabelBatch) -> Tensor:
        """Return logits (N, classes), float32."""
        logits: Tensor = model(batch.images)
        return logits.float()

    def metric(self) -> "AccuracyMetric":
        """Return a fresh metric: top-1, top-5 where there are more than five classes, and cross-entropy."""
        return AccuracyMetric(len(self.classes))


class AccuracyMetric:
    """Accuracies and mean loss from sums in float64, so that the order of ranks does not matter.

    Args:
        classes: number of classes.
    """

    def __init__(self, classes: int) -> None:
        self.top = 5 if classes >= TOP5_CLASSES else 1
        self.sums = torch.zeros(4, dtype=torch.float64)

    def update(self, predictions: Tensor, batch: LabelBatch) -> None:
        """Add logits (N, classes) with labels (N,)."""
        labels = batch.labels
        hits = predictions.topk(self.top, dim=1).indices == labels[:, None]
        loss = F.cross_entropy(predictions, labels, reduction="sum")
        self.sums = (
            self.sums.to(predictions.device)
            + torch.stack(
                [hits[:, 0].sum(), hits.any(dim=1).sum(), loss, torch.full((), len(labels), device=predictions.device)]
            ).double()
        )

    def synchronize(self) -> None:
        """Sum over ranks."""
        if dist.is_initialized() and dist.get_world_size() > 1:
            if dist.get_backend() == "nccl":
                self.sums = self.sums.cuda()
            dist.all_reduce(self.sums)

    def compute(self) -> dict[str, float]:
        """Return accuracies as fractions, the mean loss and the number of samples.

        `val/top1_low95` is the lower end of Wilson's 95 % interval of `val/top1`. `val/top5` is present only where
        there are more than five classes.
        """
        top1, top5, loss, count = self.sums.tolist()
        return {
            "val/top1": top1 / count,
            **({"val/top5": top5 / count} if self.top == 5 else {}),
            "val/top1_low95": wilson_lower_bound(top1, count),
            "val/loss": loss / count,
            "val/samples": count,
        }


def wilson_lower_bound(hits: float, count: float, confidence: float = 0.95) -> float:
    """Return the lower end of Wilson's two-sided score interval for a proportion, 0 to 1 (Wilson 1927).

    Args:
        hits: successes.
        count: trials, above 0.
        confidence: of the interval, between 0 and 1.
    """
    z = NormalDist().inv_cdf(0.5 + confidence / 2)
    share = hits / count
    centre = share + z * z / (2 * count)
    margin = z * (share * (1 - share) / count + z * z / (4 * count * count)) ** 0.5
    return float((centre - margin) / (1 + z * z / count))
