"""Workers that do not reach each other: found before their process group is set up, or read from its error."""

import os
import pickle
import socket
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import psutil
import pytest
import ray
import ray.exceptions
import ray.train

from scalablevit.training import network
from scalablevit.training.launch import _classify_failure
from scalablevit.training.network import (
    GLOO,
    NCCL,
    Endpoint,
    GroupUnreachable,
    NetworkCallback,
    NetworkLost,
    find_network_error,
    naming_this_node,
)

FIRST, SECOND = "10.77.0.1", "10.77.0.2"
RAY_SAYS = "ray::execute._setup_torch_process_group() (pid=411, ip=10.77.0.2, actor_id=5f, repr=<RayTrainWorker>)\n"

# As torch 2.14 and NCCL wrote them: Gloo's and the store's on two hosts of `harness.hosts`, NCCL's in reports of users.
RECORDED = {
    "Gloo connectFullMesh failed with [/__w/pytorch/pytorch/third_party/gloo/gloo/transport/tcp/pair.cc:152] timed out "
    "connecting: SO_ERROR: Connection refused, remote=[127.0.0.1]:4498$1": "Gloo connectFullMesh failed with",
    "[enforce fail at /__w/pytorch/pytorch/third_party/gloo/gloo/transport/tcp/device.cc:84] ifa != nullptr. Unable to "
    "find address for: eth9": "Unable to find address for: eth9",
    "The client socket has failed to connect to any network address of (10.77.0.1, 29504). The client socket has "
    "failed to connect to 36.86.0.0:21150 (errno: 113 - No route to host).": "The client socket has failed to connect",
    "The client socket has timed out after 600000ms while trying to connect to (172.17.0.9, 46229).":
    "The client socket has timed out after 600000ms",
    "NCCL error in: ../torch/csrc/distributed/c10d/ProcessGroupNCCL.cpp:1333, unhandled system error (run with "
    "NCCL_DEBUG=INFO for details), NCCL version 2.18.6\nncclSystemError: System call (e.g. socket, malloc) or external "
    "library call failed or device error. \nLast error:\nsocketStartConnect: Connect to 192.168.19.14<52822> failed : "
    "No route to host": "socketStartConnect: Connect to 192.168.19.14<52822> failed : No route to host",
    "NCCL error in: /pytorch/torch/csrc/distributed/c10d/ProcessGroupNCCL.cpp:2588, internal error - please report "
    "this issue to the NCCL developers, NCCL version 2.21.5\nncclInternalError: Internal check failed.\nLast error:\n"
    "Bootstrap : no socket interface found": "Bootstrap : no socket interface found",
    "ncclInternalError: Internal check failed.\nLast error:\nncclSocketInit: connecting to address  with family 59936 "
    "is neither AF_INET(2) nor AF_INET6(10)": "ncclSocketInit: connecting to address  with family 59936",
}  # fmt: skip
OTHERS = [
    "[/__w/pytorch/pytorch/third_party/gloo/gloo/transport/tcp/pair.cc:547] Connection closed by peer [10.77.0.2]:3391",
    "NCCL error: remote process exited or there was a network error, NCCL version 2.18.6\nLast error:\n"
    "socketProgress: Connection closed by remote peer node1<57557>",
    "ncclSystemError: System call failed.\nLast error:\nError while creating shared memory segment /dev/shm/nccl-D1",
    "CUDA out of memory. Tried to allocate 2.00 GiB",
]


def of_workers(text: str) -> Exception:
    """As Ray Train raises it once workers failed more often than they may."""
    return ray.train.WorkerGroupError("[Rank 1 Error Snippet]: ...", {1: RuntimeError(text)})


def of_the_setup(text: str) -> Exception:
    """As Ray Train raises it when the process group cannot be set up."""
    cause = ray.exceptions.RayTaskError("execute", f"{RAY_SAYS}RuntimeError: {text}", RuntimeError(text))
    return ray.train.ControllerError(cause)


@pytest.mark.parametrize("text", RECORDED)
def test_what_libraries_say_is_one_plain_error(text: str) -> None:
    for error in (of_workers(text), of_the_setup(text)):
        found = find_network_error(error)
        assert found is not None
        assert found.what.startswith(f"workers cannot reach each other: {RECORDED[text]}") and "\n" not in found.what
        assert "name an interface that all reach in GLOO_SOCKET_IFNAME and NCCL_SOCKET_IFNAME" in found.fix
    assert found.where == f"node {SECOND}", "Ray names the node of a failed call"


@pytest.mark.parametrize("text", OTHERS)
def test_a_lost_connection_and_other_failures_are_none(text: str) -> None:
    assert find_network_error(of_workers(text)) is None


