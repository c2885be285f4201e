"""What a trial tells Tune, without Tune."""

import math

import pytest

from scalablevit.config.trial import trial_stage
from scalablevit.tuning.trial import TrialContext, TrialFailed, TrialReporter, check_sampled, reason_of


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
        ("OSError: s3://key:canary@bucket/x: denied\n", "OSError: s3://***@bucket/x: denied", True),
        ("scalablevit.tuning.trial.TrialFailed: http://h/x?token=canary\n", "http://h/x?token=***", True),
        ("ray.exceptions.ActorDiedError: The actor died\n  because\n it was killed", "it was killed", False),
        ("", "it ended without a word", True),
    ],
)
def test_the_reason_is_what_the_traceback_ends_with(error, reason, again):
    assert reason_of(error) == (reason, again)
