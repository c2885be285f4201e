"""Only whole checkpoints count, and damage is found before use."""

import json
import os
import random

import pytest
import torch

from scalablevit.config.errors import UserError
from scalablevit.config.recipe import Keep
from scalablevit.run_files import MANIFEST
from scalablevit.training import checkpoint
from scalablevit.training.checkpoint import BackgroundWriter, CheckpointStore, DamagedCheckpoint, _own_sum
from scalablevit.training.state import Snapshot


def snapshot(step: int) -> Snapshot:
    generator = torch.Generator().manual_seed(step)
    stems = ("model", "optimizer")
    files = {stem: {"w": torch.randn(16, 3, generator=generator), "n": torch.tensor(step)} for stem in stems}
    return Snapshot(step, files, {"step": step, "history": []})


@pytest.fixture
def store(tmp_path) -> CheckpointStore:
    return CheckpointStore(str(tmp_path))


def test_round_trip_is_exact(store):
    name = store.write(snapshot(7), 0.5)
    found = store.newest()
    assert found is not None and found[0] == name
    for file, tensors in snapshot(7).files.items():
        for key, tensor in tensors.items():
            assert torch.equal(found[1].files[file][key], tensor)


def test_none_is_a_fresh_start(store):
    assert store.newest() is None


def test_a_folder_without_manifest_does_not_count_and_is_removed(store, tmp_path):
    kept = store.write(snapshot(3), None)
    torn = store.write(snapshot(9), None)
    (tmp_path / "checkpoints" / torn / MANIFEST).unlink()
    found = store.newest()
    assert found is not None and found[0] == kept
    store.remove_incomplete()
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == [kept]


@pytest.mark.parametrize("case", range(40))
def test_random_damage_is_caught_and_the_one_before_is_used(case, store, tmp_path):
    """A flipped bit, a cut, zeros, a file gone, or one from another step, in any file but the manifest."""
    kept = store.write(snapshot(3), None)
    other = store.write(snapshot(4), None)
    name = store.write(snapshot(9), None)
    rng = random.Random(case)
    folder = tmp_path / "checkpoints" / name
    victim = folder / rng.choice(sorted(p.name for p in folder.iterdir() if p.name != MANIFEST))
    content = bytearray(victim.read_bytes())
    match case % 5:
        case 0:
            content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
            victim.write_bytes(content)
        case 1:
            victim.write_bytes(content[: rng.randrange(len(content))])
        case 2:
            victim.write_bytes(bytes(len(content)))
        case 3:
            victim.unlink()
        case 4:
            victim.write_bytes((tmp_path / "checkpoints" / other / victim.name).read_bytes())
    with pytest.raises(DamagedCheckpoint, match=victim.name):
        store.read(name)
    found = store.newest()
    assert found is not None and found[0] == other != kept


def test_a_damaged_manifest_is_no_fresh_start(store, tmp_path):
    name = store.write(snapshot(9), None)
    (tmp_path / "checkpoints" / name / MANIFEST).write_text("{")
    with pytest.raises(UserError, match="every checkpoint of this run is damaged"):
        store.newest()


def test_all_damaged_is_a_hard_error(store, tmp_path):
    for step in (3, 9):
        name = store.write(snapshot(step), None)
        (tmp_path / "checkpoints" / name / "model.safetensors").write_bytes(b"")
    with pytest.raises(UserError, match="every checkpoint of this run is damaged"):
        store.newest()


@pytest.fixture
def unreadable_errors() -> list[OSError]:
    """Instead of an I/O error, the error of `unreadable`."""
    return []


@pytest.fixture
def unreadable(monkeypatch, unreadable_errors):
    """Ends of paths of files that storage does not give, or their folders' names: an I/O error."""
    names, read = set(), checkpoint.read

    def read_or_fail(filesystem, path):
        if any(path.endswith(name) or f"/{name}/" in path for name in names):
            raise unreadable_errors[0] if unreadable_errors else OSError(5, "Input/output error", path)
        return read(filesystem, path)

    monkeypatch.setattr(checkpoint, "read", read_or_fail)
    monkeypatch.setattr(checkpoint, "RETRY_PAUSES_S", (0.0, 0.0))
    return names


