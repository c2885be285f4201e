"""The tracking server of infra/mlflow, for real: PostgreSQL, an S3 bucket and users, and a backup that is needed."""

import json
import os
import shutil
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import mlflow.pyfunc
import pandas as pd
import pytest
import requests
from harness.tracking_kit import TrackingKit
from harness.two_hosts import STEPS, HostJob
from mlflow.exceptions import MlflowException

from scalablevit.config.errors import UserError
from scalablevit.pipeline.registration import sample_image
from scalablevit.tracking.champion import aliases, move_champion
from scalablevit.tracking.connection import connect

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(900)]


@contextmanager
def user(kit: TrackingKit, name: str) -> Iterator[None]:
    """Requests of the block are this user's."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_TRACKING_USERNAME", name)
        patch.setenv("MLFLOW_TRACKING_PASSWORD", kit.password(name))
        yield


@pytest.fixture(scope="module")
def registered(lost: HostJob) -> str:
    """The model that `trainer` trained on two hosts and registered, with no alias but `candidate`."""
    assert lost.process.returncode == 0, lost.log.read_text()
    return "hosts-pretrain"


def losses(kit: TrackingKit) -> list[tuple[int, float]]:
    """Steps of the job's stage, each with its loss; both attempts may have sent one."""
    client = connect(kit.uri)
    experiment = client.get_experiment_by_name("kit")
    assert experiment is not None
    (run,) = client.search_runs([experiment.experiment_id], "tags.stage = 'pretrain' AND status = 'FINISHED'")
    history = client.get_metric_history(run.info.run_id, "train/loss")
    return sorted((metric.step, metric.value) for metric in history)


def prediction(kit: TrackingKit, name: str, alias: str) -> str:
    """Of a grey image, as somebody who loads a model with MLflow alone."""
    before = mlflow.get_tracking_uri()
    mlflow.set_tracking_uri(kit.uri)
    try:
        model = mlflow.pyfunc.load_model(f"models:/{name}@{alias}")
        return str(model.predict(pd.DataFrame({"image": [sample_image()]})))
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
        assert {step for step, _ in losses(kit)} == set(range(1, STEPS + 1))
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
        before = losses(kit), prediction(kit, registered, "champion")
    backup = tmp_path / "backup"
    kit.run("backup", str(backup))
    assert "is there already" in kit.run("backup", str(backup), code=1)
    assert "MLflow runs" in kit.run("restore", str(backup), code=1)

    os.kill(kit.pids()["seaweedfs"], signal.SIGKILL)  # by itself it takes 15 s to end
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
        assert (losses(kit), prediction(kit, registered, "champion")) == before
        with pytest.raises(MlflowException, match="Permission denied"):
            connect(kit.uri).set_registered_model_alias(registered, "candidate", "1")
    assert requests.get(f"{kit.uri}/api/2.0/mlflow/users/list", timeout=30).status_code == 401
