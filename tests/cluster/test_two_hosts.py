"""Training over two hosts that share files and nothing else: each has an address, a name and a temporary folder."""

from collections.abc import Iterator

import pytest
from harness.hosts import missing
from harness.two_hosts import Cluster, HostJob, recipe, two_hosts, wait_for

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(900)]

JOB_S = 600
MOMENT_S = 300


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
    job = second.job(recipe(second, 3000, 20), "cut")
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
    job = cluster.job(recipe(cluster, 3000, 20), "later")
    wait_for(lambda: job.newest_checkpoint() >= 20, MOMENT_S, job.log)
    cluster.start_node(cluster.hosts[1])
    try:
        assert job.ended(JOB_S) == 0, job.log.read_text()
    finally:
        cluster.hosts[1].end_processes()
    assert job.worlds() == [1, 2], job.log.read_text()
