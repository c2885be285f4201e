"""What became of a run's workers: read whatever a power cut left of the file, and nothing after it lost."""

import json
from pathlib import Path

import pytest
from ray.core.generated.common_pb2 import ActorDiedErrorContext
from ray.exceptions import ActorDiedError

from scalablevit.run_files import ATTEMPTS
from scalablevit.training.attempt_events import Lost, StartupTimings, Submitted, UnknownEvent, add_event, read_attempts
from scalablevit.training.attempts import AttemptsCallback, reason_of

LINE = {"event": "started", "entered": 1.0}
"""As an earlier release wrote it."""
STARTED = StartupTimings(1.0)


def test_half_a_line_costs_neither_the_run_nor_the_next_event(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / ATTEMPTS
    file.write_text(json.dumps(LINE) + '\n{"event": "sta')
    events, offset = read_attempts(file)
    assert events == [STARTED]
    AttemptsCallback(file).after_exception(None, {1: RuntimeError("gone")})
    (lost,), end = read_attempts(file, offset)
    assert (lost.kind, lost.ranks) == ("lost", {"1": "gone"})
    assert end == file.stat().st_size
    assert "1 unreadable lines" in capsys.readouterr().err
    assert [event.kind for event in read_attempts(file)[0]] == ["started", "lost"]


@pytest.mark.parametrize("line", [b'{"event": "sta{"event": "lost"}', b"\xff\xfe", b"7", b"{}", b'{"event": 7}', b""])
def test_lines_that_are_no_events_are_left_out(tmp_path: Path, line: bytes) -> None:
    file = tmp_path / ATTEMPTS
    file.write_bytes(line + b"\n" + json.dumps(LINE).encode() + b"\n")
    assert read_attempts(file) == ([STARTED], file.stat().st_size)


def test_every_event_has_a_line(tmp_path: Path) -> None:
    callback = AttemptsCallback(tmp_path / ATTEMPTS)
    callback.after_report(None, [{"started": {"entered": 1.0}}, {}], None)
    callback.after_report(None, [{"started": {"entered": 2.0}}], None)
    assert (tmp_path / ATTEMPTS).read_text().count("\n") == 2
    assert [event.entered for event in read_attempts(tmp_path / ATTEMPTS)[0]] == [1.0, 2.0]


def test_the_file_is_written_as_it_always_was(tmp_path: Path) -> None:
    file = tmp_path / ATTEMPTS
    add_event(file, Submitted(1.0, None))
    add_event(file, StartupTimings(2.0, 3.0, 4.0, 5.0, 6.0, 7, 2))
    add_event(file, Lost(8.5, {"1": "gone"}))
    assert file.read_text() == (
        '{"event": "submitted", "time": 1.0, "last": null}\n'
        '{"event": "started", "entered": 2.0, "imported": 3.0, "opened": 4.0, "built": 5.0, "first_step": 6.0, '
        '"from_step": 7, "world": 2}\n'
        '{"event": "lost", "time": 8.5, "ranks": {"1": "gone"}}\n'
    )


def test_a_lost_worker_is_named_with_the_address_of_its_node() -> None:
    """As Ray words it, in the release that is installed."""
    context = ActorDiedErrorContext(class_name="RayTrainWorker", actor_id=bytes(16), pid=7, node_ip_address="10.77.0.2",
                                    error_message="The actor died because its node has died.")  # fmt: skip
    assert reason_of(ActorDiedError(context)) == (
        "node 10.77.0.2: The actor died unexpectedly before finishing this task."
    )
    assert (
        reason_of(RuntimeError("Traceback (most recent call last):\n  ...\nValueError: gone\n")) == "ValueError: gone"
    )


def test_checkpoints_that_were_passed_over_are_kept_with_the_attempt(tmp_path: Path) -> None:
    """`start.txt` has those of the last attempt only."""
    file = tmp_path / ATTEMPTS
    started = StartupTimings(2.0, passed_over="400 steps are done again")
    AttemptsCallback(file).after_report(None, [{"started": vars(started)}], None)
    assert read_attempts(file)[0] == [started]
    assert '"passed_over": "400 steps are done again"' in file.read_text()


def test_events_of_other_releases_are_read(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """An earlier one did not say when workers were lost; a later one may know more kinds and fields."""
    file = tmp_path / ATTEMPTS
    file.write_text('{"event": "lost", "ranks": {"0": "gone"}}\n{"event": "moved", "to": 1}\n'
                    '{"event": "submitted", "time": 1.0, "last": 0.5, "by": "x"}\n')  # fmt: skip
    assert read_attempts(file)[0] == [Lost(None, {"0": "gone"}), UnknownEvent("moved"), Submitted(1.0, 0.5)]
    assert capsys.readouterr().err == ""
