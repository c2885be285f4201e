"""The demo data set: drawn shapes, written to disk in the layouts that the platform reads."""

import json
import math
import shutil
import uuid
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from scalablevit.config.data import Shapes
from scalablevit.config.errors import UserError
from scalablevit.config.section import PlainValues
from scalablevit.data.coco_format import CocoAnnotation, CocoCategory, CocoFile, CocoImage

GENERATION = 1
"""Version of the images, raised whenever they change: existing data of another version is refused."""
MARKER = "shapes.json"
"""File in the data set's folder with the parameters that it was made with."""
BACKGROUND = 0
"""Mask value of the background."""
CATEGORY_IDS = {"circle": 1, "cross": 2, "ring": 4, "square": 5, "star": 8, "triangle": 11}
"""COCO category ids, with gaps as COCO's own have."""
CLASSES = tuple(CATEGORY_IDS)
"""Names of the shapes; a shape's mask value is its index + 1."""

_JPEG_QUALITY = 92
_SUBPIXELS = 4  # binary digits of the fraction of drawn coordinates
_VISIBLE = 0.4  # least fraction of a shape that is not covered by later ones
_DARK = (15.0, 120.0)  # backgrounds and bars, per channel
_LIGHT = (105.0, 240.0)  # shapes: lighter on the whole, not in every channel
_TURN = 0.5  # most rotation in either direction, radians
_SPLITS = ("train", "val")

Points = NDArray[np.float64]
"""(corners, 2): x, y."""
Point = NDArray[np.float64]
"""(2,): x, y, pixels."""
Color = NDArray[np.float64]
"""(3,): RGB, 0 to 255."""


@dataclass(frozen=True, slots=True)
class Instance:
    """A shape in a scene."""

    name: str
    visible: NDArray[np.bool_]
    """(side, side): the pixels that no later shape covers."""


def write_shapes(shapes: Shapes, root: Path) -> None:
    """Write the data set to `root`, unless it exists already.

    Layout: `classification/{train,val}/<class>/*.jpg`; `segmentation/images/{train,val}/*.jpg`,
    `segmentation/annotations/{train,val}/*.png` (0 is the background, a class like the others) and
    `segmentation/classes.txt`; `detection/{train,val}/*.jpg` (the images of segmentation) with
    `detection/annotations/instances_{train,val}.json` (COCO). `root` appears complete or not at all, also when several
    processes write it at once.

    Args:
        shapes: the recipe's `data.shapes`.
        root: folder of the data set.

    Raises:
        UserError: `root` has other files, or shapes with other parameters.
    """
    parameters = {"generation": GENERATION, **shapes.model_dump()}
    if _is_written(root, parameters):
        return
    root.parent.mkdir(parents=True, exist_ok=True)
    partial = root.with_name(f".{root.name}.{uuid.uuid4().hex}")
    try:
        for split, images in zip(_SPLITS, (shapes.train_images, shapes.val_images), strict=True):
            _write_classification(partial / "classification" / split, shapes, split, images)
            _write_scenes(partial, shapes, split, images)
        (partial / "segmentation" / "classes.txt").write_text("\n".join(["background", *CLASSES]) + "\n")
        (partial / MARKER).write_text(json.dumps(parameters))
        partial.rename(root)  # replaces nothing but an empty folder
    except OSError:
        if not _is_written(root, parameters):  # else another process was faster
            raise
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def draw_dominant_shape(rng: np.random.Generator, side: int, name: str) -> NDArray[np.uint8]:
    """Return an image of one large shape behind at most two bars, uint8 (side, side, 3), RGB.

    Args:
        rng: source of all randomness.
        side: height and width, pixels.
        name: one of `CLASSES`.
    """
    image = _texture(rng, side, rng.uniform(*_DARK, 3))
    radius = rng.uniform(0.26, 0.44) * side
    region = _draw(name, rng.uniform(0.38, 0.62, 2) * side, radius, rng.uniform(-_TURN, _TURN), side)
    image = _paint(rng, image, region)
    for _ in range(rng.integers(0, 2, endpoint=True)):
        _draw_bar(rng, image)
    return _finish(rng, image)


def draw_scene(rng: np.random.Generator, side: int) -> tuple[NDArray[np.uint8], list[Instance]]:
    """Return an image of one to four shapes, which may overlap, uint8 (side, side, 3), RGB, and its instances.

    Two to four shapes are tried; one that would hide too much of an earlier one is not drawn.

    Args:
        rng: source of all randomness.
        side: height and width, pixels.
    """
    image = _texture(rng, side, rng.uniform(*_DARK, 3))
    instances: list[Instance] = []
    areas: list[int] = []
    for _ in range(rng.integers(2, 5)):
        name = str(rng.choice(CLASSES))
        radius = rng.uniform(0.13, 0.3) * side
        region = _draw(name, rng.uniform(0.12, 0.88, 2) * side, radius, rng.uniform(-_TURN, _TURN), side)
        visible = [instance.visible & ~region for instance in instances]
        if any(rest.sum() < _VISIBLE * area for rest, area in zip(visible, areas, strict=True)):
            continue
        image = _paint(rng, image, region)
        instances = [Instance(instance.name, rest) for instance, rest in zip(instances, visible, strict=True)]
        instances.append(Instance(name, region))
        areas.append(int(region.sum()))
    return _finish(rng, image), instances


