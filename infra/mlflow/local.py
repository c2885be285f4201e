"""The tracking server on this machine, without containers: PostgreSQL, SeaweedFS and MLflow on 127.0.0.1.

Run it with the Python of requirements.lock's environment. PostgreSQL is that of POSTGRES_BIN, PATH or Debian; `weed` is
that of SCALABLEVIT_WEED, PATH or this Python's environment.
"""

import argparse
import json
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

SERVER = Path(__file__).resolve().with_name("server.py")
MARKER = "TRACKING_KIT"
"""Environment variable with the folder, by which a process is known as its own."""
KIT = "kit.json"
"""Ports, which stay, and process ids by program."""
WEED_PORTS = ("master.port", "master.port.grpc", "volume.port", "volume.port.grpc", "filer.port", "filer.port.grpc",
              "s3.port", "s3.port.grpc")  # fmt: skip
STOP_SIGNALS = {"mlflow": signal.SIGTERM, "seaweedfs": signal.SIGTERM, "postgres": signal.SIGINT}
"""In the order in which they are stopped; SIGINT has PostgreSQL end its clients and write what it has."""
START_S = 180.0
STOP_S = 30.0


class LocalError(Exception):
    """What the user must know or do, in one sentence."""


class Kit:
    """The three processes of a folder.

    Args:
        folder: the folder; made by `start`.
        port: port of MLflow, for a folder that has none yet.
    """

    def __init__(self, folder: Path, port: int = 5000) -> None:
        self.folder = folder
        file = folder / KIT
        known = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
        self.ports: dict[str, int] = known.get("ports") or {"mlflow": port, **_free_ports("postgres", *WEED_PORTS)}
        self.pids: dict[str, int] = known.get("pids", {})
        self.uri = f"http://127.0.0.1:{self.ports['mlflow']}"

    def environment(self) -> dict[str, str]:
        """The environment of all its programs: addresses, and where the secrets are; no keys of the user's own."""
        others = {name: value for name, value in os.environ.items() if not name.startswith(("AWS_", "PG"))}
        path = f"{_postgres('pg_ctl').parent}:{os.environ.get('PATH', '')}"
        return {**others, MARKER: str(self.folder), "PATH": path, "PGHOST": "127.0.0.1",
                "PGPORT": str(self.ports["postgres"]), "TRACKING_SECRETS": str(self.folder / "secrets"),
                "MLFLOW_S3_ENDPOINT_URL": f"http://127.0.0.1:{self.ports['s3.port']}"}  # fmt: skip

    def living(self, name: str) -> bool:
        """Whether a program of the folder runs; another process may have got its number since."""
        try:
            environment = Path(f"/proc/{self.pids[name]}/environ").read_bytes().split(b"\0")
        except (KeyError, OSError):
            return False
        return f"{MARKER}={self.folder}".encode() in environment

    def start(self) -> None:
        """Start what does not run, and make users; what was started is stopped if that fails."""
        self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self.server("secrets", str(self.folder / "secrets"))
        with self._stopped_on_error():
            self._start_stores()
            if not self.living("mlflow"):
                port = f"--port={self.ports['mlflow']}"
                self._start("mlflow", sys.executable, str(SERVER), "serve", port, "--workers=1")
            self._wait()
            self.server("users", self.uri)

    def restore(self, backup: Path) -> None:
        """Fill the empty databases and the bucket, before MLflow starts on them."""
        if self.living("mlflow"):
            raise LocalError("MLflow runs: `local.py stop` first, and restore into a folder without databases")
        self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self.server("secrets", str(self.folder / "secrets"))
        with self._stopped_on_error():
            self._start_stores()
            self.server("restore", str(backup))

    def stop(self) -> None:
        """Stop what runs, MLflow first."""
        for name, number in STOP_SIGNALS.items():
            for sent in (number, signal.SIGKILL):
                if self.living(name):
                    os.killpg(self.pids[name], sent)
                deadline = time.monotonic() + STOP_S
                while self.living(name) and time.monotonic() < deadline:
                    time.sleep(0.05)

    def server(self, *command: str) -> None:
        """Run a command of server.py."""
        done = subprocess.run([sys.executable, str(SERVER), *command], env=self.environment(), check=False)
        if done.returncode:
            raise LocalError(f"`server.py {command[0]}` failed")

    def _start_stores(self) -> None:
        data, weed = self.folder / "postgres", self.folder / "seaweedfs"
        if not (data / "PG_VERSION").exists():
            shutil.rmtree(data, ignore_errors=True)  # of a start that was killed
            making = [*_as_user(), str(_postgres("initdb")), f"--pgdata={data}", "--username=mlflow",
                      "--auth=scram-sha-256", f"--pwfile={self.folder / 'secrets' / 'database'}", "--encoding=UTF8",
                      "--locale=C.UTF-8"]  # fmt: skip
            done = subprocess.run(making, env=self.environment(), capture_output=True, text=True, check=False)
            if done.returncode:
                raise LocalError(f"initdb: {done.stderr.strip()}")
        weed.mkdir(exist_ok=True)
        if not self.living("postgres"):
            self._start("postgres", *_as_user(), str(_postgres("postgres")), "-D", str(data), "-h", "127.0.0.1",
                        "-p", str(self.ports["postgres"]), "-c", "unix_socket_directories=")  # fmt: skip
        if not self.living("seaweedfs"):
            self._start("seaweedfs", _weed(), "server", f"-dir={weed}", "-ip=127.0.0.1", "-ip.bind=127.0.0.1", "-s3",
                        f"-s3.config={self.folder / 'secrets' / 's3.json'}", "-s3.port.iceberg=0", "-s3.port.lance=0",
                        "-master.telemetry=false", "-master.volumeSizeLimitMB=1024", "-volume.max=0",
                        "-volume.preStopSeconds=0",
                        *(f"-{name}={self.ports[name]}" for name in WEED_PORTS))  # fmt: skip

    def _start(self, name: str, *command: str) -> None:
        with (self.folder / f"{name}.log").open("ab") as log:
            process = subprocess.Popen(command, cwd=self.folder, env=self.environment(), stdin=subprocess.DEVNULL,
                                       stdout=log, stderr=log, start_new_session=True)  # fmt: skip
        self.pids[name] = process.pid
        file = self.folder / KIT
        file.with_suffix(".new").write_text(json.dumps({"ports": self.ports, "pids": self.pids}), encoding="utf-8")
        file.with_suffix(".new").replace(file)

    def _wait(self) -> None:
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        deadline = time.monotonic() + START_S
        while time.monotonic() < deadline:
            for name in STOP_SIGNALS:
                if not self.living(name):
                    log = self.folder / f"{name}.log"
                    raise LocalError(f"{name} ended; the end of {log}:\n{log.read_text(errors='replace')[-2000:]}")
            try:
                with opener.open(f"{self.uri}/health", timeout=2):
                    return
            except OSError:
                time.sleep(0.2)
        raise LocalError(f"MLflow did not answer at {self.uri} within {START_S:.0f} s; see the logs in {self.folder}")

    @contextmanager
    def _stopped_on_error(self) -> Iterator[None]:
        try:
            yield
        except BaseException:
            self.stop()
            raise


