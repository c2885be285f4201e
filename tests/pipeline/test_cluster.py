"""The third gate on a real cluster of two nodes (both on this machine)."""

import json
import os
from pathlib import Path
from types import SimpleNamespace

import pytest

from scalablevit.cli import main
from scalablevit.config.errors import UserError
from scalablevit.config.loading import load_recipe
from scalablevit.pipeline import cluster
from scalablevit.pipeline.resolve import resolve
from scalablevit.tracking.environment import code_digest
from scalablevit.training.environment import CPU_ALLOCATOR, worker_variables
from scalablevit.training.ray_internals import JOB_VARIABLE, Node

RECIPE = Path(__file__).parents[1] / "end_to_end" / "tiny.yaml"

pytestmark = pytest.mark.ray


@pytest.fixture(scope="module")
def two_nodes():
    """Two nodes of one CPU each; the address is what a job would find in its environment."""
    import ray
    from ray.cluster_utils import Cluster

    nodes = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    nodes.add_node(num_cpus=1)
    before = os.environ.get("RAY_ADDRESS")
    os.environ["RAY_ADDRESS"] = nodes.address
    yield nodes
    ray.shutdown()
    nodes.shutdown()
    os.environ.pop("RAY_ADDRESS")
    if before is not None:
        os.environ["RAY_ADDRESS"] = before


def test_workers_that_fit_only_together_are_placed_and_more_are_refused(two_nodes, tmp_path):
    stages = resolve(load_recipe(RECIPE), tmp_path)
    cluster.connect(stages, tmp_path)  # 2 workers of 1 CPU on 2 nodes
    greedy = resolve(load_recipe(RECIPE, ["cluster.workers=3"]), tmp_path)
    with pytest.raises(UserError, match=r"room for 2 of 3 workers \(3 x 1 = 3 CPU asked, 2 there\)"):
        cluster._check_fit(greedy, [{"CPU": 1.0}, {"CPU": 1.0}], "the cluster of 2 node(s)")
    wide = resolve(load_recipe(RECIPE, ["cluster.cpus_per_worker=2"]), tmp_path)
    with pytest.raises(UserError, match="room for 0 of 2 workers"):
        cluster._check_fit(wide, [{"CPU": 1.0}, {"CPU": 1.0}], "the cluster of 2 node(s)")
    nodes = cluster.alive_nodes()
    seen = cluster.unreadable_on(nodes, [str(tmp_path), "/nowhere/runs"])
    assert len(nodes) == 2 and seen == {node.id: ["/nowhere/runs"] for node in nodes}
    assert not list((tmp_path / "runs").glob(".probe-*"))


