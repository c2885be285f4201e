"""A recipe's data held against training: what a job, its dry run and `pipelines/check_data.py` all ask first."""

import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from scalablevit.config.data import SPLITS, Data, MaskPairs, SplitName
from scalablevit.config.errors import UserError, UserErrors, raise_all
from scalablevit.data.contents import ContentCache
from scalablevit.data.names import describe_lookalikes
from scalablevit.data.progress import OutOfTime
from scalablevit.data.shapes import write_shapes
from scalablevit.data.sources.base import Source
from scalablevit.data.sources.opening import open_source
from scalablevit.inspection.check import Depth, Report, check_split, image_notes, raise_if_fatal
from scalablevit.inspection.findings import find_evaluation_problems, find_problems
from scalablevit.inspection.statistics import DataStatistics, SharedImages, shared_images, split_statistics, unit_of

QUICK_S = 10.0
"""Longest time for summing up contents where only headers are asked for."""


@dataclass(frozen=True)
class Inspection:
    """What was found on both splits."""

    sources: Mapping[SplitName, Source]
    """Those that could be listed."""
    reports: Mapping[SplitName, Report]
    statistics: DataStatistics | None
    """None where a split could not be listed."""
    warnings: tuple[str, ...]
    errors: tuple[UserError, ...]
    """What is refused, other than single files."""
    unfit: tuple[UserError, ...]
    """Refusals of single files that `reports` name: masks that do not fit, too many that cannot be read."""
    seconds: float = 0.0
    """What it took."""

    def raise_errors(self) -> None:
        """Refuse the data if there is anything to refuse.

        Raises:
            UserError, UserErrors: all of it.
        """
        raise_all([*self.errors, *self.unfit])


def inspect_data(
    data: Data,
    root: Path,
    workers: int,
    *,
    cache: Path | None = None,
    depth: Depth = "masks",
    seconds: float | None = None,
    despite_errors: bool = False,
) -> Inspection:
    """Open and check both splits, and hold their statistics against what training needs.

    Args:
        data: the recipe's data section; the built-in shapes are written if it asks for them.
        root: the platform's root, for a relative `data.root`.
        workers: threads or processes of the check.
        cache: folder that keeps reports; None: every file is looked at, and with `pixels` read.
        depth: how much of each file is read.
        seconds: longest time for it, which listing may exceed; None: as long as it takes. Writing the
            built-in shapes does not count.
        despite_errors: check also where a split cannot be listed.

    Raises:
        UserError: the built-in shapes cannot be written.
    """
    if data.shapes is not None:
        write_shapes(data.shapes, root / Path(data.root).expanduser())
    began = time.monotonic()
    deadline = None if seconds is None else began + seconds
    sources, errors = _opened(data, root)
    if errors and not despite_errors:
        return Inspection(sources, {}, None, (), tuple(errors), ())
    sums_deadline = began + QUICK_S if depth == "headers" and deadline is None else deadline
    unread = _look_at_contents(sources, root, cache, depth, sums_deadline)
    reports = {
        split: check_split(source, data, workers, None if source.contents is None else cache, depth, deadline=deadline)
        for split, source in sources.items()
    }
    unfit = [error for split, report in reports.items() for error in _refusals(report, data, split)]
    if errors:
        return Inspection(sources, reports, None, (), tuple(errors), tuple(unfit))
    shared = None
    if not unread:
        try:
            shared = shared_images(sources["train"], sources["val"], sums_deadline)
        except OutOfTime as over:
            unread.append(f"{over}: whether the splits share images is not known")
    statistics = _statistics(sources, data, reports, depth, shared, unread)
    found = find_problems(statistics, data)
    found.warnings += [f"{split}: {note}" for split, report in reports.items() for note in image_notes(report)]
    spent = time.monotonic() - began
    return Inspection(sources, reports, statistics, tuple(found.warnings), tuple(found.errors), tuple(unfit), spent)


def inspect_validation(source: Source, data: Data, report: Report) -> tuple[list[UserError], list[str]]:
    """Hold a validation split by itself against what evaluation needs: what is refused, and warnings.

    A class that it has nothing of is no error here: the metrics of the others are right.
    """
    split = split_statistics(source, data, report)
    alone = DataStatistics(source.classes, unit_of(data.source), train=split, val=split, shared=None, unknown=())
    return find_evaluation_problems(alone, data)


def _opened(data: Data, root: Path) -> tuple[dict[SplitName, Source], list[UserError]]:
    """The splits that can be listed, and what is against them."""
    sources: dict[SplitName, Source] = {}
    errors: list[UserError] = []
    for split in SPLITS:
        try:
            sources[split] = open_source(data, split, root)
        except UserErrors as several:
            errors += several.errors
        except UserError as error:
            errors.append(error)
    if len(sources) == len(SPLITS) and (different := _categories_differ(sources["train"], sources["val"])):
        errors.append(different)
    return sources, list({str(error): error for error in errors}.values())


def _categories_differ(train: Source, val: Source) -> UserError | None:
    """COCO's splits name their categories each by itself."""
    if train.annotations is None or val.annotations is None:
        return None
    first, second = train.annotations.categories, val.annotations.categories
    if first == second:
        return None
    only = [
        f"only {split} has {', '.join(f'{number} ({name})' for number, name in sorted(found))}"
        for split, found in (("train", set(first) - set(second)), ("val", set(second) - set(first)))
        if found
    ]
    if twins := describe_lookalikes(name for _, name in (*first, *second)):
        only.append(f"equal up to Unicode form (NFC): {', '.join(twins)}")
    return UserError(
        f"the categories of the splits differ: {'; '.join(only)}",
        where="data.val.annotations",
        fix="give both files the same categories with the same ids",
    )


def _refusals(report: Report, data: Data, split: SplitName) -> list[UserError]:
    try:
        raise_if_fatal(report, data.max_bad_fraction, where=f"data.{split}")
    except UserErrors as several:
        return several.errors
    return []


def _look_at_contents(
    sources: Mapping[SplitName, Source], root: Path, cache: Path | None, depth: Depth, deadline: float | None
) -> list[str]:
    """Sum up all files as far as there is time; what is not known then, a line each."""
    sums = None if cache is None and depth == "pixels" else ContentCache.in_root(root)
    unread = []
    for split, source in sources.items():
        try:
            source.read_contents(sums, f"data.{split}", deadline)
        except OutOfTime as over:
            unread.append(f"{over}: the digest and whether the splits share images are not known")
    return unread


def _statistics(
    sources: Mapping[SplitName, Source],
    data: Data,
    reports: Mapping[SplitName, Report],
    depth: Depth,
    shared: SharedImages | None,
    unread: list[str],
) -> DataStatistics:
    splits = {split: split_statistics(source, data, reports[split]) for split, source in sources.items()}
    unknown = [
        f"{'headers' if depth == 'headers' else 'files'} of {report.counts.looked_at:,} of {report.samples:,} images "
        f"of {split} were looked at"
        for split, report in reports.items()
        if not report.complete
    ]
    if depth == "headers" and isinstance(data, MaskPairs):
        unknown.append("masks were not read, so pixels were not counted")
    return DataStatistics(
        classes=sources["train"].classes,
        unit=unit_of(data.source),
        train=splits["train"],
        val=splits["val"],
        shared=shared,
        unknown=(*unknown, *unread),
    )
