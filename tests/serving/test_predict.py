"""Batch prediction: every image predicted or named, nothing of anybody's overwritten."""

import csv
import errno
import json
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from harness.predicting import ALL, run, trained
from harness.toys import SIDE, finished_run, leave_status, val_images
from PIL import Image
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from scalablevit.cli import evaluate, predict
from scalablevit.cli.prediction_input import find_images
from scalablevit.cli.tree import parse
from scalablevit.config.errors import UserError
from scalablevit.data.decoding import read_image
from scalablevit.pipeline import trained_models
from scalablevit.run_files import WEIGHTS
from scalablevit.serving.model import ImageModel
from scalablevit.serving.network import TrainedNetwork, load_trained
from scalablevit.tasks.detection.outputs import Detections
from scalablevit.viz.palette import class_colors

SCRIPT = Path(__file__).parents[2] / "pipelines" / "predict.py"


def prediction_for(model: TrainedNetwork, file: Path) -> dict:
    with torch.inference_mode():
        return model.predict(read_image(file, 10**6)).to_dict()


def table(file: Path) -> list[dict[str, str]]:
    with file.open(newline="", encoding="utf-8") as lines:
        return list(csv.DictReader(lines))


def test_classes_of_a_folder(root, tmp_path, capsys):
    images = val_images(root, "pretrain")
    tracking = "tracking.uri=http://me:canary-4711@127.0.0.1:9"
    assert run(root, "pretrain", images, tmp_path / "out", tracking) == 0
    said = capsys.readouterr().out
    assert "predicted 12 of 12 images" in said and "ids" not in said
    assert "canary-4711" not in (tmp_path / "out" / "prediction.json").read_text()
    lines = table(tmp_path / "out" / "labels.csv")
    files = [line["file"] for line in lines]
    assert files == sorted(str(path.relative_to(images)) for path in images.rglob("*.jpg"))
    for line in lines[:3]:
        said = prediction_for(trained(root, "pretrain"), images / line["file"])
        assert line["label"] == said["class"] and float(line["probability"]) == pytest.approx(
            said["probability"], abs=1e-6
        )
        assert list(json.loads(line["top5"])) == list(said["probabilities"])
    note = json.loads((tmp_path / "out" / "prediction.json").read_text())
    assert (note["answered"], note["bad"]) == (12, 0)
    assert table(tmp_path / "out" / "bad_images.csv") == []


def test_a_model_from_before_antialiasing_is_noted(root, tmp_path, capsys):
    shutil.copytree(root / "runs/toy-pretrain-0", tmp_path / "runs/toy-pretrain-0")
    images, note = val_images(root, "pretrain"), "trained before data.antialias"
    assert run(tmp_path, "pretrain", images, tmp_path / "out", "--dry-run") == 0
    assert note not in capsys.readouterr().out
    file = tmp_path / "runs/toy-pretrain-0/model/config.json"
    config = json.loads(file.read_text())
    del config["stage"]["data"]["antialias"]
    file.write_text(json.dumps(config))
    assert run(tmp_path, "pretrain", images, tmp_path / "out", "--dry-run") == 0
    assert capsys.readouterr().out.count(note) == 1


def test_masks_of_a_folder(root, tmp_path):
    images, out = val_images(root, "segment"), tmp_path / "out"
    assert run(root, "segment", images, out) == 0
    model = trained(root, "segment")
    for file in sorted(images.iterdir())[:3]:
        mask = Image.open(out / "masks" / f"{file.stem}.png")
        said = prediction_for(model, file)
        assert mask.mode == "P" and mask.size == (SIDE, SIDE)
        labels = np.array(mask)
        assert {model.task.classes[number] for number in np.unique(labels)} == set(said["classes"])
        assert tuple(mask.getpalette()[3:6]) == class_colors(2)[1]
        lines = [line for line in table(out / "shares.csv") if line["file"] == file.name]
        assert [line["class"] for line in lines] == said["classes"]
        first = model.task.classes.index(said["classes"][0])
        assert float(lines[0]["share"]) == pytest.approx((labels == first).mean(), abs=1e-6)
        drawn = Image.open(out / "overlays" / f"{file.stem}.jpg")
        assert drawn.width >= 480 and drawn.height > drawn.width  # enlarged, with a legend below
    assert [line["class"] for line in table(out / "classes.csv")] == list(model.task.classes)


