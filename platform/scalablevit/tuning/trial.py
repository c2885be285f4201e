"""Runs one trial for Tune: in Tune's actor, or by Ray Train from there when it needs several workers."""

import builtins
import json
import math
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, NotRequired, TypedDict

from ray import tune
from ray.tune.integration.ray_train import TuneReportCallback

from scalablevit.config.errors import TrainingFailed, UserError
from scalablevit.config.recipe import Length, Stage
from scalablevit.config.space import Search
from scalablevit.config.trial import trial_stage, value_at
from scalablevit.config.user_code import import_user_code, imports_of
from scalablevit.run_files import UNREPORTED
from scalablevit.tracking.connection import mask
from scalablevit.tracking.records import StepMetrics
from scalablevit.training.checkpoint import DamagedCheckpoint
from scalablevit.training.storage import open_filesystem, put_text, read
from scalablevit.tuning.population import pointer_checkpoint, segment_folder, write_recipe
from scalablevit.tuning.sampling import TrialConfig, Values
from scalablevit.tuning.trials import Trial, read_result, trial_folder

if TYPE_CHECKING:  # it loads torch models and data code
    from scalablevit.training.worker import WorkerConfig


@dataclass(frozen=True)
class TrialContext:
    """What all trials of a search share."""

    search: Search
    folder: str
    """The search's folder in run storage, path or address."""
    root: str
    """The platform's root folder."""
    train_samples: int
    """Number of training samples."""
    init_weights: str | None
    """File of the weights that training starts from; None: random weights."""
    init_sha256: str
    """SHA-256 of that file; empty: not checked."""
    keep_head: bool
    """Load the classifier's weights, too, where their shape fits."""
    user_code: dict[str, str] = field(default_factory=dict)
    """Content sum by name of each package that the recipe imports, as on the driver."""

    def total_steps(self, stage: Stage) -> int:
        """Return the optimizer steps of a trial that is not stopped."""
        return Length.of(stage, self.train_samples).total

    def epoch(self, stage: Stage, step: int) -> float:
        """Return the epochs trained, plus half a step so that rounding of steps makes no evaluation too early."""
        return (step + 0.5) * stage.training.global_batch_size / self.train_samples


class TrialResult(TypedDict):
    """What a trial reports to Tune at an evaluation; plain values, since Tune pickles them and writes them as JSON."""

    score: float
    """What scheduler and searcher compare, higher is better."""
    value: float
    """The metric as evaluated."""
    step: int
    """Optimizer steps done."""
    epoch: NotRequired[float]
    """Epochs trained; a result without it is no evaluation, and no scheduler judges the trial by it."""
    records: list[StepMetrics]
    """Records since the previous result."""


class TrialFailed(Exception):
    """A trial cannot continue because of its values; the search does. It is not tried again."""


class TrialDisturbed(Exception):
    """A trial cannot continue for a reason outside its values; it is tried again when the search goes on."""


class TrialRefused(TrialDisturbed):
    """The reason is a mistake of the user, such as in the data, that other trials would meet, too."""


DIVERGED = ("the loss or gradient of step", "at or before step")
"""Starts of the error of a training whose steps are not finite, as they were looked at: all, or at log points."""
OUT_OF_MEMORY = "CUDA out of memory"
"""Words of torch's error of a GPU without free memory."""


