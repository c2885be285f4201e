"""Matching of the file names in annotations with the files in the folder of images."""

import os
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path, PurePosixPath, PureWindowsPath
from urllib.parse import unquote

from scalablevit.config.errors import UserError
from scalablevit.data.names import printable
from scalablevit.data.sources.files import format_first
from scalablevit.text import and_more

_NAMED = 5
_BACKSLASHES = "with / for \\"
_DECODED = "with their %-codes decoded"
_UNICODE = "in another Unicode form"


@dataclass(frozen=True, slots=True)
class _Unmatched:
    """A name that no file has, and for which no file is used."""

    reason: str
    """Why; empty: no file in the folder has a similar name, so the image is missing."""


class ImageFiles:
    """The files in a folder of images, for matching with the names in annotations.

    Args:
        folder: the folder of images.
        base: the data set's folder, a parent of `folder`.
        files: all files in `folder` but hidden ones, relative to it.
    """

    def __init__(self, folder: Path, base: Path, files: Sequence[str]) -> None:
        self.folder = folder
        self.files = files
        self._outer = [parent for parent in folder.parents if parent.is_relative_to(base)]

    @cached_property
    def _by_base_name(self) -> dict[str, list[str]]:
        by_base_name: dict[str, list[str]] = {}
        for file in self.files:
            by_base_name.setdefault(_base_name(file), []).append(file)
        return by_base_name

    def with_base_name(self, name: str) -> list[str]:
        """Return the files whose last part is that of `name`, however `name` separates and encodes its parts."""
        return self._by_base_name.get(_base_name(_decode(name).replace("\\", "/")), [])

    def match(self, names: Sequence[str], where: str, tolerated: float) -> tuple[list[str], list[str]]:
        """Return a file for each name, and a note with the count for each way in which names were changed.

        A name that a file has is kept. One that no file has is read with `/` for a backslash, with its percent codes
        decoded, in another Unicode form and without leading folders, if exactly one file fits, and no other name fits
        that file. A name of a file elsewhere in the data set, outside the folder of images, is never changed. A name
        without a similar file is kept: its image is missing, and the check of the samples reports it.

        Args:
            names: file names, relative and without `..`.
            where: the recipe's key, for errors.
            tolerated: most names that may have no file although there are similar ones.

        Raises:
            UserError: more names are ambiguous, or are names of files outside the folder of images.
        """
        absent = _missing_names(names, self.folder, self.files)
        if not absent:
            return list(names), []
        free: dict[str, list[str]] = {}  # files without an equal name
        claimed = set(names)
        for file in self.files:
            if file not in claimed:
                free.setdefault(_normalize(file), []).append(file)
        matches = {name: self._find(name, free) for name in absent}
        counts = Counter(match[0] for match in matches.values() if not isinstance(match, _Unmatched))
        for name, match in matches.items():
            if not isinstance(match, _Unmatched) and counts[match[0]] > 1:
                matches[name] = _Unmatched(f"{printable(match[0])} would be the file of {counts[match[0]]} names")
        self._refuse(matches, len(names), where, tolerated)
        changes = {name: match for name, match in matches.items() if not isinstance(match, _Unmatched)}
        return [changes[name][0] if name in changes else name for name in names], _notes(changes.values())

    def _find(self, name: str, free: dict[str, list[str]]) -> tuple[str, str] | _Unmatched:
        """Return the one file that a name fits and how the name was changed, or why there is none."""
        if any(map(_leads_out, _forms(name))):
            similar = self._describe_unclaimed(name, free)
            return _Unmatched(f"it leads out of the folder of images{f'; there, {similar}' if similar else ''}")
        outside = {
            str(parent / form)
            for form, _ in _forms(name)
            for parent in self._outer
            if os.path.lexists(parent / form) and not (parent / form).is_relative_to(self.folder)
        }
        if outside:
            return _Unmatched(f"there is {printable(min(outside))}, outside the folder of images")
        fitting = _fitting(name, free, self._own_folders) or _fitting(name, free, _any_folders)
        if len(fitting) == 1:
            return next(iter(fitting.items()))
        if fitting:
            return _Unmatched(f"it may be {' or '.join(map(printable, sorted(fitting)[:_NAMED]))}")
        return _Unmatched(self._describe_unclaimed(name, free))

    def _describe_unclaimed(self, name: str, free: dict[str, list[str]]) -> str:
        """Return text on files with a name's last part and without an equal name; empty if there are none."""
        files = [file for file in self.with_base_name(name) if file in free.get(_normalize(file), [])]
        return f"a file of that base name is {format_first(files, 2)}" if files else ""

    def _own_folders(self, form: str) -> list[int]:
        """Return how many leading parts may be dropped: none, or as many as end the folder's own path."""
        parts, own = PurePosixPath(form).parts, self.folder.parts
        return [n for n in range(min(len(parts), len(own) + 1)) if n == 0 or parts[:n] == own[-n:]]

    def _refuse(
        self, matches: dict[str, tuple[str, str] | _Unmatched], count: int, where: str, tolerated: float
    ) -> None:
        unmatched = [name for name, match in matches.items() if isinstance(match, _Unmatched)]
        reasons = [f"{printable(n)}: {match.reason}" for n, match in matches.items()
                   if isinstance(match, _Unmatched) and match.reason]  # fmt: skip
        if len(reasons) <= tolerated:
            return
        lines = "".join(f"\n    {line}" for line in reasons[:_NAMED]) + and_more(len(reasons), _NAMED, before="\n    ")
        raise UserError(
            f"{len(unmatched)} of {count} names (file_name) are of no file in {printable(self.folder)}:{lines}",
            where=where,
            fix="correct the names: relative to the folder of images, with / between folders; or name another folder "
            "(data.train.images, data.val.images)",
        )


