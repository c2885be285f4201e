"""Steps that are infinite or not a number on one rank only: skipped, rolled back, stopped, captured, replayed."""

import json
import math
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
import safetensors.torch
import torch
from harness.ranks import POISONS, Attempt, run_attempts

from scalablevit.config.errors import UserError
from scalablevit.config.recipe import Keep
from scalablevit.training import loop
from scalablevit.training.callbacks import WorkerCallbacks
from scalablevit.training.checkpoint import BackgroundWriter, CheckpointStore
from scalablevit.training.replay import replay
from scalablevit.training.state import Snapshot
from scalablevit.training.worker import WorkerConfig

KINDS = sorted(POISONS)
STEPS = 9
POISONED = {1 + 2 * number: (1, kind) for number, kind in enumerate(KINDS)}
"""Each kind once, at positions that are not in a row."""


def worker_config(stage, folder: Path) -> WorkerConfig:
    return WorkerConfig(stage.model_dump_json(), str(folder), str(folder), None)


def sections(action, **not_finite):
    return {
        "data": {"mixup": 0.8, "random_erasing": 0.25},
        "model": {"name": "scalablevit_tiny", "drop_path_rate": 0.2},
        "training": {
            "steps": STEPS, "global_batch_size": 8, "ema_decay": 0.9, "accumulation_steps": 2, "log_every_steps": 1,
            "evaluate_every": {"steps": STEPS}, "checkpoint_every": {"steps": 1}, "keep": {"last": 20},
            "nonfinite": {"action": action, **not_finite},
        },
    }  # fmt: skip


def at(folder: Path, step: int):
    """The checkpoint after so many steps."""
    store = CheckpointStore(str(folder))
    (name,) = [entry.name for entry in store.entries() if entry.step == step]
    return store.read(name)


def same(one, other) -> bool:
    return one.files.keys() == other.files.keys() and all(
        torch.equal(tensor, other.files[file][name])
        for file, tensors in one.files.items()
        for name, tensor in tensors.items()
    )


def metrics_of(result, step: int) -> dict[str, float]:
    return {k: v for r in result["records"] if r["step"] == step for k, v in r["metrics"].items()}


@pytest.fixture(scope="module")
def two_ranks(make_stage, tmp_path_factory):
    """All attempts on two ranks in one start of the processes; by name their folder and result."""
    folder = tmp_path_factory.mktemp("not-finite")
    made: dict[str, Attempt] = {}

    def attempt(name, run, action, poison, stop_at=None, other=None, **not_finite):
        parts = sections(action, **not_finite)
        for section, values in (other or {}).items():
            parts[section] = {**parts[section], **values}
        stage = make_stage(**parts, cluster={"workers": 2})
        made[name] = Attempt(worker_config(stage, folder / run), stop_at, poison)

    attempt("clean", "clean", "skip", {})
    attempt("skip", "skip", "skip", POISONED, limit=1)
    attempt("skip, killed", "skip-killed", "skip", POISONED, stop_at=6)
    attempt("skip, resumed", "skip-killed", "skip", POISONED)
    attempt("skip, too often", "often", "skip", {n: (n % 2, KINDS[0]) for n in (1, 2, 3)}, limit=2)
    few = {"steps": 3, "evaluate_every": {"steps": 3}}
    batch_norm = {"model": {"name": "test_resnet", "drop_path_rate": None}, "training": {
        **sections("skip")["training"], **few, "global_batch_size": 6, "accumulation_steps": 1}}  # fmt: skip
    attempt("batch norm", "batch-norm", "skip", {1: (0, KINDS[0])}, other=batch_norm)
    sparse = {"training": {**sections("rollback")["training"], "checkpoint_every": {"steps": 2}}}
    attempt("roll back", "back", "rollback", {5: (1, KINDS[0])}, other=sparse)
    attempt("roll back, killed", "back-killed", "rollback", {5: (1, KINDS[0])}, stop_at=7, other=sparse)
    attempt("roll back, resumed", "back-killed", "rollback", {5: (1, KINDS[0])}, other=sparse)
    at_once = {"training": {**sparse["training"], **few}}
    attempt("roll back at once", "at-once", "rollback", {0: (0, KINDS[0])}, other=at_once)
    attempt("roll back, too often", "back-often", "rollback", dict.fromkeys(range(2, 20), (1, KINDS[0])), limit=2,
            capture=True)  # fmt: skip
    attempt("stop", "stop", "stop", POISONED, capture=True)
    attempt("stop, then skip", "stop", "skip", POISONED)
    results = run_attempts(list(made.values()), 2, folder)
    return {name: (Path(each.worker_config.run_folder), result) for (name, each), result in
            zip(made.items(), results, strict=True)}  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
