"""Registers a trained model, as code and safetensors without pickles; once, however often it is called."""

import json
import logging
import tempfile
import warnings
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING

from scalablevit.config.packages import package_files
from scalablevit.io import sha256_of
from scalablevit.run_files import CONFIG_NAME, WEIGHTS_NAME
from scalablevit.tracking.connection import Refused, bounded_requests, connect
from scalablevit.tracking.records import VERSION_PLACE, ModelRecord
from scalablevit.tracking.tags import CONFIG_SHA256, RUN_UID, UID, WEIGHTS_SHA256

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import LoggedModel, Run
    from mlflow.entities.model_registry import ModelVersion
    from mlflow.types import Schema

INPUT = "one column of image files (JPEG, PNG, ...): bytes, or text in base64"
INPUT_COLUMN = "image"
"""Column of the sample input; the model takes any name."""
LONGEST_DESCRIPTION = 5000
"""Most characters of the column in MLflow's database; MySQL and PostgreSQL refuse a longer text."""
LOOKUP_TIMEOUT_S = 10
"""Longest wait in seconds for the server's response in `version_of_run`."""


def register(client: "MlflowClient", run_id: str, record: ModelRecord, outbox: Path) -> "ModelVersion":
    """Create the version that a record asks for, point the record's alias at it, and set its description.

    If the process is killed in between, the next call finishes the work: it finds the logged model and the version by
    the registration's uid. A description that somebody has written in the meantime stays.

    Args:
        client: MLflow's client, for runs and registry.
        run_id: MLflow's id of the run that trained the model.
        record: the model to register.
        outbox: folder of the outbox, which has copies of the packages that the model's code imports.

    Returns:
        The new or existing version.

    Raises:
        Refused: a file of the model or its code is missing or has changed, or the code does not run.
    """
    code, users = outbox / record.code, [outbox / package for package in record.user_code or ()]
    required = [Path(record.folder) / WEIGHTS_NAME, Path(record.folder) / CONFIG_NAME, code / record.serving]
    missing = [str(path) for path in (*required, *(package / "__init__.py" for package in users)) if not path.is_file()]
    if missing:
        raise Refused(f"gone: {', '.join(missing)}")
    name, registration = record.name, record.registration
    versions = client.search_model_versions(f"name = '{name}' and tag.`{UID}` = '{registration}'", max_results=1)
    version = versions[0] if versions else _create_version(client, client.get_run(run_id), record, [code, *users])
    _point(client, version, record.alias)
    if record.description and not version.description:
        text = record.description.replace(VERSION_PLACE, str(version.version))
        client.update_model_version(name, version.version, text[:LONGEST_DESCRIPTION])
    return version


def _create_version(client: "MlflowClient", run: "Run", record: ModelRecord, code: list[Path]) -> "ModelVersion":
    from mlflow.exceptions import MlflowException

    model = _logged_model(client, run, record, code)
    try:
        client.create_registered_model(record.name)
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise
    # Not models:/<id>, which the SQLite registry would look up at MLflow's global address.
    return client.create_model_version(
        record.name,
        model.artifact_location,
        run.info.run_id,
        record.tags,
        await_creation_for=0,
        model_id=model.model_id,
    )


def _logged_model(client: "MlflowClient", run: "Run", record: ModelRecord, code: list[Path]) -> "LoggedModel":
    """Return the logged model with the model's files; one whose upload was interrupted is deleted and made again."""
    from mlflow.entities import LoggedModelOutput, LoggedModelStatus

    experiment, registration = run.info.experiment_id, record.registration
    for existing in client.search_logged_models([experiment], f"tags.`{UID}` = '{registration}'"):
        if existing.status == LoggedModelStatus.READY:
            return existing
        client.delete_logged_model(existing.model_id)
    for file, tag in ((WEIGHTS_NAME, WEIGHTS_SHA256), (CONFIG_NAME, CONFIG_SHA256)):
        found = sha256_of(Path(record.folder) / file)
        if record.tags.get(tag, found) != found:  # a server would not compare them
            raise Refused(f"{file} in {record.folder} has changed since it was recorded")
    model = client.create_logged_model(
        experiment, record.name, source_run_id=run.info.run_id, tags=record.tags, model_type="pyfunc"
    )
    with tempfile.TemporaryDirectory() as folder:
        _save(Path(folder) / "model", model, record, code)
        client.log_model_artifacts(model.model_id, str(Path(folder) / "model"))
    client.log_outputs(run.info.run_id, [LoggedModelOutput(model.model_id, step=0)])
    return client.finalize_logged_model(model.model_id, LoggedModelStatus.READY)


