"""Two jobs cannot own one run; a dead owner's claim is taken over after proof."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from scalablevit.config.errors import UserError
from scalablevit.jobs import lease
from scalablevit.jobs.lease import FILE, Lease
from scalablevit.jobs.run_store import RunStore


@pytest.fixture
def store(tmp_path):
    return RunStore.open("run", None, tmp_path)


def test_the_second_owner_is_told_who_holds_the_run(store):
    with Lease(store), pytest.raises(UserError, match=r"belongs to process \d+ on .* since"), Lease(store):
        pass


def test_a_released_run_can_be_claimed_again(store):
    for _ in range(2):
        with Lease(store):
            pass


def test_a_killed_owner_on_this_host_is_proved_gone(store):
    code = (
        "import sys, time; from pathlib import Path; from scalablevit.jobs.lease import Lease; "
        "from scalablevit.jobs.run_store import RunStore\n"
        f"with Lease(RunStore.open('run', None, Path({str(store.local.parent.parent)!r}))):\n"
        "    print('held', flush=True); time.sleep(60)"
    )
    package = {**os.environ, "PYTHONPATH": str(Path(lease.__file__).parents[2])}
    owner = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, env=package)
    try:
        assert owner.stdout is not None and owner.stdout.readline() == "held\n"
        with pytest.raises(UserError, match=f"belongs to process {owner.pid}"), Lease(store):
            pass
    finally:
        owner.kill()
        owner.wait()
    with Lease(store):
        pass


def claim(store, renewed):
    holder = {
        "token": "other",
        "host": "elsewhere",
        "process": 7,
        "process_started": 0.0,
        "started": renewed,
        "renewed": renewed,
    }
    store.write(FILE, json.dumps(holder).encode())


def test_a_claim_from_another_host_is_taken_over_when_it_is_stale(store):
    claim(store, time.time())
    with pytest.raises(UserError, match="process 7 on elsewhere"), Lease(store):
        pass
    claim(store, time.time() - lease.STALE_S - 1)
    with Lease(store):
        pass


def test_of_two_at_the_same_moment_the_later_writer_owns_the_run(store, monkeypatch):
    monkeypatch.setattr(lease, "SETTLE_S", 0.0)
    own = Lease(store)
    write = own._write
    monkeypatch.setattr(own, "_write", lambda: (write(), claim(store, time.time())))
    with pytest.raises(UserError, match="at the same moment"), own:
        pass


def test_an_owner_that_overslept_does_not_take_its_claim_back(store, monkeypatch):
    """Two writers on one run must not be: the sleeper is interrupted instead."""
    monkeypatch.setattr(lease, "RENEW_S", 0.05)
    with pytest.raises(KeyboardInterrupt), Lease(store):  # noqa: PT012
        claim(store, time.time())
        time.sleep(5)
    assert json.loads(store.read(FILE))["host"] == "elsewhere"
