"""The records of an outbox: a class for each kind, and how a record is written to and read from a line."""

import json
from collections.abc import Mapping
from dataclasses import MISSING, dataclass, fields
from typing import Any, ClassVar, Literal, NotRequired, TypeAlias, TypedDict

FORMAT = 1
"""Version of the lines' format."""

Status = Literal["FINISHED", "FAILED", "KILLED"]

VERSION_PLACE = "{{version}}"
"""Placeholder for the version's number in the description of a `ModelRecord`."""

RecordFields: TypeAlias = Mapping[str, Any]
"""The fields of a line, by name; of a record of an unknown kind, whatever its line holds."""


class StepMetrics(TypedDict):
    """Values of one step, as a worker reports them."""

    step: int
    """Optimizer steps done."""
    time_ms: int
    """When the values were measured, milliseconds since the epoch; part of a point's identity in MLflow."""
    metrics: Mapping[str, float]
    """Value by name; NaN and infinities are kept."""
    roll_backs: NotRequired[int]
    """Roll-backs of the training before it, if there were any: each one repeats steps with other values."""


@dataclass(frozen=True)
class _Record:
    """What all records have. The fields of a line are `v` (format), `kind` and those of the class, in their order.

    A field with a default is newer than the format: lines may lack it.
    """

    kind: ClassVar[str]
    uid: str
    """Our id of the run, 32 hexadecimal digits, stored with it so that a restart continues the same MLflow run."""
    time_ms: int
    """When the recorded event happened, milliseconds since the epoch."""

    def as_dict(self) -> RecordFields:
        """Return the line's fields."""
        return {"v": FORMAT, "kind": self.kind, **vars(self)}


@dataclass(frozen=True)
class RunRecord(_Record):
    """A run starts, or continues after a restart."""

    kind = "run"
    name: str
    experiment: str
    parent: str | None
    """Uid of a run of the same experiment."""
    tags: dict[str, str]


@dataclass(frozen=True)
class ParamsRecord(_Record):
    """What the run was asked to do. MLflow never changes a parameter; it refuses a second value."""

    kind = "params"
    params: dict[str, str]


@dataclass(frozen=True)
class TagsRecord(_Record):
    """Facts about the run that may change; the last value wins."""

    kind = "tags"
    tags: dict[str, str]


@dataclass(frozen=True)
class ArtifactRecord(_Record):
    """A file or folder to copy to the run's artifacts."""

    kind = "artifact"
    path: str
    """Must exist until the record is sent."""
    artifact_path: str | None
    """Folder in the run's artifacts; None: the top one."""


@dataclass(frozen=True)
class DatasetRecord(_Record):
    """A data set that the run reads."""

    kind = "dataset"
    name: str
    digest: str
    source: str
    """Path or address."""
    context: str
    """Use of the data set, such as training."""


@dataclass(frozen=True)
class ModelRecord(_Record):
    """A model to register."""

    kind = "model"
    registration: str
    """Id that is a hash of run, name and weights, so a model that is recorded again gets no second version."""
    name: str
    """Registered model's name."""
    folder: str
    """Folder with `weights.safetensors` and `config.json`; must exist until the record is sent."""
    code: str
    """Folder of the import package that the model's code needs, relative to the outbox."""
    serving: str
    """File in `code` that calls `mlflow.models.set_model`, relative path."""
    requirements: list[str]
    """`name==version` lines."""
    tags: dict[str, str]
    """Lineage, by the names of `tracking.tags`."""
    alias: str
    """Alias that will point at the version."""
    user_code: list[str] | None = None
    """Folders of users' packages that the model's code needs, too, relative to the outbox."""
    description: str | None = None
    """Description of the version in Markdown; MLflow's number of the version replaces `VERSION_PLACE` in it."""
    outputs: str | None = None
    """Columns of a prediction: JSON as MLflow's `Schema.to_json` gives it; None: any."""
    sample: str | None = None
    """An image file in base64, as an example of a request."""
    archive: bool | None = None
    """Whether `code` goes to MLflow as one zip file, which its serving file puts on the path; None: as its files."""

    def as_dict(self) -> RecordFields:
        """Return the line's fields, without those newer than the format that are None."""
        newer = {field.name for field in fields(self) if field.default is None}
        return {key: value for key, value in super().as_dict().items() if value is not None or key not in newer}


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
    """By name a number, or "NaN", "Infinity", "-Infinity", which JSON lacks and `float()` reads back."""
    roll_backs: int = 0
    """Roll-backs before it; a later line of the same step, after more of them, takes this one's place."""

    def as_dict(self) -> RecordFields:
        """Return the line's fields; `roll_backs` is newer than the format, and left out where there were none."""
        return {key: value for key, value in super().as_dict().items() if value or key != "roll_backs"}


