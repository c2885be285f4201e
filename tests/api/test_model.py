"""Models in Python: the same predictions as the command line's, from every kind of place and of image."""

import csv
import io
import json
import pickle
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from harness.predicting import ALL, run
from harness.toys import STAGES, val_images
from PIL import Image

import scalablevit as sv
from scalablevit.data.decoding import read_image
from scalablevit.tasks.registry import TaskKind, task_kind
from scalablevit.viz.overlays import draw_boxes
from scalablevit.viz.palette import class_color

KINDS = {"pretrain": "classification", "segment": "segmentation", "detect": "detection"}


@pytest.fixture(scope="module")
def models(root: Path) -> dict[str, sv.Model]:
    """The three runs' models, from their folders; the detector gives all that it finds, since it is not trained."""
    return {
        name: sv.load_model(root / "runs" / f"toy-{name}-0", *([ALL] if name == "detect" else [])) for name in STAGES
    }


def files_of(root: Path, name: str) -> list[Path]:
    return sorted(val_images(root, name).rglob("*.jpg"))


def same(one: list, other: list) -> bool:
    """Whether predictions are equal, bit for bit."""
    return [each.to_dict() for each in one] == [each.to_dict() for each in other] and len(one) > 0


def test_classes_are_those_of_the_command_line(root, models, tmp_path):
    images, out = val_images(root, "pretrain"), tmp_path / "out"
    assert run(root, "pretrain", images, out) == 0
    with (out / "labels.csv").open(newline="") as file:
        lines = list(csv.DictReader(file))
    predictions = models["pretrain"].predict([images / line["file"] for line in lines])
    assert [line["label"] for line in lines] == [each.label for each in predictions]
    assert [line["probability"] for line in lines] == [f"{each.probability:.6f}" for each in predictions]
    top = [{name: round(value, 6) for name, value in each.top(5).items()} for each in predictions]
    assert [list(json.loads(line["top5"]).items()) for line in lines] == [list(each.items()) for each in top]
    assert {each.probabilities.shape for each in predictions} == {(len(models["pretrain"].classes),)}
    assert all(each.probabilities.sum() == pytest.approx(1) for each in predictions)


def test_masks_are_those_of_the_command_line(root, models, tmp_path):
    out, files = tmp_path / "out", files_of(root, "segment")[:4]
    assert run(root, "segment", val_images(root, "segment"), out) == 0
    predictions = models["segment"].predict(files)
    for file, prediction in zip(files, predictions, strict=True):
        assert np.array_equal(np.array(Image.open(out / "masks" / f"{file.stem}.png")), prediction.mask)
        assert sum(prediction.shares.values()) == pytest.approx(1)
        first = next(iter(prediction.shares))
        assert prediction.shares[first] == (prediction.mask == prediction.classes.index(first)).mean()


def test_detections_are_those_of_the_command_line(root, models, tmp_path):
    out, files = tmp_path / "out", files_of(root, "detect")
    assert run(root, "detect", val_images(root, "detect"), out, ALL) == 0
    found = json.loads((out / "detections.json").read_text())
    (number,) = [image["id"] for image in found["images"] if image["file_name"] == files[0].name]
    annotations = [each for each in found["annotations"] if each["image_id"] == number]
    (prediction,) = models["detect"].predict(files[0])
    assert len(annotations) == len(prediction.boxes) > 0
    assert [each["score"] for each in annotations] == prediction.scores.tolist()
    assert [each["category"] for each in annotations] == list(prediction.names)
    assert [each["segmentation"] for each in annotations] == list(prediction.masks_rle)
    x1, y1, x2, y2 = prediction.boxes[0].tolist()
    assert annotations[0]["bbox"] == [x1, y1, x2 - x1, y2 - y1]
    mask = prediction.mask(0)
    assert mask.dtype == bool and mask.shape == Image.open(files[0]).size[::-1]
    assert mask.sum() == annotations[0]["area"]


@pytest.mark.parametrize("name", STAGES)
def test_a_file_an_image_and_an_array_are_the_same(root, models, name):
    file = files_of(root, name)[0]
    array, model = read_image(file, 10**6), models[name]
    expected = model.predict(file)
    assert len(expected) == 1
    for images in (str(file), Image.open(file), array, [array], (Image.fromarray(array),)):
        assert same(model.predict(images), expected)
    both = model.predict(np.stack([array, array[::-1]]))
    assert same(both[:1], expected) and not same(both[1:], expected) and len(both) == 2


def test_images_of_different_sizes_go_together(root, models):
    files = files_of(root, "segment")[:2]
    small = read_image(files[0], 10**6)[:40, :30]
    masks = [each.mask.shape for each in models["segment"].predict([small, files[1]])]
    assert masks == [(40, 30), Image.open(files[1]).size[::-1]]


