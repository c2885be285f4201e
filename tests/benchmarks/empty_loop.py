"""When Ray Train calls a loop that does nothing: what a job cannot start sooner than.

    python tests/benchmarks/empty_loop.py <number of workers> <storage folder> <file for the time>

Runs on the head that RAY_ADDRESS names. It imports nothing that Ray Train does not need.
"""

import json
import logging
import os
import sys
import time
from pathlib import Path

import ray
import ray.train
from ray.train.torch import TorchTrainer


def loop() -> dict[str, float]:
    return {"entered": time.time()}


def main() -> int:
    workers, storage, result = sys.argv[1:]
    ray.init(address=os.environ["RAY_ADDRESS"], log_to_driver=False, logging_level=logging.ERROR)
    trainer = TorchTrainer(
        loop,
        scaling_config=ray.train.ScalingConfig(num_workers=int(workers), resources_per_worker={"CPU": 1}),
        run_config=ray.train.RunConfig(
            name="empty",
            storage_path=storage,
            failure_config=ray.train.FailureConfig(controller_failure_limit=0),
        ),
    )
    Path(result).write_text(json.dumps(trainer.fit().return_value))
    return 0


if __name__ == "__main__":
    sys.exit(main())
