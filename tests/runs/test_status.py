"""`status.json` says what a run is doing and what became of it."""

import json
import threading

import pytest

from scalablevit.config.errors import UserError
from scalablevit.run_files import LEASE, STATUS
from scalablevit.runs import status
from scalablevit.runs.lease import Lease
from scalablevit.runs.run_store import RunStore
from scalablevit.runs.status import Best, StatusFile, mark_finished, read_status

URI = "http://someone:canary-4711@tracking.example:5000"


@pytest.fixture
def store(tmp_path):
    return RunStore.open("run", None, tmp_path)


def file_of(store, lease, **options):
    return StatusFile(store, lease, "pretrain", 100, "steps", URI, **options)


def test_a_run_is_started_then_running_then_finished(store):
    seen = []
    with Lease(store) as lease, file_of(store, lease) as file:
        seen.append(read_status(store.local))
        file.update(step=1)
        seen.append(read_status(store.local))
        file.update(step=40, best=Best("val/top1", 0.5, 40))
        seen.append(read_status(store.local))
    seen.append(read_status(store.local))
    assert [(each.state, each.step) for each in seen] == [
        ("started", 0), ("running", 1), ("running", 40), ("finished", 40),
    ]  # fmt: skip
    assert seen[-1].best == Best("val/top1", 0.5, 40) and seen[-1].ended >= seen[-1].started
    assert seen[-1].folder == store.location and seen[-1].process


@pytest.mark.parametrize(
    ("error", "stopping", "state", "why"),
    [
        (RuntimeError("the disk\nis gone"), False, "failed", "the disk is gone"),
        (UserError("too little memory", where="cluster"), False, "failed", "cluster: too little memory"),
        (KeyboardInterrupt(), False, "killed", "interrupted"),
        (RuntimeError("Ray is gone"), True, "killed", "interrupted"),
    ],
)
def test_an_end_that_was_not_planned_says_why(store, error, stopping, state, why):
    event = threading.Event()
    with pytest.raises(type(error)), Lease(store) as lease, file_of(store, lease, stopping=event):  # noqa: PT012
        if stopping:
            event.set()
        raise error
    found = read_status(store.local)
    assert (found.state, found.why) == (state, why)


def test_no_password_gets_into_the_file(store):
    error = RuntimeError(f"{URI} does not answer")
    with pytest.raises(RuntimeError), Lease(store) as lease, file_of(store, lease):
        raise error
    content = (store.local / STATUS).read_text()
    assert "canary-4711" not in content
    assert json.loads(content)["tracking"] == "http://tracking.example:5000"


def test_steps_are_not_written_at_every_call(store, monkeypatch):
    written = []
    monkeypatch.setattr(status, "write_status", lambda local, value: written.append(value.step))
    with Lease(store) as lease, file_of(store, lease) as file:
        for step in range(1, 100):
            file.update(step=step)
    assert written[:2] == [0, 1] and written[-1] == 99 and len(written) < 20


def test_who_lost_the_run_writes_no_more(store):
    """Another process took it over while this one slept; the file is that one's."""
    other = {"token": "other", "host": "elsewhere", "machine": "other", "process": 7, "process_started": 1}
    with Lease(store) as lease, file_of(store, lease) as file:
        store.write(LEASE, json.dumps(other).encode())
        file.update(step=50)
    assert (read_status(store.local).state, read_status(store.local).step) == ("started", 0)


def test_a_full_disk_is_said_once_and_ends_nothing(store, monkeypatch, capsys):
    def full(local, value):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(status, "write_status", full)
    with Lease(store) as lease, file_of(store, lease) as file:
        file.update(step=1)
    assert capsys.readouterr().err.count("was not written") == 1


def test_a_kill_between_a_stages_result_and_its_status_is_made_good(store):
    with Lease(store) as lease:
        file_of(store, lease).__enter__()
        mark_finished(store)
    assert read_status(store.local).state == "finished"


def test_a_damaged_file_is_named(store):
    (store.local / STATUS).write_text('{"state": "run')
    with pytest.raises(UserError, match=r"status\.json"):
        read_status(store.local)


@pytest.mark.parametrize(
    "changes",
    [{"step": "3"}, {"state": "asleep"}, {"started": None}, {"started": float("nan")}, {"started": 1e300},
     {"best": {"metric": "val/top1"}}, {"best": 7}, {"run": ["a"]}],
)  # fmt: skip
def test_a_value_of_another_kind_is_named(store, changes):
    with Lease(store) as lease, file_of(store, lease):
        pass
    found = json.loads((store.local / STATUS).read_text())
    (store.local / STATUS).write_text(json.dumps({**found, **changes}))
    with pytest.raises(UserError, match=rf"not readable as a status: {next(iter(changes))}"):
        read_status(store.local)


@pytest.mark.parametrize("content", ["", "[]", "null", '{"run": "a"}'])
def test_a_file_of_another_kind_is_named(store, content):
    (store.local / STATUS).write_text(content)
    with pytest.raises(UserError, match="not readable as a status"):
        read_status(store.local)


def test_a_submitted_job_is_known_by_its_submission_id(monkeypatch):
    """What Ray gives the driver of a job."""
    monkeypatch.setenv(status.JOB_VARIABLE, json.dumps({"metadata": {"job_submission_id": "raysubmit_1"}}))
    assert status.submission_id() == "raysubmit_1"
    for other in ("{}", "[]", "not JSON"):
        monkeypatch.setenv(status.JOB_VARIABLE, other)
        assert status.submission_id() == ""
