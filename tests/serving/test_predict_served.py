"""A model behind an address: the same files as from the registry, and every server that is none is named."""

import base64
import io
import json
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pandas as pd
import pytest
import torch
from harness.predicting import ALL, run, trained
from harness.toys import SIDE
from harness.user_code import EXAMPLE, packages_in
from mlflow.pyfunc import scoring_server
from PIL import Image

from scalablevit.cli import predict
from scalablevit.cli.tree import parse
from scalablevit.config.errors import UserError
from scalablevit.data.decoding import BadSample, decode_image
from scalablevit.serving.served import ModelServer, is_loopback

Respond = Callable[[bytes], tuple[int, str]]
"""An encoded image to a status and a body."""
CLASSIFIER = (200, json.dumps({"predictions": [{"task": "classification", "model_classes": ["a", "b"]}]}))
"""What a model says of itself."""


def mask_of(label: int) -> str:
    """The PNG of a mask with one label, as a server sends it."""
    body = io.BytesIO()
    Image.new("L", (SIDE, SIDE), label).save(body, "PNG")
    return base64.b64encode(body.getvalue()).decode()


@contextmanager
def serving(respond: Respond, ping: int = 200, about: tuple[int, str] = CLASSIFIER) -> Iterator[str]:
    class Handler(BaseHTTPRequestHandler):
        def reply(self, status: int, body: str = "\n") -> None:
            self.send_response(status)
            self.send_header("Location", "/elsewhere")
            self.send_header("Content-Length", str(len(body.encode())))
            self.end_headers()
            self.wfile.write(body.encode())

        def do_GET(self):
            self.reply(ping if self.path == "/ping" else 404)

        def do_POST(self):
            asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            rows = asked["dataframe_split"]["data"]
            replied = respond(base64.b64decode(rows[0][0])) if rows else about
            self.reply(*replied if self.path == "/invocations" else (404,))

        def log_message(self, *_):
            """Be quiet."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.handle_error = lambda *_: None  # a client that waited no longer
    thread = threading.Thread(target=server.serve_forever, args=(0.05,))
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def model_of(root: Path, name: str) -> Respond:
    """A toy model's predictions, as MLflow's server writes them."""
    model = trained(root, name)

    def respond(content: bytes) -> tuple[int, str]:
        try:
            image = decode_image(content, 10**6)
        except BadSample as bad:
            return 400, json.dumps({"error_code": "INVALID_PARAMETER_VALUE", "message": f"image 0: {bad.reason}"})
        with torch.inference_mode():
            prediction = model.predict(image).to_dict()
        body = io.StringIO()
        scoring_server.predictions_to_json(pd.DataFrame([prediction]), body)
        return 200, body.getvalue()

    return respond


def about(root: Path, name: str) -> tuple[int, str]:
    task = trained(root, name).task
    return about_model(trained(root, name).stage.task.kind, task.classes)


def about_model(task: str, classes: Sequence[str]) -> tuple[int, str]:
    return 200, json.dumps({"predictions": [{"task": task, "model_classes": list(classes)}]})


def ask(url: str, folder: Path, out: Path, *more: str) -> int:
    return predict.run(parse("predict", [url, str(folder), "--out", str(out), *more]))


def files(out: Path) -> dict[str, bytes]:
    """All of them but the note, which names the model."""
    return {
        str(path.relative_to(out)): path.read_bytes()
        for path in out.rglob("*")
        if path.is_file() and path.name != predict.NOTE
    }


@pytest.mark.parametrize("name", ["pretrain", "segment", "detect"])
def test_the_files_are_those_of_a_model_in_the_registry(root, images, tmp_path, name):
    (images / "page.png").write_text("<html>")
    assert run(root, name, images, tmp_path / "near", *([ALL] if name == "detect" else [])) == 1
    with serving(model_of(root, name), about=about(root, name)) as url:
        assert ask(f"{url}/invocations/", images, tmp_path / "far") == 1
    near, far = files(tmp_path / "near"), files(tmp_path / "far")
    if name == "detect":  # the override is also the threshold of the overlays, and a server takes none
        near, far = ({file: each for file, each in found.items() if "overlays" not in file} for found in (near, far))
    assert len(near) >= 2 and far == near
    notes = [json.loads((tmp_path / out / predict.NOTE).read_text()) for out in ("near", "far")]
    assert notes[1]["model"] == url and (notes[1]["answered"], notes[1]["bad"]) == (4, 1)
    assert notes[0]["classes"] == notes[1]["classes"] == list(trained(root, name).task.classes)
    assert notes[0]["task"] == notes[1]["task"] == trained(root, name).stage.task.kind


@pytest.mark.parametrize("local", [True, False])
def test_a_dry_run_sends_no_image_and_says_if_images_would_leave(images, tmp_path, capsys, monkeypatch, local):
    monkeypatch.setattr("scalablevit.serving.served.is_loopback", lambda _: local)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    with serving(lambda _: pytest.fail("an image was sent")) as url:
        assert ask(url, images, tmp_path / "far", "--dry-run") == 0 and not (tmp_path / "far").exists()
    said = capsys.readouterr().out
    assert ("leave this machine" in said) is not local and "classification, 2 classes" in said


@pytest.mark.parametrize(
    ("status", "body", "said"),
    [
        (500, json.dumps({"message": "out of\nmemory " + "x" * 5000}), "responds with 500 out of memory xxx"),
        (404, "", "responds with 404"),
        (302, "", "responds with 302"),
        (200, "<html>welcome</html>", "sends no prediction: <html>welcome"),
        (200, json.dumps({"predictions": [{"price": 3}]}), "otherwise"),
        (
            200,
            json.dumps({"predictions": [{"class": "c", "probability": 1, "probabilities": {"c": 1}}]}),
            "not have: c",
        ),
    ],
)
def test_a_server_of_something_else_is_named(images, tmp_path, status, body, said):
    check_named(images, tmp_path, (status, body), CLASSIFIER, said)


@pytest.mark.parametrize(
    ("task", "prediction"),
    [
        ("detection", {"boxes": [[0, 0, 1, 1]], "scores": [], "labels": []}),
        *(
            ("detection", {"boxes": [[0, 0, 1, 1], box], "scores": [1, 1], "labels": ["a", "b"]})
            for box in (
                [5, 0, 1, 1],
                [0, 5, 1, 1],
                [0, 0, 1],
                [0, 0, 1, "1"],
                [0, 0, 1, float("nan")],
                "0011",
                7,
                [0, 0, float("inf"), 1],
                None,
            )
        ),
        *(
            ("detection", {"boxes": [[0, 0, 1, 1], [0, 0, 1, 1]], "scores": [1, score], "labels": ["a", "b"]})
            for score in ("1", None, float("nan"))
        ),
        *(
            (
                "detection",
                {
                    "boxes": [[0, 0, 1, 1]],
                    "scores": [1],
                    "labels": ["a"],
                    "masks": [{"size": [SIDE, SIDE], "counts": counts}],
                },
            )
            for counts in ("", "zzzzzzzz", 7)
        ),
        ("segmentation", {"mask_png": "AAAA", "classes": [], "shares": []}),
        ("segmentation", {"mask_png": mask_of(9), "classes": ["a"], "shares": [1.0]}),
        ("segmentation", {"mask_png": mask_of(0), "classes": ["a"], "shares": []}),
        ("classification", {"class": "a", "probability": 10**400, "probabilities": {"a": 1}}),
    ],
)
def test_a_response_that_is_no_prediction_is_named(images, tmp_path, task, prediction):
    check_named(
        images, tmp_path, (200, json.dumps({"predictions": [prediction]})), about_model(task, ["a", "b"]), "otherwise"
    )


@pytest.mark.parametrize(
    "predictions", [[], [{"price": 3}], [{"task": 3, "model_classes": ["a"]}], [{"task": "detection"}], "x"]
)
def test_a_model_that_does_not_name_its_classes_gets_no_image(images, tmp_path, predictions):
    sent = []
    body = json.dumps({"predictions": predictions})
    serve = serving(lambda image: (sent.append(image), (200, ""))[1], about=(200, body))
    with serve as url, pytest.raises(UserError, match="does not say its model's classes"):
        ask(url, images, tmp_path / "out")
    assert not sent


def test_a_users_own_task_is_predicted_with_its_package(images, tmp_path):
    response = json.dumps({"predictions": [{"tags": ["cross"], "probabilities": {"cross": 0.75, "ring": 0.25}}]})
    sent, out = [], tmp_path / "out"
    serve = serving(
        lambda image: (sent.append(image), (200, response))[1], about=about_model("tagging", ["cross", "ring"])
    )
    with packages_in(EXAMPLE), serve as url:
        with pytest.raises(UserError, match="for the task tagging, which is none of classification") as refused:
            ask(url, images, out)
        assert "--imports" in refused.value.fix and not sent
        with pytest.raises(UserError, match="there is no package absent"):
            ask(url, images, out, "--imports", "absent")
        assert ask(url, images, out, "--imports", "image_tags") == 0
    assert (out / "tags.csv").read_text().splitlines() == [
        "file,tags", "0.jpg,cross", "2.jpg,cross", "sub/1.jpg,cross", "sub/3.jpg,cross",
    ]  # fmt: skip


def test_a_model_that_is_not_served_names_its_packages_itself(images, tmp_path):
    with pytest.raises(UserError, match="has no effect here"):
        ask("models:/toy-pretrain/1", images, tmp_path / "out", "--imports", "image_tags")


def check_named(images, tmp_path, response, about, said):
    with serving(lambda _: response, about=about) as url, pytest.raises(UserError) as refused:
        ask(url, images, tmp_path / "out")
    assert said in refused.value.what and len(refused.value.what) < 500 and "\n" not in refused.value.what
    assert refused.value.where == url and refused.value.fix and not (tmp_path / "out").exists()


def test_a_page_that_is_no_model_gets_no_image(images, tmp_path):
    sent = []
    with serving(lambda image: (sent.append(image), (200, ""))[1], ping=404) as url:
        with pytest.raises(UserError, match="no model server"):
            ask(url, images, tmp_path / "out")
        assert not sent


def test_nobody_listens_or_nobody_responds(images, tmp_path, monkeypatch):
    with serving(lambda _: (200, "")) as url:
        pass
    with pytest.raises(UserError, match="cannot be asked"):
        ask(url, images, tmp_path / "out")
    hold = threading.Event()
    monkeypatch.setattr("scalablevit.serving.served.PREDICTION_S", 0.2)
    with serving(lambda _: (hold.wait(20), (200, ""))[1]) as url:
        with pytest.raises(UserError, match=r"silent for 0\.2 s"):
            ask(url, images, tmp_path / "out")
        hold.set()


@pytest.mark.parametrize(
    "address", ["file:///etc/passwd", "ftp://host", "http://", "http://host?x=1", "http://[", "http://a:b@host"]
)
def test_addresses_of_other_kinds(address):
    with pytest.raises(UserError, match="MODEL"):
        ModelServer(address)


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
def test_a_server_on_this_machine_is_asked_without_a_proxy(monkeypatch, host):
    """A proxy would be asked for its own machine."""
    for name in ("no_proxy", "NO_PROXY", "HTTP_PROXY"):
        monkeypatch.delenv(name, raising=False)
    with serving(lambda _: (200, ""), ping=404) as proxy, serving(lambda _: (200, "")) as url:
        monkeypatch.setenv("http_proxy", proxy)
        assert ModelServer(url.replace("127.0.0.1", host)).describe().classes == ("a", "b")
        with pytest.raises(UserError, match="is no model server: /ping responds with 404"):
            ModelServer("http://models.invalid:5001").describe()  # by the proxy


@pytest.mark.parametrize(
    ("host", "loopback"),
    [("127.0.0.1", True), ("127.1.2.3", True), ("localhost", True), ("LOCALHOST.", True), ("::1", True),
     ("10.0.0.1", False), ("localhost.example.org", False), ("::2", False), ("", False)],
)  # fmt: skip
def test_which_hosts_are_this_machine(host, loopback):
    assert is_loopback(host) is loopback


def test_what_a_served_model_does_not_take(images, tmp_path, root):
    with pytest.raises(UserError, match="override"):
        ask("http://127.0.0.1:9", images, tmp_path / "out", "task.score_threshold=0.5")
    (images / "0.jpg").write_text("<html>")
    for file in ("2.jpg", "sub/1.jpg", "sub/3.jpg"):
        (images / file).unlink()
    sent = []
    with serving(lambda image: (sent.append(image), (200, ""))[1]) as url:
        with pytest.raises(UserError, match="none of the 1 images"):
            ask(url, images, tmp_path / "out")
        assert not sent