def _missing_names(names: Sequence[str], folder: Path, files: Sequence[str]) -> list[str]:
    """Return the names of no file in the folder; hidden files and links were not listed, but exist."""
    return [name for name in sorted(set(names).difference(files)) if not os.path.lexists(folder / name)]


def _any_folders(form: str) -> range:
    return range(1, len(PurePosixPath(form).parts))


def _fitting(name: str, free: dict[str, list[str]], strip: Callable[[str], Iterable[int]]) -> dict[str, str]:
    """Return files that a name fits without some of its leading folders, each with the least change of the name."""
    fitting: dict[str, str] = {}
    for form, how in _forms(name):
        parts = PurePosixPath(form).parts
        for count in strip(form):
            rest = "/".join(parts[count:])
            for file in free.get(_normalize(rest), []):
                changes = [*how, *([f"without the leading {printable('/'.join(parts[:count]))}/"] if count else []),
                           *([_UNICODE] if file != rest else [])]  # fmt: skip
                fitting.setdefault(file, " and ".join(changes))
    return fitting


def _forms(name: str) -> Iterator[tuple[str, list[str]]]:
    """Yield the ways in which a name can be read, with the changes; the name itself first."""
    decoded = _decode(name)
    for text, how in ((name, []), *([(decoded, [_DECODED])] if decoded != name else [])):
        yield text, how
        if "\\" in text:
            yield text.replace("\\", "/"), [*how, _BACKSLASHES]


def _leads_out(form: tuple[str, list[str]]) -> bool:
    name, changes = form
    return leads_out(name) or (_BACKSLASHES in changes and bool(PureWindowsPath(name).drive))


def leads_out(name: str) -> bool:
    """Return whether a name may lead out of the folder that it is relative to."""
    path = PurePosixPath(name)
    return path.is_absolute() or ".." in path.parts or "\0" in name


def _decode(name: str) -> str:
    try:
        return unquote(name, errors="strict")
    except UnicodeDecodeError:  # per cent signs of another meaning
        return name


def _base_name(name: str) -> str:
    return _normalize(PurePosixPath(name).name)


def _normalize(name: str) -> str:
    return unicodedata.normalize("NFC", name)


def _notes(changes: Iterable[tuple[str, str]]) -> list[str]:
    counts = Counter(how for _, how in changes).most_common()
    notes = [f"{count} file names were read {how}" for how, count in counts[:_NAMED]]
    rest = sum(count for _, count in counts[_NAMED:])
    return notes + ([f"{rest} more file names were read without other leading folders"] if rest else [])
