"""What a trial tells Tune, without Tune."""

import math
import pickle
import traceback
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import Mock

import pytest
from ray import tune
from ray.tune.integration.ray_train import TuneReportCallback
from ray.tune.schedulers import TrialScheduler

from scalablevit.config.errors import TrainingFailed, UserError
from scalablevit.config.space import Search
from scalablevit.config.trial import trial_stage
from scalablevit.tracking.outbox import Outbox
from scalablevit.training import launch, loop, worker
from scalablevit.training.checkpoint import CheckpointStore, DamagedCheckpoint
from scalablevit.training.state import Record, Snapshot
from scalablevit.training.worker_result import WorkerResult
from scalablevit.tuning.search import SearchCallback, build_scheduler
from scalablevit.tuning.trial import (
    TrialContext,
    TrialDisturbed,
    TrialFailed,
    TrialReporter,
    check_sampled,
    reason_of,
    run_trial,
)
from scalablevit.tuning.trials import Trial, load_trials, save_list, trial_folder


@pytest.fixture
def context(make_search):
    return TrialContext(make_search(), "folder", "root", 64, None, "", True)


def reports(context, curve=()):
    return TrialReporter(context, trial_stage(context.search, {}), dict(curve))


def record(step, **metrics):
    return {"step": step, "time_ms": step, "metrics": {name.replace("_", "/"): v for name, v in metrics.items()}}


def test_a_result_is_an_evaluation_with_the_records_before_it(context):
    told = reports(context)
    assert told.add([record(1, train_loss=2.0)]) == []
    first, second = told.add([record(2, train_loss=1.0), record(2, val_loss=3.0), record(4, val_loss=5.0)])
    assert [each["step"] for each in first["records"]] == [1, 2, 2] and [e["step"] for e in second["records"]] == [4]
    assert (first["value"], first["score"]) == (3.0, -3.0)
    assert (second["value"], second["score"]) == (5.0, -3.0), "what counts is the best so far, here the least"
    assert first["epoch"] == 2.5 / 4 and second["step"] == 4


def test_an_evaluation_that_is_no_number_scores_worst(context):
    (result,) = reports(context).add([record(2, val_loss=math.nan)])
    assert result["score"] == -math.inf


def test_known_evaluations_are_replayed_and_not_told_twice(context):
    told = reports(context, {2: 3.0, 4: 1.0})
    assert [(each["step"], each["score"], each["records"]) for each in told.known_results()] == [
        (2, -3.0, []),
        (4, -1.0, []),
    ]
    assert told.add([record(4, val_loss=1.0)]) == []
    (result,) = told.add([record(6, val_loss=2.0)])
    assert result["score"] == -1.0 and len(result["records"]) == 2


def test_a_failing_trial_tells_what_it_had(context):
    told = reports(context)
    assert told.final_results() == []
    told.add([record(1, train_loss=2.0)])
    (result,) = told.final_results()
    assert result["records"] == [record(1, train_loss=2.0)] and result["score"] == -math.inf


@pytest.mark.parametrize("kind", ["asha", "median"])
def test_a_failing_trial_is_not_stopped_by_a_scheduler_before_it_has_failed(make_search, kind):
    """Between two evaluations it may pass an epoch at which trials are judged; it would be called stopped."""
    search = make_search(scheduler={"kind": kind, "grace_epochs": 1}, budget={"trials": 5})
    context = TrialContext(search, "folder", "root", 64, None, "", True)
    scheduler: Any = build_scheduler(context)
    controller = SimpleNamespace(get_live_trials=list)
    trials = [Mock(trial_id=str(number)) for number in range(5)]
    for trial in trials:
        scheduler.on_trial_add(controller, trial)
    for trial in trials[1:]:
        for good in reports(context).add([record(4, val_loss=0.5), record(8, val_loss=0.5)]):
            assert scheduler.on_trial_result(controller, trial, good) == TrialScheduler.CONTINUE
    failing = reports(context)
    failing.add([record(6, train_loss=2.0)])
    (result,) = failing.final_results()
    assert scheduler.on_trial_result(controller, trials[0], result) == TrialScheduler.CONTINUE
    judged = scheduler.on_trial_result(controller, trials[0], {**result, "epoch": 1.5})
    assert judged == TrialScheduler.STOP, "with an epoch it is stopped"


