"""Sources from a recipe's data section, and registration of users' own."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from scalablevit.config.data import CocoInstances, Data, DataSection, ImageFolder, MaskPairs, SplitName, TarShards
from scalablevit.config.errors import UserError
from scalablevit.config.extensions import add_source_section
from scalablevit.data.names import printable
from scalablevit.data.sources.base import Source
from scalablevit.data.sources.coco import CocoSource
from scalablevit.data.sources.image_folder import ImageFolderSource, find_class_folders, list_class_folders
from scalablevit.data.sources.listing import Listing
from scalablevit.data.sources.mask_pairs import MaskPairsSource
from scalablevit.data.sources.tar_shards import TarShardsSource

SOURCES: dict[type[Any], type[Any]] = {
    ImageFolder: ImageFolderSource,
    TarShards: TarShardsSource,
    MaskPairs: MaskPairsSource,
    CocoInstances: CocoSource,
}
"""Sources by the class of the data section."""


def register_source(section: type[DataSection], source: type[Source], tasks: Sequence[str] = ()) -> None:
    """Add a source of data, which recipes then may name as `data.source`.

    Call it when your package is imported, and name the package under `imports` in the recipe. Registering the same
    class again is harmless.

    Args:
        section: the recipe's `data` section, with `source: Literal["<name>"]`: a subclass of `LabelledImages` (or
            `MaskPairs`, `CocoInstances`), whose keys say how images are prepared.
        source: finds and reads the samples; it has a class method `find` as `ImageFolderSource` has.
        tasks: kinds of task that may learn from it, besides those whose own `TaskInfo` names it.

    Raises:
        UserError: the section is of another kind, or its name is taken.
    """
    add_source_section(section, tasks)
    SOURCES[section] = source


def open_source(data: Data, split: SplitName, root: Path, classes: Sequence[str] | None = None) -> Source:
    """Return the source of a split, with its samples listed.

    Args:
        data: the recipe's data section; a relative `data.root` resolves against `root`.
        split: which of the two splits.
        root: the platform's root folder.
        classes: names in the order of a model's outputs: class indices have this order, and the other split is not
            read. None: the order of the data.

    Raises:
        UserError: a folder is missing, empty or unreadable, classes or masks do not match, or a link leads out of
            `data.root`.
    """
    base = root / Path(data.root).expanduser()
    try:
        source: Source = SOURCES[type(data)].find(data, split, base, alone=classes is not None)
    except OSError as error:  # a folder that may not be listed, a disk that fails
        raise _cannot_list(error, base, f"data.{split}") from error
    return source if classes is None else source.with_classes(classes)


def source_of(data: Data, split: SplitName, root: Path, listing: Listing) -> Source:
    """Return a source from the listing that `open_source` made, without reading any folder."""
    base = root / Path(data.root).expanduser()
    part = data.train if split == "train" else data.val
    source: Source = SOURCES[type(data)].of(data, base, part, listing)
    return source


def open_class_folders(folder: Path) -> Source:
    """Return the source of a folder of class folders, without a recipe, for `scalablevit pack`.

    Raises:
        UserError: the folder is missing, empty or unreadable, or a link leads out of it.
    """
    where = "FOLDER"
    try:
        exists = folder.is_dir()
    except OSError as error:  # a folder that may not be entered, a name that is too long
        raise _cannot_list(error, folder, where) from error
    if not exists:
        raise UserError(f"no folder {folder}", where=where, fix="name a folder that holds one folder per class")
    data = ImageFolder.model_validate(
        {"source": "image_folder", "root": str(folder), "train": {"images": "."}, "val": {"images": "."}}
    )
    try:
        classes = find_class_folders(folder, where)
        return ImageFolderSource(data, folder, list_class_folders(folder, folder, classes, where))
    except OSError as error:
        raise _cannot_list(error, folder, where) from error


def _cannot_list(error: OSError, folder: Path, where: str) -> UserError:
    what = f"cannot list {printable(error.filename or folder)}: {error.strerror or error}"
    return UserError(what, where=where, fix="make the folder readable")
