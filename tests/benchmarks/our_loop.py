"""A training by the platform's worker in this process, without Ray: what runs on each rank of a job.

    python tests/benchmarks/our_loop.py <stage as JSON> <run folder> <file for rates and score>

The stage has one worker, which is this process.
"""

import json
import sys
from pathlib import Path

import torch
from benchmarks.rates import platform_rates

from scalablevit.config.recipe import Stage
from scalablevit.config.task_info import task_info
from scalablevit.training import worker
from scalablevit.training.state import Record


def main() -> int:
    stage, folder, result = sys.argv[1:]
    content = Path(stage).read_text()
    lines: list[dict[str, float]] = []

    def send(records: list[Record], _node: dict[str, float]) -> None:
        lines.extend({"step": record.step, **record.metrics} for record in records)

    outcome = worker.run(worker.WorkerConfig(content, folder, folder, None), 0, 1, torch.device("cpu"), send)
    if outcome.training is None:
        sys.exit(str(outcome.error))
    score = outcome.training.last_metrics[task_info(Stage.model_validate_json(content).task.kind).best_metric]
    Path(result).write_text(json.dumps({"rates": platform_rates(lines), "score": score}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
