"""Two jobs cannot own one run; tests/chaos/test_ownership.py tries it with processes that race, die and sleep."""

import fcntl
import json
import time

import pytest
from harness.object_store import refusing

from scalablevit.config.errors import UserError
from scalablevit.run_files import LEASE, LEASE_LOCK
from scalablevit.runs import lease
from scalablevit.runs.lease import Lease
from scalablevit.runs.run_store import RunStore


@pytest.fixture
def store(tmp_path):
    return RunStore.open("run", None, tmp_path)


def claim(store):
    """As written by another machine; the same whenever it is written."""
    holder = {"token": "other", "host": "elsewhere", "machine": "other", "process": 7, "process_started": 1,
              "started": 0.0, "renewed": 0.0}  # fmt: skip
    store.write(LEASE, json.dumps(holder).encode())


def test_the_second_owner_is_told_who_holds_the_run(store):
    with Lease(store), pytest.raises(UserError, match=r"belongs to process \d+ on .* since"), Lease(store):
        pass


def test_a_released_run_can_be_claimed_again(store):
    for _ in range(2):
        with Lease(store):
            pass


def test_a_claim_of_another_machine_is_watched_for_a_sign_of_life(store, monkeypatch, capsys):
    monkeypatch.setattr(lease, "STALE_S", 0.5)
    claim(store)
    with Lease(store):
        pass
    assert "run run is claimed by process 7 on elsewhere; waiting up to" in capsys.readouterr().out


def test_on_storage_without_locks_the_later_of_two_writers_owns_the_run(store, monkeypatch):
    monkeypatch.setattr(lease, "_open_locked", lambda path: None)
    first, second = Lease(store), Lease(store)
    swap = first._swap

    def swap_and_be_overwritten(*arguments):
        swapped = swap(*arguments)
        store.write(LEASE, second._own_claim())
        return swapped

    monkeypatch.setattr(first, "_swap", swap_and_be_overwritten)
    with pytest.raises(UserError, match="belongs to process"), first:
        pass
    assert json.loads(store.read(LEASE))["token"] == second._token


def test_an_owner_that_overslept_does_not_take_its_claim_back(store, monkeypatch, capsys):
    """Two writers on one run must not be: the sleeper is interrupted instead."""
    monkeypatch.setattr(lease, "RENEW_S", 0.05)
    with pytest.raises(KeyboardInterrupt), Lease(store):  # noqa: PT012
        claim(store)
        time.sleep(60)
    assert json.loads(store.read(LEASE))["host"] == "elsewhere"
    assert "run run was taken over" in capsys.readouterr().err


def test_a_claim_that_was_removed_by_hand_is_written_again(store, monkeypatch):
    monkeypatch.setattr(lease, "RENEW_S", 0.05)
    with Lease(store):
        (store.local / LEASE).unlink()
        end = time.monotonic() + 30
        while store.read(LEASE) is None:
            assert time.monotonic() < end
            time.sleep(0.05)


def test_a_suspended_process_that_holds_the_lock_is_not_waited_for_for_ever(store, monkeypatch):
    monkeypatch.setattr(lease, "LOCK_S", 0.2)
    with (store.local / LEASE_LOCK).open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        with pytest.raises(UserError, match=r"lease\.lock: run run: another process has held the lock"), Lease(store):
            pass
    with Lease(store):
        pass


@pytest.mark.parametrize("content", [b"", b"{}", b"{", b"[]", b"3", b'{"host": "a"}', b"\xff"])
def test_a_file_that_holds_no_claim_is_no_obstacle(content, store):
    store.write(LEASE, content)
    with Lease(store):
        pass


def test_a_store_that_refuses_conditional_writes_is_said_in_one_sentence(tmp_path, monkeypatch, capsys):
    """With a real store: tests/cluster/test_object_storage.py."""
    with refusing(501, "NotImplemented") as away:
        away.use(monkeypatch)
        assert lease._conditional_file(RunStore("run", "s3://bucket/run", tmp_path)) is None
    said = capsys.readouterr().out
    assert said.startswith(
        "run run: its lease is the weaker one, by which the later of two jobs that start at once takes "
    )
    assert "since s3://bucket/run has no conditional writes for it (Generic S3 error" in said
    assert said.count("\n") == 1 and "-is-secret" not in said
