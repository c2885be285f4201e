"""Whether the workers of a group reach each other, which is tried before their process group is set up.

Gloo and NCCL themselves say it after minutes, or after half an hour, each in its own words below a traceback.
"""

import os
import re
import socket
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from ipaddress import ip_address
from typing import Any

import psutil
import ray
import ray.util

from scalablevit.config.errors import UserError
from scalablevit.text import and_more
from scalablevit.training.environment import INTERFACE_VARIABLES, use_interface_of
from scalablevit.training.ray_internals import WorkerGroupCallback

GLOO, NCCL = INTERFACE_VARIABLES
REACH_S = 15.0
"""Seconds in which a worker tries to connect to another one: a network may be away for a moment."""
RETRY_S = 0.5
"""Seconds between two tries."""
SHOWN = 3
"""Nodes, or failed connections, that a message names; the others are counted."""

_MESSAGE = re.compile(
    r"""(?:node\ \S+\ \([^()\n]*\):\ )?(?:  # of `naming_this_node`
    Unable\ to\ find\ address\ for:\ .*     # Gloo, where no interface has that name
    |Gloo\ connectFullMesh\ failed\ .*
    |The\ client\ socket\ has\ (?:timed\ out|failed\ to\ connect)\ .*  # torch's store
    |\w*[Ss]ocket\w+:\ [Cc]onnect\w*\ to\ .*\ (?:failed|returned|family)\ .*  # NCCL
    |Bootstrap\ :\ no\ (?:\w+\ )*interface\ found.*  # NCCL
    )""",
    re.VERBOSE,
)
"""What the libraries say where they cannot connect; a connection that was there and is lost reads otherwise."""

_server: socket.socket | None = None
"""On which this process accepts connections while its group tries the network."""


@dataclass(frozen=True)
class Endpoint:
    """Where the other workers of a group reach a worker."""

    node: str
    """Address of its node in the cluster."""
    chosen_by: str
    """What names the interface: a variable with its value, the host's name, or nothing."""
    interface: str
    """Name of the network interface; empty: not known, or there is none."""
    address: str
    """Which its process group tells the others; empty: there is none."""
    port: int

    @property
    def is_loopback(self) -> bool:
        """Return whether no other machine reaches the address."""
        return bool(self.address) and ip_address(self.address).is_loopback


class GroupUnreachable(Exception):
    """The workers of a group do not reach each other.

    Args:
        endpoints: of a worker on each node.
        failures: why these could not connect; empty where none had to try.
    """

    def __init__(self, endpoints: Sequence[Endpoint], failures: Sequence[str] = ()) -> None:
        super().__init__(endpoints, failures)  # by which it is pickled
        self.endpoints, self.failures = endpoints, failures

    def __str__(self) -> str:
        return str(self.as_user_error())

    def as_user_error(self) -> UserError:
        """Return what is wrong, on which nodes, and what to do."""
        if lacking := [each for each in self.endpoints if not each.address]:
            return UserError(
                f"there is no network interface for the workers by {lacking[0].chosen_by}",
                where=_name_nodes(lacking),
                fix="unset GLOO_SOCKET_IFNAME and NCCL_SOCKET_IFNAME where Ray is started there and in the job, so "
                "that the interface with the node's address in the cluster is used; or name one with an address there",
            )
        if local := [each for each in self.endpoints if each.is_loopback]:
            return UserError(
                f"workers on {len(self.endpoints)} nodes cannot reach each other: by {local[0].chosen_by} those here "
                f"use {local[0].address}, which no other machine reaches",
                where=_name_nodes(local),
                fix="unset GLOO_SOCKET_IFNAME and NCCL_SOCKET_IFNAME where Ray is started there and in the job, so "
                "that the interface with the node's address in the cluster is used; or name one that the others reach",
            )
        failed = "; ".join(self.failures[:SHOWN]) + and_more(len(self.failures), SHOWN)
        return UserError(
            f"workers cannot reach each other: {failed}",
            where=_name_nodes(self.endpoints),
            fix="let nodes connect to one another on all ports from 1024 on, or name an interface that all reach in "
            "GLOO_SOCKET_IFNAME and NCCL_SOCKET_IFNAME where Ray is started",
        )


class NetworkLost(GroupUnreachable):
    """The workers do not reach each other, and an earlier group had started: it may pass."""


class NetworkCallback(WorkerGroupCallback):
    """Has workers use the network interface with their node's address, and try to connect; runs in the controller.

    Args:
        on_gpus: whether the process group is one of NCCL, else of Gloo.
        again: whether this is not the first controller: workers had started before.
    """

    def __init__(self, *, on_gpus: bool, again: bool = False) -> None:
        self._variable = NCCL if on_gpus else GLOO
        self._again = again

    def before_init_train_context(self, workers: list[Any]) -> dict[str, list[Any]]:
        """Try the network of new workers; Ray calls this before it sets up their process group.

        Raises:
            GroupUnreachable: workers of different nodes do not reach each other.
        """
        opened = ray.get([worker.execute_async(_open_endpoint, self._variable) for worker in workers])
        by_node: dict[str, tuple[Endpoint, Any]] = {}
        for endpoint, worker in zip(opened, workers, strict=True):
            by_node.setdefault(endpoint.node, (endpoint, worker))
        if len(by_node) > 1:
            self._connect(list(by_node.values()))
        ray.get([worker.execute_async(_close_endpoint) for worker in workers])
        self._again = True
        return {}

    def _connect(self, members: list[tuple[Endpoint, Any]]) -> None:
        endpoints = [endpoint for endpoint, _ in members]
        failures: list[str] = []
        if is_usable := all(endpoint.address and not endpoint.is_loopback for endpoint in endpoints):
            asked = [worker.execute_async(_connection_error, endpoint.node, endpoints) for endpoint, worker in members]
            failures = [failure for failure in ray.get(asked) if failure]
        if failures or not is_usable:
            raise (NetworkLost if self._again else GroupUnreachable)(endpoints, failures)


