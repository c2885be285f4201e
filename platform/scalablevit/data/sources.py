"""What lies in a data set's folders: checked names, in a fixed order, without opening an image."""

import os
import stat
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from scalablevit.config.data import CocoInstances, Data, ImageFolder, MaskPairs, TarShards
from scalablevit.config.errors import UserError
from scalablevit.data.coco import read_annotations
from scalablevit.data.labels import label_table
from scalablevit.data.names import alike, shown
from scalablevit.data.samples import THREADS, ShardedSource, Source
from scalablevit.data.shards import open_shards

IMAGE_SUFFIXES = frozenset({"jpg", "jpeg", "png", "webp", "bmp", "tif", "tiff", "gif", "ppm", "pgm"})


def open_source(data: Data, split: Literal["train", "val"], root: Path) -> Source:
    """List the samples of a split.

    Args:
        data: the recipe's data section; a relative `data.root` resolves against `root`.
        split: which of the two splits.
        root: the platform's root folder.

    Raises:
        UserError: a folder is missing, empty or unreadable, classes or masks do not match, or a link leads out of
            `data.root`.
    """
    base = root / Path(data.root).expanduser()
    try:
        match data:
            case ImageFolder():
                return _open_folder(data, split, base)
            case TarShards():
                return _open_sharded(data, split, base)
            case MaskPairs():
                return _open_pairs(data, split, base)
            case CocoInstances():
                return _open_coco(data, split, base)
    except OSError as error:  # a folder that may not be listed, a disk that fails
        raise _cannot_list(error, base, f"data.{split}") from error


def _cannot_list(error: OSError, folder: Path, where: str) -> UserError:
    what = f"cannot list {shown(error.filename or folder)}: {error.strerror or error}"
    return UserError(what, where=where, fix="make the folder readable")


def open_class_folders(folder: Path) -> Source:
    """List a folder of class folders by itself, for `pipelines/pack.py`.

    Raises:
        UserError: it is missing, empty or unreadable, or a link leads out of it.
    """
    where = "FOLDER"
    if not folder.is_dir():
        raise UserError(f"no folder {folder}", where=where, fix="name a folder that holds one folder per class")
    try:
        classes = _class_folders(folder)
        if not classes:
            raise _no_classes(folder, where)
        _check_names(classes, where)
        return _list_classes(folder, folder, tuple(classes), where)
    except OSError as error:
        raise _cannot_list(error, folder, where) from error


def list_images(folder: Path) -> tuple[list[str], list[str]]:
    """Image files in a folder and its subfolders, by their suffix, and the other files there: relative names, sorted.

    Hidden files are left out.

    Raises:
        UserError: the folder is missing, unreadable or without images, or a link leads out of it.
    """
    try:
        listing = _list_files(folder, folder)
    except OSError as error:
        raise UserError(
            f"cannot list {shown(error.filename or folder)}: {error.strerror or error}",
            where=shown(folder),
            fix="name a folder of images that can be read",
        ) from None
    _refuse_links(listing.links, folder, shown(folder))
    images = [name for name in listing.files if _suffix(name) in IMAGE_SUFFIXES]
    if not images:
        raise UserError("no images here", where=shown(folder), fix=f"images end in {', '.join(sorted(IMAGE_SUFFIXES))}")
    return images, [name for name in listing.files if _suffix(name) not in IMAGE_SUFFIXES]


def _open_folder(data: ImageFolder, split: Literal["train", "val"], base: Path) -> Source:
    where = f"data.{split}.images"
    part = data.train if split == "train" else data.val
    classes = _matching_classes(data, base)
    return _list_classes(_folder(base, part.images, where), base, classes, where)


