"""Runs are listed, shown and stopped as they are, whatever a file left behind says."""

import json
import os
import subprocess
import sys
import threading
import time
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import pytest
from harness.machines import be_machine

from scalablevit.cli import runs
from scalablevit.cli.tree import parse
from scalablevit.config.errors import UserError
from scalablevit.machine import machine_name
from scalablevit.run_files import LEASE
from scalablevit.runs import lease as leases
from scalablevit.runs import status
from scalablevit.runs.lease import Lease
from scalablevit.runs.run_store import RunStore
from scalablevit.runs.status import Best, StatusFile

OWNER = """
import sys, time
from pathlib import Path
from scalablevit.runs.lease import Lease
from scalablevit.runs.run_store import RunStore
from scalablevit.runs.signals import end_like_ctrl_c
from scalablevit.runs.status import StatusFile

end_like_ctrl_c()
store = RunStore.open("alive", None, Path(sys.argv[1]))
try:
    with Lease(store) as lease, StatusFile(store, lease, "pretrain", 100, "steps", "sqlite:////m.db") as file:
        file.update(step=7)
        print("at work", flush=True)
        time.sleep(300)
except KeyboardInterrupt:
    sys.exit(130)
"""


@pytest.fixture
def owner(tmp_path):
    """A process that owns the run `alive`."""
    environment = {**os.environ, "PYTHONPATH": str(Path(runs.__file__).parents[2])}
    process = subprocess.Popen([sys.executable, "-c", OWNER, str(tmp_path)], stdout=subprocess.PIPE, env=environment)
    assert process.stdout.readline() == b"at work\n"
    yield process
    process.kill()
    process.wait(timeout=30)


def leave(root, name, **changes):
    """A run that has ended as its file says."""
    store = RunStore.open(name, None, root)
    with Lease(store) as lease, StatusFile(store, lease, "pretrain", 100, "steps", "sqlite:////m.db") as file:
        file.update(**{"step": 100, **changes})
    return store


def run(capsys, *arguments):
    code = runs.run(parse("runs", arguments))
    return code, capsys.readouterr().out


def test_a_run_whose_process_was_killed_is_lost_although_its_file_says_running(owner, tmp_path, capsys):
    leave(tmp_path, "done", best=Best("val/top1", 0.75, 80))
    _, before = run(capsys, "list", "--root", str(tmp_path))
    owner.kill()
    owner.wait(timeout=30)
    assert status.read_status(tmp_path / "runs" / "alive").state == "running"
    _, after = run(capsys, "list", "--root", str(tmp_path))
    states = [{line.split()[0]: line.split()[1] for line in text.splitlines()[1:]} for text in (before, after)]
    assert states == [{"alive": "running", "done": "finished"}, {"alive": "lost", "done": "finished"}]
    assert "top1 0.7500 at step 80" in after
    _, shown = run(capsys, "show", "alive", "--root", str(tmp_path))
    assert "ended without a word" in shown and "7 of 100 steps" in shown


def test_a_run_is_stopped_as_ctrl_c_does_and_only_once(owner, tmp_path, capsys):
    code, _ = run(capsys, "stop", "alive", "--root", str(tmp_path), "--dry-run")
    assert code == 0 and owner.poll() is None
    code, said = run(capsys, "stop", "alive", "--root", str(tmp_path))
    assert code == 0 and "killed at 7 of 100 steps; the command that started it continues it\n" in said
    assert owner.wait(timeout=30) == 130
    with pytest.raises(UserError, match="has ended already: killed"):
        run(capsys, "stop", "alive", "--root", str(tmp_path))


