"""Distributed evaluation: every validation sample exactly once, metrics summed over the ranks."""

from collections.abc import Iterable, Sequence

import torch
import torch.distributed as dist
from torch import nn

from scalablevit.config.extensions import RegisteredMetric
from scalablevit.data.batch import Batch
from scalablevit.tasks.capabilities import Augmentation
from scalablevit.tasks.task import Task
from scalablevit.training.collectives import end_with_changed_files, world_size


def broadcast_buffers(model: nn.Module) -> None:
    """Give every rank the batch statistics of rank 0, whose state is the one that is saved."""
    if world_size() > 1:
        for buffer in model.buffers():
            dist.broadcast(buffer, src=0)


@torch.no_grad()
def evaluate(
    task: Task,
    model: nn.Module,
    batches: Iterable[Batch],
    autocast: torch.autocast,
    *,
    augmentation: Augmentation | None = None,
    registered: Sequence[RegisteredMetric] = (),
) -> dict[str, float]:
    """Metrics of `model` on this rank's share of the validation split, summed over all ranks.

    The model's mode is put back afterwards. Every rank calls it, also one whose share is empty. Samples that could not
    be decoded are left out, and counted as `val/bad_samples`.

    Args:
        task: makes batches and predictions, and has its own metric.
        model: on its device.
        batches: of this rank's share.
        autocast: entered for each prediction.
        augmentation: the recipe's test-time augmentation; None: without.
        registered: users' metrics besides the task's own.

    Raises:
        UserError: files have changed since the run began.
        ValueError: a user's metric gives values under other names than its own.
    """
    was_training = model.training
    model.eval()
    broadcast_buffers(model)
    metric, others = task.metric(), [each.build(task.classes) for each in registered]
    bad, changed = 0, set[str]()
    predict = task.predict if augmentation is None else augmentation.predict
    # Autocast forgets its casts of the weights when the outermost region ends: with this one around they are made once.
    with torch.autocast(autocast.device, enabled=False):
        for batch in batches:
            bad += len(batch.bad)
            changed.update(batch.changed)
            if batch.samples == 0:
                continue
            prepared = task.prepare(batch, "val", ())
            with autocast:
                predictions = predict(model, prepared)
            for each in (metric, *others):
                each.update(predictions, prepared)
    for each in (metric, *others):
        each.synchronize()
    model.train(was_training)
    totals = torch.tensor([bad, len(changed)], dtype=torch.int64, device=next(model.parameters()).device)
    if world_size() > 1:
        dist.all_reduce(totals)
    total_bad, total_changed = totals.tolist()
    if total_changed:
        end_with_changed_files(changed)
    found = metric.compute()
    for known, each in zip(registered, others, strict=True):
        found |= _own_value(known, each.compute())
    return {**found, "val/bad_samples": float(total_bad)}


def _own_value(metric: RegisteredMetric, computed: dict[str, float]) -> dict[str, float]:
    """Return what a user's metric computes, which must not take the place of other metrics."""
    name = metric.info.reported_as
    if set(computed) != {name}:
        raise ValueError(f"metric {name} of {metric.info.package} computes {', '.join(sorted(computed)) or 'nothing'}")
    return {name: float(computed[name])}