def test_workers_that_reached_each_other_before_are_tried_again() -> None:
    """By the trial of the network a moment before: then a worker was lost while the group was set up."""
    assert _classify_failure(of_the_setup(next(iter(RECORDED))))[0] == "lost"
    assert _classify_failure(of_the_setup(OTHERS[-1]))[0] == "final"
    assert _classify_failure(ray.train.ControllerError(NetworkLost([endpoint()])))[0] == "lost"
    assert _classify_failure(ray.train.ControllerError(GroupUnreachable([endpoint()])))[0] == "final"


def test_a_worker_names_its_node_and_interfaces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(network, "_node_address", lambda: FIRST)
    monkeypatch.setenv(NCCL, "=eth0")
    monkeypatch.delenv(GLOO, raising=False)
    nccl = next(text for text in RECORDED if "192.168.19.14" in text)
    with pytest.raises(ConnectionError) as caught, naming_this_node():
        raise RuntimeError(nccl)
    expected = f"node {FIRST} (NCCL_SOCKET_IFNAME==eth0): {RECORDED[nccl]}"
    assert str(caught.value) == expected
    found = find_network_error(of_workers(f"Traceback ...\nConnectionError: {expected}"))
    assert found is not None
    assert (found.what, found.where) == (f"workers cannot reach each other: {expected}", f"node {FIRST}")
    with pytest.raises(RuntimeError, match="CUDA out of memory"), naming_this_node():
        raise RuntimeError(OTHERS[-1])


# --- before the process group is set up


def endpoint(node: str = FIRST, **changes: Any) -> Endpoint:
    values = {"chosen_by": f"{GLOO}=eth0", "interface": "eth0", "address": node, "port": 4000, **changes}
    return Endpoint(node, **values)


class Worker:
    """Answers what a worker would; `asked` has the names of what it was asked for."""

    def __init__(self, opened: Endpoint, failure: str = "") -> None:
        self.asked: list[str] = []
        self.answers: dict[str, Any] = {"_open_endpoint": opened, "_connection_error": failure, "_close_endpoint": None}

    def execute_async(self, function: Callable[..., Any], *arguments: Any) -> Any:
        self.asked.append(function.__name__)
        return self.answers[function.__name__]


@pytest.fixture(autouse=True)
def no_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray, "get", lambda answers: answers)


def said(*workers: Worker) -> str:
    with pytest.raises(GroupUnreachable) as caught:
        NetworkCallback(on_gpus=False).before_init_train_context(list(workers))
    return str(pickle.loads(pickle.dumps(caught.value)))  # noqa: S301 (so it comes from the controller)


LOCAL = {"chosen_by": f"{GLOO}=lo", "interface": "lo", "address": "127.0.0.1"}


def test_an_interface_that_no_other_machine_reaches() -> None:
    message = said(Worker(endpoint(FIRST)), Worker(endpoint(SECOND, **LOCAL)))
    assert message.startswith(
        f"node {SECOND} (interface lo): workers on 2 nodes cannot reach each other: by GLOO_SOCKET_IFNAME=lo those "
        "here use 127.0.0.1, which no other machine reaches\n  fix: unset GLOO_SOCKET_IFNAME and NCCL_SOCKET_IFNAME"
    )


def test_an_interface_that_is_not_there() -> None:
    missing = Worker(endpoint(SECOND, chosen_by=f"{GLOO}=eth9", interface="", address=""))
    message = said(Worker(endpoint(FIRST)), missing)
    assert message.startswith(f"node {SECOND}: there is no network interface for the workers by {GLOO}=eth9\n")
    assert missing.asked == ["_open_endpoint"], "nobody has to wait for connections"


def test_nodes_that_cannot_connect() -> None:
    message = said(Worker(endpoint(FIRST)), Worker(endpoint(SECOND), f"node {SECOND} cannot connect to ...: timed out"))
    assert message.startswith(
        f"node {FIRST} (interface eth0), node {SECOND} (interface eth0): workers cannot reach each other: node "
        f"{SECOND} cannot connect to ...: timed out\n  fix: let nodes connect"
    )
    many = [Worker(endpoint(f"10.0.0.{i}"), f"from {i}") for i in range(6)]
    assert "from 0; from 1; from 2 and 3 more\n" in said(*many) and "10.0.0.2 (interface eth0) and 3 more: " in said(
        *many
    )


