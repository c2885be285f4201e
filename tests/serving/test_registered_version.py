"""What a colleague finds in MLflow who did not train the model: card, schema, sample, metrics, plots."""

import base64
import json
import re
import shlex
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import mlflow.pyfunc
import numpy as np
import pytest
import torch
from harness.predicting import trained
from harness.toys import RECIPE, STAGES, finished_run, stage_of, val_images
from mlflow.pyfunc import scoring_server

from scalablevit.cli.tree import parse
from scalablevit.config.loading import load_recipe
from scalablevit.pipeline.model_card import Registry
from scalablevit.pipeline.registration import record_model
from scalablevit.pipeline.resolve import resolve
from scalablevit.run_files import CURVES, NOTIFICATIONS, REFUSED, VALIDATION
from scalablevit.runs.result import load_result
from scalablevit.runs.run_store import RunStore
from scalablevit.tasks.registry import task_kind
from scalablevit.tracking.connection import connect
from scalablevit.tracking.outbox import Outbox, read_lines
from scalablevit.tracking.sync import OutboxSync
from scalablevit.tracking.tags import RUN_UID


@pytest.fixture(scope="module")
def found(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A classifier on its way as a stage's job sends it: recorded while MLflow is away, registered late."""
    place = tmp_path_factory.mktemp("colleague")
    (place / "data").symlink_to(root / "data")
    store = RunStore.open(finished_run(place, "pretrain"), None, place)
    given = ["data.shapes=null", "data.root=data", "cluster.workers=1", "stages.pretrain.model.init=null"]
    resolved = resolve(load_recipe(RECIPE, [*given, "tracking.notify=[finished]"]), place, ["pretrain"])[0]
    for name in (CURVES, VALIDATION):
        store.write(name, b"png")
    finished, uri = load_result(store), f"sqlite:///{place}/mlflow.db"
    assert finished is not None
    outbox = Outbox(store.outbox)
    outbox.run(finished.uid, store.name, experiment="colleague")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SCALABLEVIT_NOTIFY_COMMAND", "/bin/true")
        record_model("tiny", resolved, finished, store, outbox, Registry(place, uri))
    outbox.close()
    assert OutboxSync(store.outbox, uri).send_left().records == 0
    assert not (store.outbox / REFUSED).exists()
    client = connect(uri)
    version = client.get_model_version("toy-pretrain", "1")
    return SimpleNamespace(root=place, uri=uri, client=client, version=version, run=client.get_run(version.run_id))


def blocks(card: str, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", card, re.DOTALL)


def test_who_waits_for_the_run_is_notified_that_it_finished(found: Any) -> None:
    (record,) = [line.record for line in read_lines(found.root / NOTIFICATIONS / "command")]
    assert (record.event, record.stage, record.model, record.version) == ("finished", "pretrain", "toy-pretrain", None)
    assert (record.metric, record.value, record.uid) == ("val/top1", 0.5, found.version.tags[RUN_UID])


def test_the_card_names_its_own_version_and_its_commands_run(
    found: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    card = found.version.description
    assert "{{" not in card and card.count("models:/toy-pretrain/1") == 4
    image = sorted(val_images(found.root, "pretrain").rglob("*.jpg"))[0]
    (tmp_path / "photo.jpg").write_bytes(image.read_bytes())
    monkeypatch.chdir(tmp_path)
    (python,) = blocks(card, "python")
    exec(python, {})  # noqa: S102  # the point of the test
    assert "ClassificationPrediction" in capsys.readouterr().out
    http, commands = blocks(card, "sh")
    assert f"MLFLOW_TRACKING_URI={found.uri}" in http
    for line in commands.splitlines():
        program, verb, *arguments = shlex.split(line)
        assert program == "scalablevit" and parse(verb, arguments).root == str(found.root)
    body = re.search(r'echo "(.*)" \|', http)
    assert body is not None
    monkeypatch.syspath_prepend(str(tmp_path))
    model = mlflow.pyfunc.load_model(str(found.version.source))
    content = base64.b64encode(image.read_bytes()).decode()  # as the shell makes it of the line
    data = body[1].replace('\\"', '"').replace("$(base64 -w0 photo.jpg)", content)
    response = scoring_server.invocations(data, "application/json", model, None)
    (row,) = json.loads(response.response)["predictions"]
    assert row["class"] in row["probabilities"]


def test_the_sample_input_is_predicted_by_the_schema(found: Any) -> None:
    model = mlflow.pyfunc.load_model(str(found.version.source))
    assert model.metadata.signature.inputs is None
    columns = json.loads(model.metadata.signature.outputs.to_json())
    assert [column["name"] for column in columns] == ["class", "probability", "probabilities"]
    predictions = model.predict(model.input_example)
    assert list(predictions.columns) == [column["name"] for column in columns] and len(predictions) == 1


def test_runs_sort_by_a_number_and_hold_what_may_leave(found: Any) -> None:
    """The images of this recipe are somebody's: no plot with them goes out."""
    assert found.run.data.metrics["best/top1"] == 0.5
    experiment = found.run.info.experiment_id
    (run,) = found.client.search_runs([experiment], "metrics.`best/top1` > 0.4", order_by=["metrics.`best/top1` DESC"])
    assert run.info.run_id == found.run.info.run_id
    assert [file.path for file in found.client.list_artifacts(run.info.run_id, "plots")] == [CURVES]


def fits(value: Any, kind: dict[str, Any]) -> bool:
    match kind["type"]:
        case "array":
            return isinstance(value, list) and all(fits(each, kind["items"]) for each in value)
        case "map":
            return isinstance(value, dict) and all(fits(each, kind["values"]) for each in value.values())
        case "object":
            names = kind["properties"]
            return set(value) == set(names) and all(fits(value[name], of) for name, of in names.items())
        case plain:
            return isinstance(value, {"string": str, "double": float, "binary": bytes, "long": int}[plain])


@pytest.mark.parametrize("name", STAGES)
def test_predictions_are_of_the_types_that_the_signature_says(name: str, root: Path) -> None:
    model = trained(root, name)
    stage = stage_of(name)
    columns = task_kind(stage.task.kind).prediction_columns(stage)
    with torch.inference_mode():
        prediction = model.predict(np.random.default_rng(0).integers(0, 256, (48, 48, 3), dtype=np.uint8)).to_dict()
    assert list(prediction) == list(columns)
    wrong = {column: prediction[column] for column in columns if not fits(prediction[column], dict(columns[column]))}
    assert wrong == {}
