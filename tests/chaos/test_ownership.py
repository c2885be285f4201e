"""One owner for a run: real processes that claim the same run at once, die, sleep, and live on other machines."""

import fcntl
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from harness.claimants import LIMIT_S, Claimant, names, race
from harness.heads import TINY, Head, output_of

from scalablevit.run_files import LEASE, LEASE_LOCK
from scalablevit.runs import lease
from scalablevit.runs.lease import STALE_S
from scalablevit.runs.run_store import RunStore

RACES = int(os.environ.get("SCALABLEVIT_RACES", "5"))
QUICK = {"RENEW_S": 0.1, "STALE_S": 3.0, "WATCH_S": 0.1}
"""For what takes time: an owner on another machine is taken for dead after 30 missed renewals, since tests are busy."""
NOBODY_LATE = {**QUICK, "STALE_S": 1.0}
"""Where the owner is dead or suspended meanwhile: no renewal is waited for."""

pytestmark = pytest.mark.row("Ownership: one owner, take-over after proof")


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Any]:
    claimants: list[Claimant] = []

    def start(count: int = 1, **settings: Any) -> list[Claimant]:
        """Processes that are ready to claim. Where the storage has locks nobody needs the time to settle."""
        started = [Claimant(tmp_path, **{"SETTLE_S": 0.1, **settings}) for _ in range(count)]
        claimants.extend(started)
        for each in started:
            assert each.answer() == {"ready": each.pid}
        return started

    yield start
    for each in claimants:
        each.end()


def claim_of(tmp_path: Path, name: str = "run") -> dict[str, Any]:
    return dict(json.loads((tmp_path / "runs" / name / LEASE).read_text()))


def leave_claim(tmp_path: Path, name: str, **changes: Any) -> None:
    """A claim as it would be left by a process of this machine that has ended."""
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait(LIMIT_S)
    claim = {
        "token": "left", "host": socket.gethostname(), "machine": lease._machine(), "process": ended.pid,
        "process_started": 1, "started": time.time() - 3600, "renewed": time.time(), **changes,
    }  # fmt: skip
    RunStore.open(name, None, tmp_path).write(LEASE, json.dumps(claim).encode())


@pytest.mark.parametrize("left", ["nothing", "a dead owner's claim"])
def test_of_four_at_once_one_owns_the_run(left: str, start: Any, tmp_path: Path, record_property: Any):
    """And the others name it."""
    claimants = start(4)
    for number in range(RACES):
        if left != "nothing":
            leave_claim(tmp_path, f"run-{number}")
        race(claimants, f"run-{number}")
        assert claim_of(tmp_path, f"run-{number}") == {}
    record_property(f"races over {left}", RACES)


