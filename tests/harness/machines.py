"""This process on another machine, as far as host name and machine id tell."""

import socket
from pathlib import Path

import pytest

from scalablevit import machine


def be_machine(monkeypatch: pytest.MonkeyPatch, folder: Path, host: str, content: str | None) -> None:
    """Stand for a machine with a host name and the content of its /etc/machine-id, if it has one."""
    monkeypatch.setattr(socket, "gethostname", lambda: host)
    monkeypatch.setattr(machine, "MACHINE_ID", folder / f"{host}-machine-id")
    machine.MACHINE_ID.unlink(missing_ok=True)
    if content is not None:
        machine.MACHINE_ID.write_text(content)
