"""Start, show and stop one local Ray head (loopback only, with a token), and run jobs on it that Ctrl-C ends."""

import argparse
import contextlib
import dataclasses
import fcntl
import json
import os
import random
import secrets
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(REPOSITORY / "platform"))
from scalablevit.machine import is_this_machine, machine_name  # noqa: E402  # of this checkout, as in pipelines/

LOOPBACK = "127.0.0.1"
MARKER = "SCALABLEVIT_HEAD_ID"
"""Environment variable that every process of a head inherits, by which `stop` finds them."""
SINGLE_NODE = {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0"}
"""Ray's switch for a cluster of one machine: without it Ray replaces 127.0.0.1 by the machine's address and listens on
all interfaces."""
SOCKET_ROOM = 66
"""Bytes that Ray's session and socket names add to the temporary folder; a unix socket's path has at most 107."""
JOB_STOP_S = 90
"""Seconds between the request to stop a job and its being killed: enough to disconnect from Ray and to send the end to
MLflow, also on a busy machine."""
LEAVE_S = 30.0
"""Seconds after `JOB_STOP_S` for Ray to kill the job and to report its end."""
ONE_SIGNAL_S = 1.0
"""Seconds within which signals count as one: `kill -TERM -<group>` reaches a process directly and through make."""
POLL_S = 0.2
"""Seconds between two checks of a job."""
SILENT_S = 30.0
"""Longest time in seconds that `start` waits for a head that lives and does not answer."""
SHOWN_END = {"SUCCEEDED": 0, "FAILED": 1, "STOPPED": 130}
"""States of a job that Ray will not change, with the exit code of `job.py` once it has printed that state, or an error.
"""

CONTINUES = {
    1: "When the cause is fixed, the same command continues what was begun.",
    124: "Once the job has ended, the same command continues the run.",
    130: "Once the job has ended, the same command continues the run.",
}
"""What `submit` prints at its end, by its exit code; after a success there is nothing to continue."""


class HeadError(Exception):
    """The head cannot be started, stopped or used; the message is for the user."""


@dataclasses.dataclass(frozen=True)
class Head:
    """A head as recorded in `<root>/head.json`."""

    id: str
    """Value of `MARKER` in the environment of its processes."""
    pid: int
    """Process id of `ray start`."""
    dashboard: str
    """Address of the dashboard, http://host:port."""
    address: str
    """Address for `ray.init`, host:port."""
    token_file: str
    temp_dir: str
    """Ray's temporary folder, with its logs."""
    log: str
    """File with the output of `ray start`."""
    machine: str = ""
    """`machine_name()` where it was started; records of earlier releases lack it."""

    def request(self, path: str, timeout_s: float, method: str = "GET") -> bytes:
        """Return the body of the dashboard's response.

        Args:
            path: path of the request, such as `/api/jobs/`.
            timeout_s: longest wait in seconds.
            method: HTTP method.

        Raises:
            OSError: there is no response, or an error status (urllib's HTTPError).
        """
        token = Path(self.token_file).read_text(encoding="ascii").strip()
        request = urllib.request.Request(  # noqa: S310 (the address is one that `start` made)
            self.dashboard + path, method=method, headers={"Authorization": f"Bearer {token}"}
        )
        # no proxies: the address is this machine's own
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        with opener.open(request, timeout=timeout_s) as response:
            return bytes(response.read())

    def answers(self, timeout_s: float = 5.0) -> bool:
        """Return whether the dashboard answers within `timeout_s` seconds and a node is ready for work."""
        try:
            nodes = json.loads(self.request("/api/v0/nodes", timeout_s))["data"]["result"]["result"]
        except (OSError, ValueError, KeyError, TypeError):
            return False
        return any(node["state"] == "ALIVE" for node in nodes)

    def exports(self) -> dict[str, str]:
        """Return the environment variables that lead Ray's command line and `ray.init` to this head."""
        hosts = [host for host in os.environ.get("NO_PROXY", "").split(",") if host]
        return {
            "RAY_API_SERVER_ADDRESS": self.dashboard,
            "RAY_ADDRESS": self.address,
            **SINGLE_NODE,
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN_PATH": self.token_file,
            "NO_PROXY": ",".join(hosts if LOOPBACK in hosts else [*hosts, LOOPBACK]),
        }


def read_record(root: Path) -> Head | None:
    """Return the recorded head of this machine, running or not; None without a record.

    Raises:
        HeadError: the record is damaged, or of a head on another machine that shares the root.
    """
    record = root / "head.json"
    try:
        recorded = json.loads(record.read_text(encoding="utf-8"))
        names = [field.name for field in dataclasses.fields(Head) if field.name in recorded]
        head = Head(**{name: recorded[name] for name in names})  # a later release may record more
    except FileNotFoundError:
        return None
    except (ValueError, TypeError) as error:
        raise HeadError(f"{record} is damaged ({error}); remove it if no head is running") from None
    if head.machine and not is_this_machine(head.machine):  # its address and process id mean something else here
        host = head.machine.partition(" ")[0]
        raise HeadError(
            f"the head of {root} was started on {host} and can be used and stopped there only; take another --root "
            f"here (or SCALABLEVIT_ROOT), or remove {record} if that machine or container is gone"
        )
    return head


def write_record(root: Path, head: Head) -> None:
    """Write `<root>/head.json`, replaced as a whole."""
    draft = root / "head.json.new"
    draft.write_text(json.dumps(dataclasses.asdict(head), indent=2) + "\n", encoding="utf-8")
    draft.replace(root / "head.json")


def processes_of(head: Head) -> list[int]:
    """Return the ids of the living processes with the head's marker in their environment (Linux: /proc)."""
    marker = f"{MARKER}={head.id}".encode()
    pids = []
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit() or int(entry.name) == os.getpid():
            continue
        # the process has ended meanwhile, or is another user's
        with contextlib.suppress(OSError):
            if marker in (entry / "environ").read_bytes().split(b"\0"):
                pids.append(int(entry.name))
    return sorted(pids)


@contextlib.contextmanager
def exclusive(root: Path, timeout_s: float) -> Iterator[None]:
    """Allow one `start` or `stop` at a time for a root.

    Raises:
        HeadError: another one takes more than `timeout_s` seconds.
    """
    with (root / "head.lock").open("w") as lock:
        deadline = time.monotonic() + timeout_s
        while True:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > deadline:
                    raise HeadError(f"another start or stop holds {lock.name} for over {timeout_s:.0f} s") from None
                time.sleep(0.2)
        yield


def make_token(root: Path) -> Path:
    """Return the root's token file, created once, readable by its owner only."""
    path = root / "ray_token"
    if not path.exists():
        draft = root / f"ray_token.{secrets.token_hex(4)}"
        with os.fdopen(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
            file.write(secrets.token_hex(32))
        draft.replace(path)
    path.chmod(0o600)
    return path


def make_temp_dir() -> Path:
    """Return a new folder whose path is short enough for Ray's sockets.

    Raises:
        HeadError: no temporary folder has a path that is short enough.
    """
    for parent in (tempfile.gettempdir(), "/tmp"):  # noqa: S108 (mkdtemp makes a private folder there)
        if len(os.fsencode(parent)) + len("/sv-12345678") + SOCKET_ROOM <= 107:
            return Path(tempfile.mkdtemp(prefix="sv-", dir=parent))
    raise HeadError(
        "no temporary folder with a short enough path for Ray's sockets; set TMPDIR to one of at most 29 bytes"
    )


def free_ports(count: int) -> list[int]:
    """Return distinct free ports below the range from which the kernel gives ports to connections.

    Raises:
        HeadError: there are not enough free ports.
    """
    ports: list[int] = []
    for port in random.SystemRandom().sample(range(20_000, 32_000), 1000):
        with socket.socket() as probe:
            try:
                probe.bind((LOOPBACK, port))
            except OSError:
                continue
        ports.append(port)
        if len(ports) == count:
            return ports
    raise HeadError("no free ports between 20000 and 32000")


def environment(root: Path, head_id: str, token_file: Path, metric_ports: Sequence[int]) -> dict[str, str]:
    """Return the environment of the head, which its jobs and workers inherit."""
    of_other_heads = {"RAY_ADDRESS", "RAY_API_SERVER_ADDRESS", "RAY_AUTH_TOKEN"}
    inherited = {key: value for key, value in os.environ.items() if key not in of_other_heads}
    # one thread per process unless asked otherwise: training sets its own number from cluster.cpus_per_worker
    return (
        {"OMP_NUM_THREADS": "1"}
        | inherited
        | {
            MARKER: head_id,
            "SCALABLEVIT_ROOT": str(root),
            # PATH is where `python` of an entrypoint is looked up
            "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)]),
            **SINGLE_NODE,
            "AUTOSCALER_METRIC_PORT": str(metric_ports[0]),
            "DASHBOARD_METRIC_PORT": str(metric_ports[1]),
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN_PATH": str(token_file),
            "RAY_JOB_STOP_WAIT_TIME_S": str(JOB_STOP_S),
            # `stop` has ended the jobs before, so there is nothing to drain
            "RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S": "0",
            "PYTHONUNBUFFERED": "1",
        }
    )


def start(root: Path, num_cpus: int | None, timeout_s: float) -> Head:
    """Start a head unless the recorded one answers, and return it; the remains of a dead one are removed first.

    Args:
        root: the platform's root folder.
        num_cpus: CPUs that Ray may give out; None: all.
        timeout_s: longest wait in seconds for the head to answer.

    Raises:
        HeadError: Ray is missing, the head ends or does not answer in time, or an earlier one lives and does not.
    """
    recorded = read_record(root)
    if recorded is not None:
        if answers_again(recorded):
            return recorded
        clear(root, recorded)
    ray = Path(sys.executable).parent / "ray"
    print(f"starting a Ray head for {root} (at most {timeout_s:.0f} s)", flush=True)
    if not ray.exists():
        raise HeadError(f"{ray} is missing: run this with the Python of the environment that holds Ray (make setup)")
    gcs, dashboard, agent, client, *metric_ports = free_ports(6)
    token_file, temp_dir, head_id = make_token(root), make_temp_dir(), secrets.token_hex(8)
    log = root / "head.log"
    command = [str(ray), "start", "--head", "--block", "--disable-usage-stats", "--include-dashboard", "true",
               "--node-ip-address", LOOPBACK, "--port", str(gcs), "--dashboard-host", LOOPBACK,
               "--dashboard-port", str(dashboard), "--dashboard-agent-listen-port", str(agent),
               "--ray-client-server-port", str(client), "--min-worker-port", "0", "--max-worker-port", "0",
               "--temp-dir", str(temp_dir)]  # fmt: skip
    if num_cpus is not None:
        command += ["--num-cpus", str(num_cpus)]
    with log.open("w") as output:
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT, cwd=root,
            env=environment(root, head_id, token_file, metric_ports), start_new_session=True,
        )  # fmt: skip
    head = Head(
        id=head_id, pid=process.pid, dashboard=f"http://{LOOPBACK}:{dashboard}", address=f"{LOOPBACK}:{gcs}",
        token_file=str(token_file), temp_dir=str(temp_dir), log=str(log), machine=machine_name(),
    )  # fmt: skip
    write_record(root, head)
    deadline = time.monotonic() + timeout_s
    while not head.answers():
        ended = process.poll()
        if ended is not None or time.monotonic() > deadline:
            tail = log.read_text(errors="replace").strip()[-2000:]
            clear(root, head)
            reason = f"ended with code {ended}" if ended is not None else f"did not answer within {timeout_s:.0f} s"
            raise HeadError(f"the Ray head {reason}; the end of {log}:\n{tail}")
        time.sleep(0.3)
    return head


def answers_again(head: Head) -> bool:
    """Return whether a recorded head answers; one that lives gets `SILENT_S` for it, since its jobs may be training.

    Raises:
        HeadError: it lives and does not answer: to replace it would kill its jobs.
    """
    deadline = time.monotonic() + SILENT_S
    while not head.answers():
        if head.pid not in processes_of(head):
            return False
        if time.monotonic() > deadline:
            raise HeadError(
                f"the Ray head of process {head.pid} has not answered for {SILENT_S:.0f} s; its jobs may be running. "
                f"Try again, see {head.log}, or end it and its jobs: python infra/head.py stop"
            )
        time.sleep(POLL_S)
    return True


def stop(root: Path) -> bool:
    """Stop the jobs, then the head; return False when no head is recorded."""
    head = read_record(root)
    if head is None:
        return False
    if head.answers():
        stop_jobs(head)
    clear(root, head)
    return True


def stop_jobs(head: Head) -> None:
    """Ask unfinished jobs to end, and wait for them as long as Ray does."""

    def unfinished() -> list[str]:
        jobs: list[dict[str, Any]] = json.loads(head.request("/api/jobs/", 10))
        return [str(job["submission_id"]) for job in jobs
                if job.get("submission_id") and job["status"] in ("PENDING", "RUNNING")]  # fmt: skip

    # `clear` ends the processes of a head that no longer answers
    with contextlib.suppress(OSError, ValueError):
        waiting = unfinished()
        for job in waiting:
            print(f"stopping job {job} (at most {JOB_STOP_S} s)", flush=True)
            head.request(f"/api/jobs/{job}/stop", 10, method="POST")
        deadline = time.monotonic() + JOB_STOP_S + 5
        while waiting and time.monotonic() < deadline:
            time.sleep(0.5)
            waiting = unfinished()


class SignalCounter:
    """Counts SIGINT and SIGTERM while its context lasts, and notes SIGHUP, which comes when the terminal is closed."""

    NUMBERS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)

    def __init__(self) -> None:
        self.requests = 0
        self.hung_up = False
        self._last = -ONE_SIGNAL_S
        self._before: dict[int, Any] = {}

    def __enter__(self) -> "SignalCounter":
        self._before = {number: signal.signal(number, self._count) for number in self.NUMBERS}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    @property
    def leaves(self) -> bool:
        """Return whether to stop waiting for the job: after a second signal, or without a terminal."""
        return self.hung_up or self.requests > 1

    def _count(self, number: int, _frame: object) -> None:
        now = time.monotonic()
        if number == signal.SIGHUP:
            self.hung_up = True
        elif now - self._last > ONE_SIGNAL_S:
            self.requests += 1
            self._last = now


