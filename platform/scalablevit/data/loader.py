"""Samples to batches, in this process or others, and batches to the device."""

import multiprocessing
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Literal, TypedDict

import cv2
import numpy as np
import torch
from torch.utils.data import DataLoader

from scalablevit.config.errors import UserError
from scalablevit.data.batch import (
    AnyBatch,
    Batch,
    BoxBatch,
    InstanceBatch,
    LabelBatch,
    MaskBatch,
    map_tensors,
    named_tensors,
)
from scalablevit.data.dataset import Bad, Item, SampleDataset
from scalablevit.data.sampler import Key

Collate = Callable[[list[Item | Bad]], Batch]


def collate_classification(items: list[Item | Bad]) -> LabelBatch:
    """Stack images and labels; those of images with several are rows of 0 and 1."""
    good, common = _split(items)
    images = _stack([item["image"] for item in good], (0, 0, 0, 3))
    labels = torch.from_numpy(np.array([item["label"] for item in good], np.int64))
    return LabelBatch(image=images, label=labels, **common)


def collate_segmentation_train(items: list[Item | Bad]) -> MaskBatch:
    """Stack crops and their labels."""
    good, common = _split(items)
    images = _stack([item["image"] for item in good], (0, 0, 0, 3))
    return MaskBatch(image=images, mask=_stack([item["mask"] for item in good], (0, 0, 0)), **common)


def collate_segmentation_eval(items: list[Item | Bad]) -> MaskBatch:
    """Keep images and masks apart: each has its own size."""
    good, common = _split(items)
    return MaskBatch(image=_listed(good, "image"), mask=_listed(good, "mask"), **common)


def collate_detection_train(items: list[Item | Bad]) -> BoxBatch:
    """Lists of images, boxes, labels and masks: each image has its own size."""
    good, common = _split(items)
    return BoxBatch(
        image=_listed(good, "image"),
        boxes=_listed(good, "boxes"),
        labels=_listed(good, "labels"),
        masks=_listed(good, "masks") if any("masks" in item for item in good) else None,
        **common,
    )


def collate_detection_eval(items: list[Item | Bad]) -> InstanceBatch:
    """Lists of images and of what they show."""
    good, common = _split(items)
    return InstanceBatch(image=_listed(good, "image"), instances=[item["instances"] for item in good], **common)


def build_loader(
    dataset: SampleDataset,
    batches: Iterable[list[Key]],
    collate: Collate,
    *,
    workers: int,
    device: torch.device,
) -> "DataLoader[Item | Bad]":
    """A DataLoader over `batches` (`TrainBatches` or `eval_batches`).

    Args:
        dataset: reads samples; what it returns does not depend on the number of processes.
        batches: the keys of each batch, in order.
        collate: one of this module's.
        workers: loading processes; 0: in this one.
        device: where batches go; CUDA takes them from pinned memory.
    """
    context = None
    if workers:
        # Not fork: it would copy the locks of this process's CUDA, Ray and MLflow threads as they happen to stand.
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(["albumentations", "torch.utils.data"])  # imported once, not in each process
    else:
        _one_thread(0)
    return DataLoader(
        dataset,
        batch_sampler=batches,
        collate_fn=collate,
        num_workers=workers,
        multiprocessing_context=context,
        worker_init_fn=_one_thread if workers else None,
        pin_memory=device.type == "cuda",
        # Its own generator, or each pass would draw from the global one.
        generator=torch.Generator().manual_seed(0),
    )


def to_device(batch: AnyBatch, device: torch.device) -> AnyBatch:
    """Copy the tensors of a batch, and those in its lists, without waiting."""
    return map_tensors(batch, lambda tensor: tensor.to(device, non_blocking=True))


def prefetch(batches: Iterable[Batch], device: torch.device) -> Iterator[Batch]:
    """Batches on the device; on CUDA the next one is copied while the current one is worked on.

    Raises:
        UserError: a task of the user's own collates to something else than a `Batch`.
    """
    if device.type != "cuda":
        for batch in batches:
            yield to_device(_checked(batch), device)
        return
    copies = torch.cuda.Stream(device)
    waiting: Batch | None = None
    for batch in batches:
        with torch.cuda.stream(copies):
            coming = to_device(_checked(batch), device)
        if waiting is not None:
            yield waiting
        torch.cuda.current_stream(device).wait_stream(copies)
        _keep_until_used(coming, device)
        waiting = coming
    if waiting is not None:
        yield waiting


def _checked(batch: object) -> Batch:
    """Return a batch that is one."""
    if not isinstance(batch, Batch):
        raise UserError(
            f"the task's `collate` returns a {type(batch).__name__}, not a Batch",
            where="task",
            fix="return a class of scalablevit.data.batch, such as LabelBatch, or one derived from Batch",
        )
    return batch


def _keep_until_used(batch: Batch, device: torch.device) -> None:
    """Tell the allocator that the current stream reads memory that the copying stream allocated."""
    for _, tensor in named_tensors(batch):
        if tensor.is_cuda:
            tensor.record_stream(torch.cuda.current_stream(device))


class _Common(TypedDict):
    """Fields of every batch but the images."""

    index: torch.Tensor
    samples: int
    bad: list[tuple[str, str]]
    changed: list[str]


def _split(items: list[Item | Bad]) -> tuple[list[Item], _Common]:
    good = [item for item in items if not isinstance(item, Bad)]
    bad = [item for item in items if isinstance(item, Bad)]
    return good, {
        "index": torch.tensor([item["index"] for item in good], dtype=torch.int64),
        "samples": len(good),
        "bad": [(item.path, item.reason) for item in bad],
        "changed": [item.path for item in bad if item.changed],
    }


def _listed(items: list[Item], name: Literal["image", "mask", "boxes", "labels", "masks"]) -> list[torch.Tensor]:
    return [torch.from_numpy(item[name]) for item in items]


def _stack(arrays: list["np.ndarray[Any, np.dtype[np.uint8]]"], empty: tuple[int, ...]) -> torch.Tensor:
    return torch.from_numpy(np.stack(arrays)) if arrays else torch.empty(empty, dtype=torch.uint8)


def _one_thread(_worker: int) -> None:
    """Loading processes share the CPUs that a rank reserved: OpenCV's own threads would only compete for them."""
    cv2.setNumThreads(0)
