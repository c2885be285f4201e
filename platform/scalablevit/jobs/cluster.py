"""The third gate: the Ray cluster, connected to or started here, and whether the stages fit on it."""

import logging
import os
import secrets
from collections.abc import Sequence
from pathlib import Path

from scalablevit.config.errors import UserError, UserErrors
from scalablevit.config.recipe import Stage
from scalablevit.jobs.resolve import ResolvedStage

PACKAGE = Path(__file__).resolve().parent.parent
"""The package's folder: the uploaded copy when running as a job."""
PROBE_S = 120.0
"""A node may first have to start a process for the question."""


def connect(stages: Sequence[ResolvedStage], root: Path) -> None:
    """Connect to the cluster that RAY_ADDRESS names, else start one on this machine, and check that the stages fit.

    The package travels as a py_module, so driver and workers run the same snapshot, installed or not.

    Raises:
        UserError: no answer, not enough room (with the arithmetic), or a node that does not see the files.
    """
    address = os.environ.get("RAY_ADDRESS")
    if address is None:
        _check_fit(stages, [{"CPU": float(os.cpu_count() or 1), "GPU": float(_local_gpus())}], "this machine")
    import ray
    import ray.exceptions

    variables = {"RAY_ADDRESS": address} if address else {}  # the placement-group cleaner looks it up by this name
    try:
        ray.init(
            address=address or "local",
            runtime_env={"py_modules": [str(PACKAGE)], "env_vars": variables},
            log_to_driver=os.environ.get("SCALABLEVIT_RAY_LOGS") == "1",
            logging_level=logging.ERROR,
            configure_logging=True,
        )
    except (ConnectionError, RuntimeError, ray.exceptions.RayError) as error:
        raise UserError(
            f"the Ray cluster does not answer: {str(error).splitlines()[0]}",
            where=f"RAY_ADDRESS={address}",
            fix="start a head (python infra/head.py start), or unset RAY_ADDRESS to run on this machine",
        ) from None
    nodes = [node for node in ray.nodes() if node["Alive"]]  # type: ignore[no-untyped-call]
    _check_fit(stages, [node["Resources"] for node in nodes], f"the cluster of {len(nodes)} node(s)")
    if len(nodes) > 1:
        _check_reach(stages, root, [node["NodeID"] for node in nodes])


def _local_gpus() -> int:
    """GPUs that Ray would find here, without importing torch."""
    from ray._private.accelerators import NvidiaGPUAcceleratorManager

    return int(NvidiaGPUAcceleratorManager.get_current_node_num_accelerators())


def _check_fit(stages: Sequence[ResolvedStage], nodes: Sequence[dict[str, float]], what: str) -> None:
    errors = [error for stage in stages for error in _misfits(stage, nodes, what)]
    if errors:
        raise UserErrors(errors) if len(errors) > 1 else errors[0]


def _misfits(resolved: ResolvedStage, nodes: Sequence[dict[str, float]], what: str) -> list[UserError]:
    """Resources of which the nodes have too few for the stage's least number of workers."""
    cluster = resolved.stage.cluster
    workers = least_workers(resolved.stage)
    wanted = {"CPU": cluster.cpus_per_worker, "GPU": cluster.gpus_per_worker}
    room = sum(_workers_on(node, wanted) for node in nodes)
    if room >= workers:
        return []
    arithmetic = "; ".join(
        f"{workers} x {amount:g} = {workers * amount:g} {kind} asked, "
        f"{sum(node.get(kind, 0.0) for node in nodes):g} there"
        for kind, amount in wanted.items()
        if amount
    )
    return [
        UserError(
            f"{what} has room for {room} of {workers} workers ({arithmetic})",
            where=f"stage {resolved.name}: cluster.workers",
            fix=f"set cluster.workers={max(room, 1)}, lower cluster.cpus_per_worker or gpus_per_worker, or add nodes",
        )
    ]


def _workers_on(node: dict[str, float], wanted: dict[str, float]) -> int:
    """A worker takes all its resources from one node."""
    return min(int(node.get(kind, 0.0) / amount + 1e-9) for kind, amount in wanted.items() if amount)


def least_workers(stage: Stage) -> int:
    """Fewest workers that the stage starts with."""
    return stage.cluster.min_workers or stage.cluster.workers


def _check_reach(stages: Sequence[ResolvedStage], root: Path, node_ids: Sequence[str]) -> None:
    """On several nodes: every one must read what the driver writes to run storage, and the data.

    Raises:
        UserError: names the folders and the nodes that do not see them.
    """
    wanted: dict[str, str] = {}
    for resolved in stages:
        storage = resolved.stage.cluster.storage or str(root / "runs")
        if "://" not in storage:
            probe = root / Path(storage).expanduser() / f".probe-{secrets.token_hex(8)}"
            probe.parent.mkdir(parents=True, exist_ok=True)
            probe.touch()
            wanted[str(probe)] = f"stage {resolved.name}: cluster.storage"
        wanted[str(root / Path(resolved.stage.data.root).expanduser())] = f"stage {resolved.name}: data.root"
    try:
        blind = {node: missing for node in node_ids if (missing := unreadable_on(node, list(wanted)))}
    finally:
        for path in wanted:
            if Path(path).name.startswith(".probe-"):
                Path(path).unlink()
    if blind:
        paths = sorted({path for missing in blind.values() for path in missing})
        places = ", ".join(f"{wanted[path]} ({Path(path).parent if '.probe-' in path else path})" for path in paths)
        raise UserError(
            f"{len(blind)} of {len(node_ids)} nodes do not see what lies here",
            where=places,
            fix="use folders that every node mounts, such as --root /mnt/shared/scalablevit, or cluster.storage=s3://...",
        )


def unreadable_on(node_id: str, paths: Sequence[str]) -> list[str]:
    """Those of the paths that a process on a node does not see."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    here = NodeAffinitySchedulingStrategy(node_id, soft=False)
    look = ray.remote(_unreadable).options(num_cpus=0, scheduling_strategy=here)
    answer: list[str] = ray.get(look.remote(list(paths)), timeout=PROBE_S)
    return answer


def _unreadable(paths: list[str]) -> list[str]:
    return [path for path in paths if not os.access(path, os.R_OK)]
