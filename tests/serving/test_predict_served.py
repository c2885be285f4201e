"""A model behind an address: the same files as from the registry, and every server that is none is named."""

import base64
import io
import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pandas as pd
import pytest
import torch
from harness.predicting import ALL, run, trained
from mlflow.pyfunc import scoring_server

from scalablevit.config.errors import UserError
from scalablevit.data.decoding import BadSample, decode_image
from scalablevit.jobs import predict
from scalablevit.serving.served import Served

Answering = Callable[[bytes], tuple[int, str]]
"""An encoded image to a status and a body."""


@contextmanager
def serving(answering: Answering, ping: int = 200) -> Iterator[str]:
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
            ((row,),) = asked["dataframe_split"]["data"]
            self.reply(*answering(base64.b64decode(row)) if self.path == "/invocations" else (404,))

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


def model_of(root: Path, name: str) -> Answering:
    """A toy model's answers, as MLflow's server writes them."""
    model = trained(root, name)

    def answering(content: bytes) -> tuple[int, str]:
        try:
            image = decode_image(content, 10**6)
        except BadSample as bad:
            return 400, json.dumps({"error_code": "INVALID_PARAMETER_VALUE", "message": f"image 0: {bad.reason}"})
        with torch.inference_mode():
            answer = model.task.answer(model.network, image, model.device)
        body = io.StringIO()
        scoring_server.predictions_to_json(pd.DataFrame([answer]), body)
        return 200, body.getvalue()

    return answering


def ask(url: str, folder: Path, out: Path, *more: str) -> int:
    return predict.run(predict.parse([url, str(folder), "--out", str(out), *more]))


def files(out: Path) -> dict[str, bytes]:
    """All of them but the note, which names model and classes' origin."""
    return {
        str(path.relative_to(out)): path.read_bytes()
        for path in out.rglob("*")
        if path.is_file() and path.name != predict.NOTE
    }


@pytest.mark.parametrize("name", ["pretrain", "segment", "detect"])
def test_the_files_are_those_of_a_model_in_the_registry(root, images, tmp_path, name):
    (images / "page.png").write_text("<html>")
    assert run(root, name, images, tmp_path / "near", *([ALL] if name == "detect" else [])) == 1
    classes = tmp_path / "classes.txt"
    classes.write_text("\n".join(trained(root, name).task.classes))
    with serving(model_of(root, name)) as url:
        assert ask(f"{url}/invocations/", images, tmp_path / "far", "--classes", str(classes)) == 1
    near = files(tmp_path / "near")
    assert len(near) >= 2 and files(tmp_path / "far") == near
    note = json.loads((tmp_path / "far" / predict.NOTE).read_text())
    assert note["model"] == url and (note["answered"], note["bad"]) == (4, 1) and note["classes_from"] == "--classes"


def test_masks_number_the_classes_that_nobody_names(root, images, tmp_path, capsys):
    assert run(root, "segment", images, tmp_path / "near") == 0
    with serving(model_of(root, "segment")) as url:
        assert ask(url, images, tmp_path / "far", "--dry-run") == 0 and not (tmp_path / "far").exists()
        assert ask(url, images, tmp_path / "far") == 0
        mixed = tmp_path / "mixed.txt"
        mixed.write_text("\n".join(reversed(trained(root, "segment").task.classes)))
        with pytest.raises(UserError, match="--classes"):
            ask(url, images, tmp_path / "other", "--classes", str(mixed))
    assert "leave this machine" in capsys.readouterr().out
    near, far = files(tmp_path / "near"), files(tmp_path / "far")
    assert far.keys() == near.keys() and not (tmp_path / "other").exists()
    assert all(far[file] == near[file] for file in near if file.startswith(("shares", "overlays")))
    rows = far["classes.csv"].decode().splitlines()
    assert [row for row in rows if "(in no image)" not in row] == [
        row for row in near["classes.csv"].decode().splitlines() if row in rows
    ]


@pytest.mark.parametrize(
    ("status", "body", "said"),
    [
        (500, json.dumps({"message": "out of\nmemory " + "x" * 5000}), "answers 500 out of memory xxx"),
        (404, "", "answers 404"),
        (302, "", "answers 302"),
        (200, "<html>welcome</html>", "gives no answer: <html>welcome"),
        (200, json.dumps({"predictions": [{"price": 3}]}), "its columns are price"),
        (200, json.dumps({"predictions": [{"boxes": [[0, 0, 1, 1]], "scores": [], "labels": []}]}), "otherwise"),
        (200, json.dumps({"predictions": [{"mask_png": "AAAA", "classes": [], "shares": []}]}), "otherwise"),
    ],
)
def test_a_server_of_something_else_is_named(images, tmp_path, status, body, said):
    with serving(lambda _: (status, body)) as url, pytest.raises(UserError) as refused:
        ask(url, images, tmp_path / "out")
    assert said in refused.value.what and len(refused.value.what) < 500 and "\n" not in refused.value.what
    assert refused.value.where == url and refused.value.fix and not (tmp_path / "out").exists()


def test_a_page_that_is_no_model_gets_no_image(images, tmp_path):
    sent = []
    with serving(lambda image: (sent.append(image), (200, ""))[1], ping=404) as url:
        with pytest.raises(UserError, match="no model server"):
            ask(url, images, tmp_path / "out")
        assert not sent


def test_nobody_listens_or_nobody_answers(images, tmp_path, monkeypatch):
    with serving(lambda _: (200, "")) as url:
        pass
    with pytest.raises(UserError, match="cannot be asked"):
        ask(url, images, tmp_path / "out")
    hold = threading.Event()
    monkeypatch.setattr("scalablevit.serving.served.ANSWER_S", 0.2)
    with serving(lambda _: (hold.wait(20), (200, ""))[1]) as url:
        with pytest.raises(UserError, match=r"silent for 0\.2 s"):
            ask(url, images, tmp_path / "out")
        hold.set()


@pytest.mark.parametrize(
    "address", ["file:///etc/passwd", "ftp://host", "http://", "http://host?x=1", "http://[", "http://a:b@host"]
)
def test_addresses_of_other_kinds(address):
    with pytest.raises(UserError, match="MODEL"):
        Served(address)


def test_what_a_served_model_does_not_take(images, tmp_path, root):
    with pytest.raises(UserError, match="override"):
        ask("http://127.0.0.1:9", images, tmp_path / "out", "task.score_threshold=0.5")
    with pytest.raises(UserError, match="--classes"):
        run(root, "pretrain", images, tmp_path / "out", "--classes", "x")
    (images / "0.jpg").write_text("<html>")
    for file in ("2.jpg", "sub/1.jpg", "sub/3.jpg"):
        (images / file).unlink()
    sent = []
    with serving(lambda image: (sent.append(image), (200, ""))[1]) as url:
        with pytest.raises(UserError, match="none of the images"):
            ask(url, images, tmp_path / "out")
        assert not sent
