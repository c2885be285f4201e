"""Every private name of Ray that the package uses, with the reason and the public way that is missing.

`tests/training/test_ray_internals.py` checks each one against the installed Ray, says what breaks without it, and keeps
such names out of all other files. Run it first when the version of Ray changes.

Ray is imported where it is needed: a recipe and this machine are checked before Ray is loaded.

`infra/head.py` has settings of Ray of its own: it starts Ray and must run where this package cannot be imported.
"""

import logging
import os
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ray.train.torch import TorchTrainer
    from ray.train.v2._internal.exceptions import WorkerGroupStartupFailedError, WorkerGroupStartupTimeoutError
    from ray.train.v2._internal.execution.callback import ControllerCallback, WorkerGroupCallback
    from ray.util.placement_group import PlacementGroup

__all__ = [
    "JOB_VARIABLE",
    "TRAIN_VARIABLES",
    "TUNE_VARIABLES",
    "ControllerCallback",
    "Node",
    "WorkerGroupCallback",
    "WorkerGroupStartupFailedError",
    "WorkerGroupStartupTimeoutError",
    "alive_nodes",
    "count_gpus",
    "failed_health_check",
    "function_has_returned",
    "is_head",
    "keep_sigint_handler",
    "mark_preempted",
    "placement_group_of",
    "read_autoscaling_config",
    "remove_orphans",
    "set_defaults",
    "set_poll_interval",
    "upload_size",
    "without_datasets",
]

_CLASSES = {
    # Hooks of Ray Train's controller: when it starts, before new workers are set up, once they train, at each poll of
    # them, before the controller ends. Missing: the public UserCallback is called for reports and failures only.
    "ControllerCallback": "ray.train.v2._internal.execution.callback",
    "WorkerGroupCallback": "ray.train.v2._internal.execution.callback",
    # Why workers did not start: no room for them, or one was lost. The former is tried again less often. Missing: the
    # public ControllerError carries them as its `controller_failure`, but their classes are not public.
    "WorkerGroupStartupFailedError": "ray.train.v2._internal.exceptions",
    "WorkerGroupStartupTimeoutError": "ray.train.v2._internal.exceptions",
}

if not TYPE_CHECKING:

    def __getattr__(name: str) -> type:
        """Import a class of `_CLASSES` when it is first asked for."""
        if name not in _CLASSES:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        return getattr(import_module(_CLASSES[name]), name)


# --- Environment variables. Missing: arguments of ray.train.RunConfig, tune.RunConfig and tune.TuneConfig. Ray ignores
# --- names that it does not know, so nobody would notice that one was renamed.

POLL_VARIABLE = "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S"
"""Seconds between two polls of all workers by Ray Train's controller, which takes one report of each per poll."""

TRAIN_VARIABLES = {
    # Ray's default of 2 s would pace short steps (measured); `set_poll_interval` changes it for many workers
    POLL_VARIABLE: "0.2",
    # a worker that does not answer is stopped or stuck: Ray's default lets the others wait for it for ten minutes
    "RAY_TRAIN_WORKER_HEALTH_CHECK_TIMEOUT_S": "60",
    # how soon workers know that their node is about to be taken away: a grace period is often half a minute
    "RAY_TRAIN_PREEMPTION_POLL_INTERVAL_S": "1",
    # worker output appears once
    "RAY_TRAIN_ENABLE_PRINT_PATCH": "0",
}
"""Settings of Ray Train, by environment variable."""

TUNE_VARIABLES = {
    # Tune's own loggers write every result three times over; the outbox has them. Its snapshots are never read.
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "TUNE_WARN_EXCESSIVE_EXPERIMENT_CHECKPOINT_SYNC_THRESHOLD_S": "0",
    "TUNE_GLOBAL_CHECKPOINT_S": "3600",
    # the other of Tune's two reporters is silent when this says so
    "RAY_AIR_NEW_OUTPUT": "0",
    # the job handles an interrupt
    "TUNE_DISABLE_SIGINT_HANDLER": "1",
}
"""Settings of Ray Tune, by environment variable."""

