"""Statistics of a data set as a short table of text."""

from collections.abc import Iterator

from scalablevit.config.commands import command_name
from scalablevit.data.names import printable
from scalablevit.inspection.statistics import Boxes, DataStatistics, SkippedFiles, SplitStatistics
from scalablevit.text import and_more

CLASSES = 12
"""Most rows of classes; the others are summed."""
_KINDS = 5  # suffixes of skipped files
_FILES = 2  # names of skipped files of each suffix

Row = tuple[str, str, str]
"""Name, value of training, value of validation."""


def statistics_rows(statistics: DataStatistics, classes: int = CLASSES) -> list[Row]:
    """Return a table of statistics, the heading first; facts that are zero in both splits have no row.

    Args:
        statistics: of both splits.
        classes: most rows of classes.
    """
    train, val = statistics.train, statistics.val
    rows = [("", "training", "validation"), ("images", f"{train.samples:,}", f"{val.samples:,}")]
    rows += _class_rows(statistics, classes)
    train_facts, val_facts = _facts(train), _facts(val)
    names = dict.fromkeys([*train_facts, *val_facts])
    cells = [(name, train_facts.get(name, ""), val_facts.get(name, "")) for name in names]
    rows += [row for row in cells if not {row[1], row[2]} <= {"", "0"}]
    for train_files, val_files in _skipped_files(train, val):
        kind = (train_files or val_files or SkippedFiles("", 0, ())).suffix
        rows.append((f"left out: {_kind_name(kind)}", _files(train_files), _files(val_files)))
    if statistics.shared is not None:
        rows.append(("also in training", "", f"{statistics.shared.count:,} of {statistics.shared.of:,}"))
    return rows


def unknown_text(statistics: DataStatistics) -> str:
    """Return what was not checked as one sentence; empty if everything was."""
    return f"{'; '.join(statistics.unknown)}; {command_name('check-data')} looks at all" if statistics.unknown else ""


def _class_rows(statistics: DataStatistics, most: int) -> Iterator[Row]:
    names, unit = statistics.classes, statistics.unit
    counts = [split.by_class for split in (statistics.train, statistics.val)]
    if counts == [None, None]:
        return
    # one more row is as short as to say that there is one more
    count = len(names) if len(names) <= most + 1 else most
    for index in range(count):
        cells = [_count(of_split, index, unit) for of_split in counts]
        yield f"{unit} of {printable(names[index])}", cells[0], cells[1]
    if count < len(names):
        rest = [f"{sum(of_split[count:]):,}" if of_split else "" for of_split in counts]
        yield and_more(len(names), count, before="... "), rest[0], rest[1]


def _count(counts: tuple[int, ...] | None, index: int, unit: str) -> str:
    if counts is None:
        return ""
    share = f" ({100 * counts[index] / max(1, sum(counts)):.3g} %)" if unit == "pixels" else ""
    return f"{counts[index]:,}{share}"


def _facts(split: SplitStatistics) -> dict[str, str]:
    """Return facts by name; an empty text where a fact is not known."""
    pixels, boxes = split.pixels, split.boxes
    return {
        "ignored pixels": f"{pixels.ignored:,} ({100 * pixels.ignored_share:.3g} %)"
        if pixels and pixels.ignored
        else "",
        **(_box_facts(boxes) if boxes else {}),
        "swapped by EXIF": _number(split.turned),
        "turned or mirrored by EXIF": _number(split.flipped),
        "files of several pages": _number(split.paged),
    }


def _box_facts(boxes: Boxes) -> dict[str, str]:
    counts = {
        "crowds": boxes.crowds,
        "images without an object": boxes.empty_images,
        "boxes clipped": boxes.clipped,
        "boxes dropped": boxes.dropped,
        "boxes below a scaled pixel": boxes.below_pixel,
        "objects annotated twice": boxes.doubled,
        "areas taken from boxes": boxes.without_area,
        "areas above their boxes": boxes.large_areas,
        "boxes unlike their masks": boxes.loose,
        "masks without area": boxes.flat,
    }
    sizes = {"objects": boxes.by_size, "scaled objects": boxes.by_scaled_size}
    return {
        **{
            f"{name}, {' / '.join(by_size)}": " / ".join(f"{n:,}" for n in by_size.values())
            for name, by_size in sizes.items()
        },
        "median scaled object": "" if boxes.scaled_side is None else f"{boxes.scaled_side:.3g} pixels",
        **{name: _number(count) for name, count in counts.items()},
    }


def _number(count: int | None) -> str:
    return f"{count:,}" if count is not None else ""


def _skipped_files(
    train: SplitStatistics, val: SplitStatistics
) -> Iterator[tuple[SkippedFiles | None, SkippedFiles | None]]:
    """Yield the skipped files of both splits, for one suffix after another."""
    in_train = {files.suffix: files for files in train.left_out}
    in_val = {files.suffix: files for files in val.left_out}
    for suffix in list(dict.fromkeys([*in_train, *in_val]))[:_KINDS]:
        yield in_train.get(suffix), in_val.get(suffix)


def _kind_name(suffix: str) -> str:
    return {"": "files without suffix", "/": "hidden or system folders"}.get(suffix, suffix)


def _files(skipped: SkippedFiles | None) -> str:
    if skipped is None:
        return ""
    more = ", ..." if skipped.count > _FILES else ""
    return f"{skipped.count:,} ({', '.join(skipped.names[:_FILES])}{more})"
