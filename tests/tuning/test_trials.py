"""What a search knows of its trials, and what it leaves of them."""

import csv
import io
import math

from scalablevit.pipeline.search import _update_status
from scalablevit.runs.lease import Lease
from scalablevit.runs.run_store import RunStore
from scalablevit.runs.status import Best, StatusFile, read_status
from scalablevit.training.checkpoint import CheckpointStore
from scalablevit.training.state import Snapshot
from scalablevit.tuning.trials import (
    Trial,
    drop_checkpoints,
    load_trials,
    rank_trials,
    save_list,
    table,
    trial_folder,
    write_result,
)


def trial(number, curve, status="finished", **values):
    return Trial(number, values or {"optimizer.lr": 0.1 * (number + 1)}, status, curve=curve)


def test_best_is_the_best_evaluation_the_earliest_of_equals_and_never_nan():
    assert trial(0, {1: 0.2, 2: 0.5, 3: 0.5, 4: math.nan}).best("max") == (2, 0.5)
    assert trial(0, {1: 0.2, 2: 0.5, 4: math.nan}).best("min") == (1, 0.2)
    assert trial(0, {4: math.nan}).best("max") is None and trial(0, {}).best("max") is None


def test_ranking_leaves_out_failures_and_breaks_ties_by_number():
    trials = [trial(0, {1: 0.5}), trial(1, {1: 0.9}, "failed"), trial(2, {1: 0.7}, "stopped"), trial(3, {1: 0.7})]
    assert [each.number for each in rank_trials(trials, "max")] == [2, 3, 0]
    assert [each.number for each in rank_trials(trials, "min")] == [0, 2, 3]


def test_list_and_results_come_back(tmp_path):
    folder = str(tmp_path)
    trials = [trial(0, {5: 0.25, 10: 0.5}), Trial(1, {"optimizer.lr": 0.2}), trial(2, {}, "failed")]
    trials[2].reason = "the loss is not finite"
    save_list(folder, trials)
    for each in trials:
        if each.ended():
            write_result(folder, each)
    assert load_trials(folder) == trials
    assert load_trials(str(tmp_path / "nothing")) == []


def test_checkpoints_stay_of_the_best_and_of_those_that_still_train(tmp_path):
    folder = str(tmp_path)
    trials = [trial(number, {1: value}) for number, value in enumerate((0.1, 0.4, 0.3, 0.2))]
    trials[0].status = "running"
    for each in trials:
        CheckpointStore(trial_folder(folder, each.number)).write(Snapshot(1, {}, {"step": 1}), 0.0)
    drop_checkpoints(folder, trials, "max", keep_best=2, dropped=set())
    left = [bool(CheckpointStore(trial_folder(folder, each.number)).entries()) for each in trials]
    assert left == [True, True, True, False]


def test_checkpoints_are_looked_for_once_a_trial_however_many_trials_there_are(tmp_path, monkeypatch):
    """Each trial's end drops those that are no longer among the best: 40 trials are 38 folders, not hundreds."""
    looked, remove = [], CheckpointStore.remove_all
    monkeypatch.setattr(CheckpointStore, "remove_all", lambda store: looked.append(store.folder) or remove(store))
    folder, dropped = str(tmp_path), set()
    trials = [trial(number, {}, "waiting") for number in range(40)]
    for each in trials:  # from the worst to the best: each of them is among the best at first
        CheckpointStore(trial_folder(folder, each.number)).write(Snapshot(1, {}, {"step": 1}), 0.0)
        each.status, each.curve = "finished", {1: 0.01 * each.number}
        drop_checkpoints(folder, trials, "max", 2, dropped)
    assert sorted(looked) == [CheckpointStore(trial_folder(folder, number)).folder for number in range(38)]
    left = [each.number for each in trials if CheckpointStore(trial_folder(folder, each.number)).entries()]
    assert left == [38, 39]


def test_the_table_has_a_row_for_each_trial():
    trials = [trial(0, {4: 0.5, 8: 0.25}), Trial(1, {"optimizer.lr": 0.2}, "failed", 'exploded, "badly"')]
    rows = list(csv.DictReader(io.StringIO(table(trials, "min", {0: 4.0, 1: 4.0}))))
    assert rows[0] == {"trial": "0", "status": "finished", "best": "0.25", "at_step": "8", "epochs_trained": "2.0",
                       "optimizer.lr": "0.1", "reason": ""}  # fmt: skip
    assert (rows[1]["best"], rows[1]["reason"]) == ("", 'exploded, "badly"')


def test_a_searchs_status_counts_ended_trials_and_has_their_best(make_search, tmp_path):
    search = make_search()
    trials = [Trial(0, {}, "finished", curve={4: 0.5, 8: 0.75}), Trial(1, {}, "stopped", curve={4: 0.25}),
              Trial(2, {}, "failed", curve={4: 0.1}), Trial(3, {})]  # fmt: skip
    store = RunStore.open("search", None, tmp_path)
    with Lease(store) as lease, StatusFile(store, lease, "pretrain", 0, "trials", "sqlite:////m.db") as file:
        _update_status(file, search, trials)
        found = read_status(store.local)
    assert (found.state, found.step, found.total, found.unit) == ("running", 3, 4, "trials")
    assert found.best == Best("val/loss", 0.25, 4)