def _free_ports(*names: str) -> dict[str, int]:
    """Ports outside the range from which the kernel hands out ports: they stay free while their program is stopped."""
    found: list[int] = []
    for port in random.SystemRandom().sample(range(20_000, 32_000), 1000):
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
        found.append(port)
        if len(found) == len(names):
            return dict(zip(names, found, strict=True))
    raise LocalError("no free ports between 20000 and 32000")


def _as_user() -> list[str]:
    """PostgreSQL refuses to run as root: there it runs as a user of a namespace, who owns what root owns here."""
    return ["unshare", "--user", "--map-user=1000"] if os.geteuid() == 0 else []


def _postgres(program: str) -> Path:
    found = shutil.which(program, path=os.environ.get("POSTGRES_BIN"))
    debian = sorted(Path("/usr/lib/postgresql").glob(f"*/bin/{program}"))
    if found is None and not debian:
        raise LocalError(
            f"there is no {program} of PostgreSQL's server (Debian: postgresql); POSTGRES_BIN has its folder"
        )
    return Path(found) if found else debian[-1]


def _weed() -> str:
    own = Path(sys.executable).parent
    found = os.environ.get("SCALABLEVIT_WEED") or shutil.which("weed", path=f"{os.environ.get('PATH', '')}:{own}")
    if not found:
        raise LocalError("there is no `weed` of SeaweedFS (seaweedfs.lock has it); SCALABLEVIT_WEED names the program")
    return found


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(prog="local.py", description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(dest="command", required=True)
    for name, text in (("start", "start what does not run, and make users"), ("stop", "stop all three"),
                       ("status", "say where it is and what runs"),
                       ("backup", "write databases and bucket to a new folder"),
                       ("restore", "read them back into a folder without databases, and start")):  # fmt: skip
        command = commands.add_parser(name, help=text)
        command.add_argument("folder", type=Path, help="folder of the server: data, logs and secrets")
        if name in ("start", "restore"):
            command.add_argument("--port", type=int, default=5000, help="MLflow's, where the folder is new")
        if name in ("backup", "restore"):
            command.add_argument("backup", type=Path, help="folder of the backup")
    return parser.parse_args(arguments)


def main() -> int:
    """Run a command, and return the exit code: 0, or 1 with a reason on stderr; for `status` 1 if anything is down."""
    options = parse()
    try:
        kit = Kit(options.folder.expanduser().resolve(), getattr(options, "port", 5000))
        if options.command == "stop":
            kit.stop()
        elif options.command == "backup":
            kit.server("backup", str(options.backup.resolve()))
        elif options.command == "restore":
            kit.restore(options.backup.resolve())
        if options.command in ("start", "restore"):
            kit.start()
        up = {name: kit.living(name) for name in STOP_SIGNALS}
        if options.command != "backup":
            print(f"{kit.uri}: " + ", ".join(f"{name} {'runs' if runs else 'is stopped'}" for name, runs in up.items()))
        return 0 if options.command != "status" or all(up.values()) else 1
    except LocalError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
