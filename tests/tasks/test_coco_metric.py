"""COCO's figures against pycocotools, and counted once over ranks."""

import contextlib
import io
import json
import os
import socket
import subprocess
import sys
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
from faster_coco_eval import mask as run_lengths
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from scalablevit.config.errors import UserError
from scalablevit.data.instances import Instances
from scalablevit.tasks.coco_metric import SUMMARY, CocoMetric

CLASSES = ("cat", "dog, big", "bird", "never there")
SIZE = (120, 160)


def _box(draws: np.random.Generator) -> list[float]:
    left, top = draws.uniform(0, 100), draws.uniform(0, 60)
    return [left, top, left + draws.uniform(4, 60), top + draws.uniform(4, 60)]


def _mask(box: list[float]) -> dict[str, Any]:
    mask = np.zeros(SIZE, np.uint8, order="F")
    left, top, right, bottom = (round(value) for value in box)
    mask[top:bottom, left:right] = 1
    mask[top, left] = 0  # no mask is its box
    return run_lengths.encode(mask)


def _scene(number: int) -> tuple[Instances, dict[str, Any]]:
    """Truth with crowds and without anything, and detections near it, wrong, and doubled."""
    draws = np.random.default_rng(number)
    count = 0 if number % 5 == 0 else int(draws.integers(1, 8))
    boxes = [_box(draws) for _ in range(count)]
    truth = Instances(
        SIZE,
        np.array(boxes, np.float32).reshape(-1, 4),
        draws.integers(0, 3, count),
        draws.random(count) < 0.2,
        np.array([run_lengths.area(_mask(box)) for box in boxes], np.float32),
        [_mask(box) for box in boxes],
    )
    near = [[value + draws.normal(0, 2) for value in box] for box in boxes * 2]
    found = [[max(0.0, v) for v in box] for box in near] + [_box(draws) for _ in range(3)]
    labels = np.concatenate([truth.labels, truth.labels, draws.integers(0, 3, 3)])
    return truth, {
        "boxes": torch.tensor(found),
        "scores": torch.from_numpy(draws.random(len(found))),
        "labels": torch.from_numpy(labels),
        "masks": [_mask(box) for box in found],
    }


def _metric(numbers: list[int]) -> CocoMetric:
    metric = CocoMetric(CLASSES, masks=True)
    for number in numbers:
        truth, found = _scene(number)
        metric.update([found], {"index": torch.tensor([number]), "instances": [truth]})
    return metric


def _pycocotools(numbers: list[int], kind: str) -> Any:
    annotations, results = [], []
    for number in numbers:
        truth, found = _scene(number)
        for i, (left, top, right, bottom) in enumerate(truth.boxes.tolist()):
            annotations.append(
                {"id": len(annotations) + 1, "image_id": number, "category_id": int(truth.labels[i]),
                 "bbox": [left, top, right - left, bottom - top], "area": float(truth.areas[i]),
                 "iscrowd": int(truth.crowd[i]), "segmentation": _text(truth.masks[i])}
            )  # fmt: skip
        for i, (left, top, right, bottom) in enumerate(found["boxes"].double().tolist()):
            what = {"bbox": [left, top, right - left, bottom - top]} if kind == "bbox" else {}
            what |= {"segmentation": _text(found["masks"][i])} if kind == "segm" else {}
            results.append({"image_id": number, "category_id": int(found["labels"][i]),
                            "score": float(found["scores"][i]), **what})  # fmt: skip
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO()
        truth.dataset = {
            "info": {},
            "images": [{"id": n, "height": SIZE[0], "width": SIZE[1]} for n in numbers],
            "annotations": annotations,
            "categories": [{"id": number, "name": name} for number, name in enumerate(CLASSES)],
        }
        truth.createIndex()
        evaluation = COCOeval(truth, truth.loadRes(results), kind)
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return evaluation


def _text(mask: dict[str, Any]) -> dict[str, Any]:
    return {"size": mask["size"], "counts": mask["counts"]}


NUMBERS = list(range(1, 41))


@pytest.mark.parametrize(("ours", "theirs"), [("box", "bbox"), ("mask", "segm")])
def test_figures_are_those_of_pycocotools(ours: str, theirs: str, capfd: pytest.CaptureFixture[str]) -> None:
    figures = _metric(NUMBERS).compute()
    assert capfd.readouterr().out == ""
    expected = _pycocotools(NUMBERS, theirs)
    assert 0.05 < expected.stats[0] < 0.95, "the comparison would say little"
    for number, name in enumerate(SUMMARY):
        if expected.stats[number] >= 0:
            assert figures[f"val/{ours}_{name}"] == pytest.approx(expected.stats[number], abs=1e-6), name
        else:
            assert f"val/{ours}_{name}" not in figures
    precision = expected.eval["precision"][:, :, :, 0, -1]
    for number, name in enumerate(("cat", "dog_ big", "bird")):
        mean = precision[:, :, number].mean()
        assert figures[f"val/{ours}_ap/{name}"] == pytest.approx(mean, abs=1e-6), name
    assert f"val/{ours}_ap/never there" not in figures
    assert figures["val/samples"] == len(NUMBERS)


def test_without_detections_precision_is_zero() -> None:
    metric = CocoMetric(CLASSES, masks=True)
    truth, _ = _scene(1)
    nothing = {"boxes": torch.zeros(0, 4), "scores": torch.zeros(0), "labels": torch.zeros(0), "masks": []}
    metric.update([nothing], {"index": torch.tensor([0]), "instances": [truth]})
    assert metric.compute()["val/box_ap"] == metric.compute()["val/mask_ap"] == 0


def test_without_any_object_the_user_hears_of_it() -> None:
    with pytest.raises(UserError, match="no image of the validation split has an object"):
        _metric([0, 5]).compute()


def test_an_image_counts_once() -> None:
    with pytest.raises(ValueError, match="image 3 was evaluated twice"):
        _metric([1, 3, 3])


def test_two_ranks_give_the_figures_of_one() -> None:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    ranks = [
        subprocess.Popen([sys.executable, __file__, str(rank), str(port)], env=environment, stdout=subprocess.PIPE)
        for rank in range(2)
    ]
    answers = [rank.communicate(timeout=200)[0] for rank in ranks]
    one = _metric(NUMBERS).compute()
    assert [json.loads(answer) for answer in answers] == [one, one]


if __name__ == "__main__":  # a rank of the test above
    number, port_of_first = int(sys.argv[1]), int(sys.argv[2])
    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port_of_first}", rank=number, world_size=2)
    share = _metric(NUMBERS[number::2])
    share.synchronize()
    print(json.dumps(share.compute()))
    dist.destroy_process_group()