class TrialReporter:
    """Turns a trial's records into results for Tune: one for each evaluation, with the records before it.

    Args:
        context: what all trials share.
        stage: the stage with the trial's values.
        curve: metric by step of earlier attempts' evaluations, which are reported again to a scheduler without them.
    """

    def __init__(self, context: TrialContext, stage: Stage, curve: dict[int, float]) -> None:
        self._context = context
        self._stage = stage
        self._known = dict(sorted(curve.items()))
        self._waiting: list[StepMetrics] = []
        self._best = -math.inf

    def known_results(self) -> list[TrialResult]:
        """Return the results of earlier attempts' evaluations."""
        return [self._result(step, value) for step, value in self._known.items()]

    def add(self, records: Sequence[StepMetrics]) -> list[TrialResult]:
        """Add records, and return the results that they complete: one for each new evaluation."""
        results = []
        metric = self._context.search.space.metric
        for record in records:
            self._waiting.append(record)
            if metric in record["metrics"] and record["step"] not in self._known:
                results.append(self._result(record["step"], float(record["metrics"][metric])))
        return results

    def is_population(self) -> bool:
        """Return whether trials take over each other's weights (population-based training)."""
        return self._context.search.space.scheduler.kind == "pbt"

    def final_results(self) -> list[TrialResult]:
        """Return one result, with NaN as value, for a failed trial's records after its last evaluation, if any."""
        if not self._waiting:
            return []
        result = self._result(self._waiting[-1]["step"], math.nan)
        if not self.is_population():  # which needs it, and judges at evaluations only
            del result["epoch"]  # a scheduler that stopped the trial now would hide its failure
        return [result]

    def write_waiting(self, folder: str) -> None:
        """Write the records that no evaluation has followed yet to the trial's folder, also when there are none."""
        put_text(folder, UNREPORTED, json.dumps(self._waiting))

    def read_waiting(self, folder: str) -> None:
        """Take the records that `write_waiting` wrote in another process, if any."""
        filesystem, path = open_filesystem(folder)
        if content := read(filesystem, f"{path}/{UNREPORTED}"):
            self._waiting = json.loads(content)

    def _result(self, step: int, value: float) -> TrialResult:
        """Return a result whose score is the best evaluation so far.

        Population-based training copies weights, so there the score is the evaluation of these weights.
        """
        score = -value if self._context.search.space.mode == "min" else value
        score = score if math.isfinite(score) else -math.inf
        self._best = max(self._best, score)
        reported = score if self.is_population() else self._best
        records, self._waiting = self._waiting, []
        epoch = self._context.epoch(self._stage, step)
        return {"score": reported, "value": value, "step": step, "epoch": epoch, "records": records}


def run_trial(config: TrialConfig, context: TrialContext) -> None:
    """Run a trial to its end, from whatever state an earlier attempt left; Tune's trainable.

    The trial's number is the name of its folder in Tune: population-based training copies whole configurations, so that
    the number in `config` may be another trial's.

    Args:
        config: the trial's configuration.
        context: what all trials share.

    Raises:
        TrialFailed: the trial cannot continue because of its values; the message is the reason.
        TrialDisturbed, TrialRefused: it cannot continue for another reason.
    """
    values = config["trial"]["values"]
    try:
        _run_to_end(int(Path(tune.get_context().get_trial_dir()).name), config, context)
    except UserError as error:
        kind: type[Exception] = TrialFailed if is_about_values(error, values) else TrialRefused
        raise kind(_one_line(str(error))) from error
    except TrainingFailed as error:
        kind = TrialFailed if OUT_OF_MEMORY in str(error) else TrialDisturbed
        # the workers' failure; what to do about it, which follows an empty line, is for a run's folder
        raise kind(_one_line(str(error).partition("\n\n")[0])) from error
    except (OSError, DamagedCheckpoint) as error:
        raise TrialDisturbed(_one_line(f"{type(error).__name__}: {error}")) from error


def _run_to_end(number: int, config: TrialConfig, context: TrialContext) -> None:
    values = config["trial"]["values"]
    trial = Trial(number, values)
    import_user_code(imports_of(context.search.recipe), context.user_code)
    try:
        stage = trial_stage(context.search, values)
    except UserError as error:
        raise TrialFailed(_one_line(str(error))) from error
    check_sampled(stage, values)
    folder = trial_folder(context.folder, number)
    read_result(context.folder, trial)
    reports = TrialReporter(context, stage, trial.curve if trial.ended() else dict(config["trial"]["curve"]))
    if not reports.is_population():  # a population's past cannot be replayed: weights went from trial to trial
        _report_all(reports.known_results())
    if trial.status == "failed":
        raise TrialFailed(trial.reason)
    if not trial.ended():
        folder = segment_folder(folder, stage) if reports.is_population() else folder
        write_recipe(folder, stage)
        _train(stage, folder, context, reports)


def is_about_values(error: UserError, values: Values) -> bool:
    """Return whether a trial's error comes from its values, so that it would come again.

    All others, such as a full disk or a changed file, may be gone when the search goes on.

    Args:
        error: the error that ended the trial.
        values: the trial's values.
    """
    # an architecture that cannot be built names its section only
    keys = {*values, *("model" for path in values if path.startswith("model."))}
    return error.what.startswith(DIVERGED) or error.where in keys


def _one_line(text: str) -> str:
    """Return a text in one line, since `reason_of` reads one line of a traceback."""
    return " ".join(text.split())


def check_sampled(stage: Stage, values: Values) -> None:
    """Check that the trial's recipe has the sampled values.

    Args:
        stage: the stage with the trial's values.
        values: the sampled values.

    Raises:
        TrialFailed: the recipe has another value.
    """
    for path, value in values.items():
        actual = value_at(stage, path)
        if actual != value:
            raise TrialFailed(f"{path} is {actual!r} in the trial's recipe, and {value!r} was sampled")


