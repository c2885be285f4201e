"""Check of every file of a split before training starts: headers, ids and sizes of masks, or every pixel."""

import hashlib
import json
import multiprocessing
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import cv2
import numpy as np
from numpy.typing import NDArray

from scalablevit.config.data import CocoInstances, Data, MaskPairs
from scalablevit.config.errors import UserError, UserErrors
from scalablevit.data.decoding import (
    CODED_BY_COLOR,
    DEEPEST,
    SUFFIXES,
    BadSample,
    WrongMask,
    inspect_image,
    read_header,
    read_mask_and_palette,
    read_mask_size,
)
from scalablevit.data.labels import annotated_size_mismatch, label_table, size_mismatch, to_labels
from scalablevit.data.names import printable
from scalablevit.data.progress import Progress
from scalablevit.data.sources.base import Sample, Source
from scalablevit.data.sources.files import suffix
from scalablevit.data.stderr_capture import StderrCapture
from scalablevit.inspection.counts import Counter, Counts
from scalablevit.io import write_file
from scalablevit.text import and_more

Depth = Literal["headers", "masks", "pixels"]
"""What is read: the headers of images and masks; every mask and the images' headers; everything, as training does."""
Kind = Literal["unreadable", "not read", "wrong", "damaged", "transparent", "deep", "low range"]
"""Kinds of problems and notes; each is explained at the field of `Report` with its name.

A file that is `not read` is `unreadable`, too: the storage failed, which may pass.
"""

_VERSION = 6
"""Part of the cache's key: raise it when the checks change."""
_NAMED = 5


@dataclass(frozen=True, slots=True)
class Problem:
    """A file, and what is wrong with it."""

    path: str
    reason: str
    count: int = 1
    """Number of files with this problem, of which this one is the first."""


@dataclass(frozen=True, slots=True)
class Report:
    """The result of the check of a split."""

    samples: int
    """Samples of the split."""
    unreadable: tuple[Problem, ...]
    """Images and masks that cannot be decoded: training can skip a few."""
    wrong: tuple[Problem, ...]
    """Masks of another size than their image, with unknown ids or without ids: the data set is not what the recipe
    describes."""
    damaged: tuple[Problem, ...] = ()
    """JPEGs that decode although data in them is damaged, and shards whose sums are not those of the index: training
    cannot detect them, and learns from what is decoded."""
    transparent: int = 0
    """Images with transparent pixels; where only headers are read, with an alpha channel or a transparent colour."""
    deep: int = 0
    """Images of 16 or 32 bits per channel whose values were read: a sample of them where only headers are read."""
    low_range: int = 0
    """Those of `deep` whose values are so low that their range may not be 0..65535, by which they are scaled."""
    examples: dict[str, Problem] = field(default_factory=dict)
    """The first image of the kinds `transparent` and `low range`."""
    counts: Counts = field(default_factory=Counts)
    """Counts over the contents of the samples."""

    @property
    def complete(self) -> bool:
        """Return whether every sample was checked; false only after a deadline."""
        return self.counts.looked_at == self.samples


def check_split(
    source: Source,
    data: Data,
    workers: int,
    cache: Path | None = None,
    depth: Depth = "masks",
    deadline: float | None = None,
    *,
    again: bool = False,
) -> Report:
    """Check every sample of a split; work of more than 10 s prints its progress.

    Args:
        source: the split.
        data: the recipe's data section.
        workers: number of threads; with `pixels` of processes, with one decoder each, so that its messages belong to
            one file.
        cache: folder that stores reports by the source's digest, so that the next check of the same data is quick. Not
            stored are those with files that the storage failed to read.
        depth: how much of each file is read.
        deadline: time of `time.monotonic()`, in seconds; samples that are not reached by then are skipped, and the
            report is not stored. Not with `pixels`.
        again: check although a report is stored, and replace it.

    Raises:
        UserError: a process of the check was killed, most likely for lack of memory.
    """
    file = cache / f"{_cache_key(source, data, depth)}.json" if cache else None
    if file and not again and (report := _load(file)):
        return report
    progress = Progress(f"{depth} of {printable(source.images)}", len(source), "images")
    problems, counts = list[tuple[Problem, Kind]](), Counts()
    with _pool(source, data, workers, depth, deadline) as check_parts:
        for part_problems, part_counts in check_parts(source.parts()):
            problems += part_problems
            counts += part_counts
            progress.add(part_counts.looked_at)
    if depth == "pixels":
        problems += [
            (Problem(printable(file), "differs from its sum in the index"), "damaged")
            for file in source.damaged_files()
        ]
    report = Report(
        samples=len(source),
        unreadable=tuple(problem for problem, kind in problems if kind in ("unreadable", "not read")),
        wrong=tuple(problem for problem, kind in problems if kind == "wrong"),
        damaged=tuple(problem for problem, kind in problems if kind == "damaged"),
        transparent=_count(problems, "transparent"),
        deep=_count(problems, "deep"),
        low_range=_count(problems, "low range"),
        examples={kind: problem for problem, kind in reversed(problems) if kind in ("transparent", "low range")},
        counts=counts,
    )
    if file and report.complete and not any(kind == "not read" for _, kind in problems):
        _save(report, file)
    return report