@pytest.mark.parametrize("file", ["", "/model.safetensors", "/state.json", f"/{MANIFEST}"])
def test_a_newest_one_that_cannot_be_read_is_passed_over_and_said(store, unreadable, file):
    kept, newest = store.write(snapshot(3), None), store.write(snapshot(9), None)
    unreadable.add(f"{newest}{file}")
    found = store.newest()
    assert found is not None and found[0] == kept
    note = store.note_on_passed_over(3)
    assert note.startswith("6 steps are done again") and newest in note
    assert "cannot be read: [Errno 5] Input/output error" in note and "\n" not in note
    unreadable.clear()
    found = store.newest()
    assert found is not None and found[0] == newest and store.note_on_passed_over(9) == "", "readable again"


@pytest.mark.parametrize("file", ["model.safetensors", MANIFEST])
@pytest.mark.parametrize("failures", [1, 2, 3])
def test_an_error_of_a_moment_does_not_end_the_export(store, monkeypatch, failures, file):
    store.write(snapshot(3), 0.5)
    best = store.write(snapshot(9), 0.9)
    remaining, pauses, read = [failures], [], checkpoint.read

    def read_or_fail(filesystem, path):
        if path.endswith(f"{best}/{file}") and remaining[0]:
            remaining[0] -= 1
            raise OSError(5, "Input/output error", path)
        return read(filesystem, path)

    monkeypatch.setattr(checkpoint, "read", read_or_fail)
    monkeypatch.setattr(checkpoint, "RETRY_PAUSES_S", (1.0, 4.0))
    monkeypatch.setattr(checkpoint.time, "sleep", pauses.append)
    if failures < 3:
        found = store.best(9)
        assert found is not None and found.name == best
    else:
        with pytest.raises(UserError, match="cannot be read"):
            store.best(9)
    assert pauses == [1.0, 4.0][:failures]


@pytest.mark.parametrize("failures", [1, 2, 3])
def test_an_error_of_a_moment_costs_no_steps(store, monkeypatch, failures):
    """A read is tried again after pauses; only after the last of them is an older checkpoint used."""
    older, newest = store.write(snapshot(3), None), store.write(snapshot(9), None)
    remaining, pauses, read = [failures], [], checkpoint.read

    def read_or_fail(filesystem, path):
        if path.endswith("model.safetensors") and newest in path and remaining[0]:
            remaining[0] -= 1
            raise OSError(5, "Input/output error", path)
        return read(filesystem, path)

    monkeypatch.setattr(checkpoint, "read", read_or_fail)
    monkeypatch.setattr(checkpoint, "RETRY_PAUSES_S", (1.0, 4.0))
    monkeypatch.setattr(checkpoint.time, "sleep", pauses.append)
    found = store.newest()
    assert found is not None and found[0] == (newest if failures < 3 else older)
    assert pauses == [1.0, 4.0][:failures] and (store.passed_over == {}) == (failures < 3)


def test_a_roll_back_never_goes_forward(store, unreadable):
    """The checkpoint of step 9 cannot be read at the start; training goes on from 3, and step 8 is not finite."""
    store.write(snapshot(3), None)
    ahead = store.write(snapshot(9), None)
    unreadable.add(ahead)
    found = store.newest()
    assert found is not None and found[1].step == 3
    unreadable.clear()
    found = store.newest(at_most=7)
    assert found is not None and found[1].step == 3
    for step in (5, 7):
        store.write(snapshot(step), None)
        store.prune(Keep(last=1, best=0))
        assert step in {entry.step for entry in store.entries()}, "the one ahead still does not count"
    found = store.newest(at_most=12)
    assert found is not None and found[1].step == 7, "training has left the one ahead"


def test_a_roll_back_without_a_checkpoint_behind_it_has_none(store, unreadable):
    store.write(snapshot(9), None)
    assert store.newest(at_most=7) is None


def test_one_that_cannot_be_read_is_never_deleted(store, unreadable):
    first, second = store.write(snapshot(3), 0.5), store.write(snapshot(4), 0.9)
    unreadable.add(second)
    store.remove_incomplete()
    store.prune(Keep(last=1, best=1))
    unreadable.clear()
    assert [entry.name for entry in store.entries()] == [first, second]


@pytest.mark.parametrize("damaged", [False, True])
def test_what_is_passed_over_takes_no_place_of_those_that_are_written_next(store, tmp_path, unreadable, damaged):
    """Training goes on from step 3: its checkpoints are older, by step, than the one of step 9 that is of no use."""
    store.write(snapshot(3), None)
    useless = store.write(snapshot(9), None)
    if damaged:
        (tmp_path / "checkpoints" / useless / "model.safetensors").write_bytes(b"x")
    else:
        unreadable.add(useless)
    assert store.newest() is not None
    for step in (5, 7, 9):
        store.write(snapshot(step), None)
        store.prune(Keep(last=1, best=0))
        found = CheckpointStore(str(tmp_path)).newest()
        assert found is not None and found[1].step == step, "a second failure would have lost everything"
    assert useless in {entry.name for entry in store.entries()}


