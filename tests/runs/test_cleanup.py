"""Whatever fails while a run is cleaned up, the failure before it is what is reported, with its exit code."""

import errno
import json
import os
from functools import partial
from pathlib import Path

import pytest

from scalablevit.cli import exit_codes
from scalablevit.cli.exit_codes import run_command
from scalablevit.config.errors import TrainingFailed, UserError
from scalablevit.config.loading import load_recipe
from scalablevit.pipeline import chain, stage
from scalablevit.pipeline.resolve import resolve
from scalablevit.pipeline.stage import Job, run_stage
from scalablevit.runs import session
from scalablevit.runs.cleanup import clean_up
from scalablevit.runs.lease import Lease
from scalablevit.runs.result import StageResult
from scalablevit.runs.run_store import RunStore
from scalablevit.runs.status import StatusFile, read_status
from scalablevit.tracking.outbox import Outbox
from scalablevit.training import launch, storage

TINY = Path(__file__).parents[1] / "end_to_end" / "tiny.yaml"
RESULT = StageResult(
    name="pretrain", run_name="run", uid="0" * 32, folder="/runs/run", metric="val/top1", value=0.5, step=300,
    metrics={}, classes=(), images_per_s=1.0, minutes=1.0, reason="finished", checkpoint="", weights_sha256="",
    registered_as="tiny-pretrain", lineage={},
)  # fmt: skip


@pytest.fixture
def fill(monkeypatch):
    """A call after which the disk takes no more."""

    def full(*_args, **_options):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "/data/file")

    def fill_disk():
        monkeypatch.setattr(storage, "put", full)
        monkeypatch.setattr(Outbox, "_write", full)
        monkeypatch.setattr(Outbox, "sync", full)
        monkeypatch.setattr(stage, "draw_curves", full)

    return fill_disk


@pytest.fixture
def pretrain(tmp_path, monkeypatch):
    """The first stage, with an MLflow that refuses connections and is not waited for."""
    for name in ("DRAIN_S", "FAILED_DRAIN_S"):
        monkeypatch.setattr(session, name, 0)
    monkeypatch.setattr(chain.cluster, "has_room", lambda group: len(group) == 1)
    recipe = load_recipe(TINY, ["tracking.uri=http://127.0.0.1:9"])
    return recipe, resolve(recipe, tmp_path, ["pretrain"])[0]


def end(recipe, resolved, root):
    """What a script does with a chain that ends in a failure: its exit code."""

    def work():
        chain.run_chain(recipe, [resolved], root)
        return 0

    return run_command(work)


def test_all_steps_are_taken_and_the_first_that_failed_is_raised(capsys):
    taken = []

    def broken(number):
        taken.append(number)
        raise OSError(f"step {number} broke")

    steps = (("one", lambda: taken.append(1)), ("two", lambda: broken(2)), ("three", lambda: broken(3)),
             ("four", lambda: taken.append(4)))  # fmt: skip
    with pytest.raises(OSError, match="step 2 broke"):
        clean_up(None, *steps)
    assert taken == [1, 2, 3, 4]
    lines = "clean-up: two failed: step 2 broke\nclean-up: three failed: step 3 broke\n"
    assert capsys.readouterr().err == lines
    clean_up(RuntimeError("before"), *steps)
    assert capsys.readouterr().err == lines


@pytest.mark.parametrize(
    ("error", "code", "state"),
    [
        (UserError("too little memory", where="cluster.workers", fix="use fewer"), 2, "failed"),
        (TrainingFailed("/runs/run", "worker 1 died"), 1, "failed"),
        (KeyboardInterrupt(), 130, "killed"),
    ],
)
def test_a_full_disk_at_a_jobs_end_hides_no_failure(pretrain, tmp_path, monkeypatch, capsys, fill, error, code, state):
    def fails(job, resolved, earlier):
        fill()
        raise error

    monkeypatch.setattr(chain, "run_stage", fails)
    assert end(*pretrain, tmp_path) == code
    err = capsys.readouterr().err
    assert "Traceback" not in err
    if state == "failed":
        assert str(error) in err
    assert "clean-up: recording the end of tiny-" in err and "No space left on device" in err
    assert "clean-up: releasing the lease of tiny-" in err
    (ended,) = (read_status(path.parent) for path in tmp_path.glob("runs/*/status.json"))
    assert ended.state == state and ended.ended


def test_a_full_disk_after_the_last_stage_is_a_message_and_code_2(pretrain, tmp_path, monkeypatch, capsys, fill):
    def runs(job, resolved, earlier):
        fill()
        return RESULT

    monkeypatch.setattr(chain, "run_stage", runs)
    assert end(*pretrain, tmp_path) == 2
    err = capsys.readouterr().err
    assert "Traceback" not in err
    assert err.endswith("\n/data/file: No space left on device\n  fix: free some space, then give the same command "
                        "again; a training goes on from its last checkpoint\n")  # fmt: skip
    (ended,) = (read_status(path.parent) for path in tmp_path.glob("runs/*/status.json"))
    assert (ended.state, "No space left on device" in ended.why) == ("failed", True)


def test_a_full_disk_at_a_stages_end_hides_no_failure(pretrain, tmp_path, monkeypatch, capsys, fill):
    def fails(*_):
        fill()
        raise TrainingFailed("/runs/run", "worker 1 died")

    monkeypatch.setattr(launch, "launch", fails)
    job = Job(tmp_path, "tiny", "1" * 32, "http://127.0.0.1:9")
    with pytest.raises(TrainingFailed, match="worker 1 died"):
        run_stage(job, pretrain[1], {})
    err = capsys.readouterr().err
    assert f"clean-up: recording the end of {pretrain[1].run_name} failed" in err
    assert "clean-up: closing" in err and "Traceback" not in err
    ended = read_status(tmp_path / "runs" / pretrain[1].run_name)
    assert (ended.state, "worker 1 died" in ended.why) == ("failed", True)


@pytest.mark.parametrize("before", ["x", "x" * 3000])
def test_the_end_is_written_over_the_status_that_is_there(tmp_path, fill, before):
    """A full disk has no room for a new file, but the old one's blocks."""
    store = RunStore.open("run", None, tmp_path)
    file = partial(StatusFile, store, stage="pretrain", total=9, unit="steps", tracking_uri="sqlite:////m.db")
    with pytest.raises(RuntimeError), Lease(store) as lease, file(lease=lease) as status_file:  # noqa: PT012
        status_file.update(step=3, stage=before)
        fill()
        raise RuntimeError("the model broke")
    ended = read_status(store.local)
    assert (ended.state, ended.why, ended.step) == ("failed", "the model broke", 3)
    assert json.loads((store.local / "status.json").read_text())["stage"] == before


def test_a_reason_that_cannot_be_printed_changes_no_exit_code(monkeypatch):
    class Full:
        def write(self, text):
            raise OSError(errno.ENOSPC, "No space left on device")

        def flush(self):
            pass

    monkeypatch.setattr(exit_codes.sys, "stderr", Full())

    def fails():
        raise UserError("wrong")

    assert run_command(fails) == 2


def test_other_system_errors_stay_failures(capsys):
    def fails():
        raise OSError(errno.EIO, "Input/output error")

    assert run_command(fails) == 1
    assert "Traceback" in capsys.readouterr().err
