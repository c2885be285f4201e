"""Trains a stage with Ray Train's TorchTrainer: resources, new workers after failures, the result."""

import secrets
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import ray
import ray.exceptions
import ray.train
from ray.train.torch import TorchTrainer
from ray.util.placement_group import PlacementGroup, remove_placement_group

from scalablevit.config.errors import TrainingFailed
from scalablevit.config.recipe import Stage
from scalablevit.training.environment import worker_variables
from scalablevit.training.network import NetworkCallback, NetworkLost, find_network_error, naming_this_node
from scalablevit.training.pace import pace_of
from scalablevit.training.ray_internals import (
    TRAIN_VARIABLES,
    ControllerCallback,
    WorkerGroupCallback,
    WorkerGroupStartupFailedError,
    WorkerGroupStartupTimeoutError,
    alive_nodes,
    keep_sigint_handler,
    mark_preempted,
    placement_group_of,
    remove_orphans,
    set_defaults,
    set_poll_interval,
    without_datasets,
)
from scalablevit.training.room import ask_for_workers, find_autoscaler, format_types, worker_resources, workers_on
from scalablevit.training.worker_result import WorkerResult

if TYPE_CHECKING:  # it loads torch models and data code
    from scalablevit.training.worker import WorkerConfig

set_defaults(TRAIN_VARIABLES)

PLACING_RETRIES = 2
"""Retries when workers could not be placed and no autoscaler may start a node for one; Ray's default is to retry
forever."""
STOP = "stop"
"""Name of the file in a run's folder that makes its workers save and end."""
PLACED_POLL_S = 1
"""Whole seconds between two looks at whether a stop is asked for, in a wait for room."""
RESTART_PAUSE_S = 1.0
"""Seconds before a new controller starts, in which Ray frees the old one's resources or an interrupt disconnects us."""


def launch(
    stage: Stage,
    worker_config: "WorkerConfig",
    run_folder: str,
    callbacks: Sequence[ray.train.UserCallback | ControllerCallback],
    stop_file: Path | None = None,
) -> WorkerResult:
    """Train a stage on the connected Ray cluster and wait for its end.

    Args:
        stage: the stage to train.
        worker_config: the configuration of all ranks.
        run_folder: the run's folder in run storage; Ray's own files go into `ray/` below it.
        callbacks: Ray Train's callbacks, which run in its controller.
        stop_file: a path on a disk of this machine; once the file exists, the workers save and end.

    Returns:
        The result of rank 0.

    Raises:
        UserError: the workers found a problem that the user must fix, or do not reach each other.
        TrainingFailed: workers failed more often than `cluster.max_failures`, or could not be placed; with an
            autoscaler, not within `cluster.wait_for_nodes_minutes`.
        KeyboardInterrupt: the workers saved and ended because of `stop_file`.
    """
    own_callbacks = [_Release(), *([_StopFileWatcher(stop_file)] if stop_file is not None else [])]
    kept = "" if worker_config.evaluate_only else run_folder
    onwards = "going on from the last checkpoint" if kept else "beginning again"
    lost = unplaced = 0
    again = False
    while True:
        network = NetworkCallback(on_gpus=stage.cluster.gpus_per_worker > 0, again=again)
        trainer = _trainer(
            stage, worker_config, run_folder, [*callbacks, *own_callbacks, network], stage.cluster.max_failures - lost
        )
        try:
            result = WorkerResult.from_dict(trainer.fit().return_value)
            training = result.training
            if training is None or training.reason != "node leaving":
                break
            ended = "; ".join(filter(None, [f"the workers ended at step {training.step}", training.detail]))
            if stop_file is not None and stop_file.exists():
                print(ended, flush=True)
                raise KeyboardInterrupt
            what = details = f"a node is about to be taken away: {ended}"
        except (ray.train.TrainingFailedError, ray.exceptions.RayActorError) as error:
            kind, what = _classify_failure(error)
            details = f"{what}\n{error}"
            lost, unplaced = lost + (kind == "lost"), unplaced + (kind == "unplaced")
            if kind == "unplaced" and _wait_for_nodes(stage, stop_file, kept, details):
                unplaced = 0
            if kind == "final" or lost > stage.cluster.max_failures or unplaced > PLACING_RETRIES:
                raise find_network_error(error) or TrainingFailed(kept, details) from error
        time.sleep(RESTART_PAUSE_S)
        if not ray.is_initialized():  # a new fit() would start a cluster of its own
            raise TrainingFailed(kept, details)
        remove_orphans()
        again = True
        print(f"{what}; {onwards} with new workers", flush=True)
    if result.error is not None:
        raise result.error
    return result