def test_detections_of_a_folder_are_cocos_format(root, tmp_path):
    images, out = val_images(root, "detect"), tmp_path / "out"
    assert run(root, "detect", images, out, ALL) == 0
    coco = COCO(str(out / "detections.json"))
    said = prediction_for(trained(root, "detect"), images / coco.imgs[1]["file_name"])
    found = coco.imgToAnns[1]
    assert len(said["boxes"]) > 0 and len(coco.imgs) == 12
    assert [each["score"] for each in found] == pytest.approx(said["scores"])
    assert [coco.cats[each["category_id"]]["name"] for each in found] == said["labels"]
    x1, y1, x2, y2 = said["boxes"][0]
    assert found[0]["bbox"] == pytest.approx([x1, y1, x2 - x1, y2 - y1])
    assert coco.annToMask(found[0]).sum() == found[0]["area"]
    assert len(list((out / "overlays").iterdir())) == 12


def test_only_clear_detections_are_drawn(tmp_path):
    """Of the others there are too many; the table has them all."""
    image = np.full((64, 64, 3), 128, np.uint8)
    prediction = {"boxes": [[8, 8, 40, 40], [20, 20, 60, 60]], "labels": ["a", "b"], "scores": [0.9, 0.2]}
    output = Detections(["a", "b"], tmp_path)
    output.write_pictures("both", image, prediction)
    output.write_pictures("clear", image, {key: values[:1] for key, values in prediction.items()})
    output.shown_score = 0.2
    output.write_pictures("all", image, prediction)
    both, clear, all_drawn = (
        Image.open(tmp_path / "overlays" / f"{name}.jpg").tobytes() for name in ("both", "clear", "all")
    )
    assert both == clear != all_drawn and len(set(both)) > 2


def test_detections_are_scored_against_own_annotations_as_the_page_says(tmp_path):
    """Their ids differ from those of the file: taken as they are, half of them would be of the wrong class."""
    box = {"bbox": [8.0, 8.0, 32.0, 32.0], "area": 1024.0, "iscrowd": 0}
    truth = {
        "images": [{"id": 70 - n, "file_name": f"{n}.jpg", "height": 64, "width": 64} for n in range(2)],
        "categories": [{"id": 9, "name": "a"}, {"id": 1, "name": "b"}],
        "annotations": [{**box, "id": n + 1, "image_id": 70 - n, "category_id": (9, 1)[n]} for n in range(2)],
    }
    with Detections(["b", "a"], tmp_path) as output:
        for name, label in (("0.jpg", "a"), ("1.jpg", "b")):
            output.add(name, {"boxes": [[8, 8, 40, 40]], "labels": [label], "scores": [0.9], "size": [64, 64]})
    found = json.loads((tmp_path / "detections.json").read_text())
    assert "match categories by name" in found["info"]["description"]
    page = (SCRIPT.parents[1] / "docs" / "detect.md").read_text(encoding="utf-8")
    names = {}
    exec(re.search(r"```python\n(def matched.+?)```", page, re.DOTALL)[1], names)  # noqa: S102  # our own page
    annotations = tmp_path / "truth.json"
    annotations.write_text(json.dumps(truth))
    coco = COCO(str(annotations))
    scored = COCOeval(coco, coco.loadRes(names["matched"](found, truth)), "bbox")
    scored.evaluate()
    scored.accumulate()
    scored.summarize()
    assert scored.stats[0] == pytest.approx(1.0)


