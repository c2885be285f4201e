"""What a trial takes over from another one under population-based training, without Ray."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from ray import tune

from scalablevit.config.space import Search
from scalablevit.config.trial import trial_stage
from scalablevit.training.checkpoint import CheckpointStore
from scalablevit.training.state import Record, TrainState
from scalablevit.tuning.population import pointer_checkpoint, segment_folder, write_recipe
from scalablevit.tuning.trials import trial_folder


def new_state() -> TrainState:
    model = torch.nn.Linear(2, 2)
    return TrainState(model, torch.optim.AdamW(model.parameters(), lr=0.1))


def trained() -> TrainState:
    """A state with weights, moments and an evaluation at step 4, halfway to a log point."""
    state = new_state()
    for _ in range(4):
        state.model(torch.ones(1, 2)).sum().backward()
        state.optimizer.step()
        state.add_step({"train/loss": torch.tensor(1.0)}, [])
        state.step += 1
    state.history.append(Record(4, 1000, {"val/loss": 0.5}))
    state.add_evaluation({"val/loss": 0.5}, -0.5)
    state.add_evaluation({"val/loss": 0.6}, -0.6)
    return state


def test_weights_come_from_the_newest_own_checkpoint_that_is_whole(
    make_search: Callable[..., Search], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its training has passed over the damaged one of a later step."""
    search = make_search(scheduler={"kind": "pbt", "perturb_epochs": 1})
    folder = trial_folder(str(tmp_path), 0)
    write_recipe(f"{folder}/segment-000", trial_stage(search, {"optimizer.lr": 0.001}))
    store, state = CheckpointStore(f"{folder}/segment-000"), trained()
    store.write(state.snapshot(), -0.6)
    state.step = 9
    damaged = store.write(state.snapshot(), -0.5)
    (Path(store.folder) / damaged / "model.safetensors").write_bytes(b"x")
    monkeypatch.setattr(tune, "get_checkpoint", lambda: None)
    (entry,) = CheckpointStore(segment_folder(folder, trial_stage(search, {"optimizer.lr": 0.002}))).entries()
    assert (entry.step, entry.value) == (4, -0.6)


@pytest.mark.parametrize("donor", [1, 0])
def test_weights_come_from_another_trial_but_not_its_evaluations(
    donor: int, make_search: Callable[..., Search], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Trial 0 continues with other values: from trial 1's checkpoint, or from its own."""
    search = make_search(scheduler={"kind": "pbt", "perturb_epochs": 1})
    own_folder = trial_folder(str(tmp_path), 0)
    source = f"{trial_folder(str(tmp_path), donor)}/segment-000"
    for number in {0, donor}:
        write_recipe(f"{trial_folder(str(tmp_path), number)}/segment-000", trial_stage(search, {"optimizer.lr": 0.001}))
    state = trained()
    stored = state.snapshot()
    CheckpointStore(source).write(stored, -0.6)
    with pointer_checkpoint(source, 4) as passed:
        monkeypatch.setattr(tune, "get_checkpoint", lambda: passed)
        folder = segment_folder(own_folder, trial_stage(search, {"optimizer.lr": 0.002}))
    assert folder == f"{own_folder}/segment-001"
    (entry,) = CheckpointStore(folder).entries()
    restored = new_state()
    restored.restore(CheckpointStore(folder).read(entry.name))
    assert restored.step == 4
    for stem, tensors in restored.snapshot().files.items():
        assert tensors.keys() == stored.files[stem].keys()
        assert all(torch.equal(tensor, stored.files[stem][name]) for name, tensor in tensors.items()), stem
    if donor == 0:
        assert entry.value == -0.6 and restored.snapshot().meta == stored.meta
    else:
        fresh = {**new_state().snapshot().meta, "step": 4}
        assert entry.value is None and restored.snapshot().meta == fresh
