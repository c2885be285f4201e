"""A search by a metric that the validation data can never report is refused before its trials."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from harness.batches import detection_batch
from PIL import Image

from scalablevit.config.errors import UserError
from scalablevit.config.space_loading import load_search
from scalablevit.data.coco import SIZES, read_annotations
from scalablevit.pipeline.resolve import check_metric, resolve
from scalablevit.tasks.detection.coco_matching import Detections
from scalablevit.tasks.detection.coco_metric import CocoMetric

RECIPE = """\
name: r
data:
  source: coco
  root: set
  train: {images: images, annotations: train.json}
  val: {images: images, annotations: val.json}
  short_side: 64
  long_side: 64
model: {name: resnet18}
task: {kind: detection, head: retinanet}
optimizer: {lr: 0.001}
training: {epochs: 2, global_batch_size: 2}
"""


def annotations(areas: list[tuple[float, int]], folder: Path, grey: int) -> dict[str, Any]:
    """One image for each area and `iscrowd`."""
    objects = []
    for number, (area, crowd) in enumerate(areas, 1):
        Image.fromarray(np.full((200, 200, 3), grey, np.uint8)).save(folder / f"{grey}_{number}.png")
        objects.append({"id": number, "image_id": number, "category_id": 1, "bbox": [0, 0, 50, 50], "area": area,
                        "iscrowd": crowd, "segmentation": [[0, 0, 50, 0, 50, 50]]})  # fmt: skip
    images = [{"id": n + 1, "file_name": f"{grey}_{n + 1}.png", "width": 200, "height": 200} for n in range(len(areas))]
    return {"images": images, "annotations": objects, "categories": [{"id": 1, "name": "thing"}]}


def written(root: Path, areas: list[tuple[float, int]]) -> Path:
    (root / "set" / "images").mkdir(parents=True)
    for grey, (split, given) in enumerate((("train", [(2000.0, 0), (20000.0, 0)]), ("val", areas))):
        content = annotations(given, root / "set" / "images", grey)
        (root / "set" / f"{split}.json").write_text(json.dumps(content))
    (root / "r.yaml").write_text(RECIPE)
    return root / "set" / "val.json"


def checked(root: Path, metric: str) -> None:
    (root / "space.yaml").write_text(f"recipe: r.yaml\nmetric: {metric}\nbudget: {{trials: 2}}\n"
                                     "parameters:\n  optimizer.lr: {loguniform: [1e-4, 1e-2]}\n")  # fmt: skip
    search = load_search(root / "space.yaml")
    check_metric(search, resolve(search.recipe, root)[-1])


def test_a_size_that_no_object_has_is_refused(tmp_path: Path) -> None:
    written(tmp_path, [(100.0, 0), (2000.0, 0), (20000.0, 1)])
    with pytest.raises(UserError) as caught:
        checked(tmp_path, "val/box_ap_large")
    said = str(caught.value)
    assert "val/box_ap_large is never reported: no annotated object of the validation split is large" in said
    assert "space space: metric" in said and "fix: write metric: val/box_ap" in said
    for metric in ("val/box_ap", "val/box_ap50", "val/box_ap_small", "val/box_ap_medium"):
        checked(tmp_path, metric)


AREAS = [[1024.0], [1024.5], [9216.0], [9216.5], [0.0], [100.0, 5000.0], [1e6]]


@pytest.mark.parametrize("areas", AREAS)
def test_the_metric_counts_sizes_the_same_way(areas: list[float], tmp_path: Path) -> None:
    """Also at the bounds, which COCO counts on both sides."""
    file = written(tmp_path, [(area, 0) for area in areas])
    read = read_annotations(file, "data.val.annotations", masks=True)
    metric = CocoMetric(("thing",), masks=True)
    nothing = Detections(
        boxes=torch.zeros((0, 4)),
        scores=torch.zeros(0),
        labels=torch.zeros(0, dtype=torch.int64),
        masks=[],
    )
    truth = [read.of_image(number) for number in range(len(areas))]
    metric.update([nothing] * len(areas), detection_batch(indices=torch.arange(len(areas)), instances=truth))
    reported = metric.compute()
    for kind in ("box", "mask"):
        absent = tuple(size for size in SIZES if f"val/{kind}_ap_{size}" not in reported)
        assert read.absent_sizes() == absent


def test_masks_of_a_head_without_them_are_refused(tmp_path: Path) -> None:
    written(tmp_path, [(100.0, 0)])
    with pytest.raises(UserError, match="reports no 'val/mask_ap_small'"):
        checked(tmp_path, "val/mask_ap_small")
