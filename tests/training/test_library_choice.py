"""The library of a run's linear layers: decided once, kept in folder and checkpoints, and an error where it is not."""

import json
from unittest.mock import patch

import pytest
import torch
from harness.ranks import Attempt, newest, run_attempts
from torch import nn

from scalablevit.config.errors import UserError
from scalablevit.models.cpu_linear import OneDNNLinear, is_available
from scalablevit.run_files import CPU_LINEAR
from scalablevit.training import library_choice, worker
from scalablevit.training.checkpoint import CheckpointStore
from scalablevit.training.library_choice import choose_library, library_for_all_ranks
from scalablevit.training.state import TrainState
from scalablevit.training.worker import WorkerConfig

pytestmark = pytest.mark.skipif(not is_available(), reason="this torch has no oneDNN")

CPU = torch.device("cpu")
AMD = "vendor_id\t: AuthenticAMD\ncpu family\t: 26\nflags\t: avx512f\n"


def stage_with(make_stage, **training):
    return make_stage(training={"steps": 2, "global_batch_size": 4, "evaluate_every": {"steps": 2}, "ema_decay": 0.9,
                                "checkpoint_every": {"steps": 1}, **training})  # fmt: skip


@pytest.fixture
def on_amd(tmp_path, monkeypatch):
    monkeypatch.setattr(library_choice, "CPUINFO", tmp_path / "cpuinfo")
    (tmp_path / "cpuinfo").write_text(AMD)


def test_a_run_keeps_the_library_with_which_it_began(make_stage, tmp_path, on_amd):
    """`auto` on a machine where it means oneDNN; then the machine is another."""
    folder, stage = tmp_path / "run", stage_with(make_stage)
    given = WorkerConfig(stage.model_dump_json(), str(folder), str(folder), None)
    run_attempts([Attempt(given, stop_at=0)], 1, tmp_path)
    assert (folder / CPU_LINEAR).read_text() == "onednn\n" and not CheckpointStore(str(folder)).entries()
    (tmp_path / "cpuinfo").write_text("")
    run_attempts([Attempt(given, stop_at=1)], 1, tmp_path)
    (folder / CPU_LINEAR).unlink()
    with patch.object(library_choice, "choose_library") as choice, patch.object(
        worker, "train", side_effect=lambda context, state, callbacks: layers_of(state)
    ), pytest.raises(_Seen) as seen:  # fmt: skip
        worker._run(
            given, 0, 1, CPU, lambda *_: None, worker.PreemptionPoller(lambda: False, worker.StartupTimings(0), 1.0)
        )
    assert not choice.called and newest(str(folder)).meta["cpu_linear"] == "onednn"
    assert seen.value.args == ("onednn", {OneDNNLinear}), "both the model and its average"


class _Seen(Exception):
    """The library of a state, and the classes of its linear layers."""


def layers_of(state: TrainState) -> None:
    models = (state.model, state.evaluated)
    raise _Seen(state.cpu_linear, {type(m) for model in models for m in model.modules() if isinstance(m, nn.Linear)})


def test_checkpoints_of_before_the_choice_go_on_with_torch(make_stage, tmp_path, on_amd):
    stage, folder = stage_with(make_stage), tmp_path / "run"
    model = nn.Linear(1, 1)
    snapshot = TrainState(model, torch.optim.SGD(model.parameters()), cpu_linear="onednn").snapshot()
    assert library_for_all_ranks(stage, snapshot, str(folder), 0, CPU) == "onednn"
    del snapshot.meta["cpu_linear"]
    assert library_for_all_ranks(stage, snapshot, str(folder), 0, CPU) == "torch"
    assert json.loads(json.dumps(snapshot.meta)) == snapshot.meta


def test_another_library_than_at_the_start_is_refused(make_stage, tmp_path):
    folder = str(tmp_path / "run")
    assert library_for_all_ranks(stage_with(make_stage, cpu_linear="torch"), None, folder, 0, CPU) == "torch"
    with pytest.raises(UserError, match=r"training.cpu_linear: this run began with torch, .* with onednn"):
        library_for_all_ranks(stage_with(make_stage, cpu_linear="onednn"), None, folder, 0, CPU)
    (tmp_path / "run" / CPU_LINEAR).write_text("mkl\n")
    with pytest.raises(UserError, match=r"cpu_linear.txt: is none of torch, onednn, got 'mkl'"):
        library_for_all_ranks(stage_with(make_stage), None, folder, 0, CPU)


def test_other_ranks_take_the_choice_of_rank_0(make_stage, tmp_path, monkeypatch):
    def broadcast(values, src):
        assert values == [None] and src == 0
        values[0] = "onednn"

    monkeypatch.setattr(library_choice, "world_size", lambda: 2)
    monkeypatch.setattr(library_choice.dist, "broadcast_object_list", broadcast)
    stage, folder = stage_with(make_stage, cpu_linear="torch"), str(tmp_path / "run")
    assert library_for_all_ranks(stage, None, folder, 1, CPU) == "onednn"
    assert not (tmp_path / "run").exists(), "only rank 0 writes"
    monkeypatch.setattr(library_choice, "is_available", lambda: False)
    with pytest.raises(UserError, match=r"training.cpu_linear: torch .* has no oneDNN, with which this run computes"):
        library_for_all_ranks(stage, None, folder, 1, CPU)


def test_only_eager_float32_on_a_cpu_has_a_choice(make_stage, on_amd, tmp_path, monkeypatch):
    stage = stage_with(make_stage)
    assert choose_library(stage, CPU) == "onednn"
    for other in ({"precision": "bfloat16"}, {"compile": "blocks"}, {"compile": True}, {"cpu_linear": "torch"}):
        assert choose_library(stage_with(make_stage, **other), CPU) == "torch", other
    assert choose_library(stage_with(make_stage, cpu_linear="onednn"), torch.device("cuda")) == "torch"
    monkeypatch.setattr(library_choice, "is_available", lambda: False)
    assert choose_library(stage, CPU) == "torch"
    monkeypatch.undo()
    monkeypatch.setattr(library_choice, "CPUINFO", tmp_path / "none")
    assert choose_library(stage, CPU) == "torch"
    assert choose_library(stage_with(make_stage, cpu_linear="onednn"), CPU) == "onednn"
