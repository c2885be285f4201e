"""The loader: samples to batches, in this process or in others, and batches to the device."""

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
    DetectionEvalBatch,
    DetectionTrainBatch,
    LabelBatch,
    MaskBatch,
    map_tensors,
    named_tensors,
)
from scalablevit.data.dataset import Bad, Item, SampleDataset
from scalablevit.data.sampler import Key

Collate = Callable[[list[Item | Bad]], Batch]
"""Makes a batch of samples, of which some may be bad."""


def collate_classification(items: list[Item | Bad]) -> LabelBatch:
    """Stack images (N, H, W, 3) and labels (N,), or (N, classes) of 0 and 1 where images have several."""
    good, common = _split(items)
    images = _stack([item["image"] for item in good], (0, 0, 0, 3))
    labels = torch.from_numpy(np.array([item["label"] for item in good], np.int64))
    return LabelBatch(images=images, labels=labels, **common)


def collate_segmentation_train(items: list[Item | Bad]) -> MaskBatch:
    """Stack crops (N, H, W, 3) and their masks (N, H, W)."""
    good, common = _split(items)
    images = _stack([item["image"] for item in good], (0, 0, 0, 3))
    return MaskBatch(images=images, masks=_stack([item["mask"] for item in good], (0, 0, 0)), **common)


def collate_segmentation_eval(items: list[Item | Bad]) -> MaskBatch:
    """List images (H, W, 3) and masks, which have different sizes."""
    good, common = _split(items)
    return MaskBatch(images=_tensors(good, "image"), masks=_tensors(good, "mask"), **common)


def collate_detection_train(items: list[Item | Bad]) -> DetectionTrainBatch:
    """List images (H, W, 3), which have different sizes, and their boxes, labels and masks."""
    good, common = _split(items)
    return DetectionTrainBatch(
        images=_tensors(good, "image"),
        boxes=_tensors(good, "boxes"),
        labels=_tensors(good, "labels"),
        masks=_tensors(good, "masks") if any("masks" in item for item in good) else None,
        **common,
    )


def collate_detection_eval(items: list[Item | Bad]) -> DetectionEvalBatch:
    """List images (H, W, 3) and their annotated objects."""
    good, common = _split(items)
    return DetectionEvalBatch(images=_tensors(good, "image"), instances=[item["instances"] for item in good], **common)


def build_loader(
    dataset: SampleDataset,
    batches: Iterable[list[Key]],
    collate: Collate,
    *,
    workers: int,
    device: torch.device,
) -> "DataLoader[Item | Bad]":
    """Return a DataLoader over `batches` (`TrainBatches` or `eval_batches`).

    Args:
        dataset: reads samples; they do not depend on the number of processes.
        batches: the keys of each batch, in order.
        collate: of the task.
        workers: number of loader processes; 0: load in this process.
        device: of training; for CUDA the batches are in pinned memory.
    """
    context = None
    if workers:
        # not fork: it would copy locks that this process's CUDA, Ray and MLflow threads hold at that moment, and leave
        # hotcoco waiting for threads that were not copied
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
        # its own generator, or each pass would draw from the global one
        generator=torch.Generator().manual_seed(0),
    )


def to_device(batch: AnyBatch, device: torch.device) -> AnyBatch:
    """Return the batch with its tensors, also those in lists, on a device; the copies are asynchronous."""
    return map_tensors(batch, lambda tensor: tensor.to(device, non_blocking=True))


def prefetch(batches: Iterable[Batch], device: torch.device) -> Iterator[Batch]:
    """Yield the batches on the device; on CUDA the next one is copied while the caller works on the current one.

    Raises:
        UserError: the `collate` of a user's own task returns something other than a `Batch`.
    """
    if device.type != "cuda":
        for batch in batches:
            yield to_device(_check_batch(batch), device)
        return
    copies = torch.cuda.Stream(device)
    current: Batch | None = None
    for batch in batches:
        with torch.cuda.stream(copies):
            following = to_device(_check_batch(batch), device)
        if current is not None:
            yield current
        torch.cuda.current_stream(device).wait_stream(copies)
        _keep_until_used(following, device)
        current = following
    if current is not None:
        yield current


def _check_batch(batch: object) -> Batch:
    """Return the batch, or refuse what is none."""
    if not isinstance(batch, Batch):
        raise UserError(
            f"the task's `collate` returns a {type(batch).__name__}, not a Batch",
            where="task",
            fix="return a class of scalablevit.data.batch, such as LabelBatch, or one derived from Batch",
        )
    return batch


def _keep_until_used(batch: Batch, device: torch.device) -> None:
    """Record for the allocator that the current stream reads memory that the copying stream allocated."""
    for _, tensor in named_tensors(batch):
        if tensor.is_cuda:
            tensor.record_stream(torch.cuda.current_stream(device))


class _Common(TypedDict):
    """Fields of every batch but the images."""

    indices: torch.Tensor
    samples: int
    bad: list[tuple[str, str]]
    changed: list[str]


def _split(items: list[Item | Bad]) -> tuple[list[Item], _Common]:
    good = [item for item in items if not isinstance(item, Bad)]
    bad = [item for item in items if isinstance(item, Bad)]
    return good, {
        "indices": torch.tensor([item["index"] for item in good], dtype=torch.int64),
        "samples": len(good),
        "bad": [(item.path, item.reason) for item in bad],
        "changed": [item.path for item in bad if item.changed],
    }


def _tensors(items: list[Item], name: Literal["image", "mask", "boxes", "labels", "masks"]) -> list[torch.Tensor]:
    return [torch.from_numpy(item[name]) for item in items]


def _stack(arrays: list["np.ndarray[Any, np.dtype[np.uint8]]"], empty: tuple[int, ...]) -> torch.Tensor:
    return torch.from_numpy(np.stack(arrays)) if arrays else torch.empty(empty, dtype=torch.uint8)


def _one_thread(_worker: int) -> None:
    """Turn off OpenCV's own threads: loader processes share the CPUs that a rank reserved."""
    cv2.setNumThreads(0)
