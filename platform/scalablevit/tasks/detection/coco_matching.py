"""Detections beside annotations in the form that hotcoco takes, and their matches in each image."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from hotcoco import COCO, COCOeval, Params, StreamingEval
from hotcoco import mask as run_lengths
from numpy.typing import NDArray
from torch import Tensor

from scalablevit.data.batch import DetectionEvalBatch
from scalablevit.data.coco_format import CocoAnnotation, CocoCategory, CocoImage
from scalablevit.data.instances import Instances, RunLengths

Kind = Literal["box", "mask"]
"""What is compared."""
IOU_TYPES: dict[Kind, str] = {"box": "bbox", "mask": "segm"}
"""COCO's `iouType`, by what is compared."""
MOST_DETECTIONS = 100
"""COCO's limit of the detections of a class in an image."""


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


@dataclass(frozen=True, slots=True)
class ClassMatches:
    """The n detections of one class in one image, best first, at t overlaps."""

    image: int
    """Index in the source."""
    label: int
    """Class index from 0."""
    objects: int
    """Annotated objects of the class, crowds not counted."""
    scores: NDArray[np.float64]
    """(n,), 0 to 1."""
    matched: NDArray[np.bool_]
    """(t, n) whether a detection has an object or crowd of its own class."""
    ignored: NDArray[np.bool_]
    """(t, n) whether it counts neither as right nor as wrong, as in a crowd."""


def at_all_sizes(kind: Kind, overlaps: Sequence[float] | None = None, most: int = MOST_DETECTIONS) -> Params:
    """Return the parameters of an evaluation of objects of all sizes together.

    Args:
        kind: what is compared.
        overlaps: least IoUs of a match, 0 to 1; None: COCO's 0.5, 0.55, ... 0.95.
        most: detections of an image and class that count.
    """
    params = Params(IOU_TYPES[kind])
    params.area_rng, params.area_rng_lbl, params.max_dets = params.area_rng[:1], ["all"], [most]
    params.iou_thrs = params.iou_thrs if overlaps is None else list(overlaps)
    return params


def add_images(seen: set[int], indices: Iterable[int]) -> None:
    """Add the indices of images to those that were seen; the library would replace an image that comes again.

    Raises:
        ValueError: an image was seen before.
    """
    for index in indices:
        if index in seen:
            raise ValueError(f"image {index} was evaluated twice")
        seen.add(index)


def start_stream(classes: Sequence[str], kind: Kind, params: Params | None = None) -> StreamingEval:
    """Return an evaluation that has seen no image, by default with COCO's parameters."""
    return StreamingEval(_categories(classes), IOU_TYPES[kind], params=params)


def add_to_stream(
    stream: StreamingEval, kind: Kind, predictions: Sequence[Detections], batch: DetectionEvalBatch
) -> None:
    """Match the detections of a batch of images, and keep the matches alone."""
    rows, masks = _rows(kind, predictions, batch)
    stream.update(_images(batch), _annotations(kind, batch), rows, segmentation=masks)


def match(
    kind: Kind, predictions: Sequence[Detections], batch: DetectionEvalBatch, classes: Sequence[str], params: Params
) -> Iterator[ClassMatches]:
    """Yield the matches of each image and class with detections or annotated objects.

    Args:
        kind: what is compared.
        predictions: the detections in each image.
        batch: its `indices` and `instances` are read.
        classes: names, in the order of their indices.
        params: with one range of sizes and one limit of detections.
    """
    objects = COCO({"images": _images(batch), "annotations": _annotations(kind, batch),
                    "categories": _categories(classes)})  # fmt: skip
    rows, masks = _rows(kind, predictions, batch)
    evaluation = COCOeval(objects, objects.load_res(rows, segmentation=masks), IOU_TYPES[kind])
    evaluation.params = params
    evaluation.evaluate()
    for entry in filter(None, evaluation.eval_imgs):
        yield ClassMatches(
            image=entry["image_id"],
            label=entry["category_id"],
            objects=len(entry["gtIgnore"]) - sum(entry["gtIgnore"]),
            scores=np.array(entry["dtScores"], np.float64),
            matched=np.array(entry["dtMatched"], np.bool_),
            ignored=np.array(entry["dtIgnore"], np.bool_),
        )


def _categories(classes: Sequence[str]) -> list[CocoCategory]:
    return [{"id": label, "name": name} for label, name in enumerate(classes)]


def _images(batch: DetectionEvalBatch) -> list[CocoImage]:
    return [
        {"id": index, "height": instances.size[0], "width": instances.size[1]}
        for index, instances in zip(batch.indices.tolist(), batch.instances, strict=True)
    ]


def _annotations(kind: Kind, batch: DetectionEvalBatch) -> list[CocoAnnotation]:
    annotations = list[CocoAnnotation]()
    for index, instances in zip(batch.indices.tolist(), batch.instances, strict=True):
        described = zip(instances.labels.tolist(), _to_coco_boxes(instances.boxes).tolist(), instances.areas.tolist(),
                        instances.crowd.tolist(), strict=True)  # fmt: skip
        annotations += [
            {"id": number, "image_id": index, "category_id": label, "bbox": box, "area": area, "iscrowd": int(crowd)}
            for number, (label, box, area, crowd) in enumerate(described, start=len(annotations) + 1)
        ]
        if kind == "mask":
            masks = _masks_of(instances, len(instances.labels))
            for annotation, mask in zip(annotations[len(annotations) - len(masks) :], masks, strict=True):
                annotation["segmentation"] = mask
    return annotations


def _rows(
    kind: Kind, predictions: Sequence[Detections], batch: DetectionEvalBatch
) -> tuple[NDArray[np.float64], list[RunLengths] | None]:
    """Return the detections as rows of image, x, y, width, height, score and class, and the mask of each row."""
    counts = [len(detections.scores) for detections, _ in zip(predictions, batch.instances, strict=True)]
    rows = np.zeros((sum(counts), 7))
    rows[:, 0] = np.repeat(batch.indices.cpu().numpy(), counts)
    rows[:, 5] = torch.cat([detections.scores for detections in predictions]).cpu().numpy()
    rows[:, 6] = torch.cat([detections.labels for detections in predictions]).cpu().numpy()
    if kind == "box":
        rows[:, 1:5] = _to_coco_boxes(torch.cat([detections.boxes for detections in predictions]).cpu().numpy())
        return rows, None
    masks = [mask for detections, count in zip(predictions, counts, strict=True)
             for mask in _masks_of(detections, count)]  # fmt: skip
    # Whether a detection is small is read from its row's box, and masks go by their own area: each row gets a box of
    # that area, which is compared with nothing.
    rows[:, 3], rows[:, 4] = run_lengths.area(masks), 1
    return rows, masks


def _masks_of(given: Instances | Detections, count: int) -> list[RunLengths]:
    """Return the masks; hotcoco would take the box of an object that has none for its mask.

    Raises:
        ValueError: some are missing.
    """
    masks = given.masks or []
    if len(masks) != count:
        raise ValueError(f"{count} objects, but {len(masks)} masks")
    return masks


def _to_coco_boxes(boxes: NDArray[Any]) -> NDArray[np.float64]:
    """Return boxes (n, 4) of x1, y1, x2, y2 as x, y, width, height."""
    boxes = boxes.astype(np.float64)
    return np.concatenate([boxes[:, :2], boxes[:, 2:] - boxes[:, :2]], axis=1)
