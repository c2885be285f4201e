"""Writes records to MLflow; every call may be repeated without harm."""

import json
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from scalablevit.tracking import registry
from scalablevit.tracking.connection import Away, Refused, artifact_location, bounded_requests, classify_error
from scalablevit.tracking.records import (
    ArtifactRecord,
    DatasetRecord,
    EndRecord,
    MetricsRecord,
    ModelRecord,
    NotificationRecord,
    ParamsRecord,
    Record,
    RunRecord,
    TagsRecord,
    UnknownRecord,
    UnreadLine,
)
from scalablevit.tracking.tags import DATA_DIGEST, UID

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

METRICS_PER_CALL = 1000
"""Most points of one request: MLflow's limit."""
PARAMS_PER_CALL = 100
"""Most parameters or tags of one request: MLflow's limit."""
DIGEST_LENGTH = 36
"""Most characters of a data set's digest: MLflow's limit."""
CREATE_TIMEOUT_S = 60
"""Longest wait in seconds for a new run. A request that timed out may still be carried out, and the next one would make
another run; MLflow itself stops after 20 s on a locked SQLite file."""

T = TypeVar("T")


class RunGone(Exception):
    """The server no longer has a run that it had: it was emptied, or is another server."""


@dataclass(frozen=True)
class Refusal:
    """A record, or a part of one, that the server refuses for good."""

    record: Record | UnreadLine
    """The record with the refused part only."""
    reason: str


