"""Runs a search's trials by Ray Tune, and records what each of them does."""

import hashlib
import logging
import math
import os
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, cast

from ray import tune
from ray.tune.experiment import Trial as TuneTrial
from ray.tune.schedulers import (
    ASHAScheduler,
    FIFOScheduler,
    MedianStoppingRule,
    PopulationBasedTraining,
    TrialScheduler,
)
from ray.tune.search.sample import Domain

from scalablevit.config.errors import UserError
from scalablevit.config.recipe import Stage
from scalablevit.config.run_hash import hashed_part
from scalablevit.config.space import Distribution, Search, Value
from scalablevit.config.trial import trial_stage
from scalablevit.tracking.outbox import Outbox, now_ms, read_lines
from scalablevit.tracking.params import flatten
from scalablevit.tracking.records import MetricsRecord, StepMetrics
from scalablevit.tracking.tags import best_metric
from scalablevit.training.ray_internals import TUNE_VARIABLES, function_has_returned, set_defaults
from scalablevit.training.storage import open_filesystem
from scalablevit.tuning.sampling import TPESearcher, TrialConfig, Values, enumerate_values
from scalablevit.tuning.trial import REFUSED_PREFIX, TrialContext, TrialResult, reason_of, run_trial
from scalablevit.tuning.trials import (
    Trial,
    drop_checkpoints,
    load_trials,
    rank_trials,
    save_list,
    trial_folder,
    write_result,
)

set_defaults(TUNE_VARIABLES)

QUIET_S = 5.0
"""Seconds between two printed evaluations of trials; ends are always printed."""
SAME_ERRORS = 3
"""Trials that end by the same mistake of the user before any is evaluated, after which the search stops."""


def trial_uid(search_uid: str, number: int) -> str:
    """Return a trial's uid in tracking, 32 hexadecimal digits, the same after a restart."""
    return hashlib.sha256(f"{search_uid}/{number}".encode()).hexdigest()[:32]


def trial_name(trial: Trial) -> str:
    """Return a trial's number and sampled values as text for people."""
    values = (
        f"{path.rpartition('.')[2]}={value:.3g}" if isinstance(value, float) else f"{path.rpartition('.')[2]}={value}"
        for path, value in trial.values.items()
    )
    return f"{trial.number:03d} {' '.join(values)}"


