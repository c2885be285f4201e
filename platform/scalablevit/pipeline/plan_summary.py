"""The summary of each stage printed before anything starts: every automatic value made concrete, and all places."""

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

from scalablevit.config.recipe import FIRST_STEPS
from scalablevit.config.root import tracking_uri
from scalablevit.config.schedule import largest_rate
from scalablevit.inspection.statistics_table import table, unknown_text
from scalablevit.pipeline.machine import machine_warnings
from scalablevit.pipeline.older_runs import older_runs
from scalablevit.pipeline.plan_cache import cached_facts
from scalablevit.pipeline.resolve import ResolvedStage, check_micro_batches, describe, model_cost
from scalablevit.pipeline.time_estimate import TimeEstimate, estimate_time, long_warning
from scalablevit.runs.console import format_duration
from scalablevit.runs.run_store import RunStore
from scalablevit.tasks.registry import task_kind
from scalablevit.text import format_table, paint
from scalablevit.tracking.connection import without_credentials

SHORT = 4
"""Classes in the table of statistics; the run's statistics.json has them all."""
LEAST_SHARE = 0.9
"""Of `optimizer.lr`: a schedule whose largest rate is below it gets a warning."""


def print_plan(recipe: str, stages: Sequence[ResolvedStage], root: Path) -> None:
    """Print the facts of all stages, what is the same for all of them once.

    Imports torch to count parameters, unless an earlier plan has counted those of the same models.

    Raises:
        UserError: a model cannot be built as the recipe says, or its batch norm gets single images.
    """
    print(f"\nplan of {recipe}: {len(stages)} stage{'s' * (len(stages) > 1)}", flush=True)
    times = {resolved.name: estimate_time(resolved, root) for resolved in stages}
    facts = [{**plan_facts(recipe, each, root), "time": format_time(times[each.name])} for each in stages]
    shared = shared_facts(facts)
    if shared:
        _print_facts("all stages", shared)
    for resolved, own in zip(stages, facts, strict=True):
        _print_facts(f"stage {resolved.name}", {name: fact for name, fact in own.items() if name not in shared})
        if resolved.statistics is not None:
            heading, _, *rows = table(resolved.statistics, SHORT)  # without the images, which the data's fact counts
            for line in format_table([("statistics", *heading[1:]), *rows], rule=False).splitlines():
                print(f"  {line}", flush=True)
            if resolved.statistics.unknown:
                print(_line("not yet known", unknown_text(resolved.statistics)), flush=True)
        slow = long_warning(resolved.stage, times[resolved.name])
        for warning in [*resolved.warnings, *schedule_warnings(resolved), *slow]:
            print(paint(_line("warning", warning), "yellow"), flush=True)
        for note in older_runs(recipe, resolved, root):
            print(_line("note", note), flush=True)
    for warning in machine_warnings(stages):
        print("\n" + paint(f"warning: {warning}", "yellow"), flush=True)


def plan_facts(recipe: str, resolved: ResolvedStage, root: Path) -> dict[str, str]:
    """Return the facts of a stage by name; an empty text where there is nothing to say."""
    stage = resolved.stage
    described = describe(resolved)
    registered = stage.tracking.register_as or f"{recipe}-{resolved.name}"
    of_model = cached_facts(resolved, root, partial(_model_facts, resolved))
    run_folder = RunStore.at(resolved.run_name, stage.cluster.storage, root).location
    return {
        **described,
        "run": f"{described['run']}, registered as {registered}",
        "computes": f"on {'GPU' if stage.cluster.gpus_per_worker else 'CPU'} in {stage.training.precision}, "
        f"{max(1, int(stage.cluster.cpus_per_worker))} thread(s) a worker",
        "model": of_model["model"],
        "GFLOPs": "multiply-accumulates of convolutions and linear layers" * ("GFLOPs" in of_model["model"]),
        "starts from": starts_from(resolved),
        "automatic": of_model["automatic"],
        "metrics": format_metric_steps(resolved),
        "checkpoints": format_checkpoints(resolved),
        "run folders": run_folder.rpartition("/")[0],
        "tracking": f"{without_credentials(tracking_uri(stage.tracking.uri, root))}, experiment "
        f"{stage.tracking.experiment}",
    }


def _model_facts(resolved: ResolvedStage) -> dict[str, str]:
    check_micro_batches(resolved.name, resolved.stage, resolved.classes)
    cost = model_cost(resolved.name, resolved.stage, resolved.classes)
    return {"model": cost, "automatic": "; ".join(automatic(resolved))}


def shared_facts(facts: Sequence[Mapping[str, str]]) -> dict[str, str]:
    """Return the facts that are the same for all of several stages."""
    first, *others = facts
    return (
        {name: fact for name, fact in first.items() if all(each.get(name) == fact for each in others)} if others else {}
    )


def _print_facts(heading: str, facts: Mapping[str, str]) -> None:
    print("\n" + paint(heading, "bold"), flush=True)
    for name, fact in facts.items():
        if fact:
            print(_line(name, fact), flush=True)


def _line(name: str, fact: str) -> str:
    return f"  {name:<14}{fact}"


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


def automatic(resolved: ResolvedStage) -> list[str]:
    """Return what the recipe leaves open, as it will be."""
    stage = resolved.stage
    made = []
    if stage.model.drop_path_rate is None:
        made.append(f"model.drop_path_rate: {_drop_path(resolved):g}, the architecture's own")
    return made + [f"{key}: {value}" for key, value in task_kind(stage.task.kind).automatic_values(stage).items()]


def format_time(estimate: TimeEstimate | None) -> str:
    """Return how long a stage will take, as far as that is known."""
    if estimate is None:
        return "not measured on this machine"
    return f"about {format_duration(estimate.seconds)}, as {estimate.run} ran on this machine"


def format_metric_steps(resolved: ResolvedStage) -> str:
    """Return when metrics of the training are logged."""
    first = ", ".join(str(step) for step in FIRST_STEPS if step <= resolved.length.total)
    return f"at steps {first} and every {resolved.stage.training.log_every_steps}"


def format_checkpoints(resolved: ResolvedStage) -> str:
    """Return when the model is saved, and which checkpoints stay."""
    every, keep = resolved.length.checkpoint_every, resolved.stage.training.keep
    also = f" and every {every} steps" if every else ""
    return f"after each evaluation{also}; the last {keep.last} and the best {keep.best} are kept"


def _drop_path(resolved: ResolvedStage) -> float:
    """The largest rate of the model's blocks; built without memory, as for counting."""
    import torch

    from scalablevit.tasks.registry import build_task

    with torch.device("meta"):
        model = build_task(resolved.stage, resolved.classes).build_model()
    return max((float(getattr(module, "drop_prob", 0.0) or 0.0) for module in model.modules()), default=0.0)
