"""What commands print with `--json`: the shape of each document.

A document keeps its keys and their meanings as long as its `version` stays; new keys may come at any time. Times are
seconds since the epoch, fractions are from 0 to 1, and a number that is not finite is null.
"""

from collections.abc import Mapping
from typing import ClassVar

from pydantic import BaseModel, ConfigDict

from scalablevit.config.section import PlainValues


class _Shape(BaseModel):
    """A mapping with fixed keys."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


class Document(_Shape):
    """A document; its keys `schema` and `version` come first."""

    schema_name: ClassVar[str]
    """Value of the key `schema`."""
    version: ClassVar[int] = 1
    """Goes up when a key is removed, or means something else."""


# --- runs ---


class BestValue(_Shape):
    """The best evaluation so far."""

    metric: str
    """As evaluations report it, such as `val/top1`."""
    value: float | None
    """Of the metric."""
    step: int
    """Of the evaluation."""


class RunFacts(_Shape):
    """A run."""

    run: str
    """Its name, which is that of its folder."""
    state: str
    """`started`, `running`, `finished`, `failed`, `killed` or `lost`."""
    why: str
    """Of an end that was not the planned one; else empty."""
    stage: str
    """Stages at work, or the searched one."""
    step: int
    """How far it is, in `unit`."""
    total: int
    """What there is to do, in `unit`."""
    unit: str
    """`steps`, `stages` or `trials`."""
    best: BestValue | None
    """null before the first evaluation."""
    started: float
    """When its last attempt began."""
    updated: float
    """When its status was last written."""
    ended: float | None
    """null while it is at work, or lost."""
    host: str
    """Machine of its process."""
    process: int
    """Id of its process there."""
    job: str
    """Submission id of its Ray job; empty: none."""
    folder: str
    """In run storage."""
    tracking: str
    """MLflow's address, without credentials."""


class RunList(Document):
    """`runs list`: all runs below a root, the latest first."""

    schema_name = "scalablevit.runs.list"
    root: str
    """The platform's root."""
    runs: tuple[RunFacts, ...]
    """Those whose status can be read."""
    unreadable: dict[str, str]
    """What is wrong with the others, by name."""


class RunDetails(Document):
    """`runs show`: one run."""

    schema_name = "scalablevit.runs.show"
    run: RunFacts
    """The run."""
    files: tuple[str, ...]
    """In its folder on this machine; folders end in `/`."""


# --- recipes and data ---


class Shipped(_Shape):
    """A shipped file."""

    name: str
    """As `--recipe` or `--space` takes it."""
    file: str
    """Its path."""
    summary: str
    """What it is for."""


class RecipeList(Document):
    """`recipe list`: the shipped recipes and search spaces."""

    schema_name = "scalablevit.recipe.list"
    recipes: tuple[Shipped, ...]
    """Recipes."""
    spaces: tuple[Shipped, ...]
    """Search spaces."""


class BadFile(_Shape):
    """A file that something is wrong with."""

    path: str
    """Its path."""
    reason: str
    """What is wrong."""


class CheckedSplit(_Shape):
    """A split that was looked at."""

    samples: int
    """Samples in it."""
    ignored: int
    """Files next to them that are not read."""
    notes: tuple[str, ...]
    """What the listing has to say."""
    unreadable: tuple[BadFile, ...]
    """Samples that cannot be decoded."""
    wrong: tuple[BadFile, ...]
    """Masks that do not fit."""
    damaged: tuple[BadFile, ...]
    """Files that decode although their content is broken."""


class CheckedData(_Shape):
    """The data of a stage, and of later stages with an equal data section."""

    stage: str
    """The first stage that reads it."""
    splits: dict[str, CheckedSplit]
    """`train` and `val`, as far as they can be listed."""
    statistics: PlainValues | None
    """As `statistics.json` of a run's folder has them; null where a split cannot be listed."""
    warnings: tuple[str, ...]
    """What a training would warn of."""


class DataCheck(Document):
    """`check-data`: the data of a recipe. What training refuses beside single files ends the command without one."""

    schema_name = "scalablevit.check_data"
    recipe: str
    """Name of the recipe."""
    data: tuple[CheckedData, ...]
    """Different data sections."""
    bad: int
    """Bad samples of all of them."""


# --- trained models ---


class Evaluation(Document):
    """`evaluate`: a model's metrics on a validation split."""

    schema_name = "scalablevit.evaluate"
    model: str
    """As it was named."""
    weights_sha256: str
    """Of `weights.safetensors`."""
    task: str
    """Kind of the task."""
    classes: tuple[str, ...]
    """In the order of the network's outputs."""
    samples: int
    """Of the validation split."""
    data_digest: str
    """Of what it was evaluated on."""
    seen: int | None
    """Images of these that the model was trained on, by their bytes; null: not known."""
    metrics: Mapping[str, float | None] | None
    """By name, such as `val/top1`; null in a dry run."""


