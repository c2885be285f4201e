"""Checkpoints as faults leave them: damaged at random, cut off by a kill at any file operation, or on a full disk.

SCALABLEVIT_SEED sets the seed of the random damage.
"""

import json
import multiprocessing
import os
import random
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from harness import saving
from harness.saving import STEMS, snapshot

from scalablevit.config.errors import UserError
from scalablevit.run_files import MANIFEST, STATE
from scalablevit.training.checkpoint import CheckpointStore, DamagedCheckpoint
from scalablevit.training.state import Snapshot

SEED = int(os.environ.get("SCALABLEVIT_SEED", "0"))
DAMAGED = 200


def same(found: Snapshot, wanted: Snapshot) -> bool:
    return found.meta == wanted.meta and all(
        torch.equal(found.files[stem][key], tensor)
        for stem, tensors in wanted.files.items()
        for key, tensor in tensors.items()
    )


# --- random damage ---

damage = pytest.mark.row("Checkpoints: random corruptions caught before use")
torn = pytest.mark.row("Checkpoints: a save killed at every file operation, a full disk")


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with checkpoints of steps 3, 6 and 9, and `other` with step 9 of another attempt at the same run."""
    root = tmp_path_factory.mktemp("whole")
    for step in (3, 6, 9):
        CheckpointStore(str(root / "run")).write(snapshot(step), step / 10)
    CheckpointStore(str(root / "other")).write(snapshot(9, attempt=1), 0.9)
    return root


Damage = Callable[[Path, random.Random], str]


def _some_file(folder: Path, draw: random.Random) -> Path:
    return draw.choice(sorted(folder.iterdir()))


def truncated(folder: Path, draw: random.Random) -> str:
    file = _some_file(folder, draw)
    kept = draw.randrange(file.stat().st_size)
    os.truncate(file, kept)
    return f"{file.name} cut to {kept} bytes"


def emptied(folder: Path, draw: random.Random) -> str:
    file = _some_file(folder, draw)
    os.truncate(file, 0)
    return f"{file.name} empty"


def zeroed(folder: Path, draw: random.Random) -> str:
    file = _some_file(folder, draw)
    content = bytearray(file.read_bytes())
    first = draw.randrange(len(content))
    last = draw.randrange(first + 1, len(content) + 1)
    while not any(content[first:last]):  # zeros already: no damage
        first, last = 0, len(content)
    content[first:last] = bytes(last - first)
    file.write_bytes(content)
    return f"{file.name} zero from {first} to {last}"


def bit_flipped(folder: Path, draw: random.Random) -> str:
    file = _some_file(folder, draw)
    content = bytearray(file.read_bytes())
    at, bit = draw.randrange(len(content)), draw.randrange(8)
    content[at] ^= 1 << bit
    file.write_bytes(content)
    return f"{file.name} bit {bit} of byte {at}"


def removed(folder: Path, draw: random.Random) -> str:
    file = draw.choice([file for file in sorted(folder.iterdir()) if file.name != MANIFEST])
    file.unlink()
    return f"{file.name} gone"


def of_another_step(folder: Path, draw: random.Random) -> str:
    other = next(each for each in folder.parent.iterdir() if each.name.startswith("step_000000006"))
    file = _some_file(folder, draw)
    shutil.copy(other / file.name, file)
    return f"{file.name} from step 6"


def of_another_attempt(folder: Path, draw: random.Random) -> str:
    """Some files of one attempt, some of another at the same step."""
    (other,) = (folder.parents[2] / "other" / "checkpoints").iterdir()
    files = sorted(folder.iterdir())
    mixed = draw.sample(files, draw.randrange(1, len(files)))
    for file in mixed:
        shutil.copy(other / file.name, file)
    return f"{', '.join(file.name for file in mixed)} from another attempt"


def renamed(folder: Path, draw: random.Random) -> str:
    """All of step 6 under the name of step 9."""
    other = next(each for each in folder.parent.iterdir() if each.name.startswith("step_000000006"))
    shutil.rmtree(folder)
    shutil.copytree(other, folder)
    return "step 6 under the name of step 9"


KINDS: list[Damage] = [
    truncated, emptied, zeroed, bit_flipped, bit_flipped, bit_flipped, removed, of_another_step, of_another_attempt,
    renamed,
]  # fmt: skip


def newest_folder(run: Path) -> Path:
    return max((run / "checkpoints").iterdir(), key=lambda folder: folder.name[:14])


@damage
@pytest.mark.parametrize("number", range(DAMAGED))
def test_damage_is_caught_and_the_one_before_is_used(number: int, whole: Path, tmp_path: Path):
    shutil.copytree(whole, tmp_path, dirs_exist_ok=True)
    draw = random.Random(f"{SEED} {number}")
    folder = newest_folder(tmp_path / "run")
    said = f"seed {SEED} {number}: {KINDS[number % len(KINDS)](folder, draw)}"
    print(said)
    store = CheckpointStore(str(tmp_path / "run"))
    with pytest.raises((DamagedCheckpoint, ValueError, KeyError, TypeError)):
        store.read(folder.name)
    found = store.newest()
    assert found is not None and same(found[1], snapshot(6)), said
    # the best one was the damaged one too: what is exported is verified alike
    best = store.best()
    assert best is not None and best.step == 6, said


@damage
@pytest.mark.parametrize("number", range(20))
def test_all_damaged_is_a_hard_error(number: int, whole: Path, tmp_path: Path):
    shutil.copytree(whole, tmp_path, dirs_exist_ok=True)
    draw = random.Random(f"all {SEED} {number}")
    folders = sorted((tmp_path / "run" / "checkpoints").iterdir())
    kinds = [truncated, emptied, zeroed, bit_flipped, removed]
    said = [f"{folder.name[:14]}: {draw.choice(kinds)(folder, draw)}" for folder in folders]
    print(f"seed {SEED} {number}", *said, sep="\n")
    store = CheckpointStore(str(tmp_path / "run"))
    with pytest.raises(UserError) as caught:
        store.newest()
    assert all(folder.name in str(caught.value) for folder in folders)
    try:  # None where not one manifest can be read: what is exported then is refused for want of an evaluation
        assert store.best() is None
    except UserError as error:
        assert "is damaged" in str(error)


@damage
def test_any_bit_of_a_manifest(whole: Path, tmp_path: Path):
    shutil.copytree(whole, tmp_path, dirs_exist_ok=True)
    folder = newest_folder(tmp_path / "run")
    content = (folder / MANIFEST).read_bytes()
    store = CheckpointStore(str(tmp_path / "run"))
    draw = random.Random(f"manifest {SEED}")
    for bit in draw.sample(range(8 * len(content)), 400):
        damaged = bytearray(content)
        damaged[bit // 8] ^= 1 << bit % 8
        (folder / MANIFEST).write_bytes(damaged)
        with pytest.raises(DamagedCheckpoint):
            store.read(folder.name)


@damage
def test_the_refusal_names_file_and_both_sums(whole: Path, tmp_path: Path):
    shutil.copytree(whole, tmp_path, dirs_exist_ok=True)
    folder = newest_folder(tmp_path / "run")
    expected = json.loads((folder / MANIFEST).read_text())["files"]["ema.safetensors"]["sha256"]
    (folder / "ema.safetensors").write_bytes(b"x")
    actual = "2d711642b726b04401627ca9fbac32f5c8530fb1903cc4db02258717921a4881"
    with pytest.raises(DamagedCheckpoint, match=rf"ema\.safetensors: expected sha256 {expected}, found {actual}"):
        CheckpointStore(str(tmp_path / "run")).read(folder.name)


# --- killed at every file operation, and a full disk ---


@pytest.fixture(scope="module")
def saves(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[Path]]:
    """Run folders as `saving.py` left them: one for each operation it was killed at, one for each limit of a file."""
    root = tmp_path_factory.mktemp("saves")
    store = CheckpointStore(str(root / "before"))
    for step in (3, 6):
        store.write(snapshot(step), step / 10)
    # a fork of this process, which has imported torch; each save is one of that
    process = multiprocessing.get_context("fork").Process(target=saving.main, args=(root,))
    process.start()
    process.join(240)
    assert process.exitcode == 0, process.exitcode
    return {kind: sorted(root.glob(f"{kind}_*")) for kind in ("killed", "full")}


@torn
def test_no_torn_checkpoint_is_ever_selected(saves: dict[str, list[Path]]):
    assert len(saves["killed"]) > 40
    steps = []
    for run in saves["killed"]:
        store = CheckpointStore(str(run))
        found = store.newest()
        assert found is not None and same(found[1], snapshot(found[1].step)), run.name
        steps.append(found[1].step)
        best = store.best()
        assert best is not None and best.step == found[1].step, run.name
        store.remove_incomplete()
        left = sorted((run / "checkpoints").iterdir())
        assert {file.name for folder in left for file in folder.iterdir()} == {
            *(f"{stem}.safetensors" for stem in STEMS), STATE, MANIFEST,
        }, run.name  # fmt: skip
        assert store.write(snapshot(12), 1.2) and store.newest()[1].step == 12
    assert set(steps) == {6, 9}, "some kills come before the new one counts, some after"
    assert steps == sorted(steps), "once it counts, it counts for good"


@torn
def test_a_full_disk_leaves_the_one_before_and_no_rubbish(saves: dict[str, list[Path]]):
    """The limit is the size of a file, which the system enforces as it does the end of a disk."""
    assert len(saves["full"]) >= 8
    for run in saves["full"]:
        found = CheckpointStore(str(run)).newest()
        assert found is not None and same(found[1], snapshot(6)), run.name
        folders = sorted((run / "checkpoints").iterdir())
        assert [folder.name[:14] for folder in folders] == ["step_000000003", "step_000000006"], run.name
        assert not [file for file in run.rglob("*") if file.name.endswith(".part")]
        assert "File too large" in (run / "failed.txt").read_text(), run.name