def submit(root: Path, entrypoint: Sequence[str], follow_s: float) -> int:
    """Run a command as a job and show its log; Ctrl-C or SIGTERM asks the job to save and end, and waits for it.

    Args:
        root: root folder of a head that answers.
        entrypoint: the job's command.
        follow_s: longest time in seconds to show the log; the job itself continues.

    Returns:
        The exit code of `job.py`; 130 when the job was stopped, 124 when it continues after `follow_s`.

    Raises:
        HeadError: no head answers.
    """
    head = answering_head(root)
    job = f"raysubmit_{secrets.token_hex(8)}"
    infra = REPOSITORY / "infra"
    command = [sys.executable, str(infra / "job.py"), job, "--runtime-env", str(infra / "runtime_env.yaml"), "--",
               *entrypoint]  # fmt: skip
    # a token in the environment would win over the file
    environment = {name: value for name, value in os.environ.items() if name != "RAY_AUTH_TOKEN"} | head.exports()
    with SignalCounter() as signals:
        # in a session of its own: the terminal's Ctrl-C would end the process that shows the log, and not the job
        process = subprocess.Popen(
            command, cwd=REPOSITORY, env=environment, stdin=subprocess.DEVNULL, start_new_session=True
        )
        try:
            code = follow(root, head, job, process, signals, time.monotonic() + follow_s)
        finally:
            end_group(process)
    print("The Ray head stays up for further jobs; 'make head-stop' stops it.", CONTINUES.get(code, ""), flush=True)
    return code


