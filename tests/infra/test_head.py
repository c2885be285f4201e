"""The local Ray head: started once, closed to strangers, and gone without a trace."""

import json
import os
import runpy
import signal
import socket
import stat
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from harness.machines import be_machine

SCRIPT = Path(__file__).parents[2] / "infra" / "head.py"


def head(root: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(SCRIPT), "--root", str(root), *arguments],
        capture_output=True, text=True, timeout=200, check=False,
    )  # fmt: skip


def record(root: Path) -> dict[str, str]:
    loaded = json.loads((root / "head.json").read_text(encoding="utf-8"))
    assert isinstance(loaded, dict)
    return loaded


def family(root: Path) -> list[psutil.Process]:
    """Every process that the head started, found by what it inherited."""
    mark = record(root)["id"]
    found = []
    for process in psutil.process_iter():
        try:
            if process.environ().get("SCALABLEVIT_HEAD_ID") == mark:
                found.append(process)
        except psutil.Error:
            continue
    return found


def alive(processes: list[psutil.Process]) -> list[psutil.Process]:
    return [each for each in processes if each.is_running() and each.status() != psutil.STATUS_ZOMBIE]


def status_of(url: str, token: str | None) -> int:
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        request = urllib.request.Request(url, headers=headers)  # noqa: S310 (the head's own address)
        with opener.open(request, timeout=20) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as error:
        return error.code


@pytest.fixture
def root(tmp_path: Path) -> Iterator[Path]:
    yield tmp_path / "root"
    head(tmp_path / "root", "stop")


@pytest.mark.ray
@pytest.mark.timeout(400)
def test_start_use_and_stop(root: Path) -> None:
    started = head(root, "start", "--num-cpus", "1")
    assert started.returncode == 0, started.stderr
    first = record(root)
    assert f"dashboard {first['dashboard']}" in started.stdout
    assert first["machine"].split()[0] == socket.gethostname()
    processes = family(root)
    assert any("raylet" in each.name() for each in processes)

    # a second start finds it
    assert head(root, "start").returncode == 0
    assert record(root) == first
    assert head(root, "status").returncode == 0

    # the token is the owner's, and nothing is answered without it
    token_file = Path(first["token_file"])
    assert stat.S_IMODE(token_file.stat().st_mode) == 0o600
    token = token_file.read_text(encoding="ascii")
    jobs = f"{first['dashboard']}/api/jobs/"
    assert status_of(jobs, token=None) == 401
    assert status_of(jobs, token="0" * 64) in (401, 403)
    assert status_of(jobs, token=token) == 200
    assert token not in " ".join(word for each in processes for word in each.cmdline())

    # every open port is on the loopback interface
    addresses = {
        connection.laddr.ip.removeprefix("::ffff:")
        for each in alive(processes)
        for connection in each.net_connections("tcp")
        if connection.status == psutil.CONN_LISTEN
    }
    assert addresses == {"127.0.0.1"}

    # the exports lead Ray's own command line there; no job has been submitted
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    listed = subprocess.run(
        ["bash", "-c", f'eval "$({sys.executable} {SCRIPT} --root {root} env)" && ray job list'],
        env=os.environ | {"PATH": path, "RAY_AUTH_TOKEN": "wrong"},
        capture_output=True, text=True, timeout=180, check=False,
    )  # fmt: skip
    assert listed.returncode == 0, listed.stderr
    assert listed.stdout.strip().endswith("[]")

    stopped = head(root, "stop")
    assert stopped.returncode == 0, stopped.stderr
    assert alive(processes) == []
    assert not (root / "head.json").exists()
    assert not Path(first["temp_dir"]).exists()
    assert head(root, "status").returncode == 1


@pytest.mark.ray
@pytest.mark.long
@pytest.mark.rotating("dead head", 35)
@pytest.mark.timeout(400)
def test_a_dead_head_is_replaced(root: Path) -> None:
    assert head(root, "start", "--num-cpus", "1").returncode == 0
    first, processes = record(root), family(root)
    os.kill(int(first["pid"]), signal.SIGKILL)
    assert head(root, "start", "--num-cpus", "1").returncode == 0
    second = record(root)
    assert second["id"] != first["id"]
    assert alive(processes) == []
    assert not Path(first["temp_dir"]).exists()
    assert second["token_file"] == first["token_file"]


