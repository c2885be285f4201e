"""Listing of a data set's files: relative names, checked and sorted, without opening any."""

import os
import stat
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from scalablevit.config.errors import UserError
from scalablevit.data.decoding import SUFFIXES
from scalablevit.data.names import printable
from scalablevit.text import and_more

IMAGE_SUFFIXES = frozenset(suffix for suffixes in SUFFIXES.values() for suffix in suffixes)
"""In lower case, without a dot."""
SYSTEM_FOLDERS = frozenset(
    {"@eadir", "@recycle", "#recycle", "#snapshot", "__macosx", "$recycle.bin", "system volume information"}
)
"""Folders that storage and operating systems make, of thumbnails and deleted files: names in lower case."""
_WORDS = {"/": "hidden or system folders", "": "without suffix"}
_NAMED_GROUPS, _NAMED_FILES = 8, 3  # of skipped files


def list_images(folder: Path) -> tuple[list[str], list[str]]:
    """Return the images in a folder and its subfolders, by their suffixes, and the other files there.

    Names are relative to the folder, and sorted. The other files are those of `Files.hidden`, too.

    Raises:
        UserError: the folder is missing, unreadable or without images, or a link leads out of it.
    """
    try:
        listing = list_files(folder, folder)
    except OSError as error:
        raise UserError(
            f"cannot list {printable(error.filename or folder)}: {error.strerror or error}",
            where=printable(folder),
            fix="name a folder of images that can be read",
        ) from None
    refuse_links(listing.links, folder, printable(folder))
    images = [name for name in listing.files if suffix(name) in IMAGE_SUFFIXES]
    if not images:
        raise UserError(
            f"no images here; {describe_skipped([*listing.hidden, *listing.files])}",
            where=printable(folder),
            fix=f"images end in {all_suffixes()}",
        )
    return images, [*listing.hidden, *(name for name in listing.files if suffix(name) not in IMAGE_SUFFIXES)]


@dataclass(frozen=True, slots=True)
class Files:
    """The result of `list_files`."""

    files: list[str]
    """Relative to the folder listed, sorted."""
    links: list[str]
    """Paths to refuse, sorted: links to folders, to nothing or out of the data set; pipes, sockets and devices."""
    hidden: list[str]
    """What is not read, sorted: hidden and system folders, whose names end in a slash, and hidden images."""


def list_files(folder: Path, base: Path, below: tuple[str, ...] = ("",)) -> Files:
    """List files recursively, without a system call per file.

    Args:
        folder: that names are relative to.
        base: the data set's folder, which links must not lead out of.
        below: subfolders of `folder` to list; the empty name is `folder` itself.

    Raises:
        OSError: a folder cannot be read.
    """
    inside = base.resolve()
    files: list[str] = []
    links: list[str] = []
    hidden: list[str] = []
    pending = list(below)
    while pending:
        current = pending.pop()
        with os.scandir(folder / current) as entries:
            for entry in entries:
                name = f"{current}/{entry.name}" if current else entry.name
                if is_hidden(entry.name):
                    hidden += describe_hidden(entry, name)
                elif entry.is_symlink() and not (Path(entry.path).is_file() and is_inside(entry.path, inside)):
                    links.append(entry.path)
                elif entry.is_dir():
                    pending.append(name)
                elif entry.is_file():
                    files.append(name)
                else:
                    links.append(entry.path)
    return Files(sorted(files), sorted(links), sorted(hidden))


def is_hidden(name: str) -> bool:
    """Return whether a file or folder of this name is not read: it is hidden, or one of `SYSTEM_FOLDERS`."""
    return name.startswith(".") or name.lower() in SYSTEM_FOLDERS


def describe_hidden(entry: "os.DirEntry[str]", name: str) -> list[str]:
    """Return the name of a hidden entry as `Files.hidden` has it; nothing for a hidden file that is no image."""
    return [f"{name}/"] if entry.is_dir(follow_symlinks=False) else [name] if suffix(name) in IMAGE_SUFFIXES else []


def is_inside(path: str | Path, base: Path) -> bool:
    """Return whether a path, with its links followed, is inside `base`, a resolved folder."""
    return Path(os.path.realpath(path)).is_relative_to(base)  # `resolve` raises at links in a circle


def is_special(path: Path) -> bool:
    """Return whether a path is a pipe, a socket or a device."""
    try:
        mode = path.stat().st_mode
    except OSError:  # missing, or no possible name: a later check reports it
        return False
    return not stat.S_ISREG(mode) and not stat.S_ISDIR(mode)


