"""The whole way over HTTP, to a real MLflow server that dies and comes back."""

import contextlib
import json
import re
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from uuid import uuid4

import numpy as np
import pytest
import requests
from mlflow import MlflowClient
from mlflow.entities import Run
from safetensors.numpy import load_file, save_file

from scalablevit.pipeline.registration import PACKAGE
from scalablevit.pipeline.registration import SERVING as OUR_SERVING
from scalablevit.run_files import REFUSED
from scalablevit.tracking.connection import connect
from scalablevit.tracking.environment import pin_requirements
from scalablevit.tracking.outbox import Outbox
from scalablevit.tracking.sync import OutboxSync, Pending
from scalablevit.tracking.weights import resolve_weights

RunOf = Callable[[MlflowClient, str, str], Run]

REQUEST = re.compile(r'"((?:GET|POST|PUT|PATCH|DELETE) [^"]+) HTTP')
"""In the log of MLflow's server."""

SERVING = """
from mlflow.models import set_model
from mlflow.pyfunc import PythonModel


class Answer(PythonModel):
    def predict(self, context, model_input, params=None):
        return [0 for _ in model_input.iloc[:, 0]]


set_model(Answer())
"""


@pytest.fixture
def outbox(tmp_path: Path) -> Outbox:
    return Outbox(tmp_path / "outbox")


