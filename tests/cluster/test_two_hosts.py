"""Training over two hosts that share files and nothing else: each has an address, a name and a temporary folder."""

import json
from collections.abc import Iterator

import pytest
from harness.hosts import missing
from harness.two_hosts import Cluster, HostJob, recipe, two_hosts, wait_for

from scalablevit.training.ray_internals import JOB_VARIABLE

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(900)]

JOB_S = 600
MOMENT_S = 300
DRAIN_S = 60
INTERRUPTED = 130


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    if missing():
        pytest.skip(missing())
    with two_hosts(tmp_path_factory.mktemp("h")) as found:
        yield found


@pytest.fixture
def second(cluster: Cluster) -> Iterator[Cluster]:
    """The cluster with a node on its second host, too."""
    cluster.start_node(cluster.hosts[1])
    yield cluster
    cluster.end_jobs()
    cluster.hosts[1].end_processes()


def test_a_stage_runs_over_both_hosts_and_goes_on_when_one_is_lost(lost: HostJob) -> None:
    said = lost.log.read_text()
    assert lost.process.returncode == 0, said
    assert lost.worlds() == [2, 1], said
    _, resumed = lost.events("started")
    assert resumed["from_step"] >= 10
    assert "hosts-pretrain v1 @candidate" in said
    assert not list(lost.root.glob("runs/*/checkpoints")), "run storage is the object store"


@pytest.mark.long
def test_a_host_whose_cable_is_pulled_is_done_without_and_used_again(second: Cluster) -> None:
    job = second.job(recipe(second.folder, 3000, 20), "cut")
    wait_for(lambda: job.newest_checkpoint() >= 20, MOMENT_S, job.log)
    second.hosts[1].plug(plugged=False)
    try:
        wait_for(lambda: len(job.worlds()) == 2, MOMENT_S, job.log)
    finally:
        second.hosts[1].plug(plugged=True)
    second.hosts[1].end_processes()
    second.start_node(second.hosts[1])
    assert job.ended(JOB_S) == 0, job.log.read_text()
    assert job.worlds() == [2, 1, 2], job.log.read_text()


@pytest.mark.long
def test_a_host_that_joins_later_is_used(cluster: Cluster) -> None:
    job = cluster.job(recipe(cluster.folder, 3000, 20), "later")
    wait_for(lambda: job.newest_checkpoint() >= 20, MOMENT_S, job.log)
    cluster.start_node(cluster.hosts[1])
    try:
        assert job.ended(JOB_S) == 0, job.log.read_text()
    finally:
        cluster.hosts[1].end_processes()
    assert job.worlds() == [1, 2], job.log.read_text()


@pytest.mark.long
def test_a_host_that_is_drained_is_saved_for_done_without_and_used_again(second: Cluster) -> None:
    job = second.job(recipe(second.folder, 3000, checkpoint_every=1000), "drained")
    wait_for(lambda: job.worlds() == [2], MOMENT_S, job.log)
    second.drain(second.hosts[1], deadline_s=DRAIN_S)
    wait_for(lambda: job.newest_checkpoint() > 0, DRAIN_S, job.log)
    saved = job.newest_checkpoint()
    wait_for(lambda: job.worlds() == [2, 1], MOMENT_S, job.log)
    assert job.events("started")[1]["from_step"] == saved < 1000, "it was saved for the drain, and steps are done once"
    second.hosts[1].end_processes()
    second.start_node(second.hosts[1])
    wait_for(lambda: len(job.worlds()) == 3, MOMENT_S, job.log)
    job.process.terminate()
    assert job.ended(MOMENT_S) == INTERRUPTED, job.log.read_text()
    assert job.worlds() == [2, 1, 2], job.log.read_text()
    assert not job.events("lost"), "a drain is no failure"
    assert f"a node is about to be taken away: the workers ended at step {saved}; going on" in job.log.read_text()


@pytest.mark.long
def test_workers_that_do_not_reach_each_other_are_one_plain_error(second: Cluster) -> None:
    wrong = {"runtime_env": {"env_vars": {"GLOO_SOCKET_IFNAME": "lo"}}}
    job = second.job(recipe(second.folder, 60, 20), "unreached", **{JOB_VARIABLE: json.dumps(wrong)})
    assert job.ended(JOB_S) == 2, job.log.read_text()
    said = job.log.read_text()
    assert "Traceback" not in said, said
    first, other = (f"node {host.address} (interface lo)" for host in second.hosts)
    assert (
        f"{first}, {other}: workers on 2 nodes cannot reach each other: by GLOO_SOCKET_IFNAME=lo those here use "
        "127.0.0.1, which no other machine reaches\n  fix: unset GLOO_SOCKET_IFNAME and NCCL_SOCKET_IFNAME"
    ) in said, said
