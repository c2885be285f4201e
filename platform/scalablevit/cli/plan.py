"""Predict what a stage's training would take on so many devices, without starting it; its data need not be there."""

import argparse
import json
import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from scalablevit.cli.arguments import add_recipe, add_root
from scalablevit.cli.documents import TrainingPrediction
from scalablevit.cli.json_output import STDOUT, add_json_or_file, check_file, print_document, stdout_to_stderr
from scalablevit.config.commands import short_name
from scalablevit.config.data import MaskPairs
from scalablevit.config.errors import UserError
from scalablevit.config.loading import load_and_import, override_recipe
from scalablevit.config.model_names import check_model_name
from scalablevit.config.overrides import Scope
from scalablevit.config.recipe import Recipe, Stage
from scalablevit.config.root import platform_root
from scalablevit.config.shipped import DEMO, RECIPES
from scalablevit.config.task_info import task_info
from scalablevit.runs.console import say_while_waiting

if TYPE_CHECKING:  # they import torch
    import torch

    from scalablevit.tasks.task import Task

EPILOG = """\
No training is started. --measure takes some optimizer steps on this machine; nothing is written but --json.

A step time is needed: --step-s from a run's log or a benchmark, or --measure, which takes steps with blank images on
this machine's device and, where the data is on this machine, times decoding too. It is that of one device by itself,
without waiting for data or for other devices, and is scaled from --step-images to the device's share of the batch.

How many images and classes there are is taken from the arguments, else from the data if it is on this machine, else
from what the data set is published with (root folders named imagenet, ADEChallengeData2016 and coco).

Memory is counted, not measured: bfloat16 and attention as on the devices that cluster.gpus_per_worker asks for.

Exit codes: 0 done; 2 something that you can fix; 130 interrupted."""


@dataclass(frozen=True)
class DataSize:
    """How many images and classes there are, and where these numbers come from."""

    train_images: int
    val_images: int
    classes: tuple[str, ...]
    origin: str
    """Where the numbers come from, in words."""


PUBLISHED: dict[str, tuple[int, int, int]] = {
    "imagenet": (1_281_167, 50_000, 1000),
    "ADEChallengeData2016": (20_210, 2_000, 150),
    "coco": (118_287, 5_000, 80),
}
"""Training images, validation images and classes of the shipped recipes' data sets, by the name of the root folder."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's own arguments."""
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="override a value of the recipe")
    add_recipe(parser)
    parser.add_argument("--stage", metavar="NAME", help="stage to plan; needed when the recipe has several")
    add_root(parser)
    parser.add_argument("--devices", type=int, metavar="N", help="number of devices (default: cluster.workers)")
    parser.add_argument(
        "--step-s",
        type=float,
        metavar="S",
        help="seconds of one optimizer step on one device; this or --measure is needed",
    )
    parser.add_argument("--measure", action="store_true", help="measure the step on this machine's device")
    parser.add_argument("--step-images", type=int, metavar="N",
                        help="images in the step of --step-s (default: the device's share of the batch)")  # fmt: skip
    parser.add_argument(
        "--train-images", type=int, metavar="N", help="images of the training split (default: see below)"
    )
    parser.add_argument(
        "--val-images", type=int, metavar="N", help="images of the validation split (default: see below)"
    )
    parser.add_argument("--classes", type=int, metavar="N", help="number of classes (default: see below)")
    parser.add_argument("--bandwidth", type=float, default=10.0, metavar="GB/S",
                        help="all-reduce bandwidth of a device, 10^9 bytes/s (default: 10)")  # fmt: skip
    parser.add_argument(
        "--decode-rate",
        type=float,
        metavar="R",
        help="images/s that one CPU core decodes and augments (default: measured by --measure, else not predicted)",
    )
    parser.add_argument(
        "--price",
        type=float,
        metavar="P",
        help="price of one device for one hour, in any currency (default: cost is not predicted)",
    )
    add_json_or_file(parser)


def run(options: argparse.Namespace) -> int:
    """Predict and print; see `add_arguments`.

    Raises:
        UserError: an argument is of no use, the recipe is wrong, the size of the data is not known, or a step cannot be
            measured here.
    """
    with stdout_to_stderr(options.json is STDOUT):
        document = _predict(options)
    if options.json is STDOUT:
        print_document(document)
    elif options.json is not None:
        options.json.write_text(json.dumps(document.model_dump(), indent=1), encoding="utf-8")
    return 0


