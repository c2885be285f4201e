"""What a gate and `doctor` find on nodes: each fault is planted, and found by its own function."""

import socket
from dataclasses import replace
from types import SimpleNamespace

import pytest
from harness.toys import stage_of

from scalablevit.config.errors import UserError
from scalablevit.pipeline import cluster, node_checks
from scalablevit.pipeline.node_checks import (
    NodeFacts,
    collect,
    find_address,
    find_clock,
    find_disk,
    find_gpus,
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
GOOD = NodeFacts(
    versions={"python": "3.11.7", **dict.fromkeys(node_checks.PACKAGES, "2.0")}, gpus=1, shared_free=8 * 2**30,
    disk=("/disk", 50 * 2**30, 100 * 2**30), name_address="10.0.0.1", interface="", unreached="",
    storage={"/nfs/runs": ("", "")},
)  # fmt: skip


def test_versions() -> None:
    def found(**changes: str) -> tuple[str, str]:
        given = {name: version for name, version in {**GOOD.versions, **changes}.items() if version}
        finding = find_versions(NODE, replace(GOOD, versions=given), GOOD.versions)
        return finding.level, finding.problem.what if finding.problem else ""

    assert found() == ("good", "")
    assert found(torch="1.9") == ("warning", "has torch 1.9 in place of 2.0")
    assert found(torch="", timm="") == ("stops", "has no torch, no timm")


def test_gpus_that_ray_does_not_give_out() -> None:
    assert find_gpus(NODE, GOOD).level == "good"
    finding = find_gpus(NODE, replace(GOOD, gpus=4))
    assert finding.level == "warning" and "4 GPUs, of which Ray gives out 1" in finding.problem.what


def test_shared_memory_of_loader_processes() -> None:
    stage = stage_of("pretrain", "cluster.loader_workers=4", "cluster.workers=2")
    needed = 4 * 2 * (stage.training.global_batch_size // 2) * stage.data.image_size**2 * 3
    assert shared_bytes(stage) == needed and shared_bytes(stage_of("pretrain")) == 0
    assert find_shared_memory(NODE, GOOD, needed).level == "good"
    docker = replace(GOOD, shared_free=64 * 2**20)
    assert find_shared_memory(NODE, docker, 0).level == "warning"
    finding = find_shared_memory(NODE, docker, 65 * 2**20)
    assert finding.level == "stops"
    assert "has 64.0 MiB free; the loader processes of a worker take up to 65.0 MiB" in finding.problem.what


def test_a_disk_that_is_nearly_full() -> None:
    assert find_disk("x", "/disk", 6, 100).level == "good"
    assert find_disk("x", "/disk", 4, 100).level == "warning"


@pytest.mark.parametrize(
    ("resolved", "interface", "level"),
    [("10.0.0.1", "", "good"), ("", "", "good"), ("127.0.1.1", "", "stops"), ("::1", "", "stops"),
     ("127.0.1.1", "lo", "stops"), ("127.0.1.1", "eth0", "good")],
)  # fmt: skip
def test_a_host_name_that_resolves_to_loopback(resolved: str, interface: str, level: str) -> None:
    assert find_address(NODE, replace(GOOD, name_address=resolved, interface=interface)).level == level


def test_a_firewall_between_nodes() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        place = f"127.0.0.1:{server.getsockname()[1]}"
        assert find_ports(NODE, collect([place])).level == "good"
    finding = find_ports(NODE, collect([place]))
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


def test_a_training_is_refused_for_what_doctor_finds(monkeypatch, tmp_path, capsys) -> None:
    """On two machines, whose loopback names matter only where workers connect to one another."""
    import ray

    here = replace(GOOD, versions=versions())
    facts = {"a": replace(here, gpus=4), "b": replace(here, name_address="127.0.1.1")}
    monkeypatch.setattr(ray, "get_runtime_context", lambda: SimpleNamespace(get_node_id=lambda: "a"))
    monkeypatch.setattr(
        cluster, "_ask_nodes",
        lambda ids, question, items, what: {each: question(items) for each in ids} if items == [] else facts,
    )  # fmt: skip
    (finding,) = [each for each in cluster.find_on_nodes([NODE, OTHER], []) if each.level == "stops"]
    assert (finding.what, finding.where) == ("address", "10.0.0.2")
    resolved = [SimpleNamespace(stage=stage_of("pretrain", f"cluster.workers={workers}")) for workers in (1, 2)]
    cluster._check_nodes(resolved[:1], tmp_path, [NODE, OTHER])
    assert "warning: node 10.0.0.1: NVIDIA's driver names 4 GPUs" in capsys.readouterr().out
    with pytest.raises(UserError) as caught:
        cluster._check_nodes(resolved, tmp_path, [NODE, OTHER])
    assert caught.value is not finding.problem and str(caught.value) == str(finding.problem)
    cluster._check_nodes(resolved, tmp_path, [NODE, replace(OTHER, address=NODE.address)])
    cluster._check_nodes(resolved, tmp_path, [NODE, replace(OTHER, resources={})])  # such as a head without CPUs
    facts["b"] = replace(here, shared_free=2**20)
    loading = [SimpleNamespace(stage=stage_of("pretrain", "cluster.loader_workers=64"))]
    with pytest.raises(UserError, match="node 10.0.0.2: /dev/shm has 1.0 MiB free"):
        cluster._check_nodes(loading, tmp_path, [NODE, OTHER])
    cluster._check_nodes(loading, tmp_path, [NODE, replace(OTHER, resources={})])
