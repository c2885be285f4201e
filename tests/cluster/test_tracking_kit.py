"""The tracking server of infra/mlflow, for real: PostgreSQL, an S3 bucket and users, and a backup that is needed."""

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from uuid import uuid4

import mlflow.pyfunc
import numpy as np
import pandas as pd
import pytest
import requests
from harness.mlflow_server import free_port
from harness.tracking_kit import TrackingKit, missing, tracking_kit
from mlflow.exceptions import MlflowException
from safetensors.numpy import save_file

from scalablevit.config.errors import UserError
from scalablevit.tracking.champion import aliases, move_champion
from scalablevit.tracking.connection import connect
from scalablevit.tracking.environment import pin_requirements
from scalablevit.tracking.outbox import Outbox
from scalablevit.tracking.sync import OutboxSync, Pending

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(900), pytest.mark.skipif(bool(missing()), reason=missing())]

NAME = "toy"
RUN = uuid4().hex
SERVING = """
from mlflow.models import set_model
from mlflow.pyfunc import PythonModel
from safetensors.numpy import load_file


class Answer(PythonModel):
    def load_context(self, context):
        self.weight = load_file(context.artifacts["weights"])["w"][0]

    def predict(self, context, model_input, params=None):
        return [float(self.weight) for _ in model_input.iloc[:, 0]]


set_model(Answer())
"""


@pytest.fixture(scope="module")
def kit(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TrackingKit]:
    with tracking_kit(tmp_path_factory.mktemp("kit") / "server", free_port()) as found:
        yield found


@contextmanager
def user(kit: TrackingKit, name: str) -> Iterator[None]:
    """Requests of the block are this user's."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_TRACKING_USERNAME", name)
        patch.setenv("MLFLOW_TRACKING_PASSWORD", kit.password(name))
        yield


@pytest.fixture(scope="module")
def registered(kit: TrackingKit, tmp_path_factory: pytest.TempPathFactory) -> str:
    """A run with a metric and a version of a toy model, sent by `trainer`."""
    folder = tmp_path_factory.mktemp("job")
    package, model = folder / "toy_package", folder / "model"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "serve.py").write_text(SERVING)
    model.mkdir()
    save_file({"w": np.array([2.5], np.float32)}, model / "weights.safetensors")
    (model / "config.json").write_text(json.dumps({"classes": ["cat"]}))
    outbox = Outbox(folder / "outbox")
    outbox.run(RUN, "run", experiment="kit")
    outbox.metrics(RUN, [{"step": 1, "time_ms": 1_700_000_000_000, "metrics": {"train/loss": 0.5}}])
    outbox.model(RUN, name=NAME, folder=model, package=package, serving="serve.py",
                 requirements=pin_requirements(["mlflow", "safetensors"]), tags={"recipe": "abc"})  # fmt: skip
    outbox.end(RUN, "FINISHED")
    with user(kit, "trainer"):
        left = OutboxSync(outbox.folder, kit.uri).send_left()
    assert left == Pending(records=0, refused=0, error=None)
    return NAME


def losses(kit: TrackingKit) -> list[float]:
    client = connect(kit.uri)
    experiment = client.get_experiment_by_name("kit")
    assert experiment is not None
    (run,) = client.search_runs([experiment.experiment_id])
    return [metric.value for metric in client.get_metric_history(run.info.run_id, "train/loss")]


def champions_prediction(kit: TrackingKit) -> list[float]:
    """As somebody who loads the champion with MLflow alone."""
    before = mlflow.get_tracking_uri()
    mlflow.set_tracking_uri(kit.uri)
    try:
        return list(mlflow.pyfunc.load_model(f"models:/{NAME}@champion").predict(pd.DataFrame({"image": ["x", "y"]})))
    finally:
        mlflow.set_tracking_uri(before)
        os.environ.pop("MLFLOW_TRACKING_URI", None)


def test_nobody_reads_or_uploads_without_a_password(kit: TrackingKit, registered: str) -> None:
    for path in ("api/2.0/mlflow/registered-models/search", "api/2.0/mlflow-artifacts/artifacts?path=1", ""):
        assert requests.get(f"{kit.uri}/{path}", timeout=30).status_code == 401, path
    put = requests.put(f"{kit.uri}/api/2.0/mlflow-artifacts/artifacts/1/x", data=b"x", timeout=30)
    guess = requests.get(f"{kit.uri}/api/2.0/mlflow/users/list", auth=("admin", "password1234"), timeout=30)
    assert (put.status_code, guess.status_code) == (401, 401)


def test_the_viewer_reads_and_moves_no_alias(kit: TrackingKit, registered: str) -> None:
    with user(kit, "viewer"):
        assert losses(kit) == [0.5]
        assert aliases(kit.uri, registered) == {"candidate": 1}
        with pytest.raises(UserError, match="Permission denied"):
            move_champion(kit.uri, registered, None, 1)
        with pytest.raises(MlflowException, match="Permission denied"):
            connect(kit.uri).delete_registered_model_alias(registered, "candidate")
        with pytest.raises(MlflowException, match="Permission denied"):
            connect(kit.uri).create_model_version(registered, "mlflow-artifacts:/1/x")
        assert connect(kit.uri).create_experiment("of its own")
    with user(kit, "admin"):
        assert aliases(kit.uri, registered) == {"candidate": 1}


def test_secrets_are_the_owners_and_on_no_command_line_and_in_no_log(kit: TrackingKit, registered: str) -> None:
    files = list((kit.folder / "secrets").iterdir())
    assert {file.stat().st_mode & 0o777 for file in files} == {0o600}
    key = json.loads((kit.folder / "secrets" / "s3.json").read_text())["identities"][0]["credentials"][0]
    hidden = [*(kit.password(file.name) for file in files if file.name != "s3.json"), *key.values()]
    shown = [Path(f"/proc/{pid}/cmdline").read_text() for pid in kit.pids().values()]
    shown += [file.read_text(errors="replace") for file in kit.folder.glob("*.log")]
    assert len(hidden) == len(set(hidden)) == 7 and len(shown) == 6
    assert not [text[:80] for text in shown for value in hidden if value in text]


def test_what_a_backup_has_is_back_after_all_was_lost(kit: TrackingKit, registered: str, tmp_path: Path) -> None:
    with user(kit, "trainer"):
        move_champion(kit.uri, registered, None, 1)
    backup = tmp_path / "backup"
    kit.run("backup", str(backup))
    assert "is there already" in kit.run("backup", str(backup), code=1)
    assert "MLflow runs" in kit.run("restore", str(backup), code=1)

    kit.run("stop")
    assert kit.run("status", code=1).count("is stopped") == 3
    for store in ("postgres", "seaweedfs"):  # both databases and the bucket
        shutil.rmtree(kit.folder / store)
    (damaged,) = (file for file in (backup / "objects").iterdir() if file.name == "00000000")
    content = damaged.read_bytes()
    damaged.write_bytes(content[:-1])
    assert "has changed since the backup" in kit.run("restore", str(backup), code=1)
    damaged.write_bytes(content)
    (kit.folder / "secrets" / "viewer").write_text("another password")

    kit.run("restore", str(backup))
    with user(kit, "viewer"):
        assert aliases(kit.uri, registered) == {"candidate": 1, "champion": 1}
        assert losses(kit) == [0.5]
        assert champions_prediction(kit) == [2.5, 2.5]
        with pytest.raises(MlflowException, match="Permission denied"):
            connect(kit.uri).set_registered_model_alias(registered, "candidate", "1")
    assert requests.get(f"{kit.uri}/api/2.0/mlflow/users/list", timeout=30).status_code == 401
