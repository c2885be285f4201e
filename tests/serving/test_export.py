"""Exports answer as the model does, for any number of images; what is refused is named."""

import json
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from toys import finished_run, val_images

from scalablevit.config.errors import UserError
from scalablevit.jobs import export
from scalablevit.serving.export import Part, export_part

RESNET = ["model.name=resnet18", "model.drop_path_rate=null"]


def run(root: Path, name: str, model: str, out: Path, *more: str) -> int:
    images = val_images(root, name)
    return export.run(export.parse([model, str(images), "--out", str(out), "--root", str(root), *more]))


def facts(out: Path) -> dict:
    return json.loads((out / "export.json").read_text())


def check_runs_for_other_counts(out: Path, note: dict) -> None:
    """Three random inputs, ONNX Runtime against torch's archive."""
    for part in note["parts"]:
        ((name, (_, *shape)),) = part["input"].items()
        inputs = 255 * torch.rand(3, *shape)
        session = onnxruntime.InferenceSession(str(out / f"{part['name']}.onnx"))
        answers = session.run(list(part["outputs"]), {name: inputs.numpy()})
        with torch.no_grad():
            program = torch.export.load(out / f"{part['name']}.pt2").module()(inputs)
        expected = [program] if isinstance(program, torch.Tensor) else list(program)
        for answer, theirs, (_, *tail) in zip(answers, expected, part["outputs"].values(), strict=True):
            assert answer.shape == (3, *tail)
            np.testing.assert_allclose(answer, theirs, atol=1e-3 * max(1.0, float(theirs.abs().max())))


def test_a_classifier(root, tmp_path, capsys):
    model = finished_run(root, "pretrain", *RESNET, run="resnet")
    assert run(root, "pretrain", model, tmp_path / "dry", "--dry-run") == 0 and not (tmp_path / "dry").exists()
    out = tmp_path / "out"
    assert run(root, "pretrain", model, out) == 0
    assert "network.onnx differs by" in capsys.readouterr().out
    note = facts(out)
    assert note["size"] == [32, 32] and note["parts"][0]["outputs"] == {"logits": ["N", 6]}
    check_runs_for_other_counts(out, note)
    with pytest.raises(UserError, match="is not empty"):
        run(root, "pretrain", model, out)


@pytest.mark.parametrize("size", ["99999x99999", "8192x8192"])
def test_sizes_that_no_memory_holds(root, tmp_path, size):
    with pytest.raises(UserError, match="pixels"):
        run(root, "pretrain", "toy-pretrain-0", tmp_path / "out", "--dry-run", "--size", size)


def test_another_network_than_the_weights_is_refused(root, tmp_path):
    with pytest.raises(UserError, match="network"):
        run(root, "pretrain", "toy-pretrain-0", tmp_path / "out", "model.name=resnet18", "--dry-run")
    with pytest.raises(UserError, match="do not fit"):
        run(root, "segment", "toy-segment-0", tmp_path / "out", "task.neck_channels=8")
    assert not list(tmp_path.iterdir())


def test_a_folder_that_cannot_be_made_is_named_before_anything_is_loaded(root, tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(UserError, match="--out"):
        run(root, "pretrain", "toy-pretrain-0", tmp_path / "file" / "out", "--dry-run")
    if Path("/proc").is_dir():  # says that it may be written to
        with pytest.raises(UserError, match="cannot write"):
            run(root, "pretrain", "toy-pretrain-0", Path("/proc/out"))


@pytest.mark.parametrize("file", ["x.pt2", "x.onnx"])
def test_a_file_that_cannot_be_written_is_not_the_exporters_refusal(tmp_path, file):
    (tmp_path / file).mkdir()
    inputs = torch.rand(2, 3)
    with pytest.raises(OSError, match=file):
        export_part(Part("x", torch.nn.Identity(), inputs, "x", ("y",), [inputs]), tmp_path, "m")


class Stubborn(torch.nn.Module):
    """What no exporter can follow: a branch on a value."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x if x.sum() > 0 else -x


def test_what_an_exporter_refuses_is_named(tmp_path):
    inputs = torch.ones(2, 3)
    with pytest.raises(UserError, match=r"torch\.export refuses network of my model"):
        export_part(Part("network", Stubborn(), inputs, "x", ("y",), [inputs]), tmp_path, "my model")


def test_an_export_that_answers_otherwise_is_not_faithful(tmp_path):
    inputs = torch.rand(2, 3)
    exported = export_part(Part("network", torch.nn.Identity(), inputs, "x", ("y",), [inputs + 0.1]), tmp_path, "m")
    assert not exported.faithful and exported.differences == pytest.approx((0.1, 0.1))


@pytest.mark.parametrize("size", ["512", "0x3", "12x-3"])
def test_sizes_that_are_none(root, tmp_path, size):
    with pytest.raises(UserError, match="is no size"):
        run(root, "pretrain", "toy-pretrain-0", tmp_path / "out", "--size", size)


@pytest.mark.long
@pytest.mark.parametrize(
    ("name", "parts"),
    [("pretrain", ["network"]), ("segment", ["network"]), ("detect", ["network", "box_head", "mask_head"])],
)
def test_the_flagship_on_every_task(root, tmp_path, name, parts):
    out = tmp_path / "out"
    assert run(root, name, f"toy-{name}-0", out) == 0
    note = facts(out)
    assert [part["name"] for part in note["parts"]] == parts
    check_runs_for_other_counts(out, note)


@pytest.mark.long
def test_a_retinanet(root, tmp_path):
    model = finished_run(root, "detect", "stages.detect.task.head=retinanet", *RESNET, run="retinanet")
    assert run(root, "detect", model, tmp_path / "out", "--size", "64x96") == 0
    check_runs_for_other_counts(tmp_path / "out", facts(tmp_path / "out"))