def _list_classes(folder: Path, base: Path, classes: tuple[str, ...], where: str) -> Source:
    _refuse_links([str(folder / name) for name in classes if (folder / name).is_symlink()], base, where)
    with ThreadPoolExecutor(THREADS) as pool:
        listings = list(pool.map(lambda name: _list_files(folder, base, (name,)), classes))
    _refuse_links([link for listing in listings for link in listing.links], base, where)
    found = [[name for name in listing.files if _suffix(name) in IMAGE_SUFFIXES] for listing in listings]
    _refuse_empty([name for name, files in zip(classes, found, strict=True) if not files], folder, where)
    return Source(
        classes=classes,
        images=folder,
        names=[name for files in found for name in files],
        labels=np.repeat(np.arange(len(classes), dtype=np.int32), [len(files) for files in found]),
        masks=None,
        ignored=(
            *_hidden_folders(folder),
            *(n for listing in listings for n in listing.files if _suffix(n) not in IMAGE_SUFFIXES),
        ),
    )


def _open_sharded(data: TarShards, split: Literal["train", "val"], base: Path) -> Source:
    shards = {
        name: open_shards(_folder(base, part.images, f"data.{name}.images"), f"data.{name}.images")
        for name, part in (("train", data.train), ("val", data.val))
    }
    classes, val_classes = shards["train"].classes, shards["val"].classes
    if classes != val_classes:
        raise _classes_differ(shards["train"].folder, shards["val"].folder, classes, val_classes)
    _check_names(classes, "data.train.images")
    return ShardedSource(shards[split])


def _open_pairs(data: MaskPairs, split: Literal["train", "val"], base: Path) -> Source:
    part = data.train if split == "train" else data.val
    classes = _class_names(data.classes, base)
    label_table(data, classes)  # refuses impossible combinations of classes and ignored values
    images = _folder(base, part.images, f"data.{split}.images")
    masks = _folder(base, part.masks or "", f"data.{split}.masks")
    image_files, mask_files = _list_files(images, base), _list_files(masks, base)
    _refuse_links([*image_files.links, *mask_files.links], base, f"data.{split}")
    names = [name for name in image_files.files if _suffix(name) in IMAGE_SUFFIXES]
    if not names:
        raise UserError(f"no images in {images}", where=f"data.{split}.images", fix="name the folder that holds them")
    _check_pairs(names, [name for name in mask_files.files if name.endswith(".png")], images, masks, f"data.{split}")
    return Source(
        classes=classes,
        images=images,
        names=names,
        labels=None,
        masks=masks,
        ignored=(
            *(name for name in image_files.files if _suffix(name) not in IMAGE_SUFFIXES),
            *(name for name in mask_files.files if not name.endswith(".png")),
        ),
    )


def _open_coco(data: CocoInstances, split: Literal["train", "val"], base: Path) -> Source:
    part = data.train if split == "train" else data.val
    where = f"data.{split}.annotations"
    folder = _folder(base, part.images, f"data.{split}.images")
    file = base / (part.annotations or "")
    if not _lies_in(file, base.resolve()):
        raise UserError(f"{file} leads out of {base}", where=where, fix="name a file inside data.root")
    annotations = read_annotations(file, where, masks=data.instance_masks)
    _refuse_alike([name for _, name in annotations.categories], where)
    listing = _list_files(folder, base)
    _refuse_links(listing.links, base, f"data.{split}.images")
    annotated = set(annotations.names)
    inside = base.resolve()
    unlisted = annotated.difference(listing.files)  # absent or hidden: not looked at yet
    strange = (name for name in unlisted if not _lies_in(folder / name, inside) or _is_special(folder / name))
    _refuse_links(sorted(str(folder / name) for name in strange), base, where)
    return Source(
        classes=tuple(name for _, name in annotations.categories),
        images=folder,
        names=annotations.names,
        labels=None,
        masks=None,
        ignored=tuple(name for name in listing.files if name not in annotated),
        annotations=annotations,
    )


@dataclass(frozen=True, slots=True)
class _Listing:
    files: list[str]
    """Relative to the folder listed, sorted."""
    links: list[str]
    """What is refused: links to folders, to nothing or out of the data set; pipes, which nobody may ever write to."""