def _is_written(root: Path, parameters: PlainValues) -> bool:
    """Return whether `root` has exactly this data set; False: it is absent or empty.

    Raises:
        UserError: it has something else.
    """
    if not root.exists() or (root.is_dir() and not any(root.iterdir())):
        return False
    try:
        stored = json.loads((root / MARKER).read_bytes())
    except (OSError, ValueError):
        raise UserError(
            f"{root} exists and was not made by data.shapes",
            where="data.root",
            fix="name another folder, or remove data.shapes to read what is there",
        ) from None
    if stored != parameters:
        raise UserError(
            f"{root} was made with {stored}, the recipe asks for {parameters}",
            where="data.shapes",
            fix="name another data.root, or remove that folder",
        )
    return True


def _generator(shapes: Shapes, split: str, part: int, index: int) -> np.random.Generator:
    """Return the generator of image `index`; part 0 is classification, part 1 the scenes."""
    return np.random.default_rng([shapes.seed, _SPLITS.index(split), part, index])


def _write_classification(folder: Path, shapes: Shapes, split: str, images: int) -> None:
    for name in CLASSES:
        (folder / name).mkdir(parents=True)
    for index in range(images):
        name = CLASSES[index % len(CLASSES)]
        image = draw_dominant_shape(_generator(shapes, split, 0, index), shapes.image_size, name)
        (folder / name / f"{index:06d}.jpg").write_bytes(_jpeg(image))


def _write_scenes(root: Path, shapes: Shapes, split: str, images: int) -> None:
    """Write segmentation and detection data of the same images."""
    segmentation_images = root / "segmentation" / "images" / split
    masks = root / "segmentation" / "annotations" / split
    detection_images = root / "detection" / split
    annotations = root / "detection" / "annotations"
    for folder in (segmentation_images, masks, detection_images, annotations):
        folder.mkdir(parents=True, exist_ok=True)
    coco = Coco(shapes.image_size)
    for index in range(images):
        image, instances = draw_scene(_generator(shapes, split, 1, index), shapes.image_size)
        encoded = _jpeg(image)
        (segmentation_images / f"{index:06d}.jpg").write_bytes(encoded)
        (detection_images / f"{index:06d}.jpg").write_bytes(encoded)
        (masks / f"{index:06d}.png").write_bytes(_encode_image(".png", class_mask(instances, shapes.image_size)))
        coco.add(f"{index:06d}.jpg", instances)
    (annotations / f"instances_{split}.json").write_text(json.dumps(coco.content()))


def class_mask(instances: list[Instance], side: int) -> NDArray[np.uint8]:
    """Return the class ids of a scene, uint8 (side, side): 0 for the background, else the index in `CLASSES` + 1."""
    mask = np.full((side, side), BACKGROUND, np.uint8)
    for instance in instances:
        mask[instance.visible] = CLASSES.index(instance.name) + 1
    return mask


class Coco:
    """Collects instances in COCO's format, visible regions as uncompressed run lengths.

    Args:
        side: height and width of all images, pixels.
    """

    def __init__(self, side: int) -> None:
        self._side = side
        self._images: list[CocoImage] = []
        self._annotations: list[CocoAnnotation] = []

    def add(self, file_name: str, instances: list[Instance]) -> None:
        """Add an image and its instances."""
        image_id = len(self._images) + 1
        self._images.append({"id": image_id, "file_name": file_name, "height": self._side, "width": self._side})
        for instance in instances:
            rows, columns = np.nonzero(instance.visible)
            top, left = int(rows.min()), int(columns.min())
            self._annotations.append(
                {
                    "id": len(self._annotations) + 1,
                    "image_id": image_id,
                    "category_id": CATEGORY_IDS[instance.name],
                    "bbox": [left, top, int(columns.max()) - left + 1, int(rows.max()) - top + 1],
                    "area": int(instance.visible.sum()),
                    "segmentation": {"size": [self._side, self._side], "counts": encode_rle(instance.visible)},
                    "iscrowd": 0,
                }
            )

    def content(self) -> CocoFile:
        """Return the file's content."""
        categories: list[CocoCategory] = [
            {"id": category_id, "name": name} for name, category_id in CATEGORY_IDS.items()
        ]
        return {"images": self._images, "annotations": self._annotations, "categories": categories}


