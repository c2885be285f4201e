"""Train a stage with Ray Train's TorchTrainer: resources, new workers after failures, the result."""

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
from scalablevit.training.ray_internals import (
    TRAIN_VARIABLES,
    ControllerCallback,
    WorkerGroupCallback,
    WorkerGroupStartupFailedError,
    WorkerGroupStartupTimeoutError,
    keep_sigint_handler,
    mark_preempted,
    placement_group_of,
    remove_orphans,
    set_defaults,
)
from scalablevit.training.worker_result import WorkerResult

if TYPE_CHECKING:  # it loads torch models and data code
    from scalablevit.training.worker import WorkerConfig

set_defaults(TRAIN_VARIABLES)

PLACING_RETRIES = 2
"""Retries when workers could not be placed; Ray's default is to retry forever."""
STOP = "stop"
"""Name of the file in a run's folder that lets its workers save and end."""
RESTART_PAUSE_S = 1.0
"""Seconds before a new controller starts, in which Ray frees what the old one held, or an interrupt disconnects us."""


def launch(
    stage: Stage,
    worker_config: "WorkerConfig",
    run_folder: str,
    callbacks: Sequence[ray.train.UserCallback],
    stop_file: Path | None = None,
) -> WorkerResult:
    """Train a stage on the connected Ray cluster and wait for its end.

    Args:
        worker_config: what each rank is given.
        run_folder: storage of the run; Ray's own files go into `ray/` below it.
        stop_file: on a disk of this machine; once it is there, the workers save and end.

    Returns:
        What rank 0 returned.

    Raises:
        UserError: the workers found something that the user must fix.
        TrainingFailed: workers failed more often than `cluster.max_failures`, or could not be placed.
        KeyboardInterrupt: they saved and ended because of `stop_file`.
    """
    own = [_Release()] if stop_file is None else [_Release(), _StopFileWatcher(stop_file)]
    lost = unplaced = 0
    while True:
        trainer = _trainer(stage, worker_config, run_folder, [*callbacks, *own], stage.cluster.max_failures - lost)
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
            if kind == "final" or lost > stage.cluster.max_failures or unplaced > PLACING_RETRIES:
                raise TrainingFailed(run_folder, details) from error
        time.sleep(RESTART_PAUSE_S)
        if not ray.is_initialized():  # a new fit() would start a cluster of its own
            raise TrainingFailed(run_folder, details)
        remove_orphans()
        print(f"{what}; going on from the last checkpoint with new workers", flush=True)
    if result.error is not None:
        raise result.error
    return result


def _trainer(
    stage: Stage,
    worker_config: "WorkerConfig",
    run_folder: str,
    callbacks: Sequence[Any],
    max_failures: int,
) -> Any:
    cluster = stage.cluster
    elastic = cluster.min_workers is not None and cluster.min_workers < cluster.workers
    resources = {"CPU": cluster.cpus_per_worker}
    if cluster.gpus_per_worker:
        resources["GPU"] = cluster.gpus_per_worker
    train: Any = ray.train  # statically it has the types of Ray Train's first version
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
            # a controller keeps the resources of a group that broke while starting, so a retry of its own finds no
            # room: `launch` tries again with a new one
            failure_config=train.FailureConfig(max_failures=max_failures, controller_failure_limit=0),
            callbacks=list(callbacks),
            worker_runtime_env={"env_vars": worker_variables(cluster.gpus_per_worker)},
            logging_config=train.LoggingConfig(log_level="ERROR"),
        ),
    )
    return keep_sigint_handler(trainer)


class _Release(WorkerGroupCallback, ControllerCallback):
    """Releases at a controller's end what its last worker group held; runs in the controller.

    Ray forgets a group of which a worker is lost while the process group is set up: the others wait for the lost one,
    and the next group finds no room.
    """

    def __init__(self) -> None:
        self._held: PlacementGroup | None = None

    def before_init_train_context(self, workers: list[Any]) -> dict[str, list[Any]]:
        """Ray calls it with each new group's workers before it sets them up."""
        self._held = placement_group_of(workers)
        return {}

    async def before_controller_shutdown(self) -> None:
        """Ray calls it once it has ended the group that it knows of."""
        if self._held is not None:
            remove_placement_group(self._held)  # ends all that runs there; nothing happens where it is gone


class _StopFileWatcher(WorkerGroupCallback):
    """Lets workers save a checkpoint and end once a file exists; runs in the controller, on the driver's machine.

    Workers get a notice of preemption, which they poll for anyway, so that no step waits for another signal.
    """

    def __init__(self, file: Path) -> None:
        self._file = file
        self._workers: list[Any] = []

    def after_worker_group_training_start(self, worker_group: Any) -> None:
        """Ray calls it with each new group."""
        self._workers = worker_group.get_workers()

    def after_worker_group_poll_status(self, worker_group_status: object) -> None:
        """Ray calls it a few times a second."""
        if self._workers and self._file.exists():
            for worker in self._workers:
                mark_preempted(worker)
            self._workers = []


def _classify_failure(error: Exception) -> tuple[Literal["lost", "unplaced", "final"], str]:
    """Return whether new workers may help, and what happened."""
    if isinstance(error, ray.exceptions.ActorDiedError):
        return "lost", "the process that leads the workers (Ray Train's controller) was lost"
    cause = getattr(error, "controller_failure", None)
    if isinstance(cause, WorkerGroupStartupTimeoutError):
        return "unplaced", "there was no room for the workers"
    if isinstance(cause, WorkerGroupStartupFailedError | ray.exceptions.RayActorError):
        return "lost", "a worker was lost while the workers were being started"
    return "final", "the workers failed"


def _on_worker(config: dict[str, Any]) -> dict[str, Any]:
    """Train on a worker; the import is here, so that the driver does not load torch models and data code."""
    started_at = time.time()
    from scalablevit.training.worker import WorkerConfig, run_on_ray

    return run_on_ray(WorkerConfig(**config), started_at).as_dict()
