"""`infra/head.py submit` follows a job, and Ctrl-C or SIGTERM saves and ends it."""

import json
import os
import runpy
import signal
import subprocess
import sys
import threading
import time
import urllib.error
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

REPOSITORY = Path(__file__).parents[2]
TINY = REPOSITORY / "tests" / "end_to_end" / "tiny.yaml"
head_script = SimpleNamespace(**runpy.run_path(str(REPOSITORY / "infra" / "head.py")))


class Dashboard:
    """Stands for a head: answers what Ray's job API would, and notes what it was asked."""

    def __init__(self, states: list[str | None], accepts: list[bool] | None = None) -> None:
        self.states, self.accepts, self.stops = states, accepts or [True], 0

    def request(self, path: str, _timeout_s: float, method: str = "GET") -> bytes:
        if method == "POST":
            self.stops += 1
            return json.dumps({"stopped": self.accepts[min(self.stops, len(self.accepts)) - 1]}).encode()
        state = self.states.pop(0) if len(self.states) > 1 else self.states[0]
        if state is None:
            raise urllib.error.HTTPError(path, 404, "no such job", None, None)  # type: ignore[arg-type]
        return json.dumps({"status": state}).encode()


@pytest.fixture
def log() -> Iterator[Callable[[str], "subprocess.Popen[bytes]"]]:
    """Starts what shows the log, in a session of its own."""
    started: list[subprocess.Popen[bytes]] = []

    def start(command: str) -> "subprocess.Popen[bytes]":
        started.append(subprocess.Popen(["bash", "-c", command], start_new_session=True))
        return started[-1]

    yield start
    for process in started:
        process.kill()
        process.wait(timeout=20)


def signals_after(*moments: tuple[float, int]) -> None:
    """Send signals to this process, each so many seconds from now."""

    def send() -> None:
        begin = time.monotonic()
        for moment, number in moments:
            time.sleep(max(0.0, begin + moment - time.monotonic()))
            os.kill(os.getpid(), number)

    threading.Thread(target=send, daemon=True).start()


def follow(head: Dashboard, process: Any, limit_s: float = 60.0) -> int:
    with head_script.SignalCounter() as signals:
        return int(head_script.follow(Path("/my root"), head, "job-1", process, signals, time.monotonic() + limit_s))


def test_without_a_signal_the_code_is_that_of_what_shows_the_log(log: Any) -> None:
    head = Dashboard(["RUNNING"])
    assert follow(head, log("exit 1")) == 1
    assert head.stops == 0


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_first_signal_stops_the_job_and_waits_for_its_end(log: Any, capfd: Any, number: int) -> None:
    head = Dashboard(["RUNNING"] * 5 + ["STOPPED"])
    signals_after((0.3, number))
    assert follow(head, log("sleep 2; echo the last line")) == 130
    assert head.stops == 1
    out = capfd.readouterr().out
    assert out.index("stopping job job-1") < out.index("the last line") < out.index("job job-1: STOPPED")


@pytest.mark.parametrize(("state", "code"), [("STOPPED", 130), ("SUCCEEDED", 0), ("FAILED", 1)])
def test_an_end_that_is_printed_already_is_not_printed_again(log: Any, capfd: Any, state: str, code: int) -> None:
    """`job.py` prints it with the end of the log."""
    head = Dashboard(["RUNNING"] * 3 + [state])
    signals_after((0.2, signal.SIGINT))
    assert follow(head, log(f"sleep 1; echo job job-1: {state}; exit {code}")) == (130 if code else 0)
    assert capfd.readouterr().out.count(f"job job-1: {state}") == 1


@pytest.mark.parametrize("command", ["sleep 1; exit 1", "sleep 1; kill -9 $$"])
def test_the_end_is_printed_where_what_shows_the_log_has_failed(log: Any, capfd: Any, command: str) -> None:
    signals_after((0.2, signal.SIGINT))
    assert follow(Dashboard(["RUNNING"] * 3 + ["STOPPED"]), log(command)) == 130
    assert capfd.readouterr().out.count("job job-1: STOPPED") == 1