def _open_endpoint(variable: str) -> Endpoint:
    """Choose the network interfaces of this process, and accept connections until `_close_endpoint`.

    Args:
        variable: names the interface of the process group: `GLOO` or `NCCL`.
    """
    global _server  # noqa: PLW0603 (what the process holds between two calls of the controller)
    node = _node_address()
    use_interface_of(node)
    setting = os.environ.get(variable, "")
    chosen_by = f"{variable}={setting}" if setting else "" if variable == NCCL else "the host's name"
    interface, address = _choose(node, variable, setting)
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    _server = socket.create_server(("", 0), family=family)
    return Endpoint(node, chosen_by, interface, address, _server.getsockname()[1])


def _close_endpoint() -> None:
    global _server  # noqa: PLW0603
    if _server is not None:
        _server.close()
        _server = None


def _choose(node: str, variable: str, setting: str) -> tuple[str, str]:
    """Return name and address of the interface that the process group will use, each empty where it is not known."""
    if not setting or setting.startswith("^"):  # NCCL chooses, by what others it is not to take
        return ("", node) if variable == NCCL else ("", _own_address())
    exact, names = variable == GLOO or setting.startswith("="), setting.removeprefix("=").split(",")
    for interface in psutil.net_if_addrs():
        if interface in names or (not exact and interface.startswith(tuple(names))):
            addresses = _addresses(interface)
            return interface, node if node in addresses else next(iter(addresses), "")
    return "", ""


def _addresses(interface: str) -> list[str]:
    """Return the IP addresses of an interface, in the order in which Gloo and NCCL take one."""
    entries = psutil.net_if_addrs()[interface]
    return [
        entry.address for family in (socket.AF_INET, socket.AF_INET6) for entry in entries if entry.family == family
    ]


def _own_address() -> str:
    """Return what the host's name resolves to, as Gloo takes it if no interface is named."""
    try:
        return socket.gethostbyname(socket.gethostname())
    except OSError:
        return ""


def _connection_error(node: str, endpoints: Sequence[Endpoint]) -> str:
    """Return the first failure to connect to workers on other nodes, with the reason; empty: there was none.

    Args:
        node: address of this node in the cluster.
        endpoints: of a worker on each node, of rank 0 first: torch's store is at the address of its node.
    """
    store = endpoints[0]
    places = [(each, each.address) for each in endpoints]
    if (":" in store.node) == (":" in store.address):
        places.insert(0, (store, store.node))
    for endpoint, address in dict.fromkeys(places):
        if endpoint.node != node and (reason := _try_to_connect(address, endpoint.port)):
            whose = f", an address of node {endpoint.node}" if address != endpoint.node else ""
            return f"node {node} cannot connect to {address}{whose}: {reason}"
    return ""


def _try_to_connect(address: str, port: int) -> str:
    deadline = time.monotonic() + REACH_S
    while True:
        try:
            socket.create_connection((address, port), timeout=max(1.0, deadline - time.monotonic())).close()
            return ""
        except OSError as error:
            if time.monotonic() + RETRY_S >= deadline:
                return error.strerror or str(error)
        time.sleep(RETRY_S)


@contextmanager
def naming_this_node() -> Iterator[None]:
    """Name this node in errors of process groups that cannot connect; NCCL connects only when it is first used.

    Raises:
        ConnectionError: with the address of the node, the variables that choose interfaces, and the failure.
    """
    try:
        yield
    except RuntimeError as error:  # of which kind torch's errors about it are
        failure = _connection_failure(str(error))
        if not failure:
            raise
        settings = ", ".join(f"{name}={os.environ[name]}" for name in INTERFACE_VARIABLES if name in os.environ)
        raise ConnectionError(f"node {_node_address()} ({settings}): {failure}") from None


def find_network_error(error: Exception) -> UserError | None:
    """Return the error for the user where workers do not reach each other; None: something else is wrong.

    Args:
        error: of Ray Train.
    """
    cause = getattr(error, "controller_failure", None)
    if isinstance(cause, GroupUnreachable):
        return cause.as_user_error()
    text = "\n".join(map(str, [error, *getattr(error, "worker_failures", {}).values()]))
    failure = _connection_failure(text)
    if not failure:
        return None
    nodes = sorted(set(re.findall(r"(?:\bip=|\bnode )([0-9a-f]+[.:][0-9a-f.:]+)", text)))
    return UserError(
        f"workers cannot reach each other: {failure}",
        where=", ".join(f"node {node}" for node in nodes[:SHOWN]) + and_more(len(nodes), SHOWN) or "cluster",
        fix="let nodes connect to one another on all ports from 1024 on, or name an interface that all reach in "
        "GLOO_SOCKET_IFNAME and NCCL_SOCKET_IFNAME where Ray is started",
    )


def _connection_failure(text: str) -> str:
    """Return what Gloo, torch or NCCL says last in a text about not being able to connect; empty: nothing."""
    found = _MESSAGE.findall(text)
    return str(found[-1]).strip() if found else ""


def _node_address() -> str:
    return str(ray.util.get_node_ip_address())  # type: ignore[no-untyped-call]


def _name_nodes(endpoints: Sequence[Endpoint]) -> str:
    names = [f"node {each.node}" + (f" (interface {each.interface})" if each.interface else "") for each in endpoints]
    return ", ".join(names[:SHOWN]) + and_more(len(names), SHOWN)
