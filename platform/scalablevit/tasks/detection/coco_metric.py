"""COCO's average precision of boxes and masks, by faster-coco-eval."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch.distributed as dist
from faster_coco_eval import COCO, COCOeval_faster
from faster_coco_eval import mask as run_lengths
from torch import Tensor

from scalablevit.config.errors import UserError
from scalablevit.data.batch import InstanceBatch
from scalablevit.data.coco_format import CocoAnnotation, CocoCategory, CocoFile, CocoImage
from scalablevit.data.instances import Instances, RunLengths
from scalablevit.tasks.metric_names import class_metric_names

SUMMARY = ("ap", "ap50", "ap75", "ap_small", "ap_medium", "ap_large")
"""The first six of COCO's summary, in its order."""
IOU_TYPES = {"box": "bbox", "mask": "segm"}
_NO_VALUE = -1
"""What COCO answers where there is nothing to find."""


@dataclass(frozen=True)
class Detections:
    """What a detector finds in an image, in the original image's pixels, best first."""

    boxes: Tensor
    """Float (n, 4): x1, y1, x2, y2."""
    scores: Tensor
    """(n,)."""
    labels: Tensor
    """(n,) class numbers from 0."""
    masks: list[RunLengths] | None = None
    """n, of Mask R-CNN."""


Records = dict[int, tuple[Instances, Detections]]
"""Truth and detections by the image's number in the source."""


class CocoMetric:
    """Collects detections and truth, image by image, as run lengths; rank 0 evaluates them.

    Args:
        classes: names, in the order of their numbers.
        masks: evaluate masks too.
    """

    def __init__(self, classes: tuple[str, ...], *, masks: bool) -> None:
        self.classes = classes
        self.kinds = ("box", "mask") if masks else ("box",)
        self.records: Records = {}
        self.metrics: dict[str, float] | None = None

    def update(self, predictions: list[Detections], batch: InstanceBatch) -> None:
        """Add images.

        Args:
            predictions: of each image.
            batch: with `index` and `instances`.
        """
        for number, truth, found in zip(batch.index.tolist(), batch.instances, predictions, strict=True):
            self._add({number: (truth, found)})

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
        answer = [self.metrics]
        dist.broadcast_object_list(answer, src=0)
        self.metrics = answer[0]

    def compute(self) -> dict[str, float]:
        """Metrics as fractions: `val/box_ap`, `..._ap50`, `..._ap75`, by size, and `val/box_ap/<class>`; so for masks.

        Metrics without truth to find (no small object, no object of a class) are left out.

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
        truth = COCO(self._truth())
        for kind in self.kinds:
            found = self._all_detections(kind, truth)
            evaluation = COCOeval_faster(truth, found, iouType=IOU_TYPES[kind], print_function=discard_report)
            evaluation.run()
            self.metrics |= self._named(kind, evaluation)

    def _named(self, kind: str, evaluation: Any) -> dict[str, float]:
        metrics = {f"val/{kind}_{name}": float(value) for name, value in zip(SUMMARY, evaluation.stats, strict=False)}
        # (thresholds, recalls, classes, areas, limits): all areas, the largest number of detections
        precision = np.asarray(evaluation.eval["precision"])[:, :, :, 0, -1]
        for number, name in enumerate(class_metric_names(f"val/{kind}_ap", self.classes)):
            of_class = precision[:, :, number]
            metrics[name] = float(of_class[of_class > _NO_VALUE].mean()) if (of_class > _NO_VALUE).any() else _NO_VALUE
        return {name: value for name, value in metrics.items() if value != _NO_VALUE}

    def _truth(self) -> CocoFile:
        """COCO's format; numbers count from 1, since 0 stands for "no match" in COCO's evaluation."""
        images, annotations = list[CocoImage](), list[CocoAnnotation]()
        for number, (truth, _) in sorted(self.records.items()):
            images.append({"id": number + 1, "height": truth.size[0], "width": truth.size[1]})
            for i, box in enumerate(_corners_and_sizes(truth.boxes)):
                annotation: CocoAnnotation = {
                    "id": len(annotations) + 1,
                    "image_id": number + 1,
                    "category_id": int(truth.labels[i]) + 1,
                    "bbox": box,
                    "area": float(truth.areas[i]),
                    "iscrowd": int(truth.crowd[i]),
                }
                if truth.masks is not None:
                    annotation["segmentation"] = truth.masks[i]
                annotations.append(annotation)
        categories: list[CocoCategory] = [{"id": number + 1, "name": name} for number, name in enumerate(self.classes)]
        return {"images": images, "annotations": annotations, "categories": categories}

    def _all_detections(self, kind: str, truth: COCO) -> COCO:
        """All detections; not by the library's `loadRes`, which measures every mask by a call of its own."""
        return COCO({**truth.dataset, "annotations": self._detections(kind)})

    def _detections(self, kind: str) -> list[CocoAnnotation]:
        """In COCO's format, with the areas that decide what is small."""
        found = list[CocoAnnotation]()
        for number, (_, detections) in sorted(self.records.items()):
            labels, scores = (detections.labels + 1).tolist(), detections.scores.tolist()
            places: list[CocoAnnotation]
            if kind == "box":
                boxes = _corners_and_sizes(detections.boxes.cpu().numpy())
                places = [{"bbox": box, "area": box[2] * box[3]} for box in boxes]
            else:
                masks = detections.masks or []
                areas = run_lengths.area(masks).tolist() if masks else []
                places = [{"segmentation": mask, "area": float(area)} for mask, area in zip(masks, areas, strict=True)]
            for label, score, place in zip(labels, scores, places, strict=True):
                found.append({"id": len(found) + 1, "image_id": number + 1, "category_id": label, "score": score,
                              "iscrowd": 0, **place})  # fmt: skip
        return found


def _corners_and_sizes(boxes: "np.ndarray[Any, Any]") -> list[list[float]]:
    """x1, y1, x2, y2 to x, y, width, height, of each box (n, 4), as plain numbers."""
    boxes = boxes.astype(float)
    return np.concatenate([boxes[:, :2], boxes[:, 2:] - boxes[:, :2]], axis=1).tolist()  # type: ignore[no-any-return]


def discard_report(*_lines: Any) -> None:
    """Instead of the library's report of each evaluation."""
