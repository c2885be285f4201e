"""What a trial, and a search, leave for MLflow at their end."""

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from scalablevit.config.errors import UserError
from scalablevit.config.space import Search
from scalablevit.config.trial import trial_stage
from scalablevit.pipeline import search as pipeline_search
from scalablevit.pipeline.search import SearchResult, _save_results
from scalablevit.tracking.outbox import Outbox, read_lines
from scalablevit.tracking.records import EndRecord, MetricsRecord, StepMetrics, TagsRecord
from scalablevit.tuning import search as tuning_search
from scalablevit.tuning.population import write_recipe
from scalablevit.tuning.search import SearchCallback, run_trials, trial_uid
from scalablevit.tuning.trial import TrialContext
from scalablevit.tuning.trials import Trial, trial_folder


@pytest.mark.parametrize(
    ("metric", "mode", "curve", "expected"),
    [
        ("val/loss", "min", {3: 0.5, 6: 0.25, 9: 0.75}, [(6, {"best/loss": 0.25})]),
        ("val/top1", "max", {3: 0.5, 6: 0.25}, [(3, {"best/top1": 0.5})]),
        ("val/top1", "max", {}, []),
    ],
)
def test_trials_sort_by_their_best_value(
    metric: str, mode: str, curve: dict[int, float], expected: list[Any], tmp_path: Path
) -> None:
    space = SimpleNamespace(metric=metric, mode=mode, scheduler=SimpleNamespace(kind="asha"), keep_best=1)
    context: Any = SimpleNamespace(search=SimpleNamespace(space=space), folder=str(tmp_path))
    trial = Trial(0, {"optimizer.lr": 0.1})
    trial.curve.update(curve)
    outbox = Outbox(tmp_path / "outbox")
    SearchCallback(context, [trial], outbox, "1" * 32, "e")._end(trial, "finished", "")
    records = [line.record for line in read_lines(outbox.folder)]
    assert [(each.step, each.metrics) for each in records if isinstance(each, MetricsRecord)] == expected


def test_evaluations_that_a_roll_back_has_undone_do_not_rank_an_interrupted_trial(tmp_path: Path) -> None:
    space = SimpleNamespace(metric="val/loss", mode="min")
    context: Any = SimpleNamespace(search=SimpleNamespace(space=space), folder=str(tmp_path))
    trial, outbox = Trial(0, {"optimizer.lr": 0.1}), Outbox(tmp_path / "outbox")
    points: list[StepMetrics] = [
        {"step": step, "time_ms": step, "metrics": {"val/loss": value}, "roll_backs": roll_backs}
        for step, value, roll_backs in ((3, 0.5, 0), (6, 0.75, 0), (9, 0.25, 0), (6, 0.625, 1))
    ]
    outbox.metrics(trial_uid("1" * 32, 0), points)
    SearchCallback(context, [trial], outbox, "1" * 32, "e")
    assert trial.curve == {3: 0.5, 6: 0.625}