class MLflowWriter:
    """Sends records of one outbox to one server.

    Args:
        client: from `connection.connect(uri)`.
        uri: the server's address.
        outbox: the outbox's folder, to which the `code` of model records is relative.
        runs: MLflow run ids by our uids, as far as known; changed in place: new ones are added.
    """

    def __init__(self, client: "MlflowClient", uri: str, outbox: Path, runs: dict[str, str]) -> None:
        self._client = client
        self._uri = uri
        self._outbox = outbox
        self._runs = runs
        self._experiments: dict[str, str] = {}
        self._seen_alive: set[str] = set()

    def send(self, records: Sequence[Record]) -> list[Refusal]:
        """Send one record, or several metrics records of one run.

        Returns:
            The records, or parts of them, that were refused; everything else has arrived.

        Raises:
            RunGone: the server lost a run, so everything has to be sent again.
            Exception: nothing, or not everything, has arrived; `connection.classify_error` tells whether to try again.
        """
        match records[0]:
            case MetricsRecord():
                return self._metrics([record for record in records if isinstance(record, MetricsRecord)])
            case RunRecord() as record:
                return self._run(record)
            case ParamsRecord() as record:
                return self._params(record)
            case TagsRecord() as record:
                return self._tags(record)
            case ArtifactRecord() as record:
                return self._artifact(record)
            case DatasetRecord() as record:
                return self._dataset(record)
            case ModelRecord() as record:
                return self._model(record)
            case EndRecord() as record:
                return self._end(record)
            case NotificationRecord():
                raise Refused("a notification is not for MLflow")
            case UnknownRecord() as record:
                raise Refused(record.problem)

    def takes_writes(self, uid: str) -> bool:
        """Return whether the server accepts writes for a run at the moment, by setting the run's uid tag once more.

        Returns:
            False when it is not known which MLflow run has the uid.

        Raises:
            Exception: the server does not accept the write.
        """
        if uid not in self._runs:
            return False
        self._client.set_tag(self._runs[uid], UID, uid)
        return True

    def _run(self, record: RunRecord) -> list[Refusal]:
        uid = record.uid
        if uid in self._runs:
            run_id = self._alive(uid)
        else:
            experiment = self._experiment(record.experiment)
            run = self._find(uid, experiment)
            if run is None:
                self._runs[uid] = self._create(record, experiment)
                return []
            run_id = self._runs[uid] = run.info.run_id
        self._client.update_run(run_id, status="RUNNING")
        return self._tags(record)

    def _create(self, record: RunRecord, experiment: str) -> str:
        own = {UID: record.uid}
        if record.parent is not None:
            parent = self._find(record.parent, experiment)
            if parent is None:
                raise Away(f"the parent run (uid {record.parent}) is not on the server yet; send its outbox first")
            own["mlflow.parentRunId"] = parent.info.run_id
        with bounded_requests(CREATE_TIMEOUT_S):
            run = self._client.create_run(
                experiment, start_time=record.time_ms, tags={**record.tags, **own}, run_name=record.name
            )
        return str(run.info.run_id)

    def _experiment(self, name: str) -> str:
        """Return the id of an experiment, which is created if it does not exist."""
        from mlflow.exceptions import MlflowException

        if name not in self._experiments:
            try:
                self._client.create_experiment(name, artifact_location=artifact_location(self._uri))
            except MlflowException as error:
                if error.error_code != "RESOURCE_ALREADY_EXISTS":
                    raise
            experiment = self._client.get_experiment_by_name(name)
            if experiment is None:
                raise Away(f"experiment {name!r} was removed while a run was to be made in it")
            if experiment.lifecycle_stage == "deleted":
                restore = f"mlflow experiments restore --experiment-id {experiment.experiment_id}"
                raise Away(f"experiment {name!r} is deleted; restore it ({restore}) or name another in the recipe")
            self._experiments[name] = experiment.experiment_id
        return self._experiments[name]

    def _find(self, uid: str, experiment: str) -> "Run | None":
        from mlflow.entities import ViewType

        # Deleted runs, too: a run that somebody deleted must not come back as a second one.
        runs = self._client.search_runs([experiment], f"tags.`{UID}` = '{uid}'", ViewType.ALL, max_results=1)
        return runs[0] if runs else None

    def _alive(self, uid: str, *, again: bool = False) -> str:
        """Return MLflow's id of a run that exists and is not deleted; checked once for each run, or `again`."""
        from mlflow.exceptions import MlflowException

        if uid not in self._runs:
            raise Refused(f"no run with uid {uid} is on the server: its own record is missing or was refused")
        run_id = self._runs[uid]
        if again or uid not in self._seen_alive:
            try:
                run = self._client.get_run(run_id)
            except MlflowException as error:
                if error.error_code == "RESOURCE_DOES_NOT_EXIST":
                    raise RunGone(uid) from error
                raise
            if run.info.lifecycle_stage == "deleted":
                raise Refused(f"the run is deleted on the server; mlflow runs restore --run-id {run_id} brings it back")
            self._seen_alive.add(uid)
        return run_id

    def _metrics(self, records: Sequence[MetricsRecord]) -> list[Refusal]:
        from mlflow.entities import Metric

        uid = records[0].uid
        run_id = self._alive(uid)
        points = [
            Metric(key, float(value), record.time_ms, record.step)
            for record in records
            for key, value in record.metrics.items()
        ]
        refused = self._in_parts(
            uid, points, METRICS_PER_CALL, lambda part: self._client.log_batch(run_id, metrics=part, synchronous=True)
        )
        return [
            Refusal(replace(records[0], time_ms=p.timestamp, step=p.step, metrics={p.key: str(p.value)}), reason)
            for p, reason in refused
        ]

    def _params(self, record: ParamsRecord) -> list[Refusal]:
        from mlflow.entities import Param

        run_id = self._alive(record.uid)
        params = [Param(key, value) for key, value in record.params.items()]
        refused = self._in_parts(
            record.uid,
            params,
            PARAMS_PER_CALL,
            lambda part: self._client.log_batch(run_id, params=part, synchronous=True),
        )
        return [Refusal(replace(record, params={param.key: param.value}), reason) for param, reason in refused]

    def _tags(self, record: RunRecord | TagsRecord) -> list[Refusal]:
        from mlflow.entities import RunTag

        run_id = self._alive(record.uid)
        tags = [RunTag(key, value) for key, value in record.tags.items()]
        refused = self._in_parts(
            record.uid,
            tags,
            PARAMS_PER_CALL,
            lambda part: self._client.log_batch(run_id, tags=part, synchronous=True),
        )
        return [Refusal(replace(record, tags={tag.key: tag.value}), reason) for tag, reason in refused]

    def _in_parts(
        self, uid: str, items: Sequence[T], size: int, log: Callable[[Sequence[T]], object]
    ) -> list[tuple[T, str]]:
        """Log items `size` at a time, and return those that are refused, with the reason.

        One bad item fails a whole call, so a refused part is halved until the bad item is alone.
        """
        refused: list[tuple[T, str]] = []
        parts = [items[start : start + size] for start in range(0, len(items), size)]
        while parts:
            part = parts.pop(0)
            try:
                log(part)
            except Exception as error:
                if classify_error(error) != "refused":
                    raise
                if not refused:
                    self._alive(uid, again=True)
                if len(part) == 1:
                    refused.append((part[0], str(error)))
                else:
                    parts[:0] = [part[: len(part) // 2], part[len(part) // 2 :]]
        return refused

    def _artifact(self, record: ArtifactRecord) -> list[Refusal]:
        run_id = self._alive(record.uid)
        path = Path(record.path)
        check_readable(path)
        log = self._client.log_artifacts if path.is_dir() else self._client.log_artifact
        log(run_id, str(path), record.artifact_path)
        return []

    def _dataset(self, record: DatasetRecord) -> list[Refusal]:
        from mlflow.entities import Dataset, DatasetInput, InputTag

        dataset = Dataset(
            name=record.name,
            digest=record.digest[:DIGEST_LENGTH],
            source_type="local",
            source=json.dumps({"uri": record.source}),
        )
        tags = [InputTag("mlflow.data.context", record.context), InputTag(DATA_DIGEST, record.digest)]
        self._client.log_inputs(self._alive(record.uid), [DatasetInput(dataset, tags)])
        return []

    def _model(self, record: ModelRecord) -> list[Refusal]:
        registry.register(self._client, self._alive(record.uid), record, self._outbox)
        return []

    def _end(self, record: EndRecord) -> list[Refusal]:
        self._client.set_terminated(self._alive(record.uid), record.status, record.time_ms)
        return []


def check_readable(path: Path) -> None:
    """Check that a file or folder that a record names can be read.

    Raises:
        Refused: it is gone, or it or a file in it cannot be read; trying again is of no use.
    """
    if not path.exists():
        raise Refused(f"{path} is gone")
    for file in path.rglob("*") if path.is_dir() else (path,):
        if not os.access(file, os.R_OK):
            raise Refused(f"{file} cannot be read")
