"""Looking at every file of a split before training starts: headers of images, ids and sizes of masks."""

import hashlib
import json
import uuid
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from scalablevit.config.data import CocoInstances, Data, MaskPairs
from scalablevit.config.errors import UserError, UserErrors
from scalablevit.data.coco import Annotations
from scalablevit.data.decoding import BadSample, read_mask, read_size
from scalablevit.data.labels import annotated_size_mismatch, label_table, size_mismatch, to_labels
from scalablevit.data.sources import Sample, Source

_VERSION = 2
"""Part of the cache's key: raise it when the checks change."""
_SHOWN = 5


@dataclass(frozen=True, slots=True)
class Problem:
    """What is wrong with a file."""

    path: str
    reason: str


@dataclass(frozen=True, slots=True)
class Report:
    """What the check of a split found."""

    samples: int
    """Samples of the split."""
    unreadable: tuple[Problem, ...]
    """Images and masks that cannot be decoded: training can leave a few out."""
    wrong: tuple[Problem, ...]
    """Masks of another size than their image or with unknown ids: the data set is not what the recipe says."""


def check_split(source: Source, data: Data, workers: int, cache: Path | None = None) -> Report:
    """Read every image's header and every mask.

    Args:
        source: the split.
        data: the recipe's data section.
        workers: threads.
        cache: folder that keeps reports by the source's digest, so that the next check of the same data is quick.
    """
    file = cache / f"{_cache_key(source, data)}.json" if cache else None
    if file and (report := _load(file)):
        return report
    table = label_table(data, source.classes) if isinstance(data, MaskPairs) else None

    def check(part: range) -> list[tuple[Problem, bool]]:
        if source.annotations is not None:
            return [problem for i in part for problem in _check_annotated(source, source.annotations, i, data)]
        return [problem for i in part for problem in _check_sample(source[i], table, data.max_pixels)]

    with ThreadPoolExecutor(max(1, workers)) as pool:
        found = [problem for problems in pool.map(check, source.parts()) for problem in problems]
    report = Report(
        samples=len(source),
        unreadable=tuple(problem for problem, wrong in found if not wrong),
        wrong=tuple(problem for problem, wrong in found if wrong),
    )
    if file:
        _save(report, file)
    return report


def raise_if_fatal(report: Report, max_bad_fraction: float, where: str = "data") -> None:
    """Refuse a split with wrong masks, or with more unreadable samples than `max_bad_fraction`.

    Raises:
        UserErrors: both kinds, with the first files of each.
    """
    errors = []
    if report.wrong:
        errors.append(
            UserError(
                f"{len(report.wrong)} of {report.samples} masks do not fit: {_named(report.wrong)}",
                where=where,
                fix="correct the masks, or classes, ignore_index and reduce_zero_label",
            )
        )
    if len(report.unreadable) > max_bad_fraction * report.samples:
        errors.append(
            UserError(
                f"{len(report.unreadable)} of {report.samples} samples cannot be read, more than the fraction "
                f"{max_bad_fraction} of max_bad_fraction: {_named(report.unreadable)}",
                where=where,
                fix="remove or replace these files, or raise data.max_bad_fraction",
            )
        )
    if errors:
        raise UserErrors(errors)


def _check_sample(sample: Sample, table: NDArray[np.uint8] | None, max_pixels: int) -> list[tuple[Problem, bool]]:
    """Problems of one sample, each with whether it is of the kind `wrong`."""
    try:
        size = read_size(sample.image, max_pixels)
        if sample.mask is None or table is None:
            return []
        mask = read_mask(sample.mask, max_pixels)
    except BadSample as bad:
        return [(Problem(bad.path, bad.reason), False)]
    path = str(sample.mask)
    if mask.shape != size:
        return [(Problem(path, size_mismatch(mask.shape, size)), True)]
    try:
        to_labels(mask, table)
    except ValueError as error:
        return [(Problem(path, str(error)), True)]
    return []


def _check_annotated(source: Source, annotations: Annotations, i: int, data: Data) -> list[tuple[Problem, bool]]:
    """Problems of an image with instances: none of the kind `wrong`, since published sets hold a few of them."""
    path = source[i].image
    try:
        size = read_size(path, data.max_pixels)
    except BadSample as bad:
        return [(Problem(bad.path, bad.reason), False)]
    annotated = tuple(annotations.sizes[i].tolist())
    return [] if size == annotated else [(Problem(str(path), annotated_size_mismatch(size, annotated)), False)]


def _named(problems: tuple[Problem, ...]) -> str:
    lines = [f"\n    {problem.path}: {problem.reason}" for problem in problems[:_SHOWN]]
    more = len(problems) - _SHOWN
    return "".join(lines) + (f"\n    and {more} more" if more > 0 else "")


def _cache_key(source: Source, data: Data) -> str:
    """Everything that a report depends on: paths too, since it names them."""
    masks = [data.ignore_index, data.reduce_zero_label] if isinstance(data, MaskPairs) else []
    masks += [data.instance_masks] if isinstance(data, CocoInstances) else []
    parts = [_VERSION, source.digest(), str(source[0].image), data.max_pixels, *masks]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


def _load(file: Path) -> Report | None:
    try:
        stored = json.loads(file.read_bytes())
        return Report(
            samples=stored["samples"],
            unreadable=tuple(Problem(**each) for each in stored["unreadable"]),
            wrong=tuple(Problem(**each) for each in stored["wrong"]),
        )
    except (OSError, ValueError, KeyError, TypeError):  # absent or damaged: the check is made again
        return None


def _save(report: Report, file: Path) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    made = file.with_name(f"{file.name}.{uuid.uuid4().hex}")
    made.write_text(json.dumps(asdict(report)), encoding="utf-8")
    made.replace(file)