def test_a_trial_that_was_starting_when_the_wall_time_was_up_is_unfinished(
    make_search: Callable[..., Search], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    context = TrialContext(make_search(), str(tmp_path), "root", 64, None, "", True)
    trial, outbox = Trial(0, {"optimizer.lr": 0.002, "model.drop_path_rate": 0.1}), Outbox(tmp_path / "outbox")
    callback = SearchCallback(context, [trial], outbox, "1" * 32, "e")

    class Starting:
        def __init__(self, *arguments: object, **options: object) -> None: ...

        def fit(self) -> None:
            tunes: Any = SimpleNamespace(trial_id="a", config={"trial": {"number": 0}})
            callback.on_trial_start(0, [], tunes)

    monkeypatch.setattr(tuning_search.tune, "Tuner", Starting)
    run_trials(callback, context, concurrency=1, remaining_s=1.0)
    assert trial.status == "unfinished"
    ends = [line.record.status for line in read_lines(outbox.folder) if isinstance(line.record, EndRecord)]
    assert ends == ["KILLED"]


REFUSED = "scalablevit.tuning.trial.TrialRefused: data.val: cannot read b.png fix: restore the file\n"


@pytest.mark.parametrize(
    ("errors", "curve", "stopped"),
    [
        ([REFUSED] * 3, {}, True),
        ([REFUSED] * 2, {}, False),
        ([REFUSED, REFUSED.replace("b.png", "c.png"), REFUSED], {}, False),
        ([REFUSED] * 3, {4: 0.5}, False),
        (["scalablevit.tuning.trial.TrialFailed: not finite\n"] * 3, {}, False),
        (["scalablevit.tuning.trial.TrialDisturbed: OSError: disk full\n"] * 3, {}, False),
        (["ray.exceptions.ActorDiedError: gone\n"] * 3, {}, False),
    ],
)
def test_a_search_whose_first_trials_end_by_one_mistake_stops_and_says_it(
    make_search: Callable[..., Search], tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    errors: list[str], curve: dict[int, float], stopped: bool,
) -> None:  # fmt: skip
    context = TrialContext(make_search(), str(tmp_path), "root", 64, None, "", True)
    values = {"optimizer.lr": 0.002, "model.drop_path_rate": 0.1}
    trials = [
        *(Trial(number, values) for number in range(len(errors))),
        Trial(len(errors), values, "finished", curve=curve),
    ]
    callback = SearchCallback(context, trials, Outbox(tmp_path / "outbox"), "1" * 32, "e")

    class Failing:
        def __init__(self, *arguments: object, **options: Any) -> None:
            self.stopper = options["run_config"].stop

        def fit(self) -> None:
            for number, error in enumerate(errors):
                assert not self.stopper.stop_all() and not self.stopper("a", {})
                (tmp_path / "error.txt").write_text(f"Traceback\n{error}")
                config = {"trial": {"number": number}}
                tunes: Any = SimpleNamespace(trial_id=str(number), config=config, error_file=tmp_path / "error.txt")
                callback.on_trial_error(1, [tunes], tunes)
            assert self.stopper.stop_all() == stopped
            if stopped:  # Tune stops and reports those that run
                trials[-1].status = "running"
                config = {"trial": {"number": len(errors)}}
                running: Any = SimpleNamespace(trial_id="running", config=config, last_result={})
                callback.on_trial_complete(1, [running], running)

    monkeypatch.setattr(tuning_search.tune, "Tuner", Failing)
    if not stopped:
        run_trials(callback, context, concurrency=1, remaining_s=None)
        return
    with pytest.raises(UserError) as caught:
        run_trials(callback, context, concurrency=1, remaining_s=None)
    assert caught.value.what.startswith("3 trials ended by the same error, and none came to an evaluation, so")
    assert caught.value.what.endswith("data.val: cannot read b.png fix: restore the file") and caught.value.fix
    assert trials[-1].status == "unfinished", "it continues with the search"


def save(context: TrialContext, trials: list[Trial], best: Trial, folder: Path) -> dict[str, str]:
    """End a search with these trials, and return the tags that it has then."""
    step, value = best.best("min") or (0, 0.0)
    outbox = Outbox(folder / "outbox")
    _save_results(context, SearchResult("s", "1" * 32, folder, tuple(trials), best, step, value), outbox)
    records = [line.record for line in read_lines(outbox.folder)]
    return {name: text for each in records if isinstance(each, TagsRecord) for name, text in each.tags.items()}


def test_a_resumed_search_replaces_its_results(
    make_search: Callable[..., Search], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The number of trials is the same before and after; MLflow shows the point of the highest step."""
    monkeypatch.setattr(pipeline_search, "save_plots", lambda *_: [])
    context = TrialContext(make_search(), str(tmp_path), "root", 64, None, "", True)
    values = {"optimizer.lr": 0.002, "model.drop_path_rate": 0.1}
    trials = [Trial(0, values, "finished", curve={4: 0.5, 8: 0.5}), Trial(1, values, "unfinished", curve={4: 0.6})]
    save(context, trials, trials[0], tmp_path)
    trials[1].status = "stopped"  # at once, by the evaluation that was known
    save(context, trials, trials[0], tmp_path)
    trials[1].status, trials[1].curve[8] = "finished", 0.25
    tags = save(context, trials, trials[1], tmp_path)
    points = [line.record for line in read_lines(tmp_path / "outbox") if isinstance(line.record, MetricsRecord)]
    values_by_step = {point.step: point.metrics for point in points}
    assert len(values_by_step) == 3
    latest = values_by_step[max(values_by_step)]
    assert (latest["search/best"], latest["trials/finished"], latest["trials/unfinished"]) == (0.25, 2.0, 0.0)
    assert min(values_by_step) > len(trials), "earlier versions stored the number of trials as step"
    assert tags["checkpoint"] == f"{tmp_path}/trials/0001/checkpoints"


def test_under_pbt_the_checkpoint_is_the_latest_segments(
    make_search: Callable[..., Search], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pipeline_search, "save_plots", lambda *_: [])
    search = make_search(scheduler={"kind": "pbt", "perturb_epochs": 1})
    context = TrialContext(search, str(tmp_path), "root", 64, None, "", True)
    best = Trial(0, {"optimizer.lr": 0.002, "model.drop_path_rate": 0.1}, "finished", curve={8: 0.5})
    for index in range(2):
        write_recipe(f"{trial_folder(context.folder, 0)}/segment-{index:03d}", trial_stage(search, best.values))
    tags = save(context, [best], best, tmp_path)
    assert tags["checkpoint"] == f"{tmp_path}/trials/0000/segment-001/checkpoints"
