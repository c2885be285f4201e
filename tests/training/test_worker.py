"""What a rank says of its start and end, and what it refuses to start from."""

import hashlib
import time
from pathlib import Path

import pytest
import torch
from harness.ranks import Attempt, newest, run_attempts
from safetensors.torch import save_file

from scalablevit.models.backbone import build_classifier
from scalablevit.run_files import START_NOTE
from scalablevit.training import loop, worker
from scalablevit.training.attempt_events import StartupTimings
from scalablevit.training.checkpoint import CheckpointStore
from scalablevit.training.device_name import device_name
from scalablevit.training.worker import WorkerConfig

SHAPES = 6
"""Classes of the demo data."""
SHORT = {"steps": 2, "global_batch_size": 4, "evaluate_every": {"steps": 2}, "log_every_steps": 1}


def worker_config(stage, folder: Path, **options) -> WorkerConfig:
    return WorkerConfig(stage.model_dump_json(), str(folder), str(folder), **{"init_weights": None, **options})


def run(given: WorkerConfig):
    return worker.run(given, 0, 1, torch.device("cpu"), lambda records, node: None)


@pytest.fixture
def weights(make_stage, tmp_path) -> Path:
    path, model = tmp_path / "weights.safetensors", make_stage().model
    built = build_classifier(model.name, SHAPES, **model.options)
    save_file({k: v.contiguous() for k, v in built.state_dict().items()}, path)
    return path


def test_each_attempt_notes_what_it_started_from(make_stage, tmp_path, weights):
    stage = make_stage(training={**SHORT, "steps": 4, "seed": 11, "checkpoint_every": {"steps": 1}})
    fresh = worker_config(stage, tmp_path / "run")
    note = tmp_path / "run" / START_NOTE
    run_attempts([Attempt(fresh, stop_at=0)], 1, tmp_path)
    assert note.read_text() == "random weights (seed 11)"
    run_attempts([Attempt(fresh, stop_at=2)], 1, tmp_path)
    name = CheckpointStore(str(tmp_path / "run")).entries()[-1].name
    run_attempts([Attempt(fresh)], 1, tmp_path)
    assert note.read_text() == f"resumed at step 2 from {name}"
    ended = run(worker_config(stage, tmp_path / "other", init_weights=str(weights))).training
    assert ended is not None and ended.device == device_name(torch.device("cpu")) != ""
    assert (tmp_path / "other" / START_NOTE).read_text().startswith("initial weights: ")
    assert str(weights) in (tmp_path / "other" / START_NOTE).read_text()


def test_an_attempt_notes_newer_checkpoints_that_it_does_not_use(make_stage, tmp_path):
    stage = make_stage(training={**SHORT, "steps": 4, "checkpoint_every": {"steps": 1}, "keep": {"last": 4}})
    given, store = worker_config(stage, tmp_path / "run"), CheckpointStore(str(tmp_path / "run"))
    run_attempts([Attempt(given, stop_at=3)], 1, tmp_path)
    first, *newer = [entry.name for entry in store.entries()]
    for name in newer:
        (tmp_path / "run" / "checkpoints" / name / "model.safetensors").write_bytes(b"x")
    timings = StartupTimings(time.time())
    ended = worker.run(given, 0, 1, torch.device("cpu"), lambda records, node: None, timings=timings).training
    assert ended is not None and ended.step == 4
    note = (tmp_path / "run" / START_NOTE).read_text()
    said = "2 steps are done again, since newer checkpoints are not used"
    assert note.startswith(f"resumed at step 1 from {first}; {said} (")
    assert len(newer) == 2 and all(f"{name}: " in note for name in newer)
    assert timings.passed_over.startswith(said) and note.endswith(timings.passed_over)


def test_a_worker_that_is_started_directly_refuses_single_images_under_batch_norm(make_segmentation, tmp_path):
    stage = make_segmentation(task={"head": "upernet"}, training={**SHORT, "global_batch_size": 1})
    error = run(worker_config(stage, tmp_path / "run")).error
    assert error is not None and "upernet's batch norm" in str(error) and "fix: at least 2" in str(error)


