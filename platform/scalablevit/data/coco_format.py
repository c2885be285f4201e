"""COCO's annotation format, the part of it that this project writes."""

from typing import TypedDict

from scalablevit.data.instances import RunLengths


class CocoImage(TypedDict, total=False):
    """An entry of `images`; height and width are in pixels."""

    id: int
    file_name: str
    height: int
    width: int


class CocoAnnotation(TypedDict, total=False):
    """An entry of `annotations`: an object, or with a `score` a detection."""

    id: int
    image_id: int
    category_id: int
    bbox: list[float]
    """x, y, width, height, in pixels."""
    area: float
    """Square pixels."""
    iscrowd: int
    """1 for a group of objects that are not annotated one by one, else 0."""
    segmentation: RunLengths | dict[str, list[int]]
    """Run lengths, compressed or not."""
    score: float
    """0 to 1."""


class CocoCategory(TypedDict):
    """An entry of `categories`."""

    id: int
    name: str


class CocoFile(TypedDict):
    """A whole file."""

    images: list[CocoImage]
    annotations: list[CocoAnnotation]
    categories: list[CocoCategory]