def _predict(options: argparse.Namespace) -> TrainingPrediction:
    _check(options)
    recipe, name = _load_planned(options)
    stage = recipe.stages[name]
    root = platform_root(options.root, make=False)
    check_model_name(stage.model.name, dense=task_info(stage.task.kind).needs_pyramid, registered=bool(stage.imports))
    size = _data_size(stage, root, options)
    # imported late: a mistake above is reported before torch is loaded
    from scalablevit.pipeline.prediction import PredictionInputs, format_prediction, predict
    from scalablevit.pipeline.stage_model import check_micro_batches, model_cost
    from scalablevit.tasks.registry import build_task
    from scalablevit.training.memory_estimate import estimate_memory

    check_micro_batches(name, stage, size.classes)
    model = model_cost(name, stage, size.classes)
    task = build_task(stage, size.classes)
    share = math.ceil(stage.training.global_batch_size / stage.cluster.workers)
    memory = estimate_memory(stage, task, math.ceil(share / stage.training.accumulation_steps))
    with say_while_waiting("plan", "the measured steps and decoding"):
        step_s, step_images, origin = _step(stage, task, options, share)
        decoded_per_s = options.decode_rate or (_measure_decoding(stage, task, root) if options.measure else None)
    inputs = PredictionInputs(
        devices=stage.cluster.workers, train_images=size.train_images, val_images=size.val_images, step_s=step_s,
        step_images=step_images, bandwidth_gb_s=options.bandwidth, decoded_per_s=decoded_per_s,
        price_per_hour=options.price,
    )  # fmt: skip
    prediction = predict(stage, inputs, memory)
    facts = {
        "model": model,
        "data": f"{size.train_images} training and {size.val_images} validation images, {len(size.classes)} classes: "
        f"{size.origin}",
        "step time": f"{step_s:.4g} s for {step_images} images, {origin}",
        **format_prediction(stage, inputs, memory, prediction),
    }
    print(f"prediction for {recipe.name}, stage {name}: nothing of this has been run")
    print("\n".join(f"  {label:<13}{fact}" for label, fact in facts.items()))
    return TrainingPrediction(
        recipe=recipe.name,
        stage=name,
        prediction={**asdict(prediction), "hours": prediction.hours, "efficiency": prediction.efficiency},
        memory_bytes={**asdict(memory), "checkpoint": memory.checkpoint, "total": memory.total},
        given={**asdict(inputs), "step_time": origin, "data": size.origin, "classes": len(size.classes)},
    )


def _step(stage: Stage, task: "Task", options: argparse.Namespace, share: int) -> tuple[float, int, str]:
    """Return the seconds of a step, its number of images, and how that is known.

    Args:
        stage: the stage.
        task: of the stage.
        options: of the command.
        share: a device's images of a global batch.

    Raises:
        UserError: as `_measure_step`.
    """
    images: int = options.step_images or share
    if not options.measure:
        return options.step_s, images, "given"
    images = math.ceil(images / stage.training.accumulation_steps) * stage.training.accumulation_steps
    seconds, origin = _measure_step(stage, task, images)
    return seconds, images, origin


def _check(options: argparse.Namespace) -> None:
    """Refuse numbers out of range, and missing or contradicting arguments, before anything is read.

    Raises:
        UserError: there are any.
    """
    for flag in ("devices", "step_s", "step_images", "train_images", "val_images", "classes",
                 "bandwidth", "decode_rate", "price"):  # fmt: skip
        value, where = getattr(options, flag), f"--{flag.replace('_', '-')}"
        if value is None:
            continue
        if isinstance(value, int) and value < 1:
            raise UserError(f"must be at least 1, not {value}", where=where)
        if not 0 < value < math.inf:
            raise UserError(f"must be a number above 0, not {value:g}", where=where)
    if options.step_s is None and not options.measure:
        fix = "give the seconds of a step as --step-s, or take some on this machine with --measure"
        raise UserError("no step time", where="--step-s", fix=fix)
    if options.step_s is not None and options.measure:
        raise UserError("given and to be measured at once", where="--step-s", fix="leave out --step-s or --measure")
    check_file(options.json)


def _load_planned(options: argparse.Namespace) -> tuple[Recipe, str]:
    """Return the recipe with the devices of --devices, and the name of the planned stage.

    Raises:
        UserError: as `load_and_import`, or --stage is needed or unknown.
    """
    path = options.recipe or RECIPES / DEMO
    chosen = (options.stage,) if options.stage else ()
    recipe = load_and_import(path, options.overrides, Scope(f"{short_name('plan')} plans", names=chosen, note=print))
    name = options.stage or next(iter(recipe.stages))
    if name not in recipe.stages or (options.stage is None and len(recipe.stages) > 1):
        what = (
            f"no stage {name!r} in recipe {recipe.name}"
            if options.stage
            else f"recipe {recipe.name} has several stages"
        )
        raise UserError(what, where="--stage", fix=f"name one of {', '.join(recipe.stages)}")
    if options.devices is not None:
        cluster = f"stages.{name}.cluster"
        fixed = [f"{cluster}.workers={options.devices}", f"{cluster}.min_workers=null"]
        recipe = override_recipe(recipe.model_dump(mode="json"), fixed, {}, str(path))
    return recipe, name


