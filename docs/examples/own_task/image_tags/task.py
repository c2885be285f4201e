"""Model, loss and metric: each tag is a decision of its own."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from image_tags.sections import TAGGING, Tagging, TagTable
from scalablevit.config.data import SplitName
from scalablevit.config.recipe import Stage
from scalablevit.data.batch import LabelBatch
from scalablevit.data.loader import collate_classification
from scalablevit.data.mixing import normalize
from scalablevit.models.backbone import build_classifier
from scalablevit.tasks.metric_names import class_metric_names


class TaggingTask:
    """See `scalablevit.tasks.task.Task`."""

    best_metric = TAGGING.best_metric
    one_size = True

    def __init__(self, stage: Stage, classes: tuple[str, ...]) -> None:
        assert isinstance(stage.task, Tagging)
        assert isinstance(stage.data, TagTable)
        self.stage, self.data, self.threshold = stage, stage.data, stage.task.threshold
        self.classes = classes

    def build_model(self) -> nn.Module:
        model = self.stage.model
        options: dict[str, Any] = {"grad_checkpointing": model.grad_checkpointing, **model.options}
        return build_classifier(model.name, len(self.classes), model.drop_path_rate, **options)

    def backbone(self, model: nn.Module) -> nn.Module:
        return model

    def collate(self, split: SplitName) -> Callable[[list[Any]], LabelBatch]:
        return collate_classification

    def prepare(self, batch: LabelBatch, split: SplitName, seed: Sequence[int]) -> LabelBatch:
        data = self.data
        images = normalize(batch.images, data.mean, data.std, channels_last=self.stage.model.channels_last)
        return replace(batch, images=images)

    def loss(self, model: nn.Module, batch: LabelBatch) -> tuple[Tensor, dict[str, Tensor]]:
        logits = model(batch.images).float()
        return F.binary_cross_entropy_with_logits(logits, batch.labels.float()), {}

    def predict(self, model: nn.Module, batch: LabelBatch) -> Tensor:
        """Logits (N, classes)."""
        return model(batch.images).float()

    def metric(self) -> "TagMetric":
        return TagMetric(self.classes, self.threshold)


def counts_of(logits: Tensor, labels: Tensor, threshold: float) -> Tensor:
    """Return right, too many and missing tags, float64 (3, N, classes) of 0 and 1."""
    given, true = logits.sigmoid() >= threshold, labels.bool()
    return torch.stack([given & true, given & ~true, ~given & true]).double()


def f1_of(right: float, wrong: float, missing: float) -> float:
    """Return the harmonic mean of precision and recall over all tags of all images; nan without any tag."""
    total = 2 * right + wrong + missing
    return 2 * right / total if total else float("nan")


class TagMetric:
    """F1 over all tags, the recall of each, and the loss."""

    def __init__(self, classes: tuple[str, ...], threshold: float) -> None:
        self.classes, self.threshold = classes, threshold
        self.sums = torch.zeros(4, len(classes), dtype=torch.float64)
        """Right, too many, missing tags and summed losses, by tag."""
        self.samples = torch.zeros(1, dtype=torch.float64)

    def update(self, predictions: Tensor, batch: LabelBatch) -> None:
        labels = batch.labels
        losses = F.binary_cross_entropy_with_logits(predictions, labels.float(), reduction="none")
        counts = counts_of(predictions, labels, self.threshold).sum(dim=1)
        self.sums = self.sums.to(counts.device) + torch.cat([counts, losses.double().sum(dim=0)[None]])
        self.samples += len(labels)

    def synchronize(self) -> None:
        if dist.is_initialized() and dist.get_world_size() > 1:
            everything = torch.cat([self.sums.flatten(), self.samples.to(self.sums.device)])
            everything = everything.cuda() if dist.get_backend() == "nccl" else everything
            dist.all_reduce(everything)
            self.sums, self.samples = everything[:-1].view_as(self.sums), everything[-1:].cpu()

    def compute(self) -> dict[str, float]:
        right, wrong, missing, loss = self.sums.cpu()
        samples = float(self.samples)
        recall = (right / (right + missing)).tolist()
        return {
            "val/f1": f1_of(float(right.sum()), float(wrong.sum()), float(missing.sum())),
            "val/loss": float(loss.sum()) / max(samples, 1.0) / len(self.classes),
            "val/samples": samples,
            **{
                f"val/{name}": value
                for name, value in zip(class_metric_names("recall", self.classes), recall, strict=True)
            },
        }
