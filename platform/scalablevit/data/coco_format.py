"""COCO's annotation format, as far as it is written here."""

from typing import TYPE_CHECKING, TypedDict

if TYPE_CHECKING:  # it loads COCO's library
    from scalablevit.data.instances import RunLengths


class CocoImage(TypedDict, total=False):
    """An entry of `images`."""

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
    """x, y, width, height."""
    area: float
    iscrowd: int
    segmentation: "RunLengths | dict[str, list[int]]"
    """Run lengths, compressed or not."""
    score: float


class CocoCategory(TypedDict):
    """An entry of `categories`."""

    id: int
    name: str


class CocoFile(TypedDict):
    """A file."""

    images: list[CocoImage]
    annotations: list[CocoAnnotation]
    categories: list[CocoCategory]
