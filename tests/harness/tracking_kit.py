"""The tracking server of infra/mlflow for tests, with PostgreSQL and SeaweedFS; what needs it is skipped without."""

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

REPOSITORY = Path(__file__).parents[2]
KIT = REPOSITORY / "infra" / "mlflow"
ENVIRONMENT = Path(os.environ.get("SCALABLEVIT_MLFLOW_ENV", REPOSITORY / "build" / "mlflow-env"))
LIMIT_S = 300


def missing() -> str:
    """What this machine lacks for it; empty if nothing."""
    lacking = []
    if not (ENVIRONMENT / "bin" / "python").exists():
        lacking.append(f"no environment {ENVIRONMENT} (`make mlflow-env`; SCALABLEVIT_MLFLOW_ENV names another)")
    if not any(map(shutil.which, ("weed", os.environ.get("SCALABLEVIT_WEED", ""), str(ENVIRONMENT / "bin" / "weed")))):
        lacking.append("no `weed` of SeaweedFS (`make mlflow-env`; SCALABLEVIT_WEED names the program)")
    postgres = shutil.which("initdb", path=os.environ.get("POSTGRES_BIN"))
    if postgres is None and not list(Path("/usr/lib/postgresql").glob("*/bin/initdb")):
        lacking.append("no PostgreSQL server (Debian: postgresql; POSTGRES_BIN has its folder)")
    return "; ".join(lacking)


class TrackingKit:
    """`local.py` on a folder."""

    def __init__(self, folder: Path, port: int) -> None:
        self.folder = folder
        self.uri = f"http://127.0.0.1:{port}"
        self.port = port

    def run(self, command: str, *more: str, code: int = 0) -> str:
        """Run a command of local.py and return what it printed."""
        done = subprocess.run(
            self.command(command, *more), capture_output=True, text=True, timeout=LIMIT_S, check=False
        )
        assert done.returncode == code, done.stdout + done.stderr
        return done.stdout + done.stderr

    def command(self, command: str, *more: str) -> list[str]:
        port = ["--port", str(self.port)] if command in ("start", "restore") else []
        return [str(ENVIRONMENT / "bin" / "python"), str(KIT / "local.py"), command, str(self.folder), *more, *port]

    def password(self, user: str) -> str:
        return (self.folder / "secrets" / user).read_text()

    def pids(self) -> dict[str, int]:
        found: dict[str, int] = json.loads((self.folder / "kit.json").read_text())["pids"]
        return found

    def kill(self) -> None:
        """SIGKILL to all that is left of it."""
        for pid in self.pids().values() if (self.folder / "kit.json").exists() else ():
            with contextlib.suppress(OSError):  # it has ended
                environment = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
                if f"TRACKING_KIT={self.folder}".encode() in environment:
                    os.killpg(pid, signal.SIGKILL)


@contextmanager
def tracking_kit(folder: Path, port: int) -> Iterator[TrackingKit]:
    """A server, started, on a folder that need not exist; killed at the end."""
    kit = TrackingKit(folder, port)
    try:
        print(kit.run("start"), file=sys.stderr)
        yield kit
    finally:
        kit.kill()