class Promotion(Document):
    """`promote`: what a candidate's trial for champion came to."""

    schema_name = "scalablevit.promote"
    model: str
    """Name of the registered model."""
    candidate: int
    """The version in question; with `--rollback` the one that becomes champion again."""
    champion: int | None
    """The version that was champion before; null: there was none."""
    outcome: str
    """`promoted`, `refused`, `champion already` or `rolled back`; in a dry run what it would be."""
    reasons: tuple[str, ...]
    """Why the gate refuses."""
    moved: bool
    """Whether the alias champion was moved."""
    evidence: PlainValues | None
    """Metrics, latency, weights, gain with its interval, and the gate, as the version's tag
    `scalablevit.promotion_evidence` has them; null where nothing was evaluated."""


class TrainingPrediction(Document):
    """`plan`: what a stage's training would take."""

    schema_name = "scalablevit.plan"
    recipe: str
    """Name of the recipe."""
    stage: str
    """Name of the stage."""
    prediction: PlainValues
    """Steps, seconds of each part, hours, efficiency and price, as `pipeline.prediction.Prediction` names them."""
    memory_bytes: PlainValues
    """Of a device, by what takes it, and of a checkpoint."""
    given: PlainValues
    """What the prediction is made from, and where it is from."""


class Prediction(Document):
    """`predict`: what became of a folder of images."""

    schema_name = "scalablevit.predict"
    folder: str
    """Where the predictions are; in a dry run where they would be."""
    images: int | None
    """Images that were given; null in a dry run."""
    bad: int | None
    """Images without a prediction; null in a dry run."""
    left_out: int | None
    """Files that are no images by their names; null in a dry run."""


# --- a training ---


class PlannedStage(_Shape):
    """A stage that would run."""

    name: str
    """In the recipe."""
    run: str
    """Name of its run."""
    folder: str
    """Of its run, in run storage."""
    task: str
    """Kind of the task."""
    model: str
    """Name of the backbone."""
    starts_from: str
    """Weights of the first step, in words."""
    train_samples: int
    """Samples of the training split."""
    val_samples: int
    """Samples of the validation split."""
    classes: tuple[str, ...]
    """In the order of the network's outputs."""
    data_digest: str
    """Of both splits."""
    steps: int
    """Optimizer steps."""
    evaluate_every_steps: int
    """Steps between evaluations."""
    workers: int
    """Ray Train workers."""
    warnings: tuple[str, ...]
    """About data and initial weights; those about schedule, time and machine are printed to standard error alone."""
    recipe: PlainValues
    """The stage's resolved recipe, without secrets."""


class TrainingPlan(Document):
    """`full --dry-run`, and that of a single stage: what would run."""

    schema_name = "scalablevit.full.dry_run"
    recipe: str
    """Name of the recipe."""
    stages: tuple[PlannedStage, ...]
    """In the order of running."""


# --- the machines ---


class FoundFact(_Shape):
    """What was found about one thing at one place."""

    what: str
    """The thing, such as `versions`, `disk`, `clock`."""
    where: str
    """Address of the node, or what else it belongs to."""
    value: str
    """What is there, for people."""
    level: str
    """`good`, `warning`, or `stops`: a training would be refused."""
    problem: str
    """What is wrong; empty: nothing."""
    fix: str
    """What to do about it."""


class Diagnosis(Document):
    """`doctor`: what is good and bad about this machine or the cluster."""

    schema_name = "scalablevit.doctor"
    root: str
    """The platform's root."""
    findings: tuple[FoundFact, ...]
    """In the order of the table."""
    not_checked: tuple[str, ...]
    """What could not be looked at, and why."""


# --- records and reports ---


class SyncedRun(_Shape):
    """A run's outbox."""

    run: str
    """Name of the run."""
    left: int
    """Records that wait; in a dry run those that would be sent."""
    refused: tuple[str, ...]
    """What the server has refused for good: run, kind and reason."""
    error: str
    """Why records wait, without secrets; empty: they do not, or it is not known."""
    without_end: int | None
    """MLflow runs that nobody has ended; null in a dry run."""


class Sync(Document):
    """`sync`: what became of the records that waited for MLflow."""

    schema_name = "scalablevit.sync"
    root: str
    """The platform's root."""
    sent: bool
    """Whether anything was tried; false in a dry run."""
    runs: tuple[SyncedRun, ...]
    """The oldest first."""


class ReportedStage(_Shape):
    """A stage on the page."""

    name: str
    """In the recipe."""
    state: str
    """Of its run."""


class ReportedSearch(_Shape):
    """A search on the page."""

    name: str
    """Of its run."""
    trials: int
    """Trials."""


class ReportMade(Document):
    """`report`: the page that was made."""

    schema_name = "scalablevit.report"
    file: str
    """The page; in a dry run where it would be."""
    stages: tuple[ReportedStage, ...]
    """Stages on it."""
    searches: tuple[ReportedSearch, ...]
    """Searches on it."""


DOCUMENTS: tuple[type[Document], ...] = (
    RunList, RunDetails, RecipeList, DataCheck, TrainingPlan, TrainingPrediction, Evaluation, Promotion, Prediction,
    Diagnosis, Sync, ReportMade,
)  # fmt: skip
"""All of them, in the order of the commands' use."""
