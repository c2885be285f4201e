"""Print the plan of a training before anything starts: all values that the data, the machine and defaults decide."""

import math
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

from scalablevit.config.commands import command_name
from scalablevit.config.packages import PLATFORM
from scalablevit.config.recipe import FIRST_STEPS
from scalablevit.config.root import tracking_uri
from scalablevit.config.schedule import largest_rate, learning_rate
from scalablevit.config.task_info import task_info
from scalablevit.inspection.statistics_table import statistics_rows, unknown_text
from scalablevit.pipeline.machine import machine_warnings
from scalablevit.pipeline.older_runs import older_runs
from scalablevit.pipeline.plan_cache import cached_facts
from scalablevit.pipeline.resolve import ResolvedStage, describe
from scalablevit.pipeline.time_estimate import TimeEstimate, estimate_time, least_seconds, long_warning
from scalablevit.run_files import RESULT, RUNS
from scalablevit.runs.console import format_duration, say_while_waiting
from scalablevit.runs.run_store import RunStore
from scalablevit.tasks.registry import task_kind
from scalablevit.text import format_table, paint
from scalablevit.tracking.connection import without_credentials
from scalablevit.tracking.notify_settings import load_settings

SHOWN_CLASSES = 4
"""Most classes in the table of statistics; the run's statistics.json has them all."""
MIN_LR_SHARE = 0.9
"""Least share of `optimizer.lr` that a schedule must reach; below it there is a warning."""

MIN_IMAGES_A_CLASS = 10
"""Training images divided by classes below which a start from random weights gets a warning."""
FINISHED = "none: this run has finished, and the stage is skipped"
"""The plan's time of a stage that need not run again."""
MIN_EMA_DECAY = 0.5
"""Least `training.ema_decay` without a warning."""
MAX_SGD_DECAY = 0.005
"""Largest `optimizer.weight_decay` of sgd without a warning: ten times what is usual for it."""
MAX_MIN_DELTA = 0.1
"""Least `training.early_stopping.min_delta` with a warning, where the metric is a fraction."""


def print_plan(recipe: str, stages: Sequence[ResolvedStage], root: Path) -> None:
    """Print the facts about all stages, and those that all stages share once.

    It imports torch to count parameters, unless an earlier plan has counted those of the same models.

    Args:
        recipe: name of the recipe.
        stages: in the recipe's order.
        root: the platform's root.

    Raises:
        UserError: a model cannot be built as the recipe says, or its batch norm would get single images.
    """
    print(f"plan of {recipe}: {len(stages)} stage{'s' * (len(stages) > 1)}", flush=True)
    times = {resolved.name: estimate_time(resolved, root) for resolved in stages}
    with say_while_waiting("plan", "the models' parameters to be counted"):
        models = {
            resolved.name: cached_facts(resolved.stage, resolved.classes, root, partial(model_facts, resolved))
            for resolved in stages
        }
    finished = {resolved.name for resolved in stages if (root / RUNS / resolved.run_name / RESULT).is_file()}
    facts = [
        {
            **plan_facts(recipe, resolved, root, models[resolved.name]),
            "time": FINISHED if resolved.name in finished else format_time(times[resolved.name]),
        }
        for resolved in stages
    ]
    shared = shared_facts(facts)
    if shared:
        _print_facts("all stages", shared)
    for resolved, own in zip(stages, facts, strict=True):
        _print_facts(f"stage {resolved.name}", {name: fact for name, fact in own.items() if name not in shared})
        if resolved.statistics is not None:
            # the row of images repeats the fact `data`
            heading, _, *rows = statistics_rows(resolved.statistics, SHOWN_CLASSES)
            for line in format_table([("statistics", *heading[1:]), *rows], rule=False).splitlines():
                print(f"  {line}", flush=True)
            if resolved.statistics.unknown:
                print(_line("not yet known", unknown_text(resolved.statistics)), flush=True)
        least_s = least_seconds(resolved, float(models[resolved.name]["macs_per_pixel"]))
        slow = [] if resolved.name in finished else long_warning(resolved.stage, times[resolved.name], least_s)
        for warning in [*resolved.warnings, *few_images_warning(resolved), *schedule_warnings(resolved), *slow]:
            print(paint(_line("warning", warning), "yellow"), flush=True)
        for note in older_runs(recipe, resolved, root):
            print(_line("note", note), flush=True)
    for warning in machine_warnings(stages):
        print("\n" + paint(f"warning: {warning}", "yellow"), flush=True)


