"""Object stores for tests: SeaweedFS on loopback, which is a real one, and a server that refuses everything."""

import json
import os
import shutil
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pyarrow.fs
import pytest

from harness import tracking_kit

START_S = 60
BUCKET = "runs"
KEYS = {"owner": ["Admin"], "reader": ["Read", "List"], "writer": ["Write"]}
"""What each access key may do, by SeaweedFS's names."""
PARTS = ("master.port", "volume.port", "filer.port", "s3.port")


def weed() -> str | None:
    """SeaweedFS's program: SCALABLEVIT_WEED, or `weed` on the PATH or in the tracking server's environment."""
    path = f"{os.environ.get('PATH', '')}{os.pathsep}{tracking_kit.ENVIRONMENT / 'bin'}"
    return os.environ.get("SCALABLEVIT_WEED") or shutil.which("weed", path=path)


@dataclass(frozen=True)
class ObjectStore:
    """A store with one bucket, `BUCKET`."""

    endpoint: str

    @property
    def port(self) -> int:
        return int(self.endpoint.rpartition(":")[2])

    def filesystem(self) -> pyarrow.fs.S3FileSystem:
        """Its files, as those who own it see them."""
        return pyarrow.fs.S3FileSystem(
            access_key="owner", secret_key=secret_of("owner"), scheme="http", region="us-east-1",
            endpoint_override=self.endpoint.removeprefix("http://"), allow_bucket_creation=True,
        )  # fmt: skip

    def variables(self, key: str = "owner", secret: str | None = None) -> dict[str, str]:
        """The environment by which programs reach it, with one of `KEYS`."""
        return {"AWS_ENDPOINT_URL": self.endpoint, "AWS_ACCESS_KEY_ID": key,
                "AWS_SECRET_ACCESS_KEY": secret or secret_of(key), "AWS_EC2_METADATA_DISABLED": "true"}  # fmt: skip

    def use(self, monkeypatch: pytest.MonkeyPatch, key: str = "owner", secret: str | None = None) -> None:
        """Set them in this process, in place of the user's own."""
        for name in [name for name in os.environ if name.startswith("AWS_")]:
            monkeypatch.delenv(name)
        for name, value in self.variables(key, secret).items():
            monkeypatch.setenv(name, value)


def secret_of(key: str) -> str:
    return f"{key}-is-secret"


@contextmanager
def seaweedfs(folder: Path) -> Iterator[ObjectStore]:
    """SeaweedFS with its data in a folder, until the end of the context."""
    keys = folder / "keys.json"
    identities = [
        {"name": key, "credentials": [{"accessKey": key, "secretKey": secret_of(key)}], "actions": actions}
        for key, actions in KEYS.items()
    ]
    keys.write_text(json.dumps({"identities": identities}))
    (folder / "data").mkdir()
    ports = dict(zip([*PARTS, *(f"{part}.grpc" for part in PARTS)], _free_ports(2 * len(PARTS)), strict=True))
    command = [
        str(weed()), "server", f"-dir={folder / 'data'}", "-ip=127.0.0.1", "-ip.bind=127.0.0.1", "-s3",
        f"-s3.config={keys}", "-s3.iam=false", "-s3.autoCreateBucket=false", "-s3.port.iceberg=0", "-s3.port.lance=0",
        f"-filer.localSocket={folder / 'filer'}", f"-s3.localSocket={folder / 's3'}", "-master.telemetry=false",
        "-master.volumeSizeLimitMB=64", "-volume.max=50", *(f"-{part}={port}" for part, port in ports.items()),
    ]  # fmt: skip
    store = ObjectStore(f"http://127.0.0.1:{ports['s3.port']}")
    log = folder / "weed.log"
    with log.open("ab") as output:
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=output, stderr=output, cwd=folder)
    try:
        _wait_for_bucket(store, process, log)
        yield store
    finally:
        process.kill()
        process.wait(timeout=START_S)


def _wait_for_bucket(store: ObjectStore, process: "subprocess.Popen[bytes]", log: Path) -> None:
    """Wait until the store has its bucket and takes a file: its parts are ready one after another."""
    filesystem = store.filesystem()
    deadline = time.monotonic() + START_S
    while True:
        assert process.poll() is None and time.monotonic() < deadline, log.read_text()[-5000:]
        with suppress(OSError):
            socket.create_connection(("127.0.0.1", store.port), timeout=5).close()  # pyarrow itself tries for seconds
            filesystem.create_dir(BUCKET)
            with filesystem.open_output_stream(f"{BUCKET}/ready") as stream:
                stream.write(b"x")
            return filesystem.delete_file(f"{BUCKET}/ready")
        time.sleep(0.1)


def _free_ports(count: int) -> list[int]:
    with ExitStack() as held:
        sockets = [held.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(count)]
        return [each.getsockname()[1] for each in sockets]


@contextmanager
def refusing(status: int, code: str) -> Iterator[ObjectStore]:
    """A server that answers every request with one of S3's errors."""

    class Handler(BaseHTTPRequestHandler):
        def refuse(self) -> None:
            self.rfile.read(int(self.headers.get("content-length") or 0))
            body = f"<Error><Code>{code}</Code><Message>{code}</Message></Error>".encode() * (self.command != "HEAD")
            self.send_response(status)
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        do_GET = do_PUT = do_POST = do_HEAD = do_DELETE = refuse  # noqa: N815

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield ObjectStore(f"http://127.0.0.1:{server.server_port}")
    finally:
        server.shutdown()
        server.server_close()