def follow(
    root: Path, head: Head, job: str, process: "subprocess.Popen[bytes]", signals: SignalCounter, deadline: float
) -> int:
    """Wait for the process that shows a job's log, stop the job after a signal, and return `submit`'s exit code."""
    while process.poll() is None:
        if signals.requests:
            return stop_and_wait(root, head, job, process, signals)
        if signals.hung_up or time.monotonic() > deadline:
            print_job_continues(root, job)
            return 124
        time.sleep(POLL_S)
    # the signal came with the process's end, and was not its cause: `job.py` is in another session
    return stop_and_wait(root, head, job, process, signals) if signals.requests else process.returncode


def stop_and_wait(root: Path, head: Head, job: str, process: "subprocess.Popen[bytes]", signals: SignalCounter) -> int:
    """Ask a job to stop, wait for its end, and return the exit code of `submit`; a second signal ends the wait."""
    print(f"\nstopping job {job}: it saves and ends (at most {JOB_STOP_S} s); once more leaves at once", flush=True)
    stop_accepted = False
    deadline = time.monotonic() + JOB_STOP_S + LEAVE_S
    while time.monotonic() < deadline:
        if signals.leaves:
            print_job_continues(root, job, asked_to_stop=stop_accepted)
            return 130
        state = job_state(head, job)
        if state in SHOWN_END:
            wait_for_process(process, LEAVE_S / 3)  # it shows the end of the log, and prints how the job ended
            if process.returncode != SHOWN_END[state]:
                print(f"job {job}: {state}", flush=True)
            return 0 if state == "SUCCEEDED" else 130
        if state is None and process.poll() is None:
            end_group(process)  # it was still uploading; its last request may still arrive
            time.sleep(2.0)
        elif state is None:
            print(f"job {job} was not submitted", flush=True)
            return 130
        if not stop_accepted:
            stop_accepted = stop_job(head, job)
        time.sleep(POLL_S)
    print_job_continues(root, job, asked_to_stop=stop_accepted)
    return 130


