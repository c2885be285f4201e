"""Pack an image folder into tar shards, for storage that is slow with many small files."""

import argparse
import os
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

from scalablevit.config.errors import UserError
from scalablevit.text import and_more

_SHOWN = 5
EPILOG = """\
FOLDER holds one folder of images per class; pack each split by itself:

  %(prog)s mydata/train packed/train --short-side 256
  %(prog)s mydata/val packed/val --short-side 256

A recipe reads them with data.source: tar_shards, data.root: packed, and train and val as the splits' images. Samples,
their order and their augmentation are those of the folder; without --short-side their bytes are, too (with it, those of
transparent images and of images with 16 or 32 bits). The shards are WebDataset's (<key>.jpg and <key>.cls with the
class number); index.json next to them holds classes, checksums and where each sample is. TARGET appears when it is
whole: an interrupted run leaves at most a hidden folder next to it.

Exit codes: 0 done; 2 something to fix, nothing was written; 130 interrupted."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's own arguments."""
    parser.add_argument("folder", type=Path, metavar="FOLDER", help="one folder of images per class")
    parser.add_argument("target", type=Path, metavar="TARGET", help="folder to make; must not be there yet")
    parser.add_argument("--short-side", type=_between(16, 16_384), metavar="PIXELS",
                        help="shrink images whose shorter side is longer (default: copy the files)")  # fmt: skip
    parser.add_argument(
        "--quality", type=_between(1, 100), default=90, help="quality of shrunk JPEGs, 1 to 100 (default: 90)"
    )
    parser.add_argument("--shard-mib", type=_between(1, 2**20), default=256, metavar="MIB",
                        help="largest size of a shard, MiB (default: 256)")  # fmt: skip
    parser.add_argument(
        "--dry-run", action="store_true", help="list the folder, print what would be written, write nothing"
    )


def run(options: argparse.Namespace) -> int:
    """Pack and print; see `add_arguments`.

    Raises:
        UserError: FOLDER has no images by class, or TARGET exists, is in FOLDER or has too little space.
    """
    from scalablevit.data.packing import Packing, pack, refuse_existing
    from scalablevit.data.sources.files import describe_skipped
    from scalablevit.data.sources.opening import open_class_folders

    folder, target = options.folder.expanduser(), options.target.expanduser()
    refuse_existing(target)
    _refuse_inside(target, folder)
    source = open_class_folders(folder)
    total = source.total_bytes()
    print(
        f"{folder}: {len(source)} images of {len(source.classes)} classes, {total / 2**20:.1f} MiB; "
        + describe_skipped(source.ignored), flush=True,
    )  # fmt: skip
    for note in source.notes:
        print(f"note: {note}", flush=True)
    _note_too_high(folder, source.classes)
    if options.short_side is None:
        _refuse_full_disk(target, total)
    if options.dry_run:
        how = "copied" if options.short_side is None else f"made smaller to {options.short_side} pixels where larger"
        print(f"would become shards of at most {options.shard_mib} MiB in {target}, images {how}")
        print("dry run: nothing was written")
        return 0
    packing = Packing(
        shard_bytes=options.shard_mib * 2**20,
        short_side=options.short_side,
        quality=options.quality,
        workers=os.cpu_count() or 1,
    )
    index = pack(source, target, packing, lambda line: print(line, flush=True))
    written = sum(shard.size for shard in index.shards)
    print(f"{target}: {len(source)} samples in {len(index.shards)} shards, {written / 2**20:.1f} MiB")
    return 0


def _refuse_inside(target: Path, folder: Path) -> None:
    """Refuse a target in the folder, also by links: its shards would be taken for a class or images the next time.

    Raises:
        UserError: it is in it.
    """
    if Path(os.path.realpath(target)).is_relative_to(os.path.realpath(folder)):
        raise UserError(f"{target} is in FOLDER ({folder})", where="TARGET", fix="name a folder next to it")


def _note_too_high(folder: Path, classes: Sequence[str]) -> None:
    """Warn if classes have only folders: FOLDER may be the folder of splits, whose names would become the classes."""
    entries = (entry for name in classes for entry in (folder / name).iterdir())
    if all(entry.is_dir() or entry.name.startswith(".") for entry in entries):
        first = ", ".join(classes[:_SHOWN]) + and_more(len(classes), _SHOWN)
        print(f"note: the classes {first} hold only folders: is FOLDER one level too high?", flush=True)


def _refuse_full_disk(target: Path, total: int) -> None:
    parent = next(parent for parent in target.absolute().parents if parent.is_dir())
    free = shutil.disk_usage(parent).free
    if free < total:
        raise UserError(
            f"{parent} has {free / 2**30:.1f} GiB free, the images have {total / 2**30:.1f}",
            where="TARGET",
            fix="make room, or shrink the images (--short-side 256)",
        )


def _between(least: int, most: int) -> Callable[[str], int]:
    def whole(text: str) -> int:
        value = int(text)
        if not least <= value <= most:
            raise argparse.ArgumentTypeError(f"{value} is not in {least}..{most}")
        return value

    return whole
