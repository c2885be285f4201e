"""COCO's average precision of boxes and masks, by hotcoco."""

import numpy as np
import torch.distributed as dist
from hotcoco import COCOeval, StreamingEval

from scalablevit.config.errors import UserError
from scalablevit.data.batch import DetectionEvalBatch
from scalablevit.tasks.detection.coco_matching import Detections, Kind, add_images, add_to_stream, start_stream
from scalablevit.tasks.metric_names import class_metric_names

SUMMARY = ("ap", "ap50", "ap75", "ap_small", "ap_medium", "ap_large")
"""The first six of COCO's summary, in its order."""
_NO_VALUE = -1
"""COCO's result where nothing is annotated."""

_Seen = tuple[set[int], dict[Kind, StreamingEval]]
"""Indices of the images that a rank has seen, and their matches by what is compared."""


class CocoMetric:
    """Matches detections with annotations batch by batch and keeps only the matches; rank 0 evaluates those of all.

    Neither images' annotations nor masks are kept or exchanged: the matches take about 35 bytes a detection.

    Args:
        classes: names, in the order of their indices.
        masks: evaluate masks as well as boxes.
    """

    def __init__(self, classes: tuple[str, ...], *, masks: bool) -> None:
        self.classes = classes
        self.kinds: tuple[Kind, ...] = ("box", "mask") if masks else ("box",)
        self.metrics: dict[str, float] | None = None
        self._images = set[int]()
        self._streams = {kind: start_stream(classes, kind) for kind in self.kinds}

    def update(self, predictions: list[Detections], batch: DetectionEvalBatch) -> None:
        """Add images.

        Args:
            predictions: the detections in each image.
            batch: its `indices` and `instances` are read.

        Raises:
            ValueError: an image was added before, or masks are missing.
        """
        add_images(self._images, batch.indices.tolist())
        for kind, stream in self._streams.items():
            add_to_stream(stream, kind, predictions, batch)

    def synchronize(self) -> None:
        """Bring the matches of all ranks to rank 0, evaluate them there, and give the metrics to every rank."""
        seen: _Seen = (self._images, self._streams)
        if not (dist.is_initialized() and dist.get_world_size() > 1):
            self.metrics = self._evaluate([seen])
            return
        ranks: list[_Seen] | None = [seen] * dist.get_world_size() if dist.get_rank() == 0 else None
        dist.gather_object(seen, ranks, dst=0)
        broadcast = [self._evaluate(ranks) if ranks else None]
        dist.broadcast_object_list(broadcast, src=0)
        self.metrics = broadcast[0]

    def compute(self) -> dict[str, float]:
        """Return COCO's average precisions as fractions, 0 to 1, and the number of images as `val/samples`.

        `val/box_ap` (mean over IoU 0.5, 0.55, ... 0.95), `val/box_ap50`, `val/box_ap75`, `val/box_ap_small`,
        `..._medium`, `..._large`, and `val/box_ap/<class>`; the same with `mask` for masks. A metric without annotated
        objects (no small object, no object of a class) is absent.

        Raises:
            UserError: no object is annotated.
        """
        metrics = self.metrics or self._evaluate([(self._images, self._streams)])
        if "val/box_ap" not in metrics:
            raise UserError(
                "no image of the validation split has an object", where="data.val.annotations", fix="check the file"
            )
        return metrics

    def _evaluate(self, ranks: list[_Seen]) -> dict[str, float]:
        images = set[int]()
        for of_rank, _ in ranks:
            add_images(images, of_rank)
        metrics = {"val/samples": float(len(images))}
        for kind in self.kinds:
            # sorted by image, so neither the number of ranks nor the order of images changes how ties are broken
            evaluation = StreamingEval.merge(streams[kind] for _, streams in ranks).finalize()
            evaluation.accumulate()
            evaluation.summary_lines()  # unlike summarize() it prints nothing
            metrics |= self._named(kind, evaluation)
        return metrics

    def _named(self, kind: Kind, evaluation: COCOeval) -> dict[str, float]:
        metrics = {f"val/{kind}_{name}": float(value) for name, value in zip(SUMMARY, evaluation.stats, strict=False)}
        # (thresholds, recalls, classes, areas, limits): all areas, the largest number of detections
        precision = np.asarray((evaluation.eval or {})["precision"])[:, :, :, 0, -1]
        # of a class without objects every value is `_NO_VALUE`, and so is their mean
        of_classes = np.moveaxis(precision, 2, 0).reshape(len(self.classes), -1).mean(axis=1).tolist()
        metrics |= dict(zip(class_metric_names(f"val/{kind}_ap", self.classes), of_classes, strict=True))
        return {name: value for name, value in metrics.items() if value != _NO_VALUE}
