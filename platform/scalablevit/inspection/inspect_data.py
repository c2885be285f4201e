"""Inspection of a recipe's data before training, for jobs, their dry runs and `pipelines/check_data.py`."""

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
"""Seconds that hashing the contents may take where only headers are asked for."""


@dataclass(frozen=True)
class Inspection:
    """The result of the inspection of both splits."""

    sources: Mapping[SplitName, Source]
    """The splits that could be listed."""
    reports: Mapping[SplitName, Report]
    """The checks of these splits; empty if a split could not be listed, unless `despite_errors` was set."""
    statistics: DataStatistics | None
    """None: a split could not be listed."""
    warnings: tuple[str, ...]
    errors: tuple[UserError, ...]
    """Errors of the data set as a whole."""
    unfit: tuple[UserError, ...]
    """Errors of single files in `reports`: masks that do not fit, too many files that cannot be read."""
    seconds: float = 0.0
    """Duration of the inspection."""

    def raise_errors(self) -> None:
        """Refuse the data if there are errors.

        Raises:
            UserError, UserErrors: all of `errors` and `unfit`.
        """
        raise_all([*self.errors, *self.unfit])


def inspect_data(
    data: Data,
    root: Path,
    workers: int,
    *,
    cache: Path | None = None,
    again: bool = False,
    depth: Depth = "masks",
    seconds: float | None = None,
    despite_errors: bool = False,
) -> Inspection:
    """List and check both splits, and compare their statistics with what training needs.

    Args:
        data: the recipe's data section; the built-in shapes are written if it asks for them.
        root: the platform's root, for a relative `data.root`.
        workers: number of threads or processes of the check.
        cache: folder that stores reports; None: every file is checked.
        again: hash and check every file although a report is stored, and replace it.
        depth: how much of each file is read.
        seconds: longest time, which listing may exceed; None: no limit. Writing the built-in shapes does not count.
        despite_errors: check the other split also if one cannot be listed.

    Raises:
        UserError: the built-in shapes cannot be written, or a process of the check was killed.
    """
    if data.shapes is not None:
        write_shapes(data.shapes, root / Path(data.root).expanduser())
    began = time.monotonic()
    deadline = None if seconds is None else began + seconds
    sources, errors = _open_sources(data, root)
    if errors and not despite_errors:
        return Inspection(sources, {}, None, (), tuple(errors), ())
    sums_deadline = began + QUICK_S if depth == "headers" and deadline is None else deadline
    unread = _read_contents(sources, None if again else ContentCache.in_root(root), sums_deadline)
    reports = {
        split: check_split(
            source, data, workers, None if source.contents is None else cache, depth, deadline=deadline, again=again
        )
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
    findings = find_problems(statistics, data)
    findings.warnings += [f"{split}: {note}" for split, report in reports.items() for note in image_notes(report)]
    warnings, spent = tuple(findings.warnings), time.monotonic() - began
    return Inspection(sources, reports, statistics, warnings, tuple(findings.errors), tuple(unfit), spent)


def inspect_validation(source: Source, data: Data, report: Report) -> tuple[list[UserError], list[str]]:
    """Return errors and warnings of a validation split alone, for evaluation.

    An absent class is only a warning here: the metrics of the others are right.

    Args:
        source: the validation split.
        data: the recipe's data section.
        report: of the split's check.
    """
    split = split_statistics(source, data, report)
    alone = DataStatistics(source.classes, unit_of(data), train=split, val=split, shared=None, unknown=())
    return find_evaluation_problems(alone, data)


def _open_sources(data: Data, root: Path) -> tuple[dict[SplitName, Source], list[UserError]]:
    """Return the splits that can be listed, and errors."""
    sources: dict[SplitName, Source] = {}
    errors: list[UserError] = []
    for split in SPLITS:
        try:
            sources[split] = open_source(data, split, root)
        except UserErrors as several:
            errors += several.errors
        except UserError as error:
            errors.append(error)
    if len(sources) == len(SPLITS) and (difference := _compare_categories(sources["train"], sources["val"])):
        errors.append(difference)
    return sources, list({str(error): error for error in errors}.values())


def _compare_categories(train: Source, val: Source) -> UserError | None:
    """Return the error if COCO's splits, which name their categories each in a file of its own, differ in them."""
    if train.annotations is None or val.annotations is None:
        return None
    first, second = train.annotations.categories, val.annotations.categories
    if first == second:
        return None
    only = [
        f"only {split} has {', '.join(f'{category_id} ({name})' for category_id, name in sorted(categories))}"
        for split, categories in (("train", set(first) - set(second)), ("val", set(second) - set(first)))
        if categories
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


def _read_contents(sources: Mapping[SplitName, Source], sums: ContentCache | None, deadline: float | None) -> list[str]:
    """Hash all files until the deadline; return what is not known then, one line each."""
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
        unit=unit_of(data),
        train=splits["train"],
        val=splits["val"],
        shared=shared,
        unknown=(*unknown, *unread),
    )
