"""Placement groups that nobody is behind, on a Ray of its own."""

import os
import signal
import time

import pytest
import ray
from ray.util.placement_group import placement_group, placement_group_table, remove_placement_group

from scalablevit.training.ray_internals import remove_orphans

pytestmark = pytest.mark.ray
GONE_S = 20


@pytest.fixture(scope="module", autouse=True)
def _session():
    ray.init(num_cpus=2, include_dashboard=False, logging_level="ERROR")
    yield
    ray.shutdown()


@ray.remote(num_cpus=0)
class Creator:
    """Holds one CPU, as Ray Train's controller does for a worker."""

    def create(self):
        group = placement_group([{"CPU": 1}])
        assert group.wait(GONE_S)
        return os.getpid(), group


def state_of(group):
    return placement_group_table(group)["state"]


def test_groups_of_dead_creators_are_removed_and_those_of_living_ones_stay():
    lost, living = Creator.remote(), Creator.remote()
    (pid, orphan), (_, kept) = ray.get([lost.create.remote(), living.create.remote()])
    os.kill(pid, signal.SIGKILL)
    deadline = time.monotonic() + GONE_S
    while state_of(orphan) != "REMOVED":
        assert time.monotonic() < deadline, "still there"
        remove_orphans()
        time.sleep(0.1)
    assert state_of(kept) == "CREATED"
    remove_orphans()  # once more does nothing
    assert state_of(kept) == "CREATED"
    again = placement_group([{"CPU": 1}])
    assert again.wait(GONE_S), "its room is not free"
    remove_placement_group(again)
