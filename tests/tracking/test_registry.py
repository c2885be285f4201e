"""Registered models: once, without pickles, and readable without running anything."""

import importlib
import json
import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any
from uuid import uuid4

import mlflow.pyfunc
import numpy as np
import pytest
from mlflow import MlflowClient
from mlflow.entities import Run
from mlflow.entities.model_registry import ModelVersion
from safetensors.numpy import load_file, save_file

from scalablevit.config.errors import UserError
from scalablevit.run_files import REFUSED, SENT
from scalablevit.tracking.environment import pin_requirements
from scalablevit.tracking.outbox import Outbox
from scalablevit.tracking.sync import OutboxSync, Pending
from scalablevit.tracking.weights import resolve_weights

RunOf = Callable[[MlflowClient, str, str], Run]
NOTHING_LEFT = Pending(records=0, refused=0, error=None)

SERVING = """
import json
from mlflow.models import set_model
from mlflow.pyfunc import PythonModel
from safetensors.numpy import load_file
from tiny_served_package.scale import scaled


class Answer(PythonModel):
    def load_context(self, context):
        self.weights = load_file(context.artifacts["weights"])
        self.config = json.loads(open(context.artifacts["config"]).read())

    def predict(self, context, model_input, params=None):
        name, weight = self.config["classes"][0], self.weights["w"][0]
        return [{"class": name, "score": scaled(weight, image)} for image in model_input]


set_model(Answer())
"""


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A package as a job brings it: importable there."""
    package = tmp_path / "job" / "tiny_served_package"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("")
    (package / "scale.py").write_text("def scaled(weight, image):\n    return float(weight) * len(image)\n")
    (package / "serve.py").write_text(SERVING)
    monkeypatch.syspath_prepend(str(package.parent))
    return package


def write_model(folder: Path, weight: float) -> Path:
    folder.mkdir(exist_ok=True)
    save_file({"w": np.array([weight], np.float32)}, folder / "weights.safetensors")
    (folder / "config.json").write_text(json.dumps({"classes": ["cat"]}))
    return folder


@pytest.fixture
def outbox(tmp_path: Path, experiment: str) -> Outbox:
    outbox = Outbox(tmp_path / "outbox")
    outbox.run("u" + "0" * 31, "run", experiment=experiment)
    return outbox


@pytest.fixture
def name() -> str:
    return f"model-{uuid4().hex[:8]}"


Record = Callable[..., None]


@pytest.fixture
def record(outbox: Outbox, package: Path, tmp_path: Path, name: str) -> Record:
    """Record a model with one weight of the given value."""

    def record(weight: float, into: Outbox = outbox, **more: str) -> None:
        into.model(
            "u" + "0" * 31,
            name=name,
            folder=write_model(tmp_path / f"model{weight}", weight),
            package=package,
            serving="serve.py",
            requirements=pin_requirements(["mlflow", "safetensors"]),
            tags={"scalablevit.recipe_hash": "abc", "metric.top1": 0.5},
            **more,
        )

    return record


def only_version(client: MlflowClient, name: str) -> ModelVersion:
    (version,) = client.search_model_versions(f"name = '{name}'")
    return version


def files_of(version: ModelVersion) -> Path:
    return Path(str(version.source).removeprefix("file://"))


def models_of(client: MlflowClient, version: ModelVersion) -> list[str]:
    """Models that the version's run names as its output."""
    outputs = client.get_run(str(version.run_id)).outputs
    assert outputs is not None
    return [output.model_id for output in outputs.model_outputs]


def load(uri: str, model: str) -> Any:
    """As a user loads it, which needs MLflow's global address."""
    before = mlflow.get_tracking_uri()
    mlflow.set_tracking_uri(uri)
    try:
        return mlflow.pyfunc.load_model(model)
    finally:
        mlflow.set_tracking_uri(before)
        os.environ.pop("MLFLOW_TRACKING_URI", None)


@pytest.mark.parametrize("file", ["weights.safetensors", "config.json"])
def test_a_file_that_changed_while_it_waited_is_not_registered(outbox, record, uri, client, name, tmp_path, file):
    record(2.0)
    path = tmp_path / "model2.0" / file
    path.write_bytes(path.read_bytes() + b" ")
    assert OutboxSync(outbox.folder, uri).send_left().refused == 1
    assert f"{file} in {path.parent} has changed since it was recorded" in (outbox.folder / REFUSED).read_text()
    assert not client.search_model_versions(f"name = '{name}'")