def test_no_image_makes_no_prediction(models):
    assert models["pretrain"].predict([]) == []


@pytest.mark.parametrize("name", ["segment", "detect"])
def test_drawings_are_the_overlays_of_the_command_line(root, models, tmp_path, name):
    out, file = tmp_path / "out", files_of(root, name)[0]
    assert run(root, name, val_images(root, name), out, *([ALL] if name == "detect" else [])) == 0
    (prediction,) = models[name].predict(file)
    drawn, written = models[name].draw(file, prediction, min_score=0), io.BytesIO()
    drawn.save(written, "JPEG", quality=90)
    assert written.getvalue() == (out / "overlays" / f"{file.stem}.jpg").read_bytes()
    array = read_image(file, 10**6)
    for image in (str(file), array, Image.fromarray(array)):
        assert models[name].draw(image, prediction, min_score=0) == drawn
    blank = draw_boxes(array, [], [], [])
    assert drawn.crop((0, 0, *blank.size)) != blank
    if name == "detect":  # an untrained detector is sure of nothing
        assert models[name].draw(file, prediction) == blank


def test_a_drawing_of_a_classifier_has_the_most_probable_classes_below_the_image(root, models):
    model, file = models["pretrain"], files_of(root, "pretrain")[0]
    (prediction,) = model.predict(file)
    drawn = model.draw(file, prediction)
    image = draw_boxes(read_image(file, 10**6), [], [], [])
    assert drawn.crop((0, 0, *image.size)) == image
    colors = [drawn.getpixel((14, image.height + 14 + 22 * line)) for line in range(5)]
    assert colors == [class_color(model.classes.index(name)) for name in prediction.top(5)]


@pytest.mark.parametrize("name", STAGES)
def test_what_is_no_prediction_for_the_image_is_not_drawn(root, models, name):
    file = files_of(root, name)[0]
    for other in STAGES:
        predictions = models[other].predict(file)
        with pytest.raises(sv.UserError, match=r"prediction: is a list, which is no prediction of this model"):
            models[name].draw(file, predictions)
        if other != name:
            with pytest.raises(sv.UserError, match=rf"is a {type(predictions[0]).__name__}, which is no prediction"):
                models[name].draw(file, predictions[0])
    (prediction,) = models[name].predict(file)
    with pytest.raises(sv.UserError, match="image 0: is a list, which is no image"):
        models[name].draw([file], prediction)


@pytest.mark.parametrize("with_masks", [True, False])
def test_a_prediction_for_another_size_is_not_drawn(root, models, with_masks):
    small = read_image(files_of(root, "segment")[0], 10**6)[:30, :20]
    for name in ("segment", "detect"):
        (prediction,) = models[name].predict(files_of(root, name)[0])
        if name == "detect" and not with_masks:
            prediction = replace(prediction, masks_rle=None)
        with pytest.raises(sv.UserError, match=r"covers \d+ x \d+ pixels .*, and the image has 30 x 20"):
            models[name].draw(small, prediction, min_score=0)


def test_a_task_without_drawings_says_so(root, models, monkeypatch):
    monkeypatch.setattr(type(task_kind("classification")), "draw_prediction", TaskKind.draw_prediction)
    file = files_of(root, "pretrain")[0]
    (prediction,) = models["pretrain"].predict(file)
    with pytest.raises(sv.UserError, match="predictions of task 'classification' cannot be drawn"):
        models["pretrain"].draw(file, prediction)