def test_a_head_that_lives_and_does_not_answer_is_not_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its jobs would be killed: a machine may be too busy for an answer."""
    script = runpy.run_path(str(SCRIPT))
    monkeypatch.setitem(script["start"].__globals__, "SILENT_S", 0.5)
    busy = subprocess.Popen(["sleep", "60"], env={**os.environ, script["MARKER"]: "4711"})
    try:
        recorded = script["Head"](
            id="4711", pid=busy.pid, dashboard="http://127.0.0.1:9", address="127.0.0.1:9", log="head.log",
            token_file=str(tmp_path / "none"), temp_dir=str(tmp_path / "t"),
        )  # fmt: skip
        script["write_record"](tmp_path, recorded)
        with pytest.raises(script["HeadError"], match="its jobs may be running"):
            script["start"](tmp_path, None, 1.0)
        assert busy.poll() is None and record(tmp_path)["id"] == "4711"
    finally:
        busy.kill()
        busy.wait()


@pytest.fixture
def elsewhere(tmp_path: Path) -> Iterator[tuple[dict[str, Any], "subprocess.Popen[bytes]"]]:
    """The script, and a process with the id and marker of a head that another machine recorded in the root."""
    script = runpy.run_path(str(SCRIPT))
    process = subprocess.Popen(["sleep", "60"])
    recorded = script["Head"](
        id="4711", pid=process.pid, dashboard="http://127.0.0.1:9", address="127.0.0.1:9", log="head.log",
        token_file=str(tmp_path / "none"), temp_dir=str(tmp_path / "t"), machine="other-host 0123456789ab",
    )  # fmt: skip
    (tmp_path / "t").mkdir()
    script["write_record"](tmp_path, recorded)
    yield script, process
    process.kill()
    process.wait()


@pytest.mark.parametrize("command", [["start"], ["status"], ["stop"], ["env"], ["submit", "--", "true"]])
def test_a_head_of_another_machine_is_left_alone(
    elsewhere: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str], command: list[str]
) -> None:
    """Its process id and 127.0.0.1 are something else here."""
    script, process = elsewhere
    before = (tmp_path / "head.json").read_bytes()
    assert script["main"](["--root", str(tmp_path), *command]) == 1
    printed = capsys.readouterr()
    assert printed.out == ""
    (line,) = printed.err.splitlines()
    assert "was started on other-host and can be used and stopped there only" in line
    assert "another --root" in line and f"remove {tmp_path}/head.json" in line
    assert (tmp_path / "head.json").read_bytes() == before and (tmp_path / "t").is_dir() and process.poll() is None


RECORD = {"id": "4711", "pid": 2**30, "dashboard": "", "address": "", "token_file": "", "temp_dir": "", "log": ""}


@pytest.mark.parametrize(
    ("started_on", "now", "ours"),
    [
        (("a1", "4" * 32), ("b2", "4" * 32), True),  # renamed, or a container started again with the node's id mounted
        (("a1", "4" * 32), ("a1", "5" * 32), False),  # two machines of one name
        (("a1", None), ("a1", None), True),
        (("a1", None), ("b2", None), False),
        (("a1", "uninitialized\n"), ("b2", "uninitialized\n"), False),
        (("a1", "4" * 32), ("a1", None), True),
    ],
)
def test_a_machine_is_known_by_its_id_else_by_its_host_name(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path,
    started_on: tuple[str, str | None], now: tuple[str, str | None], ours: bool,
) -> None:  # fmt: skip
    script = runpy.run_path(str(SCRIPT))
    be_machine(monkeypatch, tmp_path, *started_on)
    name = script["machine_name"]()
    assert "4" * 32 not in name, "the id itself is nobody's business"
    (tmp_path / "head.json").write_text(json.dumps({**RECORD, "machine": name}), encoding="utf-8")
    be_machine(monkeypatch, tmp_path, *now)
    if ours:
        assert script["read_record"](tmp_path).id == "4711"
    else:
        with pytest.raises(script["HeadError"], match=r"was started on a1 .* there only"):
            script["read_record"](tmp_path)


@pytest.mark.parametrize("more", [{}, {"machine": ""}, {"of_a_later_release": 1}])
def test_records_of_other_releases_are_read(tmp_path: Path, more: dict[str, Any]) -> None:
    script = runpy.run_path(str(SCRIPT))
    (tmp_path / "head.json").write_text(json.dumps({**RECORD, **more}), encoding="utf-8")
    assert script["read_record"](tmp_path) == script["Head"](**RECORD)


def test_nothing_recorded(tmp_path: Path) -> None:
    assert head(tmp_path, "status").returncode == 1
    assert "no head recorded" in head(tmp_path, "stop").stdout
    asked = head(tmp_path, "env")
    assert asked.returncode == 1
    assert asked.stdout == ""
    assert "no head answers" in asked.stderr


def test_a_damaged_record_is_named(tmp_path: Path) -> None:
    (tmp_path / "head.json").write_text("{", encoding="utf-8")
    for command in ("start", "status", "stop", "env"):
        done = head(tmp_path, command)
        assert done.returncode == 1
        assert "head.json is damaged" in done.stderr
        assert "Traceback" not in done.stderr


def test_a_head_that_ends_at_once_is_reported_with_its_output(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_START_HOOK", "no_such_module.hook")
    done = head(tmp_path, "start")
    assert done.returncode == 1
    assert "the Ray head ended with code" in done.stderr
    assert "no_such_module" in done.stderr
    assert not (tmp_path / "head.json").exists()


def test_a_server_that_never_answers_does_not_hold_anyone_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A recorded address behind which something else listens by now; in this process, with a shorter patience."""
    script = runpy.run_path(str(SCRIPT))
    request, asked = script["Head"].request, []

    def hasty(self: object, path: str, timeout_s: float, method: str = "GET") -> bytes:
        asked.append(timeout_s)
        return bytes(request(self, path, timeout_s / 10, method))

    monkeypatch.setattr(script["Head"], "request", hasty)
    (tmp_path / "ray_token").write_text("0" * 64, encoding="ascii")
    with socket.create_server(("127.0.0.1", 0)) as silent:
        fields = {"id": "none", "pid": 2**30, "address": "127.0.0.1:1", "temp_dir": str(tmp_path / "gone"), "log": "",
                  "token_file": str(tmp_path / "ray_token"),
                  "dashboard": f"http://127.0.0.1:{silent.getsockname()[1]}"}  # fmt: skip
        (tmp_path / "head.json").write_text(json.dumps(fields), encoding="utf-8")
        begin = time.monotonic()
        assert script["main"](["--root", str(tmp_path), "status"]) == 1
        assert script["main"](["--root", str(tmp_path), "stop"]) == 0
        assert time.monotonic() - begin < 30
    assert asked and sum(asked) <= 20, "for how long a user would wait"
    assert not (tmp_path / "head.json").exists()
