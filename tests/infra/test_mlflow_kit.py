"""The files of infra/mlflow agree with each other; tests/cluster/test_tracking_kit.py runs the server."""

import configparser
import json
import re
import runpy
import shlex
import subprocess
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml

REPOSITORY = Path(__file__).parents[2]
KIT = REPOSITORY / "infra" / "mlflow"
LOCK = (KIT / "requirements.lock").read_text(encoding="utf-8")


@pytest.fixture
def server() -> dict[str, Any]:
    """What server.py defines."""
    return runpy.run_path(str(KIT / "server.py"))


def locked(text: str) -> set[str]:
    return set(re.findall(r"^([a-z0-9._-]+==[^\s;\\]+)", text, re.MULTILINE))


def test_the_lock_has_what_the_server_needs_at_the_versions_of_jobs() -> None:
    ours = locked((REPOSITORY / "infra" / "requirements.lock").read_text(encoding="utf-8"))
    theirs = dict(re.findall(r"^([a-z0-9._-]+)==([^\s;\\]+)", LOCK, re.MULTILINE))
    assert {"mlflow", "psycopg", "psycopg-binary", "boto3", "flask-wtf"} <= theirs.keys()
    assert int(theirs["flask-wtf"].split(".")[0]) < 2
    shared = {each for each in ours if each.split("==")[0] in theirs}
    assert f"mlflow=={theirs['mlflow']}" in shared
    assert shared <= locked(LOCK), "run `make lock`"


@pytest.mark.parametrize("file", ["requirements.lock", "seaweedfs.lock"])
def test_every_package_has_hashes_and_no_address(file: str) -> None:
    text = (KIT / file).read_text(encoding="utf-8")
    assert "://" not in text
    for block in re.split(r"\n(?=[a-z0-9])", text.strip()):
        assert "--hash=sha256:" in block, block.splitlines()[0]


def test_containers_get_the_secrets_that_are_made_and_only_loopback_has_a_port(
    server: dict[str, Any], tmp_path: Path
) -> None:
    server["make_secrets"](tmp_path)
    compose = yaml.safe_load((KIT / "compose.yaml").read_text(encoding="utf-8"))
    services = compose["services"]
    made = {file.name for file in tmp_path.iterdir()}
    assert {name: {"file": f"./secrets/{name}"} for name in made} == compose["secrets"]
    assert set(services["mlflow"]["secrets"]) == made
    assert [port for each in services.values() for port in each.get("ports", [])] == ["127.0.0.1:5000:5000"]
    (weed,) = locked((KIT / "seaweedfs.lock").read_text(encoding="utf-8"))
    assert services["bucket"]["image"].split(":")[1] == weed.split("==")[1]
    major = services["database"]["image"].split(":")[1]
    assert f"postgresql-client-{major} " in (KIT / "Dockerfile").read_text(encoding="utf-8")
    flags = {flag for flag in services["bucket"]["command"] if not re.search("dir=|ip|config=|s3.port=", flag)} - {
        "server"
    }
    assert flags <= set(re.findall(r'"(-[^"]+)"', (KIT / "local.py").read_text(encoding="utf-8"))), (
        "as local.py starts it"
    )


