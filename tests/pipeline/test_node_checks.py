"""What a gate and `doctor` find on nodes: each fault is planted, and found by its own function."""

import socket
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from harness.toys import stage_of

from scalablevit.config.errors import UserError
from scalablevit.pipeline import cluster, node_checks
from scalablevit.pipeline.node_checks import (
    NodeFacts,
    collect,
    find_clock,
    find_disk,
    find_gpus,
    find_interface,
    find_ports,
    find_shared_memory,
    find_storage,
    find_token,
    find_upload,
    find_versions,
    shared_bytes,
    versions,
)
from scalablevit.training.ray_internals import Node

NODE = Node("a", {"CPU": 2.0, "GPU": 1.0}, "10.0.0.1")
OTHER = Node("b", {"CPU": 2.0, "GPU": 1.0}, "10.0.0.2")
A, B = "a" * 56, "b" * 56  # as Ray's ids are
GOOD = NodeFacts(
    versions={"python": "3.11.7", **dict.fromkeys(node_checks.PACKAGES, "2.0")}, gpus=1, shared_free=8 * 2**30,
    disk=("/disk", 50 * 2**30, 100 * 2**30), interface="eth0", unreached="",
    storage={"/nfs/runs": ("", "")},
)  # fmt: skip


def test_versions() -> None:
    def found(**changes: str) -> tuple[str, str]:
        given = {name: version for name, version in {**GOOD.versions, **changes}.items() if version}
        finding = find_versions(NODE, replace(GOOD, versions=given), GOOD.versions)
        return finding.level, finding.problem.what if finding.problem else ""

    assert found() == ("good", "")
    assert found(torch="1.9") == ("warning", "has torch 1.9 in place of 2.0")
    assert found(torch="unknown") == ("warning", "has torch unknown in place of 2.0"), "its metadata is damaged"
    assert found(torch="", timm="") == ("stops", "has no torch, no timm")


def test_gpus_that_ray_does_not_give_out() -> None:
    assert find_gpus(NODE, GOOD).level == "good"
    finding = find_gpus(NODE, replace(GOOD, gpus=4))
    assert finding.level == "warning" and "4 GPUs, of which Ray gives out 1" in finding.problem.what


def test_gpus_that_slurm_or_a_person_chose_are_all_there_are(monkeypatch, tmp_path) -> None:
    for gpu in ("0", "1"):
        (tmp_path / gpu).mkdir()
    monkeypatch.setattr(node_checks, "NVIDIA", tmp_path)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert collect([""]).gpus == 2
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1")
    assert collect([""]).gpus == 0


def test_shared_memory_is_what_torchs_loader_fills() -> None:
    """Two batches for each loader process, of which nobody takes one, as in an evaluation: counted by hand."""
    given = ("cluster.loader_workers=4", "cluster.workers=2", "training.global_batch_size=10")
    image = stage_of("pretrain").data.image_size ** 2 * 3
    assert shared_bytes(stage_of("pretrain", *given), 100, 1) == (5 * image, 4 * 2 * 5 * image)
    assert shared_bytes(stage_of("pretrain", *given), 100, 2) == (5 * image, 2 * 4 * 2 * 5 * image), "both workers"
    few = shared_bytes(stage_of("pretrain", *given, "training.accumulation_steps=2"), 3, 1)
    assert few == (2 * image, 3 * 2 * 3 * image), "a tiny data set: six micro-batches of 2 or 3 are all there are"
    assert shared_bytes(stage_of("pretrain", *given, "cluster.loader_workers=0"), 100, 1) == (0, 0)
    crops = stage_of("segment", *given)
    assert shared_bytes(crops, 100, 1)[0] == 5 * crops.data.crop_size**2 * 4, "with a mask of one byte a pixel"
    photographs = stage_of("detect", *given)
    assert shared_bytes(photographs, 100, 1) == (0, 4 * 2 * 5 * photographs.data.training_pixels * 3)