def test_of_four_machines_at_once_one_owns_the_run(start: Any, tmp_path: Path):
    """After a machine that is gone: all watch its claim and give it up at about the same moment."""
    claimants = [start(machine=f"machine {number}", **QUICK)[0] for number in range(4)]
    for number in range(max(1, RACES // 5)):
        leave_claim(tmp_path, f"run-{number}", machine="another")
        race(claimants, f"run-{number}")


@pytest.mark.parametrize("reaped", [True, False])
def test_a_killed_owner_is_replaced_at_once(reaped: bool, start: Any, record_property: Any):
    """Also as long as its parent does not ask how it ended."""
    owner, next_one = start(2)
    owner.owns()
    refused = next_one.claim()
    assert not refused["owner"] and names(refused["said"], owner)
    owner.send(signal.SIGKILL)
    if reaped:
        owner.process.wait(LIMIT_S)
    else:
        wait_for(lambda: state(owner) == "Z")
    begin = time.monotonic()
    next_one.owns()
    taken = time.monotonic() - begin
    assert taken < STALE_S / 2
    record_property("take-over after SIGKILL", f"{taken:.1f} s")


def state(claimant: Claimant) -> str:
    """The letter in ps: T suspended, Z dead but not asked how it ended."""
    return Path(f"/proc/{claimant.pid}/stat").read_text().rpartition(")")[2].split()[0]


def suspend(claimant: Claimant, tmp_path: Path) -> None:
    """While it does not write its claim, which would keep the lock."""
    end = time.monotonic() + LIMIT_S
    while time.monotonic() < end:
        claimant.send(signal.SIGSTOP)
        wait_for(lambda: state(claimant) == "T")
        with (tmp_path / "runs" / "run" / LEASE_LOCK).open() as lock, suppress(BlockingIOError):
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        claimant.send(signal.SIGCONT)
        time.sleep(0.05)
    pytest.fail("the lock is held all the time")


def wait_for(condition: Any) -> None:
    end = time.monotonic() + LIMIT_S
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.05)


def test_a_suspended_owner_on_this_machine_stays_the_owner(start: Any, tmp_path: Path):
    """It can go on at any moment; the user is told how to end it."""
    owner, other = start(2, **NOBODY_LATE)
    owner.owns()
    suspend(owner, tmp_path)
    before = claim_of(tmp_path)["renewed"]
    time.sleep(NOBODY_LATE["STALE_S"] + 0.5)
    assert claim_of(tmp_path)["renewed"] == before
    refused = other.claim()
    assert names(refused["said"], owner) and f"it is suspended: `kill -CONT {owner.pid}`" in refused["said"]
    owner.send(signal.SIGCONT)
    wait_for(lambda: claim_of(tmp_path)["renewed"] > before)
    owner.tell(release="run")
    assert owner.answer() == {"released": True}
    other.owns()


def test_a_later_process_of_the_same_number_is_not_the_owner(start: Any, tmp_path: Path):
    """The process of this test lives, but began at another time than the claim says."""
    leave_claim(tmp_path, "run", process=os.getpid())
    begin = time.monotonic()
    start()[0].owns()
    assert time.monotonic() - begin < STALE_S / 2


@pytest.mark.parametrize("skew", [-3600, 3600])
def test_a_living_owner_on_another_machine_is_seen_whatever_its_clock_says(skew: int, start: Any):
    """It has the same host's name, and its process number means nothing here."""
    (owner,) = start(machine="another", skew=skew, **QUICK)
    (other,) = start(**QUICK)
    owner.owns()
    refused = other.claim()
    assert not refused["owner"] and names(refused["said"], owner)
    owner.tell(release="run")
    assert owner.answer() == {"released": True}
    other.owns()


@pytest.mark.parametrize("skew", [-3600, 3600])
def test_a_dead_owner_on_another_machine_is_replaced_when_its_claim_stays_the_same(skew: int, start: Any):
    (owner,) = start(machine="another", skew=skew, **NOBODY_LATE)
    (other,) = start(**NOBODY_LATE)
    owner.owns()
    owner.send(signal.SIGKILL)
    owner.process.wait(LIMIT_S)
    begin = time.monotonic()
    other.owns()
    assert time.monotonic() - begin > NOBODY_LATE["STALE_S"]


@pytest.mark.parametrize("then", ["owns the run", "has ended"])
def test_an_owner_that_overslept_stops(then: str, start: Any, tmp_path: Path):
    """On another machine a suspended process cannot be told from a dead one: when it wakes, two would write."""
    (sleeper,) = start(machine="another", **NOBODY_LATE)
    (other,) = start(**NOBODY_LATE)
    sleeper.owns()
    suspend(sleeper, tmp_path)
    other.owns()
    if then == "has ended":
        other.tell(release="run")
        assert other.answer() == {"released": True}
    claim = claim_of(tmp_path)
    sleeper.send(signal.SIGCONT)
    assert sleeper.answer() == {"interrupted": True}
    sleeper.process.wait(LIMIT_S)
    assert sleeper.process.stderr is not None
    said = sleeper.process.stderr.read().decode()
    assert "run run was taken over" in said
    assert (f"process {other.pid} on" in said) == (then == "owns the run")
    assert claim_of(tmp_path).get("token") == claim.get("token")


def test_what_storage_without_locks_cannot_prevent_ends_with_the_next_renewal(start: Any, tmp_path: Path):
    """One looked before the first one claimed, and writes after that one has read its claim back."""
    gate = tmp_path / "gate"
    unlocked = {"no_locks": True, **QUICK, "RENEW_S": 0.2, "SETTLE_S": 0.5}
    (slow,) = start(**unlocked, gate=str(gate))
    (owner,) = start(**unlocked)
    slow.tell(claim="run", at=0)
    wait_for(gate.with_suffix(".waiting").exists)
    owner.owns()
    gate.touch()
    assert owner.answer() == {"interrupted": True}
    assert slow.answer() == {"owner": True}
    assert claim_of(tmp_path)["process"] == slow.pid


@pytest.mark.long
@pytest.mark.rotating("two jobs at once", 60)
@pytest.mark.timeout(900)
def test_of_two_jobs_started_at_once_one_says_that_the_other_has_the_run(head: Head, tmp_path: Path):
    """The scripts that users start, on one head; then the one that runs is interrupted."""
    root = tmp_path / "root"
    root.mkdir()
    arguments = ["--root", str(root), "--recipe", str(TINY), "cluster.workers=1", "cluster.cpus_per_worker=0.5",
                 "stages.pretrain.training.steps=100000"]  # fmt: skip
    jobs = [head.start("pretrain", *arguments) for _ in range(2)]
    try:
        end = time.monotonic() + 300
        while all(job.poll() is None for job in jobs):
            assert time.monotonic() < end, [output_of(job, 1) for job in jobs]
            time.sleep(0.5)
        loser = next(number for number, job in enumerate(jobs) if job.returncode is not None)
        winner = jobs[1 - loser]
        refusal = output_of(jobs[loser])
        assert jobs[loser].returncode == 2 and "Traceback" not in refusal, refusal
        assert f"belongs to process {winner.pid} on {socket.gethostname()} since" in refusal, refusal
        assert winner.poll() is None
        winner.send_signal(signal.SIGINT)
        output = output_of(winner, limit_s=150)
        assert winner.returncode == 130, output
        assert [json.loads(file.read_text()) for file in (root / "runs").glob(f"*/{LEASE}")] in ([{}], [{}, {}])
    finally:
        for job in jobs:
            job.kill()
            job.wait()
