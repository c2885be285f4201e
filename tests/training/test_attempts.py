"""What became of a run's workers: read whatever a power cut left of the file, and nothing after it lost."""

import json
from pathlib import Path

import pytest

from scalablevit.run_files import ATTEMPTS
from scalablevit.training.attempts import AttemptsCallback, read_attempts

STARTED = {"event": "started", "entered": 1.0}


def test_half_a_line_costs_neither_the_run_nor_the_next_event(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / ATTEMPTS
    file.write_text(json.dumps(STARTED) + '\n{"event": "sta')
    events, offset = read_attempts(file)
    assert events == [STARTED]
    AttemptsCallback(file).after_exception(None, {1: RuntimeError("gone")})
    (lost,), end = read_attempts(file, offset)
    assert (lost["event"], lost["ranks"]) == ("lost", {"1": "gone"})
    assert end == file.stat().st_size
    assert "1 unreadable lines" in capsys.readouterr().err
    assert [event["event"] for event in read_attempts(file)[0]] == ["started", "lost"]


@pytest.mark.parametrize("line", [b'{"event": "sta{"event": "lost"}', b"\xff\xfe", b"7", b"{}", b'{"event": 7}', b""])
def test_lines_that_are_no_events_are_left_out(tmp_path: Path, line: bytes) -> None:
    file = tmp_path / ATTEMPTS
    file.write_bytes(line + b"\n" + json.dumps(STARTED).encode() + b"\n")
    assert read_attempts(file) == ([STARTED], file.stat().st_size)


def test_every_event_has_a_line(tmp_path: Path) -> None:
    callback = AttemptsCallback(tmp_path / ATTEMPTS)
    callback.after_report(None, [{"started": {"entered": 1.0}}, {}], None)
    callback.after_report(None, [{"started": {"entered": 2.0}}], None)
    assert (tmp_path / ATTEMPTS).read_text().count("\n") == 2
    assert [event["entered"] for event in read_attempts(tmp_path / ATTEMPTS)[0]] == [1.0, 2.0]