def raise_if_fatal(report: Report, max_bad_fraction: float, where: str = "data") -> None:
    """Refuse a split with wrong masks, or with too many unreadable samples.

    Args:
        report: of the split.
        max_bad_fraction: fraction of the samples, 0 to 1, that may be unreadable.
        where: dotted recipe key, for errors.

    Raises:
        UserErrors: both kinds, with the first files of each.
    """
    errors = []
    if report.wrong:
        errors.append(
            UserError(
                f"{len(report.wrong)} of {report.samples} masks do not fit: {_named(report.wrong)}",
                where=where,
                fix=mask_advice(report),
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


def mask_advice(report: Report) -> str:
    """Return advice on the wrong masks of a report."""
    colored = [CODED_BY_COLOR in problem.reason for problem in report.wrong]
    ids = "write masks with one channel of class ids, or a palette with them as indices, in place of colours"
    others = "correct the masks, or classes, ignore_index and reduce_zero_label"
    return "; ".join(advice for advice, applies in ((ids, any(colored)), (others, not all(colored))) if applies)


def image_notes(report: Report) -> tuple[str, ...]:
    """Return warnings of images that may lose information in the conversion to 8-bit RGB, each with an example."""
    notes = []
    if report.transparent:
        first = report.examples["transparent"]
        notes.append(
            f"{report.transparent} of {report.samples} images: {first.reason} ({first.path}); transparent pixels "
            "become the colour of data.mean, in training, evaluation and serving alike"
        )
    if report.low_range:
        first = report.examples["low range"]
        notes.append(
            f"{report.low_range} of {report.deep} images of 16 or 32 bits that were looked at may become too dark: "
            f"{first.path}: {first.reason}; spread their values over 0..{DEEPEST}, or convert them to 8 bits"
        )
    return tuple(notes)


Problems = list[tuple[Problem, Kind]]
PartResult = tuple[Problems, Counts]
Notes = dict[Kind, list[Problem]]
_DEEP_PARTS, _DEEP_IMAGES = 16, 4
"""Where only headers are read, values of at most so many deep images are read in each of so many parts of the split."""


def _count(problems: Problems, wanted: Kind) -> int:
    return sum(problem.count for problem, kind in problems if kind == wanted)


class _Checker:
    """Checks single samples."""

    def __init__(
        self,
        source: Source,
        data: Data,
        depth: Depth,
        stderr_capture: StderrCapture | None = None,
        deadline: float | None = None,
    ) -> None:
        self.source = source
        self.depth = depth
        self.max_pixels = data.max_pixels
        self.table = label_table(data, source.classes) if isinstance(data, MaskPairs) else None
        self.stderr_capture = stderr_capture
        self.deadline = deadline
        starts = [part.start for part in source.parts()]
        self.deep_parts = frozenset(starts[:: -(-len(starts) // _DEEP_PARTS)])

    def part(self, part: range) -> PartResult:
        """Return problems and counts of some samples, or of the first of them if there is a deadline.

        Each kind of note is one problem: its first sample with their number.
        """
        counter, problems, notes = Counter(), list[tuple[Problem, Kind]](), dict[Kind, list[Problem]]()
        deep_images = _DEEP_IMAGES if part.start in self.deep_parts else 0
        for i in part:
            if self.deadline is not None and time.monotonic() > self.deadline:
                break
            if (problem := self._sample(i, counter, notes, deep_images)) is not None:
                problems.append(problem)
            counter.looked_at += 1
        problems += [(replace(noted[0], count=len(noted)), kind) for kind, noted in notes.items()]
        return problems, counter.counts(self.source.annotations, part[: counter.looked_at])

    def _sample(self, i: int, counter: Counter, notes: Notes, deep_images: int) -> tuple[Problem, Kind] | None:
        """Return what is wrong with sample i; count and note the rest."""
        sample, annotations = self.source[i], self.source.annotations
        try:
            size = self._size(sample, counter, notes, deep_images)
            if annotations is not None and size != (annotated := tuple(annotations.sizes[i].tolist())):
                # not of the kind `wrong`, since published sets hold a few of them
                return Problem(printable(sample.image), annotated_size_mismatch(size, annotated)), "unreadable"
            if sample.mask and self.table is not None and (why := self._mask(sample.mask, size, self.table, counter)):
                return Problem(printable(sample.mask), why), "wrong"
            tiff = sample.mask if sample.mask and suffix(sample.mask.name) in SUFFIXES["TIFF"] else None
            if tiff and read_header(tiff, self.max_pixels).paged:
                counter.paged.append(printable(tiff))
        except BadSample as bad:
            kind: Kind = "wrong" if isinstance(bad, WrongMask) else "not read" if bad.may_pass else "unreadable"
            return Problem(bad.path, bad.reason), kind
        if self.stderr_capture and (text := self.stderr_capture.take()):
            return Problem(printable(sample.image), f"the decoder says: {text}"), "damaged"
        return None

    def _size(self, sample: Sample, counter: Counter, notes: Notes, deep_images: int) -> tuple[int, ...]:
        """Return height and width of an image; note what its conversion to 8-bit RGB may change."""
        header = read_header(sample.image, self.max_pixels)
        if header.turned:
            counter.turned.append(printable(sample.image))
        if header.flipped and (sample.mask or self.source.annotations is not None):
            counter.flipped.append(printable(sample.image))
        if header.paged:
            counter.paged.append(printable(sample.image))
        if self.depth != "pixels":
            if header.transparency:
                _note(notes, "transparent", sample, "an alpha channel or a transparent colour")
            if not header.deep or len(notes.get("deep", ())) >= deep_images:
                return header.size
        if self.stderr_capture:
            self.stderr_capture.take()
        decoded = inspect_image(sample.image, self.max_pixels)
        if decoded.transparent and self.depth == "pixels":
            _note(notes, "transparent", sample, "transparent pixels")
        if decoded.deep:
            _note(notes, "deep", sample, "")
        if decoded.low_range:
            _note(notes, "low range", sample, decoded.low_range)
        return decoded.pixels.shape[:2]

    def _mask(self, path: Path, size: tuple[int, ...], table: NDArray[np.uint8], counter: Counter) -> str | None:
        """Return why a mask does not fit its image or the recipe's classes."""
        if self.depth == "headers":
            mask_size = read_mask_size(path, self.max_pixels)
            return None if mask_size == size else size_mismatch(mask_size, size)
        mask, palette = read_mask_and_palette(path, self.max_pixels)
        if mask.shape != size:
            return size_mismatch(mask.shape, size)
        try:
            to_labels(mask, table)
        except ValueError as error:
            return str(error)
        counter.add_mask(mask, palette, printable(path))
        return None


def _note(notes: Notes, kind: Kind, sample: Sample, reason: str) -> None:
    notes.setdefault(kind, []).append(Problem(printable(sample.image), reason))


CheckParts = Callable[[list[range]], Iterator[PartResult]]
_checker: _Checker
"""The checker of a worker process; pickling one with every task would cost more than the task."""


@contextmanager
def _pool(source: Source, data: Data, workers: int, depth: Depth, deadline: float | None) -> Iterator[CheckParts]:
    if depth != "pixels":
        with ThreadPoolExecutor(max(1, workers)) as threads:
            yield partial(threads.map, _Checker(source, data, depth, deadline=deadline).part)
        return
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])  # imported once, not in each process
    count = max(1, min(workers, len(source.parts())))
    try:
        with ProcessPoolExecutor(count, context, _start_process, (source, data)) as processes:
            yield partial(processes.map, _part_in_process)
    except BrokenProcessPool:
        raise UserError(
            "a process that decoded images was ended from outside, most likely for want of memory",
            where="data.max_pixels",
            fix=f"lower it from {data.max_pixels}: so many pixels take up to {data.max_pixels * 6 // 2**20} MiB",
        ) from None


def _start_process(source: Source, data: Data) -> None:
    global _checker  # noqa: PLW0603  # the state of a process of the pool
    cv2.setNumThreads(0)
    _checker = _Checker(source, data, "pixels", StderrCapture())


def _part_in_process(part: range) -> PartResult:
    return _checker.part(part)


def _named(problems: tuple[Problem, ...]) -> str:
    lines = [f"\n    {problem.path}: {problem.reason}" for problem in problems[:_NAMED]]
    return "".join(lines) + and_more(len(problems), _NAMED, before="\n    ")


def _cache_key(source: Source, data: Data, depth: Depth) -> str:
    """Return the hash of everything that a report depends on, also of paths, since it has them."""
    masks = [data.ignore_index, data.reduce_zero_label] if isinstance(data, MaskPairs) else []
    masks += [data.instance_masks] if isinstance(data, CocoInstances) else []
    parts = [_VERSION, depth, source.digest(), str(source[0].image), data.max_pixels, *masks]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


def _load(file: Path) -> Report | None:
    try:
        stored: dict[str, Any] = json.loads(file.read_bytes())
        counts = {name: _as_tuples(value) for name, value in stored["counts"].items()}
        return Report(
            samples=stored["samples"],
            unreadable=tuple(Problem(**problem) for problem in stored["unreadable"]),
            wrong=tuple(Problem(**problem) for problem in stored["wrong"]),
            damaged=tuple(Problem(**problem) for problem in stored["damaged"]),
            **{key: stored[key] for key in ("transparent", "deep", "low_range")},
            examples={kind: Problem(**problem) for kind, problem in stored["examples"].items()},
            counts=Counts(**counts),
        )
    except (OSError, ValueError, KeyError, TypeError):  # absent or damaged: the check is repeated
        return None


def _as_tuples(value: Any) -> Any:
    return tuple(map(_as_tuples, value)) if isinstance(value, list) else value


def _save(report: Report, file: Path) -> None:
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        write_file(file, json.dumps(asdict(report)).encode(), durable=False)
    except OSError as error:  # the report is right: only the next check takes longer
        print(f"{file.parent} cannot be written ({error.strerror or error}): the next check reads all files again",
              flush=True)  # fmt: skip
