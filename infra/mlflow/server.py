"""The tracking server: its secrets, its start, its users, backup and restore. In the container, and for local.py.

Services are where PGHOST, PGPORT and MLFLOW_S3_ENDPOINT_URL say. Secrets are files in the folder that TRACKING_SECRETS
names; they reach programs by the environment only: none is on a command line, in an address or in a log.
"""

import argparse
import contextlib
import hashlib
import json
import os
import secrets
import shutil
import subprocess
import sys
import time
import warnings
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
DATABASES = ("mlflow", "mlflow_auth")
BUCKET = "mlflow"
USERS = ("trainer", "viewer")
"""Beside `admin`, whom the server makes at its first start."""
PASSWORDS = ("admin", *USERS, "database", "session")
S3_KEYS = "s3.json"
"""The key of the bucket, as SeaweedFS reads it."""
SETTINGS = {
    "MLFLOW_AUTH_CONFIG_PATH": str(HERE / "auth.ini"),
    # otherwise seven processes of 227 MB, which outlive the server
    "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "PYTHONPATH": str(HERE / "plugins"),
}
MANIFEST = "manifest.json"
WAIT_S = 120.0
"""Longest wait in seconds for the database and the bucket to come up."""


class KitError(Exception):
    """What the user must know or do, in one sentence."""


def make_secrets(folder: Path) -> None:
    """Write the secrets that are not there yet, each readable by its owner only."""
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    for name in PASSWORDS:
        _write_new(folder / name, secrets.token_urlsafe(24))
    key = {"accessKey": secrets.token_hex(10), "secretKey": secrets.token_urlsafe(30)}
    identity = {"name": "mlflow", "credentials": [key], "actions": ["Admin", "Read", "Write", "List", "Tagging"]}
    _write_new(folder / S3_KEYS, json.dumps({"identities": [identity]}))


def secret(name: str) -> str:
    """Return a secret of the folder TRACKING_SECRETS, without its line end."""
    file = Path(os.environ.get("TRACKING_SECRETS", "secrets")) / name
    try:
        text = file.read_text(encoding="utf-8").strip()
    except OSError as error:
        raise KitError(f"{file} cannot be read ({error.strerror}): `server.py secrets` makes it, and TRACKING_SECRETS "
                       "names its folder") from error  # fmt: skip
    if not text:
        raise KitError(f"{file} is empty: remove it, and `server.py secrets` makes it again")
    return text


def set_access() -> None:
    """Set the variables by which libpq and boto3 reach the services, but for a key that the environment has already."""
    os.environ.update(PGUSER="mlflow", PGPASSWORD=secret("database"))
    if "AWS_ACCESS_KEY_ID" not in os.environ:
        key = json.loads(secret(S3_KEYS))["identities"][0]["credentials"][0]
        os.environ.update(AWS_ACCESS_KEY_ID=key["accessKey"], AWS_SECRET_ACCESS_KEY=key["secretKey"])
    os.environ.setdefault("AWS_DEFAULT_REGION", "us-east-1")


def make_stores() -> None:
    """Create the databases and the bucket where they are missing, once their services are up."""
    import psycopg
    from botocore.exceptions import BotoCoreError, ClientError

    deadline = time.monotonic() + WAIT_S
    while True:
        try:
            with psycopg.connect(dbname="postgres", autocommit=True, connect_timeout=10) as connection:
                there = {name for (name,) in connection.execute("SELECT datname FROM pg_database")}
                for name in DATABASES:
                    if name not in there:
                        connection.execute(f"CREATE DATABASE {name}")
            if BUCKET not in [each["Name"] for each in _s3().list_buckets()["Buckets"]]:
                _s3().create_bucket(Bucket=BUCKET)
        except (psycopg.OperationalError, BotoCoreError, ClientError) as error:
            if time.monotonic() > deadline:
                raise KitError(f"database or bucket cannot be used after {WAIT_S:.0f} s: {error}") from error
            time.sleep(0.2)
        else:
            return


def serve(host: str, port: int, workers: int) -> None:
    """Become MLflow's server."""
    make_stores()
    os.environ.update(SETTINGS, MLFLOW_AUTH_ADMIN_PASSWORD=secret("admin"),
                      MLFLOW_FLASK_SERVER_SECRET_KEY=secret("session"))  # fmt: skip
    os.execv(sys.executable, [  # noqa: S606  # the arguments are ours
        *(sys.executable, "-m", "mlflow", "server", "--app-name", "basic-auth", "--host", host, "--port", str(port)),
        *("--workers", str(workers), "--backend-store-uri", "postgresql:///mlflow"),
        *("--artifacts-destination", f"s3://{BUCKET}"),
    ])  # fmt: skip