@dataclass(frozen=True)
class NotificationRecord(_Record):
    """Something that people wait to hear of a run; its own outboxes have these (`tracking.notifications`)."""

    kind = "notification"
    event: str
    """One of `config.recipe.Event`."""
    run: str
    """Name of the run."""
    stage: str | None
    """Name of the stage; None: it concerns a registered version."""
    where: str
    """The driver's machine, and the run's folder or the registry."""
    metric: str | None
    """Name of the metric that decides; None: nothing was evaluated yet."""
    value: float | None
    """Its best value."""
    model: str | None
    """Name of the registered model; None: there is none."""
    version: int | None
    """Its registered version; None: not known yet."""


@dataclass(frozen=True)
class UnknownRecord:
    """A record of a kind that this release does not know, or one without some fields of its kind."""

    uid: str
    time_ms: int
    kind: str
    fields: RecordFields
    """All fields of the line."""

    @property
    def problem(self) -> str:
        """Return why the record cannot be sent."""
        if self.kind not in _KINDS:
            return f"unknown kind of record {self.kind!r}"
        missing = [name for name, required in _KINDS[self.kind][1].items() if required and name not in self.fields]
        return f"a record of kind {self.kind!r} without {', '.join(missing)}"

    def as_dict(self) -> RecordFields:
        """Return the line's fields."""
        return self.fields


@dataclass(frozen=True)
class UnreadLine:
    """A line that is no record, to be set aside in `refused.jsonl`."""

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
    | NotificationRecord
    | UnknownRecord
)

_KINDS = {
    record.kind: (record, {field.name: field.default is MISSING for field in fields(record)})
    for record in (RunRecord, ParamsRecord, TagsRecord, ArtifactRecord, DatasetRecord, ModelRecord, EndRecord,
                   NotificationRecord)
}  # fmt: skip


def write_line(record: Record) -> bytes:
    """Return the JSON line of a record, with its line end."""
    return json.dumps(record.as_dict(), allow_nan=False, separators=(",", ":")).encode() + b"\n"


def parse_line(raw: bytes) -> Record | None:
    """Return the record of a line; None where the line is no record (a damaged disk, a later format)."""
    try:
        values = json.loads(raw)
    except ValueError:
        return None
    if not isinstance(values, dict) or values.get("v") != FORMAT:
        return None
    kind, uid, time_ms = values.get("kind"), values.get("uid"), values.get("time_ms")
    if not (isinstance(kind, str) and isinstance(uid, str) and isinstance(time_ms, int)):
        return None
    if kind == MetricsRecord.kind:  # nearly all lines are metrics, so they come first
        step, metrics, roll_backs = values.get("step"), values.get("metrics"), values.get("roll_backs", 0)
        if not (isinstance(step, int) and isinstance(metrics, dict) and isinstance(roll_backs, int)):
            return None
        return MetricsRecord(uid, time_ms, step, metrics, roll_backs)
    known = _KINDS.get(kind)
    if known is None or any(required and name not in values for name, required in known[1].items()):
        return UnknownRecord(uid, time_ms, kind, values)
    return known[0](**{name: values[name] for name in known[1] if name in values})