def test_the_image_copies_what_exists_and_what_is_let_through() -> None:
    lines = (KIT / "Dockerfile").read_text(encoding="utf-8").splitlines()
    sources = [word for line in lines if line.startswith("COPY") for word in shlex.split(line)[1:-1]]
    ignore = (KIT / ".dockerignore").read_text(encoding="utf-8").splitlines()
    assert sorted(f"!{source}" for source in sources) == sorted(line for line in ignore if line.startswith("!"))
    assert "*" in ignore and all((KIT / source).exists() for source in sources)
    uv = re.search(r"^UV_VERSION := (.+)$", (REPOSITORY / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
    assert uv is not None and any(f"uv=={uv[1]} " in line for line in lines)


def test_settings_that_were_measured() -> None:
    auth = configparser.ConfigParser()
    auth.read(KIT / "auth.ini")
    assert auth["mlflow"]["auth_cache_ttl_seconds"] == "300"
    assert auth["mlflow"]["default_permission"] == "READ"
    assert not re.search("password", " ".join(auth["mlflow"])) and ":" not in auth["mlflow"]["database_uri"][13:]


def test_settings_turn_off_what_is_not_used(server: dict[str, Any]) -> None:
    assert server["SETTINGS"]["MLFLOW_SERVER_ENABLE_JOB_EXECUTION"] == "false"


def test_a_password_that_is_there_stays_and_an_empty_one_is_refused(
    server: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "secrets"
    folder.mkdir()
    (folder / "trainer").write_text("chosen by the operator\n")
    server["make_secrets"](folder)
    first = {file.name: file.read_text() for file in folder.iterdir()}
    server["make_secrets"](folder)
    assert {file.name: file.read_text() for file in folder.iterdir()} == first
    assert {(folder / name).stat().st_mode & 0o777 for name in first if name != "trainer"} == {0o600}
    assert all(len(text) >= 20 for text in first.values())
    monkeypatch.setenv("TRACKING_SECRETS", str(folder))
    assert server["secret"]("trainer") == "chosen by the operator"
    (folder / "viewer").write_text("\n")
    with pytest.raises(server["KitError"], match="viewer is empty"):
        server["secret"]("viewer")
    with pytest.raises(server["KitError"], match="cannot be read"):
        server["secret"]("nobody")


def test_half_a_backup_is_not_restored(server: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(server["KitError"], match="no complete backup"):
        server["restore"](tmp_path)
    (tmp_path / "manifest.json").write_text(json.dumps({"sha256": {"mlflow.dump": "0" * 64}, "keys": {}}))
    with pytest.raises(server["KitError"], match=r"mlflow\.dump is missing or has changed"):
        server["restore"](tmp_path)


def test_a_backup_is_readable_by_its_owner_only(
    server: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It has MLflow's hashes of passwords, and all that was recorded."""

    def dump(*command: str) -> None:
        Path(command[2].removeprefix("--file=")).write_text("as pg_dump would, with the usual permissions")

    pages = SimpleNamespace(paginate=lambda Bucket: [{"Contents": [{"Key": "1/model.safetensors"}]}])  # noqa: N803
    store = SimpleNamespace(get_paginator=lambda name: pages,
                            download_file=lambda bucket, key, file: Path(file).write_text(key))  # fmt: skip
    monkeypatch.setitem(server["backup"].__globals__, "_run", dump)
    monkeypatch.setitem(server["backup"].__globals__, "_s3", lambda: store)
    assert server["backup"](tmp_path / "new" / "backup").endswith("2 databases, 1 objects")
    assert (tmp_path / "new" / "backup").stat().st_mode & 0o777 == 0o700
    assert (tmp_path / "new" / "backup" / "objects" / "00000000").read_text() == "1/model.safetensors"


def test_the_users_own_keys_and_database_do_not_reach_the_kit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Those of run storage, for instance: the kit's server would use them for its own bucket."""
    (tmp_path / "pg_ctl").write_text("")
    (tmp_path / "pg_ctl").chmod(0o755)
    monkeypatch.setenv("POSTGRES_BIN", str(tmp_path))
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_ENDPOINT_URL", "PGPASSFILE", "PGSSLMODE"):
        monkeypatch.setenv(name, "the user's own")
    environment = runpy.run_path(str(KIT / "local.py"))["Kit"](tmp_path / "folder").environment()
    assert "the user's own" not in environment.values()
    assert environment["PGHOST"] == "127.0.0.1" and environment["TRACKING_SECRETS"] == str(tmp_path / "folder/secrets")


def test_secrets_and_backups_are_not_committed_and_travel_with_no_job() -> None:
    """Ray leaves out what .gitignore names."""
    paths = ["infra/mlflow/secrets/admin", "infra/mlflow/backups/1/mlflow.dump", "infra/mlflow/plugins/x/x.py"]
    asked = ["git", "check-ignore", "--no-index", *paths, "infra/mlflow/plugins/README.md"]
    ignored = subprocess.run(asked, cwd=REPOSITORY, capture_output=True, text=True, timeout=30, check=False)
    assert ignored.stdout.split() == paths
