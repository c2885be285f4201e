"""Distributed evaluation: every validation sample exactly once, one set of metrics over the samples of all ranks."""

from collections.abc import Iterable, Sequence

import torch
import torch.distributed as dist
from torch import nn

from scalablevit.config.commands import command_name
from scalablevit.config.errors import UserError
from scalablevit.config.extensions import RegisteredMetric
from scalablevit.data.batch import Batch
from scalablevit.tasks.capabilities import Augmentation
from scalablevit.tasks.task import Task
from scalablevit.training.collectives import end_with_changed_files, world_size


def broadcast_buffers(model: nn.Module) -> None:
    """Broadcast rank 0's buffers (BatchNorm running statistics), the ones that checkpoints hold."""
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
    most_bad: float,
    test_time_augmentation: Augmentation | None = None,
    registered_metrics: Sequence[RegisteredMetric] = (),
) -> dict[str, float]:
    """Return the metrics of a model over the validation samples of all ranks, by name (`val/...`); equal on every rank.

    Their units are those of the metrics' `compute`: fractions of 0 to 1, numbers of samples, and the loss.

    The model's mode is restored afterwards. Every rank must call it, even if its share is empty. Samples that could not
    be decoded are skipped, and counted as `val/bad_samples`.

    Args:
        task: prepares batches, predicts, and has a metric.
        model: the model, on its device.
        batches: the batches of this rank's share.
        autocast: context entered for each prediction.
        most_bad: most samples, of all ranks together, that may be skipped.
        test_time_augmentation: the recipe's test-time augmentation; None: without.
        registered_metrics: users' metrics, in addition to the task's metric.

    Raises:
        UserError: files have changed since the run began, too many samples could not be decoded, or a metric cannot be
            computed, as mIoU where no pixel is labelled.
        ValueError: a user's metric returns values under other names than its own.
    """
    was_training = model.training
    model.eval()
    broadcast_buffers(model)
    metric, user_metrics = task.metric(), [info.build(task.classes) for info in registered_metrics]
    good, bad, changed = 0, 0, set[str]()
    predict = task.predict if test_time_augmentation is None else test_time_augmentation.predict
    # Autocast drops its cached casts of the weights when the outermost region ends: inside this one they are made once.
    with torch.autocast(autocast.device, enabled=False):
        for batch in batches:
            good, bad = good + batch.samples, bad + len(batch.bad)
            changed.update(batch.changed)
            if batch.samples == 0:
                continue
            prepared = task.prepare(batch, "val", ())
            with autocast:
                predictions = predict(model, prepared)
            for one in (metric, *user_metrics):
                one.update(predictions, prepared)
    for one in (metric, *user_metrics):
        one.synchronize()
    model.train(was_training)
    totals = torch.tensor([good, bad, len(changed)], dtype=torch.int64, device=next(model.parameters()).device)
    if world_size() > 1:
        dist.all_reduce(totals)
    total_good, total_bad, total_changed = totals.tolist()
    if total_changed:
        end_with_changed_files(changed)
    refuse_bad(total_bad, total_good + total_bad, most_bad)
    metrics = metric.compute()
    for info, user_metric in zip(registered_metrics, user_metrics, strict=True):
        metrics |= _own_value(info, user_metric.compute())
    return {**metrics, "val/bad_samples": float(total_bad)}


def refuse_bad(bad: int, samples: int, most: float) -> None:
    """Refuse to state a metric of a validation split of which too much is left out.

    Args:
        bad: samples that could not be decoded.
        samples: those and the others.
        most: most samples that may be left out.

    Raises:
        UserError: there are more, or no others.
    """
    if bad == samples:
        what, otherwise = f"none of the {samples} validation samples could be decoded", ""
    elif bad > most:
        what = f"{bad} of {samples} validation samples could not be decoded"
        what, otherwise = f"{what}; data.max_bad_fraction allows {most:g}", ", or raise data.max_bad_fraction"
    else:
        return
    fix = f"name the bad ones with {command_name('check-data')}, and fix or remove them{otherwise}"
    raise UserError(what, where="data.val", fix=fix)


def _own_value(metric: RegisteredMetric, computed: dict[str, float]) -> dict[str, float]:
    """Return what a user's metric computes, which must not overwrite other metrics."""
    name = metric.info.reported_as
    if set(computed) != {name}:
        raise ValueError(f"metric {name} of {metric.info.package} computes {', '.join(sorted(computed)) or 'nothing'}")
    return {name: float(computed[name])}