def _wait_for_nodes(stage: Stage, stop_file: Path | None, kept: str, details: str) -> bool:
    """Wait for room while an autoscaler starts nodes for workers, which takes it longer than Ray Train waits.

    Args:
        stage: the stage whose workers found no room.
        stop_file: once the file exists, nothing is waited for.
        kept: folder of what was trained so far; empty: nothing was.
        details: why the workers could not be placed.

    Returns:
        Whether there is room now; False: no autoscaler may start a node with room for a worker.

    Raises:
        TrainingFailed: no room came in time, or this process is disconnected from the cluster.
        KeyboardInterrupt: `stop_file` is there.
    """
    minutes, autoscaler = stage.cluster.wait_for_nodes_minutes, None
    if minutes and ray.is_initialized():
        autoscaler = find_autoscaler()
    more = autoscaler.startable(alive_nodes()) if autoscaler else []
    if not any(workers_on(kind.resources, worker_resources(stage)) for kind in more):
        return False
    print(f"there is no room for the workers: waiting up to {minutes:g} minutes; the autoscaler may start up to "
          f"{format_types(more)}", flush=True)  # fmt: skip
    deadline = time.monotonic() + 60 * minutes
    with ask_for_workers(stage) as group:
        while not group.wait(PLACED_POLL_S):
            if stop_file is not None and stop_file.exists():
                raise KeyboardInterrupt
            if not ray.is_initialized():
                raise TrainingFailed(kept, details)
            if time.monotonic() > deadline:
                raise TrainingFailed(kept, f"{details}; no room came within {minutes:g} minutes "
                                           "(cluster.wait_for_nodes_minutes)")  # fmt: skip
    return True


def _trainer(
    stage: Stage,
    worker_config: "WorkerConfig",
    run_folder: str,
    callbacks: Sequence[Any],
    max_failures: int,
) -> Any:
    cluster = stage.cluster
    set_poll_interval(pace_of(cluster.workers).poll_s)
    elastic = cluster.min_workers is not None and cluster.min_workers < cluster.workers
    resources = {"CPU": cluster.cpus_per_worker}
    if cluster.gpus_per_worker:
        resources["GPU"] = cluster.gpus_per_worker
    train: Any = ray.train  # type checkers see the types of Ray Train's first version
    trainer = TorchTrainer(
        _on_worker,  # type: ignore[arg-type]
        train_loop_config=worker_config.as_dict(),
        scaling_config=train.ScalingConfig(
            num_workers=(cluster.min_workers, cluster.workers) if elastic else cluster.workers,
            use_gpu=cluster.gpus_per_worker > 0,
            resources_per_worker=resources,
        ),
        run_config=train.RunConfig(
            # a new name each time: our manifest alone says where to resume, Ray must not resume anything by itself
            name=f"attempt-{secrets.token_hex(4)}",
            storage_path=f"{run_folder}/ray",
            # a controller keeps the resources of a group that failed while starting, so its own retry finds no room:
            # `launch` tries again with a new controller
            failure_config=train.FailureConfig(max_failures=max_failures, controller_failure_limit=0),
            callbacks=list(callbacks),
            worker_runtime_env={"env_vars": worker_variables(cluster.gpus_per_worker)},
            logging_config=train.LoggingConfig(log_level="ERROR"),
        ),
    )
    return without_datasets(keep_sigint_handler(trainer))


class _Release(WorkerGroupCallback, ControllerCallback):
    """Releases the resources of a controller's last worker group at the controller's end; runs in the controller.

    Ray forgets a group that loses a worker while the process group is set up: the other workers wait for the lost one,
    and the next group finds no room.
    """

    def __init__(self) -> None:
        self._held: PlacementGroup | None = None

    def before_init_train_context(self, workers: list[Any]) -> dict[str, list[Any]]:
        """Note the placement group of new workers; Ray calls this before it sets them up."""
        self._held = placement_group_of(workers)
        return {}

    async def before_controller_shutdown(self) -> None:
        """Remove the placement group; Ray calls this after it has ended the group that it knows."""
        if self._held is not None:
            remove_placement_group(self._held)  # ends all processes in it; does nothing if it is already gone


class _StopFileWatcher(WorkerGroupCallback):
    """Makes workers save a checkpoint and end once a file exists; runs in the controller, on the driver's machine.

    Workers get a preemption notice, which they poll for anyway, so that no step has to check a second signal.

    Args:
        file: the stop file.
    """

    def __init__(self, file: Path) -> None:
        self._file = file
        self._workers: list[Any] = []

    def after_worker_group_training_start(self, worker_group: Any) -> None:
        """Note the workers; Ray calls this with each new group."""
        self._workers = worker_group.get_workers()

    def after_worker_group_poll_status(self, worker_group_status: object) -> None:
        """Mark the workers as preempted once the file exists; Ray calls this a few times a second."""
        if self._workers and self._file.exists():
            for worker in self._workers:
                mark_preempted(worker)
            self._workers = []


def _classify_failure(error: Exception) -> tuple[Literal["lost", "unplaced", "final"], str]:
    """Return the kind of failure, by which new workers may help or not, and a description of it."""
    if isinstance(error, ray.exceptions.ActorDiedError):
        return "lost", "the process that leads the workers (Ray Train's controller) was lost"
    cause = getattr(error, "controller_failure", None)
    if isinstance(cause, WorkerGroupStartupTimeoutError):
        return "unplaced", "there was no room for the workers"
    if isinstance(cause, NetworkLost):
        return "lost", "the workers no longer reach each other"
    if isinstance(cause, ray.exceptions.RayTaskError) and find_network_error(error):  # they did a moment before
        return "lost", "a worker was lost while the workers connected"
    if isinstance(cause, WorkerGroupStartupFailedError | ray.exceptions.RayActorError):
        return "lost", "a worker was lost while the workers were being started"
    return "final", "the workers failed"


def _on_worker(config: dict[str, Any]) -> dict[str, Any]:
    """Train on a worker; imports inside, so that the driver does not load torch models and data code."""
    started_at = time.time()
    from scalablevit.training.worker import WorkerConfig, run_on_ray

    with naming_this_node():
        return run_on_ray(WorkerConfig(**config), started_at).as_dict()