def test_a_network_that_was_there_is_lost() -> None:
    callback = NetworkCallback(on_gpus=False)
    good = [Worker(endpoint(FIRST)), Worker(endpoint(SECOND)), Worker(endpoint(SECOND, port=4001))]
    assert callback.before_init_train_context(good) == {}
    assert [worker.asked for worker in good] == [
        ["_open_endpoint", "_connection_error", "_close_endpoint"],
        ["_open_endpoint", "_connection_error", "_close_endpoint"],
        ["_open_endpoint", "_close_endpoint"],
    ], "one worker of each node tries"
    for followed in (callback, NetworkCallback(on_gpus=False, again=True)):
        with pytest.raises(NetworkLost):
            followed.before_init_train_context([Worker(endpoint(FIRST), "timed out"), Worker(endpoint(SECOND))])


def test_workers_of_one_machine_try_nothing() -> None:
    workers = [Worker(endpoint("127.0.0.1", **LOCAL)), Worker(endpoint("127.0.0.1", **LOCAL))]
    NetworkCallback(on_gpus=False).before_init_train_context(workers)
    assert [worker.asked for worker in workers] == [["_open_endpoint", "_close_endpoint"]] * 2


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A node with loopback, two cards and one without an address; what a test opens is closed."""
    for variable in (GLOO, NCCL):
        monkeypatch.setenv(variable, "")  # so that what the code sets is taken back
        monkeypatch.delenv(variable)
    entries = {
        "lo": [(socket.AF_INET, "127.0.0.1")],
        "eth0": [(socket.AF_INET6, "fd00::1"), (socket.AF_INET, "192.168.0.5")],
        "eth1": [(socket.AF_INET, "10.0.0.9"), (socket.AF_INET, FIRST)],
        "wlan0": [(psutil.AF_LINK, "0a:4d:00:01")],
    }
    cards = {name: [SimpleNamespace(family=f, address=a) for f, a in pairs] for name, pairs in entries.items()}
    monkeypatch.setattr(psutil, "net_if_addrs", lambda: cards)
    monkeypatch.setattr(network, "_node_address", lambda: FIRST)
    monkeypatch.setattr(network, "_own_address", lambda: "127.0.1.1")
    yield
    network._close_endpoint()


@pytest.mark.parametrize(
    ("variable", "setting", "interface", "address"),
    [
        (GLOO, None, "eth1", FIRST),
        (GLOO, "eth0", "eth0", "192.168.0.5"),
        (GLOO, "eth", "", ""),
        (GLOO, "wlan0", "wlan0", ""),
        (NCCL, None, "eth1", FIRST),
        (NCCL, "eth", "eth0", "192.168.0.5"),
        (NCCL, "=eth", "", ""),
        (NCCL, "=eth1,eth0", "eth0", "192.168.0.5"),
        (NCCL, "^lo,docker", "", FIRST),
    ],
)
@pytest.mark.usefixtures("machine")
def test_the_interface_that_the_process_group_takes(
    variable: str, setting: str | None, interface: str, address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if setting is not None:
        monkeypatch.setenv(variable, setting)
    opened = network._open_endpoint(variable)
    assert (opened.node, opened.interface, opened.address) == (FIRST, interface, address)
    assert opened.chosen_by == f"{variable}={os.environ[variable]}"


@pytest.mark.usefixtures("machine")
def test_a_node_whose_address_no_interface_has_uses_its_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(network, "_node_address", lambda: "203.0.113.7")
    opened = network._open_endpoint(GLOO)
    assert (opened.chosen_by, opened.address, opened.is_loopback) == ("the host's name", "127.0.1.1", True)
    assert network._open_endpoint(NCCL).address == "203.0.113.7", "NCCL chooses another interface than loopback"


@pytest.mark.usefixtures("machine")
def test_a_worker_connects_to_the_others_and_to_the_node_of_rank_0(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(network, "REACH_S", 0.0)
    port = network._open_endpoint(GLOO).port
    here = [endpoint("127.0.0.1", port=port), endpoint("127.0.0.2", port=port), endpoint("127.0.0.9", port=1)]
    assert network._connection_error("127.0.0.9", here) == ""
    assert (
        network._connection_error("127.0.0.1", here) == "node 127.0.0.1 cannot connect to 127.0.0.9: Connection refused"
    )
    here[0] = endpoint("127.0.0.1", address="127.0.0.3", port=port)
    assert network._connection_error("127.0.0.9", here[:2]) == ""
    network._close_endpoint()
    assert (
        network._connection_error("127.0.0.9", here[:2])
        == "node 127.0.0.9 cannot connect to 127.0.0.1: Connection refused"
    )
    tried: list[str] = []
    monkeypatch.setattr(network, "_try_to_connect", lambda address, port: tried.append(address) or "")
    network._connection_error("127.0.0.9", here)
    assert tried == ["127.0.0.1", "127.0.0.3", "127.0.0.2"], "torch's store is at the address of rank 0's node"
