"""Samples to batches, in this process or others, and batches to the device."""

import multiprocessing
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import cv2
import numpy as np
import torch
from torch.utils.data import DataLoader

from scalablevit.data.dataset import Bad, Item, SampleDataset
from scalablevit.data.sampler import Key

Batch = dict[str, Any]
"""What the loop passes to the task.

- "image": uint8 (samples, height, width, 3), or in the evaluation of segmentation a list of (height, width, 3).
- "label": int64 (samples,), for users' own tasks perhaps (samples, classes), or "mask": uint8 (samples, height, width),
  in evaluation a list of (height, width).
- for detection "image" is a list of (height, width, 3); in training with "boxes", "labels" and perhaps "masks", lists
  of float32 (n, 4), int64 (n,) and uint8 (n, height, width); in evaluation with "instances", a list of `Instances`.
- "index": int64 (samples,), numbers in the source.
- "samples": number of good samples; with 0 the stacked tensors have size 0 in every dimension but the channels.
- "bad": [(path, reason), ...] of the samples left out.
- "changed": of these, the paths of files that are not those that the run began with.
"""

Collate = Callable[[list[Item | Bad]], Batch]


def collate_classification(items: list[Item | Bad]) -> Batch:
    """Stack images and labels; those of images with several are rows of 0 and 1."""
    good, batch = _split(items)
    return batch | {
        "image": _stack([item["image"] for item in good], (0, 0, 0, 3)),
        "label": torch.from_numpy(np.array([item["label"] for item in good], np.int64)),
    }


def collate_segmentation_train(items: list[Item | Bad]) -> Batch:
    """Stack crops and their labels."""
    good, batch = _split(items)
    return batch | {
        "image": _stack([item["image"] for item in good], (0, 0, 0, 3)),
        "mask": _stack([item["mask"] for item in good], (0, 0, 0)),
    }


def collate_segmentation_eval(items: list[Item | Bad]) -> Batch:
    """Keep images and masks apart: each has its own size."""
    good, batch = _split(items)
    return batch | {
        "image": [torch.from_numpy(item["image"]) for item in good],
        "mask": [torch.from_numpy(item["mask"]) for item in good],
    }


def collate_detection_train(items: list[Item | Bad]) -> Batch:
    """Lists of images, boxes, labels and masks: each image has its own size."""
    good, batch = _split(items)
    names = ["image", "boxes", "labels", *(["masks"] if any("masks" in item for item in good) else [])]
    return batch | {name: [torch.from_numpy(item[name]) for item in good] for name in names}  # type: ignore[literal-required]


def collate_detection_eval(items: list[Item | Bad]) -> Batch:
    """Lists of images and of what they show."""
    good, batch = _split(items)
    return batch | {
        "image": [torch.from_numpy(item["image"]) for item in good],
        "instances": [item["instances"] for item in good],
    }


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


def to_device(batch: Batch, device: torch.device) -> Batch:
    """Copy the tensors of a batch, and those in its lists, without waiting."""

    def move(value: Any) -> Any:
        if isinstance(value, torch.Tensor):
            return value.to(device, non_blocking=True)
        if isinstance(value, list):
            return [move(each) for each in value]
        return value

    return {name: move(value) for name, value in batch.items()}


def prefetch(batches: Iterable[Batch], device: torch.device) -> Iterator[Batch]:
    """Batches on the device; on CUDA the next one is copied while the current one is worked on."""
    if device.type != "cuda":
        for batch in batches:
            yield to_device(batch, device)
        return
    copies = torch.cuda.Stream(device)
    waiting: Batch | None = None
    for batch in batches:
        with torch.cuda.stream(copies):
            coming = to_device(batch, device)
        if waiting is not None:
            yield waiting
        torch.cuda.current_stream(device).wait_stream(copies)
        _keep_until_used(coming, device)
        waiting = coming
    if waiting is not None:
        yield waiting


def _keep_until_used(batch: Batch, device: torch.device) -> None:
    """Tell the allocator that the current stream reads memory that the copying stream allocated."""
    for value in batch.values():
        for each in value if isinstance(value, list) else [value]:
            if isinstance(each, torch.Tensor) and each.is_cuda:
                each.record_stream(torch.cuda.current_stream(device))


def _split(items: list[Item | Bad]) -> tuple[list[Item], Batch]:
    good = [item for item in items if not isinstance(item, Bad)]
    bad = [(item.path, item.reason) for item in items if isinstance(item, Bad)]
    index = torch.tensor([item["index"] for item in good], dtype=torch.int64)
    changed = [item.path for item in items if isinstance(item, Bad) and item.changed]
    return good, {"index": index, "samples": len(good), "bad": bad, "changed": changed}


def _stack(arrays: list["np.ndarray[Any, np.dtype[np.uint8]]"], empty: tuple[int, ...]) -> torch.Tensor:
    return torch.from_numpy(np.stack(arrays)) if arrays else torch.empty(empty, dtype=torch.uint8)


def _one_thread(_worker: int) -> None:
    """Loading processes share the CPUs that a rank reserved: OpenCV's own threads would only compete for them."""
    cv2.setNumThreads(0)
