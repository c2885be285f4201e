"""A run trains on the data that its driver listed, whatever happens to the folders meanwhile."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from harness.ranks import Attempt, newest, run_attempts

from scalablevit.config.data import SPLITS
from scalablevit.config.errors import UserError
from scalablevit.data import contents
from scalablevit.data.sources.node_cache import VARIABLE
from scalablevit.data.sources.opening import open_source
from scalablevit.training import worker
from scalablevit.training.data_listing import LISTINGS, open_stored, store_listings
from scalablevit.training.worker import WorkerConfig

KINDS = ["classification", "segmentation", "detection"]
SHORT = {"steps": 4, "global_batch_size": 8, "evaluate_every": {"steps": 2}, "log_every_steps": 1}


@pytest.fixture
def data(shapes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv(VARIABLE, str(tmp_path / "cache"))
    for kind in KINDS:
        shutil.copytree(shapes / kind, tmp_path / "data" / kind)
    return tmp_path / "data"


def stored(stage, data: Path, run: Path) -> WorkerConfig:
    sources = {split: open_source(stage.data, split, data) for split in SPLITS}
    for source in sources.values():
        source.read_contents()
    store_listings(str(run), sources)
    return WorkerConfig(stage.model_dump_json(), str(run), str(data), None, data_listing=str(run))


@pytest.mark.parametrize("maker", ["make_stage", "make_segmentation", "make_detection"])
def test_a_stored_source_is_the_one_that_was_listed(request, data: Path, tmp_path: Path, maker: str) -> None:
    stage = request.getfixturevalue(maker)(data={"root": str(data)})
    stored(stage, data, tmp_path / "run")
    for split in SPLITS:
        listed, found = (
            open_source(stage.data, split, data),
            open_stored(stage.data, split, data, str(tmp_path / "run")),
        )
        assert list(found) == list(listed) and found.classes == listed.classes and found.notes == listed.notes
        assert found.digest() == listed.digest() and found.listing.folder is not None
        one, other = found.read(1), listed.read(1)
        assert (one.image == other.image).all() and one.label == other.label
        if one.instances is not None and other.instances is not None:
            assert (one.instances.boxes == other.instances.boxes).all() and one.instances.masks == other.instances.masks


def test_files_added_during_a_run_change_nothing(make_stage, data: Path, tmp_path: Path, monkeypatch) -> None:
    stage = make_stage(data={"root": str(data)}, training=SHORT)
    run_attempts([Attempt(stored(stage, data, tmp_path / "whole"))], 1, tmp_path)
    given = stored(stage, data, tmp_path / "run")
    run_attempts([Attempt(given, stop_at=2)], 1, tmp_path)
    some = sorted((data / "classification").rglob("*.jpg"))[::9]
    for number, file in enumerate(some):
        shutil.copy(file, file.with_name(f"0_added_{number}.jpg"))
    run_attempts([Attempt(given)], 1, tmp_path)
    whole, resumed = newest(str(tmp_path / "whole")), newest(given.run_folder)
    assert len(some) > 5 and resumed.step == whole.step == SHORT["steps"]
    for name, value in whole.files["model"].items():
        assert torch.equal(value, resumed.files["model"][name]), name


@pytest.mark.parametrize(("split", "ranks"), [("train", 2), ("val", 1)])
def test_a_file_that_changed_ends_the_run_by_name(make_stage, data: Path, tmp_path: Path, split: str, ranks: int):
    stage = make_stage(data={"root": str(data)}, training=SHORT, cluster={"workers": ranks})
    given = stored(stage, data, tmp_path / "run")
    files = sorted((data / "classification" / split).rglob("*.jpg"))
    for file in files:
        file.touch()  # as a copy would: only contents count
    files[3].write_bytes(files[4].read_bytes())
    what, where, fix = run_attempts([Attempt(given)], ranks, tmp_path)[0]["error"]
    assert what.startswith("1 files have other contents than when the run began") and str(files[3]) in what
    assert where == "data" and "put them back" in fix


def test_a_listing_of_other_data_is_refused(make_stage, data: Path, tmp_path: Path) -> None:
    stage = make_stage(data={"root": str(data)})
    run = tmp_path / "run"
    given = stored(stage, data, run)
    other = make_stage(data={"root": str(tmp_path)})
    with pytest.raises(UserError, match=r"cannot be used: it is of .*data"):
        open_stored(other.data, "train", data, given.data_listing)
    facts = json.loads((run / LISTINGS).read_text())
    (run / LISTINGS).write_text(json.dumps({**facts, "train": "0" * 64}))
    with pytest.raises(UserError, match=f"SHA-256 {facts['train']}, not 000"):
        open_stored(stage.data, "train", data, given.data_listing)
    (run / LISTINGS).unlink()
    with pytest.raises(UserError, match="cannot be used"):
        open_stored(stage.data, "train", data, given.data_listing)


def test_a_rank_lists_and_hashes_nothing(make_stage, data: Path, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(contents, "SETTLED_NS", -(10**12))
    stage = make_stage(data={"root": str(data)}, training=SHORT, cluster={"loader_workers": 0})
    given = stored(stage, data, tmp_path / "run")

    def refuse(*_: object) -> None:
        raise AssertionError("listed or hashed again")

    monkeypatch.setattr(worker, "open_source", refuse)
    monkeypatch.setattr(contents, "file_sum", refuse)
    result = worker.run(given, 0, 1, torch.device("cpu"), lambda records, node: None)
    assert result.training.reason == "finished"
