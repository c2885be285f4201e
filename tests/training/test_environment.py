"""Variables of a worker's environment that depend on its node."""

import os
import socket
from types import SimpleNamespace

import psutil
import pytest

from scalablevit.training.environment import INTERFACE_VARIABLES, use_interface_of


@pytest.fixture(autouse=True)
def two_interfaces(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine with two network cards, and none of the variables."""
    for variable in INTERFACE_VARIABLES:
        monkeypatch.setenv(variable, "")  # so that what the code sets is taken back
        monkeypatch.delenv(variable)
    entries = {
        "lo": [(socket.AF_INET, "127.0.0.1"), (socket.AF_INET6, "::1")],
        "eth0": [(psutil.AF_LINK, "0a:4d:00:01"), (socket.AF_INET, "192.168.0.5")],
        "eth1": [(socket.AF_INET, "10.77.0.1"), (socket.AF_INET6, "fd00::7%eth1")],
    }
    cards = {name: [SimpleNamespace(family=f, address=a) for f, a in pairs] for name, pairs in entries.items()}
    monkeypatch.setattr(psutil, "net_if_addrs", lambda: cards)


def chosen() -> list[str | None]:
    return [os.environ.get(variable) for variable in INTERFACE_VARIABLES]


@pytest.mark.parametrize("address", ["10.77.0.1", "fd00::7"])
def test_process_groups_use_the_interface_of_the_nodes_address(address: str) -> None:
    use_interface_of(address)
    assert chosen() == ["eth1", "eth1"]


def test_an_interface_that_was_chosen_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "ib0")
    use_interface_of("10.77.0.1")
    assert chosen() == ["ib0", "eth1"]


@pytest.mark.parametrize("address", ["127.0.0.1", "::1", "10.99.0.1"])
def test_loopback_and_addresses_of_no_interface_change_nothing(address: str) -> None:
    use_interface_of(address)
    assert chosen() == [None, None]
