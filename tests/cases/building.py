"""The cases' data sets, made from what defines them: recipes and annotations in `data/`, pictures from seeds."""

import io
import json
import shutil
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

DATA = Path(__file__).parent / "data"
WIDTH, HEIGHT = 128, 96
COUNTS = {"train": 8, "val": 4}
"""Images of a split, in most cases."""
RED, GREEN = (128, 0, 0), (0, 128, 0)
Mask = NDArray[np.uint8]
Draw = Callable[[Mask], Image.Image]


def build(name: str, root: Path) -> Path:
    """Write a case's data set to `root / "cases"`, where its recipe looks for it.

    Args:
        name: `case` or `case[sub-case]`.
        root: the platform's root.

    Returns:
        Its recipe or search space.
    """
    case, _, sub = name.removesuffix("]").partition("[")
    folder = root / "cases" / case
    if (DATA / case).is_dir():
        shutil.copytree(DATA / case, folder, dirs_exist_ok=True)
    if case in MASKS:
        _mask_pairs(folder, sub, *MASKS[case])
    elif case in FOLDERS:
        FOLDERS[case](folder)
    else:
        _annotated_images(folder)
    return folder / (f"{sub}.yaml" if sub else "recipe.yaml")


@cache
def picture(seed: int, kind: str = "JPEG", size: tuple[int, int] = (WIDTH, HEIGHT)) -> bytes:
    """Return an image file; another seed gives other pixels."""
    coarse = np.random.default_rng(seed).integers(0, 256, (6, 8, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(coarse).resize(size).save(buffer, kind)
    return buffer.getvalue()


def write(file: Path, content: bytes) -> None:
    """Write a file, and the folders that it needs."""
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(content)


def _seed(split: str, number: int) -> int:
    return number + 1000 * (split == "val")


# ----- boxes and polygons


def _annotated_images(folder: Path) -> None:
    """Write a picture for each image that a case's annotations have, where it really is."""
    for file in folder.rglob("annotations/*.json"):
        split = file.stem
        for number, image in enumerate(json.loads(file.read_bytes())["images"]):
            write(file.parents[1] / split / _file_name(folder.name, image["file_name"]), picture(_seed(split, number)))


def _file_name(case: str, annotated: str) -> str:
    """Return the name of a file, of which the annotations of one case have something else."""
    if case != "file-names":
        return annotated
    return annotated.replace("%20", " ").replace("%C3%BC", "ü").replace("\\", "/").rpartition("/")[2]


# ----- masks


@cache
def scenes(split: str) -> list[Mask]:
    """Return masks of two classes (1 red, 2 green) on background (0), drawn as the annotations of a case say."""
    content = json.loads((DATA / f"categories-differ/order/annotations/{split}.json").read_bytes())
    masks = {image["id"]: np.zeros((HEIGHT, WIDTH), np.uint8) for image in content["images"]}
    for each in content["annotations"]:
        x, y, width, height = each["bbox"]
        masks[each["image_id"]][y : y + height, x : x + width] = each["category_id"]
    return list(masks.values())


def plain(mask: Mask) -> Image.Image:
    """Ids as grey."""
    return Image.fromarray(mask)


def _with_palette(mask: Mask) -> Image.Image:
    image = Image.fromarray(mask)
    image.putpalette([0, 0, 0, *RED, *GREEN])
    return image


def _in_colour(mask: Mask) -> Image.Image:
    return Image.fromarray(np.array([(0, 0, 0), RED, GREEN], np.uint8)[mask])


def _with_unlabelled_strip(mask: Mask) -> Image.Image:
    mask = mask.copy()
    mask[:, :8] = 4
    return Image.fromarray(mask)


def _object(inside: int, outside: int) -> Draw:
    return lambda mask: Image.fromarray(np.where(mask > 0, inside, outside).astype(np.uint8))


MASKS: dict[str, tuple[str, dict[str, tuple[Draw, str, str]]]] = {
    "mask-values-0-255": ("data", {"": (_object(255, 0), ".jpg", ".png")}),
    "zero-label-reduced": ("data", {"": (_object(1, 0), ".jpg", ".png")}),
    "class-names-unicode": ("data", {"": (plain, ".jpg", ".png")}),
    "map-of-values": ("", {"sparse": (_with_unlabelled_strip, ".jpg", ".png")}),
    "mask-colour-types": (
        "",
        {
            "palette": (_with_palette, ".jpg", ".png"),
            "rgb": (_in_colour, ".jpg", ".png"),
            "greyrgb": (lambda mask: Image.fromarray(mask).convert("RGB"), ".jpg", ".png"),
            "onebit": (lambda mask: Image.fromarray(mask > 0), ".jpg", ".png"),
            "sixteen": (lambda mask: Image.fromarray(mask.astype(np.uint16)), ".jpg", ".png"),
        },
    ),
    "mask-names": (
        "",
        {
            "jpgmask": (plain, ".jpg", ".jpg"),
            "tif": (plain, ".tif", ".tif"),
            "upper": (plain, ".JPG", ".PNG"),
            "suffix": (plain, ".jpg", "_mask.png"),
            "single": (_object(0, 255), ".jpg", ".png"),
        },
    ),
}
"""By case: its folder of data, and by sub-case how a mask is drawn, and how names of images and masks end."""


def _mask_pairs(folder: Path, sub: str, data: str, kinds: dict[str, tuple[Draw, str, str]]) -> None:
    draw, image_end, mask_end = kinds[sub]
    place = folder / data / (sub if not data else "")
    for split, count in COUNTS.items():
        for number, mask in enumerate(scenes(split)[:count]):
            kind = "TIFF" if image_end == ".tif" else "JPEG"
            write(place / "images" / split / f"{number:04}{image_end}", picture(_seed(split, number), kind))
            file = place / "masks" / split / f"{number:04}{mask_end}"
            file.parent.mkdir(parents=True, exist_ok=True)
            draw(mask).save(file)


# ----- folders of classes

RECIPE = """\
name: mine
version: 2
data: {{source: image_folder, root: {root}, train: {{images: {train}}}, val: {{images: {val}}}, image_size: 32}}
model: {{name: scalablevit_tiny}}
task: {{kind: classification}}
optimizer: {{lr: 1e-3}}
training: {{epochs: 1, global_batch_size: 4}}
"""
"""As a user would write it where a case has only data."""
FORMATS = {"a.avif": "AVIF", "b.jp2": "JPEG2000", "c.tga": "TGA", "d.webp": "WEBP", "deep/deeper/f.png": "PNG",
           "e.TIF": "TIFF", "UP.JPG": "JPEG", "x.JPEG": "JPEG", "y.jfif": "JPEG", "z.jpe": "JPEG"}  # fmt: skip
"""Files that Pillow reads."""
HEIC = bytes.fromhex("0000001866747970686569630000000068656963") + bytes(92)
"""The beginning of a file that Pillow does not read."""


def _classes(folder: Path, split: str, counts: dict[str, int], seed: int = 0) -> None:
    for place, (name, count) in enumerate(counts.items()):
        for number in range(count):
            content = picture(_seed(split, number) + 100 * place + seed, size=(32, 32))
            write(folder / split / name / f"{number:03}.jpg", content)


def _recipe(folder: Path, name: str, root: str, train: str = "train", val: str = "val") -> None:
    (folder / f"{name}.yaml").write_text(RECIPE.format(root=f"cases/{folder.name}/{root}", train=train, val=val))


def _leaked(folder: Path) -> None:
    _classes(folder / "data", "flat", {"cat": 10, "dog": 10})
    for split in ("train", "val"):
        shutil.copytree(folder / "data/flat", folder / "data/leak" / split, dirs_exist_ok=True)
    _recipe(folder, "flat", "data", "flat", "flat")
    _recipe(folder, "leak", "data/leak")


def _imbalanced(folder: Path) -> None:
    _classes(folder / "data", "train", {"good": 95, "scratch": 5})
    _classes(folder / "data", "val", {"good": 38, "scratch": 2})
    _recipe(folder, "recipe", "data")


def _suffixes(folder: Path) -> None:
    for split, count in (("train", 8), ("val", 3)):
        seeds: Iterator[int] = iter(range(_seed(split, 500), _seed(split, 600)))
        for sub in ("ext", "avif_named_jpg"):
            _classes(folder / "data" / sub, split, {"cat": count, "dog": count})
        _classes(folder / "data/avif", split, {"cat": count})
        for name, kind in FORMATS.items():
            write(folder / "data/ext" / split / "cat" / name, picture(next(seeds), kind, (48, 48)))
        write(folder / "data/ext" / split / "cat/i.heic", HEIC)
        write(folder / "data/ext" / split / "cat/noext", picture(next(seeds)))
        for number in range(4):
            write(folder / "data/avif" / split / f"dog/{number}.avif", picture(next(seeds), "AVIF", (48, 48)))
        dogs = folder / "data/avif_named_jpg" / split / "dog"
        write(dogs / "scraped.jpg", picture(next(seeds), "AVIF", (48, 48)))
        write(dogs / "page.jpg", b"<html><body>404 Not Found</body></html>\n")
        write(dogs / "zero.jpg", b"")
    for sub in ("ext", "avif", "avif_named_jpg"):
        _recipe(folder, sub, f"data/{sub}")
    for name in ("UP.JPG", "a.avif", "y.jfif", "z.jpe"):
        write(folder / "mixed" / name, (folder / "data/ext/train/cat" / name).read_bytes())
    write(folder / "mixed/i.heic", HEIC)
    write(folder / "mixed/noext", picture(0))


def _pixel_formats(folder: Path) -> None:
    """The special files in a class beside one of plain pictures."""
    for file in (DATA / "pixel-formats").iterdir():
        write(folder / "data/train/special" / file.name, file.read_bytes())
        (folder / file.name).unlink()
    _classes(folder / "data", "train", {"plain": 4})
    _classes(folder / "data", "val", {"special": 2, "plain": 2})
    _recipe(folder, "recipe", "data")


def _two_classes(folder: Path) -> None:
    for split, count in COUNTS.items():
        _classes(folder / "data/two", split, {"cat": count, "dog": count})


def _searched(folder: Path) -> None:
    """What the cases' spaces search: a detector and a segmentor."""
    shutil.copytree(DATA / "coco-results/data", folder / "data", dirs_exist_ok=True)
    _annotated_images(folder)
    recipe = (DATA / "coco-results/recipe.yaml").read_text()
    (folder / "detect.yaml").write_text(recipe.replace("cases/coco-results", f"cases/{folder.name}"))
    shutil.copyfile(DATA / "class-names-unicode/recipe.yaml", folder / "segment.yaml")


FOLDERS: dict[str, Callable[[Path], Any]] = {
    "leaked-validation": _leaked,
    "imbalance": _imbalanced,
    "suffixes": _suffixes,
    "pixel-formats": _pixel_formats,
    "top5-of-two": _two_classes,
    "metric-never-reported": _searched,
    "parameter-without-effect": _searched,
}
"""By case: what writes it."""
