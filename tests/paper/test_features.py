"""Feature maps: taken after the right block, and drawn."""

import cv2
import numpy as np
import pytest
import timm
import torch

from scalablevit.models.receptive_field import receptive_field
from scalablevit.paper.feature_maps import (
    Row,
    attention_name,
    blocks_of,
    capture_features,
    contrast,
    save_features,
    stage_ends,
)
from scalablevit.paper.field_plot import describe_field, save_fields


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return timm.create_model("scalablevit_tiny", num_classes=3).eval()


def test_blocks_are_those_of_the_papers_count(model):
    with torch.device("meta"):
        small = timm.create_model("scalablevit_small")
    assert stage_ends(small) == [2, 4, 24]
    assert stage_ends(model) == [2, 4, 8]
    assert blocks_of(small)[23] is small.stages[2][19]
    assert [attention_name(block.attn) for block in blocks_of(model)] == ["IWSA", "SSA"] * 5


def test_what_a_block_answers_is_captured_and_nothing_stays_behind(model):
    images = torch.randn(2, 3, 64, 96)
    blocks = blocks_of(model)
    (_, second), (given, last) = capture_features(model, [blocks[1], blocks[-1]], images)
    assert second.shape == (2, 16, 24, 24) and given.shape == last.shape == (2, 2, 3, 160)
    with torch.no_grad():
        assert torch.equal(model.norm(last), model.forward_features(images))
    assert not any(block._forward_hooks for block in blocks)


def test_contrast_is_the_distance_from_the_mean_token():
    tokens = torch.tensor([[[3.0, 4.0], [0.0, 0.0]], [[0.0, 0.0], [1.0, 0.0]]])  # mean token (1, 1)
    assert contrast(tokens) == pytest.approx(np.array([[13**0.5, 2**0.5], [2**0.5, 1]]))


def test_pictures_are_drawn(model, tmp_path):
    image = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    maps = {"block 1": np.eye(8, dtype=np.float32), "block 2": np.eye(4, dtype=np.float32)}
    save_features([Row("one", image, maps), Row("two", image, maps)], tmp_path / "features.png")
    field = receptive_field(blocks_of(model)[0].attn, torch.randn(1, 21, 21, 24))
    save_fields({"a": field, "b": field}, tmp_path / "field.png")
    assert "reaches 49 to 54 of 441 tokens" in describe_field(field)
    for name in ("features.png", "field.png"):
        picture = cv2.imread(str(tmp_path / name))
        assert picture is not None and picture.std() > 20
    assert len(list(tmp_path.iterdir())) == 2
