"""The whole way over HTTP, to a real MLflow server that dies and comes back."""

import json
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from uuid import uuid4

import numpy as np
import pytest
from mlflow import MlflowClient
from mlflow.entities import Run
from safetensors.numpy import load_file, save_file

from scalablevit.tracking.connection import connect
from scalablevit.tracking.environment import pinned
from scalablevit.tracking.shipper import REFUSED, Pending, Shipper
from scalablevit.tracking.spool import Spool
from scalablevit.tracking.weights import resolve_weights

RunOf = Callable[[MlflowClient, str, str], Run]

SERVING = """
from mlflow.models import set_model
from mlflow.pyfunc import PythonModel


class Answer(PythonModel):
    def predict(self, context, model_input, params=None):
        return [0 for _ in model_input.iloc[:, 0]]


set_model(Answer())
"""


@pytest.fixture
def spool(tmp_path: Path) -> Spool:
    return Spool(tmp_path / "spool")


def test_an_outage_costs_no_point_and_doubles_none(
    spool: Spool, server: Any, experiment: str, run_of: RunOf, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    uid = uuid4().hex
    (tmp_path / "note.txt").write_text("written during the outage")
    shipper = Shipper(spool.folder, server.uri, request_timeout_s=5)
    shipper.start()
    spool.run(uid, "run", experiment=experiment)
    slowest = 0.0
    for step in range(600):
        if step == 200:
            assert shipper.drain(30).records == 0
            server.kill()
        if step == 400:
            assert shipper.pending().records > 0
            server.start()
        before = time.monotonic()
        spool.metrics(uid, [{"step": step, "time_ms": 1_000_000 + step, "metrics": {"loss": float(step), "lr": 0.1}}])
        slowest = max(slowest, time.monotonic() - before)
        time.sleep(0.005)
        if step == 300:
            spool.params(uid, {"lr": 0.1})
            spool.artifact(uid, tmp_path / "note.txt")
    spool.end(uid, "FINISHED")
    assert shipper.drain(60) == Pending(records=0, refused=0, error=None)
    shipper.stop()
    assert slowest < 0.5
    client = connect(server.uri)
    run = run_of(client, experiment, uid)
    assert (run.info.status, run.data.params) == ("FINISHED", {"lr": "0.1"})
    for key in ("loss", "lr"):
        assert [metric.step for metric in client.get_metric_history(run.info.run_id, key)] == list(range(600))
    assert [file.path for file in client.list_artifacts(run.info.run_id)] == ["note.txt"]
    assert "Records wait in" in caplog.text
    assert "is back after" in caplog.text


def test_refusals_over_http_are_told_from_outages(spool: Spool, server: Any, experiment: str, run_of: RunOf) -> None:
    uid = uuid4().hex
    spool.run(uid, "run", experiment=experiment)
    spool.params(uid, {"lr": 1})
    spool.params(uid, {"lr": 2, "more": 3})
    spool.metrics(uid, [{"step": 1, "time_ms": 1, "metrics": {"bad@key": 1.0, "nan": float("nan"), "good": 2.0}}])
    spool.end(uid, "FINISHED")
    for _ in range(2):
        left = Shipper(spool.folder, server.uri).ship_left(from_start=True)
        assert left == Pending(records=0, refused=2, error=None)
    run = run_of(connect(server.uri), experiment, uid)
    assert run.data.params == {"lr": "1", "more": "3"}
    assert sorted(run.data.metrics) == ["good", "nan"]
    reasons = [json.loads(line)["reason"] for line in (spool.folder / REFUSED).read_text().splitlines()]
    assert "Changing param values is not allowed" in reasons[0]
    assert "bad@key" in reasons[1]


def test_a_model_is_registered_once_and_its_weights_come_back(
    spool: Spool, server: Any, experiment: str, tmp_path: Path
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
    spool.run(uid, "run", experiment=experiment)
    spool.model(
        uid,
        name="over-http",
        folder=model,
        package=package,
        serving="serve.py",
        requirements=pinned(["mlflow"]),
        tags={},
    )
    shutil.rmtree(package.parent)
    for _ in range(2):
        left = Shipper(spool.folder, server.uri).ship_left(from_start=True)
        assert left == Pending(records=0, refused=0, error=None)
    (version,) = connect(server.uri).search_model_versions("name = 'over-http'")
    got = resolve_weights("models:/over-http@candidate", server.uri, tmp_path / "cache")
    assert got.version == int(version.version)
    assert load_file(got.weights)["w"].tolist() == [7.0]
