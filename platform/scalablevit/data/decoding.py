"""Image and mask files to arrays: every pixel as its author meant it, or a reason why not."""

import io
import struct
import sys
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

import numpy as np
import simplejpeg
from numpy.typing import NDArray
from PIL import Image, ImageFile, UnidentifiedImageError, features

from scalablevit.data.names import shown
from scalablevit.data.shards import Member

SUFFIXES = {
    "JPEG": ("jpg", "jpeg", "jpe", "jfif"),
    "PNG": ("png", "apng"),
    "WEBP": ("webp",),
    "BMP": ("bmp",),
    "TIFF": ("tif", "tiff"),
    "GIF": ("gif",),
    "PPM": ("ppm", "pgm", "pbm", "pnm"),
    **({"AVIF": ("avif",)} if features.check("avif") else {}),
    **({"JPEG2000": ("jp2", "j2k")} if features.check("jpg_2000") else {}),
    "TGA": ("tga",),
}
"""What is read: Pillow's name of each format, as far as Pillow was built with it, and the suffixes of its files."""
FORMATS = tuple(kind for kind in SUFFIXES if kind != "TGA")
"""What is read whatever the file is named; decided by content."""
_BY_NAME = (*FORMATS, "TGA")  # a TGA begins with no signature: other bytes must not be taken for one
Image.init()  # `Image.open(formats=...)` knows only the commonest formats without it
_EXIF_ORIENTATION = 0x0112
_JPEG_END = b"\xff\xd9"
_PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_PNG_GREY, _PNG_PALETTE = 0, 3
_PNG_DEPTH = 24  # offset of the bit depth, before the colour type


class BadSample(Exception):
    """A file that cannot become a sample.

    Args:
        path: the file.
        reason: what is wrong with it, for the user.
    """

    def __init__(self, path: str, reason: str) -> None:
        self.path = shown(path)
        self.reason = shown(reason)
        super().__init__(path, reason)

    def __str__(self) -> str:
        return f"{self.path}: {self.reason}"


def read_image(path: Path | Member, max_pixels: int) -> NDArray[np.uint8]:
    """Read an image file as RGB, uint8 (height, width, 3), upright by its EXIF orientation.

    Grey, palette, CMYK and 16-bit images are converted (16 bits scaled to 8), transparency is dropped, and of an
    animation the first frame is taken.

    Raises:
        BadSample: the file is missing, no image, cut short, or has more than `max_pixels` pixels.
    """
    return decode_image(_read(path), max_pixels, str(path))


def decode_image(
    data: bytes,
    max_pixels: int,
    name: str = "image",
    *,
    refuse_damage: bool = False,
    limit: str = "data.max_pixels",
) -> NDArray[np.uint8]:
    """`read_image` for bytes at hand; `name` stands for the path in errors, `limit` for what `max_pixels` comes from.

    With `refuse_damage` a JPEG with broken data is a BadSample, too, where TurboJPEG decodes it; otherwise what could
    not be decoded is grey, and a line on standard error says so.
    """
    with _explained(name):
        image = _open(io.BytesIO(data), max_pixels, name, limit)
        if image.format in ("JPEG", "MPO"):  # MPO: a JPEG followed by further ones
            # Decoders fill missing rows of a JPEG with grey and say nothing. Pillow has read up to the first scan, so
            # an end marker before that point, in an embedded thumbnail, does not count. Sought where it should be.
            if data.rfind(_JPEG_END, image.fp.tell() if image.fp else 0) < 0:
                raise BadSample(name, "the file is cut short (no end-of-image marker)")
            if image.mode in ("RGB", "L") and (pixels := _decode_jpeg(data, refuse_damage)) is not None:
                return _upright(pixels, _orientation(image))
        if image.format == "PNG":
            _check_png(data, name)
        orientation = _orientation(image)
        return _upright(_to_rgb(image, name), orientation)


def read_size(path: Path | Member, max_pixels: int) -> tuple[int, int]:
    """Height and width of `read_image(path)`, from the header alone.

    Raises:
        BadSample: as `read_image`, as far as the header tells.
    """
    with _explained(str(path)), path.open("rb") as file:
        image = _open(file, max_pixels, str(path))
        return _upright_size(image)


def read_mask(path: Path, max_pixels: int) -> NDArray[np.uint8]:
    """Read a PNG of class ids as uint8 (height, width); the ids of a palette image are its indices.

    Raises:
        BadSample: missing, cut short, too large, or of a kind whose values are not ids of 8 bits.
    """
    data = _read(path)
    with _explained(str(path)):
        image = _open_mask(io.BytesIO(data), max_pixels, str(path))
        _check_png(data, str(path))
        orientation = _orientation(image)
        return _upright(np.array(image, np.uint8), orientation)


def read_mask_size(path: Path, max_pixels: int) -> tuple[int, int]:
    """Height and width of `read_mask(path)`, without its ids.

    Raises:
        BadSample: as `read_mask`, as far as the header tells.
    """
    with _explained(str(path)), path.open("rb") as file:
        return _upright_size(_open_mask(file, max_pixels, str(path)))


def _read(path: Path | Member) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise BadSample(str(path), f"cannot be read: {error.strerror or error}") from error


