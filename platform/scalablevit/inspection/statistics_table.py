"""Statistics of a data set as a short table of text."""

from collections.abc import Iterator

from scalablevit.config.commands import command_name
from scalablevit.data.names import shown
from scalablevit.inspection.statistics import Boxes, DataStatistics, SkippedFiles, SplitStatistics
from scalablevit.text import and_more

CLASSES = 12
"""Rows of classes; the others are counted."""
_KINDS = 5
"""Suffixes of files that are left out."""
_FILES = 2
"""Files named of each."""

Row = tuple[str, str, str]


def statistics_rows(statistics: DataStatistics, classes: int = CLASSES) -> list[Row]:
    """Return rows of name, training and validation, the first of them the heading; facts that are zero are left out."""
    train, val = statistics.train, statistics.val
    rows = [("", "training", "validation"), ("images", f"{train.samples:,}", f"{val.samples:,}")]
    rows += _class_rows(statistics, classes)
    train_facts, val_facts = _facts(train), _facts(val)
    names = dict.fromkeys([*train_facts, *val_facts])
    cells = [(name, train_facts.get(name, ""), val_facts.get(name, "")) for name in names]
    rows += [row for row in cells if row[1] or row[2]]
    for train_files, val_files in _left_out(train, val):
        kind = (train_files or val_files or SkippedFiles("", 0, ())).suffix
        rows.append((f"left out: {_kind_name(kind)}", _files(train_files), _files(val_files)))
    if statistics.shared is not None:
        rows.append(("also in training", "", f"{statistics.shared.count:,} of {statistics.shared.of:,}"))
    return rows


def unknown_text(statistics: DataStatistics) -> str:
    """Return what was not looked at as one sentence; empty if nothing is."""
    return f"{'; '.join(statistics.unknown)}; {command_name('check-data')} looks at all" if statistics.unknown else ""


def _class_rows(statistics: DataStatistics, most: int) -> Iterator[Row]:
    names, unit = statistics.classes, statistics.unit
    counts = [split.by_class for split in (statistics.train, statistics.val)]
    if counts == [None, None]:
        return
    # one more row is as short as to say that there is one more
    count = len(names) if len(names) <= most + 1 else most
    for number in range(count):
        cells = [_count(each, number, unit) for each in counts]
        yield f"{unit} of {shown(names[number])}", cells[0], cells[1]
    if count < len(names):
        rest = [f"{sum(each[count:]):,}" if each else "" for each in counts]
        yield and_more(len(names), count, before="... "), rest[0], rest[1]


def _count(counts: tuple[int, ...] | None, number: int, unit: str) -> str:
    if counts is None:
        return ""
    share = f" ({100 * counts[number] / max(1, sum(counts)):.3g} %)" if unit == "pixels" else ""
    return f"{counts[number]:,}{share}"


def _facts(split: SplitStatistics) -> dict[str, str]:
    """Facts by name; an empty text where there is nothing to say."""
    pixels, boxes = split.pixels, split.boxes
    return {
        "ignored pixels": f"{pixels.ignored:,} ({100 * pixels.ignored_share:.3g} %)"
        if pixels and pixels.ignored
        else "",
        **(_box_facts(boxes) if boxes else {}),
        "swapped by EXIF": _number(split.turned),
    }


def _box_facts(boxes: Boxes) -> dict[str, str]:
    counts = {
        "crowds": boxes.crowds,
        "images without an object": boxes.empty_images,
        "boxes clipped": boxes.clipped,
        "boxes dropped": boxes.dropped,
        "boxes below a scaled pixel": boxes.below_pixel,
        "boxes unlike their polygons": boxes.loose,
        "polygons without area": boxes.flat,
    }
    sizes = {"objects": boxes.by_size, "scaled objects": boxes.by_scaled_size}
    return {
        **{
            f"{name}, {' / '.join(found)}": " / ".join(f"{n:,}" for n in found.values())
            for name, found in sizes.items()
        },
        "median scaled side": "" if boxes.scaled_side is None else f"{boxes.scaled_side:.3g} pixels",
        **{name: _number(count) for name, count in counts.items()},
    }


def _number(count: int | None) -> str:
    return f"{count:,}" if count else ""


def _left_out(
    train: SplitStatistics, val: SplitStatistics
) -> Iterator[tuple[SkippedFiles | None, SkippedFiles | None]]:
    """Files that are left out, by suffix."""
    in_train = {each.suffix: each for each in train.left_out}
    in_val = {each.suffix: each for each in val.left_out}
    for suffix in list(dict.fromkeys([*in_train, *in_val]))[:_KINDS]:
        yield in_train.get(suffix), in_val.get(suffix)


def _kind_name(suffix: str) -> str:
    return {"": "files without suffix", "/": "hidden folders"}.get(suffix, suffix)


def _files(left_out: SkippedFiles | None) -> str:
    if left_out is None:
        return ""
    more = ", ..." if left_out.count > _FILES else ""
    return f"{left_out.count:,} ({', '.join(left_out.names[:_FILES])}{more})"
