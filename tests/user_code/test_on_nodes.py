"""Users' packages on a cluster: what travels with a job, and that every node has the same."""

import pytest
from harness.user_code import packages_in, write_package

from scalablevit.config.errors import UserError
from scalablevit.config.user_code import find_packages, package_sums
from scalablevit.pipeline import cluster
from scalablevit.pipeline.cluster import PACKAGE, _sums_here, connect, refuse_other_code
from scalablevit.training.ray_internals import Node


@pytest.fixture
def place(tmp_path):
    with packages_in(tmp_path / "code") as folder:
        write_package(folder, "mine")
        yield folder


def test_what_is_not_installed_travels_with_the_job(place, tmp_path, monkeypatch):
    import ray

    given = {}
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr(ray, "init", lambda **arguments: given.update(arguments))
    monkeypatch.setattr(cluster, "alive_nodes", lambda: [Node("a", {"CPU": 2.0}, "10.0.0.1")])
    connect([], tmp_path, imports=["mine", "pytest"])
    assert given["runtime_env"]["py_modules"] == [str(PACKAGE), str(place / "mine")]


def test_a_node_with_other_code_is_named(place, monkeypatch):
    here, packages = package_sums(["mine"]), find_packages(["mine"])
    answers = {"a": dict(here), "b": dict(here)}
    monkeypatch.setattr(cluster, "_ask_nodes", lambda nodes, question, items, what: answers)
    nodes = [Node("a", {}, "10.0.0.1"), Node("b", {}, "10.0.0.2")]
    refuse_other_code(packages, nodes)
    answers["b"] = {"mine": "f" * 64}
    with pytest.raises(UserError) as caught:
        refuse_other_code(packages, nodes)
    assert caught.value.what == (
        f"1 of 2 nodes have another mine than this machine, whose content sum is {here['mine'][:12]} "
        "(10.0.0.2: ffffffffffff)"
    )
    answers["b"] = {"mine": ""}
    with pytest.raises(UserError, match=r"\(10\.0\.0\.2: none\)"):
        refuse_other_code(packages, nodes)


def test_a_node_says_what_it_has(place):
    assert _sums_here(["mine", "absent"]) == {**package_sums(["mine"]), "absent": ""}