def job_state(head: Head, job: str) -> str | None:
    """Return Ray's name of a job's state; None for an unknown job, "" without a response."""
    try:
        return str(json.loads(head.request(f"/api/jobs/{job}", 10))["status"])
    except urllib.error.HTTPError as error:
        return None if error.code == 404 else ""
    except (OSError, ValueError, KeyError, TypeError):
        return ""


def stop_job(head: Head, job: str) -> bool:
    """Ask a job to end; return whether Ray accepted the request."""
    try:
        return bool(json.loads(head.request(f"/api/jobs/{job}/stop", 10, method="POST"))["stopped"])
    except (OSError, ValueError, KeyError, TypeError):
        return False


def print_job_continues(root: Path, job: str, *, asked_to_stop: bool = False) -> None:
    """Print how to see and stop a job that this process no longer waits for."""
    quoted_root = shlex.quote(str(root))
    what = "was asked to stop, and may still be saving" if asked_to_stop else "goes on by itself"
    print(
        f"\njob {job} {what}. Its runs: python pipelines/runs.py list --root {quoted_root}; to stop one: "
        f"python pipelines/runs.py stop RUN --root {quoted_root}; the head and all its jobs: "
        f"python infra/head.py stop --root {quoted_root}",
        flush=True,
    )


def wait_for_process(process: "subprocess.Popen[bytes]", limit_s: float) -> bool:
    """Wait up to `limit_s` seconds for a process, and return whether it has ended."""
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(limit_s)
    return process.poll() is not None