def plan_facts(recipe: str, resolved: ResolvedStage, root: Path, model: Mapping[str, str]) -> dict[str, str]:
    """Return the facts about a stage by name; an empty text where there is nothing to print.

    Args:
        recipe: name of the recipe.
        resolved: the stage.
        root: the platform's root.
        model: what `model_facts` returned.
    """
    stage = resolved.stage
    described = describe(resolved)
    registered = stage.tracking.register_as or f"{recipe}-{resolved.name}"
    run_folder = RunStore.at(resolved.run_name, stage.cluster.storage, root).location
    return {
        **described,
        "run": f"{described['run']}, registered as {registered}",
        "computes": f"on {'GPU' if stage.cluster.gpus_per_worker else 'CPU'} in {stage.training.precision}, "
        f"{max(1, int(stage.cluster.cpus_per_worker))} thread(s) a worker",
        "model": model["model"],
        "GFLOPs": "multiply-accumulates of convolutions and linear layers" * ("GFLOPs" in model["model"]),
        "starts from": starts_from(resolved),
        "automatic": model["automatic"],
        "metrics": format_metric_steps(resolved),
        "checkpoints": format_checkpoints(resolved),
        "run folders": run_folder.rpartition("/")[0],
        "tracking": f"{without_credentials(tracking_uri(stage.tracking.uri, root))}, experiment "
        f"{stage.tracking.experiment}",
        "notifications": f"{', '.join(stage.tracking.notify)}; to {load_settings()}" if stage.tracking.notify else "",
    }


def model_facts(resolved: ResolvedStage) -> dict[str, str]:
    """Return what building a stage's model on the meta device shows; imports torch.

    Raises:
        UserError: as `print_plan`.
    """
    from scalablevit.pipeline.stage_model import backbone_macs_per_pixel, check_micro_batches, model_cost

    stage, classes = resolved.stage, resolved.classes
    check_micro_batches(resolved.name, stage, classes)
    return {
        "model": model_cost(resolved.name, stage, classes),
        "automatic": "; ".join(format_automatic(resolved)),
        "macs_per_pixel": f"{backbone_macs_per_pixel(resolved.name, stage, classes):.6g}",
    }


def shared_facts(facts: Sequence[Mapping[str, str]]) -> dict[str, str]:
    """Return the facts that are the same for all of several stages; empty for one stage."""
    first, *others = facts
    return (
        {name: fact for name, fact in first.items() if all(other.get(name) == fact for other in others)}
        if others
        else {}
    )


def _print_facts(heading: str, facts: Mapping[str, str]) -> None:
    print("\n" + paint(heading, "bold"), flush=True)
    for name, fact in facts.items():
        if fact:
            print(_line(name, fact), flush=True)


def _line(name: str, fact: str) -> str:
    return f"  {name:<14}{fact}"


def few_images_warning(resolved: ResolvedStage) -> list[str]:
    """Warn of random weights with too few images of a class to learn from."""
    samples, classes = resolved.train_samples, len(resolved.classes)
    if resolved.parents or resolved.init_weights is not None or samples >= MIN_IMAGES_A_CLASS * classes:
        return []
    return [
        f"{samples} training images are {samples / classes:.1f} for each of {classes} classes, too few for a model "
        "that starts from random weights: begin with trained ones by model.init (timm:<tag>, a file, or models:/...)"
    ]


def schedule_warnings(resolved: ResolvedStage) -> list[str]:
    """Return warnings about a batch, an average or a warm-up that is too large for the data or the training."""
    training, optimizer, length = resolved.stage.training, resolved.stage.optimizer, resolved.length
    warnings = []
    batch, samples = training.global_batch_size, resolved.train_samples
    if batch > samples:
        warnings.append(
            f"training.global_batch_size {batch} is more than the {samples} training images: a step takes each of them "
            f"{batch / samples:.3g} times, and lengths in epochs are rounded to whole steps"
        )
    largest, decay = largest_rate(optimizer, length), training.ema_decay
    if largest < MIN_LR_SHARE * optimizer.lr:
        warnings.append(
            f"the learning rate reaches {largest:.4g} at most, {100 * largest / optimizer.lr:.3g} % of optimizer.lr "
            f"({optimizer.lr:.4g}): the warm-up replaces the first {length.warmup} of the curve's {length.total} "
            "steps; set optimizer.schedule.warmup_prefix=true to start the curve after it, or shorten it"
        )
    warnings += [*_rise_and_decays(resolved), *_unusual_rules(resolved)]
    if decay is not None and not training.ema_warmup and 1 / (1 - decay) > length.total:
        warnings.append(
            f"training.ema_decay {decay:g} averages over {1 / (1 - decay):.0f} steps, and the training has "
            f"{length.total}: {100 * decay**length.total:.3g} % of the registered weights are those of the start; set "
            "training.ema_warmup=true, or a smaller ema_decay"
        )
    return warnings


