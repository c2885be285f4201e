"""A root of any name: what is registered in it is found in it, and nothing lands beside it."""

import shutil
from pathlib import Path

import pytest
from harness.toys import register, val_images

from scalablevit.cli import predict
from scalablevit.cli.tree import parse
from scalablevit.config.errors import UserError
from scalablevit.config.root import tracking_uri
from scalablevit.tracking.weights import resolve_weights

MODEL = "models:/toy@candidate"


@pytest.mark.parametrize(
    "name",
    ["exp #2", "a b", "it's", 'a "b"', "données 数据", "100%", "%zz", "a&b;c", "a+b=c", "$HOME", "[a]*", "a@b:c"],
)
def test_a_model_goes_from_the_outbox_to_a_prediction(root: Path, tmp_path: Path, name: str) -> None:
    place = tmp_path / "roots" / name
    shutil.copytree(root / "runs" / "toy-pretrain-0", place / "runs" / "toy-pretrain-0")
    register(place, "toy-pretrain-0", "toy")
    found = resolve_weights(MODEL, tracking_uri(None, place), place / "cache")
    assert found.weights.read_bytes() == (root / "runs/toy-pretrain-0/model/weights.safetensors").read_bytes()
    out = tmp_path / "out"
    asked = [MODEL, str(val_images(root, "pretrain")), "--out", str(out), "--root", str(place)]
    assert predict.run(parse("predict", asked)) == 0
    assert (out / "labels.csv").is_file()
    assert [path.name for path in place.parent.iterdir()] == [name]
    assert {path.name for path in place.iterdir()} == {"runs", "cache", "mlflow.db", "mlartifacts"}


@pytest.mark.parametrize("name", ["a%41b", "what?", "?x=1"])
def test_a_name_that_cannot_be_held_is_refused_before_anything_is_written(
    root: Path, tmp_path: Path, name: str
) -> None:
    place = tmp_path / "roots" / name
    shutil.copytree(root / "runs" / "toy-pretrain-0", place / "runs" / "toy-pretrain-0")
    asked = [MODEL, str(val_images(root, "pretrain")), "--out", str(tmp_path / "out"), "--root", str(place)]
    with pytest.raises(UserError, match="means something else"):
        predict.run(parse("predict", asked))
    assert [path.name for path in place.parent.iterdir()] == [name]
    assert [path.name for path in place.iterdir()] == ["runs"]
