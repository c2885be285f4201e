"""`doctor` says what would stop a training, as the gates say it; on a cluster: tests/pipeline/test_cluster.py."""

import json
import re
from pathlib import Path

import pytest

from scalablevit.cli import main
from scalablevit.cli.documents import Diagnosis


def test_this_machine_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.chdir(tmp_path)
    given = ["--root", str(tmp_path / "root")]
    assert main("doctor", given) == 0
    shown = capsys.readouterr().out
    assert re.search(r"^storage +this machine +\S+/root/runs$", shown, re.MULTILINE)
    assert "not looked at: other nodes, " in shown and "RAY_ADDRESS is not set" in shown
    assert "not looked at: the upload of a job" in shown and "0 of 7 would stop a training" in shown
    (tmp_path / "file").touch()
    wrong = ["--storage", str(tmp_path / "file"), "--uri", "ftp://host", "--json"]
    assert main("doctor", [*given, *wrong]) == 2
    document = json.loads(capsys.readouterr().out)
    assert (document.pop("schema"), document.pop("version")) == (Diagnosis.schema_name, 1)
    found = Diagnosis.model_validate(document)
    assert [each.what for each in found.findings if each.level == "stops"] == ["tracking", "storage"]
    assert all(each.problem and each.fix for each in found.findings if each.level != "good")
    assert "RAY_ADDRESS is not set" in found.not_checked[0]


def test_a_cluster_that_does_not_answer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:9")
    assert main("doctor", ["--root", str(tmp_path)]) == 2
    assert re.search(r"^cluster +127.0.0.1:9 +stops: the Ray cluster does not answer: ", capsys.readouterr().out, re.M)


def test_no_secret_is_shown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    """Of addresses, good or of no use, and of the environment; neither in the table nor in the document."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "canary-of-mlflow")
    monkeypatch.setenv("RAY_AUTH_TOKEN", "canary-of-ray")
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    shown = ""
    for address, uri, storage in (
        ("", "http://user:canary@127.0.0.1:9", "s3://key:canary@bucket/folder?secret=canary"),
        ("", "http://user:can/ary@host", "nothing://user:canary@bucket"),
        ("canary-of-ray", "postgresql://user:canary@host/db", "https://user:canary@host/x"),
        ("ray://user:canary@127.0.0.1:9", "http://user:canary@127.0.0.1:9?x=canary", "runs"),
    ):
        monkeypatch.setenv("RAY_ADDRESS", address)
        for arguments in ([], ["--json"]):
            given = ["--root", str(tmp_path), "--uri", uri, "--storage", storage, *arguments]
            assert main("doctor", given) == 2, (address, uri, storage)
            shown += "".join(capfd.readouterr())
    assert "***" in shown and not re.search("can/?ary", shown)