def _train(stage: Stage, folder: str, context: TrialContext, reports: TrialReporter) -> None:
    from scalablevit.training.worker import WorkerConfig

    space = context.search.space
    worker_config = WorkerConfig(
        stage=stage.model_dump_json(),
        run_folder=folder,
        root=context.root,
        init_weights=context.init_weights,
        init_sha256=context.init_sha256,
        keep_head=context.keep_head,
        metric=space.metric,
        lower_is_better=space.mode == "min",
        data_listing=context.folder,
        user_code=context.user_code,
        stored_first=True,
    )
    if stage.cluster.workers == 1:
        _train_here(stage, worker_config, reports)
    else:
        _train_distributed(stage, worker_config, reports)


def _train_here(stage: Stage, worker_config: "WorkerConfig", reports: TrialReporter) -> None:
    import torch

    from scalablevit.training.state import Record
    from scalablevit.training.worker import run

    population = reports.is_population()

    def send(records: list[Record], _node: dict[str, float]) -> None:
        for result in reports.add([record.as_dict() for record in records]):
            if population:
                with pointer_checkpoint(worker_config.run_folder, result["step"]) as checkpoint:
                    tune.report(dict(result), checkpoint=checkpoint)
            else:
                tune.report(dict(result))

    device = torch.device("cuda" if stage.cluster.gpus_per_worker else "cpu")
    try:
        result = run(worker_config, rank=0, world=1, device=device, send=send)
    except Exception:
        _report_all(reports.final_results())
        raise
    if result.error is not None:
        _report_all(reports.final_results())
        raise result.error


def _report_all(results: list[TrialResult]) -> None:
    for result in results:
        tune.report(dict(result))


class TrialCallback(TuneReportCallback):
    """Passes what Ray Train's workers report to Tune; runs in Ray Train's controller.

    Records that no evaluation follows are left in the trial's folder: the controller does not know whether the training
    fails or goes on with other workers.

    Args:
        reports: makes the results; a copy of it gets here.
        folder: the trial's folder.
    """

    def __init__(self, reports: TrialReporter, folder: str) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._reports = reports
        self._folder = folder

    def after_report(self, run_context: Any, metrics: list[dict[str, Any]], checkpoint: Any) -> None:
        """Report the new results to Tune; Ray calls this once all ranks have reported."""
        records = [record for report in metrics for record in report.get("records", [])]
        for result in self._reports.add(records):
            super().after_report(run_context, [dict(result)], None)
        with suppress(OSError):  # an exception here would end the training
            self._reports.write_waiting(self._folder)


def _train_distributed(stage: Stage, worker_config: "WorkerConfig", reports: TrialReporter) -> None:
    from scalablevit.training.launch import launch

    folder = worker_config.run_folder
    with suppress(OSError):  # an earlier attempt's records are not this one's
        reports.write_waiting(folder)
    try:
        launch(stage, worker_config, folder, [TrialCallback(reports, folder)])
    except Exception:
        with suppress(OSError, ValueError):  # it must not hide why the trial failed
            reports.read_waiting(folder)
        _report_all(reports.final_results())
        raise


REFUSED_PREFIX = f"{__name__}.{TrialRefused.__name__}: "
FAILURE_PREFIXES = {
    f"{__name__}.{TrialFailed.__name__}: ": True,
    f"{__name__}.{TrialDisturbed.__name__}: ": False,
    REFUSED_PREFIX: False,
}
"""How the last line of a trial's traceback begins, and whether the trial would fail again."""


def reason_of(error: str) -> tuple[str, bool]:
    """Return why a trial failed, without secrets, and whether it would fail again.

    A trial that lost its process, or had an error outside its values, would not.

    Args:
        error: Tune's traceback of the trial.
    """
    lines = [line.strip() for line in error.splitlines() if line.strip()]
    for line in reversed(lines):
        for prefix, again in FAILURE_PREFIXES.items():
            if line.startswith(prefix):
                return mask(line.removeprefix(prefix), ""), again
    lost = any(name in line for line in lines for name in ("ActorDied", "ActorUnavailable", "NodeDied"))
    last = lines[-1] if lines else "it ended without a word"
    kind = getattr(builtins, last.partition(":")[0], None)
    of_storage = isinstance(kind, type) and issubclass(kind, OSError)
    return mask(last, ""), not (lost or of_storage)
