"""What a stage leaves in its folder, from its own code with a worker in this process in place of Ray's."""

import csv
import errno
import json
from pathlib import Path

import pytest
import torch
from ray.train import UserCallback

from scalablevit.config.data import SPLITS, Shapes
from scalablevit.config.loading import load_recipe
from scalablevit.config.recipe import Length
from scalablevit.data.shapes import write_shapes
from scalablevit.data.sources.opening import open_source
from scalablevit.pipeline.resolve import ResolvedStage
from scalablevit.pipeline.stage import Job, _train
from scalablevit.report.findings import load_findings
from scalablevit.run_files import ERROR_ANALYSIS, METRICS, RESULTS
from scalablevit.runs import session
from scalablevit.runs.run_store import RunStore
from scalablevit.runs.session import RunSession
from scalablevit.runs.status import read_status
from scalablevit.tracking.callback import OutboxCallback
from scalablevit.training import launch, loop, worker

TINY = Path(__file__).parents[1] / "end_to_end" / "tiny.yaml"
STOP = 9


@pytest.fixture
def resolved(tmp_path):
    write_shapes(Shapes(train_images=24, val_images=8, image_size=32), tmp_path / "tiny-data")
    overrides = ["cluster.workers=1", "data.shapes.train_images=24", "data.shapes.val_images=8",
                 "data.shapes.image_size=32", "stages.pretrain.training.global_batch_size=8",
                 "stages.pretrain.training.checkpoint_every={steps: 2}"]  # fmt: skip
    stage = load_recipe(TINY, overrides).stages["pretrain"]
    sources = {split: open_source(stage.data, split, tmp_path) for split in SPLITS}
    return ResolvedStage(
        name="pretrain", stage=stage, run_name="tiny-pretrain-0", hash="0", digest="content:0",
        classes=sources["train"].classes, train_samples=24, val_samples=8, unreadable=0, ignored=(), notes=(),
        length=Length.of(stage, 24), sources=sources,
    )  # fmt: skip


@pytest.fixture
def in_process(monkeypatch):
    """Ray's part: calls the worker, and the callbacks with what it reports."""

    def launched(stage, worker_config, run_folder, callbacks, stop_file):
        def send(records, node):
            for callback in (each for each in callbacks if isinstance(each, UserCallback)):
                reported = {"records": [record.as_dict() for record in records], "node": {"rank": 0, **node}}
                callback.after_report(None, [reported], None)

        return worker.run(worker_config, 0, 1, torch.device("cpu"), send)

    monkeypatch.setattr(launch, "launch", launched)


def train(resolved, root):
    store = RunStore.open(resolved.run_name, None, root)
    job = Job(root, "tiny", "1" * 32, f"sqlite:///{root}/mlflow.db")
    with RunSession(store, job.tracking_uri) as owned:
        return _train(job, resolved, {}, owned)


@pytest.mark.usefixtures("in_process")
def test_a_run_that_was_interrupted_and_resumed_has_every_step_once(resolved, tmp_path, monkeypatch):
    """Interrupted in step 9, after the checkpoint of step 8; the report of step 8 may be lost with the interrupt."""
    folder = tmp_path / "runs" / resolved.run_name
    step = loop.train_step

    def interrupted(plan, model, state, micro):
        if state.step == STOP - 1:
            raise KeyboardInterrupt
        return step(plan, model, state, micro)

    monkeypatch.setattr(loop, "train_step", interrupted)
    with pytest.raises(KeyboardInterrupt):
        train(resolved, tmp_path)
    killed = read_status(folder)
    assert (killed.state, killed.why) == ("killed", "interrupted") and 6 <= killed.step < STOP
    assert killed.best.metric == "val/top1" and killed.best.step == 6

    monkeypatch.setattr(loop, "train_step", step)
    result = train(resolved, tmp_path)
    status = read_status(folder)
    assert (status.state, status.step, status.best.step) == ("finished", 12, result.step)
    lines = [json.loads(line) for line in (folder / METRICS).read_text().splitlines()]
    assert [line["step"] for line in lines if "train/loss" in line] == [1, 2, 4, 5, 6, 8, 10, 12]
    assert len({line["step"] for line in lines}) == len(lines)
    rows = list(csv.DictReader((folder / RESULTS).open()))
    assert [int(row["step"]) for row in rows] == [6, 12]
    assert (result.last_step, result.last_value) == (12, float(rows[-1]["val/top1"]))
    assert result.profile["step"] > 0 and result.profile["evaluation"] > 0
    assert {path.name for path in (folder / "plots").iterdir()} == {
        "curves.png", "training_batch.png", "validation.png",
    }  # fmt: skip
    assert (folder / "model" / "weights.safetensors").exists()
    assert load_findings(folder / ERROR_ANALYSIS).images == 8


@pytest.mark.usefixtures("in_process")
def test_pictures_that_cannot_be_drawn_are_said_and_end_nothing(resolved, tmp_path, capsys):
    folder = tmp_path / "runs" / resolved.run_name
    folder.mkdir(parents=True)
    for name in ("plots", "examination"):
        (folder / name).touch()  # no folder
    assert train(resolved, tmp_path).last_step == 12
    assert read_status(folder).state == "finished"
    said = capsys.readouterr().out
    assert all(f"[pretrain] plots/{name}.png was not drawn: " in said
               for name in ("curves", "training_batch", "validation"))  # fmt: skip
    assert "[pretrain] examination was not drawn: " in said


@pytest.mark.usefixtures("in_process")
def test_the_last_evaluation_is_recorded_although_the_disk_refused_its_report(resolved, tmp_path, monkeypatch, capsys):
    """What waits for the next report has none at the end."""
    record = OutboxCallback._record

    def refuse_last(callback):
        if any(point["step"] == 12 for point in callback._waiting):
            raise OSError(errno.ENOSPC, "No space left on device")
        record(callback)

    monkeypatch.setattr(OutboxCallback, "_record", refuse_last)
    monkeypatch.setattr(session, "DRAIN_S", 0.0)  # its parent run is on no server
    result = train(resolved, tmp_path)
    folder = tmp_path / "runs" / resolved.run_name
    rows = list(csv.DictReader((folder / RESULTS).open()))
    assert [int(row["step"]) for row in rows] == [6, 12] and float(rows[-1]["val/top1"]) == result.last_value
    assert float(rows[-1]["val/is_best"]) == (result.step == 12)
    said = capsys.readouterr().out
    assert said.count("the evaluation of step") == 1 and "the evaluation of step 12 was not recorded" in said