def _save(target: Path, model: "LoggedModel", record: ModelRecord, code: list[Path]) -> None:
    """Write MLflow's model folder. MLflow runs the serving file once to check it: it is our own code.

    Args:
        target: the folder to write.
        model: the model's entry in MLflow.
        record: the model to register.
        code: folders of packages, ours first.

    Raises:
        Refused: the serving file does not run; no server takes part in that, so trying again is of no use.
    """
    import mlflow.pyfunc
    import pandas as pd
    from mlflow.exceptions import MlflowException
    from mlflow.models import Model, ModelSignature

    # With a signature given, MLflow stores the sample input without running it. The signature names no input: MLflow
    # would enforce it before the model sees a request, drop further columns silently and repeat image bytes in errors.
    warnings.filterwarnings("ignore", message=".*An input example was not provided")
    logging.getLogger("mlflow.pyfunc").setLevel(logging.WARNING)  # it says that it validates the sample
    folder = Path(record.folder)
    config = json.loads((folder / CONFIG_NAME).read_text(encoding="utf-8"))
    metadata = Model(
        artifact_path=model.artifact_location,
        model_uuid=model.model_id,
        model_id=model.model_id,
        run_id=model.source_run_id,
    )
    packages = [_archive(code[0], target.parent), *code[1:]] if record.archive else code
    try:
        mlflow.pyfunc.save_model(
            str(target),
            python_model=str(code[0] / record.serving),
            code_paths=[str(package) for package in packages],
            artifacts={"weights": str(folder / WEIGHTS_NAME), "config": str(folder / CONFIG_NAME)},
            signature=ModelSignature(outputs=_output_schema(record.outputs)),
            input_example=None if record.sample is None else pd.DataFrame({INPUT_COLUMN: [record.sample]}),
            metadata={"input": INPUT, "classes": config["classes"]},
            pip_requirements=list(record.requirements),
            mlflow_model=metadata,
        )
    except MlflowException as error:
        raise Refused(f"the model cannot be packed: {error.message}") from error


def _archive(package: Path, folder: Path) -> Path:
    """Write a package into `<package>.zip`, equal files as equal bytes: each file of its own would be a request."""
    path = folder / f"{package.name}.zip"
    with zipfile.ZipFile(path, "w") as archive:
        for file in package_files(package):
            entry = zipfile.ZipInfo(file.relative_to(package.parent).as_posix())
            archive.writestr(entry, file.read_bytes(), zipfile.ZIP_DEFLATED)
    return path


def _output_schema(columns: str | None) -> "Schema":
    from mlflow.types import ColSpec, Schema
    from mlflow.types.schema import AnyType

    if columns is not None:
        schema: Schema = Schema.from_json(columns)
        return schema
    return Schema([ColSpec(AnyType())])  # type: ignore[no-untyped-call]


def _point(client: "MlflowClient", version: "ModelVersion", alias: str) -> None:
    """Move an alias to a version, but never back: an old record may be sent again."""
    registered = client.get_registered_model(version.name)
    if int(registered.aliases.get(alias, 0)) < int(version.version):
        client.set_registered_model_alias(version.name, alias, version.version)


def version_of_run(uri: str, name: str, run_uid: str) -> str:
    """Return the number of the newest version of `name` that a run made; empty when there is none.

    Args:
        uri: tracking and registry address.
        name: name of the registered model.
        run_uid: our uid of the run.
    """
    with bounded_requests(LOOKUP_TIMEOUT_S):
        versions = connect(uri).search_model_versions(f"name = '{name}' and tag.`{RUN_UID}` = '{run_uid}'")
    return str(max((int(version.version) for version in versions), default=""))