def test_an_outage_costs_no_point_and_doubles_none(
    outbox: Outbox, server: Any, experiment: str, run_of: RunOf, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    uid = uuid4().hex
    (tmp_path / "note.txt").write_text("written during the outage")
    sync = OutboxSync(outbox.folder, server.uri, request_timeout_s=5)
    sync.start()
    outbox.run(uid, "run", experiment=experiment)
    slowest = 0.0
    for step in range(600):
        if step == 200:
            assert sync.drain(30).records == 0
            server.kill()
        if step == 400:
            assert sync.pending().records > 0
            server.start()
        before = time.monotonic()
        outbox.metrics(uid, [{"step": step, "time_ms": 1_000_000 + step, "metrics": {"loss": float(step), "lr": 0.1}}])
        slowest = max(slowest, time.monotonic() - before)
        time.sleep(0.005)
        if step == 300:
            outbox.params(uid, {"lr": 0.1})
            outbox.artifact(uid, tmp_path / "note.txt")
    outbox.end(uid, "FINISHED")
    assert sync.drain(60) == Pending(records=0, refused=0, error=None)
    sync.stop()
    assert slowest < 0.5
    client = connect(server.uri)
    run = run_of(client, experiment, uid)
    assert (run.info.status, run.data.params) == ("FINISHED", {"lr": "0.1"})
    for key in ("loss", "lr"):
        assert [metric.step for metric in client.get_metric_history(run.info.run_id, key)] == list(range(600))
    assert [file.path for file in client.list_artifacts(run.info.run_id)] == ["note.txt"]
    assert "Records wait in" in caplog.text
    assert "is back after" in caplog.text


def test_refusals_over_http_are_told_from_outages(
    outbox: Outbox, server: Any, experiment: str, run_of: RunOf, capsys: pytest.CaptureFixture[str]
) -> None:
    uid = uuid4().hex
    outbox.run(uid, "run", experiment=experiment)
    outbox.params(uid, {"lr": 1})
    outbox.params(uid, {"lr": 2, "more": 3})
    outbox.metrics(uid, [{"step": 1, "time_ms": 1, "metrics": {"bad@key": 1.0, "nan": float("nan"), "good": 2.0}}])
    outbox.end(uid, "FINISHED")
    for _ in range(2):
        left = OutboxSync(outbox.folder, server.uri).send_left(from_start=True)
        assert left == Pending(records=0, refused=2, error=None)
    assert "View run" not in capsys.readouterr().out, "MLflow's lines among ours"
    run = run_of(connect(server.uri), experiment, uid)
    assert run.data.params == {"lr": "1", "more": "3"}
    assert sorted(run.data.metrics) == ["good", "nan"]
    reasons = [json.loads(line)["reason"] for line in (outbox.folder / REFUSED).read_text().splitlines()]
    assert "Changing param values is not allowed" in reasons[0]
    assert "bad@key" in reasons[1]


class Slow(BaseHTTPRequestHandler):
    """Hands requests on to a server; the first that makes a run waits until there is a second, at most `limit_s`."""

    server_uri: str
    limit_s = 5.0
    made: list[str]
    another: threading.Event

    def hand_on(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        makes = self.path.endswith("runs/create")
        if makes:
            self.made.append(self.path)
        first = makes and len(self.made) == 1
        if first:
            self.another.wait(self.limit_s)
        asked = requests.request(self.command, self.server_uri + self.path, data=body, headers=self.headers, timeout=60)
        if makes and not first:
            self.another.set()
        with contextlib.suppress(OSError):  # the client is gone
            self.send_response(asked.status_code)
            self.send_header("Content-Type", asked.headers["Content-Type"])
            self.send_header("Content-Length", str(len(asked.content)))
            self.end_headers()
            self.wfile.write(asked.content)

    do_GET = do_POST = do_PUT = hand_on  # noqa: N815  # names of http.server

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def slow_uri(server: Any) -> Iterator[str]:
    handler = type("Handler", (Slow,), {"server_uri": server.uri, "made": [], "another": threading.Event()})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as proxy:
        thread = threading.Thread(target=proxy.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{proxy.server_port}"
        proxy.shutdown()
        thread.join()


def test_a_run_that_the_server_is_slow_to_make_is_made_once(
    outbox: Outbox, server: Any, slow_uri: str, experiment: str
) -> None:
    uid = uuid4().hex
    sync = OutboxSync(outbox.folder, slow_uri, request_timeout_s=1)
    sync.start()
    outbox.run(uid, "run", experiment=experiment)
    outbox.metrics(uid, [{"step": 1, "time_ms": 1, "metrics": {"loss": 1.0}}])
    assert sync.drain(120) == Pending(records=0, refused=0, error=None)
    sync.stop()
    client = connect(server.uri)
    place = client.get_experiment_by_name(experiment)
    assert place is not None
    assert len(client.search_runs([place.experiment_id])) == 1


def test_a_model_is_registered_once_and_its_weights_come_back(
    outbox: Outbox, server: Any, experiment: str, tmp_path: Path
) -> None:
    uid = uuid4().hex
    package = tmp_path / "job" / "tiny_package_over_http"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("")
    (package / "serve.py").write_text(SERVING)
    model = tmp_path / "model"
    model.mkdir()
    save_file({"w": np.array([7.0], np.float32)}, model / "weights.safetensors")
    (model / "config.json").write_text('{"classes": ["cat"]}')
    outbox.run(uid, "run", experiment=experiment)
    outbox.model(
        uid,
        name="over-http",
        folder=model,
        package=package,
        serving="serve.py",
        requirements=pin_requirements(["mlflow"]),
        tags={},
        description="# version {{version}}\n" + 4900 * "é",
        outputs='[{"name": "class", "type": "string"}]',
        sample="aW1hZ2U=",
    )
    shutil.rmtree(package.parent)
    for _ in range(2):
        left = OutboxSync(outbox.folder, server.uri).send_left(from_start=True)
        assert left == Pending(records=0, refused=0, error=None)
    (version,) = connect(server.uri).search_model_versions("name = 'over-http'")
    assert version.description == f"# version {version.version}\n" + 4900 * "é"
    got = resolve_weights("models:/over-http@candidate", server.uri, tmp_path / "cache")
    assert got.version == int(version.version)
    assert load_file(got.weights)["w"].tolist() == [7.0]


def test_a_version_with_our_code_goes_in_few_requests_and_equal_code_is_equal_bytes(
    outbox: Outbox, server: Any, experiment: str, tmp_path: Path
) -> None:
    uid, log = uuid4().hex, server.folder / "server.log"
    outbox.run(uid, "run", experiment=experiment)
    assert OutboxSync(outbox.folder, server.uri).send_left().records == 0
    for weight in (1.0, 2.0):
        model = tmp_path / f"model{weight}"
        model.mkdir()
        save_file({"w": np.array([weight], np.float32)}, model / "weights.safetensors")
        (model / "config.json").write_text('{"classes": ["cat"]}')
        outbox.model(uid, name="few", folder=model, package=PACKAGE, serving=OUR_SERVING, archive=True,
                     requirements=pin_requirements(["mlflow"]), tags={}, description="# version {{version}}",
                     sample="aW1hZ2U=")  # fmt: skip
        before = len(REQUEST.findall(log.read_text()))
        assert OutboxSync(outbox.folder, server.uri).send_left() == Pending(records=0, refused=0, error=None)
        sent = REQUEST.findall(log.read_text())[before:]
        assert sum("scalablevit.zip" in request for request in sent) == 1
        assert len(sent) <= 25, "\n".join(sent)
    archives = [file.read_bytes() for file in (server.folder / "artifacts").rglob("scalablevit.zip")]
    assert len(archives) == 2 and archives[0] == archives[1]