def test_a_run_of_another_machine_is_watched_and_not_stopped_from_here(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(leases, "WATCH_S", 0.05)
    store = leave(tmp_path, "there")
    found = status.read_status(store.local)
    status.write_status(store.local, replace(found, state="running", ended=None))
    stopped = threading.Event()
    claim(store, 0)
    owner = threading.Thread(target=renew, args=(store, stopped))
    owner.start()
    try:
        assert "running" in run(capsys, "list", "--root", str(tmp_path))[1]
        with pytest.raises(UserError, match="cannot be reached from here"):
            run(capsys, "stop", "there", "--root", str(tmp_path))
    finally:
        stopped.set()
        owner.join()
    monkeypatch.setattr(leases, "STALE_S", 0.2)
    assert "lost" in run(capsys, "list", "--root", str(tmp_path))[1]


def test_a_list_shows_what_it_knows_first_and_waits_for_a_lost_run_only_once(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(leases, "STALE_S", 0.3)
    monkeypatch.setattr(leases, "WATCH_S", 0.05)
    leave(tmp_path, "done")
    store = leave(tmp_path, "there")
    status.write_status(store.local, replace(status.read_status(store.local), state="running", ended=None))
    claim(store, 0)
    waits, shown_before, sleep = [], [], time.sleep

    def wait(seconds):
        if not waits:
            shown_before.append(capsys.readouterr().out)
        waits.append(seconds)
        sleep(seconds)

    monkeypatch.setattr(leases.time, "sleep", wait)
    _, after = run(capsys, "list", "--root", str(tmp_path))
    states = {line.split()[0]: line.split()[1] for line in shown_before[0].splitlines()[1:]}
    assert states == {"done": "finished", "there": "running?"} and after == "there: lost\n"
    waits.clear()
    assert "there: " not in run(capsys, "list", "--root", str(tmp_path))[1] and not waits
    assert "ended without a word" in run(capsys, "show", "there", "--root", str(tmp_path))[1] and not waits
    claim(store, 1)  # its owner was only suspended
    run(capsys, "list", "--root", str(tmp_path))
    assert waits


def renew(store, stopped):
    """What the owner on another machine does with its claim."""
    count = 0
    while not stopped.wait(0.02):
        claim(store, count := count + 1)


def claim(store, renewed):
    holder = {"token": "other", "host": "elsewhere", "machine": "other", "process": 7, "renewed": renewed}
    store.write(LEASE, json.dumps(holder).encode())


def test_a_submitted_job_is_stopped_by_ray_and_needs_a_cluster(owner, tmp_path, capsys, monkeypatch):
    for name in ("RAY_ADDRESS", "RAY_API_SERVER_ADDRESS"):
        monkeypatch.delenv(name, raising=False)
    folder = tmp_path / "runs" / "alive"
    found = status.read_status(folder)
    status.write_status(folder, replace(found, job="raysubmit_1"))
    code, said = run(capsys, "stop", "alive", "--root", str(tmp_path), "--dry-run")
    assert code == 0 and "ray job stop raysubmit_1" in said
    with pytest.raises(UserError, match="no cluster is named") as caught:
        run(capsys, "stop", "alive", "--root", str(tmp_path))
    assert "RAY_API_SERVER_ADDRESS" in str(caught.value)
    assert owner.poll() is None


@pytest.fixture
def asked(monkeypatch):
    """What Ray's command is asked, and with which variables; it says that it knows no such job."""
    calls = []

    def refuse(command, env, **_):
        calls.append((command, env))
        return subprocess.CompletedProcess(command, 1, "", "no such job")

    monkeypatch.setattr(runs.subprocess, "run", refuse)
    for name in ("RAY_ADDRESS", "RAY_API_SERVER_ADDRESS", "RAY_AUTH_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    return calls


def submitted(root):
    folder = root / "runs" / "alive"
    status.write_status(folder, replace(status.read_status(folder), job="raysubmit_1"))
    head = {"dashboard": "http://127.0.0.1:20123", "address": "127.0.0.1:20124", "token_file": f"{root}/ray_token"}
    (root / "head.json").write_text(json.dumps(head))


@pytest.mark.usefixtures("owner")
def test_the_head_of_the_root_is_found_by_its_record(tmp_path, capsys, monkeypatch, asked):
    submitted(tmp_path)
    monkeypatch.setenv("RAY_AUTH_TOKEN", "another head's")
    with pytest.raises(UserError, match="no such job") as caught:
        run(capsys, "stop", "alive", "--root", str(tmp_path))
    assert "http://127.0.0.1:20123" in caught.value.fix
    ((command, environment),) = asked
    assert command[1:] == ["job", "stop", "--no-wait", "raysubmit_1"]
    assert environment["RAY_API_SERVER_ADDRESS"] == "http://127.0.0.1:20123"
    assert environment["RAY_AUTH_TOKEN_PATH"] == f"{tmp_path}/ray_token" and environment["RAY_AUTH_MODE"] == "token"
    assert "127.0.0.1" in environment["NO_PROXY"].split(",") and "RAY_AUTH_TOKEN" not in environment


@pytest.mark.usefixtures("owner")
@pytest.mark.parametrize(
    ("started_on", "now", "words"),
    [
        (("far", "4" * 32), ("near", "4" * 32), "no such job"),  # renamed, or a container started again
        (("near", "4" * 32), ("near", "5" * 32), "started on near"),
        (("far", None), ("near", None), "started on far"),
        (("near", None), ("near", None), "no such job"),
    ],
)
def test_a_head_of_another_machine_is_not_asked(tmp_path, capsys, monkeypatch, asked, started_on, now, words):
    """The root is shared; its address is 127.0.0.1, which is another machine here."""
    submitted(tmp_path)
    record = tmp_path / "head.json"
    be_machine(monkeypatch, tmp_path, *started_on)
    record.write_text(json.dumps({**json.loads(record.read_text()), "machine": machine_name()}))
    be_machine(monkeypatch, tmp_path, *now)
    with pytest.raises(UserError, match=words) as caught:
        run(capsys, "stop", "alive", "--root", str(tmp_path))
    if "started" in words:
        assert not asked and caught.value.where == str(record) and "RAY_API_SERVER_ADDRESS" in caught.value.fix


@pytest.mark.usefixtures("owner")
@pytest.mark.parametrize(
    ("ended", "said"),
    [
        (subprocess.CompletedProcess([], 3, "", ""), "exit code 3"),
        (FileNotFoundError(2, "No such file or directory"), "No such file"),
    ],
)
def test_a_stop_that_fails_without_a_word_or_without_ray_is_no_success(ended, said, tmp_path, capsys, monkeypatch):
    submitted(tmp_path)

    def end(*_, **__):
        if isinstance(ended, Exception):
            raise ended
        return ended

    monkeypatch.setattr(runs.subprocess, "run", end)
    with pytest.raises(UserError, match=f"raysubmit_1 was not stopped: .*{said}"):
        run(capsys, "stop", "alive", "--root", str(tmp_path))


@pytest.mark.usefixtures("owner")
def test_a_cluster_that_is_named_comes_before_the_record(tmp_path, capsys, monkeypatch, asked):
    submitted(tmp_path)
    monkeypatch.setenv("RAY_ADDRESS", "http://far:8265")
    with pytest.raises(UserError, match="no such job"):
        run(capsys, "stop", "alive", "--root", str(tmp_path))
    ((_, environment),) = asked
    assert environment["RAY_ADDRESS"] == "http://far:8265" and "RAY_API_SERVER_ADDRESS" not in environment


@pytest.mark.usefixtures("owner", "asked")
@pytest.mark.parametrize("record", ["{", "[]", '{"dashboard": "x"}'])
def test_a_damaged_record_of_a_head_is_named(tmp_path, capsys, record):
    submitted(tmp_path)
    (tmp_path / "head.json").write_text(record)
    with pytest.raises(UserError, match="not readable as the record of a head") as caught:
        run(capsys, "stop", "alive", "--root", str(tmp_path))
    assert "head.json" in caught.value.where


def test_a_run_is_found_by_its_name_not_by_a_pattern(tmp_path, capsys):
    for name in ("a1", "a[1]", "a*"):
        folder = leave(tmp_path, "made").local.rename(tmp_path / "runs" / name)
        status.write_status(folder, replace(status.read_status(folder), run=name))
        assert f"run       {name}\n" in run(capsys, "show", name, "--root", str(tmp_path))[1]


def test_an_unreadable_status_hides_no_other_run(tmp_path, capsys):
    for name in ("done", "damaged"):
        leave(tmp_path, name)
    (tmp_path / "runs" / "damaged" / "status.json").write_text('{"state": "run')
    _, listed = run(capsys, "list", "--root", str(tmp_path))
    assert {line.split()[0]: line.split()[1] for line in listed.splitlines()[1:3]} == {
        "done": "finished", "damaged": "unreadable",
    }  # fmt: skip
    assert "damaged/status.json: not readable as a status" in listed and "remove the file" in listed
    assert "finished" in run(capsys, "show", "done", "--root", str(tmp_path))[1]
    with pytest.raises(UserError, match="not readable as a status"):
        run(capsys, "show", "damaged", "--root", str(tmp_path))


def test_stop_tells_the_end_of_a_run_that_ends_while_it_looks(tmp_path, capsys, monkeypatch):
    """The run writes `killed` and gives its claim back between two looks of `stop`, whichever comes first."""
    store = RunStore.open("ending", None, tmp_path)
    stack, looks = ExitStack(), []
    file = StatusFile(store, lease := stack.enter_context(Lease(store)), "pretrain", 9, "steps", "sqlite:////m.db")
    stack.push(lambda *_: file.__exit__(KeyboardInterrupt, KeyboardInterrupt(), None))
    file.update(step=3)
    assert lease.is_held()

    def then_the_end(look):
        def looked(place):
            seen = look(place)
            if looks:  # once `stop` has interrupted it
                looks.pop()
                stack.close()
            return seen

        return looked

    monkeypatch.setattr(runs, "POLL_S", 0.01)
    monkeypatch.setattr(runs, "_interrupt", lambda found: looks.append("armed"))
    monkeypatch.setattr(runs, "read_status", then_the_end(runs.read_status))
    monkeypatch.setattr(runs, "read_claim", then_the_end(runs.read_claim))
    code, said = run(capsys, "stop", "ending", "--root", str(tmp_path))
    assert code == 0 and "killed at 3 of 9 steps" in said


def test_folders_without_a_status_are_counted_and_unknown_runs_named(tmp_path, capsys):
    leave(tmp_path, "done")
    (tmp_path / "runs" / "from-before").mkdir()
    assert "folders without a status.json, left out: 1" in run(capsys, "list", "--root", str(tmp_path))[1]
    with pytest.raises(UserError, match="no run 'don'") as caught:
        run(capsys, "show", "don", "--root", str(tmp_path))
    assert "name one of: done" in str(caught.value)