class SearchCallback(tune.Callback):
    """Keeps the list of trials while Tune runs them: tracking, results, disk; runs in the driver.

    Args:
        context: what all trials share.
        trials: the trials known so far; changed in place: proposals are appended.
        outbox: the search's outbox; every trial has a child run in it.
        uid: uid of the search's run.
        experiment: name of the MLflow experiment.
        on_end: called when a trial has ended and its result is stored.
    """

    same_error = ""
    """The error by which `SAME_ERRORS` trials have ended, so that the search is to stop; empty: there is none."""

    def __init__(
        self,
        context: TrialContext,
        trials: list[Trial],
        outbox: Outbox,
        uid: str,
        experiment: str,
        on_end: Callable[[], None] = lambda: None,
    ) -> None:
        self.trials = trials
        self._on_end = on_end
        self._context = context
        self._outbox = outbox
        self._uid = uid
        self._experiment = experiment
        self._begun: set[int] = set()
        self._dropped: set[int] = set()
        self._refusals: Counter[str] = Counter()
        self._numbers: dict[str, int] = {}
        self._printed = 0.0
        self._deadline = math.inf
        self._read_curves()

    def __getstate__(self) -> dict[str, None]:
        """Return nothing: Tune writes its callbacks into snapshots, which we never read."""
        return {}

    def _read_curves(self) -> None:
        """Read the evaluations of interrupted trials from the outbox."""
        unfinished = {trial_uid(self._uid, trial.number): trial for trial in self.trials if not trial.ended()}
        roll_backs: dict[str, int] = {}
        for line in read_lines(self._outbox.folder):
            record = line.record
            if not isinstance(record, MetricsRecord):
                continue
            trial, metrics = unfinished.get(record.uid), record.metrics
            if trial is None:
                continue
            if record.roll_backs > roll_backs.get(record.uid, 0):  # undone: no weights have these values
                roll_backs[record.uid] = record.roll_backs
                trial.curve = {step: value for step, value in trial.curve.items() if step < record.step}
            if self._context.search.space.metric in metrics:
                trial.curve[record.step] = float(metrics[self._context.search.space.metric])
                trial.status = "unfinished"

    def set_deadline(self, deadline: float) -> None:
        """Set the end of the budget's wall time (seconds of `time.monotonic`), which interrupts trials."""
        self._deadline = deadline

    def propose(self, values: Values, number: int | None = None) -> TrialConfig:
        """Return the configuration of a trial; a new trial is stored before it starts.

        Args:
            values: the sampled values.
            number: the trial's number; None: the next one.
        """
        number = len(self.trials) if number is None else number
        if number == len(self.trials):
            trial_stage(self._context.search, values)  # a proposal that is no recipe must not start
            self.trials.append(Trial(number, values))
            save_list(self._context.folder, self.trials)
        return {"trial": {"number": number, "values": values, "curve": sorted(self.trials[number].curve.items())}}

    def on_trial_start(self, iteration: int, trials: list[TuneTrial], trial: TuneTrial, **info: Any) -> None:
        """Begin the trial's run in tracking; Tune calls this when it starts a trial."""
        ours = self._trial_of(trial)
        if ours.number in self._begun or ours.ended():
            return
        self._begun.add(ours.number)
        ours.status = "running"
        stage = trial_stage(self._context.search, ours.values)
        uid = trial_uid(self._uid, ours.number)
        facts = {"trial": ours.number, "run_folder": trial_folder(self._context.folder, ours.number)}
        self._outbox.run(uid, trial_name(ours), experiment=self._experiment, parent=self._uid, tags=facts)
        self._outbox.params(uid, flatten(hashed_part(stage)))

    def on_trial_result(
        self, iteration: int, trials: list[TuneTrial], trial: TuneTrial, result: dict[str, Any], **info: Any
    ) -> None:
        """Record a trial's evaluation; Tune calls this."""
        ours = self._trial_of(trial)
        if ours.ended():
            return
        reported = cast(TrialResult, result)
        self._outbox.metrics(trial_uid(self._uid, ours.number), reported["records"])
        values = trial.config["trial"]["values"]
        if values != ours.values:  # population-based training changed them
            ours.values = dict(values)
            save_list(self._context.folder, self.trials)
        if not math.isnan(reported["value"]):
            ours.curve[reported["step"]] = reported["value"]
        if time.monotonic() - self._printed >= QUIET_S:
            self._say(f"trial {trial_name(ours)}: step {reported['step']}, {self._metric(reported['value'])}")

    def on_trial_complete(self, iteration: int, trials: list[TuneTrial], trial: TuneTrial, **info: Any) -> None:
        """Record that a trial has ended, by itself or by the scheduler; Tune calls this."""
        ours = self._trial_of(trial)
        if ours.ended():
            return
        length = self._context.total_steps(trial_stage(self._context.search, ours.values))
        if max(ours.curve, default=0) >= length or function_has_returned(trial.last_result):
            self._end(ours, "finished", "")
        elif self.same_error or time.monotonic() >= self._deadline:
            ours.status = "unfinished"
            self._outbox.end(trial_uid(self._uid, ours.number), "KILLED")
        else:
            kind = self._context.search.space.scheduler.kind
            self._end(ours, "stopped", f"by {kind} after step {max(ours.curve, default=0)}")

    def on_trial_error(self, iteration: int, trials: list[TuneTrial], trial: TuneTrial, **info: Any) -> None:
        """Record that a trial has failed; Tune calls this, and the search continues."""
        ours = self._trial_of(trial)
        if ours.ended():
            return
        file = trial.error_file
        error = Path(file).read_text(errors="replace") if file else ""
        reason, again = reason_of(error)
        self._end(ours, "failed", reason, keep=again)
        self._refusals[reason] += REFUSED_PREFIX in error
        if self._refusals[reason] >= SAME_ERRORS and not any(known.curve for known in self.trials):
            self.same_error = reason

    def interrupt(self) -> None:
        """Mark the running trials as unfinished, since the search stops: they continue when it is resumed."""
        for ours in self.trials:
            if ours.status == "running":
                ours.status = "unfinished"
                self._outbox.end(trial_uid(self._uid, ours.number), "KILLED")

    def _end(self, ours: Trial, status: Any, reason: str, *, keep: bool = True) -> None:
        ours.status, ours.reason, ours.to_retry = status, reason, not keep
        if keep:
            write_result(self._context.folder, ours)
        space = self._context.search.space
        uid = trial_uid(self._uid, ours.number)
        best = ours.best(space.mode)
        chosen = f"{space.metric}={best[1]:.6g} at step {best[0]}" if best else "none"
        self._outbox.tags(uid, {"stop_reason": reason or status, "best": chosen})
        if best:
            best_record: StepMetrics = {
                "step": best[0],
                "time_ms": now_ms(),
                "metrics": {best_metric(space.metric): best[1]},
            }
            self._outbox.metrics(uid, [best_record])
        self._outbox.end(uid, "FAILED" if status == "failed" else "FINISHED")
        if space.scheduler.kind != "pbt":  # there another trial may still copy the weights of an ended one
            self.drop_checkpoints()
        leader = next(iter(rank_trials(self.trials, space.mode)), None)
        so_far = leader.best(space.mode) if leader else None
        lead = f"; best so far {self._metric(so_far[1])} (trial {leader.number})" if leader and so_far else ""
        self._say(f"trial {trial_name(ours)}: {status}{' ' + reason if reason else ''}, {chosen}{lead}")
        self._on_end()

    def drop_checkpoints(self) -> None:
        """Delete the checkpoints of ended trials that are neither among the best nor to be retried."""
        space = self._context.search.space
        drop_checkpoints(self._context.folder, self.trials, space.mode, space.keep_best, self._dropped)

    def _metric(self, value: float) -> str:
        return f"{self._context.search.space.metric.removeprefix('val/')} {value:.4f}"

    def _say(self, text: str) -> None:
        self._printed = time.monotonic()
        ended = sum(trial.ended() for trial in self.trials)
        print(f"[search] {ended} ended; {text}", flush=True)

    def _trial_of(self, trial: TuneTrial) -> Trial:
        # in population-based training a trial gets another's configuration, with that one's number
        return self.trials[self._numbers.setdefault(trial.trial_id, trial.config["trial"]["number"])]


