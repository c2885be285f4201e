"""Matching of images and masks by name, and advice where an image has no mask."""

from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

from scalablevit.config.errors import UserError
from scalablevit.data.decoding import MASK_FORMATS, SUFFIXES
from scalablevit.data.names import printable
from scalablevit.data.sources.files import describe_suffixes, format_first, stem, suffix

MASK_SUFFIXES = frozenset(mask_suffix for kind in MASK_FORMATS for mask_suffix in SUFFIXES[kind])
_NAMED_PATTERNS = 3
_SEPARATORS = "_-. "


def match_masks(
    images: Sequence[str], files: Sequence[str], image_folder: Path, mask_folder: Path, where: str
) -> list[str]:
    """Return the mask of each image: the file whose relative name differs only in its suffix, which is a mask's.

    Where an image has several, the one that ends in `.png` is used.

    Args:
        images: relative names.
        files: relative names of all files in the folder of masks.
        image_folder: folder of the images. Where it is also `mask_folder`, images are not taken for masks.
        mask_folder: folder of the masks.
        where: the split's key, for errors.

    Raises:
        UserError: images have names that differ only in their suffix, an image has no mask or several, or masks have no
            image.
    """
    stems = Counter(map(stem, images))
    if twice := [name for name in images if stems[stem(name)] > 1]:
        raise UserError(
            f"images of {image_folder} differ only in their suffix, and so share a mask: {format_first(twice)}",
            where=f"{where}.images",
            fix="rename or remove one of each",
        )
    if image_folder == mask_folder:
        files = sorted(set(files).difference(images))
    by_stem: dict[str, list[str]] = {}
    for name in files:
        if suffix(name) in MASK_SUFFIXES:
            by_stem.setdefault(stem(name), []).append(name)
    masks = {name: _choose(by_stem.get(stem(name), []), f"{stem(name)}.png") for name in images}
    _refuse_unmatched(masks, by_stem, files, image_folder, mask_folder, where)
    return [str(mask) for mask in masks.values()]


def _choose(names: Sequence[str], preferred: str) -> str | None:
    """Return the preferred name if it is among several, or the only one; None: it is undecided, or there is none."""
    return preferred if preferred in names else names[0] if len(names) == 1 else None


def _refuse_unmatched(
    masks: dict[str, str | None],
    by_stem: dict[str, list[str]],
    files: Sequence[str],
    image_folder: Path,
    mask_folder: Path,
    where: str,
) -> None:
    problems, fixes = [], []
    several = [by_stem[stem(name)] for name, mask in masks.items() if mask is None and stem(name) in by_stem]
    if several:
        listed = format_first([" and ".join(names) for names in several])
        problems.append(f"{len(several)} images of {image_folder} have several masks in {mask_folder}: {listed}")
        fixes.append("remove all but one of each")
    if maskless := [name for name, mask in masks.items() if mask is None and stem(name) not in by_stem]:
        description, advice = _describe_others(maskless, sorted(set(files).difference(filter(None, masks.values()))))
        problems.append(
            f"{len(maskless)} images of {image_folder} have no mask in {mask_folder}: {format_first(maskless)}; "
            f"{description}"
        )
        fixes.append(advice)
    stems = {stem(name) for name in masks}
    used = {"png", *(suffix(mask) for mask in masks.values() if mask)}
    extra = [name for key, names in by_stem.items() if key not in stems for name in names if suffix(name) in used]
    if extra and not maskless:  # else they are described already, as other files
        problems.append(
            f"{len(extra)} masks of {mask_folder} have no image in {image_folder}: {format_first(sorted(extra))}"
        )
    if problems:
        rule = "a mask is a PNG, TIFF or BMP with its image's relative name (a/b.jpg and a/b.png)"
        raise UserError("; ".join(problems), where=f"{where}.masks", fix="; ".join(dict.fromkeys([*fixes, rule])))


def _describe_others(maskless: Sequence[str], others: Sequence[str]) -> tuple[str, str]:
    """Return a description of the files in a folder that lacks masks, also of how they are named, and advice."""
    if not others:
        return "no other files are there", "add the masks, or correct the folders"
    patterns = Counter[str]()
    examples: dict[str, tuple[str, str]] = {}
    by_stem = {stem(name): name for name in maskless}
    by_base = {_split(name)[1]: name for name in maskless}
    for name in others:
        for pattern, image in _patterns(name, by_stem, by_base):
            patterns[pattern] += 1
            examples.setdefault(pattern, (name, image))
    text = f"{len(others)} other files are there: {describe_suffixes(others)}"
    if not patterns:
        return text, "rename the masks as their images, or correct the folders"
    common = patterns.most_common(_NAMED_PATTERNS)
    for pattern, count in common:
        name, image = examples[pattern]
        text += f"; {count} are named {printable(pattern)} ({printable(name)} for {printable(image)})"
    name, image = examples[common[0][0]]
    if suffix(name) in SUFFIXES["JPEG"]:
        return text, "JPEG changes class ids: write the masks again as PNG, from what they were made of"
    mask_suffix = suffix(name) if suffix(name) in MASK_SUFFIXES else "png"
    change = "rename" if mask_suffix == suffix(name) else "convert"
    return text, f"{change} them: {printable(name)} to {printable(stem(image))}.{mask_suffix}"


def _patterns(name: str, by_stem: dict[str, str], by_base: dict[str, str]) -> Iterator[tuple[str, str]]:
    """Yield patterns by which a file may be named after an image without a mask, and that image."""
    folder, base, dotted_suffix = _split(name)
    if image := by_stem.get(folder + base):
        yield f"{{stem}}{dotted_suffix}", image
        return
    if image := by_base.get(base):
        yield f"{{stem}}{dotted_suffix} in another folder", image
        return
    for at in (i for i, letter in enumerate(base) if letter in _SEPARATORS):
        if image := by_stem.get(folder + base[:at]):
            yield f"{{stem}}{base[at:]}{dotted_suffix}", image
        if image := by_stem.get(folder + base[at + 1 :]):
            yield f"{base[: at + 1]}{{stem}}{dotted_suffix}", image


def _split(name: str) -> tuple[str, str, str]:
    """Return the folder with its slash, the name without suffix, and the suffix with its dot."""
    folder, slash, _ = name.rpartition("/")
    without_suffix = stem(name)
    return folder + slash, without_suffix[len(folder + slash) :], name[len(without_suffix) :]