def encode_rle(region: NDArray[np.bool_]) -> list[int]:
    """Return the lengths of the runs of False and True in turn, column by column, from False on (COCO's format).

    Args:
        region: (height, width).
    """
    flat = np.concatenate([[False], region.ravel(order="F"), [not region[-1, -1]]])
    changes = np.flatnonzero(flat[1:] != flat[:-1])
    return [int(length) for length in np.diff(changes, prepend=0)]


def _star(corners: int, inner: float) -> Points:
    angles = np.arange(2 * corners) * math.pi / corners
    radii = np.where(np.arange(2 * corners) % 2 == 0, 1.0, inner)
    return np.stack([radii * np.sin(angles), -radii * np.cos(angles)], axis=-1)


def _polygon(corners: int) -> Points:
    angles = np.arange(corners) * 2 * math.pi / corners
    return np.stack([np.sin(angles), -np.cos(angles)], axis=-1)


def _cross() -> Points:
    arm = 0.3
    quarter = np.array([(arm, -arm), (arm, -0.95), (-arm, -0.95)])
    return np.concatenate([quarter @ np.array([(c, s), (-s, c)]) for c, s in ((1, 0), (0, -1), (-1, 0), (0, 1))])


OUTLINES: dict[str, tuple[Points, ...]] = {
    "circle": (_polygon(40),),
    "cross": (_cross(),),
    "ring": (_polygon(40), 0.55 * _polygon(40)),
    "square": (_polygon(4),),
    "star": (_star(5, 0.42),),
    "triangle": (_polygon(3),),
}
"""Closed outlines, (corners, 2) each, within the unit circle; a second one is a hole."""


def _draw(name: str, center: Point, radius: float, angle: float, side: int) -> NDArray[np.bool_]:
    """Return the pixels (side, side) of a shape that is rotated by `angle`, in radians."""
    turn = np.array([(math.cos(angle), math.sin(angle)), (-math.sin(angle), math.cos(angle))])
    canvas = np.zeros((side, side), np.uint8)
    outlines = [
        np.round((radius * outline @ turn + center) * 2**_SUBPIXELS).astype(np.int32) for outline in OUTLINES[name]
    ]
    cv2.fillPoly(canvas, outlines, 1, shift=_SUBPIXELS)
    return canvas.astype(np.bool_)


def _texture(rng: np.random.Generator, side: int, color: Color) -> NDArray[np.float32]:
    """Return a blotchy surface around a colour, (side, side, 3)."""
    cells = int(rng.integers(2, 9))
    blotches = rng.normal(0, rng.uniform(6, 22), (cells, cells, 3)).astype(np.float32)
    return color.astype(np.float32) + cv2.resize(blotches, (side, side), interpolation=cv2.INTER_CUBIC)


def _paint(rng: np.random.Generator, image: NDArray[np.float32], region: NDArray[np.bool_]) -> NDArray[np.float32]:
    """Return an image (side, side, 3) with a region (side, side) filled with a light texture."""
    return np.where(region[:, :, None], _texture(rng, len(image), rng.uniform(*_LIGHT, 3)), image)


def _draw_bar(rng: np.random.Generator, image: NDArray[np.float32]) -> None:
    """Draw a line over the whole image, in place."""
    side = len(image)
    first, second = rng.uniform(0, side, (2, 2)).astype(int)
    color = rng.uniform(*_DARK, 3)
    cv2.line(
        image,
        (int(first[0]), int(first[1])),
        (int(second[0]), int(second[1])),
        (float(color[0]), float(color[1]), float(color[2])),
        max(1, round(side * float(rng.uniform(0.02, 0.08)))),
    )


def _finish(rng: np.random.Generator, image: NDArray[np.float32]) -> NDArray[np.uint8]:
    """Return the image (side, side, 3) with a camera's blur, noise and contrast."""
    blurred = cv2.GaussianBlur(image, (0, 0), float(rng.uniform(0.4, 1.0)))
    noisy = blurred + rng.normal(0, rng.uniform(2, 14), image.shape)
    contrast, brightness = rng.uniform(0.6, 1.1), rng.uniform(-20, 20)
    return np.clip((noisy - 128) * contrast + 128 + brightness, 0, 255).astype(np.uint8)


def _jpeg(image: NDArray[np.uint8]) -> bytes:
    return _encode_image(".jpg", image[:, :, ::-1], cv2.IMWRITE_JPEG_QUALITY, _JPEG_QUALITY)


def _encode_image(suffix: str, image: NDArray[np.uint8], *options: int) -> bytes:
    _, data = cv2.imencode(suffix, image, options)
    return data.tobytes()
