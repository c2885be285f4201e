"""Intersection over union and accuracies from one confusion matrix, whatever the number of images."""

from collections.abc import Sequence

import torch
import torch.distributed as dist
from torch import Tensor

from scalablevit.config.errors import UserError
from scalablevit.data.batch import MaskBatch
from scalablevit.data.labels import IGNORE
from scalablevit.tasks.metric_names import class_metric_names


def pixels_by_pair(mask: Tensor, predicted: Tensor, classes: int) -> Tensor:
    """Return counts of pixels by label (row) and prediction (column), int64 (classes, classes).

    Args:
        mask: labels (height, width); pixels of 255 do not count.
        predicted: class indices (height, width).
        classes: number of classes.
    """
    counted = mask != IGNORE
    pairs = mask[counted].long() * classes + predicted[counted]
    return torch.bincount(pairs, minlength=classes * classes).view(classes, classes)


class ConfusionMetric:
    """Metrics from whole counts of pixels by label and prediction: no order of adding changes them.

    Args:
        classes: names, in the order of the network's outputs.
    """

    def __init__(self, classes: Sequence[str]) -> None:
        self.classes = tuple(classes)
        self.counts = torch.zeros(len(classes), len(classes), dtype=torch.int64)
        self.samples = torch.zeros(1, dtype=torch.int64)

    def update(self, predictions: list[Tensor], batch: MaskBatch) -> None:
        """Add label maps (height, width) with `batch.masks`; pixels whose mask is 255 do not count."""
        for predicted, mask in zip(predictions, batch.masks, strict=True):
            self.counts = self.counts.to(mask.device) + pixels_by_pair(mask, predicted, len(self.classes))
        self.samples += len(predictions)

    def synchronize(self) -> None:
        """Sum over ranks."""
        if dist.is_initialized() and dist.get_world_size() > 1:
            values = torch.cat([self.counts.flatten().cpu(), self.samples])
            values = values.cuda() if dist.get_backend() == "nccl" else values
            dist.all_reduce(values)
            self.counts, self.samples = values[:-1].view_as(self.counts).cpu(), values[-1:].cpu()

    def compute(self) -> dict[str, float]:
        """Return metrics as fractions, 0 to 1, and the number of images as `val/samples`.

        `val/miou` (mean IoU), `val/macc` (mean accuracy over classes), `val/aacc` (accuracy over pixels), and
        `val/iou/<class>`. As in mmseg's IoUMetric a class that is neither labelled nor predicted anywhere has no IoU,
        one that is not labelled no accuracy, and means run over the classes that have one. A class without IoU has no
        `val/iou/<class>`.

        Raises:
            UserError: no pixel was labelled.
        """
        counts = self.counts.cpu().double()
        hits, labelled, predicted = counts.diag(), counts.sum(dim=1), counts.sum(dim=0)
        if not labelled.sum():
            raise UserError(
                "no pixel of the validation split carries a class",
                where="data.val",
                fix="check the masks, data.ignore_index and data.reduce_zero_label",
            )
        iou = hits / (labelled + predicted - hits)
        metrics = {
            "val/miou": iou.nanmean().item(),
            "val/macc": (hits / labelled).nanmean().item(),
            "val/aacc": (hits.sum() / labelled.sum()).item(),
            "val/samples": float(self.samples.item()),
        }
        by_class = dict(zip(class_metric_names("val/iou", self.classes), iou.tolist(), strict=True))
        return metrics | {name: value for name, value in by_class.items() if value == value}
