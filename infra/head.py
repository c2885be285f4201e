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

LOOPBACK = "127.0.0.1"
MARKER = "SCALABLEVIT_HEAD_ID"
"""Environment variable that every process of a head inherits, by which `stop` knows them."""
SINGLE_NODE = {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0"}
"""Ray's switch for a cluster of one machine: without it Ray replaces 127.0.0.1 by the machine's address and listens on
all interfaces."""
SOCKET_ROOM = 66
"""Bytes that Ray's session and socket names add to the temporary folder; a unix socket's path has at most 107."""
JOB_STOP_S = 90
"""Time a job has between the request to stop and being killed: enough to leave Ray and to tell MLflow, also on a busy
machine."""
LEAVE_S = 30.0
"""After that, for Ray to kill the job and to report its end."""
ONE_SIGNAL_S = 1.0
"""Signals within this time count as one: `kill -TERM -<group>` reaches a process directly and again through make."""
POLL_S = 0.2
ENDED = ("SUCCEEDED", "FAILED", "STOPPED")
"""States of a job that Ray will not change."""
REPOSITORY = Path(__file__).resolve().parents[1]


class HeadError(Exception):
    """What a user has to know when the head cannot be started or stopped."""


@dataclasses.dataclass(frozen=True)
class Head:
    """A head as recorded in `<root>/head.json`."""

    id: str
    pid: int
    dashboard: str
    address: str
    token_file: str
    temp_dir: str
    log: str

    def request(self, path: str, timeout_s: float, method: str = "GET") -> bytes:
        """Body of the dashboard's answer; raises OSError (urllib's errors included) when there is none."""
        token = Path(self.token_file).read_text(encoding="ascii").strip()
        request = urllib.request.Request(  # noqa: S310 (the address is one that `start` made)
            self.dashboard + path, method=method, headers={"Authorization": f"Bearer {token}"}
        )
        # no proxies: the address is this machine's own
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        with opener.open(request, timeout=timeout_s) as answer:
            return bytes(answer.read())

    def answers(self, timeout_s: float = 5.0) -> bool:
        """Whether the dashboard answers and its node is ready for work."""
        try:
            nodes = json.loads(self.request("/api/v0/nodes", timeout_s))["data"]["result"]["result"]
        except (OSError, ValueError, KeyError, TypeError):
            return False
        return any(node["state"] == "ALIVE" for node in nodes)

    def exports(self) -> dict[str, str]:
        """Environment that leads Ray's command line and `ray.init` to this head."""
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
    """The recorded head, running or not; None without a record."""
    try:
        return Head(**json.loads((root / "head.json").read_text(encoding="utf-8")))
    except FileNotFoundError:
        return None
    except (ValueError, TypeError) as error:
        raise HeadError(f"{root / 'head.json'} is damaged ({error}); remove it if no head is running") from None


def write_record(root: Path, head: Head) -> None:
    """Replace the record at once, never half of it."""
    draft = root / "head.json.new"
    draft.write_text(json.dumps(dataclasses.asdict(head), indent=2) + "\n", encoding="utf-8")
    draft.replace(root / "head.json")


def processes_of(head: Head) -> list[int]:
    """Ids of the living processes that carry the head's marker (Linux: /proc)."""
    wanted = f"{MARKER}={head.id}".encode()
    found = []
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit() or int(entry.name) == os.getpid():
            continue
        # gone meanwhile, or another user's
        with contextlib.suppress(OSError):
            if wanted in (entry / "environ").read_bytes().split(b"\0"):
                found.append(int(entry.name))
    return sorted(found)


@contextlib.contextmanager
def exclusive(root: Path, timeout_s: float) -> Iterator[None]:
    """One `start` or `stop` at a time for a root."""
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
    """The root's token file, made once, readable by its owner only."""
    path = root / "ray_token"
    if not path.exists():
        draft = root / f"ray_token.{secrets.token_hex(4)}"
        with os.fdopen(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
            file.write(secrets.token_hex(32))
        draft.replace(path)
    path.chmod(0o600)
    return path


def make_temp_dir() -> Path:
    """A fresh folder whose path is short enough for Ray's sockets."""
    for parent in (tempfile.gettempdir(), "/tmp"):  # noqa: S108 (mkdtemp makes a private folder there)
        if len(os.fsencode(parent)) + len("/sv-12345678") + SOCKET_ROOM <= 107:
            return Path(tempfile.mkdtemp(prefix="sv-", dir=parent))
    raise HeadError(
        "no temporary folder with a short enough path for Ray's sockets; set TMPDIR to one of at most 29 bytes"
    )


def free_ports(count: int) -> list[int]:
    """Distinct free ports below the range from which the kernel hands out ports to connections."""
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
    """The head's environment, which its jobs and workers inherit."""
    foreign = {"RAY_ADDRESS", "RAY_API_SERVER_ADDRESS", "RAY_AUTH_TOKEN"}
    inherited = {key: value for key, value in os.environ.items() if key not in foreign}
    # one thread per process unless asked otherwise: training sets its own number from cluster.cpus_per_worker
    return (
        {"OMP_NUM_THREADS": "1"}
        | inherited
        | {
            MARKER: head_id,
            "SCALABLEVIT_ROOT": str(root),
            # `python` of an entrypoint is looked up on PATH
            "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)]),
            **SINGLE_NODE,
            "AUTOSCALER_METRIC_PORT": str(metric_ports[0]),
            "DASHBOARD_METRIC_PORT": str(metric_ports[1]),
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN_PATH": str(token_file),
            "RAY_JOB_STOP_WAIT_TIME_S": str(JOB_STOP_S),
            # `stop` has ended the jobs before: nothing is left to drain
            "RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S": "0",
            "PYTHONUNBUFFERED": "1",
        }
    )


def start(root: Path, num_cpus: int | None, timeout_s: float) -> Head:
    """Start a head unless the recorded one answers; what is left of a dead one is cleared away first."""
    recorded = read_record(root)
    if recorded is not None:
        if recorded.answers():
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
        token_file=str(token_file), temp_dir=str(temp_dir), log=str(log),
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


def stop(root: Path) -> bool:
    """Stop the jobs, then the head; False when none is recorded."""
    head = read_record(root)
    if head is None:
        return False
    if head.answers():
        stop_jobs(head)
    clear(root, head)
    return True


def stop_jobs(head: Head) -> None:
    """Ask unfinished jobs to end, and give them the time that Ray gives them."""

    def unfinished() -> list[str]:
        jobs: list[dict[str, Any]] = json.loads(head.request("/api/jobs/", 10))
        return [str(job["submission_id"]) for job in jobs
                if job.get("submission_id") and job["status"] in ("PENDING", "RUNNING")]  # fmt: skip

    # a head that no longer answers is ended by its processes
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
    """Counts SIGINT and SIGTERM while its context lasts; SIGHUP, of a terminal that is closed, leaves at once."""

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
        """Whether nobody waits for the job any more."""
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
        root: of a head that answers.
        entrypoint: the job's command.
        follow_s: longest time to show the log; the job itself goes on.

    Returns:
        The exit code of `job.py`; 130 when the job was stopped, 124 when it goes on after `follow_s`.
    """
    head = answering_head(root)
    job = f"raysubmit_{secrets.token_hex(8)}"
    infra = REPOSITORY / "infra"
    command = [sys.executable, str(infra / "job.py"), job, "--runtime-env", str(infra / "runtime_env.yaml"), "--",
               *entrypoint]  # fmt: skip
    # a token in the environment would win over the file
    environment = {name: value for name, value in os.environ.items() if name != "RAY_AUTH_TOKEN"} | head.exports()
    with SignalCounter() as signals:
        # in a session of its own: the terminal's Ctrl-C would end what shows the log, and leave the job alone
        process = subprocess.Popen(
            command, cwd=REPOSITORY, env=environment, stdin=subprocess.DEVNULL, start_new_session=True
        )
        try:
            code = follow(root, head, job, process, signals, time.monotonic() + follow_s)
        finally:
            end_group(process)
    print("The Ray head stays up for further jobs; 'make head-stop' stops it.", end=" ")
    print("The same command again continues the run.")
    return code


def follow(
    root: Path, head: Head, job: str, process: "subprocess.Popen[bytes]", signals: SignalCounter, deadline: float
) -> int:
    """Wait for the process that shows a job's log, and stop the job when a signal asks for it."""
    while process.poll() is None:
        if signals.requests:
            return stop_and_wait(root, head, job, process, signals)
        if signals.hung_up or time.monotonic() > deadline:
            say_it_goes_on(root, job)
            return 124
        time.sleep(POLL_S)
    # a signal that came with the end: `job.py` cannot have been ended by it
    return stop_and_wait(root, head, job, process, signals) if signals.requests else process.returncode


def stop_and_wait(root: Path, head: Head, job: str, process: "subprocess.Popen[bytes]", signals: SignalCounter) -> int:
    """Ask a job to stop and wait for its end; a second signal leaves at once."""
    print(f"\nstopping job {job}: it saves and ends (at most {JOB_STOP_S} s); once more leaves at once", flush=True)
    asked = False
    deadline = time.monotonic() + JOB_STOP_S + LEAVE_S
    while time.monotonic() < deadline:
        if signals.leaves:
            say_it_goes_on(root, job)
            return 130
        state = job_state(head, job)
        if state in ENDED:
            process_ends(process, LEAVE_S / 3)  # the end of its log
            print(f"job {job}: {state}", flush=True)
            return 0 if state == "SUCCEEDED" else 130
        if state is None and process.poll() is None:
            end_group(process)  # still uploading; what it sent last may be on its way
            time.sleep(2.0)
        elif state is None:
            print(f"job {job} was not submitted", flush=True)
            return 130
        if not asked:
            asked = stop_job(head, job)
        time.sleep(POLL_S)
    say_it_goes_on(root, job)
    return 130


def job_state(head: Head, job: str) -> str | None:
    """Ray's word for a job's state; None for an unknown job, "" without an answer."""
    try:
        return str(json.loads(head.request(f"/api/jobs/{job}", 10))["status"])
    except urllib.error.HTTPError as error:
        return None if error.code == 404 else ""
    except (OSError, ValueError, KeyError, TypeError):
        return ""


def stop_job(head: Head, job: str) -> bool:
    """Ask a job to end; False: it did not take the request yet."""
    try:
        return bool(json.loads(head.request(f"/api/jobs/{job}/stop", 10, method="POST"))["stopped"])
    except (OSError, ValueError, KeyError, TypeError):
        return False


def say_it_goes_on(root: Path, job: str) -> None:
    """Say how to look after a job that nobody waits for any more."""
    place = shlex.quote(str(root))
    print(
        f"\njob {job} goes on by itself. Its runs: python pipelines/runs.py list --root {place}; to stop one: "
        f"python pipelines/runs.py stop RUN --root {place}; the head and all its jobs: "
        f"python infra/head.py stop --root {place}",
        flush=True,
    )


def process_ends(process: "subprocess.Popen[bytes]", limit_s: float) -> bool:
    """Wait for a process; whether it has ended."""
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(limit_s)
    return process.poll() is not None


def end_group(process: "subprocess.Popen[bytes]") -> None:
    """End a process and its children, unless it has ended."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        if process.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, number)
            process_ends(process, 5.0)


def answering_head(root: Path) -> Head:
    """The root's head.

    Raises:
        HeadError: none is recorded, or it does not answer.
    """
    head = read_record(root)
    if head is None or not head.answers():
        raise HeadError(f"no head answers for {root}; start one first")
    return head


def seconds(text: str) -> float:
    """A time span as `timeout` takes it: 90, 90s, 15m, 48h, 2d."""
    factor = {"s": 1, "m": 60, "h": 3600, "d": 86400}.get(text[-1:])
    return float(text if factor is None else text[:-1]) * (factor or 1)


def clear(root: Path, head: Head) -> None:
    """End every process of the head, remove its temporary folder and its record."""
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
    left = processes_of(head)
    if left:
        raise HeadError(f"processes {left} of the Ray head did not end")
    shutil.rmtree(head.temp_dir, ignore_errors=True)
    (root / "head.json").unlink(missing_ok=True)


def reap(pid: int) -> None:
    """Collect an ended child of this process, which would stay as a zombie otherwise."""
    with contextlib.suppress(ChildProcessError):
        os.waitpid(pid, os.WNOHANG)


def status(root: Path) -> tuple[str, bool]:
    """One line, and whether the head answers."""
    head = read_record(root)
    if head is None:
        return f"no head recorded in {root}", False
    if not head.answers():
        return f"head of {root} (process {head.pid}) does not answer; `start` replaces it", False
    return f"head of {root} is up: dashboard {head.dashboard}, process {head.pid}, logs {head.temp_dir}", True


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    default = Path(os.environ.get("SCALABLEVIT_ROOT", "~/scalablevit"))
    parser.add_argument("--root", type=Path, default=default, help="where runs and head.json lie (%(default)s)")
    # --root may also stand after the command
    shared = argparse.ArgumentParser(add_help=False)
    shared.add_argument("--root", type=Path, default=argparse.SUPPRESS, help=argparse.SUPPRESS)
    commands = parser.add_subparsers(dest="command", required=True)
    explained = {
        "start": "start the head; nothing to do when it answers already",
        "status": "say whether it answers; exit code 1 if not",
        "stop": "stop its jobs, then the head and every process of it",
        "submit": "run a command as a job and show its log; Ctrl-C saves and ends the job",
        "env": 'shell exports for Ray\'s tools: eval "$(... head.py env)"; exit code 1 if no head answers',
    }
    parsers = {name: commands.add_parser(name, help=text, parents=[shared]) for name, text in explained.items()}
    parsers["start"].add_argument("--num-cpus", type=int, help="CPUs that Ray may give out (default: all)")
    parsers["start"].add_argument("--timeout", type=float, default=120.0, help="seconds to answer in (%(default)s)")
    parsers["submit"].add_argument("--follow", type=seconds, default=seconds("48h"), metavar="TIME",
                                   help="how long to show the log, such as 48h; the job itself goes on")  # fmt: skip
    parsers["submit"].add_argument("entrypoint", nargs="+", help="the job's command, after --")
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> int:
    """Exit code: 0 done, 1 with a reason on stderr; of `submit` the job's."""
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