def test_shared_memory_is_refused_where_no_batch_fits_and_warned_of_where_all_may_not() -> None:
    docker, least = replace(GOOD, shared_free=64 * 2**20), 2**20
    assert find_shared_memory(NODE, docker, None).level == "warning", "no stage is known: doctor"
    assert find_shared_memory(NODE, GOOD, None).level == "good"
    assert find_shared_memory(NODE, docker, (0, 0)).level == "good", "a job without loader processes needs none"
    assert find_shared_memory(NODE, docker, (least, 64 * least)).level == "good"
    finding = find_shared_memory(NODE, docker, (least, 65 * least))
    assert finding.level == "warning"
    assert "has 64.0 MiB free; loader processes take up to 65.0 MiB" in finding.problem.what
    assert find_shared_memory(NODE, docker, (65 * least, 130 * least)).level == "stops"


def test_a_disk_that_is_nearly_full() -> None:
    assert find_disk("x", "/disk", 6, 100).level == "good"
    assert find_disk("x", "/disk", 4, 100).level == "warning"


def test_an_address_that_no_interface_has() -> None:
    assert find_interface(NODE, GOOD).level == "good"
    assert find_interface(NODE, replace(GOOD, interface="")).level == "warning"


def test_a_firewall_between_nodes() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        place = f"127.0.0.1:{server.getsockname()[1]}"
        assert find_ports(NODE, collect([place]), stops=True).level == "good"
    finding = find_ports(NODE, collect([place]), stops=True)
    assert finding.level == "stops" and "Connection refused" in finding.problem.what


def test_clocks_differ_only_where_they_surely_do() -> None:
    assert find_clock(NODE, 100.0, 104.0, 105.0).level == "good"
    for clock, said in ((165.0, "60 s ahead of"), (40.0, "60 s behind")):
        finding = find_clock(NODE, 100.0, clock, 105.0)
        assert finding.level == "warning" and f"its clock is {said} this machine's" in finding.problem.what


def test_run_storage_that_a_node_cannot_write_to(tmp_path) -> None:
    (tmp_path / "runs").mkdir()
    storage = collect(["", str(tmp_path / "runs"), str(tmp_path / "not" / "mounted")]).storage
    assert not (tmp_path / "not").exists(), "a mount point is not made"
    assert storage[str(tmp_path / "runs")] == ("", "") and not list((tmp_path / "runs").iterdir())
    good, bad = (find_storage(NODE, location, *error) for location, error in storage.items())
    assert (good.level, bad.level) == ("good", "stops")
    assert (
        f"cluster.storage ({tmp_path / 'not' / 'mounted'}) on node 10.0.0.1: writing a small file there fails: "
        in str(bad.problem)
    )


def test_a_cluster_without_a_token_and_an_upload_with_data() -> None:
    assert [find_token(*given).level for given in (("127.0.0.1:6379", ""), ("10.0.0.1:6379", "token"))] == ["good"] * 2
    assert find_token("10.0.0.1:6379", "").level == "warning"
    assert [find_upload("/here", size, 100).level for size in (50, 51, 201)] == ["good", "warning", "stops"]


@pytest.fixture
def facts(monkeypatch) -> dict[str, NodeFacts]:
    """What two machines answer; the driver is on the first one."""
    import ray

    here = replace(GOOD, versions=versions())
    answers = {"a": here, "b": here}
    monkeypatch.setattr(node_checks, "storage_error", lambda location: ("", ""))
    monkeypatch.setattr(ray, "get_runtime_context", lambda: SimpleNamespace(get_node_id=lambda: "a"))
    monkeypatch.setattr(
        cluster, "_ask_nodes",
        lambda nodes, question, items, what: {each: question(items) for each in answers} if items == [] else answers,
    )  # fmt: skip
    return answers


def check(nodes: list[Node], *overrides: str) -> None:
    """A training's check, by overrides of a toy stage's recipe; a worker takes a CPU."""
    stage = stage_of("pretrain", "cluster.storage=s3://none", *overrides)
    cluster._check_nodes([SimpleNamespace(stage=stage, length=SimpleNamespace(total=100))], Path("/"), nodes)


