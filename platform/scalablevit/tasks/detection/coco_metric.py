"""COCO's average precision of boxes and masks, by faster-coco-eval."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch.distributed as dist
from faster_coco_eval import COCO, COCOeval_faster
from faster_coco_eval import mask as run_lengths
from torch import Tensor

from scalablevit.config.errors import UserError
from scalablevit.data.batch import DetectionEvalBatch
from scalablevit.data.coco_format import CocoAnnotation, CocoCategory, CocoFile, CocoImage
from scalablevit.data.instances import Instances, RunLengths
from scalablevit.tasks.metric_names import class_metric_names

SUMMARY = ("ap", "ap50", "ap75", "ap_small", "ap_medium", "ap_large")
"""The first six of COCO's summary, in its order."""
IOU_TYPES = {"box": "bbox", "mask": "segm"}
"""COCO's `iouType`, by what is compared."""
_NO_VALUE = -1
"""COCO's result where nothing is annotated."""


@dataclass(frozen=True)
class Detections:
    """The detections in an image, in the original image's pixels, best first."""

    boxes: Tensor
    """Float (n, 4): x1, y1, x2, y2."""
    scores: Tensor
    """(n,), 0 to 1."""
    labels: Tensor
    """(n,) class indices from 0."""
    masks: list[RunLengths] | None = None
    """n masks at the original image's size; None: the detector gives boxes alone."""


Records = dict[int, tuple[Instances, Detections]]
"""Annotations and detections by the image's index in the source."""


class CocoMetric:
    """Collects detections and annotations, image by image, masks as run lengths; rank 0 evaluates them.

    Args:
        classes: names, in the order of their indices.
        masks: evaluate masks as well as boxes.
    """

    def __init__(self, classes: tuple[str, ...], *, masks: bool) -> None:
        self.classes = classes
        self.kinds = ("box", "mask") if masks else ("box",)
        self.records: Records = {}
        self.metrics: dict[str, float] | None = None

    def update(self, predictions: list[Detections], batch: DetectionEvalBatch) -> None:
        """Add images.

        Args:
            predictions: the detections in each image.
            batch: its `indices` and `instances` are read.

        Raises:
            ValueError: an image was added before.
        """
        for index, instances, detections in zip(batch.indices.tolist(), batch.instances, predictions, strict=True):
            self._add({index: (instances, detections)})

    def synchronize(self) -> None:
        """Bring all images to rank 0, evaluate them there, and give the metrics to every rank."""
        if not (dist.is_initialized() and dist.get_world_size() > 1):
            self._evaluate()
            return
        first = dist.get_rank() == 0
        gathered: list[Records] | None = [{} for _ in range(dist.get_world_size())] if first else None
        dist.gather_object(self.records, gathered, dst=0)
        if gathered is not None:
            self.records = {}
            for records in gathered:
                self._add(records)
            self._evaluate()
        broadcast = [self.metrics]
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
        if self.metrics is None:
            self._evaluate()
        metrics = self.metrics or {}
        if "val/box_ap" not in metrics:
            raise UserError(
                "no image of the validation split has an object", where="data.val.annotations", fix="check the file"
            )
        return metrics

    def _add(self, records: Records) -> None:
        if twice := self.records.keys() & records.keys():
            raise ValueError(f"image {min(twice)} was evaluated twice")
        self.records |= records

    def _evaluate(self) -> None:
        self.metrics = {"val/samples": float(len(self.records))}
        ground_truth = COCO(self._ground_truth())
        for kind in self.kinds:
            detections = self._all_detections(kind, ground_truth)
            evaluation = COCOeval_faster(
                ground_truth, detections, iouType=IOU_TYPES[kind], print_function=discard_report
            )
            evaluation.run()
            self.metrics |= self._named(kind, evaluation)

    def _named(self, kind: str, evaluation: Any) -> dict[str, float]:
        metrics = {f"val/{kind}_{name}": float(value) for name, value in zip(SUMMARY, evaluation.stats, strict=False)}
        # (thresholds, recalls, classes, areas, limits): all areas, the largest number of detections
        precision = np.asarray(evaluation.eval["precision"])[:, :, :, 0, -1]
        for index, name in enumerate(class_metric_names(f"val/{kind}_ap", self.classes)):
            of_class = precision[:, :, index]
            metrics[name] = float(of_class[of_class > _NO_VALUE].mean()) if (of_class > _NO_VALUE).any() else _NO_VALUE
        return {name: value for name, value in metrics.items() if value != _NO_VALUE}

    def _ground_truth(self) -> CocoFile:
        """Return the annotations in COCO's format; ids count from 1, since 0 means "no match" in COCO's evaluation."""
        images, annotations = list[CocoImage](), list[CocoAnnotation]()
        for index, (instances, _) in sorted(self.records.items()):
            images.append({"id": index + 1, "height": instances.size[0], "width": instances.size[1]})
            for i, box in enumerate(_to_coco_boxes(instances.boxes)):
                annotation: CocoAnnotation = {
                    "id": len(annotations) + 1,
                    "image_id": index + 1,
                    "category_id": int(instances.labels[i]) + 1,
                    "bbox": box,
                    "area": float(instances.areas[i]),
                    "iscrowd": int(instances.crowd[i]),
                }
                if instances.masks is not None:
                    annotation["segmentation"] = instances.masks[i]
                annotations.append(annotation)
        categories: list[CocoCategory] = [{"id": index + 1, "name": name} for index, name in enumerate(self.classes)]
        return {"images": images, "annotations": annotations, "categories": categories}

    def _all_detections(self, kind: str, ground_truth: COCO) -> COCO:
        """Return all detections; not by the library's `loadRes`, which measures every mask by a call of its own."""
        return COCO({**ground_truth.dataset, "annotations": self._detections(kind)})

    def _detections(self, kind: str) -> list[CocoAnnotation]:
        """Return the detections in COCO's format, with the areas that decide what is small."""
        annotations = list[CocoAnnotation]()
        for index, (_, detections) in sorted(self.records.items()):
            labels, scores = (detections.labels + 1).tolist(), detections.scores.tolist()
            shapes: list[CocoAnnotation]
            if kind == "box":
                boxes = _to_coco_boxes(detections.boxes.cpu().numpy())
                shapes = [{"bbox": box, "area": box[2] * box[3]} for box in boxes]
            else:
                masks = detections.masks or []
                areas = run_lengths.area(masks).tolist() if masks else []
                shapes = [{"segmentation": mask, "area": float(area)} for mask, area in zip(masks, areas, strict=True)]
            for label, score, shape in zip(labels, scores, shapes, strict=True):
                annotations.append({"id": len(annotations) + 1, "image_id": index + 1, "category_id": label,
                                    "score": score, "iscrowd": 0, **shape})  # fmt: skip
        return annotations


def _to_coco_boxes(boxes: "np.ndarray[Any, Any]") -> list[list[float]]:
    """Return boxes (n, 4) of x1, y1, x2, y2 as x, y, width, height."""
    boxes = boxes.astype(float)
    return np.concatenate([boxes[:, :2], boxes[:, 2:] - boxes[:, :2]], axis=1).tolist()  # type: ignore[no-any-return]


def discard_report(*_lines: Any) -> None:
    """Do nothing, in place of printing the library's report of each evaluation."""