def test_a_skipped_step_changes_nothing_on_any_rank(two_ranks, kind):
    folder, result = two_ranks["skip"]
    assert result["reason"] == "finished" and result["step"] == STEPS
    position = 1 + 2 * KINDS.index(kind)
    before, after = at(folder, position), at(folder, position + 1)
    assert same(before, after), "the step left a trace"
    assert not same(after, at(folder, position + 2)), "training did not go on"
    assert (after.meta["skipped"], after.meta["roll_backs"]) == (1 + KINDS.index(kind), 0)
    assert metrics_of(result, position + 1)["train/skipped_steps"] == 1 + KINDS.index(kind)
    assert "train/loss" not in metrics_of(result, position + 1), "a skipped step has no loss"
    assert all(math.isfinite(value) for step in range(1, STEPS + 1) for value in metrics_of(result, step).values())
    assert all(torch.isfinite(tensor).all() for tensor in at(folder, STEPS).files["model"].values())


def test_looking_at_steps_changes_none_before_a_skipped_one(two_ranks):
    assert same(at(two_ranks["clean"][0], 1), at(two_ranks["skip"][0], 1))
    assert same(at(two_ranks["clean"][0], 4), at(two_ranks["roll back"][0], 4))


def test_resumed_behind_a_skipped_step_it_ends_the_same(two_ranks):
    assert two_ranks["skip, killed"][1] == {}
    folder, result = two_ranks["skip, resumed"]
    assert result["step"] == STEPS
    assert same(at(folder, STEPS), at(two_ranks["skip"][0], STEPS))
    assert at(folder, STEPS).meta["skipped"] == len(KINDS)


def test_too_many_skipped_steps_in_a_row_end_the_run(two_ranks):
    folder, result = two_ranks["skip, too often"]
    assert "the loss or gradient of step 4 is not finite, after 2 skipped steps in a row" in result["error"][0]
    assert max(entry.step for entry in CheckpointStore(str(folder)).entries()) == 3
    _, result = two_ranks["skip"]  # four of them, none behind another, with a limit of 1
    assert result["reason"] == "finished"


def test_batch_statistics_of_a_skipped_step_are_left_out(two_ranks):
    folder, result = two_ranks["batch norm"]
    assert result["reason"] == "finished"
    before = at(folder, 1)
    assert any("running_mean" in name for name in before.files["model"])
    assert same(before, at(folder, 2))
    assert not same(before, at(folder, 3)), "training did not go on"


def test_a_roll_back_goes_on_behind_the_bad_samples(two_ranks):
    """Step 6 is bad: back to 4; the samples of steps 5 and 6 are passed over."""
    folder, result = two_ranks["roll back"]
    assert result["reason"] == "finished" and result["step"] == STEPS
    last = at(folder, STEPS)
    assert (last.meta["roll_backs"], last.meta["passed_over"], last.meta["skipped"]) == (1, 2, 0)
    clean = two_ranks["clean"][0]
    assert same(at(folder, 4), at(clean, 4))
    assert not same(at(folder, 6), at(clean, 6)), "other samples"
    assert metrics_of(result, STEPS)["train/roll_backs"] == 1


def test_records_of_steps_done_again_after_a_roll_back_say_so(two_ranks):
    """Step 5 was done twice, with other samples: without the number, its second record would pass for a repetition."""
    _, result = two_ranks["roll back"]
    records = [(record["step"], record.get("roll_backs", 0)) for record in result["records"]
               if "train/loss" in record["metrics"]]  # fmt: skip
    assert records == [(1, 0), (2, 0), (3, 0), (4, 0), (5, 0), (5, 1), (6, 1), (7, 1), (8, 1), (9, 1)]
    (evaluated,) = [record for record in result["records"] if "val/is_best" in record["metrics"]]
    assert (evaluated["step"], evaluated["roll_backs"]) == (STEPS, 1)


def test_a_roll_back_does_not_go_forward_to_what_could_not_be_read_at_the_start(tmp_path):
    """A training that goes on from step 3 finds step 9 readable when step 8 is not finite."""
    store = CheckpointStore(str(tmp_path))
    for step in (3, 9):
        store.write(Snapshot(step, {}, {"step": step}), None)
    restored = []
    state = SimpleNamespace(step=7, restore=lambda snapshot: restored.append(snapshot.step))
    given = SimpleNamespace(writer=BackgroundWriter(store, Keep()), _context=SimpleNamespace(rank=0))
    WorkerCallbacks.rollback(given, state)
    assert restored == [3]


def test_resumed_after_a_roll_back_it_ends_the_same(two_ranks):
    assert two_ranks["roll back, killed"][1] == {}
    folder, result = two_ranks["roll back, resumed"]
    assert result["step"] == STEPS
    assert same(at(folder, STEPS), at(two_ranks["roll back"][0], STEPS))


def test_the_first_step_can_be_rolled_back(two_ranks):
    folder, result = two_ranks["roll back at once"]
    assert result["reason"] == "finished"
    assert at(folder, 3).meta["passed_over"] == 1


