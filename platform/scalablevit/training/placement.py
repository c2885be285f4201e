"""Room in the cluster that is held for nobody."""

import ray
from ray._private.state import state
from ray.core.generated.gcs_pb2 import PlacementGroupTableData  # type: ignore[attr-defined]  # made at run time
from ray.util.placement_group import PlacementGroup, remove_placement_group


def remove_orphans() -> None:
    """Remove this job's placement groups whose creators have died.

    Ray keeps them until the job ends, and Ray Train's own cleaner learns of a group only when all of its workers have
    started. Which actor created a group stands in Ray's table alone, not in what its public functions tell of it.
    """
    job = bytes.fromhex(ray.get_runtime_context().get_job_id())
    for line in state._connect_and_get_accessor().get_placement_group_table():  # noqa: SLF001
        group = PlacementGroupTableData.FromString(line)
        if group.creator_job_id == job and group.creator_actor_dead and not group.is_detached:
            # nothing happens where it is gone already
            remove_placement_group(PlacementGroup(ray.PlacementGroupID(group.placement_group_id)))
