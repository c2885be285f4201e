"""The images of one request share passes of the network: the predictions are those of one by one."""

from pathlib import Path
from types import SimpleNamespace

import cv2
import numpy as np
import pandas as pd
import pytest
import torch
from harness.predicting import trained
from harness.toys import SIDE, val_images
from numpy.typing import NDArray

from scalablevit.serving import grouping
from scalablevit.serving.grouping import in_groups
from scalablevit.serving.model import BadRequest, ImageModel
from scalablevit.serving.network import TrainedNetwork
from scalablevit.serving.request import Limits
from scalablevit.tasks import passes
from scalablevit.tasks.passes import run_in_passes

TOLERANCE = 1e-6


@pytest.fixture(scope="module")
def pictures(root: Path) -> list[NDArray[np.uint8]]:
    """Six images of the validation split in two sizes, which alternate."""
    files = sorted(val_images(root, "segment").iterdir())[:6]
    found = [cv2.cvtColor(cv2.imread(str(file)), cv2.COLOR_BGR2RGB) for file in files]
    return [image if number % 2 else np.ascontiguousarray(image[: SIDE // 2]) for number, image in enumerate(found)]


def served(model: TrainedNetwork) -> ImageModel:
    found = ImageModel()
    found.limits, found.trained = Limits(), model
    return found


def request(pictures: list[NDArray[np.uint8]]) -> pd.DataFrame:
    encoded = [cv2.imencode(".png", cv2.cvtColor(image, cv2.COLOR_RGB2BGR))[1].tobytes() for image in pictures]
    return pd.DataFrame({"image": encoded})


def counted(model: TrainedNetwork) -> list[int]:
    """How many images each pass of the network has, filled as it goes."""
    found: list[int] = []
    model.network.register_forward_pre_hook(lambda _, inputs: found.append(len(inputs[0])))
    return found


@pytest.mark.parametrize(
    ("name", "expected"), [("pretrain", [6]), ("segment", [3, 3]), ("detect", [3, 3])]
)  # classification scales and crops all to one size
def test_predictions_of_a_request_are_those_of_one_by_one(name, expected, root, pictures):
    model = trained(root, name)
    with torch.inference_mode():
        alone = [model.predict(image).to_dict() for image in pictures]
    sizes = counted(model)
    together = served(model).predict(SimpleNamespace(), request(pictures)).to_dict("records")
    assert sizes == expected
    for one, other in zip(alone, together, strict=True):
        assert one.keys() == other.keys()
        if name == "pretrain":
            assert one["class"] == other["class"]
            assert other["probabilities"] == pytest.approx(one["probabilities"], abs=TOLERANCE)
        elif name == "segment":
            assert one == other
        else:
            assert one["labels"] == other["labels"] and len(one["boxes"]) > 0 and one["masks"] == other["masks"]
            np.testing.assert_allclose(other["boxes"], one["boxes"], rtol=TOLERANCE, atol=SIDE * TOLERANCE)
            np.testing.assert_allclose(other["scores"], one["scores"], rtol=0, atol=TOLERANCE)


def test_a_predictor_of_single_images_alone_is_asked_one_by_one(root, pictures):
    model = trained(root, "pretrain")
    single = SimpleNamespace(predict=model.predictor.predict)
    sizes = counted(model)
    with torch.inference_mode():
        found = TrainedNetwork(model.stage, model.task, single, model.network, model.device).predict_batch(pictures)
    assert len(found) == 6
    assert sizes == [1] * 6


def test_a_damaged_image_is_named_by_its_number_in_the_request(root, pictures, monkeypatch):
    monkeypatch.setattr(grouping, "IMAGES", 2)
    given = request(pictures)
    given.loc[3, "image"] = b"no image"
    with pytest.raises(BadRequest, match=r"^image 3: "):
        served(trained(root, "pretrain")).predict(SimpleNamespace(), given)


def test_groups_have_so_many_images_and_pixels_at_most(monkeypatch):
    monkeypatch.setattr(grouping, "IMAGES", 3)
    monkeypatch.setattr(grouping, "PIXELS", 20)
    small, large = np.zeros((2, 2, 3), np.uint8), np.zeros((5, 4, 3), np.uint8)
    groups = list(in_groups(iter([small, small, small, small, large, large, small])))
    assert [[len(image) for image in group] for group in groups] == [[2, 2, 2], [2, 5], [5], [2]]
    assert list(in_groups([])) == []


def test_a_pass_has_images_of_one_size_and_so_many_pixels_at_most(monkeypatch):
    monkeypatch.setattr(passes, "PASS_PIXELS", 8)
    images = [torch.full((1, 3, height, 2), number) for number, height in enumerate([2, 1, 2, 2, 9, 1])]
    seen = []

    def run(batch):
        seen.append(tuple(batch.shape))
        return batch[:, 0, 0, 0].tolist()

    assert run_in_passes(images, run) == [0, 1, 2, 3, 4, 5]
    assert seen == [(2, 3, 2, 2), (1, 3, 2, 2), (2, 3, 1, 2), (1, 3, 9, 2)]