def _list_files(folder: Path, base: Path, below: tuple[str, ...] = ("",)) -> _Listing:
    """All files in subfolders `below` of `folder`, hidden ones left out, without asking for the state of each."""
    inside = base.resolve()
    files: list[str] = []
    links: list[str] = []
    pending = list(below)
    while pending:
        current = pending.pop()
        with os.scandir(folder / current) as entries:
            for entry in entries:
                name = f"{current}/{entry.name}" if current else entry.name
                if entry.name.startswith("."):
                    continue
                if entry.is_symlink() and not (Path(entry.path).is_file() and _lies_in(entry.path, inside)):
                    links.append(entry.path)
                elif entry.is_dir():
                    pending.append(name)
                elif entry.is_file():
                    files.append(name)
                else:
                    links.append(entry.path)
    return _Listing(sorted(files), sorted(links))


def _lies_in(path: str | Path, base: Path) -> bool:
    return Path(os.path.realpath(path)).is_relative_to(base)  # `resolve` raises at links in a circle


def _is_special(path: Path) -> bool:
    """A pipe, a socket or a device."""
    try:
        mode = path.stat().st_mode
    except OSError:  # absent, or a name that no file can have: the check names it
        return False
    return not stat.S_ISREG(mode) and not stat.S_ISDIR(mode)


def _suffix(name: str) -> str:
    return name.rpartition(".")[2].lower()


def _stem(name: str) -> str:
    return name.rpartition(".")[0]


def _folder(base: Path, name: str, where: str) -> Path:
    """The existing folder `base / name`, inside `base`."""
    folder = base / name
    if not folder.is_dir():
        parent = next(parent for parent in folder.parents if parent.is_dir())
        names = sorted(entry.name for entry in parent.iterdir() if entry.is_dir() and not entry.name.startswith("."))
        holds = f"holds the folders {_first(names, 10)}" if names else "holds no folders"
        raise UserError(
            f"folder {folder} does not exist; {parent} does, and {holds}",
            where=where,
            fix="correct data.root or the split's folder",
        )
    if not _lies_in(folder, base.resolve()):
        raise UserError(
            f"{folder} is a link that leads out of {base}", where=where, fix="set data.root to a folder that holds it"
        )
    return folder


def _class_folders(folder: Path) -> list[str]:
    return sorted(entry.name for entry in os.scandir(folder) if entry.is_dir() and not entry.name.startswith("."))


def _hidden_folders(folder: Path) -> list[str]:
    """Folders beside the class folders that are no classes, since their names begin with a dot: `.cat/`."""
    return sorted(f"{entry.name}/" for entry in os.scandir(folder) if entry.is_dir() and entry.name.startswith("."))


def _matching_classes(data: ImageFolder, base: Path) -> tuple[str, ...]:
    """Class folders, the same in both splits."""
    train = _folder(base, data.train.images, "data.train.images")
    val = _folder(base, data.val.images, "data.val.images")
    classes, val_classes = _class_folders(train), _class_folders(val)
    if not classes:
        raise _no_classes(train, "data.train.images")
    if classes != val_classes:
        raise _classes_differ(train, val, classes, val_classes)
    _check_names(classes, "data.train.images")
    return tuple(classes)


def _no_classes(folder: Path, where: str) -> UserError:
    return UserError(f"{folder} holds no class folders", where=where, fix="put the images into one folder per class")


def _classes_differ(train: Path, val: Path, classes: Sequence[str], val_classes: Sequence[str]) -> UserError:
    only_train, only_val = sorted(set(classes) - set(val_classes)), sorted(set(val_classes) - set(classes))
    differences = [
        f"only {split} has {_first(names)}" for split, names in (("train", only_train), ("val", only_val)) if names
    ]
    if twins := alike([*only_train, *only_val]):
        differences.append(f"equal up to Unicode form (NFC): {_first(twins)}")
    return UserError(
        f"the classes of {train} and {val} differ: {'; '.join(differences) or 'their order'}",
        where="data.val.images",
        fix="give both splits the same classes",
    )


