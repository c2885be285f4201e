"""Names of classes: where they are read from, and which are refused."""

import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from scalablevit.config.errors import UserError
from scalablevit.data.names import describe_lookalikes, printable
from scalablevit.data.sources.files import format_first, is_inside


def classes_differ(train: Path, val: Path, classes: Sequence[str], val_classes: Sequence[str]) -> UserError:
    """Return the error that names the classes of only one split.

    Args:
        train: folder of the training split.
        val: folder of the validation split.
        classes: of the training split.
        val_classes: of the validation split.
    """
    only_train, only_val = sorted(set(classes) - set(val_classes)), sorted(set(val_classes) - set(classes))
    differences = [
        f"only {split} has {format_first(names)}"
        for split, names in (("train", only_train), ("val", only_val))
        if names
    ]
    if twins := describe_lookalikes([*only_train, *only_val]):
        differences.append(f"equal up to Unicode form (NFC): {format_first(twins)}")
    return UserError(
        f"the classes of {train} and {val} differ: {'; '.join(differences) or 'their order'}",
        where="data.val.images",
        fix="give both splits the same classes",
    )


def class_names(classes: str | list[str], base: Path) -> tuple[str, ...]:
    """Return class names, from the recipe or from a file.

    Args:
        classes: the names, or a file's path inside `base`: one name per line, or ADE20K's table `objectInfo150.txt`.
        base: folder of the data set.

    Raises:
        UserError: they cannot be read, are missing, or occur twice.
    """
    if isinstance(classes, list):
        names = classes
    else:
        file = base / classes
        if not is_inside(file, base.resolve()) or not file.is_file():
            raise UserError(f"no file {file} inside {base}", where="data.classes", fix="name a file inside data.root")
        try:
            content = file.read_text(encoding="utf-8-sig")  # some editors begin a file with a byte order mark
        except UnicodeDecodeError as error:
            raise UserError(f"{file} is no UTF-8: {error}", where="data.classes", fix="save it as UTF-8") from None
        names = [line.strip() for line in content.rstrip().split("\n")]
        if len(names) > 1 and "" in names:
            # skipping it would shift the indices of all classes after it
            raise UserError(f"line {names.index('') + 1} is empty", where=str(file), fix="line i names class i - 1")
        if names and names[0].startswith("Idx\t"):
            names = [line.rpartition("\t")[2] for line in names[1:]]
        if names:
            _refuse_tables(names, file)
    if not names or "" in names:
        raise UserError("class names are missing", where="data.classes", fix="give one name for each class")
    if len(set(names)) < len(names):
        twice = [name for name, count in Counter(names).items() if count > 1]
        raise UserError(
            f"class names occur twice: {format_first(twice)}", where="data.classes", fix="give each its own name"
        )
    check_names(names, "data.classes")
    return tuple(names)


def _refuse_tables(lines: list[str], file: Path) -> None:
    """Refuse JSON, YAML and tables: with a heading for a name, all classes after it would have another's pixels.

    Numbers before the names must be those of the lines, from 0 or, as with `data.reduce_zero_label`, from 1.

    Raises:
        UserError: with the line that is no name.
    """
    heading = lines[0][:1] in ("#", "{", "[") or lines[0].endswith(":")
    numbered = [re.match(r"(\d+)[\"']?\s*[:,;=\t]", line) for line in lines]
    shifts = {int(match[1]) - index for index, match in enumerate(numbered) if match}
    wrong = shifts not in ({0}, {1}) if all(numbered) else len(lines) > 2 and all(numbered[1:])
    if heading or wrong:
        raise UserError(
            f"it begins with {printable(lines[0])}, and is no plain list of names",
            where=str(file),
            fix="write one name a line and nothing else: line i names class i - 1",
        )


def refuse_alike(names: Sequence[str], where: str) -> None:
    """Refuse names that differ only in Unicode form.

    Raises:
        UserError: there are such names; they are shown with escapes.
    """
    if twins := describe_lookalikes(names):
        raise UserError(f"class names are equal up to Unicode form (NFC): {format_first(twins)}", where=where,
                        fix="make them one class, or give each its own name")  # fmt: skip


def check_names(names: Sequence[str], where: str) -> None:
    """Refuse names that look the same or cannot be printed, since logs, MLflow and predictions have them.

    Raises:
        UserError: there are such names.
    """
    refuse_alike(names, where)
    if unprintable := [name for name in names if not name.isprintable()]:
        raise UserError(
            f"class names with characters that cannot be printed: {format_first(unprintable)}",
            where=where,
            fix="rename them",
        )