JOB_VARIABLE = "RAY_JOB_CONFIG_JSON_ENV_VAR"
"""Variable in which Ray gives the driver of a submitted job its submission id and runtime environment, as JSON.

Missing: the public runtime context exists after `ray.init` only, and does not know the submission id.
"""


NODE_GROUP = "ray.io/node-group"
"""Label of a node that an autoscaler started: the name of its type."""

_POLL_IS_GIVEN = POLL_VARIABLE in os.environ


def set_poll_interval(seconds: float) -> None:
    """Set the seconds between two polls for controllers that start from now on, unless the user has set them."""
    if not _POLL_IS_GIVEN:
        os.environ[POLL_VARIABLE] = f"{seconds:g}"


def set_defaults(variables: Mapping[str, str]) -> None:
    """Set environment variables, except those that are already set."""
    for name, value in variables.items():
        os.environ.setdefault(name, value)


# --- The cluster


@dataclass(frozen=True)
class Node:
    """A living node of the connected cluster."""

    id: str
    """Ray's id of the node."""
    resources: dict[str, float]
    """All resources of the node, in use or not, by Ray's names: "CPU", "GPU", ..."""
    address: str
    """By which the other nodes reach it."""
    type: str = ""
    """Name of its node type, where an autoscaler started it and said so."""


def alive_nodes() -> list[Node]:
    """Return the living nodes of the connected cluster.

    The keys of `ray.nodes` are not documented. Missing: `ray.cluster_resources` has sums only, and
    `ray.util.state.list_nodes` asks the dashboard, which a cluster need not have.
    """
    import ray

    nodes: list[dict[str, Any]] = ray.nodes()  # type: ignore[no-untyped-call]
    return [
        Node(node["NodeID"], node["Resources"], node["NodeManagerAddress"], node["Labels"].get(NODE_GROUP, ""))
        for node in nodes
        if node["Alive"]
    ]


def is_head(node: Node) -> bool:
    """Return whether a node is the head, which has a resource of its own. Missing: a public word for it."""
    return "node:__internal_head__" in node.resources


def read_autoscaling_config() -> str:
    """Return the text of the configuration with which this cluster's autoscaler runs; empty: none. For the head.

    Missing: Ray has a place for node types and their maxima in the head's store, but neither autoscaler (v1, v2) fills
    it; both are started with the file's path.
    """
    import ray

    cluster = f"--gcs-address={ray.get_runtime_context().gcs_address}"
    flag = "--autoscaling-config="
    for entry in Path("/proc").glob("[0-9]*/cmdline"):
        with suppress(OSError):  # it has ended, or is another user's
            arguments = entry.read_text(encoding="utf-8", errors="replace").split("\0")
            paths = [argument.removeprefix(flag) for argument in arguments if argument.startswith(flag)]
            if cluster in arguments and paths:
                return Path(paths[0]).expanduser().read_text(encoding="utf-8")
    return ""


def count_gpus() -> int:
    """Return how many NVIDIA GPUs Ray would find on this machine, without importing torch.

    Missing: the public ways ask a cluster that has been started.
    """
    from ray._private.accelerators import NvidiaGPUAcceleratorManager

    return NvidiaGPUAcceleratorManager.get_current_node_num_accelerators()


def upload_size(folder: Path) -> tuple[int, int]:
    """Return the bytes that a job would upload of its working directory, before compression, and the most Ray takes.

    Missing: a way to ask what `.gitignore`, `.rayignore` and Ray's own list leave out, but for the upload itself.
    """
    from ray._private.ray_constants import get_runtime_env_default_excludes
    from ray._private.runtime_env import packaging

    sizes: list[int] = []
    packaging._dir_travel(  # noqa: SLF001
        folder,
        [packaging._get_excludes(folder, get_runtime_env_default_excludes())],  # noqa: SLF001
        lambda path: sizes.append(path.stat().st_size if path.is_file() else 0),
        include_gitignore=True,
        logger=logging.getLogger(__name__),  # Ray's own would name the files that it reads
    )
    return sum(sizes), packaging.GCS_STORAGE_MAX_SIZE


