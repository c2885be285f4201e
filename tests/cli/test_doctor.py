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
    monkeypatch.setenv("RAY_ADDRESS", "nobody:6379")
    wrong = ["--storage", str(tmp_path / "file"), "--uri", "ftp://host", "--address", "none", "--json"]
    assert main("doctor", [*given, *wrong]) == 2
    document = json.loads(capsys.readouterr().out)
    assert (document.pop("schema"), document.pop("version")) == (Diagnosis.schema_name, 1)
    found = Diagnosis.model_validate(document)
    assert [each.what for each in found.findings if each.level == "stops"] == ["tracking", "storage"]
    assert all(each.problem and each.fix for each in found.findings if each.level != "good")
    assert "--address none" in found.not_checked[0]


def test_a_cluster_that_does_not_answer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:9")
    assert main("doctor", ["--root", str(tmp_path)]) == 2
    assert re.search(r"^cluster +127.0.0.1:9 +stops: the Ray cluster does not answer: ", capsys.readouterr().out, re.M)
