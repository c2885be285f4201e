"""Weights that a stage's backbone cannot take are refused before any worker starts."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import timm
from safetensors.torch import save_file

from scalablevit.config.errors import UserError
from scalablevit.config.loading import load_recipe
from scalablevit.models import weights
from scalablevit.models.backbone import build_classifier
from scalablevit.pipeline.init_weights import (
    InitWeights,
    check_init_weights,
    find_init_weights,
    init_warnings,
    pixels_in,
)

TINY = Path(__file__).parents[1] / "end_to_end" / "tiny.yaml"
CLASSES = ("cat", "dog", "emu")


def check(root: Path, stage: str) -> None:
    chosen = load_recipe(TINY, [f"stages.{stage}.model.init=weights.safetensors"]).stages[stage]
    initial = find_init_weights(chosen, root)
    assert initial is not None
    check_init_weights(chosen, initial, CLASSES, root)


@pytest.mark.parametrize("stage", ["pretrain", "segment", "detect"])
def test_weights_of_the_same_architecture_pass_with_other_classes(tmp_path: Path, stage: str) -> None:
    name = load_recipe(TINY).stages[stage].model.name
    save_file(build_classifier(name, 7).state_dict(), tmp_path / "weights.safetensors")
    check(tmp_path, stage)


@pytest.mark.parametrize("stage", ["pretrain", "segment"])
def test_weights_of_another_architecture_are_refused(tmp_path: Path, stage: str) -> None:
    save_file(timm.create_model("test_vit", num_classes=3).state_dict(), tmp_path / "weights.safetensors")
    with pytest.raises(UserError, match=r"lacks \d+ of the model's \d+ tensors") as caught:
        check(tmp_path, stage)
    assert "model.init (weights.safetensors" in caught.value.where


def test_a_model_that_was_never_registered_is_refused_with_the_way_out(tmp_path: Path) -> None:
    chosen = load_recipe(TINY, ["stages.detect.model.init=models:/my-pretrain@champion"]).stages["detect"]
    with pytest.raises(UserError, match="my-pretrain") as caught:
        find_init_weights(chosen, tmp_path)
    assert caught.value.where.startswith("model.init") and "model.init: null (random weights)" in caught.value.fix


def test_other_shapes_are_refused(tmp_path: Path) -> None:
    tensors = build_classifier(load_recipe(TINY).stages["pretrain"].model.name, 3).state_dict()
    name, tensor = next((name, tensor) for name, tensor in tensors.items() if tensor.ndim == 4)
    tensors[name] = tensor[:-1].clone()
    save_file(tensors, tmp_path / "weights.safetensors")
    with pytest.raises(UserError, match="1 tensors have other shapes than the model") as caught:
        check(tmp_path, "pretrain")
    assert f"size mismatch for {name}" in str(caught.value)


def test_a_file_that_is_no_weights_is_refused(tmp_path: Path) -> None:
    (tmp_path / "weights.safetensors").write_bytes(b"<html>")
    with pytest.raises(UserError, match="is damaged or no weights"):
        check(tmp_path, "pretrain")


def test_weights_that_have_passed_are_fitted_again_only_where_something_is_new(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stage = load_recipe(TINY, ["stages.pretrain.model.init=weights.safetensors"]).stages["pretrain"]
    tensors = build_classifier(stage.model.name, 3).state_dict()
    save_file(tensors, tmp_path / "weights.safetensors")
    fitted: list[bool] = []
    check_fit = weights.check_fit

    def counted(*given: Any, keep_head: bool) -> None:
        fitted.append(keep_head)
        check_fit(*given, keep_head=keep_head)

    monkeypatch.setattr(weights, "check_fit", counted)
    known = find_init_weights(stage, tmp_path)
    assert known is not None
    for _ in range(3):
        check_init_weights(stage, known, CLASSES, tmp_path)
    assert fitted == [True]
    check_init_weights(stage, replace(known, classes=("a", "b", "c")), CLASSES, tmp_path)
    check_init_weights(stage, known, ("cat", "dog"), tmp_path)
    assert fitted == [True, False, True]
    save_file({name: tensor[:-1].clone() if tensor.ndim == 4 else tensor for name, tensor in tensors.items()},
              tmp_path / "weights.safetensors")  # fmt: skip
    for _ in range(2):  # what has failed fails again
        with pytest.raises(UserError, match="tensors have other shapes than the model"):
            check(tmp_path, "pretrain")
    assert len(fitted) == 5


def test_other_means_than_those_of_a_tag_are_a_warning() -> None:
    init = "stages.pretrain.model={init: timm:vit_small_patch16_224.augreg_in1k, name: vit_small_patch16_224}"
    stage = load_recipe(TINY, [init]).stages["pretrain"]
    mean, std = init_warnings(stage)
    assert mean == (
        "data.mean is [0.485,0.456,0.406], and timm:vit_small_patch16_224.augreg_in1k was trained with [0.5,0.5,0.5]: "
        "data.mean=[0.5,0.5,0.5] gives the weights what they know"
    )
    assert std.startswith("data.std is [0.229,0.224,0.225], and ")
    fixed = load_recipe(TINY, [init, "data.mean=[0.5,0.5,0.5]", "data.std=[0.5,0.5,0.5]"]).stages["pretrain"]
    assert init_warnings(fixed) == ()
    same = load_recipe(TINY, ["stages.pretrain.model={init: timm:resnet18.a1_in1k, name: resnet18}"]).stages["pretrain"]
    assert init_warnings(same) == ()
    assert init_warnings(load_recipe(TINY).stages["pretrain"]) == ()


def test_other_means_than_those_of_the_parent_are_a_warning() -> None:
    """In a chain, and with weights of a registered version."""
    other = ["stages.segment.data.mean=[0.5,0.5,0.5]"]
    stages = load_recipe(TINY, other).stages
    (warning,) = init_warnings(stages["segment"], parent=stages["pretrain"])
    assert warning == (
        "data.mean is [0.5,0.5,0.5], and stage:pretrain was trained with [0.485,0.456,0.406]: "
        "data.mean=[0.485,0.456,0.406] gives the weights what they know"
    )
    assert init_warnings(stages["detect"], parent=stages["pretrain"]) == ()
    version = load_recipe(TINY, ["stages.pretrain.model.init=models:/a@champion", *other]).stages["pretrain"]
    stored = {"mean": [0.485, 0.456, 0.406], "std": [0.25, 0.25, 0.25]}
    registered = InitWeights("a.safetensors", "0" * 64, CLASSES, "a/1", pixels=pixels_in({"data": stored}))
    (warning,) = init_warnings(version, registered)
    assert warning.startswith(
        "data.std is [0.229,0.224,0.225], and models:/a@champion was trained with [0.25,0.25,0.25]"
    )
    for strange in ({}, {"data": 3}, {"data": {"mean": "a", "std": [1, 2]}}, {"data": {"mean": [None] * 3}}):
        assert pixels_in(strange) == {}


def test_weights_of_an_architecture_of_the_same_shapes_are_a_warning() -> None:
    """Those of the `tf_` variant pad as TensorFlow does; they load, and give other features."""
    model = "stages.pretrain.model={init: timm:tf_efficientnet_b0.in1k, name: efficientnet_b0}"
    (warning,) = init_warnings(load_recipe(TINY, [model]).stages["pretrain"])
    assert warning == (
        "model.name is efficientnet_b0, and timm:tf_efficientnet_b0.in1k is of tf_efficientnet_b0: where tensors have "
        "the same names and shapes, the architectures may still compute differently; model.name=tf_efficientnet_b0 is "
        "what the weights know"
    )
    stages = load_recipe(TINY, ["stages.segment.model.name=scalablevit_small"]).stages
    (warning,) = init_warnings(stages["segment"], parent=stages["pretrain"])
    assert "model.name is scalablevit_small, and stage:pretrain is of scalablevit_tiny" in warning
