"""The images of a prediction: a folder, one file, or a text file with a path on each line."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from scalablevit.config.errors import UserError
from scalablevit.data.names import printable
from scalablevit.data.sources.files import IMAGE_SUFFIXES, all_suffixes, format_first, list_images, suffix, why_skipped

LIST_SUFFIX = "txt"
WHERE = "IMAGES"
_MARK = b"\xef\xbb\xbf"  # byte order mark, which some editors write first
_UTF16_MARKS = (b"\xff\xfe", b"\xfe\xff")


@dataclass(frozen=True)
class GivenImages:
    """Images to predict."""

    given: Path
    """What the user named."""
    folder: Path
    """What `names` are relative to."""
    names: list[str]
    """Names of the images, relative to `folder`."""
    ignored: list[str]
    """Names of files that are no images by their suffixes."""

    @property
    def is_folder(self) -> bool:
        """Return whether the user named a folder, all images of which are meant."""
        return self.given == self.folder


def find_images(given: Path) -> GivenImages:
    """Find the images that a user names.

    Args:
        given: absolute path of a folder, of an image, or of a list that ends in `.txt`.

    Raises:
        UserError: the path does not exist or cannot be read, there is no image, or a line of the list names no file.
    """
    try:
        listed = given.is_dir() or not given.exists()  # `list_images` reports a missing folder
    except OSError as error:  # a folder that may not be entered, a name that is too long
        raise UserError(
            f"cannot read {printable(given)}: {error.strerror or error}",
            where=WHERE,
            fix="name a folder or file that can be read",
        ) from None
    if listed:
        names, ignored = list_images(given)
        return GivenImages(given, given, names, ignored)
    if suffix(given.name) == LIST_SUFFIX:
        return _read_list(given)
    if suffix(given.name) not in IMAGE_SUFFIXES:
        raise UserError(
            f"{printable(given.name)} is {why_skipped(given.name)}",
            where=WHERE,
            fix=f"name a folder, an image ({all_suffixes()}), or a list of paths that ends in .{LIST_SUFFIX}",
        )
    return GivenImages(given, given.parent, [given.name], [])


def _read_list(file: Path) -> GivenImages:
    """Return the images of a list, relative to its folder, or to the folder that all are in if that is another one.

    Raises:
        UserError: it cannot be read, names no image, or has a line that names no file or the file of another line.
    """
    where = printable(file)
    try:
        content = file.read_bytes()
    except OSError as error:
        raise UserError(f"not readable: {error.strerror or error}", where=where, fix="make it readable") from None
    if content.startswith(_UTF16_MARKS) or b"\0" in content:  # no path has a zero byte, and ASCII as UTF-16 has many
        raise UserError(
            "the list has zero bytes or begins as UTF-16, as PowerShell's > writes it",
            where=where,
            fix="save it as UTF-8, in PowerShell by `| Out-File -Encoding utf8`",
        )
    lines = [os.fsdecode(line.rstrip(b"\r")) for line in content.removeprefix(_MARK).split(b"\n")]
    numbered = {number: line for number, line in enumerate(lines, start=1) if line.strip()}
    # `..` is resolved on the disk, not in the text: after a link to a folder it leads elsewhere
    here = Path(os.path.realpath(file.parent))
    paths = {number: _real(here / line) for number, line in numbered.items()}
    _check_lines(paths, where)
    inside = all(Path(path).is_relative_to(here) for path in paths.values())
    folder = here if inside else Path(os.path.commonpath([Path(path).parent for path in paths.values()]))
    names = [str(Path(path).relative_to(folder)) for path in paths.values()]
    images = [name for name in names if suffix(name) in IMAGE_SUFFIXES]
    if not images:
        raise UserError("names no image", where=where, fix=f"images end in {all_suffixes()}")
    return GivenImages(file, folder, images, [name for name in names if suffix(name) not in IMAGE_SUFFIXES])


def _real(path: Path) -> str:
    """Return the path with its folder's links followed, and the file's own name."""
    return str(Path(os.path.realpath(path.parent)) / path.name)


def _check_lines(paths: dict[int, str], where: str) -> None:
    """Refuse lines that name no file, or one that another line names.

    Args:
        paths: absolute, by the number of their line.
        where: the list.

    Raises:
        UserError: there are any.
    """
    reasons = {number: _why_no_file(path) for number, path in paths.items()}
    missing = [f"line {number}: {paths[number]}{reason}" for number, reason in reasons.items() if reason is not None]
    if missing:
        raise UserError(
            f"{len(missing)} of {len(paths)} lines name no file: {format_first(missing)}",
            where=where,
            fix="write one path a line, absolute or relative to the list's folder",
        )
    lines: dict[str, int] = {}
    for number, path in paths.items():
        if (before := lines.setdefault(path, number)) != number:
            raise UserError(
                f"line {number} names {printable(path)} again, as line {before}",
                where=where,
                fix="name each image once",
            )


def _why_no_file(path: str) -> str | None:
    """Return why a path is no file, as the end of a sentence, empty where nothing is there; None if it is one."""
    try:
        return None if Path(path).is_file() else ""
    except OSError as error:  # a folder that may not be entered, a name that is too long
        return f" ({error.strerror or error})"


def refuse_overlap(out: Path, images: GivenImages) -> None:
    """Refuse an output folder in which predictions would be taken for images, or images would be lost.

    Args:
        out: folder of the predictions.
        images: those to predict.

    Raises:
        UserError: it is in the images' folder, or has images below it.
    """
    output = Path(os.path.realpath(out))
    inputs = [Path(os.path.realpath(images.folder))] if images.is_folder else _real_paths(images.folder, images.names)
    inside = images.is_folder and output.is_relative_to(inputs[0])
    if inside or any(path.is_relative_to(output) for path in inputs):
        raise UserError(
            f"{printable(out)} and the images are in each other", where="--out", fix="name a folder next to them"
        )


def _real_paths(folder: Path, names: Sequence[str]) -> list[Path]:
    return [Path(os.path.realpath(folder / name)) for name in names]