def suffix(name: str) -> str:
    """Return what follows the last dot of a file's name, in lower case; empty without a dot."""
    before, dot, after = name.rpartition(".")
    return after.lower() if dot and before and "/" not in after else ""


def stem(name: str) -> str:
    """Return a relative name without its suffix; its folders stay."""
    before, dot, after = name.rpartition(".")
    return before if dot and before and "/" not in after else name


def all_suffixes() -> str:
    """Return the suffixes of images, for messages."""
    return ", ".join(sorted(IMAGE_SUFFIXES))


def describe_skipped(names: Sequence[str]) -> str:
    """Return how many files are skipped, by suffix with the first names: `2 other files left out: 2 .heic (...)`."""
    total = f"{len(names)} other files left out"
    return f"{total}: {describe_suffixes(names)}" if names else total


def describe_suffixes(names: Sequence[str]) -> str:
    """Return the number of files of each suffix with the first names: `2 .heic (a.heic, b.heic), 1 .txt (c.txt)`."""
    groups = {_WORDS.get(kind, kind): group for kind, group in group_by_suffix(names).items()}
    ordered = sorted(groups.items(), key=lambda group: (-len(group[1]), group[0]))
    texts = [
        f"{len(found)} {printable(kind)} ({format_first(found, _NAMED_FILES)})"
        for kind, found in ordered[:_NAMED_GROUPS]
    ]
    if len(ordered) > _NAMED_GROUPS:
        rest = sum(len(group) for _, group in ordered[_NAMED_GROUPS:])
        texts.append(f"{rest} with {len(ordered) - _NAMED_GROUPS} further suffixes")
    return ", ".join(texts)


def why_skipped(name: str) -> str:
    """Return the reason why a file is not taken for an image."""
    kind = suffix(name)
    if is_hidden(name.rstrip("/").rpartition("/")[2]):
        return "left out: hidden files and folders of storage or system are not read"
    if not kind:
        return "left out: the name has no suffix, by which images are recognized"
    if kind in ("heic", "heif"):
        return f"left out: .{kind} is not read; convert it to JPEG or PNG"
    return f"left out: .{printable(kind)} is not the suffix of an image that is read"


def group_by_suffix(names: Sequence[str]) -> dict[str, list[str]]:
    """Group names by suffix: `.heic`; `/` for folders, whose names end in it; empty without a suffix."""
    groups: dict[str, list[str]] = {}
    for name in names:
        kind = suffix(name)
        groups.setdefault("/" if name.endswith("/") else f".{kind}" if kind else "", []).append(name)
    return groups


def require_folder(base: Path, name: str, where: str) -> Path:
    """Return the folder `base / name`.

    Args:
        base: folder of the data set.
        name: relative to `base`.
        where: dotted recipe key, for errors.

    Raises:
        UserError: it does not exist, or leads out of `base`.
    """
    folder = base / name
    if not folder.is_dir():
        parent = next(parent for parent in folder.parents if parent.is_dir())
        names = sorted(entry.name for entry in parent.iterdir() if entry.is_dir() and not entry.name.startswith("."))
        holds = f"holds the folders {format_first(names, 10)}" if names else "holds no folders"
        raise UserError(
            f"folder {folder} does not exist; {parent} does, and {holds}",
            where=where,
            fix="correct data.root or the split's folder",
        )
    if not is_inside(folder, base.resolve()):
        raise UserError(
            f"{folder} is a link that leads out of {base}", where=where, fix="set data.root to a folder that holds it"
        )
    return folder


def refuse_links(links: list[str], base: Path, where: str) -> None:
    """Refuse links that lead out of the data set, and special files.

    Args:
        links: their paths, as in `Files.links`.
        base: folder of the data set.
        where: dotted recipe key or folder, for errors.

    Raises:
        UserError: `links` is not empty.
    """
    if links:
        raise UserError(
            f"{len(links)} links or special files (links to folders, to nothing or out of {base}; pipes, sockets): "
            f"{format_first(links)}",
            where=where,
            fix="replace them by the files themselves, or by links to files inside the data set",
        )


def format_first(names: Sequence[str], count: int = 5) -> str:
    """Return the first `count` names as text, and how many more there are: `a.jpg, b.jpg and 3 more`."""
    return f"{', '.join(map(printable, names[:count]))}{and_more(len(names), count)}"
