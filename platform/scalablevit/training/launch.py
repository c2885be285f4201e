"""From a stage to a Ray Train run: scaling, failures, reporting."""

import os
import secrets
import time
from collections.abc import Sequence
from typing import Any

import ray
import ray.train
from ray.train.torch import TorchTrainer

from scalablevit.config.errors import TrainingFailed, UserError
from scalablevit.config.recipe import Stage

# Ray's controller takes one report per poll; its default of 2 s would pace short steps (measured)
os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.2")
# a worker that does not answer is stopped or stuck: Ray's default lets the others wait for it for ten minutes
os.environ.setdefault("RAY_TRAIN_WORKER_HEALTH_CHECK_TIMEOUT_S", "60")
# how soon workers know that their node is about to go: a grace period is often half a minute
os.environ.setdefault("RAY_TRAIN_PREEMPTION_POLL_INTERVAL_S", "1")
# worker output appears once
os.environ.setdefault("RAY_TRAIN_ENABLE_PRINT_PATCH", "0")

CONTROLLER_RETRIES = 2
"""Worker groups that could not be placed are tried again so often; Ray's default is for ever."""


def launch(
    stage: Stage, assignment: dict[str, Any], run_folder: str, callbacks: Sequence[ray.train.UserCallback]
) -> dict[str, Any]:
    """Train a stage on the connected Ray cluster and wait for its end.

    Args:
        assignment: `training.worker.Assignment` as plain values.
        run_folder: storage of the run; Ray's own files go into `ray/` below it.

    Returns:
        What rank 0 returned.

    Raises:
        UserError: the workers found something that the user must mend.
        TrainingFailed: workers failed more often than `cluster.max_failures`, or could not be placed.
    """
    cluster = stage.cluster
    elastic = cluster.min_workers is not None and cluster.min_workers < cluster.workers
    resources = {"CPU": cluster.cpus_per_worker}
    if cluster.gpus_per_worker:
        resources["GPU"] = cluster.gpus_per_worker
    train: Any = ray.train  # statically it has the types of Ray Train's first version
    trainer: Any = TorchTrainer(
        _on_worker,  # type: ignore[arg-type]
        train_loop_config=assignment,
        scaling_config=train.ScalingConfig(
            num_workers=(cluster.min_workers, cluster.workers) if elastic else cluster.workers,
            use_gpu=cluster.gpus_per_worker > 0,
            resources_per_worker=resources,
        ),
        run_config=train.RunConfig(
            # a new name each time: our manifest alone says where to resume, Ray must not resume anything by itself
            name=f"attempt-{secrets.token_hex(4)}",
            storage_path=f"{run_folder}/ray",
            failure_config=train.FailureConfig(
                max_failures=cluster.max_failures, controller_failure_limit=CONTROLLER_RETRIES
            ),
            callbacks=list(callbacks),
            logging_config=train.LoggingConfig(log_level="ERROR"),
        ),
    )
    try:
        result: dict[str, Any] = trainer.fit().return_value
    except SystemExit:  # how Ray's own handler of SIGINT leaves
        raise KeyboardInterrupt from None
    except ray.train.TrainingFailedError as error:
        raise TrainingFailed(run_folder, str(error)) from error
    if "error" in result:
        what, where, fix = result["error"]
        raise UserError(what, where=where, fix=fix)
    return result


def _on_worker(config: dict[str, Any]) -> dict[str, Any]:
    """Runs on each worker; imported there, so that the driver does not pay for torch models and data code."""
    entered = time.time()
    from scalablevit.training.worker import run_on_ray

    return run_on_ray(config, entered)