def end_group(process: "subprocess.Popen[bytes]") -> None:
    """End a process and its children, unless it has ended."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        if process.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, number)
            wait_for_process(process, 5.0)


def answering_head(root: Path) -> Head:
    """Return the root's head, which answers.

    Raises:
        HeadError: no head is recorded, or it does not answer.
    """
    head = read_record(root)
    if head is None or not head.answers():
        raise HeadError(f"no head answers for {root}; start one first")
    return head


def seconds(text: str) -> float:
    """Return the seconds of a time span as the command `timeout` takes it: 90, 90s, 15m, 48h, 2d."""
    factor = {"s": 1, "m": 60, "h": 3600, "d": 86400}.get(text[-1:])
    return float(text if factor is None else text[:-1]) * (factor or 1)


def clear(root: Path, head: Head) -> None:
    """End every process of the head, and remove its temporary folder and its record.

    Raises:
        HeadError: processes did not end.
    """
    for number, patience_s in ((signal.SIGTERM, 15.0), (signal.SIGKILL, 15.0)):
        living = processes_of(head)
        # Ray's own process first: it ends its children in order
        targets = [head.pid] if number == signal.SIGTERM and head.pid in living else living
        for pid in targets:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)
        deadline = time.monotonic() + patience_s
        while processes_of(head) and time.monotonic() < deadline:
            reap(head.pid)
            time.sleep(0.2)
    remaining = processes_of(head)
    if remaining:
        raise HeadError(f"processes {remaining} of the Ray head did not end")
    shutil.rmtree(head.temp_dir, ignore_errors=True)
    (root / "head.json").unlink(missing_ok=True)


def reap(pid: int) -> None:
    """Collect an ended child of this process, which would otherwise stay a zombie."""
    with contextlib.suppress(ChildProcessError):
        os.waitpid(pid, os.WNOHANG)


def status(root: Path) -> tuple[str, bool]:
    """Return one line on the head for people, and whether it answers."""
    head = read_record(root)
    if head is None:
        return f"no head recorded in {root}", False
    if not head.answers():
        return f"head of {root} (process {head.pid}) does not answer; `start` replaces it", False
    return f"head of {root} is up: dashboard {head.dashboard}, process {head.pid}, logs {head.temp_dir}", True


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """Return the parsed command line; None: that of this process."""
    parser = argparse.ArgumentParser(description=__doc__)
    default = Path(os.environ.get("SCALABLEVIT_ROOT", "~/scalablevit"))
    parser.add_argument("--root", type=Path, default=default, help="where runs and head.json lie (%(default)s)")
    # --root is accepted after the command, too
    shared = argparse.ArgumentParser(add_help=False)
    shared.add_argument("--root", type=Path, default=argparse.SUPPRESS, help=argparse.SUPPRESS)
    commands = parser.add_subparsers(dest="command", required=True)
    help_texts = {
        "start": "start the head; nothing to do when it answers already",
        "status": "say whether it answers; exit code 1 if not",
        "stop": "stop its jobs, then the head and every process of it",
        "submit": "run a command as a job and show its log; Ctrl-C saves and ends the job",
        "env": 'shell exports for Ray\'s tools: eval "$(... head.py env)"; exit code 1 if no head answers',
    }
    parsers = {name: commands.add_parser(name, help=text, parents=[shared]) for name, text in help_texts.items()}
    parsers["start"].add_argument("--num-cpus", type=int, help="CPUs that Ray may give out (default: all)")
    parsers["start"].add_argument("--timeout", type=float, default=120.0, help="seconds to answer in (%(default)s)")
    parsers["submit"].add_argument("--follow", type=seconds, default=seconds("48h"), metavar="TIME",
                                   help="how long to show the log, such as 48h; the job itself goes on")  # fmt: skip
    parsers["submit"].add_argument("entrypoint", nargs="+", help="the job's command, after --")
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> int:
    """Run a command, and return the exit code: 0 for success, 1 with a reason on stderr; for `submit` see there."""
    options = parse(arguments)
    root: Path = options.root.expanduser().resolve()
    try:
        if options.command == "status":
            line, up = status(root)
            print(line)
            return 0 if up else 1
        if options.command == "env":
            head = answering_head(root)
            # a token in the environment would win over the file
            print("unset RAY_AUTH_TOKEN")
            for key, value in head.exports().items():
                print(f"export {key}={shlex.quote(value)}")
            return 0
        if options.command == "submit":
            return submit(root, options.entrypoint, options.follow)
        root.mkdir(parents=True, exist_ok=True)
        with exclusive(root, timeout_s=300.0):
            if options.command == "start":
                start(root, options.num_cpus, options.timeout)
                print(status(root)[0])
            else:
                print("head stopped" if stop(root) else f"no head recorded in {root}")
    except HeadError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