class SameErrorStopper(tune.Stopper):
    """Ends the search once `SearchCallback.same_error` says why."""

    def __init__(self, callback: SearchCallback) -> None:
        self._callback = callback

    def __call__(self, trial_id: str, result: object) -> bool:
        """Return that no single trial is to end."""
        return False

    def stop_all(self) -> bool:
        """Return whether no further trial is to start; Tune calls this."""
        return bool(self._callback.same_error)


def run_trials(
    callback: SearchCallback,
    context: TrialContext,
    concurrency: int,
    remaining_s: float | None,
    trainable: Callable[[TrialConfig, TrialContext], None] = run_trial,
) -> None:
    """Run the trials that have not ended, and replay those that have; `callback.trials` then has the results.

    Args:
        callback: has the list of trials.
        context: what all trials share.
        concurrency: number of trials that run at the same time.
        remaining_s: remaining wall time of the budget in seconds; None: no limit.
        trainable: the function that Tune runs for a trial.

    Raises:
        UserError: the first trials ended by the same mistake of the user, which is named.
    """
    space = context.search.space
    params: dict[str, Any] = {}
    searcher, samples = None, 1
    if space.searcher == "tpe":
        samples = max(space.budget.trials or 0, len(callback.trials))
        numbers = iter(range(samples))
        searcher = TPESearcher(
            space,
            [trial.values for trial in callback.trials],
            lambda values: callback.propose(values, next(numbers)),
        )
    else:
        configs = [callback.propose(trial.values, trial.number)["trial"] for trial in callback.trials]
        params = {"trial": tune.grid_search(configs)}
    if remaining_s is not None:
        callback.set_deadline(time.monotonic() + remaining_s)
    stage = trial_stage(context.search, callback.trials[0].values if callback.trials else {})
    distributed = stage.cluster.workers > 1
    attempt = f"attempt-{time.time_ns():x}"
    tuner = tune.Tuner(
        tune.with_resources(tune.with_parameters(trainable, context=context), _resources(stage)),
        param_space=params,
        tune_config=tune.TuneConfig(
            search_alg=searcher,
            scheduler=build_scheduler(context),
            num_samples=samples,
            max_concurrent_trials=None if space.scheduler.kind == "pbt" else concurrency,
            time_budget_s=remaining_s,
            reuse_actors=not distributed,
            trial_dirname_creator=_folder_name,
        ),
        run_config=tune.RunConfig(
            name=attempt,
            storage_path=f"{context.folder}/ray",
            callbacks=[callback],
            stop=SameErrorStopper(callback),
            verbose=0,
            failure_config=tune.FailureConfig(max_failures=0),
        ),
    )
    if os.environ.get("SCALABLEVIT_RAY_LOGS") != "1":
        # hides the traceback of a failed trial, whose reason is in the list of trials
        logging.getLogger("ray.tune").setLevel(logging.CRITICAL)
    try:
        tuner.fit()
    finally:
        with suppress(OSError):  # a leftover is harmless, and must not hide an earlier exception
            filesystem, folder = open_filesystem(f"{context.folder}/ray/{attempt}")
            filesystem.delete_dir(folder)  # Tune's snapshots
    callback.interrupt()  # Tune does not report the end of a trial that it was starting when the wall time was up
    callback.drop_checkpoints()
    if callback.same_error:
        raise UserError(
            f"{SAME_ERRORS} trials ended by the same error, and none came to an evaluation, so the search stopped: "
            f"{callback.same_error}",
            where=context.folder,
            fix="correct that, and give the same command again: these trials are tried again",
        )