@pytest.mark.parametrize(("threshold", "drawn"), [("", 0), ("0.0", 12), ("0.99", 0)])
def test_a_score_threshold_that_is_asked_for_is_that_of_the_overlays(root, tmp_path, monkeypatch, threshold, drawn):
    """An untrained detector is sure of nothing: only a threshold of 0 shows its boxes."""
    boxes = []
    monkeypatch.setattr(
        "scalablevit.tasks.detection.outputs.draw_boxes",
        lambda image, found, *_: boxes.append(len(found)) or Image.fromarray(image),
    )
    override = [f"task.score_threshold={threshold}"] if threshold else []
    assert run(root, "detect", val_images(root, "detect"), tmp_path / "out", *override) == 0
    assert len(boxes) == 12 and sum(count > 0 for count in boxes) == drawn


def test_bad_images_are_named_and_counted_and_the_others_predicted(root, images, tmp_path, capsys):
    (images / "sub" / "1.jpg").write_bytes((images / "sub" / "1.jpg").read_bytes()[:-40])
    (images / "page.png").write_text("<html>")
    (images / "notes.txt").write_text("not looked at")
    assert run(root, "pretrain", images, tmp_path / "out") == 1
    said = capsys.readouterr().out
    assert "5 in" in said and "1 other files left out" in said
    assert "predicted 3 of 5 images" in said and "2 images without a prediction" in said
    assert "bad: sub/1.jpg\tthe file is cut short" in said
    assert [line["file"] for line in table(tmp_path / "out" / "bad_images.csv")] == ["page.png", "sub/1.jpg"]
    assert [line["file"] for line in table(tmp_path / "out" / "labels.csv")] == ["0.jpg", "2.jpg", "sub/3.jpg"]


def test_every_file_left_out_is_named_with_its_reason(root, images, tmp_path, capsys):
    (images / "2.jpg").rename(images / "2.heic")
    (images / "sub" / "3.jpg").rename(images / "sub" / "noext")
    for number in range(25):
        (images / f"z{number:02}.txt").write_text("")
    assert run(root, "pretrain", images, tmp_path / "out") == 0
    said = capsys.readouterr().out
    assert "25 .txt (z00.txt, z01.txt, z02.txt and 22 more), 1 .heic (2.heic), 1 without suffix (sub/noext)" in said
    assert said.count("is not the suffix of an image") == 20 - 2, "the first two of the 20 are others"
    assert "2.heic\tleft out: .heic is not read; convert it to JPEG or PNG" in said and "and 7 more files" in said
    reasons = {line["file"]: line["reason"] for line in table(tmp_path / "out" / "left_out.csv")}
    assert len(reasons) == 27 and "no suffix" in reasons["sub/noext"]
    assert run(root, "pretrain", images, tmp_path / "dry", "--dry-run") == 0
    assert "2.heic\tleft out" in capsys.readouterr().out and not (tmp_path / "dry").exists()


def test_transparent_pixels_are_the_recipes_mean_wherever_a_model_sees_them(root, tmp_path):
    mean = "stages.pretrain.data.mean=[0.9, 0.1, 0.5]"
    shutil.copytree(root / "data", tmp_path / "root" / "data")
    name = finished_run(tmp_path / "root", "pretrain", mean)
    (tmp_path / "images").mkdir()
    picture = Image.open(next(val_images(root, "pretrain").rglob("*.jpg"))).convert("RGB")
    over = Image.new("RGB", picture.size, (230, 26, 128))
    over.paste(picture.crop((0, 0, 20, SIDE)))
    over.save(tmp_path / "images" / "composed.png")
    picture.putalpha(Image.fromarray(np.where(np.arange(SIDE) < 20, 255, 0).astype(np.uint8)[None].repeat(SIDE, 0)))
    picture.save(tmp_path / "images" / "transparent.png")
    assert run(tmp_path / "root", "pretrain", tmp_path / "images", tmp_path / "out") == 0
    composed, transparent = ({**line, "file": ""} for line in table(tmp_path / "out" / "labels.csv"))
    assert composed == transparent
    model, folder = ImageModel(), tmp_path / "root" / "runs" / name / "model"
    context = SimpleNamespace(artifacts={"config": folder / "config.json", "weights": folder / "weights.safetensors"})
    model.load_context(context)
    contents = [(tmp_path / "images" / f"{name}.png").read_bytes() for name in ("composed", "transparent")]
    composed, transparent = model.predict(context, pd.DataFrame({"image": contents}))["probabilities"]
    assert composed == transparent
    assert composed[transparent_label := max(composed, key=composed.get)] == pytest.approx(
        float(table(tmp_path / "out" / "labels.csv")[0]["probability"]), abs=1e-6
    ), transparent_label