DENIED = [PermissionError(13, "Permission denied"), OSError("When reading information: AWS Error ACCESS_DENIED")]


@pytest.mark.parametrize("denied", DENIED)
def test_if_none_may_be_read_nobody_is_told_to_start_again(store, tmp_path, unreadable, unreadable_errors, denied):
    names = [store.write(snapshot(step), None) for step in (3, 6, 9)]
    (tmp_path / "checkpoints" / names[0] / "model.safetensors").write_bytes(b"")
    unreadable.update(names[1:])
    unreadable_errors[:] = [denied]
    with pytest.raises(UserError, match="2 of 3 cannot be read") as caught:
        store.newest()
    assert all(name in str(caught.value) for name in names)
    assert "make them readable" in caught.value.fix and "start" not in caught.value.fix


@pytest.mark.parametrize("file", ["", f"/{MANIFEST}"])
def test_if_storage_gives_none_new_workers_may_try_again(store, tmp_path, unreadable, file):
    """A UserError would end the job: a restart uses what storage gives in a minute."""
    names = [store.write(snapshot(step), None) for step in (3, 6, 9)]
    (tmp_path / "checkpoints" / names[0] / "model.safetensors").write_bytes(b"")
    unreadable.update(f"{name}{file}" for name in names[1:])
    with pytest.raises(OSError, match="2 of 3 cannot be read") as caught:
        store.newest()
    assert not isinstance(caught.value, UserError)
    assert all(name in str(caught.value) for name in names)


@pytest.mark.parametrize("file", ["", "/model.safetensors", f"/{MANIFEST}"])
def test_a_best_one_that_cannot_be_read_is_not_replaced_by_the_next(store, unreadable, file):
    names = {step: store.write(snapshot(step), value) for step, value in ((1, 0.5), (2, 0.9), (3, 0.7))}
    unreadable.add(f"{names[2]}{file}")
    with pytest.raises(UserError, match=rf"{names[2]}, cannot be read: .*Input/output error") as caught:
        store.best(2)
    assert "move its folder away" in caught.value.fix
    unreadable.clear()
    best = store.best(2)
    assert best is not None and best.step == 2


def test_one_that_is_not_the_best_may_be_unreadable(store, unreadable):
    names = {step: store.write(snapshot(step), value) for step, value in ((1, 0.5), (2, 0.9), (3, 0.7))}
    again = store.write(snapshot(2), 0.9)  # a step that was done again, since its checkpoint could not be read
    unreadable.update((names[1], names[2]))
    best = store.best(2)
    assert best is not None and best.name == again


def test_a_manifest_may_not_lead_out_of_its_folder(store, tmp_path):
    name = store.write(snapshot(9), None)
    path = tmp_path / "checkpoints" / name / MANIFEST
    manifest = json.loads(path.read_text())
    manifest["files"]["../evil.safetensors"] = manifest["files"]["model.safetensors"]
    del manifest["sha256"]
    manifest["sha256"] = _own_sum(manifest)
    path.write_text(json.dumps(manifest))
    with pytest.raises(DamagedCheckpoint, match="leaves the folder"):
        store.read(name)


def test_retention_keeps_the_last_and_the_best(store):
    values = {1: 0.1, 2: 0.9, 3: 0.5, 4: None, 5: 0.9, 6: 0.2}
    for step, value in values.items():
        store.write(snapshot(step), value)
    store.prune(Keep(last=2, best=1))
    assert [entry.step for entry in store.entries()] == [2, 5, 6]
    best = store.best()
    assert best is not None and best.step == 2, "of equals the earlier is the best"


@pytest.mark.parametrize("victim", ["model.safetensors", "state.json"])
def test_a_damaged_best_gives_way_to_the_next(store, tmp_path, caplog, victim):
    names = {step: store.write(snapshot(step), value) for step, value in ((1, 0.5), (2, 0.9), (3, 0.7), (4, None))}
    (tmp_path / "checkpoints" / names[2] / victim).write_bytes(b"x")
    best = store.best()
    assert best is not None and best.step == 3
    assert names[2] in caplog.text and victim in caplog.text
    assert json.loads(store.verified_file(best.name, "state.json"))["step"] == 3