def remove_orphans() -> None:
    """Remove this job's placement groups whose creators have died.

    Ray keeps them until the job ends, and Ray Train's own cleaner learns of a group only when all of its workers have
    started. Missing: the public `placement_group_table` does not say which actor created a group, or that it is dead.
    """
    import ray
    from ray._private.state import state
    from ray.core.generated.gcs_pb2 import PlacementGroupTableData  # type: ignore[attr-defined]  # made at run time
    from ray.util.placement_group import PlacementGroup, remove_placement_group

    job = bytes.fromhex(ray.get_runtime_context().get_job_id())
    for line in state._connect_and_get_accessor().get_placement_group_table():  # noqa: SLF001
        group = PlacementGroupTableData.FromString(line)
        if group.creator_job_id == job and group.creator_actor_dead and not group.is_detached:
            # does nothing if it is already gone
            remove_placement_group(PlacementGroup(ray.PlacementGroupID(group.placement_group_id)))


# --- Ray Train


def keep_sigint_handler(trainer: "TorchTrainer") -> "TorchTrainer":
    """Make `trainer.fit()` leave Ctrl-C to the job, and return the trainer.

    Ray's handler asks the controller to end, which a controller that is still starting ignores, and swallows the next
    Ctrl-C. Missing: a setting; Ray sets the handler whenever `fit` runs in the main thread.
    """
    trainer._register_sigint_handler = lambda controller: None  # type: ignore[attr-defined]  # noqa: SLF001
    return trainer


def without_datasets(trainer: "TorchTrainer") -> "TorchTrainer":
    """Make `trainer.fit()` start no process for Ray Data, and return the trainer; it must have no data sets.

    Ray starts that process, with Ray Data in it, for each group of workers, and makes each worker import Ray Data.
    Missing: a setting; Ray adds its callback for data sets whenever `fit` runs.
    """
    from ray.train.v2._internal.callbacks import DatasetsCallback

    create = trainer._create_default_callbacks  # type: ignore[attr-defined]  # noqa: SLF001
    trainer._create_default_callbacks = lambda: [  # type: ignore[attr-defined]  # noqa: SLF001
        callback for callback in create() if not isinstance(callback, DatasetsCallback)
    ]
    return trainer


def placement_group_of(workers: list[Any]) -> "PlacementGroup | None":
    """Return the placement group of Ray Train's workers: what is reserved for them in the cluster.

    Args:
        workers: Ray's worker objects, as a `WorkerGroupCallback` gets them.

    Missing: no callback, public or not, gets the group's placement before its workers are set up; so one of them is
    asked, by its `execute_async`.
    """
    import ray
    from ray.util.placement_group import get_current_placement_group

    group: PlacementGroup | None = ray.get(workers[0].execute_async(get_current_placement_group))
    return group


def mark_preempted(worker: Any) -> None:
    """Give one of Ray Train's workers the notice that it would get if its node were about to be taken away.

    In the worker the public `ray.train.get_preemption_info` then returns the notice. Missing: a public way to send a
    message from the driver or the controller to workers that train.

    Args:
        worker: Ray's worker object, as `get_workers` of a worker group lists them.
    """
    import ray.train

    train: Any = ray.train  # type checkers see the types of Ray Train's first version
    worker.actor.mark_preempt.remote(train.PreemptionInfo(deadline_ms=None, preempted_node_to_ranks={}))


def failed_health_check(error: Exception) -> Exception:
    """Return the error of a failed health check of Ray Train, or the error itself if it is another one.

    Ray wraps it in a message of its own. Missing: the wrapping class is not public, though public callbacks get it.
    """
    cause: Exception = getattr(error, "health_check_failure", error)
    return cause


# --- Ray Tune


def function_has_returned(last_result: Mapping[str, Any]) -> bool:
    """Return whether a trial's function ended by itself, by the last result that Tune has of the trial.

    Tune repeats a function's last result, marked, when the function returns. Missing: a callback's `on_trial_complete`
    is not told whether the function returned or a scheduler stopped it.
    """
    return bool(last_result.get("__duplicate__"))