def make_users(uri: str) -> None:
    """Make the users that are missing; all get the passwords of their files."""
    os.environ.update(MLFLOW_TRACKING_USERNAME="admin", MLFLOW_TRACKING_PASSWORD=secret("admin"))
    from mlflow.exceptions import MlflowException

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a library's news for MLflow's makers
        from mlflow.server.auth.client import AuthServiceClient

    client = AuthServiceClient(uri)
    for name in USERS:
        try:
            client.create_user(name, secret(name))
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise KitError(f"user {name} cannot be made at {uri}: {error.message}") from error
            client.update_user_password(name, secret(name))


def backup(target: Path) -> str:
    """Write both databases, then the bucket, which by then has all files that they name, into a new folder.

    The folder has its name only when it is complete. Passwords are in it as MLflow's hashes; the secrets are not.
    """
    if target.exists():
        raise KitError(f"{target} is there already: name a new folder")
    partial = target.with_name(f"{target.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(mode=0o700, parents=True)  # `parents` alone have the usual permissions
    (partial / "objects").mkdir()
    for name in DATABASES:
        _run("pg_dump", "--format=custom", f"--file={partial / name}.dump", name)
    sums = {f"{name}.dump": _sha256(partial / f"{name}.dump") for name in DATABASES}
    keys: dict[str, str] = {}
    for page in _s3().get_paginator("list_objects_v2").paginate(Bucket=BUCKET):
        for entry in page.get("Contents", []):
            file = f"objects/{len(keys):08d}"  # a key need not be a path
            _s3().download_file(BUCKET, entry["Key"], str(partial / file))
            keys[file], sums[file] = entry["Key"], _sha256(partial / file)
    manifest = {"format": 1, "made": datetime.now(UTC).isoformat(timespec="seconds"), "keys": keys, "sha256": sums}
    (partial / MANIFEST).write_text(json.dumps(manifest, indent=1), encoding="utf-8")
    partial.rename(target)
    return f"{target}: {len(DATABASES)} databases, {len(keys)} objects"


def restore(source: Path) -> str:
    """Fill empty databases and the bucket from a backup, whose sums are compared first; no server may use them."""
    try:
        manifest = json.loads((source / MANIFEST).read_text(encoding="utf-8"))
    except OSError as error:
        raise KitError(f"{source} is no complete backup: {MANIFEST} cannot be read ({error.strerror})") from error
    for file, expected in manifest["sha256"].items():
        if not (source / file).is_file() or _sha256(source / file) != expected:
            raise KitError(f"{source / file} is missing or has changed since the backup; nothing was restored")
    import psycopg

    make_stores()
    for name in DATABASES:
        with psycopg.connect(dbname=name) as connection:
            if connection.execute("SELECT 1 FROM pg_tables WHERE schemaname = 'public'").fetchone():
                raise KitError(f"database {name} has tables: a backup is restored into empty databases only")
    for file, key in manifest["keys"].items():
        _s3().upload_file(str(source / file), BUCKET, key)
    for name in DATABASES:
        _run("pg_restore", "--exit-on-error", "--single-transaction", "--no-owner", f"--dbname={name}",
             f"{source / name}.dump")  # fmt: skip
    return f"{len(DATABASES)} databases and {len(manifest['keys'])} objects of {manifest['made']} are back"


def _s3() -> Any:
    import boto3

    return boto3.client("s3", endpoint_url=os.environ.get("MLFLOW_S3_ENDPOINT_URL"))


def _run(*command: str) -> None:
    try:
        subprocess.run(command, check=True, capture_output=True, text=True)
    except FileNotFoundError as error:
        raise KitError(f"there is no {command[0]} on PATH; it is part of PostgreSQL's client") from error
    except subprocess.CalledProcessError as error:
        raise KitError(f"{command[0]}: {error.stderr.strip()}") from error


def _sha256(file: Path) -> str:
    with file.open("rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()


def _write_new(file: Path, text: str) -> None:
    with contextlib.suppress(FileExistsError):
        descriptor = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "w") as new:
            new.write(text)


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(prog="server.py", description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("secrets", help="make the secrets that are missing").add_argument("folder", type=Path)
    serving = commands.add_parser("serve", help="run the server")
    serving.add_argument("--host", default="127.0.0.1")
    serving.add_argument("--port", type=int, default=5000)
    serving.add_argument("--workers", type=int, default=2, help="processes of about 250 MB")
    commands.add_parser("users", help="make the users trainer and viewer, or give them the passwords of their files"
                        ).add_argument("uri", nargs="?", default="http://127.0.0.1:5000")  # fmt: skip
    commands.add_parser("backup", help="write databases and bucket to a new folder").add_argument("folder", type=Path)
    commands.add_parser("restore", help="read them back into empty ones").add_argument("folder", type=Path)
    return parser.parse_args(arguments)


def main() -> int:
    """Run a command, and return the exit code: 0, or 1 with a reason on stderr."""
    options = parse()
    try:
        if options.command == "secrets":
            make_secrets(options.folder)
            return 0
        set_access()
        if options.command == "serve":
            serve(options.host, options.port, options.workers)
        elif options.command == "users":
            make_users(options.uri)
        else:
            print((backup if options.command == "backup" else restore)(options.folder.resolve()))
    except KitError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
