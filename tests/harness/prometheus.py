"""Prometheus and promtool, as Debian's package has them; tests that need them are skipped where they are missing."""

import json
import shutil
import subprocess
import urllib.parse
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from harness.mlflow_server import free_port


def program(name: str) -> str:
    """Path of a program of the package; the test is skipped without it."""
    found = shutil.which(name)
    if found is None:
        pytest.skip(f"there is no {name} on PATH; install Debian's package: apt-get install prometheus")
    return found


def promtool(*arguments: str, folder: Path) -> None:
    """Run promtool, which must succeed."""
    done = subprocess.run([program("promtool"), *arguments], cwd=folder, capture_output=True, text=True, timeout=60,
                          check=False)  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr


class Prometheus:
    """A server; `get` asks its API."""

    def __init__(self, port: int) -> None:
        self.port = port

    def get(self, path: str, **query: str) -> Any:
        """The data of an answer."""
        url = f"http://127.0.0.1:{self.port}/api/v1/{path}?{urllib.parse.urlencode(query)}"
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        with opener.open(url, timeout=20) as response:
            return json.load(response)["data"]


@contextmanager
def prometheus(config: Path, folder: Path) -> Iterator[Prometheus]:
    """A server on a free port of this machine, with its data and log in a folder, which ends with the context."""
    server = Prometheus(free_port())
    command = [program("prometheus"), f"--config.file={config}", f"--storage.tsdb.path={folder / 'prometheus'}",
               f"--web.listen-address=127.0.0.1:{server.port}"]  # fmt: skip
    with (folder / "prometheus.log").open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log)
    try:
        yield server
    finally:
        process.terminate()
        process.wait(timeout=60)