def test_every_node_imports_the_uploaded_package(two_nodes, tmp_path):
    """Not one that is installed there too: `make setup` makes this checkout importable for every process here."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    @ray.remote(num_cpus=0)
    def package() -> str:
        import scalablevit

        return str(Path(str(scalablevit.__file__)).parent)

    ray.shutdown()
    cluster.connect([], tmp_path)
    places = [NodeAffinitySchedulingStrategy(node["NodeID"], soft=False) for node in ray.nodes()]
    packages = ray.get([package.options(scheduling_strategy=place).remote() for place in places], timeout=120)
    assert len(packages) == 2
    for uploaded in packages:
        assert "/runtime_resources/py_modules_files/" in uploaded
        assert code_digest(Path(uploaded)) == code_digest(cluster.PACKAGE)


def test_another_copy_of_the_package_where_workers_or_users_expect_one_is_refused(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv(JOB_VARIABLE, raising=False)
    upload = tmp_path / "platform" / "scalablevit"
    upload.mkdir(parents=True)
    (upload / "__init__.py").touch()
    cluster._refuse_other_package()
    monkeypatch.setenv(JOB_VARIABLE, "{}")
    with pytest.raises(UserError, match="another copy of it is in") as error:
        cluster._refuse_other_package()
    assert str(upload) in str(error.value) and "python pipelines/<command>.py" in str(error.value)
    monkeypatch.chdir(upload.parent)
    monkeypatch.delenv(JOB_VARIABLE)
    with pytest.raises(UserError, match="start it from another folder"):
        cluster._refuse_other_package()
    for own in (cluster.PACKAGE.parents[1], cluster.PACKAGE.parent):
        monkeypatch.chdir(own)
        cluster._refuse_other_package()


def test_trials_on_a_cpu_start_with_the_allocators_variables(two_nodes, monkeypatch, tmp_path):
    import ray

    ray.shutdown()
    monkeypatch.setenv("MALLOC_TOP_PAD_", "7")  # a user's own
    submitted = {"MALLOC_MMAP_MAX_": "9"}
    config = {"runtime_env": {"env_vars": submitted}, "metadata": {}}
    monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", json.dumps(config))
    cluster.connect([], tmp_path, trial_gpus=0.0)
    found = ray.get(ray.remote(_allocator_variables).options(num_cpus=0).remote())
    assert found == {**CPU_ALLOCATOR, "MALLOC_TOP_PAD_": "7", **submitted}
    ray.shutdown()


def _allocator_variables() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if name.startswith("MALLOC_")}


def test_only_jobs_without_a_gpu_have_them(monkeypatch, tmp_path):
    monkeypatch.delenv("RAY_JOB_CONFIG_JSON_ENV_VAR", raising=False)
    on_cpu = resolve(load_recipe(RECIPE), tmp_path)
    on_gpu = resolve(load_recipe(RECIPE, ["cluster.gpus_per_worker=1"]), tmp_path)
    assert cluster._trial_variables(on_cpu, 0.0) == worker_variables(0)
    assert cluster._trial_variables(on_cpu, None) == {}, "no search: Ray Train's workers have their own"
    assert cluster._trial_variables(on_cpu, 1.0) == cluster._trial_variables(on_gpu, 0.0) == {}


def test_a_node_that_does_not_see_run_storage_is_named(monkeypatch, tmp_path):
    stages = resolve(load_recipe(RECIPE), tmp_path)
    monkeypatch.setattr(cluster, "unreadable_on", lambda nodes, paths: {"a": [], "b": paths[:1]})
    nodes = [Node("a", {}, "10.0.0.1"), Node("b", {}, "10.0.0.2")]
    with pytest.raises(UserError, match="1 of 2 nodes do not see") as caught:
        cluster._check_reach(stages, tmp_path, nodes)
    assert "cluster.storage" in str(caught.value) and str(tmp_path / "runs") in str(caught.value)
    with pytest.raises(UserError, match=r"1 of 2 nodes do not see what is here \(10\.0\.0\.2\)") as caught:
        cluster._check_reach(stages, tmp_path, nodes, {"/here/weights": "weights (/here/weights)"})
    assert caught.value.where == "weights (/here/weights)"


def test_a_task_that_no_node_has_room_for_is_refused(monkeypatch):
    """Ray would let it wait for ever."""
    nodes = [SimpleNamespace(resources={"CPU": 2.0}), SimpleNamespace(resources={"CPU": 1.0})]
    monkeypatch.setattr(cluster, "alive_nodes", lambda: nodes)
    monkeypatch.setattr(cluster, "find_autoscaler", lambda: None)
    stage = load_recipe(RECIPE, ["cluster.workers=7", "cluster.cpus_per_worker=1"]).stages["pretrain"]
    assert cluster.count_processes(stage) == 3
    stage = load_recipe(RECIPE, ["cluster.cpus_per_worker=1", "cluster.gpus_per_worker=1"]).stages["pretrain"]
    with pytest.raises(UserError, match="no node with 1 CPU and 1 GPU"):
        cluster.count_processes(stage)


def test_doctor_asks_every_node(two_nodes, tmp_path, capsys, handlers):
    import ray

    ray.shutdown()
    capsys.readouterr()
    assert main("doctor", ["--root", str(tmp_path), "--json"]) == 0
    assert not ray.is_initialized()
    findings = json.loads(capsys.readouterr().out)["findings"]
    levels = {(each["what"], each["level"]) for each in findings if each["what"] not in ("token", "disk", "GPUs")}
    assert {level for _, level in levels} == {"good"}
    counts = {what: sum(each["what"] == what for each in findings) for what, _ in levels}
    on_each = dict.fromkeys(("versions", "shared memory", "storage", "clock"), 2)
    assert counts == {**on_each, "cluster": 1, "tracking": 1, "upload": 1, "shared folders": 1}
    assert [each.name for each in tmp_path.iterdir()] == ["runs"] and not list((tmp_path / "runs").iterdir())
