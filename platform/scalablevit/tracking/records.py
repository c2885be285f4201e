"""The records of an outbox: a class for each kind, how one is written as a line, and how a line is read."""

import json
from collections.abc import Mapping
from dataclasses import MISSING, dataclass, fields
from typing import Any, ClassVar, Literal, TypeAlias, TypedDict

FORMAT = 1

Status = Literal["FINISHED", "FAILED", "KILLED"]

VERSION_PLACE = "{{version}}"
"""Stands for the number of a version in the description that is sent along."""

RecordFields: TypeAlias = Mapping[str, Any]
"""The fields of a record whose kind is not known here, or that lacks some: whatever its line holds."""


class StepMetrics(TypedDict):
    """Values of one step, as a worker reports them."""

    step: int
    """Optimizer step, from 0."""
    time_ms: int
    """When they were measured, milliseconds since the epoch. Part of a point's identity in MLflow."""
    metrics: Mapping[str, float]
    """Value by name; NaN and infinities are kept."""


@dataclass(frozen=True)
class _Record:
    """What all records have; a line's fields are `v` (format), `kind` and those of the class, in their order.

    A field with a default is younger than the format: lines may lack it.
    """

    kind: ClassVar[str]
    uid: str
    """The run: uuid4 hex, made by us and kept with the run, so that a restart continues the same MLflow run."""
    time_ms: int
    """Milliseconds since the epoch."""

    def as_dict(self) -> RecordFields:
        """Return the line's fields."""
        return {"v": FORMAT, "kind": self.kind, **vars(self)}


@dataclass(frozen=True)
class RunRecord(_Record):
    """A run starts, or goes on after a restart."""

    kind = "run"
    name: str
    experiment: str
    parent: str | None
    """Uid of a run of the same experiment."""
    tags: dict[str, str]


@dataclass(frozen=True)
class ParamsRecord(_Record):
    """What the run was asked to do. MLflow never changes a parameter; a second value is refused there."""

    kind = "params"
    params: dict[str, str]


@dataclass(frozen=True)
class TagsRecord(_Record):
    """Facts that may change; the last value wins."""

    kind = "tags"
    tags: dict[str, str]


@dataclass(frozen=True)
class ArtifactRecord(_Record):
    """A file or folder to copy."""

    kind = "artifact"
    path: str
    """Must stay until sent."""
    artifact_path: str | None
    """Folder in the run's artifacts."""


@dataclass(frozen=True)
class DatasetRecord(_Record):
    """Data the run reads."""

    kind = "dataset"
    name: str
    digest: str
    source: str
    """Path or address."""
    context: str
    """Such as training."""


@dataclass(frozen=True)
class ModelRecord(_Record):
    """A model to register."""

    kind = "model"
    registration: str
    """A function of run, name and weights, so a model that is recorded again gets no second version."""
    name: str
    """Registered model's name."""
    folder: str
    """Holds `weights.safetensors` and `config.json`; must stay until sent."""
    code: str
    """Folder of the import package that the model's code needs, relative to the outbox."""
    serving: str
    """File in `code` that calls `mlflow.models.set_model`, relative path."""
    requirements: list[str]
    """`name==version` lines."""
    tags: dict[str, str]
    """Lineage, by the names of `tracking.tags`."""
    alias: str
    user_code: list[str] | None = None
    """Folders of users' packages that the model's code needs besides, as `code`."""
    description: str | None = None
    """The version's, in Markdown; `VERSION_PLACE` in it stands for the version's number, which MLflow gives."""
    outputs: str | None = None
    """Columns of a prediction: JSON as of MLflow's `Schema`; None: any."""
    sample: str | None = None
    """An image file in base64, as an example of a request."""

    def as_dict(self) -> RecordFields:
        """Return the line's fields; those younger than the format that are None are not written."""
        young = {each.name for each in fields(self) if each.default is None}
        return {key: value for key, value in super().as_dict().items() if value is not None or key not in young}


@dataclass(frozen=True)
class EndRecord(_Record):
    """The run is over."""

    kind = "end"
    status: Status


@dataclass(frozen=True)
class MetricsRecord(_Record):
    """Values of one step."""

    kind = "metrics"
    step: int
    metrics: dict[str, float | str]
    """A number by name, or "NaN", "Infinity", "-Infinity", which JSON has not and `float()` reads back."""


@dataclass(frozen=True)
class UnknownRecord:
    """A record of a kind that this release does not know, or that lacks fields of its kind."""

    uid: str
    time_ms: int
    kind: str
    fields: RecordFields
    """All of them."""

    @property
    def problem(self) -> str:
        """Why it cannot be sent."""
        if self.kind not in _KINDS:
            return f"unknown kind of record {self.kind!r}"
        lacking = [name for name, needed in _KINDS[self.kind][1].items() if needed and name not in self.fields]
        return f"a record of kind {self.kind!r} without {', '.join(lacking)}"

    def as_dict(self) -> RecordFields:
        """Return the line's fields."""
        return self.fields


@dataclass(frozen=True)
class UnreadLine:
    """A line that is no record, where one is set aside."""

    raw: bytes

    def as_dict(self) -> RecordFields:
        """Return the line as text."""
        return {"raw": self.raw.decode(errors="replace")}


Record: TypeAlias = (
    RunRecord
    | ParamsRecord
    | TagsRecord
    | ArtifactRecord
    | DatasetRecord
    | ModelRecord
    | MetricsRecord
    | EndRecord
    | UnknownRecord
)

_KINDS = {
    each.kind: (each, {field.name: field.default is MISSING for field in fields(each)})
    for each in (RunRecord, ParamsRecord, TagsRecord, ArtifactRecord, DatasetRecord, ModelRecord, EndRecord)
}


def write_line(record: Record) -> bytes:
    """Return the line of a record, with its end."""
    return json.dumps(record.as_dict(), allow_nan=False, separators=(",", ":")).encode() + b"\n"


def parse_line(raw: bytes) -> Record | None:
    """Return the record of a line; None where the line is not one (a damaged disk, a later format)."""
    try:
        found = json.loads(raw)
    except ValueError:
        return None
    if not isinstance(found, dict) or found.get("v") != FORMAT:
        return None
    kind, uid, time_ms = found.get("kind"), found.get("uid"), found.get("time_ms")
    if not (isinstance(kind, str) and isinstance(uid, str) and isinstance(time_ms, int)):
        return None
    if kind == MetricsRecord.kind:  # nearly all lines, so it comes first
        step, metrics = found.get("step"), found.get("metrics")
        if not (isinstance(step, int) and isinstance(metrics, dict)):
            return None
        return MetricsRecord(uid, time_ms, step, metrics)
    known = _KINDS.get(kind)
    if known is None or any(needed and name not in found for name, needed in known[1].items()):
        return UnknownRecord(uid, time_ms, kind, found)
    return known[0](**{name: found[name] for name in known[1] if name in found})