def test_an_attempt_notes_when_it_came_how_far(make_stage, tmp_path):
    given, timings = worker_config(make_stage(training=SHORT), tmp_path / "run"), StartupTimings(time.time())
    worker.run(given, 0, 1, torch.device("cpu"), lambda records, node: None, timings=timings)
    assert timings.entered < timings.opened < timings.built < timings.first_step <= time.time()


@pytest.mark.parametrize("evaluate_only", [False, True])
def test_initial_weights_other_than_the_jobs_are_refused(make_stage, tmp_path, weights, evaluate_only):
    stage = make_stage(training=SHORT)
    found = hashlib.sha256(weights.read_bytes()).hexdigest()
    options = {"init_weights": str(weights), "evaluate_only": evaluate_only}
    what, where, _ = run(worker_config(stage, tmp_path / "run", **options, init_sha256="0" * 64)).error.args
    assert f"expected sha256 {'0' * 64}" in what and f"found {found}" in what
    assert where == str(weights)
    result = run(worker_config(stage, tmp_path / "run", **options, init_sha256=found))
    assert result.error is None


def test_the_history_is_sent_again_at_once(make_stage, tmp_path):
    stage = make_stage(training={**SHORT, "steps": 6, "checkpoint_every": {"steps": 1}})
    given = worker_config(stage, tmp_path / "run")
    run_attempts([Attempt(given, stop_at=5)], 1, tmp_path)
    history = [record["step"] for record in newest(str(tmp_path / "run")).meta["history"]]
    assert len(history) > 5
    sent = []
    worker.run(given, 0, 1, torch.device("cpu"), lambda records, node: sent.append([r.step for r in records]))
    assert sent[0] == history


def test_a_best_checkpoint_that_was_not_written_is_said_at_the_end(make_stage, tmp_path, monkeypatch):
    real = CheckpointStore.write

    def full_at_two(self, snapshot, value):
        if snapshot.step == 2:
            raise OSError(28, "No space left on device")
        return real(self, snapshot, value)

    monkeypatch.setattr(CheckpointStore, "write", full_at_two)
    # a rate of nearly nothing: the first evaluation stays the best
    result = run(worker_config(make_stage(optimizer={"lr": 1e-12}, training={**SHORT, "steps": 4}), tmp_path / "run"))
    assert (result.training.reason, result.training.best_step) == ("finished", 2)
    assert "of step 2, are not stored" in result.training.detail and "No space left" in result.training.detail


def test_a_stored_best_checkpoint_needs_no_words(make_stage, tmp_path):
    stage = make_stage(optimizer={"lr": 1e-12}, training={**SHORT, "steps": 4})
    assert run(worker_config(stage, tmp_path / "run")).training.detail == ""


@pytest.fixture
def _torch_as_before():
    backends = ("flash", "mem_efficient", "cudnn")
    before = {name: getattr(torch.backends.cuda, f"{name}_sdp_enabled")() for name in backends}
    benchmark = torch.backends.cudnn.benchmark
    yield
    torch.use_deterministic_algorithms(False)
    torch.backends.cudnn.benchmark = benchmark
    for name, enabled in before.items():
        getattr(torch.backends.cuda, f"enable_{name}_sdp")(enabled)


@pytest.mark.usefixtures("_torch_as_before")
def test_operations_without_a_deterministic_form_are_named_and_do_not_end_training(make_stage, tmp_path, monkeypatch):
    step = loop.train_step

    def with_put(plan, model, state, micro):
        torch.zeros(3).put_(torch.tensor([0]), torch.ones(1))  # has no deterministic form on any device
        return step(plan, model, state, micro)

    monkeypatch.setattr(loop, "train_step", with_put)
    result = run(worker_config(make_stage(training={**SHORT, "deterministic": True}), tmp_path / "run"))
    assert result.training.reason == "finished"
    (said,) = result.nondeterministic
    assert "put_" in said and said.endswith("does not have a deterministic implementation")
    assert not torch.backends.cuda.flash_sdp_enabled() and not torch.backends.cuda.mem_efficient_sdp_enabled()


def test_without_the_wish_nothing_is_named(make_stage, tmp_path):
    assert run(worker_config(make_stage(training=SHORT), tmp_path / "run")).nondeterministic == []
