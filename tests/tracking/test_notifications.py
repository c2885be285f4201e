"""From an event to people: only what was asked for, once, whatever dies in between, and in nobody's channel."""

import base64
import json
import logging
import os
import signal
import socket
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from harness.receiver import Receiver, receiving
from harness.toys import stage_of

from scalablevit.cli import main
from scalablevit.config.errors import UserError
from scalablevit.config.recipe import Event
from scalablevit.run_files import NOTIFICATIONS, RECORDS, REFUSED
from scalablevit.tracking import notifications
from scalablevit.tracking.notifications import (
    CHANNELS,
    NotificationSync,
    Notifier,
    format_body,
    run_command,
    sending_notifications,
)
from scalablevit.tracking.notify_settings import VARIABLE, load_settings
from scalablevit.tracking.outbox import Outbox, now_ms, read_lines
from scalablevit.tracking.records import NotificationRecord
from scalablevit.tracking.sync import UNCLEAR_TRIES

SECRET = base64.b64encode(b"canary-" * 5).decode()
FINISHED = [stage_of("pretrain", "tracking.notify=[finished]")]


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    with receiving() as found:
        yield found


@pytest.fixture
def set_up(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Set the operator's variables."""

    def set_all(**given: str) -> None:
        for name, value in {"secret": SECRET, **given}.items():
            monkeypatch.setenv(VARIABLE + name.upper(), value)

    return set_all


def notifier(root: Path, *events: Event) -> Notifier:
    return Notifier(root, events or ("finished",), "demo-pretrain-fa71791b5973", "pretrain", "/data/runs/demo")


def send(root: Path, channel: str = "webhook") -> Any:
    return NotificationSync(root, channel, load_settings()).send_left()


def recorded(root: Path, channel: str = "webhook") -> list[str]:
    folder = root / NOTIFICATIONS / channel
    records = [line.record for line in read_lines(folder)] if (folder / RECORDS).exists() else []
    return [record.event for record in records if isinstance(record, NotificationRecord)]


def script(folder: Path, *lines: str) -> str:
    """A program that runs these lines of Python."""
    file = folder / "notify.py"
    file.write_text("\n".join([f"#!{sys.executable} -SE", "import os, sys, time", *lines]))
    file.chmod(0o755)
    return str(file)


def test_only_the_events_that_a_recipe_names_are_recorded_for_the_channels_that_are_set_up(
    tmp_path: Path, set_up: Callable[..., None]
) -> None:
    notifier(tmp_path).record("finished")
    assert not (tmp_path / NOTIFICATIONS).exists(), "nothing is set up"
    set_up(webhook="https://hooks.example/")
    some = notifier(tmp_path, "failed", "stalled")
    for event in ("finished", "failed", "promoted", "refused", "stalled"):
        some.record(event)
    assert recorded(tmp_path) == ["failed", "stalled"] and recorded(tmp_path, "command") == []


def test_the_body_is_stable_and_holds_what_it_may(
    tmp_path: Path, set_up: Callable[..., None], receiver: Receiver
) -> None:
    set_up(webhook=receiver.address)
    before = time.time()
    notifier(tmp_path).record("finished", "val/top1", 0.9475, model="demo-pretrain", uid="ab12")
    assert (send(tmp_path).records, send(tmp_path).refused) == (0, 0)
    ((_, headers, body),) = receiver.posted
    found = json.loads(body)
    assert list(found) == [
        "format",
        "id",
        "time",
        "event",
        "run",
        "stage",
        "where",
        "metric",
        "value",
        "model",
        "version",
    ]
    assert found["time"].endswith("+00:00") and headers["webhook-id"] == "ab12"
    assert before - 1 <= int(headers["webhook-timestamp"]) <= time.time() + 1
    assert {name: value for name, value in found.items() if name != "time"} == {
        "format": 1, "id": "ab12", "event": "finished", "run": "demo-pretrain-fa71791b5973", "stage": "pretrain",
        "where": f"{socket.gethostname()}: /data/runs/demo", "metric": "val/top1", "value": 0.9475,
        "model": "demo-pretrain", "version": None,
    }  # fmt: skip


def test_chats_get_one_line_that_cannot_address_anybody() -> None:
    record = NotificationRecord("ab12", 0, "promoted", "<!channel> & *r*", None, "h: /d", "miou", 0.5, "m", 3)
    line = "promoted: <!channel> & *r*, miou 0.5000, model m version 3, at h: /d"
    assert json.loads(format_body(record, "slack")) == {
        "text": "promoted: &lt;!channel&gt; &amp; *r*, miou 0.5000, model m version 3, at h: /d",
        "mrkdwn": False,
    }
    (attached,) = json.loads(format_body(record, "teams"))["attachments"]
    assert attached["contentType"] == "application/vnd.microsoft.card.adaptive"
    ((run,),) = [block["inlines"] for block in attached["content"]["body"]]
    assert run == {"type": "TextRun", "text": line}


def test_a_value_that_is_no_number_is_null(tmp_path: Path, set_up: Callable[..., None], receiver: Receiver) -> None:
    set_up(webhook=receiver.address)
    notifier(tmp_path).record("finished", "val/top1", float("nan"))
    assert send(tmp_path).records == 0 and json.loads(receiver.posted[0][2])["value"] is None


def test_it_is_tried_again_after_an_error_with_the_same_id(
    tmp_path: Path, set_up: Callable[..., None], receiver: Receiver
) -> None:
    set_up(webhook=receiver.address)
    receiver.statuses += [500, 429]
    for event in ("finished", "failed"):
        notifier(tmp_path, "finished", "failed").record(event)
    assert [send(tmp_path).records for _ in range(3)] == [2, 2, 0]
    assert [json.loads(body)["event"] for _, _, body in receiver.posted] == ["finished"] * 3 + ["failed"]
    assert len({headers["webhook-id"] for _, headers, _ in receiver.posted}) == 2


def test_it_waits_for_a_receiver_that_is_not_there(tmp_path: Path, set_up: Callable[..., None]) -> None:
    with receiving() as gone:
        pass
    set_up(webhook=gone.address)
    notifier(tmp_path).record("finished")
    left = send(tmp_path)
    assert (left.records, left.error) == (1, "it cannot be reached: ConnectionRefusedError")
    with receiving(gone.port) as back:
        assert send(tmp_path).records == 0 and len(back.posted) == 1


def test_it_survives_a_kill(tmp_path: Path, set_up: Callable[..., None], receiver: Receiver) -> None:
    set_up(webhook=receiver.address)
    child = os.fork()
    if child == 0:
        notifier(tmp_path).record("finished")
        os.kill(os.getpid(), signal.SIGKILL)
    assert os.waitpid(child, 0)[1] == signal.SIGKILL
    with sending_notifications(tmp_path, FINISHED):  # the next job's
        pass
    assert len(receiver.posted) == 1
    with sending_notifications(tmp_path, FINISHED):
        pass
    assert len(receiver.posted) == 1, "once"


def test_a_dead_webhook_delays_neither_work_nor_the_command(
    tmp_path: Path, set_up: Callable[..., None], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(notifications, "DRAIN_S", 0.5)
    with receiving() as gone:
        pass
    got = tmp_path / "got"
    set_up(webhook=gone.address, command=script(tmp_path, f"open({str(got)!r}, 'w').write(sys.stdin.read())"))
    with sending_notifications(tmp_path, FINISHED):
        begin = time.monotonic()
        notifier(tmp_path).record("finished", model="demo")
        assert time.monotonic() - begin < 0.5
        deadline = time.monotonic() + 20
        while not (got.exists() and got.read_text()) and time.monotonic() < deadline:
            time.sleep(0.01)
        assert json.loads(got.read_text())["model"] == "demo"
        begin = time.monotonic()
    assert time.monotonic() - begin < 5
    out = capsys.readouterr().out
    assert "notifications by webhook: 1 records waiting" in out and "ConnectionRefusedError" in out
    assert (load_settings().command, send(tmp_path, "command").records) == ((str(tmp_path / "notify.py"),), 0)


def test_nothing_is_sent_for_a_recipe_that_asks_for_nothing(
    tmp_path: Path, set_up: Callable[..., None], receiver: Receiver
) -> None:
    set_up(webhook=receiver.address)
    notifier(tmp_path).record("finished")
    with sending_notifications(tmp_path, [stage_of("pretrain")]):
        time.sleep(0.05)
    assert not receiver.posted


def test_a_command_gets_words_as_they_are_and_no_shell(
    tmp_path: Path, set_up: Callable[..., None], capfd: pytest.CaptureFixture[str]
) -> None:
    got = tmp_path / "got"
    program = script(tmp_path, f"open({str(got)!r}, 'w').write(repr(sys.argv[1:]) + sys.stdin.read() + os.getcwd())",
                     "print('canary')")  # fmt: skip
    set_up(command=f"{program} 'a b' $HOME; *")
    notifier(tmp_path).record("finished")
    assert send(tmp_path, "command").records == 0
    assert got.read_text().startswith("['a b', '$HOME;', '*']{\"format\": 1, ") and got.read_text().endswith("}/")
    assert "canary" not in "".join(capfd.readouterr())


def test_a_command_is_killed_at_its_limit_and_what_it_started_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(notifications, "COMMAND_S", 1.0)
    pids = tmp_path / "pids"
    say = f"open({str(pids)!r}, 'a').write(f'{{os.getpid()}}\\n')"
    program = script(tmp_path, "child = os.fork()", say, "time.sleep(60)")
    begin = time.monotonic()
    assert run_command([program], b"{}") == "it took more than 1 s and was killed"
    assert time.monotonic() - begin < 10
    started = [int(pid) for pid in pids.read_text().split()]
    deadline = time.monotonic() + 10
    while any(is_alive(pid) for pid in started) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert len(started) == 2 and not any(is_alive(pid) for pid in started)


def test_a_command_gets_no_secret_of_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever its name is: a variable that is not known to be harmless may hold one."""
    got = tmp_path / "got"
    for name in ("MLFLOW_TRACKING_PASSWORD", "AWS_SECRET_ACCESS_KEY", "RAY_AUTH_TOKEN", f"{VARIABLE}SECRET",
                 f"{VARIABLE}WEBHOOK", "AZURE_STORAGE_KEY", "RAY_JOB_CONFIG_JSON_ENV_VAR", "https_proxy"):  # fmt: skip
        monkeypatch.setenv(name, "canary")
    monkeypatch.setenv("LANG", "C.UTF-8")
    monkeypatch.setenv("TZ", "UTC")
    program = script(tmp_path, f"open({str(got)!r}, 'w').write(repr(dict(os.environ)))")
    assert run_command([program], b"{}") == ""
    found = got.read_text()
    assert "canary" not in found and "'TZ': 'UTC'" in found and f"'PATH': {os.environ['PATH']!r}" in found


def test_a_command_that_is_interrupted_leaves_no_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ctrl-C in `scalablevit sync` does not reach the command, which has a session of its own."""
    pids = tmp_path / "pids"
    program = script(tmp_path, f"open({str(pids)!r}, 'w').write(str(os.getpid()))", "time.sleep(60)")

    def interrupt(*_: object) -> None:
        while not (pids.exists() and pids.read_text()):
            time.sleep(0.01)
        raise KeyboardInterrupt

    monkeypatch.setattr(notifications.subprocess.Popen, "communicate", interrupt)
    with pytest.raises(KeyboardInterrupt):
        run_command([program], b"{}")
    assert not is_alive(int(pids.read_text()))


def is_alive(pid: int) -> bool:
    """Whether a process runs; one that nobody has waited for does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def test_a_command_that_fails_is_tried_a_few_times_and_set_aside(tmp_path: Path, set_up: Callable[..., None]) -> None:
    runs = tmp_path / "runs"
    set_up(command=script(tmp_path, f"open({str(runs)!r}, 'a').write('x')", "sys.exit(3)"))
    sync = NotificationSync(tmp_path, "command", load_settings())
    notifier(tmp_path).record("finished")
    left = [sync.send_left() for _ in range(UNCLEAR_TRIES)]
    assert [pending.records for pending in left] == [1] * (UNCLEAR_TRIES - 1) + [0]
    assert left[0].error == "it ended with exit code 3" and left[-1].refused == 1
    assert runs.read_text() == "x" * UNCLEAR_TRIES
    assert run_command(["/nowhere/notify"], b"{}") == "it cannot be started: No such file or directory"


def test_what_is_refused_or_too_old_is_set_aside_and_the_rest_goes_on(
    tmp_path: Path, set_up: Callable[..., None], receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    set_up(webhook=receiver.address)
    receiver.statuses.append(400)
    monkeypatch.setattr(notifications, "now_ms", lambda: now_ms() - notifications.OLDEST_MS - 1000)
    notifier(tmp_path).record("finished")
    monkeypatch.undo()
    set_up(webhook=receiver.address)
    for _ in range(2):
        notifier(tmp_path).record("finished")
    left = send(tmp_path)
    assert (left.records, left.refused, len(receiver.posted)) == (0, 2, 2)
    aside = [json.loads(line) for line in (tmp_path / NOTIFICATIONS / "webhook" / REFUSED).read_text().splitlines()]
    assert [entry["reason"] for entry in aside] == ["it has waited for more than seven days", "it responded 400"]


@pytest.mark.parametrize(
    "given", [{"webhook": "canary"}, {"command": "canary"}, {"webhook": "https://h/", "secret": "canary"}]
)
def test_recording_fails_nothing(
    given: dict[str, str], tmp_path: Path, set_up: Callable[..., None], capsys: pytest.CaptureFixture[str]
) -> None:
    set_up(**given)
    notifier(tmp_path).record("finished")
    said = capsys.readouterr().err
    assert "demo-pretrain-fa71791b5973: nobody is notified of 'finished': SCALABLEVIT_NOTIFY_" in said
    assert "canary" not in said
    with pytest.raises(UserError, match="SCALABLEVIT_NOTIFY_"), sending_notifications(tmp_path, FINISHED):
        raise AssertionError("a job begins with settings of no use")


def test_a_root_that_cannot_be_written_fails_nothing(
    tmp_path: Path, set_up: Callable[..., None], capsys: pytest.CaptureFixture[str]
) -> None:
    set_up(webhook="https://hooks.example/")
    (tmp_path / NOTIFICATIONS).write_text("in place of a folder")
    with sending_notifications(tmp_path, FINISHED):
        notifier(tmp_path).record("finished")
    said = capsys.readouterr().err
    assert "nobody is notified by webhook: " in said and "nobody is notified of 'finished'" in said


def test_no_secret_is_in_a_file_a_log_or_what_is_printed(
    tmp_path: Path,
    set_up: Callable[..., None],
    receiver: Receiver,
    caplog: pytest.LogCaptureFixture,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(notifications, "DRAIN_S", 0.2)
    caplog.set_level(logging.DEBUG)
    root = tmp_path / "root"
    program = script(tmp_path, "print('canary')", "sys.exit('canary')")
    hook = f"http://127.0.0.1:{receiver.port}/services/canary?token=canary"
    set_up(webhook=hook, command=f"{program} canary")
    receiver.statuses += [400, 302] + [500] * 100
    for _ in range(3):
        notifier(root).record("finished")
    with sending_notifications(root, FINISHED):
        deadline = time.monotonic() + 20
        while len(receiver.posted) < 2 and time.monotonic() < deadline:
            time.sleep(0.01)
    assert main("sync", ["--root", str(root)]) == 1
    shown = "".join([caplog.text, *capfd.readouterr()])
    assert "it responded 400" in shown and "webhook: 2 records" in shown
    kept = b"".join(file.read_bytes() for file in root.rglob("*") if file.is_file())
    for secret in ("canary", SECRET, base64.b64decode(SECRET).hex(), str(receiver.port), str(program)):
        assert secret not in shown and secret.encode() not in kept, secret


def test_sync_sends_what_waits_and_says_why_not(
    tmp_path: Path, set_up: Callable[..., None], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def sync(*arguments: str) -> tuple[int, str]:
        code = main("sync", ["--root", str(tmp_path), *arguments])
        return code, capsys.readouterr().out

    with receiving() as receiver:
        set_up(webhook=receiver.address)
        Outbox(tmp_path / "runs" / "a-run" / "outbox").close()
        notifier(tmp_path).record("finished")
        receiver.statuses.append(404)
        assert sync("--dry-run") == (
            0,
            "a-run: 0 records would be sent\nnotifications/webhook: 1 records would be sent\n",
        )
        assert sync() == (1, "a-run: everything sent\nnotifications/webhook: 1 records left (it responded 404)\n")
        assert sync("a-run") == (0, "a-run: everything sent\n")
        assert sync()[0] == 0 and sync("--again")[0] == 0
        assert len(receiver.posted) == 2, "--again sends no notification again"
        notifier(tmp_path).record("finished")
        monkeypatch.delenv(f"{VARIABLE}WEBHOOK")
        code, said = sync()
        assert code == 1 and "1 records left (SCALABLEVIT_NOTIFY_WEBHOOK is not set)" in said


def test_every_channel_is_a_setting() -> None:
    assert set(CHANNELS) <= set(vars(load_settings({})))