def test_too_many_roll_backs_end_the_run(two_ranks):
    _, result = two_ranks["roll back, too often"]
    assert "is not finite, after 2 roll-backs" in result["error"][0]
    assert "optimizer.lr" in result["error"][2]


def test_only_the_first_ten_steps_of_a_run_are_captured(make_stage):
    """Each is as large as a checkpoint, and `skip` goes on for ever where steps between are finite."""
    context = SimpleNamespace(stage=make_stage(**sections("skip", capture=True)))
    state = SimpleNamespace(step=0, skipped=0, roll_backs=0, skipped_in_row=0, skip_step=lambda: None)
    captured = []
    callbacks = SimpleNamespace(capture=lambda state, _: captured.append(state.skipped))
    for state.skipped in range(15):
        assert loop._handle_nonfinite(context, state, callbacks, []) is None
    assert captured == list(range(10))


def test_a_step_that_fails_again_after_a_roll_back_does_not_replace_the_first_capture(two_ranks):
    folder, _ = two_ranks["roll back, too often"]
    captured = sorted(path.name for path in (folder / "nonfinite").iterdir())
    assert captured == ["step_000000002", "step_000000002_rollback_1", "step_000000002_rollback_2"]


def test_a_captured_step_can_be_taken_again(two_ranks):
    folder, result = two_ranks["stop"]
    assert "the loss or gradient of step 2 is not finite" in result["error"][0]
    captured = folder / "nonfinite" / "step_000000001"
    facts = json.loads((captured / "step.json").read_text())
    assert (facts["world"], facts["state"]["step"]) == (2, 1)
    found = replay(captured)
    assert found.ranks == 2 and found.losses.keys() == {(0, 0), (0, 1), (1, 0), (1, 1)}
    assert all(math.isfinite(value) for value in found.losses.values()), "the poison was in the code, not the samples"
    assert found.not_finite == [] and found.gradient_norm > 0
    clean = two_ranks["clean"][1]
    loss = sum(found.losses.values()) / 4  # equal shares of 2 samples
    assert loss == pytest.approx(metrics_of(clean, 2)["train/loss"], rel=1e-5)
    assert found.gradient_norm == pytest.approx(metrics_of(clean, 2)["train/grad_norm"], rel=1e-4)


def test_a_captured_micro_batch_without_samples_is_taken_again(two_ranks, tmp_path):
    """As captured before training put blank images there; the other micro-batches decide the gradient."""
    whole, captured = two_ranks["stop"][0] / "nonfinite" / "step_000000001", tmp_path / "step"
    shutil.copytree(whole, captured)
    file = captured / "batches-rank1.safetensors"
    tensors = safetensors.torch.load_file(file)
    empty = {"1/samples": torch.tensor(0), "1/images": torch.empty((0, 0, 0, 3), dtype=torch.uint8)}
    empty |= {name: tensors[name][:0] for name in ("1/labels", "1/indices")}
    safetensors.torch.save_file(tensors | empty, file)
    result = replay(captured)
    assert result.losses.keys() == {(0, 0), (0, 1), (1, 0), (1, 1)} and result.losses[1, 1] > 0
    assert result.not_finite == [] and 0 < result.gradient_norm != replay(whole).gradient_norm


@pytest.mark.parametrize("key", ["world", "stage", "classes", "state"])
def test_a_captured_step_that_lacks_a_part_is_named(two_ranks, tmp_path, key):
    captured = tmp_path / "step"
    shutil.copytree(two_ranks["stop"][0] / "nonfinite" / "step_000000001", captured)
    facts = json.loads((captured / "step.json").read_text())
    del facts[key]
    (captured / "step.json").write_text(json.dumps(facts))
    with pytest.raises(UserError, match=f"holds no whole captured step: '{key}'"):
        replay(captured)


def test_a_run_that_stopped_goes_on_with_another_action(two_ranks):
    """The action is no part of a run's identity."""
    folder, result = two_ranks["stop, then skip"]
    assert result["reason"] == "finished"
    assert same(at(folder, STEPS), at(two_ranks["skip"][0], STEPS))


def test_replay_names_the_first_module_and_the_gradients_that_are_not_finite(make_stage, tmp_path):
    """A rate that blows the weights up: then the samples are innocent, and the model says where it happens."""
    stage = make_stage(
        optimizer={"lr": 10.0, "name": "sgd", "weight_decay": 0.0},
        training={"steps": 60, "global_batch_size": 8, "evaluate_every": {"steps": 60}, "log_every_steps": 60,
                  "nonfinite": {"capture": True}},
    )  # fmt: skip
    (result,) = run_attempts([Attempt(worker_config(stage, tmp_path))], 1, tmp_path)
    assert "not finite" in result["error"][0]
    (captured,) = (tmp_path / "nonfinite").iterdir()
    found = replay(captured)
    assert not math.isfinite(found.gradient_norm)
    assert found.not_finite, "nothing is named"