def test_records_of_several_workers_after_the_last_evaluation_are_reported_when_the_trial_fails(
    make_search, tmp_path, monkeypatch
):
    """Ray Train's controller, another process, had them."""
    reported: list[Any] = []
    monkeypatch.setattr(TuneReportCallback, "__init__", lambda _self: None)  # needs Tune's session
    monkeypatch.setattr(TuneReportCallback, "after_report", lambda _self, _context, given, _: reported.extend(given))
    monkeypatch.setattr(tune, "report", reported.append)

    def train(_stage: Any, _worker_config: Any, _folder: str, callbacks: list[Any]) -> WorkerResult:
        (there,) = pickle.loads(pickle.dumps(callbacks))  # noqa: S301
        there.after_report(None, [{"records": [record(1, train_loss=2.0), record(2, val_loss=3.0)]}, {}], None)
        there.after_report(None, [{"records": [record(3, train_loss=1.5), record(4, train_loss=math.nan)]}, {}], None)
        raise divergence("stop")

    monkeypatch.setattr(launch, "launch", train)
    monkeypatch.setattr(tune, "get_context", lambda: SimpleNamespace(get_trial_dir=lambda: f"{tmp_path}/ray/0000"))
    search = make_search(resources={"workers": 2, "cpus_per_worker": 1})
    context = TrialContext(search, str(tmp_path), str(tmp_path), 64, None, "", True)
    values = {"optimizer.lr": 0.002, "model.drop_path_rate": 0.1}
    with pytest.raises(TrialFailed):
        run_trial({"trial": {"number": 0, "values": values, "curve": []}}, context)
    assert [[each["step"] for each in result["records"]] for result in reported] == [[1, 2], [3, 4]]
    assert math.isnan(reported[1]["value"]) and math.isnan(reported[1]["records"][1]["metrics"]["train/loss"])


@pytest.mark.parametrize("retried", [False, True])
def test_records_that_were_reported_or_of_an_earlier_attempt_are_not_reported_again(
    make_search, tmp_path, monkeypatch, retried
):
    """The training fails right after an evaluation; tried again, it fails before its first report."""
    reported: list[Any] = []
    monkeypatch.setattr(TuneReportCallback, "__init__", lambda _self: None)  # needs Tune's session
    monkeypatch.setattr(TuneReportCallback, "after_report", lambda *_: None)
    monkeypatch.setattr(tune, "report", reported.append)

    def train(_stage: Any, _worker_config: Any, folder: str, callbacks: list[Any]) -> WorkerResult:
        (there,) = pickle.loads(pickle.dumps(callbacks))  # noqa: S301
        there.after_report(None, [{"records": [record(1, train_loss=2.0)]}], None)
        if not retried:
            there.after_report(None, [{"records": [record(2, val_loss=3.0)]}], None)
        monkeypatch.setattr(launch, "launch", fail)
        raise OSError(5, "Input/output error")

    def fail(*_: Any) -> WorkerResult:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(launch, "launch", train)
    monkeypatch.setattr(tune, "get_context", lambda: SimpleNamespace(get_trial_dir=lambda: f"{tmp_path}/ray/0000"))
    search = make_search(resources={"workers": 2, "cpus_per_worker": 1})
    context = TrialContext(search, str(tmp_path), str(tmp_path), 64, None, "", True)
    values = {"optimizer.lr": 0.002, "model.drop_path_rate": 0.1}
    for expected in ([[1]] if retried else [], []):
        reported.clear()
        with pytest.raises(TrialDisturbed):
            run_trial({"trial": {"number": 0, "values": values, "curve": []}}, context)
        assert [[point["step"] for point in result["records"]] for result in reported] == expected


def test_population_based_training_compares_the_weights_as_they_are(make_search):
    search = make_search(scheduler={"kind": "pbt", "perturb_epochs": 1})
    told = reports(TrialContext(search, "folder", "root", 64, None, "", True))
    assert [each["score"] for each in told.add([record(2, val_loss=3.0), record(4, val_loss=5.0)])] == [-3.0, -5.0]


def test_a_recipe_that_is_not_what_was_sampled_is_refused(context):
    stage = trial_stage(context.search, {"optimizer.lr": 0.002})
    check_sampled(stage, {"optimizer.lr": 0.002})
    with pytest.raises(TrialFailed, match=r"optimizer\.lr is 0\.002 in the trial's recipe, and 0\.003 was sampled"):
        check_sampled(stage, {"optimizer.lr": 0.003})


@pytest.mark.parametrize(
    ("error", "reason", "again"),
    [
        ("Traceback\n  x\nscalablevit.tuning.trial.TrialFailed: not finite\n", "not finite", True),
        ("Traceback\n  x\nRuntimeError: CUDA out of memory\n", "RuntimeError: CUDA out of memory", True),
        ("ValueError: s3://key:canary@bucket/x: denied\n", "ValueError: s3://***@bucket/x: denied", True),
        ("x\nOSError: [Errno 28] No space left on device\n", "OSError: [Errno 28] No space left on device", False),
        ("FileNotFoundError: no step 4\n", "FileNotFoundError: no step 4", False),
        ("scalablevit.tuning.trial.TrialDisturbed: disk full\nduring\n", "disk full", False),
        ("scalablevit.tuning.trial.TrialFailed: http://h/x?token=canary\n", "http://h/x?token=***", True),
        ("ray.exceptions.ActorDiedError: The actor died\n  because\n it was killed", "it was killed", False),
        ("", "it ended without a word", True),
    ],
)
def test_the_reason_is_what_the_traceback_ends_with(error, reason, again):
    assert reason_of(error) == (reason, again)