def _folder_name(trial: TuneTrial) -> str:
    """Return the name of Tune's folder of a trial: the number that `run_trial` reads from it."""
    return f"{trial.config['trial']['number']:04d}"


def _resources(stage: Stage) -> tune.PlacementGroupFactory:
    """Return what Tune reserves for a trial; one with several workers reserves them itself, by Ray Train.

    Its actor then reserves 1 byte of memory: a bundle must not be empty, and a fraction of a CPU would block workers
    that need all CPUs.
    """
    cluster = stage.cluster
    if cluster.workers > 1:
        return tune.PlacementGroupFactory([{"memory": 1}])
    bundle = {"CPU": cluster.cpus_per_worker}
    if cluster.gpus_per_worker:
        bundle["GPU"] = cluster.gpus_per_worker
    return tune.PlacementGroupFactory([bundle])


def build_scheduler(context: TrialContext) -> TrialScheduler:
    """Return the space's scheduler, which counts in epochs trained."""
    section = context.search.space.scheduler
    metric: dict[str, Any] = {"metric": "score", "mode": "max"}
    match section.kind:
        case "asha":
            stage = trial_stage(context.search, {})
            longest = context.epoch(stage, context.total_steps(stage))
            # one epoch beyond a trial's own end, so that it ends by itself and is not stopped meanwhile
            return ASHAScheduler(
                time_attr="epoch",
                max_t=longest + 1,  # type: ignore[arg-type]  # any unit of time, whole or not
                grace_period=section.grace_epochs,  # type: ignore[arg-type]
                reduction_factor=section.reduction_factor,
                **metric,
            )
        case "median":
            return MedianStoppingRule(time_attr="epoch", grace_period=section.grace_epochs, **metric)
        case "pbt":
            return PopulationBasedTraining(
                time_attr="epoch",
                perturbation_interval=section.perturb_epochs or 1.0,
                hyperparam_mutations={"trial": {"values": _mutations(context.search)}},
                custom_explore_fn=_clip_to_range(context.search),
                **metric,
            )
        case _:
            return FIFOScheduler()  # type: ignore[no-untyped-call]


def _mutations(search: Search) -> dict[str, Domain | list[Value]]:
    return {path: _domain(parameter) for path, parameter in search.space.parameters.items()}


def _domain(parameter: Distribution) -> Domain | list[Value]:
    domain: Domain
    if parameter.uniform is not None:
        domain = tune.uniform(*parameter.uniform)
    elif parameter.loguniform is not None:
        domain = tune.loguniform(*parameter.loguniform)
    else:
        return list(parameter.choice or [])
    return domain


def _clip_to_range(search: Search) -> Callable[[TrialConfig], TrialConfig]:
    """Return a function that clips values to their range: Tune multiplies them by 0.8 or 1.2 without regard to it."""

    def clip(config: TrialConfig) -> TrialConfig:
        values = config["trial"]["values"]
        for path, parameter in search.space.parameters.items():
            if (span := parameter.uniform or parameter.loguniform) is not None:
                values[path] = min(max(values[path], span[0]), span[1])
        return config

    return clip


def open_trials(search: Search, folder: str) -> list[Trial]:
    """Return the trials to run, as far as they are known; those of a random or grid search are stored here.

    Args:
        search: the search.
        folder: the search's folder in run storage, path or address.
    """
    trials = load_trials(folder)
    if search.space.searcher == "tpe":
        return trials
    all_values = enumerate_values(search.space)
    trials += [Trial(number, all_values[number]) for number in range(len(trials), len(all_values))]
    save_list(folder, trials)
    return trials
