"""A posted image is predicted over HTTP, by MLflow's own scoring server."""

import base64
import io
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import mlflow.pyfunc
import numpy as np
import pytest
import requests
import uvicorn
from harness.toys import SIDE, STAGES, val_images
from hotcoco import mask as run_lengths
from mlflow.pyfunc import scoring_server
from PIL import Image

from scalablevit.cli import predict
from scalablevit.cli.tree import parse
from scalablevit.serving.encoding import image_bytes
from scalablevit.tracking.connection import connect

START_LIMIT_S = 240


def model_folder(registry: Path, name: str) -> str:
    """Version 1 as MLflow stores it."""
    version = connect(f"sqlite:///{registry}/mlflow.db").get_model_version(f"toy-{name}", "1")
    return str(version.source).removeprefix("file://")


def body(*images: bytes) -> bytes:
    """As docs/serve_and_export.md says: one binary column, in base64."""
    return json.dumps({"dataframe_split": {"data": [[base64.b64encode(image).decode()] for image in images]}}).encode()


def post(url: str, content: bytes) -> requests.Response:
    return requests.post(f"{url}/invocations", content, headers={"Content-Type": "application/json"}, timeout=120)


@contextmanager
def served(folder: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """MLflow's scoring server for a stored model, on a loopback port of this process."""
    monkeypatch.setattr(sys, "path", list(sys.path))  # loading puts the model's copy of the code there
    monkeypatch.setenv("_MLFLOW_IS_IN_SERVING_ENVIRONMENT", "true")  # `init` sets it for good
    app = scoring_server.init(mlflow.pyfunc.load_model(folder))
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen()
        server = uvicorn.Server(uvicorn.Config(app, log_level="warning"))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
        thread.start()
        try:
            yield f"http://127.0.0.1:{listening.getsockname()[1]}"
        finally:
            server.should_exit = True
            thread.join()


def test_a_class_and_what_is_no_image(registry, root, monkeypatch):
    files = sorted(val_images(root, "pretrain").rglob("*.jpg"))[:2]
    with served(model_folder(registry, "pretrain"), monkeypatch) as url:
        predictions = post(url, body(*(image_bytes(file) for file in files))).json()["predictions"]
        refused = post(url, body(image_bytes(files[0]), b"<html>"))
    assert len(predictions) == 2 and predictions[0]["class"] in predictions[0]["probabilities"]
    assert predictions[0]["probability"] == max(predictions[0]["probabilities"].values())
    assert refused.status_code == 400 and "image 1: not an image" in refused.json()["message"]


def png_of_zeros(side: int) -> bytes:
    """A small file of many pixels."""
    content = io.BytesIO()
    Image.new("1", (side, side)).save(content, "PNG")
    return content.getvalue()


def test_the_model_behind_an_address_is_that_of_the_registry(registry, root, images, monkeypatch, tmp_path):
    """Bad images are named, all classes are known, and what is predicted is what evaluation sees."""
    (images / "page.png").write_text("<html>")
    (images / "bomb.png").write_bytes(png_of_zeros(13_000))
    with served(model_folder(registry, "segment"), monkeypatch) as url:
        assert predict.run(parse("predict", [url, str(images), "--out", str(tmp_path / "far")])) == 1
    (images / "bomb.png").unlink()  # this process has the recipe's limit alone
    local = ["models:/toy-segment/1", str(images), "--out", str(tmp_path / "near"), "--root", str(registry)]
    assert predict.run(parse("predict", local)) == 1
    masks = [sorted((tmp_path / out / "masks").rglob("*.png")) for out in ("near", "far")]
    assert len(masks[0]) == 4 and [each.read_bytes() for each in masks[0]] == [each.read_bytes() for each in masks[1]]
    assert (tmp_path / "near" / "classes.csv").read_bytes() == (tmp_path / "far" / "classes.csv").read_bytes()
    bad = (tmp_path / "far" / "bad_images.csv").read_text()
    assert "13000 x 13000 pixels are more than the server's limit (64000000)" in bad and "page.png" in bad


def test_what_a_server_refuses_and_takes(registry, root, monkeypatch):
    """Each refusal is one short sentence with HTTP 400, in which no byte of an image stands."""
    file = image_bytes(sorted(val_images(root, "pretrain").rglob("*.jpg"))[0])
    text = base64.b64encode(file).decode()
    monkeypatch.setenv("SCALABLEVIT_SERVE_MAX_IMAGES", "3")
    monkeypatch.setenv("SCALABLEVIT_SERVE_MAX_BYTES", str(1_000_000))
    refused = {
        "the request has 2 columns": {"dataframe_split": {"data": [[text, text]]}},
        "the request has 2 columns:": {"instances": [{"a": text, "b": text}]},
        "the request has 2 columns: ": {"inputs": [[text, text]]},
        "4 images are more than the 3 of": {"inputs": [text] * 4},
        "image 1: with it the images have": {"dataframe_split": {"data": [["A" * 700_000]] * 2}},
        "image 0: not base64": {"inputs": ["A"]},
        "image 0: a int, not an image file": {"dataframe_records": [{"image": 3}]},
        "image 0: not an image of a known format": {"instances": [base64.b64encode(b"<html>").decode()]},
    }
    taken = [
        {"inputs": [text]},
        {"inputs": text},
        {"inputs": {"image": [text]}},
        {"instances": [text]},
        {"instances": [{"image": text}]},
        {"dataframe_records": [{"image": text}]},
    ]
    with served(model_folder(registry, "pretrain"), monkeypatch) as url:
        expected = post(url, body(file)).json()["predictions"]
        for request in taken:
            response = post(url, json.dumps(request).encode())
            assert response.status_code == 200 and response.json()["predictions"] == expected, request.keys()
        for sentence, request in refused.items():
            response = post(url, json.dumps(request).encode())
            said = response.json()["message"]
            assert response.status_code == 400 and said.startswith(sentence.strip()), said
            assert len(said) < 300 and text[:12] not in said and "\n" not in said
        started = time.monotonic()
        bomb = post(url, body(png_of_zeros(13_000)))
        assert time.monotonic() - started < 10 and bomb.status_code == 400
        assert bomb.json()["message"].startswith("image 0: 13000 x 13000 pixels are more than")
        (about,) = post(url, body()).json()["predictions"]
    assert about["task"] == "classification" and len(about["model_classes"]) == 6 and about["max_images"] == 3


def test_the_registered_model_names_its_classes(registry, root):
    model = mlflow.pyfunc.load_model(model_folder(registry, "pretrain"))
    files = sorted(val_images(root, "pretrain").rglob("*.jpg"))[:2]
    predictions = model.predict([file.read_bytes() for file in files])
    assert len(predictions) == 2 and set(predictions["class"]) <= set(model.metadata.metadata["classes"])
    assert model.predict([])["model_classes"][0] == model.metadata.metadata["classes"]


def test_a_mask(registry, root, monkeypatch):
    file = sorted(val_images(root, "segment").iterdir())[0]
    with served(model_folder(registry, "segment"), monkeypatch) as url:
        (prediction,) = post(url, body(image_bytes(file))).json()["predictions"]
    mask = np.array(Image.open(io.BytesIO(base64.b64decode(prediction["mask_png"]))))
    assert mask.shape == (SIDE, SIDE) and len(np.unique(mask)) == len(prediction["classes"])
    assert sum(prediction["shares"]) == pytest.approx(1)


def test_boxes(registry, root, monkeypatch, tmp_path):
    """Also as `pipelines/predict.py` asks for them."""
    file = sorted(val_images(root, "detect").iterdir())[0]
    (tmp_path / "images").mkdir()
    shutil.copy(file, tmp_path / "images")
    with served(model_folder(registry, "detect"), monkeypatch) as url:
        assert predict.run(parse("predict", [url, str(tmp_path / "images"), "--out", str(tmp_path / "out")])) == 0
        (prediction,) = post(url, body(image_bytes(file))).json()["predictions"]
    assert len(prediction["boxes"]) == len(prediction["scores"]) == len(prediction["labels"]) > 0
    assert run_lengths.decode(prediction["masks"][0]).shape == (SIDE, SIDE)
    written = json.loads((tmp_path / "out" / "detections.json").read_text())["annotations"]
    assert [each["score"] for each in written] == prediction["scores"]
    assert (tmp_path / "out" / "overlays" / f"{file.stem}.jpg").is_file()


ELSEWHERE = """
import importlib.util, json, sys
from pathlib import Path
sys.path = [place for place in sys.path if not (Path(place or ".") / "scalablevit").exists()]
sys.meta_path = [finder for finder in sys.meta_path if "editable" not in repr(finder)]
assert importlib.util.find_spec("scalablevit") is None
import mlflow.pyfunc
for folder, image in zip(sys.argv[1::2], sys.argv[2::2]):
    rows = mlflow.pyfunc.load_model(folder).predict([Path(image).read_bytes()])
    print(json.dumps(sorted(rows.columns)))
import scalablevit
print(scalablevit.__file__)
"""


@pytest.mark.slow
def test_a_version_is_loaded_where_there_is_no_scalablevit(registry, root):
    """All of our code, and the files that it reads, come from the version's zip file."""
    given = []
    for name in STAGES:
        image = next(file for file in sorted(val_images(root, name).rglob("*")) if file.suffix in (".jpg", ".png"))
        given += [model_folder(registry, name), str(image)]
    code = Path(given[0]) / "code"
    assert [path.name for path in code.iterdir()] == ["scalablevit.zip"]
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run([sys.executable, "-c", ELSEWHERE, *given], cwd="/", env=environment, capture_output=True,
                          text=True, timeout=START_LIMIT_S, check=False)  # fmt: skip
    assert done.returncode == 0, done.stderr
    columns, place = done.stdout.splitlines()[-4:-1], done.stdout.splitlines()[-1]
    assert place == str(code / "scalablevit.zip" / "scalablevit" / "__init__.py")
    assert ["class" in columns[0], "mask_png" in columns[1], "boxes" in columns[2]] == [True] * 3


@pytest.mark.long
def test_the_command_line_serves_the_model(registry, root):
    """`mlflow models serve` in a process of its own, which has nothing but the stored model and its packages."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    command = [sys.executable, "-m", "mlflow", "models", "serve", "-m", model_folder(registry, "pretrain"),
               "--env-manager", "local", "--host", "127.0.0.1", "--port", str(port)]  # fmt: skip
    path = f"{Path(sys.executable).parent}{os.pathsep}{environment['PATH']}"  # it starts `uvicorn` by its name
    server = subprocess.Popen(command, cwd="/", env={**environment, "PATH": path}, start_new_session=True,
                              stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)  # fmt: skip
    try:
        file = sorted(val_images(root, "pretrain").rglob("*.jpg"))[0]
        deadline = time.monotonic() + START_LIMIT_S
        while True:
            try:
                (prediction,) = post(f"http://127.0.0.1:{port}", body(image_bytes(file))).json()["predictions"]
                break
            except OSError:
                assert server.poll() is None and time.monotonic() < deadline
                time.sleep(0.5)
        assert prediction["class"] in prediction["probabilities"]
    finally:
        os.killpg(server.pid, signal.SIGKILL)
        server.wait()
