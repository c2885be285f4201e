"""The platform against others on the same work: a timm training loop, mmengine's Runner, pycocotools.

    PYTHONPATH=platform:tests python tests/benchmarks/bench_peers.py [--quick] [--only PART ...] [--data FOLDER]
        [--epochs N] [--seeds N]

Both trainings of a pair run at the same time, each in one process and thread, so that what else the machine does falls
on both. The score of a short training differs from seed to seed: the bar is the lower end of the 95 % interval (Welch's
t) of no difference. A longer comparison: `--only timm --epochs 50 --seeds 5`.
"""

import argparse
import json
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import fmean
from typing import Any

from benchmarks.coco_speed import coco_rows
from benchmarks.commands import run_beside
from benchmarks.parts import Part, part_options, run_parts
from benchmarks.rates import quartiles, ratio
from benchmarks.rows import DATA, REPOSITORY, Row
from scipy.stats import ttest_ind

from scalablevit.config.errors import UserError
from scalablevit.config.loading import load_recipe
from scalablevit.config.recipe import Stage
from scalablevit.training.environment import worker_variables

HERE = Path(__file__).parent
RECIPES = REPOSITORY / "pipelines" / "recipes"
LIMIT_S = 3000.0
"""Of one pair of trainings."""


@dataclass(frozen=True)
class Peer:
    """A training of ours and one of theirs.

    Attributes:
        name: of theirs.
        script: theirs, beside this file.
        recipe: file; its stage is trained.
        stage: name.
        folder: that the data must have.
        overrides: of the recipe, besides length and seed; {data} stands for the folder of all data.
        bar: of images a second.
        score: what both are judged by.
        epochs: in full and with `--quick`.
    """

    name: str
    script: str
    recipe: str
    stage: str
    folder: str
    overrides: tuple[str, ...]
    bar: float
    score: str
    epochs: tuple[int, int]


TIMM = Peer(
    "timm's loader, Mixup, optimizer and scheduler", "timm_loop.py", "cifar10.yaml", "pretrain",
    "classification-cifar10", ("data.root={data}/classification-cifar10",), 1.0, "top-1", (5, 1),
)  # fmt: skip
MMENGINE = Peer(
    "mmengine's Runner", "mmengine_loop.py", "photos_camvid.yaml", "segment",
    "segmentation", ("data.root={data}", "stages.segment.model.init=null", "stages.segment.data.color_jitter=0"),
    1.1, "mIoU", (8, 4),
)  # fmt: skip


def compare(peer: Peer, options: argparse.Namespace, settings: dict[str, Any]) -> list[Row]:
    """Train both with each seed."""
    epochs = options.epochs or peer.epochs[options.quick]
    seeds = options.seeds or (1 if options.quick else 3)
    if not (options.data / peer.folder).is_dir():
        raise UserError(
            f"no folder {peer.folder}",
            where=str(options.data),
            fix="name the folder of the data sets: make bench DATA=<folder>, or --data <folder>",
        )
    rates: dict[str, list[float]] = {"ours": [], "theirs": []}
    scores: dict[str, list[float]] = {"ours": [], "theirs": []}
    for seed in range(seeds):
        stage = stage_for(peer, options.data, epochs, seed)
        with tempfile.TemporaryDirectory(prefix="bench-") as folder:
            for side, result in train_both(peer, stage, Path(folder)).items():
                rates[side] += result["rates"]
                scores[side].append(result["score"])
    settings |= {"epochs": epochs, "seeds": seeds, "stage": stage.model_dump(mode="json"), "scores": scores,
                 "images_per_s": quartiles(rates)}  # fmt: skip
    return peer_metrics(peer, epochs, rates, scores)


def stage_for(peer: Peer, data: Path, epochs: int, seed: int) -> Stage:
    """The recipe's stage at a length, its warm-up shrunk with it, on one worker; evaluated at its end."""
    stages = load_recipe(RECIPES / peer.recipe, []).stages
    known = stages[peer.stage]
    schedule, shorter = known.optimizer.schedule, epochs / (known.training.epochs or epochs)
    prefix = f"stages.{peer.stage}." if len(stages) > 1 else ""
    values = {
        "training.epochs": epochs,
        "training.evaluate_every": f"{{epochs: {epochs}}}",
        "training.seed": seed,
        "optimizer.schedule.warmup_epochs": schedule.warmup_epochs * shorter,
        "optimizer.schedule.warmup_steps": round(schedule.warmup_steps * shorter),
        "cluster.workers": 1,
    }
    overrides = [each.format(data=data.resolve()) for each in peer.overrides]
    overrides += [f"{prefix}{key}={value}" for key, value in values.items()]
    return load_recipe(RECIPES / peer.recipe, overrides).stages[peer.stage]


def train_both(peer: Peer, stage: Stage, folder: Path) -> dict[str, dict[str, Any]]:
    """Rates and score of each side."""
    (folder / "stage.json").write_text(stage.model_dump_json())
    commands = {}
    worker = ["env", *(f"{name}={value}" for name, value in worker_variables(0).items())]  # as Ray starts ours
    for side, script in (("ours", "our_loop.py"), ("theirs", peer.script)):
        paths = (HERE / script, folder / "stage.json", folder / side, folder / f"{side}.json")
        commands[side] = [*(worker if side == "ours" else ()), sys.executable, *map(str, paths)]
    run_beside(commands, folder, LIMIT_S)
    return {side: json.loads((folder / f"{side}.json").read_text()) for side in commands}


def peer_metrics(
    peer: Peer, epochs: int, rates: Mapping[str, Sequence[float]], scores: Mapping[str, Sequence[float]]
) -> list[Row]:
    """Speed and score."""
    means = {side: 100 * fmean(taken) for side, taken in scores.items()}
    speed = {side: f"{quartile[1]:.3g}" for side, quartile in quartiles(rates).items()}
    seeds = len(scores["ours"])
    noise = noise_of(scores)
    return [
        Row(f"training, images/s against {peer.name}", peer.bar, ratio(rates["ours"], rates["theirs"]),
            f"theirs {speed['theirs']} images/s, ours {speed['ours']}, one thread each"),
        Row(f"{peer.score} against {peer.name}", None if noise is None else -100 * noise,
            means["ours"] - means["theirs"],
            f"theirs {means['theirs']:.1f} %, ours {means['ours']:.1f} %; {epochs} epochs, {seeds} seeds",
            unit="points", note="one seed says nothing about noise" if noise is None else ""),
    ]  # fmt: skip


def noise_of(scores: Mapping[str, Sequence[float]]) -> float | None:
    """Half the width of the 95 % interval of the difference of the means; None with one seed."""
    if len(scores["ours"]) < 2:
        return None
    interval = ttest_ind(scores["ours"], scores["theirs"], equal_var=False).confidence_interval(0.95)
    return float(interval.high - interval.low) / 2


PARTS = (
    Part("timm", "images/s and top-1 against a timm training loop", 7, 1, partial(compare, TIMM)),
    Part("mmengine", "images/s and mIoU against mmengine's Runner", 8, 1.5, partial(compare, MMENGINE)),
    Part("coco", "COCO evaluation, boxes and masks, against pycocotools", 2, 0.5, coco_rows),
)


def main() -> int:
    parser = part_options(__doc__ or "", PARTS)
    parser.add_argument("--data", type=Path, default=DATA, help="folder of the data sets (%(default)s)")
    parser.add_argument("--epochs", type=int, help="of each training")
    parser.add_argument("--seeds", type=int, help="trainings of each side")
    return run_parts("peers", PARTS, parser.parse_args())


if __name__ == "__main__":
    sys.exit(main())
