"""Room for workers: what one takes, how many a node has room for, and which nodes an autoscaler may start."""

import os
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import yaml
from pydantic import BaseModel, NonNegativeInt, ValidationError

from scalablevit.config.errors import UserError
from scalablevit.config.recipe import Stage
from scalablevit.training.ray_internals import Node, alive_nodes, is_head, read_autoscaling_config

if TYPE_CHECKING:
    from ray.util.placement_group import PlacementGroup

NODE_TYPES = "SCALABLEVIT_NODE_TYPES"
"""Variable in which an operator says what the autoscaler may start, in the form of Ray's cluster configuration."""
HEAD_S = 120.0
"""Longest wait, in seconds, for the head's configuration, which may first have to start a process."""
Resources = dict[str, float]
"""Amounts by Ray's names: "CPU", "GPU", ..."""


@dataclass(frozen=True)
class NodeType:
    """A kind of node that an autoscaler may start."""

    name: str
    resources: Resources
    max_nodes: int
    """Most nodes of this type at a time."""


@dataclass(frozen=True)
class Autoscaler:
    """What the cluster's autoscaler may start."""

    types: tuple[NodeType, ...]
    max_nodes: int | None = None
    """Most nodes of all types together; None: no further limit."""

    def startable(self, living: Sequence[Node]) -> list[NodeType]:
        """Return the type of each node that may be started besides those that live, largest first."""
        there = Counter(filter(None, map(self._type_of, living)))
        more: list[NodeType] = []
        for kind in sorted(self.types, key=lambda kind: _size(kind.resources), reverse=True):
            more += [kind] * (kind.max_nodes - there[kind.name])
        return more if self.max_nodes is None else more[: max(0, self.max_nodes - there.total())]

    def _type_of(self, node: Node) -> str:
        """Return the name of a living node's type; empty: the autoscaler did not start it."""
        names = [kind.name for kind in self.types]
        if not node.type:  # Ray's older autoscaler labels no nodes
            names = [kind.name for kind in self.types if _size(kind.resources) == _size(node.resources)]
        return next((name for name in names if node.type in ("", name) and not is_head(node)), "")


def _size(resources: Resources) -> tuple[float, float]:
    return resources.get("GPU", 0.0), resources.get("CPU", 0.0)


class _NodeType(BaseModel):
    resources: Resources = {}
    max_workers: NonNegativeInt | None = None


class _Config(BaseModel):
    available_node_types: dict[str, _NodeType]
    head_node_type: str = ""
    max_workers: NonNegativeInt | None = None


def find_autoscaler() -> Autoscaler | None:
    """Return what the connected cluster's autoscaler may start; None: it has none, or none is configured.

    Read from the operator's variable `NODE_TYPES`, else from the configuration with which the autoscaler runs on the
    head. On Kubernetes it runs in another container, so that only the variable is known.

    Raises:
        UserError: the configuration does not have Ray's form.
    """
    if not os.environ.get("RAY_ADDRESS"):  # a Ray of this process's own
        return None
    if text := os.environ.get(NODE_TYPES):
        return parse_config(text, NODE_TYPES)
    text = _read_on_head()
    return parse_config(text, "--autoscaling-config of the Ray head") if text else None


def parse_config(text: str, where: str) -> Autoscaler:
    """Return what an autoscaler may start, by a configuration in Ray's form.

    Args:
        text: YAML with `available_node_types`, and perhaps `max_workers`.
        where: where it is from, for errors.

    Raises:
        UserError: it has another form.
    """
    try:
        config = _Config.model_validate(yaml.safe_load(text))
    except (yaml.YAMLError, ValidationError) as error:
        raise UserError(
            f"is no configuration of Ray's autoscaler: {' '.join(str(error).split())}",
            where=where,
            fix="write {available_node_types: {<name>: {resources: {CPU: 8, GPU: 1}, max_workers: 4}}}",
        ) from None
    types = []
    for name, kind in config.available_node_types.items():
        default = 0 if name == config.head_node_type else config.max_workers or 0  # as Ray has it
        most = default if kind.max_workers is None else kind.max_workers
        types.append(NodeType(name, kind.resources, most))
    return Autoscaler(tuple(types), config.max_workers)


def _read_on_head() -> str:
    """Return the configuration of the head's autoscaler; empty: it has none, or there is no head."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    for node in filter(is_head, alive_nodes()):
        there = NodeAffinitySchedulingStrategy(node.id, soft=False)
        task = ray.remote(read_autoscaling_config).options(num_cpus=0, scheduling_strategy=there).remote()
        try:
            return str(ray.get(task, timeout=HEAD_S))
        except ray.exceptions.GetTimeoutError:
            raise UserError(
                f"the Ray head did not say within {HEAD_S:.0f} s what its autoscaler may start",
                where="cluster",
                fix="look at `ray status`",
            ) from None
    return ""


def format_types(types: Sequence[NodeType]) -> str:
    """Return nodes for people: `3 x gpu-spot (80 CPU, 8 GPU), 1 x cpu (4 CPU)`; without any, `nothing more`."""
    resources = {kind.name: kind.resources for kind in types}
    listed = []
    for name, count in Counter(kind.name for kind in types).items():
        each = (f"{resources[name][what]:g} {what}" for what in ("CPU", "GPU") if resources[name].get(what))
        listed.append(f"{count} x {name} ({', '.join(each)})")
    return ", ".join(listed) or "nothing more"


@contextmanager
def ask_for_workers(stage: Stage) -> Iterator["PlacementGroup"]:
    """Ask for room for the stage's least number of workers inside the block, and yield the placement group that asks.

    An autoscaler starts nodes for a placement group that waits. Unlike Ray's `request_resources`, which keeps one list
    for the whole cluster, it is this job's own and ends with it.
    """
    import ray
    from ray.util.placement_group import placement_group, remove_placement_group

    bundle = {kind: amount for kind, amount in worker_resources(stage).items() if amount}
    group = placement_group([bundle] * least_workers(stage))
    try:
        yield group
    finally:
        if ray.is_initialized():  # else the job has ended, and all that it held
            remove_placement_group(group)


def worker_resources(stage: Stage) -> Resources:
    """Return what a worker of the stage takes."""
    return {"CPU": stage.cluster.cpus_per_worker, "GPU": stage.cluster.gpus_per_worker}


def workers_on(node: Resources, wanted: Resources) -> int:
    """Return how many workers fit on a node, since a worker takes all its resources from one."""
    return min(int(node.get(kind, 0.0) / amount + 1e-9) for kind, amount in wanted.items() if amount)


def least_workers(stage: Stage) -> int:
    """Return the fewest workers that the stage starts with."""
    return stage.cluster.min_workers or stage.cluster.workers