def test_a_signal_that_comes_twice_at_once_is_one(log: Any) -> None:
    """To the group, and from make, which passes SIGTERM on."""
    head = Dashboard(["RUNNING"] * 3 + ["STOPPED"])
    signals_after((0.3, signal.SIGTERM), (0.4, signal.SIGTERM))
    assert follow(head, log("sleep 1")) == 130
    assert head.states == ["STOPPED"]


@pytest.mark.parametrize(
    ("accepts", "what"), [(True, "was asked to stop, and may still be saving"), (False, "goes on by itself")]
)
def test_the_second_signal_leaves_at_once_and_says_how_to_stop(log: Any, capfd: Any, accepts: bool, what: str) -> None:
    head = Dashboard(["RUNNING"], [accepts])
    signals_after((0.2, signal.SIGINT), (1.5, signal.SIGINT))
    begin = time.monotonic()
    assert follow(head, log("sleep 60")) == 130
    assert time.monotonic() - begin < 15
    out = capfd.readouterr().out
    assert f"job job-1 {what}. Its runs:" in out and "runs.py stop RUN --root '/my root'" in out


def test_a_closed_terminal_and_the_time_limit_leave_the_job_alone(log: Any, capfd: Any) -> None:
    head = Dashboard(["RUNNING"])
    signals_after((0.2, signal.SIGHUP))
    assert follow(head, log("sleep 60")) == 124
    assert follow(head, log("sleep 60"), limit_s=0.3) == 124
    assert head.stops == 0 and capfd.readouterr().out.count("goes on by itself") == 2


def test_a_job_that_does_not_take_the_request_yet_is_asked_again(log: Any) -> None:
    head = Dashboard(["PENDING"] * 4 + ["RUNNING", "STOPPED"], accepts=[False, False, True])
    signals_after((0.2, signal.SIGINT))
    assert follow(head, log("sleep 2")) == 130
    assert head.stops == 3


def test_an_upload_is_ended_and_nothing_was_submitted(log: Any, capfd: Any) -> None:
    process = log("sleep 60")
    signals_after((0.2, signal.SIGINT))
    assert follow(Dashboard([None]), process) == 130
    assert process.poll() is not None and "was not submitted" in capfd.readouterr().out


def test_a_job_that_had_ended_well_has_succeeded(log: Any) -> None:
    signals_after((0.2, signal.SIGINT))
    assert follow(Dashboard(["SUCCEEDED"]), log("sleep 1")) == 0


@pytest.mark.parametrize(
    ("text", "expected"), [("90", 90), ("90s", 90), ("15m", 900), ("48h", 172_800), ("1d", 86_400)]
)
def test_time_spans(text: str, expected: float) -> None:
    assert head_script.seconds(text) == expected


def test_a_command_keeps_its_own_options() -> None:
    given = ["submit", "--root", "/r", "--", "python", "pipelines/full.py", "--recipe", "a b.yaml", "--root", "/x"]
    options = head_script.parse(given)
    assert options.entrypoint == given[4:] and str(options.root) == "/r"


def test_without_a_head_there_is_a_message(tmp_path: Path) -> None:
    command = [sys.executable, str(REPOSITORY / "infra" / "head.py"), "--root", str(tmp_path), "submit", "--", "true"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stderr) == (1, f"error: no head answers for {tmp_path}; start one first\n")