def test_a_training_is_refused_for_what_doctor_finds(facts, capsys) -> None:
    """On two machines with a firewall between them, which matters only where workers connect to one another."""
    facts["a"] = replace(facts["a"], gpus=4)
    facts["b"] = replace(facts["b"], unreached="Connection refused")
    (finding,) = [each for each in cluster.find_on_nodes([NODE, OTHER], []) if each.level == "stops"]
    assert (finding.what, finding.where) == ("ports", "10.0.0.2")
    check([NODE, OTHER], "cluster.workers=1")
    assert "warning: node 10.0.0.1: NVIDIA's driver names 4 GPUs" in capsys.readouterr().out
    with pytest.raises(UserError) as caught:
        check([NODE, OTHER], "cluster.workers=3")
    assert caught.value is not finding.problem and str(caught.value) == str(finding.problem)
    check([NODE, OTHER], "cluster.workers=2")  # all on one machine: a firewall that lets Ray's own ports through
    check([NODE, replace(OTHER, address=NODE.address)], "cluster.workers=3")
    facts["b"] = replace(facts["b"], unreached="", shared_free=2**10)
    with pytest.raises(UserError, match=r"node 10\.0\.0\.2: /dev/shm has 0\.0 MiB free"):
        check([NODE, OTHER], "cluster.loader_workers=64")


def test_a_node_on_which_no_worker_has_room_is_not_looked_at(facts, capsys) -> None:
    """Such as a head without CPUs, in a small container, with Ray alone."""
    facts["a"] = replace(facts["a"], versions={"ray": "1"}, shared_free=0, gpus=4, storage={"/runs": ("read-only", "")})
    head = replace(NODE, resources={})
    check([head, OTHER], "cluster.loader_workers=1")
    facts["b"] = replace(facts["b"], unreached="Connection refused")
    check([head, OTHER, replace(OTHER, id="c", address="10.0.0.3")], "cluster.workers=3")
    shown = capsys.readouterr().out
    assert "10.0.0.1" not in shown and "warning: node 10.0.0.2: cannot connect to the driver's node" in shown
    assert {each.where for each in cluster.find_on_nodes([head, OTHER], [])} == {"10.0.0.1", "10.0.0.2"}, "doctor"


def test_nodes_with_the_same_fault_are_in_one_line(facts, capsys) -> None:
    nodes = [replace(OTHER, id=str(number), address=f"10.0.0.{number}") for number in range(64)]
    facts |= {node.id: replace(facts["b"], gpus=8) for node in nodes}
    check([NODE, *nodes])
    (line,) = capsys.readouterr().out.splitlines()
    assert line.startswith("warning: node 10.0.0.0, node 10.0.0.1, node 10.0.0.2 and 61 more: NVIDIA's driver names 8")
    for node in nodes:
        facts[node.id] = replace(facts[node.id], storage={"/runs": ("it is read-only", "")})
    with pytest.raises(UserError, match=r"and 61 more: it is read-only$"):
        check([NODE, *nodes])


@pytest.fixture
def only_a_answers(monkeypatch) -> Callable[[Exception], list[Node]]:
    """Two nodes, of which the second raises an error when it is asked for its answer."""
    import ray

    nodes = [replace(OTHER, id=B), replace(NODE, id=A)]

    class Task:
        def __init__(self, question: object) -> None:
            pass

        def options(self, num_cpus: int, scheduling_strategy: Any) -> "Task":
            self.node = scheduling_strategy.node_id
            return self

        def remote(self, items: list[str]) -> str:
            return str(self.node)

    def begin(error: Exception) -> list[Node]:
        def get(node: str, timeout: float) -> str:
            if node == A:
                return "here"
            raise error

        monkeypatch.setattr(ray, "remote", Task)
        monkeypatch.setattr(ray, "get", get)
        monkeypatch.setattr(cluster, "alive_nodes", lambda: nodes)
        return nodes

    return begin


def test_a_node_that_leaves_while_it_is_asked_is_left_out(monkeypatch, only_a_answers) -> None:
    from ray.exceptions import NodeDiedError

    nodes = only_a_answers(NodeDiedError("its node died"))
    with pytest.raises(NodeDiedError):
        cluster._ask_nodes(nodes, len, [], "")
    monkeypatch.setattr(cluster, "alive_nodes", lambda: nodes[1:])
    assert cluster._ask_nodes(nodes, len, [], "") == {A: "here"}


def test_a_node_that_does_not_answer_is_named_by_its_address(only_a_answers) -> None:
    from ray.exceptions import GetTimeoutError

    with pytest.raises(UserError, match=r"not every node answered within 120 s at all \(10\.0\.0\.2 did not\)"):
        cluster._ask_nodes(only_a_answers(GetTimeoutError("late")), len, [], "at all")


def test_what_is_known_of_a_node_that_has_left_is_nothing(facts) -> None:
    del facts["b"]
    check([NODE, OTHER], "cluster.workers=3")
