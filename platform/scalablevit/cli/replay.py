"""Repeat a captured training step."""

import argparse
from pathlib import Path

from scalablevit.config.errors import UserError
from scalablevit.run_files import STEP

EPILOG = """\
A recipe with training.nonfinite.capture=true writes a step whose loss or gradient is infinite or not a number into
<run>/nonfinite/step_<n>/ (step_<n>_rollback_<k>/ after k roll-backs): every rank's samples, weights and optimizer as
they were before it, and the seeds of its random numbers. This repeats the step on this machine, without an update, and
names weights, module outputs and gradients that are not finite, in the order in which they come.

Exit codes: 0 the step was repeated; 2 the folder holds no whole captured step; 130 interrupted."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's own arguments."""
    parser.add_argument("folder", type=Path, metavar="FOLDER", help="a captured step: <run>/nonfinite/step_<n>")


def run(options: argparse.Namespace) -> int:
    """Repeat the step and print which tensors are not finite.

    Raises:
        UserError: the folder has no complete captured step.
    """
    if not (options.folder / STEP).is_file():  # reported before torch is imported
        raise UserError(f"holds no {STEP}", where=str(options.folder), fix="name a folder <run>/nonfinite/step_<n>")
    from scalablevit.training.replay import format_replay, replay

    print(format_replay(replay(options.folder)))
    return 0