def _data_size(stage: Stage, root: Path, options: argparse.Namespace) -> DataSize:
    """Return the size of the data from the arguments, else from the data here, else as the data set is published.

    Raises:
        UserError: it is not known.
    """
    data, train, val = stage.data, options.train_images, options.val_images
    classes = _number_classes(options.classes) if options.classes else None
    if classes is None and isinstance(data, MaskPairs) and isinstance(data.classes, list):
        classes = tuple(data.classes)
    if train and val and classes:
        return DataSize(train, val, classes, "as given")
    folder = root / Path(data.root).expanduser()
    known = _find_size(stage, root, folder)
    if known is None:
        unknown = {"--train-images": train, "--val-images": val, "--classes": classes}
        raise UserError(
            f"there is no {folder}, and how much data belongs there is not known",
            where="data.root",
            fix=f"give {', '.join(flag for flag, value in unknown.items() if not value)}",
        )
    changed = [name for name in ("train_images", "val_images", "classes") if getattr(options, name)]
    origin = f"{known.origin}; {', '.join(changed)} as given" if changed else known.origin
    return DataSize(train or known.train_images, val or known.val_images, classes or known.classes, origin)


def _find_size(stage: Stage, root: Path, folder: Path) -> DataSize | None:
    """Return the size of the data from the recipe, the data here or its publication; None: it is not known."""
    from scalablevit.data.shapes import CLASSES
    from scalablevit.data.sources.opening import open_source

    data = stage.data
    if data.shapes is not None:
        background = ("background",) if isinstance(data, MaskPairs) else ()
        origin = "the built-in demo data"
        return DataSize(data.shapes.train_images, data.shapes.val_images, (*background, *CLASSES), origin)
    if folder.is_dir():
        train, val = open_source(data, "train", root), open_source(data, "val", root)
        return DataSize(len(train), len(val), train.classes, f"counted in {folder}")
    if folder.name in PUBLISHED:
        train_images, val_images, classes = PUBLISHED[folder.name]
        origin = f"as {folder.name} is published; {folder} is not there"
        return DataSize(train_images, val_images, _number_classes(classes), origin)
    return None


def _number_classes(classes: int) -> tuple[str, ...]:
    return tuple(f"class {index}" for index in range(classes))


def _measure_step(stage: Stage, task: "Task", images: int) -> tuple[float, str]:
    """Return the median seconds of a step on this machine's device, and how they were measured, in words.

    Raises:
        UserError: the recipe computes on GPUs and there is none, or its model cannot be compiled here.
    """
    import torch

    from scalablevit.training.speed import STEPS

    on_gpu = stage.cluster.gpus_per_worker > 0
    if on_gpu and not torch.cuda.is_available():
        raise UserError(
            f"the recipe computes on GPUs (cluster.gpus_per_worker: {stage.cluster.gpus_per_worker:g}) and this "
            "machine has none",
            where="--measure",
            fix="give --step-s from a machine that has, or plan for CPUs with cluster.gpus_per_worker=0",
        )
    device = torch.device("cuda", 0) if on_gpu else torch.device("cpu")
    threads = max(1, int(stage.cluster.cpus_per_worker))
    name = torch.cuda.get_device_name(device) if on_gpu else f"{threads} CPU thread{'s' * (threads > 1)}"
    seconds = _step_s(stage, task, images, device)
    return seconds, f"measured here on {name}: median of {STEPS}, blank images"


def _step_s(stage: Stage, task: "Task", images: int, device: "torch.device") -> float:
    """Return the median seconds of a step; on a CPU it is measured in a process that starts as a worker does.

    Raises:
        UserError: the model cannot be compiled here.
    """
    from scalablevit.training.environment import call_in_cpu_worker
    from scalablevit.training.speed import cpu_step_s, median_step_s

    if device.type != "cpu":
        return median_step_s(stage, task, images, device)
    result = call_in_cpu_worker(cpu_step_s, stage.model_dump_json(), task.classes, images)
    if isinstance(result, tuple):
        what, where, fix = result
        raise UserError(what, where=where, fix=fix)
    return result


def _measure_decoding(stage: Stage, task: "Task", root: Path) -> float | None:
    """Return how many training samples a core decodes in a second here; None without the data or a measurement."""
    from scalablevit.data.sources.opening import open_source
    from scalablevit.training.speed import decoded_per_s

    if not (root / Path(stage.data.root).expanduser()).is_dir():
        return None
    return decoded_per_s(stage, task, open_source(stage.data, "train", root)) or None
