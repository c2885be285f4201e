"""Fetches and checks the weights of a registered model; executes nothing of what it fetches."""

import json
import re
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from scalablevit.config.errors import UserError
from scalablevit.config.stored import ModelConfig, stored_config
from scalablevit.io import sha256_of
from scalablevit.run_files import CONFIG_NAME, WEIGHTS_NAME
from scalablevit.tracking.champion import failed_lookup
from scalablevit.tracking.connection import bounded_requests, check_exists, connect
from scalablevit.tracking.tags import CONFIG_SHA256, WEIGHTS_SHA256

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities.model_registry import ModelVersion

REQUEST_TIMEOUT_S = 30
"""Longest wait in seconds for the response to one attempt of a request."""
REQUEST_RETRIES = 2
"""Attempts of a request after the first one."""

_MODEL_URI = re.compile(r"models:/(?P<name>[^/@]+)(?:@(?P<alias>[\w-]+)|/(?P<version>[0-9]+))")


@dataclass(frozen=True)
class RegisteredWeights:
    """A registered version's weights on this machine."""

    weights: Path
    """File `weights.safetensors`, whose SHA-256 equals the version's tag."""
    config: ModelConfig
    """Content of the version's `config.json`, upgraded to the current version of recipes."""
    name: str
    """Name of the registered model."""
    version: int
    run_id: str
    """MLflow's id of the run that made the version."""
    tags: dict[str, str]
    """Lineage, by the names of `tracking.tags`."""


def resolve_weights(model_uri: str, tracking_uri: str, cache: Path) -> RegisteredWeights:
    """Return weights and config of `models:/<name>@<alias>` or `models:/<name>/<version>`; fetch them if necessary.

    Args:
        model_uri: the registered version.
        tracking_uri: address of the registry.
        cache: folder of fetched files, in subfolders named by the SHA-256 of the weights.

    Raises:
        UserError: there is no such version, this platform did not register it, its files differ from its SHA-256 sums,
            or the server does not respond.
    """
    from mlflow.exceptions import MlflowException
    from sqlalchemy.exc import SQLAlchemyError

    parts = _MODEL_URI.fullmatch(model_uri)
    if parts is None:
        raise UserError(
            f"{model_uri!r} names no registered version",
            where="model.init",
            fix="write models:/<name>@<alias> or models:/<name>/<version>",
        )
    check_exists(tracking_uri, model_uri)
    try:
        with bounded_requests(REQUEST_TIMEOUT_S, REQUEST_RETRIES):
            client = connect(tracking_uri)
            version = _version(client, parts)
            sums = _sums(version, model_uri)
            folder = cache / sums[WEIGHTS_NAME]
            if not _intact(folder, sums):
                _fetch(client, version, tracking_uri, folder)
    except (MlflowException, SQLAlchemyError, OSError) as error:
        raise failed_lookup(error, model_uri, tracking_uri) from None
    if not _intact(folder, sums):
        raise UserError(
            f"{model_uri}: its files differ from the SHA-256 sums that the version carries",
            where=str(folder),
            fix="do not use this version: it was changed or damaged after it was registered",
        )
    config = stored_config(json.loads((folder / CONFIG_NAME).read_bytes()), str(folder / CONFIG_NAME))
    return RegisteredWeights(
        folder / WEIGHTS_NAME, config, version.name, int(version.version), str(version.run_id), dict(version.tags)
    )


def _version(client: "MlflowClient", parts: re.Match[str]) -> "ModelVersion":
    if parts["alias"] is not None:
        return client.get_model_version_by_alias(parts["name"], parts["alias"])
    return client.get_model_version(parts["name"], parts["version"])


def _sums(version: "ModelVersion", model_uri: str) -> dict[str, str]:
    """Return the SHA-256 by file name, after checking their form: one becomes the name of a folder."""
    sums = {WEIGHTS_NAME: version.tags.get(WEIGHTS_SHA256, ""), CONFIG_NAME: version.tags.get(CONFIG_SHA256, "")}
    if not all(re.fullmatch("[0-9a-f]{64}", digest) for digest in sums.values()):
        raise UserError(
            f"{model_uri} carries no SHA-256 of its weights and config",
            where=f"{version.name}/{version.version}",
            fix="name a version that this platform registered",
        )
    return sums


def _intact(folder: Path, sums: dict[str, str]) -> bool:
    for name, expected in sums.items():
        path = folder / name
        if not path.is_file() or sha256_of(path) != expected:
            return False
    return True


def _fetch(client: "MlflowClient", version: "ModelVersion", tracking_uri: str, folder: Path) -> None:
    """Download the two files and no others; each is moved to the folder when it is complete."""
    import mlflow.artifacts

    location = client.get_model_version_download_uri(version.name, str(version.version))
    folder.mkdir(parents=True, exist_ok=True)
    for name in (WEIGHTS_NAME, CONFIG_NAME):
        with tempfile.TemporaryDirectory(dir=folder) as temporary:
            downloaded = mlflow.artifacts.download_artifacts(
                artifact_uri=f"{location}/artifacts/{name}", dst_path=temporary, tracking_uri=tracking_uri
            )
            Path(downloaded).replace(folder / name)