def _refuse_links(links: list[str], base: Path, where: str) -> None:
    if links:
        raise UserError(
            f"{len(links)} links or special files (links to folders, to nothing or out of {base}; pipes, sockets): "
            f"{_first(links)}",
            where=where,
            fix="replace them by the files themselves, or by links to files inside the data set",
        )


def _refuse_empty(empty: list[str], folder: Path, where: str) -> None:
    if empty:
        raise UserError(
            f"{len(empty)} class folders of {folder} hold no images: {_first(empty)}",
            where=where,
            fix=f"add images ({', '.join(sorted(IMAGE_SUFFIXES))}) or remove the folders",
        )


def _check_pairs(images: list[str], masks: list[str], image_folder: Path, mask_folder: Path, where: str) -> None:
    """Every image has one mask and every mask one image."""
    stems = {_stem(name) for name in images}
    if len(stems) < len(images):
        counts = Counter(map(_stem, images))
        twice = [name for name in images if counts[_stem(name)] > 1]
        raise UserError(
            f"images of {image_folder} share a name and so a mask: {_first(twice)}",
            where=f"{where}.images",
            fix="rename or remove one of each",
        )
    mask_stems = {_stem(name) for name in masks}
    problems = []
    if lonely := [name for name in images if _stem(name) not in mask_stems]:
        problems.append(f"{len(lonely)} images of {image_folder} have no mask in {mask_folder}: {_first(lonely)}")
    if lonely := [name for name in masks if _stem(name) not in stems]:
        problems.append(f"{len(lonely)} masks of {mask_folder} have no image in {image_folder}: {_first(lonely)}")
    if problems:
        raise UserError(
            "; ".join(problems),
            where=f"{where}.masks",
            fix="a mask is a PNG with its image's relative name (a/b.jpg and a/b.png)",
        )


def _class_names(classes: str | list[str], base: Path) -> tuple[str, ...]:
    """Class names of the recipe or of a file: one a line, or the table `objectInfo150.txt` of ADE20K."""
    if isinstance(classes, list):
        names = classes
    else:
        file = base / classes
        if not _lies_in(file, base.resolve()) or not file.is_file():
            raise UserError(f"no file {file} inside {base}", where="data.classes", fix="name a file inside data.root")
        try:
            content = file.read_text(encoding="utf-8-sig")  # some editors begin a file with a byte order mark
        except UnicodeDecodeError as error:
            raise UserError(f"{file} is no UTF-8: {error}", where="data.classes", fix="save it as UTF-8") from None
        names = [line.strip() for line in content.strip().split("\n")]
        if len(names) > 1 and "" in names:
            # left out, it would shift the numbers of all classes after it
            raise UserError(f"line {names.index('') + 1} is empty", where=str(file), fix="line i names class i - 1")
        if names and names[0].startswith("Idx\t"):
            names = [line.rpartition("\t")[2] for line in names[1:]]
    if not names or "" in names:
        raise UserError("class names are missing", where="data.classes", fix="give one name for each class")
    if len(set(names)) < len(names):
        twice = [name for name, count in Counter(names).items() if count > 1]
        raise UserError(f"class names occur twice: {_first(twice)}", where="data.classes", fix="give each its own name")
    _check_names(names, "data.classes")
    return tuple(names)


def _refuse_alike(names: Sequence[str], where: str) -> None:
    if twins := alike(names):
        raise UserError(f"class names are equal up to Unicode form (NFC): {_first(twins)}", where=where,
                        fix="make them one class, or give each its own name")  # fmt: skip


def _check_names(names: Sequence[str], where: str) -> None:
    """Class names stand in logs, in MLflow and in what a served model answers."""
    _refuse_alike(names, where)
    if strange := [name for name in names if not name.isprintable()]:
        raise UserError(
            f"class names with characters that cannot be printed: {_first(strange)}", where=where, fix="rename them"
        )


def _first(names: Sequence[str], count: int = 5) -> str:
    more = f" and {len(names) - count} more" if len(names) > count else ""
    return f"{', '.join(map(shown, names[:count]))}{more}"