def test_a_head_that_is_gone_is_said_in_one_line(tmp_path: Path, capfd: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """What submits runs with the head's address and token, and its exit code is passed on."""
    (tmp_path / "ray_token").write_text("0" * 64)
    gone = head_script.Head("1", 1, "http://127.0.0.1:9", "127.0.0.1:8", str(tmp_path / "ray_token"), "", "")
    monkeypatch.setitem(head_script.submit.__globals__, "answering_head", lambda _: gone)
    assert head_script.submit(tmp_path, ["true"], 60.0) == 1
    said = capfd.readouterr()
    assert said.err.startswith("error: job raysubmit_") and said.err.count("\n") == 1, said.err
    assert "http://127.0.0.1:9" in said.err and said.out.startswith("The Ray head stays up")
    assert "When the cause is fixed" in said.out


@pytest.mark.parametrize(("code", "last"), [(0, "stops it."), (124, "continues the run."), (130, "continues the run.")])
def test_only_what_has_not_ended_well_can_be_continued(
    tmp_path: Path, capfd: Any, monkeypatch: pytest.MonkeyPatch, code: int, last: str
) -> None:
    (tmp_path / "ray_token").write_text("0" * 64)
    head = head_script.Head("1", 1, "http://127.0.0.1:9", "127.0.0.1:8", str(tmp_path / "ray_token"), "", "")
    monkeypatch.setitem(head_script.submit.__globals__, "answering_head", lambda _: head)
    monkeypatch.setitem(head_script.submit.__globals__, "follow", lambda *_: code)
    assert head_script.submit(tmp_path, ["true"], 60.0) == code
    assert capfd.readouterr().out.strip().endswith(last)


# --- the real thing ---


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A root with blank and # in its name, whose head is stopped at the end."""
    root = tmp_path_factory.mktemp("ctrl-c") / "exp #2"
    yield root
    subprocess.run([sys.executable, str(REPOSITORY / "infra" / "head.py"), "--root", str(root), "stop"], timeout=180,
                   check=True)  # fmt: skip


@pytest.mark.long
@pytest.mark.rotating("ctrl-c in make full", 170)
@pytest.mark.ray
@pytest.mark.timeout(600)
@pytest.mark.parametrize(("number", "to_group"), [(signal.SIGINT, True), (signal.SIGTERM, False)])
def test_a_signal_to_make_full_saves_and_ends_the_job(root: Path, tmp_path: Path, number: int, to_group: bool) -> None:
    """Ctrl-C goes to the terminal's whole group, `kill` to make alone."""
    training = "stages.pretrain.training."
    given = [f"{training}steps=5000", f"{training}evaluate_every.steps=4", f"{training}seed={int(number)}"]
    arguments = " ".join(["--recipe", str(TINY), "cluster.workers=1", *given])
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("MAKE", "MFLAGS", "RAY_"))}
    output = tmp_path / "output"
    with output.open("w") as file:
        process = subprocess.Popen(
            ["make", "full", f"ARGS={arguments}"], cwd=REPOSITORY, env={**environment, "SCALABLEVIT_ROOT": str(root)},
            stdout=file, stderr=subprocess.STDOUT, start_new_session=True,
        )  # fmt: skip
    try:
        known = set(root.glob("runs/tiny-pretrain-*"))
        deadline = time.monotonic() + 300
        while (
            not (saved := list(root.glob("runs/tiny-pretrain-*/checkpoints/*/manifest.json")))
            or {manifest.parents[2] for manifest in saved} <= known
        ):
            assert process.poll() is None and time.monotonic() < deadline, output.read_text()
            time.sleep(0.2)
        (os.killpg if to_group else os.kill)(process.pid, number)
        process.wait(timeout=150)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait(timeout=20)
    shown = output.read_text()
    assert process.returncode in (-number, 2), shown
    assert "stopping job raysubmit_" in shown and "saving first" in shown and shown.count(": STOPPED") == 1, shown
    assert "Aborted!" not in shown and "Traceback" not in shown, shown
    assert " is submitted (Ctrl-C lets it save and end)" in shown, shown
    assert not [part for part in ("INFO ", "SUCC ", "Running entrypoint", "ignored by default") if part in shown], shown
    (run,) = {manifest.parents[2] for manifest in root.glob("runs/tiny-pretrain-*/checkpoints/*/manifest.json")} - known
    ended = json.loads((run / "status.json").read_text())
    assert ended["state"] == "killed", ended
    steps = [json.loads(path.read_text())["step"] for path in run.glob("checkpoints/*/manifest.json")]
    assert max(steps) >= ended["step"], (steps, ended)
    assert json.loads((run / "lease.json").read_text()) == {}
    assert {path.name for path in root.parent.iterdir()} == {root.name}