def test_names_of_any_bytes_and_equal_stems_keep_apart(root, images, tmp_path, capsys):
    shutil.copy(images / "0.jpg", images / "0.png")  # a JPEG by its content
    (images / "2.jpg").rename(images / "\udce4\n.jpg")
    shutil.copy(images / "\udce4\n.jpg", images / "\udce4\n.png")
    assert run(root, "segment", images, tmp_path / "out") == 0
    masks = {path.name for path in (tmp_path / "out" / "masks").rglob("*.png")}
    assert masks == {"0.png", "0_2.png", "\udce4\n.png", "\udce4\n_2.png", "1.png", "3.png"}
    assert (
        "differ in their suffix alone are numbered: 0.png as 0_2, \\udce4\\n.png as \\udce4\\n_2\n"
        in capsys.readouterr().out
    )
    numbered = json.loads((tmp_path / "out" / "prediction.json").read_text())["numbered"]
    assert numbered == {"0.png": "0_2", "\\udce4\\n.png": "\\udce4\\n_2"}
    assert {line["file"] for line in table(tmp_path / "out" / "shares.csv")} >= {"\\udce4\\n.jpg", "0.png"}


def test_an_earlier_prediction_is_replaced_only_when_asked(root, images, tmp_path):
    out = tmp_path / "out"
    assert run(root, "segment", images, out) == 0
    with pytest.raises(UserError, match="--overwrite"):
        run(root, "segment", images, out)
    (images / "0.jpg").unlink()
    (out / "mine.txt").write_text("kept")
    assert run(root, "segment", images, out, "--overwrite") == 0
    assert not (out / "masks" / "0.png").exists() and (out / "masks" / "2.png").exists()
    assert (out / "mine.txt").read_text() == "kept"
    assert run(root, "pretrain", images, out, "--overwrite") == 0
    assert not (out / "masks").exists(), "masks of another model beside its labels"


NETWORK = "task.neck_channels=8"
"""Makes a network that the weights do not fit; found when they are loaded."""


def test_a_prediction_that_fails_leaves_the_earlier_one(root, images, tmp_path):
    out = tmp_path / "out"
    assert run(root, "segment", images, out) == 0
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    with pytest.raises(UserError, match="do not fit"):
        run(root, "segment", images, out, "--overwrite", NETWORK)
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before
    with pytest.raises(UserError, match="do not fit"):
        run(root, "segment", images, tmp_path / "new", NETWORK)
    assert {path.name for path in tmp_path.iterdir()} == {"images", "out"}


@pytest.mark.parametrize(
    "override", ["model.name=resnet18", "stages.predict.model.init=/x.pth", "model={name: resnet18}"]
)
def test_another_network_than_the_weights_is_refused(root, images, tmp_path, override):
    with pytest.raises(UserError, match="network") as refused:
        run(root, "pretrain", images, tmp_path / "out", "--dry-run", override)
    assert override in refused.value.where