def test_a_registered_model_loads_with_pickles_forbidden(
    outbox: Outbox,
    record: Record,
    package: Path,
    uri: str,
    client: MlflowClient,
    name: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    record(2.0)
    # A job has imported its package; its copy is gone by now.
    importlib.import_module("tiny_served_package.scale")
    shutil.rmtree(package.parent)
    assert OutboxSync(outbox.folder, uri).send_left() == NOTHING_LEFT
    for module in [module for module in sys.modules if module.startswith("tiny_served_package")]:
        del sys.modules[module]
    version = only_version(client, name)
    assert version.tags["scalablevit.recipe_hash"] == "abc"
    assert version.tags["metric.top1"] == "0.5"
    assert version.tags["scalablevit.run_uid"] == "u" + "0" * 31
    assert client.get_model_version_by_alias(name, "candidate").version == version.version
    files = [path for path in files_of(version).rglob("*") if path.is_file()]
    assert {path.name for path in files} >= {"weights.safetensors", "config.json", "serve.py", "scale.py", "MLmodel"}
    assert not [path for path in files if path.suffix in (".pkl", ".pickle", ".pyc")]
    requirements = next(path for path in files if path.name == "requirements.txt").read_text().split()
    assert requirements == pin_requirements(["mlflow", "safetensors"])
    monkeypatch.setenv("MLFLOW_ALLOW_PICKLE_DESERIALIZATION", "false")
    model = load(uri, f"models:/{name}@candidate")
    assert model.predict([b"12345", b"1"]) == [{"class": "cat", "score": 10.0}, {"class": "cat", "score": 2.0}]
    assert model.metadata.metadata["classes"] == ["cat"] and "one column" in model.metadata.metadata["input"]
    assert model.metadata.signature.inputs is None  # MLflow would drop second columns and repeat images in its refusals
    assert models_of(client, version) == [model.metadata.model_id]


def test_a_version_gets_its_description_and_keeps_a_persons(
    outbox: Outbox, record: Record, uri: str, client: MlflowClient, name: str
) -> None:
    record(1.0, description="first")
    record(2.0, description=f"**{name}** version {{{{version}}}}: models:/{name}/{{{{version}}}}")
    assert OutboxSync(outbox.folder, uri).send_left() == NOTHING_LEFT
    assert client.get_model_version(name, "2").description == f"**{name}** version 2: models:/{name}/2"
    client.update_model_version(name, "2", "a person's own words")
    assert OutboxSync(outbox.folder, uri).send_left(from_start=True) == NOTHING_LEFT
    described = [client.get_model_version(name, str(number)).description for number in (1, 2)]
    assert described == ["first", "a person's own words"]


def test_no_description_is_longer_than_the_servers_column(
    outbox: Outbox, record: Record, uri: str, client: MlflowClient, name: str
) -> None:
    record(1.0, description="x" * 6000)
    assert OutboxSync(outbox.folder, uri).send_left() == NOTHING_LEFT
    assert only_version(client, name).description == "x" * 5000


def test_a_signature_says_the_outputs_and_has_a_sample(
    outbox: Outbox, record: Record, uri: str, client: MlflowClient, name: str
) -> None:
    columns = [{"name": "class", "type": "string"}, {"name": "boxes", "type": "array", "items": {"type": "double"}}]
    record(1.0, outputs=json.dumps(columns), sample="aW1hZ2U=")
    assert OutboxSync(outbox.folder, uri).send_left() == NOTHING_LEFT
    model = load(uri, f"models:/{name}/1")
    schema = json.loads(model.metadata.signature.outputs.to_json())
    assert [(each["name"], each["type"]) for each in schema] == [("class", "string"), ("boxes", "array")]
    assert model.metadata.signature.inputs is None
    assert model.input_example.to_dict("list") == {"image": ["aW1hZ2U="]}


class Killed(BaseException):
    """Stands for a SIGKILL at the place where it is raised."""


@pytest.mark.parametrize(
    "dies_in",
    [
        "create_logged_model",
        "log_model_artifacts",
        "log_outputs",
        "finalize_logged_model",
        "create_model_version",
        "set_registered_model_alias",
        "update_model_version",
    ],
)
@pytest.mark.parametrize("done", [False, True], ids=["before", "after"])
def test_killed_anywhere_it_registers_one_version(
    dies_in: str,
    done: bool,
    outbox: Outbox,
    record: Record,
    uri: str,
    client: MlflowClient,
    name: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    real = getattr(MlflowClient, dies_in)

    def killed(*arguments: Any, **options: Any) -> None:
        if done:
            real(*arguments, **options)
        raise Killed

    record(2.0, description="version {{version}}")
    with monkeypatch.context() as patched:
        patched.setattr(MlflowClient, dies_in, killed)
        with pytest.raises(Killed):
            OutboxSync(outbox.folder, uri).send_left()
    assert OutboxSync(outbox.folder, uri).send_left() == NOTHING_LEFT
    (outbox.folder / SENT).unlink()
    assert OutboxSync(outbox.folder, uri).send_left() == NOTHING_LEFT
    version = only_version(client, name)
    assert client.get_model_version_by_alias(name, "candidate").version == version.version
    assert version.description == "version 1"
    experiment = client.get_run(str(version.run_id)).info.experiment_id
    (model,) = client.search_logged_models([experiment])
    assert str(model.status) == "READY"
    assert model.model_id in models_of(client, version)


def test_a_new_model_is_a_new_version_and_the_alias_never_goes_back(
    outbox: Outbox, record: Record, uri: str, client: MlflowClient, name: str
) -> None:
    record(1.0)
    record(2.0)
    record(1.0)
    assert OutboxSync(outbox.folder, uri).send_left() == NOTHING_LEFT
    assert len(client.search_model_versions(f"name = '{name}'")) == 2
    assert int(client.get_model_version_by_alias(name, "candidate").version) == 2
    assert OutboxSync(outbox.folder, uri).send_left(from_start=True) == NOTHING_LEFT
    assert int(client.get_model_version_by_alias(name, "candidate").version) == 2


def test_a_model_whose_files_are_gone_is_set_aside(
    outbox: Outbox, record: Record, uri: str, client: MlflowClient, name: str, tmp_path: Path
) -> None:
    record(1.0)
    shutil.rmtree(tmp_path / "model1.0")
    left = OutboxSync(outbox.folder, uri).send_left()
    assert (left.records, left.refused) == (0, 1)
    assert "weights.safetensors" in json.loads((outbox.folder / REFUSED).read_text())["reason"]
    assert client.search_model_versions(f"name = '{name}'") == []


def test_a_model_whose_code_does_not_run_is_set_aside(
    outbox: Outbox, record: Record, package: Path, uri: str, client: MlflowClient, name: str
) -> None:
    (package / "serve.py").write_text("raise ValueError('broken')")
    record(1.0)
    left = OutboxSync(outbox.folder, uri).send_left()
    assert (left.records, left.refused) == (0, 1)
    assert "broken" in json.loads((outbox.folder / REFUSED).read_text())["reason"]
    assert client.search_model_versions(f"name = '{name}'") == []


def test_weights_are_fetched_checked_and_cached_and_nothing_is_run(
    outbox: Outbox, record: Record, package: Path, uri: str, client: MlflowClient, name: str, tmp_path: Path
) -> None:
    record(3.0)
    assert OutboxSync(outbox.folder, uri).send_left() == NOTHING_LEFT
    version = only_version(client, name)
    stored = files_of(version)
    for code in stored.rglob("*.py"):
        code.write_text("raise SystemExit('code of a registered model was run')")
    for model_uri in (f"models:/{name}@candidate", f"models:/{name}/1"):
        got = resolve_weights(model_uri, uri, tmp_path / "cache")
        assert (got.name, got.version, got.config) == (name, 1, {"classes": ["cat"]})
        assert got.tags["scalablevit.recipe_hash"] == "abc"
        assert got.run_id == version.run_id
        assert load_file(got.weights)["w"].tolist() == [3.0]
    fetched = sorted(path.name for path in (tmp_path / "cache").rglob("*") if path.is_file())
    assert fetched == ["config.json", "weights.safetensors"]
    shutil.rmtree(stored / "artifacts")
    assert resolve_weights(f"models:/{name}/1", uri, tmp_path / "cache") == got
    got.weights.write_bytes(b"damaged in the cache")
    with pytest.raises(UserError):
        resolve_weights(f"models:/{name}/1", uri, tmp_path / "cache")


@pytest.mark.parametrize("file", ["weights.safetensors", "config.json"])
def test_changed_files_of_a_version_are_refused(
    file: str, outbox: Outbox, record: Record, uri: str, client: MlflowClient, name: str, tmp_path: Path
) -> None:
    record(3.0)
    assert OutboxSync(outbox.folder, uri).send_left() == NOTHING_LEFT
    version = only_version(client, name)
    target = files_of(version) / "artifacts" / file
    content = bytearray(target.read_bytes())
    content[-1] ^= 1
    target.write_bytes(content)
    with pytest.raises(UserError, match="differ from the SHA-256"):
        resolve_weights(f"models:/{name}/1", uri, tmp_path / "cache")


@pytest.mark.parametrize(
    "asked", ["models:/m-abc", "models:/x/../y", "models:/x@", "models:/x/latest", "runs:/a/model", "models:/x/1/code"]
)
def test_addresses_that_name_no_version(asked: str, uri: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="names no registered version"):
        resolve_weights(asked, uri, tmp_path)


def test_a_version_that_is_not_there_or_not_ours(uri: str, client: MlflowClient, name: str, tmp_path: Path) -> None:
    for _ in range(2):
        with pytest.raises(UserError, match=f"nothing is registered as {name}") as refused:
            resolve_weights(f"models:/{name}@candidate", uri, tmp_path)
        client.create_registered_model(f"another-{name}" if _ == 0 else name)
    assert f"another-{name}" in refused.value.fix and "at its end" in refused.value.fix
    with pytest.raises(UserError, match="alias candidate not found"):
        resolve_weights(f"models:/{name}@candidate", uri, tmp_path)
    client.create_model_version(name, "file:///somewhere", await_creation_for=0)
    with pytest.raises(UserError, match="carries no SHA-256"):
        resolve_weights(f"models:/{name}/1", uri, tmp_path)
    client.set_model_version_tag(name, "1", "scalablevit.weights_sha256", "../" * 21 + "x")
    client.set_model_version_tag(name, "1", "scalablevit.config_sha256", "0" * 64)
    with pytest.raises(UserError, match="carries no SHA-256"):
        resolve_weights(f"models:/{name}/1", uri, tmp_path)
