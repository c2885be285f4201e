"""How messages name commands: by what the user started."""

import sys
from pathlib import Path

import pytest

from scalablevit.config import commands
from scalablevit.config.commands import command_line, command_name, short_name


@pytest.mark.parametrize("program", ["pipelines/full.py", "/app/pipelines/full.py", "-c", ""])
def test_scripts_lead_to_scripts(program: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", [program, "scalablevit"])
    assert command_name("check-data") == "pipelines/check_data.py"
    assert short_name("check-data") == "check_data.py"
    assert command_line("check-data") == "python pipelines/check_data.py"
    assert command_line("sync", Path("/a b/bin")) == "'/a b/bin/python' pipelines/sync.py"


def test_an_installed_program_goes_before_the_script(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(sys, "argv", ["pipelines/full.py"])
    (tmp_path / "scalablevit").touch()
    assert command_line("sync", tmp_path) == f"{tmp_path}/scalablevit sync"
    assert command_line("sync") == "python pipelines/sync.py"


@pytest.mark.parametrize("program", ["scalablevit", "/a b/bin/scalablevit", "C:/bin/scalablevit.exe"])
def test_the_command_leads_to_itself(program: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", [program, "full"])
    assert command_name("check-data") == short_name("check-data") == command_line("check-data")
    assert command_line("check-data") == "scalablevit check-data"
    assert command_line("sync", Path("/a b/bin")) == "'/a b/bin/scalablevit' sync"


def test_without_scripts_there_is_the_command_alone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """An installed package in a notebook; a program embedded without arguments."""
    monkeypatch.setattr(commands, "SCRIPTS", tmp_path)
    for arguments in (["ipykernel_launcher.py"], []):
        monkeypatch.setattr(sys, "argv", arguments)
        assert command_line("sync") == "scalablevit sync"