def test_an_evaluation_is_of_the_network_that_was_trained(root):
    """LIM and LEM have the same tensors: the weights of one would fit the other."""
    override = "model.options.local_interaction=lem"
    with pytest.raises(UserError, match="network") as refused:
        evaluate.run(parse("evaluate", ["toy-pretrain-0", override, "--root", str(root), "--dry-run"]))
    assert override in refused.value.where


def test_weights_that_changed_since_training_are_refused(root, images, tmp_path):
    model = finished_run(root, "pretrain", run="toy-damaged-0")
    weights = root / "runs" / model / "model" / "weights.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    with pytest.raises(UserError, match="SHA-256"):
        run(root, "damaged", images, tmp_path / "out", "--dry-run")


def test_a_run_whose_storage_is_elsewhere_is_found(root, tmp_path):
    """Only readable files and the weights lie in the local folder."""
    local, there = tmp_path / "root" / "runs" / "toy-pretrain-0", tmp_path / "storage" / "toy-pretrain-0"
    shutil.copytree(root / "runs" / "toy-pretrain-0", there)
    shutil.copytree(there, local, ignore=shutil.ignore_patterns("result.json"))
    with pytest.raises(UserError, match="has not finished"):
        trained_models.find_model("toy-pretrain-0", [], tmp_path / "root")
    leave_status(local, state="finished", folder=str(there))
    weights, _, sha256 = trained_models.find_model("toy-pretrain-0", [], tmp_path / "root")
    assert sha256 == json.loads((there / "result.json").read_text())["weights_sha256"]
    assert Path(weights).is_relative_to(local)
    assert trained_models.find_model(str(there), [], tmp_path / "root")[0] == weights, "as `runs show` prints it"


def test_the_path_of_a_run_is_that_run_or_refused(root, tmp_path, monkeypatch):
    """Its last part alone would name another root's run."""
    other = tmp_path / "an other"
    shutil.copytree(root / "runs" / "toy-pretrain-0", other / "runs" / "toy-pretrain-0")
    with pytest.raises(UserError, match="no finished run") as caught:
        trained_models.find_model(str(other / "runs" / "toy-pretrain-0"), [], root)
    assert caught.value.fix == f"it is a run of another root: --root '{other}'"
    for wrong in ("elsewhere/toy-pretrain-0", "/toy-pretrain-0", "../toy-pretrain-0", "~nobody/toy-pretrain-0"):
        with pytest.raises(UserError, match="no finished run") as caught:
            trained_models.find_model(wrong, [], root)
        assert "toy-pretrain-0" in caught.value.fix
    with pytest.raises(UserError, match="no finished run") as caught:
        trained_models.find_model("models/demo@candidate", [], root)
    assert "or write models:/<name>@<alias>" in caught.value.fix
    monkeypatch.chdir(root)
    for path in (root / "runs" / "toy-pretrain-0", "runs/toy-pretrain-0", "./toy-pretrain-0/../runs/toy-pretrain-0"):
        assert trained_models.find_model(str(path), [], root)[0] == str(root / "runs" / "toy-pretrain-0" / WEIGHTS)


def test_a_config_without_a_stage_is_named(root, tmp_path):
    folder = tmp_path / "runs" / "toy-pretrain-0"
    shutil.copytree(root / "runs" / "toy-pretrain-0", folder)
    (folder / "model" / "config.json").write_text('{"classes": ["a"]}')
    with pytest.raises(UserError, match="has no stage"):
        trained_models.find_model("toy-pretrain-0", [], tmp_path)


def test_a_name_that_no_picture_can_have_is_a_bad_image(root, images, tmp_path, capsys):
    """Longer by its number than a file system takes."""
    long = "a" * 251 + ".png"
    (images / "0.jpg").rename(images / long.replace("png", "jpg"))
    (images / "2.jpg").rename(images / long)
    assert run(root, "segment", images, tmp_path / "out") == 1
    assert "predicted 3 of 4 images" in capsys.readouterr().out
    (line,) = table(tmp_path / "out" / "bad_images.csv")
    assert line["file"] == long and "name is too long" in line["reason"]


