"""Training on a cluster that has no node but the head before, and none after: Ray's autoscalers start and end them."""

from collections.abc import Iterator
from typing import Any

import pytest
from harness import two_hosts
from harness.autoscaled import IDLE_MINUTES, AutoscaledHead, autoscaled
from harness.two_hosts import wait_for

pytestmark = [pytest.mark.cluster, pytest.mark.long, pytest.mark.timeout(1500)]

JOB_S = 600


@pytest.fixture(scope="module", params=["v1", "v2"])
def head(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[AutoscaledHead]:
    with autoscaled(tmp_path_factory.mktemp("s"), 2, newer=request.param == "v2") as found:
        yield found


def recipe(head: AutoscaledHead, steps: int, **cluster: float) -> dict[str, Any]:
    resources = {"cpus_per_worker": 1, **cluster}
    return two_hosts.recipe(head.folder, steps, 20) | {"name": "autoscaled", "cluster": resources}


def test_two_workers_train_on_nodes_that_come_for_them_and_go_afterwards(head: AutoscaledHead) -> None:
    assert head.nodes() == 0
    job = head.job(recipe(head, 20, workers=2), "fixed")
    assert job.ended(JOB_S) == 0, job.log.read_text()
    assert job.worlds() == [2]
    text = job.log.read_text()
    assert "[cluster] stage pretrain: waiting for room: 0 of 2 workers" in text
    assert "the autoscaler may start up to 2 x small (1 CPU)" in text
    assert "autoscaled-pretrain v1 @candidate" in text
    assert head.nodes() > 0
    wait_for(lambda: head.nodes() == 0, 60 * IDLE_MINUTES + 120, head.log)


def test_an_elastic_group_starts_with_the_first_node_and_grows(head: AutoscaledHead) -> None:
    assert head.nodes() == 0
    job = head.job(recipe(head, 3000, workers=2, min_workers=1), "elastic")
    assert job.ended(JOB_S) == 0, job.log.read_text()
    assert job.worlds() == [1, 2], job.log.read_text()
    assert "waiting for room: 0 of 1 workers" in job.log.read_text()


def test_more_than_the_autoscaler_may_start_is_refused_at_once(head: AutoscaledHead) -> None:
    job = head.job(recipe(head, 20, workers=3), "more")
    assert job.ended(JOB_S) != 0
    assert "room for 2 of 3 workers (3 x 1 = 3 CPU asked, 2 there)" in job.log.read_text()