def _rise_and_decays(resolved: ResolvedStage) -> list[str]:
    """Return warnings about a learning rate that rises above `optimizer.lr`, and about decays after the training."""
    optimizer, length = resolved.stage.optimizer, resolved.length
    schedule, warnings = optimizer.schedule, []
    largest, step = max((learning_rate(step, optimizer, length), step) for step in (0, length.total - 1))
    if largest > 1.001 * optimizer.lr:
        key = "min_lr" if step else "warmup_lr"
        warnings.append(
            f"the learning rate is largest at step {step} of {length.total}, {largest:.3g}, above optimizer.lr "
            f"({optimizer.lr:.4g}): optimizer.schedule.{key} {getattr(schedule, key):g} is larger; lower it"
        )
    start = length.warmup if schedule.warmup_prefix else 0
    pairs = zip(schedule.decay_epochs, length.decay_steps, strict=True)
    if late := [f"{epochs:g}" for epochs, steps in pairs if start + steps >= length.total]:
        counted = ", counted from the end of the warm-up," * bool(start)
        warnings.append(
            f"optimizer.schedule.decay_epochs {', '.join(late)}{counted} never come: the training ends after "
            f"{length.total} steps ({length.total / length.steps_per_epoch:.3g} epochs); leave them out or train longer"
        )
    return warnings


def _unusual_rules(resolved: ResolvedStage) -> list[str]:
    """Return warnings about values that have another meaning in other tools, or for another optimizer."""
    training, optimizer, length = resolved.stage.training, resolved.stage.optimizer, resolved.length
    warnings, decay, rule = [], training.ema_decay, training.early_stopping
    if decay is not None and decay < MIN_EMA_DECAY:
        warnings.append(
            f"training.ema_decay {decay:g} averages over {1 / (1 - decay):.2g} steps, so it is all but the plain "
            f"weights; some tools give 1 - decay, here {1 - decay:g}"
        )
    if optimizer.name == "sgd" and optimizer.weight_decay > MAX_SGD_DECAY:
        warnings.append(
            f"optimizer.weight_decay {optimizer.weight_decay:g} is strong for sgd, where 1e-4 is usual; 0.05 is the "
            "default for adamw"
        )
    evaluations = math.ceil(length.total / length.evaluate_every)
    if rule is not None and rule.patience >= evaluations:
        warnings.append(
            f"training.early_stopping.patience {rule.patience} never ends this training: it has {evaluations} "
            "evaluations, and the first is a gain"
        )
    info = task_info(resolved.stage.task.kind)
    if rule is not None and rule.min_delta >= MAX_MIN_DELTA and info.module.startswith(PLATFORM):
        warnings.append(
            f"training.early_stopping.min_delta {rule.min_delta:g} is {100 * rule.min_delta:g} points of "
            f"{info.best_metric}, a fraction: smaller gains count as none; 0.005 is half a point"
        )
    return warnings


def starts_from(resolved: ResolvedStage) -> str:
    """Return the weights of the first step, in words; a run that continues starts from its own checkpoint instead."""
    if resolved.parents:
        return f"the best weights of stage {resolved.parents[0]}"
    if resolved.init_weights is not None:
        return f"{resolved.init_weights.location} (sha256 {resolved.init_weights.sha256[:12]})"
    return f"random weights (seed {resolved.stage.training.seed})"


def format_automatic(resolved: ResolvedStage) -> list[str]:
    """Return the values that the recipe leaves open and that are decided for it, as texts."""
    stage = resolved.stage
    values = []
    if stage.model.drop_path_rate is None:
        values.append(f"model.drop_path_rate: {_drop_path(resolved):g}, the architecture's own")
    return values + [f"{key}: {value}" for key, value in task_kind(stage.task.kind).automatic_values(stage).items()]


def format_time(estimate: TimeEstimate | None) -> str:
    """Return how long a stage will take, as text."""
    if estimate is None:
        return f"not measured on this machine; {command_name('plan')} --measure predicts it"
    return f"about {format_duration(estimate.seconds)}, as {estimate.run} ran on this machine"


def format_metric_steps(resolved: ResolvedStage) -> str:
    """Return the steps at which metrics of the training are logged, as text."""
    first = ", ".join(str(step) for step in FIRST_STEPS if step <= resolved.length.total)
    return f"at steps {first} and every {resolved.stage.training.log_every_steps}"


def format_checkpoints(resolved: ResolvedStage) -> str:
    """Return when the model is saved, and which checkpoints are kept, as text."""
    every, keep = resolved.length.checkpoint_every, resolved.stage.training.keep
    also = f" and every {every} steps" if every else ""
    return f"after each evaluation{also}; the last {keep.last} and the best {keep.best} are kept"


def _drop_path(resolved: ResolvedStage) -> float:
    """Return the largest drop-path rate of the model's blocks; the model is built on the meta device."""
    import torch

    from scalablevit.tasks.registry import build_task

    with torch.device("meta"):
        model = build_task(resolved.stage, resolved.classes).build_model()
    return max((float(getattr(module, "drop_prob", 0.0) or 0.0) for module in model.modules()), default=0.0)