@contextmanager
def _explained(name: str) -> Iterator[None]:
    """Turn whatever a decoder raises on foreign bytes into a BadSample."""
    try:
        yield
    except (BadSample, MemoryError):
        raise
    except UnidentifiedImageError as error:
        raise BadSample(name, f"not an image of a known format ({', '.join(SUFFIXES)})") from error
    except Exception as error:  # decoders raise nearly anything on damaged data, from struct.error to cv2.error
        raise BadSample(name, f"cannot be decoded ({type(error).__name__}: {error})") from error


def _open(file: BinaryIO, max_pixels: int, name: str, limit: str = "data.max_pixels") -> ImageFile.ImageFile:
    """Read the header only."""
    image = Image.open(file, formats=_BY_NAME if name.lower().endswith(".tga") else FORMATS)
    if image.width * image.height > max_pixels:
        raise BadSample(name, f"{image.width} x {image.height} pixels are more than {limit} ({max_pixels})")
    return image


def _open_mask(file: BinaryIO, max_pixels: int, name: str) -> ImageFile.ImageFile:
    image = _open(file, max_pixels, name)
    if image.format != "PNG":
        raise BadSample(name, f"a mask must be a PNG, this is {image.format}")
    # Bit depth and colour type from the header: Pillow stretches grey of fewer bits to 0..255, which spoils ids.
    position = file.tell()
    file.seek(_PNG_DEPTH)
    depth, kind = file.read(2)
    file.seek(position)
    if kind != _PNG_PALETTE and (kind, depth) != (_PNG_GREY, 8):
        found = f"colour type {kind} with {depth} bits"
        raise BadSample(name, f"a mask must have one 8-bit channel or a palette; this PNG has {found}")
    return image


def _check_png(data: bytes, name: str) -> None:
    """Refuse a PNG whose pixels are not those that it sums up: Pillow passes over their sums."""
    at = len(_PNG_SIGNATURE)
    while at + 12 <= len(data):
        length, kind = struct.unpack_from(">I4s", data, at)
        end = at + 8 + length
        if kind in (b"IHDR", b"PLTE", b"IDAT"):
            if data[end : end + 4] != struct.pack(">I", zlib.crc32(data[at + 4 : end])):
                raise BadSample(name, f"the file is damaged or cut short ({kind.decode()} differs from its sum)")
        elif kind == b"IEND":
            return
        at = end + 4


def _orientation(image: Image.Image) -> int:
    """EXIF's orientation; 1, upright, where there is none or it cannot be read.

    One reading for the header and for all decoders: they differ on damaged EXIF. Pillow would also take XMP's, which
    viewers and OpenCV leave aside.
    """
    for key in ("xmp", "XML:com.adobe.xmp"):
        image.info.pop(key, None)
    if image.format == "TIFF":  # Pillow turns it itself, in its size already and in its pixels when it loads them
        return 1
    try:
        return int(image.getexif().get(_EXIF_ORIENTATION, 1))
    except Exception:  # the pixels are whole, whatever stands beside them
        return 1


def _upright_size(image: Image.Image) -> tuple[int, int]:
    return (image.width, image.height) if _orientation(image) in (5, 6, 7, 8) else (image.height, image.width)


def _upright(pixels: NDArray[np.uint8], orientation: int) -> NDArray[np.uint8]:
    """Turn pixels (height, width, ...) as EXIF's orientation asks."""
    if orientation in (5, 6, 7, 8):
        pixels = pixels.swapaxes(0, 1)
    if orientation in (3, 4, 7, 8):
        pixels = pixels[::-1]
    if orientation in (2, 3, 6, 7):
        pixels = pixels[:, ::-1]
    return np.ascontiguousarray(pixels)


def _decode_jpeg(data: bytes, refuse_damage: bool) -> NDArray[np.uint8] | None:
    """RGB pixels of a grey or three-channel JPEG, bit for bit those of Pillow, in two thirds of its time.

    Returns:
        None for what is left to Pillow: kinds that TurboJPEG does not know, as rare chroma subsamplings.

    Raises:
        ValueError: `refuse_damage`, and data in it is broken.
    """
    try:
        return np.asarray(simplejpeg.decode_jpeg(data), np.uint8)
    except ValueError as error:
        damage = error
    try:
        pixels = np.asarray(simplejpeg.decode_jpeg(data, strict=False), np.uint8)
    except ValueError:
        return None
    if refuse_damage:
        raise damage
    print(damage, file=sys.stderr, flush=True)  # as native decoders say it: `Complaints` takes it from there
    return pixels


def _to_rgb(image: Image.Image, name: str) -> NDArray[np.uint8]:
    if image.mode == "I" or image.mode.startswith("I;16"):
        deep = np.asarray(image).astype(np.int64)
        if deep.min() < 0 or deep.max() > 65535:
            raise BadSample(name, "32-bit values have no known range")
        grey = ((deep * 255 + 32767) // 65535).astype(np.uint8)
        return np.repeat(grey[:, :, None], 3, axis=2)
    if image.mode == "F":
        raise BadSample(name, "floating-point values have no known range")
    if image.mode == "P" and "transparency" in image.info:
        image = image.convert("RGBA")
    return np.array(image.convert("RGB"), np.uint8)