@pytest.mark.parametrize("name", STAGES)
def test_the_network_sees_what_predict_shows_it(root, models, name):
    model, files = models[name], files_of(root, name)[:2]
    assert model.task == KINDS[name] and model.device == torch.device("cpu")
    prepared = model.preprocess(files)
    assert prepared.dtype == torch.float32 and prepared.shape[:2] == (2, 3)
    with torch.no_grad():
        outputs = model(prepared[:1])
    (prediction,) = model.predict(files[0])
    if name == "pretrain":
        assert prepared.shape[2:] == (32, 32)
        assert torch.equal(outputs.softmax(dim=1)[0], torch.from_numpy(prediction.probabilities))
    elif name == "segment":
        full = torch.nn.functional.interpolate(outputs, prepared.shape[2:], mode="bilinear", align_corners=False)
        full = torch.nn.functional.interpolate(full, prediction.mask.shape, mode="bilinear", align_corners=False)
        assert outputs.shape == (1, len(model.classes), *(side // 4 for side in prepared.shape[2:]))
        assert np.array_equal(full.argmax(dim=1)[0].numpy(), prediction.mask)
    else:
        assert outputs[0]["scores"].tolist() == prediction.scores.tolist()


def test_gradients_pass_through_the_module(root, models):
    model = models["pretrain"]
    prepared = model.preprocess(files_of(root, "pretrain")[0]).requires_grad_()
    model(prepared)[0, 0].backward()
    assert prepared.grad.abs().sum() > 0


def test_a_model_is_found_by_folder_and_by_name(root, models, monkeypatch):
    monkeypatch.chdir(root)
    expected = models["pretrain"].state_dict()
    for source in ("toy-pretrain-0", "runs/toy-pretrain-0", "./runs/toy-pretrain-0/"):
        found = sv.load_model(source, root=str(root))
        assert found.classes == models["pretrain"].classes and not found.training
        weights = found.state_dict()
        assert list(weights) == list(expected) and all(torch.equal(weights[key], expected[key]) for key in expected)


def test_predict_loads_and_predicts_by_the_overrides(root, models):
    file = files_of(root, "detect")[0]
    run_folder = root / "runs" / "toy-detect-0"
    assert same(sv.predict(run_folder, file, ALL), models["detect"].predict(file))
    (sure,) = sv.predict(run_folder, file, "task.score_threshold=0.999")
    assert sure.boxes.shape == (0, 4) and sure.names == ()


def test_loading_unpickles_nothing_and_leaves_random_numbers_alone(root, monkeypatch):
    def unpickle(*_arguments: object, **_options: object) -> None:
        raise AssertionError("something was unpickled")

    for owner, name in ((torch, "load"), (pickle, "load"), (pickle, "loads"), (pickle, "Unpickler")):
        monkeypatch.setattr(owner, name, unpickle)
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    sv.load_model(root / "runs" / "toy-pretrain-0")
    assert torch.equal(torch.rand(3), expected)


def test_changed_weights_are_refused(root, tmp_path):
    folder = shutil.copytree(root / "runs" / "toy-pretrain-0", tmp_path / "copied")
    file = folder / "model" / "weights.safetensors"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    with pytest.raises(sv.UserError, match=r"differs from the SHA-256 in result\.json"):
        sv.load_model(folder)


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("toy-nobody", "no finished run 'toy-nobody'"),
        ("./runs", "no run has finished in this folder"),
        ("http://127.0.0.1:5001", "is an address"),
    ],
)
def test_a_model_that_is_not_there(root, source, expected):
    with pytest.raises(sv.UserError, match=expected):
        sv.load_model(source, root=root)


def test_a_root_is_not_made_for_a_model(tmp_path):
    with pytest.raises(sv.UserError):
        sv.load_model("toy-pretrain-0", root=tmp_path / "none")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("device", ["gpu", "cuda:99"])
def test_a_device_that_is_not_there(root, device):
    with pytest.raises(sv.UserError, match=f"torch cannot use '{device}' here"):
        sv.load_model(root / "runs" / "toy-pretrain-0", device=device)


@pytest.mark.parametrize(
    ("image", "expected"),
    [
        (np.zeros((8, 8), np.uint8), r"image 1: is an array uint8 \(8, 8\)"),
        (np.zeros((8, 8, 3), np.float32), r"image 1: is an array float32 \(8, 8, 3\)"),
        (np.zeros((0, 8, 3), np.uint8), r"image 1: is an array uint8 \(0, 8, 3\)"),
        (torch.zeros(3, 8, 8), "image 1: is a Tensor, which is no image"),
        ("/nowhere/photo.jpg", "/nowhere/photo.jpg: cannot be read"),
        (Image.new("F", (8, 8)), "image 1: floating-point values have no known range"),
    ],
)
def test_what_is_no_image_is_named(models, image, expected):
    good = np.zeros((8, 8, 3), np.uint8)
    with pytest.raises(sv.UserError, match=expected):
        models["pretrain"].predict([good, image])


def test_one_tensor_has_one_size(models):
    images = [np.zeros((40, 48, 3), np.uint8), np.zeros((48, 48, 3), np.uint8)]
    with pytest.raises(sv.UserError, match="2 images come out in 2 sizes"):
        models["segment"].preprocess(images)
    with pytest.raises(sv.UserError, match="there is no image"):
        models["segment"].preprocess([])


def test_a_model_in_training_mode_does_not_predict(root):
    model = sv.load_model(root / "runs" / "toy-pretrain-0").train()
    image = np.zeros((8, 8, 3), np.uint8)
    with pytest.raises(sv.UserError, match="training mode"):
        model.predict(image)
    assert len(model.eval().predict(image)) == 1
