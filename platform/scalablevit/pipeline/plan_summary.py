"""The summary of each stage printed before anything starts: every automatic value made concrete, and all places."""

from collections.abc import Sequence
from pathlib import Path

from scalablevit.config.recipe import FIRST_STEPS
from scalablevit.config.root import tracking_uri
from scalablevit.config.schedule import largest_rate
from scalablevit.data.statistics_table import table, unknown_text
from scalablevit.pipeline.machine import machine_warnings
from scalablevit.pipeline.older_runs import older_runs
from scalablevit.pipeline.resolve import ResolvedStage, check_micro_batches, describe, model_cost
from scalablevit.runs.run_store import RunStore
from scalablevit.tasks.registry import task_kind
from scalablevit.text import format_table
from scalablevit.tracking.connection import without_credentials

SHORT = 6
"""Classes in the table of statistics."""
LEAST_SHARE = 0.9
"""Of `optimizer.lr`: a schedule whose largest rate is below it gets a warning."""


def print_plan(recipe: str, stages: Sequence[ResolvedStage], root: Path) -> None:
    """Print the facts of all stages; imports torch, to count parameters and FLOPs.

    Raises:
        UserError: a model cannot be built as the recipe says, or its batch norm gets single images.
    """
    for resolved in stages:
        check_micro_batches(resolved.name, resolved.stage, resolved.classes)
        print(f"\nstage {resolved.name}", flush=True)
        facts = {
            **describe(resolved),
            "model": model_cost(resolved.name, resolved.stage, resolved.classes),
            "starts from": starts_from(resolved),
            "automatic": "; ".join(automatic(recipe, resolved)),
            "schedule": format_schedule(resolved),
            "run folder": RunStore.at(resolved.run_name, resolved.stage.cluster.storage, root).location,
            "tracking": f"{without_credentials(tracking_uri(resolved.stage.tracking.uri, root))}, experiment "
            f"{resolved.stage.tracking.experiment}",
        }
        for name, fact in facts.items():
            print(f"  {name:<14}{fact}", flush=True)
        if resolved.statistics is not None:
            print("  statistics", flush=True)
            for line in format_table(table(resolved.statistics, SHORT), rule=False).splitlines():
                print(f"    {line}", flush=True)
            if resolved.statistics.unknown:
                print(f"  {'not yet known':<14}{unknown_text(resolved.statistics)}", flush=True)
        for warning in [*resolved.warnings, *schedule_warnings(resolved)]:
            print(f"  {'warning':<14}{warning}", flush=True)
        for note in older_runs(recipe, resolved, root):
            print(f"  {'note':<14}{note}", flush=True)
    for warning in machine_warnings(stages):
        print(f"\nwarning: {warning}", flush=True)


def schedule_warnings(resolved: ResolvedStage) -> list[str]:
    """Name a batch, an average or a warm-up that is too large for the data or the training."""
    training, optimizer, length = resolved.stage.training, resolved.stage.optimizer, resolved.length
    found = []
    batch, samples = training.global_batch_size, resolved.train_samples
    if batch > samples:
        found.append(
            f"training.global_batch_size {batch} is more than the {samples} training images: a step takes each of them "
            f"{batch / samples:.3g} times, and lengths in epochs are rounded to whole steps"
        )
    largest, decay = largest_rate(optimizer, length), training.ema_decay
    if largest < LEAST_SHARE * optimizer.lr:
        found.append(
            f"the learning rate reaches {largest:.4g} at most, {100 * largest / optimizer.lr:.3g} % of optimizer.lr "
            f"({optimizer.lr:.4g}): the warm-up replaces the first {length.warmup} of the curve's {length.total} "
            "steps; set optimizer.schedule.warmup_prefix=true to start the curve after it, or shorten it"
        )
    if decay is not None and not training.ema_warmup and 1 / (1 - decay) > length.total:
        found.append(
            f"training.ema_decay {decay:g} averages over {1 / (1 - decay):.0f} steps, and the training has "
            f"{length.total}: {100 * decay**length.total:.3g} % of the registered weights are those of the start; set "
            "training.ema_warmup=true, or a smaller ema_decay"
        )
    return found


def starts_from(resolved: ResolvedStage) -> str:
    """Return the weights of the first step, unless the run goes on from a checkpoint of its own."""
    if resolved.parents:
        return f"the best weights of stage {resolved.parents[0]}"
    if resolved.initial is not None:
        return f"{resolved.initial.location} (sha256 {resolved.initial.sha256[:12]})"
    return f"random weights (seed {resolved.stage.training.seed})"


def automatic(recipe: str, resolved: ResolvedStage) -> list[str]:
    """Return what the recipe leaves open, as it will be."""
    stage = resolved.stage
    made = []
    if stage.model.drop_path_rate is None:
        made.append(f"model.drop_path_rate: {_drop_path(resolved):g}, the architecture's own")
    made += [f"{key}: {value}" for key, value in task_kind(stage.task.kind).automatic_values(stage).items()]
    if stage.tracking.register_as is None:
        made.append(f"tracking.register_as: {recipe}-{resolved.name}")
    made.append(f"computes on {'GPU' if stage.cluster.gpus_per_worker else 'CPU'} in {stage.training.precision}, "
                f"{max(1, int(stage.cluster.cpus_per_worker))} thread(s) a worker")  # fmt: skip
    switched_off = {
        "optimizer.layer_decay": stage.optimizer.layer_decay,
        "optimizer.clip_norm": stage.optimizer.clip_norm,
        "training.ema_decay": stage.training.ema_decay,
        "training.early_stopping": stage.training.early_stopping,
    }
    off = [name for name, value in switched_off.items() if value is None]
    return [*made, *([f"off: {', '.join(off)}"] if off else [])]


def format_schedule(resolved: ResolvedStage) -> str:
    """Return when metrics are logged, when the model is evaluated and saved, and which checkpoints stay."""
    training, length = resolved.stage.training, resolved.length
    first = ", ".join(str(step) for step in FIRST_STEPS if step <= length.total)
    every = f" and every {length.checkpoint_every} steps" if length.checkpoint_every else ""
    return (
        f"metrics at steps {first} and every {training.log_every_steps}; evaluation every {length.evaluate_every} "
        f"steps and at the end; checkpoint after each evaluation{every}, the last {training.keep.last} and the best "
        f"{training.keep.best} are kept"
    )


def _drop_path(resolved: ResolvedStage) -> float:
    """The largest rate of the model's blocks; built without memory, as for counting."""
    import torch

    from scalablevit.tasks.registry import build_task

    with torch.device("meta"):
        model = build_task(resolved.stage, resolved.classes).build_model()
    return max((float(getattr(module, "drop_prob", 0.0) or 0.0) for module in model.modules()), default=0.0)
