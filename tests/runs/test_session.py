"""What a run's session leaves when the run ends as it should not."""

from pathlib import Path

import pytest

from scalablevit.run_files import NOTIFICATIONS
from scalablevit.runs import session
from scalablevit.runs.run_store import RunStore
from scalablevit.runs.session import RunSession
from scalablevit.runs.status import Best
from scalablevit.tracking.notifications import Notifier
from scalablevit.tracking.outbox import read_lines


@pytest.mark.parametrize(
    ("error", "asked", "events"),
    [
        (RuntimeError("worker 1 died at /data/customer"), ("failed",), ["failed"]),
        (RuntimeError("worker 1 died"), ("finished",), []),
        (KeyboardInterrupt(), ("failed",), []),
    ],
)
def test_a_failure_is_notified_if_asked_for_and_an_interrupt_is_not(
    error: BaseException, asked: tuple[str, ...], events: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(session, "FAILED_DRAIN_S", 0)
    monkeypatch.setenv("SCALABLEVIT_NOTIFY_COMMAND", "/bin/true")
    store = RunStore.open("run", None, tmp_path)
    notifier = Notifier(tmp_path, asked, "run", "pretrain", store.location)

    def fail() -> None:
        with (
            RunSession(store, "http://127.0.0.1:9") as owned,
            owned.at_work("pretrain", 9, "steps", None, notifier) as status,
        ):
            status.update(best=Best("val/top1", 0.5, 4))
            raise error

    with pytest.raises(type(error)):
        fail()
    folder = tmp_path / NOTIFICATIONS / "command"
    records = [line.record for line in read_lines(folder)] if folder.exists() else []
    assert [record.event for record in records] == events
    assert all((record.metric, record.value, record.stage) == ("val/top1", 0.5, "pretrain") for record in records)
    assert "customer" not in repr(records), "reasons may name data"
