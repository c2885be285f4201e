"""What the platform costs around the training step.

    PYTHONPATH=platform:tests python tests/benchmarks/bench_platform.py [--quick] [--only PART ...]

The parts `steps`, `start` and `control` bring up a local Ray head of their own and stop it; the others run in this
process.
"""

import sys

from benchmarks.parts import Part, part_options, run_parts
from benchmarks.ray_jobs import control_rows, start_rows, step_rows
from benchmarks.worker_costs import checkpoint_rows, evaluation_rows, tracking_rows

PARTS = (
    Part("steps", "step through Ray Train; 1 -> 2 workers", 11, 2.5, step_rows),
    Part("start", "start of a job to its first step, in parts; its end", 6, 1.3, start_rows),
    Part("checkpoint", "checkpoint stall", 2, 0.8, checkpoint_rows),
    Part("tracking", "tracking", 1, 0.4, tracking_rows),
    Part("control", "control plane of 64, 256 and 1,000 fake workers", 2, 1, control_rows),
    Part("evaluation", "evaluation", 2, 0.5, evaluation_rows),
)

if __name__ == "__main__":
    sys.exit(run_parts("platform", PARTS, part_options(__doc__ or "", PARTS).parse_args()))
