"""Model, loss and metric: each tag is a decision of its own."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from image_tags.sections import TAGGING, Tagging, TagTable
from scalablevit.config.data import SplitName
from scalablevit.config.recipe import Stage
from scalablevit.data.loader import Batch, collate_classification
from scalablevit.data.mixing import normalize
from scalablevit.data.transforms import prepare_image
from scalablevit.models.backbone import build_classifier
from scalablevit.models.counting import Cost, cost_beside_paper, count_cost
from scalablevit.tasks.metric_names import class_metric_names
from scalablevit.tasks.task import GREY, NOTHING_LEFT_OUT


@dataclass(frozen=True, eq=False)
class TagPrediction:
    """How probable each tag is."""

    classes: tuple[str, ...]
    probabilities: NDArray[np.float32]
    """(classes,)"""
    threshold: float

    @property
    def tags(self) -> list[str]:
        """Names of the tags that count as given."""
        return [name for name, share in zip(self.classes, self.probabilities, strict=True) if share >= self.threshold]

    def answer(self) -> dict[str, Any]:
        """Return `tags`, and `probabilities` of all of them by name."""
        return {"tags": self.tags, "probabilities": dict(zip(self.classes, self.probabilities.tolist(), strict=True))}


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

    def cost(self) -> Cost:
        with torch.device("meta"):
            model = self.build_model()
        return count_cost(model, (1, 3, *self.cost_size))

    @property
    def cost_size(self) -> tuple[int, int]:
        return self.data.image_size, self.data.image_size

    def cost_beside_paper(self) -> str:
        return cost_beside_paper(self.stage.model.name, self.cost())

    def collate(self, split: SplitName) -> Callable[[list[Any]], Batch]:
        return collate_classification

    def prepare(self, batch: Batch, split: SplitName, seed: Sequence[int]) -> Batch:
        data = self.data
        images = normalize(batch["image"], data.mean, data.std, channels_last=self.stage.model.channels_last)
        return {**batch, "image": images}

    def loss(self, model: nn.Module, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        if batch["samples"] == 0:  # all were undecodable: the rank still takes part in the step
            side = self.data.image_size
            return model(batch["image"].new_zeros(1, 3, side, side)).float().sum() * 0.0, {}
        logits = model(batch["image"]).float()
        return F.binary_cross_entropy_with_logits(logits, batch["label"].float()), {}

    def blank_batch(self, samples: int) -> Batch:
        side = self.data.image_size
        return {
            "image": torch.full((samples, side, side, 3), GREY, dtype=torch.uint8),
            "label": torch.zeros(samples, len(self.classes), dtype=torch.int64),
            "samples": samples,
            **NOTHING_LEFT_OUT,
        }

    def countable_loss(self, model: nn.Module, batch: Batch) -> Tensor:
        return self.loss(model, batch)[0]

    def predict(self, model: nn.Module, batch: Batch) -> Tensor:
        """Logits (N, classes)."""
        return model(batch["image"]).float()

    @property
    def augmented_data(self) -> TagTable:
        return self.data

    def predict_augmented(self, model: nn.Module, batch: Batch) -> Tensor:
        return self.predict(model, batch)

    def metric(self) -> "TagMetric":
        return TagMetric(self.classes, self.threshold)

    def predict_image(self, model: nn.Module, image: NDArray[np.uint8], device: torch.device) -> TagPrediction:
        logits = self.predict(model, {"image": prepare_image(self.stage, image, device)})
        return TagPrediction(self.classes, logits.sigmoid()[0].cpu().numpy(), self.threshold)

    def answer(self, model: nn.Module, image: NDArray[np.uint8], device: torch.device) -> dict[str, Any]:
        return self.predict_image(model, image, device).answer()


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

    def update(self, predictions: Tensor, batch: Batch) -> None:
        labels = batch["label"]
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