def divergence(action: str) -> UserError:
    """The error of a training whose step is not finite, in the training loop's words."""
    rule = SimpleNamespace(capture=False, action=action, limit=2)
    context: Any = SimpleNamespace(stage=SimpleNamespace(training=SimpleNamespace(nonfinite=rule)))
    state: Any = SimpleNamespace(step=5, skipped_in_row=2, roll_backs=2)
    ended = loop._handle_nonfinite(context, state, SimpleNamespace(), [])
    assert ended is not None and ended.reason == "not finite"
    return UserError(ended.detail, fix="lower optimizer.lr")


def divergence_at_log_point() -> UserError:
    """That of `action: stop`, which looks at the loss at log points only."""
    record = Record(20, 0, {"train/loss": math.nan, "train/grad_norm": math.nan})
    return UserError(loop._describe_nonfinite(record), fix="lower optimizer.lr")


NO_SPACE = OSError(28, "No space left on device")
MEMORY = "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2 GiB"


@pytest.mark.parametrize(
    ("workers", "failure", "reason", "kept"),
    [
        (1, divergence("stop"), "step 6 is not finite; weights and checkpoints are those before it fix: lower", True),
        (
            1,
            divergence_at_log_point(),
            "at or before step 20 the loss (nan) or gradient norm (nan) is not finite",
            True,
        ),
        (1, divergence("skip"), "after 2 skipped steps in a row (nonfinite.limit) fix: lower optimizer.lr", True),
        (2, divergence("rollback"), "after 2 roll-backs (nonfinite.limit) fix: lower optimizer.lr", True),
        (1, UserError("no drop path", where="model.drop_path_rate", fix="0"), "rate: no drop path fix: 0", True),
        (1, UserError("cannot be built", where="model", fix="correct"), "model: cannot be built fix: correct", True),
        (2, UserError("refused", where="optimizer.lr"), "optimizer.lr: refused", True),
        (1, RuntimeError(MEMORY), "RuntimeError: torch.OutOfMemoryError: CUDA out of memory", True),
        (2, TrainingFailed("runs/x", f"the workers failed\n{MEMORY}"), f"the workers failed {MEMORY}", True),
        (1, UserError("files have\nchanged", where="data", fix="put back"), "data: files have changed fix: put", False),
        (1, UserError("0 MiB are free", where="/runs", fix="free space"), "/runs: 0 MiB are free fix: free", False),
        (2, UserError("not the weights", where="w.pth", fix="copy"), "w.pth: not the weights fix: copy", False),
        (1, UserError("a step is not finite, and there is no checkpoint", fix="free space"), "free space", False),
        (2, TrainingFailed("runs/x", "there was no room for the workers"), "there was no room for the workers", False),
        (1, NO_SPACE, "OSError: [Errno 28] No space left on device", False),
        (1, FileNotFoundError("no checkpoint of step 4"), "FileNotFoundError: no checkpoint of step 4", False),
        (1, DamagedCheckpoint("x: expected sha256 1"), "DamagedCheckpoint: x: expected sha256 1", False),
    ],
)
def test_a_failure_is_kept_only_if_the_values_are_its_cause(
    workers: int,
    failure: Exception,
    reason: str,
    kept: bool,
    make_search: Callable[..., Search],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """From the worker's error by Tune's traceback to the trials of a resumed search."""

    def train(*_arguments: Any, **_options: Any) -> WorkerResult:
        if workers == 1 and isinstance(failure, UserError):
            return WorkerResult(error=failure)  # as `run` does
        raise failure

    monkeypatch.setattr(worker, "run", train)
    monkeypatch.setattr(launch, "launch", train)
    monkeypatch.setattr("scalablevit.tuning.trial.TrialCallback", lambda *_: None)  # needs Tune's session
    monkeypatch.setattr(tune, "get_context", lambda: SimpleNamespace(get_trial_dir=lambda: f"{tmp_path}/ray/0000"))
    search = make_search(resources={"workers": workers, "cpus_per_worker": 1})
    context = TrialContext(search, str(tmp_path), str(tmp_path), 64, None, "", True)
    trial = Trial(0, {"optimizer.lr": 0.002, "model.drop_path_rate": 0.1})
    save_list(context.folder, [trial])
    checkpoints = CheckpointStore(trial_folder(context.folder, 0))
    checkpoints.write(Snapshot(1, {}, {"step": 1}), None)
    config: Any = {"trial": {"number": 0, "values": trial.values, "curve": []}}
    error_file = tmp_path / "error.txt"
    with pytest.raises(Exception) as raised:  # noqa: PT011  # Tune catches whatever it is
        run_trial(config, context)
    error_file.write_text("".join(traceback.format_exception(raised.value)))
    callback = SearchCallback(context, [trial], Outbox(tmp_path / "outbox"), "1" * 32, "e")
    of_tune: Any = SimpleNamespace(trial_id="a", config=config, error_file=str(error_file))
    callback.on_trial_error(1, [of_tune], of_tune)
    assert trial.status == "failed" and reason in trial.reason, trial.reason
    (resumed,) = load_trials(context.folder)
    assert resumed.status == ("failed" if kept else "waiting")
    assert len(checkpoints.entries()) == (0 if kept else 1), "what is tried again continues from its checkpoint"
