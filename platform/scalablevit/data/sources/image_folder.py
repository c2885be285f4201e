"""The source of image folders: one folder of images per class."""

import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Self

import numpy as np

from scalablevit.config.data import ImageFolder, SplitName
from scalablevit.config.errors import UserError
from scalablevit.data.contents import THREADS
from scalablevit.data.sources.base import IGNORED, Sample, Source
from scalablevit.data.sources.class_names import check_names, classes_differ
from scalablevit.data.sources.files import (
    IMAGE_SUFFIXES,
    all_suffixes,
    describe_hidden,
    describe_skipped,
    format_first,
    is_hidden,
    list_files,
    refuse_links,
    require_folder,
    suffix,
)
from scalablevit.data.sources.listing import Listing, Names


class ImageFolderSource(Source):
    """Images with one class each, that of their folder."""

    @classmethod
    def find(cls, data: ImageFolder, split: SplitName, base: Path, *, alone: bool = False) -> Self:
        """Find the images of a split.

        Args:
            data: the recipe's data section.
            split: which split.
            base: folder of the data set.
            alone: do not list the other split, whose class folders must otherwise be the same.

        Raises:
            UserError: a folder is missing or empty, the splits' classes differ, or a link leads out of `base`.
        """
        where = f"data.{split}.images"
        part = data.train if split == "train" else data.val
        folder = require_folder(base, part.images, where)
        classes = find_class_folders(folder, where) if alone else _matching_classes(data, base)
        return cls(data, folder, list_class_folders(folder, base, classes, where))

    @property
    def notes(self) -> tuple[str, ...]:
        """Return how many images belong to no class, since they are beside the class folders; empty: none."""
        beside = [name for name in self.ignored
                  if "/" not in name and suffix(name) in IMAGE_SUFFIXES and not is_hidden(name)]  # fmt: skip
        note = f"{len(beside)} images beside the class folders have no class and are left out: {format_first(beside)}"
        return (note,) if beside else ()

    def _sample(self, i: int) -> Sample:
        return Sample(image=self.images / self.names[i], label=int(self.listing.arrays["labels"][i]), mask=None)


def find_class_folders(folder: Path, where: str) -> tuple[str, ...]:
    """Return the names of a folder's class folders, sorted and checked.

    Args:
        folder: of the class folders.
        where: dotted recipe key, for errors.

    Raises:
        UserError: there are none, or their names cannot be used.
    """
    classes = _class_folders(folder)
    if not classes:
        raise _no_classes(folder, where)
    check_names(classes, where)
    return tuple(classes)


def list_class_folders(folder: Path, base: Path, classes: tuple[str, ...], where: str) -> Listing:
    """Return the listing of the images in class folders.

    Args:
        folder: of the class folders.
        base: folder of the data set.
        classes: names of the class folders.
        where: dotted recipe key, for errors.

    Raises:
        UserError: a class folder has no images, or a link leads out of `base`.
    """
    refuse_links([str(folder / name) for name in classes if (folder / name).is_symlink()], base, where)
    with ThreadPoolExecutor(THREADS) as pool:
        listings = list(pool.map(lambda name: list_files(folder, base, (name,)), classes))
    refuse_links([link for listing in listings for link in listing.links], base, where)
    images = [[name for name in listing.files if suffix(name) in IMAGE_SUFFIXES] for listing in listings]
    others = _files_beside(folder)
    others += [name for listing in listings for name in listing.files if suffix(name) not in IMAGE_SUFFIXES]
    _refuse_empty([name for name, files in zip(classes, images, strict=True) if not files], others, folder, where)
    hidden = [*_hidden_beside(folder), *(name for listing in listings for name in listing.hidden)]
    labels = np.repeat(np.arange(len(classes), dtype=np.int32), [len(files) for files in images])
    names = Names.of(name for files in images for name in files)
    arrays = {**names.arrays(), **Names.of([*hidden, *others]).arrays(IGNORED), "labels": labels}
    return Listing({"classes": classes}, arrays)


def _class_folders(folder: Path) -> list[str]:
    return sorted(entry.name for entry in os.scandir(folder) if entry.is_dir() and not is_hidden(entry.name))


def _hidden_beside(folder: Path) -> list[str]:
    """Return what is hidden next to the class folders, and no class: `.cat/`, `@eaDir/`, `._1.jpg`."""
    entries = (entry for entry in os.scandir(folder) if is_hidden(entry.name))
    return sorted(name for entry in entries for name in describe_hidden(entry, entry.name))


def _files_beside(folder: Path) -> list[str]:
    """Return the names of the files next to the class folders, which have no class: `1.jpg`, `README`."""
    return sorted(entry.name for entry in os.scandir(folder) if not entry.is_dir() and not is_hidden(entry.name))


def _matching_classes(data: ImageFolder, base: Path) -> tuple[str, ...]:
    """Return the names of the class folders, which must be the same in both splits."""
    train = require_folder(base, data.train.images, "data.train.images")
    val = require_folder(base, data.val.images, "data.val.images")
    classes, val_classes = find_class_folders(train, "data.train.images"), _class_folders(val)
    if list(classes) != val_classes:
        raise classes_differ(train, val, classes, val_classes)
    return classes


def _no_classes(folder: Path, where: str) -> UserError:
    return UserError(f"{folder} holds no class folders", where=where, fix="put the images into one folder per class")


def _refuse_empty(empty: list[str], others: list[str], folder: Path, where: str) -> None:
    if empty:
        raise UserError(
            f"{len(empty)} class folders of {folder} hold no images: {format_first(empty)}; {describe_skipped(others)}",
            where=where,
            fix=f"add images ({all_suffixes()}) or remove the folders",
        )