def test_a_folder_that_cannot_be_made_is_named_before_anything_is_loaded(root, images, tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(UserError, match="--out"):
        run(root, "segment", images, tmp_path / "file" / "out", "--dry-run")


@pytest.mark.parametrize("model", ["toy-pretrain-0", "models:/toy-pretrain/1"])
def test_a_mistyped_root_is_named_and_not_made(images, tmp_path, model):
    missing = tmp_path / "mistyped"
    with pytest.raises(UserError, match="mistyped"):
        predict.run(parse("predict", [model, str(images), "--out", str(tmp_path / "out"), "--root", str(missing)]))
    assert not missing.exists()


@pytest.mark.parametrize("out", ["", "sub/out", ".."])
def test_predictions_are_never_among_the_images(root, images, out):
    with pytest.raises(UserError, match="are in each other"):
        run(root, "pretrain", images, images / out, "--overwrite")


def test_a_folder_of_something_else_is_refused_even_with_overwrite(root, images, tmp_path):
    (tmp_path / "out" / "masks").mkdir(parents=True)
    (tmp_path / "out" / "masks" / "drawn_by_hand.png").write_text("days of work")
    with pytest.raises(UserError, match="is not empty"):
        run(root, "segment", images, tmp_path / "out", "--overwrite")
    assert (tmp_path / "out" / "masks" / "drawn_by_hand.png").exists()


def test_one_image_is_predicted_also_next_to_its_predictions(root, images, tmp_path):
    assert run(root, "segment", images / "0.jpg", images / "out") == 0
    assert [path.name for path in (images / "out" / "masks").iterdir()] == ["0.png"]
    assert {line["file"] for line in table(images / "out" / "shares.csv")} == {"0.jpg"}
    (images / "notes.doc").write_text("no image")
    with pytest.raises(UserError, match=r"notes\.doc is left out: \.doc is not the suffix of an image"):
        run(root, "segment", images / "notes.doc", tmp_path / "out")


def test_a_list_of_images_is_predicted_in_its_order(root, images, tmp_path):
    chosen = images / "chosen.txt"
    chosen.write_bytes(b"\xef\xbb\xbfsub/3.jpg\r\n\n0.jpg\nnotes.md\n")
    (images / "notes.md").write_text("no image")
    assert run(root, "pretrain", chosen, tmp_path / "out") == 0
    assert [line["file"] for line in table(tmp_path / "out" / "labels.csv")] == ["sub/3.jpg", "0.jpg"]
    assert [line["file"] for line in table(tmp_path / "out" / "left_out.csv")] == ["notes.md"]
    (tmp_path / "elsewhere.txt").write_text(f"{images}/sub/1.jpg\nimages/2.jpg\n")
    assert run(root, "pretrain", tmp_path / "elsewhere.txt", tmp_path / "out", "--overwrite") == 0
    assert [line["file"] for line in table(tmp_path / "out" / "labels.csv")] == ["images/sub/1.jpg", "images/2.jpg"]
    (tmp_path / "lists").mkdir()
    (tmp_path / "lists" / "up.txt").write_text(f"../images/sub/1.jpg\n{images}/2.jpg\n")
    assert run(root, "pretrain", tmp_path / "lists" / "up.txt", tmp_path / "out", "--overwrite") == 0
    assert [line["file"] for line in table(tmp_path / "out" / "labels.csv")] == ["sub/1.jpg", "2.jpg"]


@pytest.mark.parametrize(
    ("lines", "said"),
    [
        ("0.jpg\nabsent.jpg\nsub/none.jpg\n", r"2 of 3 lines name no file: line 2: .*/absent\.jpg, line 3: "),
        ("0.jpg\n\nsub/../0.jpg\n", r"line 3 names .*/0\.jpg again, as line 1"),
        ("\n", "names no image"),
        ("chosen.txt\n", "names no image"),
        (f"0.jpg\n{'x' * 300}.jpg\n", r"1 of 2 lines name no file: line 2: .*x\.jpg \(File name too long\)"),
        ("0.jpg\n\0.jpg\n", "zero bytes"),
    ],
)
def test_a_list_with_a_mistake_is_refused_before_anything_is_loaded(root, images, tmp_path, lines, said):
    (images / "chosen.txt").write_text(lines)
    with pytest.raises(UserError, match=said):
        run(root, "pretrain", images / "chosen.txt", tmp_path / "out")


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be"])
def test_a_list_in_utf_16_is_to_be_saved_as_utf_8(images, encoding):
    (images / "chosen.txt").write_bytes("0.jpg\r\n1.jpg\r\n".encode(encoding))
    with pytest.raises(UserError, match="UTF-16") as refused:
        find_images(images / "chosen.txt")
    assert "save it as UTF-8" in refused.value.fix and refused.value.where.endswith("chosen.txt")


def test_a_path_that_cannot_be_looked_at_is_named(tmp_path, monkeypatch):
    with pytest.raises(UserError, match=r"cannot read .*xxx: File name too long") as refused:
        find_images(tmp_path / ("x" * 300))
    assert refused.value.where == "IMAGES" and refused.value.fix

    def deny(path, **_):
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    monkeypatch.setattr(Path, "stat", deny)
    with pytest.raises(UserError, match=r"cannot read .*closed/images: Permission denied"):
        find_images(tmp_path / "closed" / "images")


def test_predictions_never_replace_listed_images(root, images):
    (images.parent / "chosen.txt").write_text("images/sub/1.jpg\n")
    with pytest.raises(UserError, match="are in each other"):
        run(root, "pretrain", images.parent / "chosen.txt", images, "--overwrite")


def test_the_time_of_loading_is_not_in_the_speed(root, images, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("scalablevit.serving.predict.load_trained", slow := Slow(load_trained))
    assert run(root, "pretrain", images, tmp_path / "out") == 0
    said = re.search(r"predicted 4 of 4 images, (\S+) images/s without the loading of the model; (\S+) s in all "
                     rf"without the start; they are in {tmp_path}/out", capsys.readouterr().out)  # fmt: skip
    assert slow.seconds < float(said[2]) and 4 / float(said[1]) < float(said[2]) - slow.seconds + 0.1


class Slow:
    """A function that takes longer."""

    seconds = 0.5

    def __init__(self, function):
        self.function = function

    def __call__(self, *arguments):
        time.sleep(self.seconds)
        return self.function(*arguments)


def test_links_out_of_the_folder_are_refused(root, images, tmp_path):
    (tmp_path / "secret.jpg").write_bytes(b"elsewhere")
    (images / "link.jpg").symlink_to(tmp_path / "secret.jpg")
    with pytest.raises(UserError, match=r"link\.jpg"):
        run(root, "pretrain", images, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_dry_run_writes_nothing(root, images, tmp_path, capsys):
    assert run(root, "pretrain", images, tmp_path / "out", "--dry-run") == 0
    assert "4 in" in capsys.readouterr().out and not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["toy-pretrain-0", "nowhere"], "cannot list"),
        (["nobody", "IMAGES"], "no finished run"),
        (["toy-pretrain-0", "IMAGES", "task.score_treshold=1"], "unknown key"),
    ],
)
def test_a_users_mistake_is_exit_code_2(arguments, said, root, images, tmp_path):
    given = [str(images) if each == "IMAGES" else each for each in arguments]
    done = subprocess.run(
        [sys.executable, SCRIPT, *given, "--out", tmp_path / "out", "--root", root],
        capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == 2, done.stderr
    assert said in done.stderr and "Traceback" not in done.stderr and "fix:" in done.stderr