def test_no_whole_best_is_a_hard_error(store, tmp_path):
    for step, value in ((1, 0.5), (2, 0.9), (3, None)):
        name = store.write(snapshot(step), value)
        if value is not None:
            (tmp_path / "checkpoints" / name / "model.safetensors").unlink()
    with pytest.raises(UserError, match="every evaluated checkpoint of this run is damaged"):
        store.best()


def test_without_an_evaluation_there_is_no_best(store):
    store.write(snapshot(1), None)
    assert store.best() is None


def test_every_value_of_a_manifest_is_covered_by_its_sum(store, tmp_path):
    name = store.write(snapshot(9), 0.5)
    path = tmp_path / "checkpoints" / name / MANIFEST
    whole = path.read_bytes()
    for key, value in json.loads(whole).items():
        path.write_text(json.dumps(json.loads(whole) | {key: [value]}))
        with pytest.raises(DamagedCheckpoint, match=r"manifest\.json is not readable"):
            store.read(name)
        assert store.entries()[0].value is None, "a damaged one is never the best"
    path.write_bytes(whole)
    assert store.read(name).step == 9


def test_a_manifest_of_version_1_has_no_sum(store, tmp_path):
    name = store.write(snapshot(9), 0.5)
    path = tmp_path / "checkpoints" / name / MANIFEST
    manifest = json.loads(path.read_text()) | {"version": 1}
    del manifest["sha256"]
    path.write_text(json.dumps(manifest))
    assert store.read(name).step == 9 and store.entries()[0].value == 0.5


@pytest.mark.parametrize("manifest", ['{"step": 9, "value": 0.5, "written": 1.0}', "[]"])
def test_a_manifest_of_another_form_is_damage(store, tmp_path, manifest):
    name = store.write(snapshot(9), 0.5)
    (tmp_path / "checkpoints" / name / MANIFEST).write_text(manifest)
    with pytest.raises(DamagedCheckpoint, match="is not readable"):
        store.read(name)


def test_a_file_is_checked_against_its_sum(store, tmp_path):
    name = store.write(snapshot(9), 0.5)
    assert json.loads(store.verified_file(name, "state.json"))["step"] == 9
    (tmp_path / "checkpoints" / name / "state.json").write_text("{}")
    with pytest.raises(DamagedCheckpoint, match=r"state\.json: expected sha256"):
        store.verified_file(name, "state.json")
    with pytest.raises(DamagedCheckpoint, match="is missing"):
        store.verified_file(name, "ema.safetensors")


def test_of_one_step_the_one_written_last_counts_whatever_the_folders_times(store, tmp_path):
    names = [store.write(snapshot(9), None) for _ in range(6)]
    for age, name in enumerate(names):
        os.utime(tmp_path / "checkpoints" / name, (1e9 - age, 1e9 - age))
    assert [entry.name for entry in store.entries()] == names
    store.prune(Keep(last=1, best=0))
    assert [entry.name for entry in store.entries()] == names[-1:]


def test_a_full_disk_leaves_the_one_before(store, tmp_path, monkeypatch):
    kept = store.write(snapshot(3), None)
    real_put, written = CheckpointStore._put, []

    def fails_at_second(self, path, content):
        written.append(path)
        if len(written) == 2:
            raise OSError(28, "No space left on device")
        real_put(self, path, content)

    monkeypatch.setattr(CheckpointStore, "_put", fails_at_second)
    writer = BackgroundWriter(store, Keep())
    writer.submit(snapshot(9), None)
    writer.wait()
    assert writer.failed is not None and "No space left" in writer.failed
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == [kept], "the torn folder is still there"
    writer.submit(snapshot(10), 0.5)
    writer.wait()
    assert writer.failed is None
    found = store.newest()
    assert found is not None and found[1].step == 10
    assert writer.missing_best(10) == writer.missing_best(None) == ""
    assert "of step 9, are not stored" in writer.missing_best(9) and "No space left" in writer.missing_best(9)


def test_a_best_one_that_is_of_no_use_does_not_count_as_stored(store, tmp_path):
    """Its step was done again, and the second checkpoint of that step could not be written."""
    store.write(snapshot(3), None)
    damaged = store.write(snapshot(9), 0.5)
    writer = BackgroundWriter(store, Keep())
    assert writer.missing_best(9) == ""
    (tmp_path / "checkpoints" / damaged / "model.safetensors").write_bytes(b"x")
    assert store.newest() is not None
    assert "of step 9, are not stored" in writer.missing_best(9)


def test_too_little_space_is_said_before_training(store):
    with pytest.raises(UserError, match=r"checkpoints need .* MiB .* are free"):
        store.check_space(2**60, Keep())
