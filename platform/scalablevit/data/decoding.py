"""Arrays from image and mask files: the pixels that are meant, or the reason why they cannot be decoded."""

import io
import struct
import sys
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, TypeAlias

import numpy as np
import simplejpeg
from numpy.typing import NDArray
from PIL import Image, ImageFile, JpegImagePlugin, UnidentifiedImageError, features
from PIL.TiffImagePlugin import TiffImageFile

from scalablevit.config.data import IMAGENET_MEAN
from scalablevit.config.section import Triple
from scalablevit.data.names import printable
from scalablevit.data.shards import Member

Color: TypeAlias = tuple[int, int, int]
"""Red, green, blue, 0 to 255."""

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
"""Formats that are read: Pillow's names, if Pillow was built with them, and the suffixes of their files."""
FORMATS = tuple(kind for kind in SUFFIXES if kind != "TGA")
"""Formats that are recognized by content, whatever the file's name."""
_BY_NAME = (*FORMATS, "TGA")  # a TGA begins with no signature: other bytes must not be taken for one
MASK_FORMATS = ("PNG", "TIFF", "BMP")
"""Formats of masks: lossless ones."""
CODED_BY_COLOR = "coded by colour"
"""Beginning of the reason why a mask with colours in place of class ids is refused."""
_MASK_MODES = ("P", "L", "1", "I", "I;16", "I;16B", "LA", "RGB", "RGBA")
_LOSSY = ("jpeg", "tiff_jpeg", "webp")
_LARGEST_ID = 255
_NAMED_COLORS = 5
DEEPEST = 65535
"""Largest value of 16 bits; 16-bit and 32-bit images are scaled by it to 8 bits."""
Image.init()  # `Image.open(formats=...)` knows only the commonest formats without it
_EXIF_ORIENTATION = 0x0112
_NEW_SUBFILE_TYPE = 0x00FE
_JPEG_BEGIN = b"\xff\xd8"
_JPEG_END = b"\xff\xd9"
_SEGMENT = struct.Struct(">HH")  # of a JPEG: marker, and length from the length on
_FRAME = struct.Struct(">BHHB")  # bits, height, width, channels
_FRAMES = (0xFFC0, 0xFFC1, 0xFFC2)  # baseline, extended and progressive
_START_OF_SCAN = 0xFFDA
_TABLES = (0xFFC4, 0xFFDB, 0xFFDD, 0xFFFE)  # Huffman, quantization, restart interval; and comments
_ORDINARY = {0xFFE0: (16, b"JFIF\0"), 0xFFE2: (16, b"ICC_PROFILE\0"), 0xFFEE: (14, b"Adobe")}
"""Least length and beginning of segments that are in most files and turn no pixels, unlike those of EXIF."""
_PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_LOW = 4096  # values below it fit into 12 bits, the depth of cameras and scanners
_KEYED = ("1", "L", "RGB")  # modes in which one colour may mean transparency


class BadSample(Exception):
    """A file that cannot become a sample.

    Args:
        path: the file.
        reason: what is wrong with it, for the user.
    """

    def __init__(self, path: str, reason: str) -> None:
        self.path = printable(path)
        self.reason = printable(reason)
        super().__init__(path, reason)

    @property
    def may_pass(self) -> bool:
        """Return whether the storage failed, not the file's content: the same file may be read the next time."""
        # decoders raise errors of this kind, too, but without the system's number
        return isinstance(self.__cause__, OSError) and self.__cause__.errno is not None

    def __str__(self) -> str:
        return f"{self.path}: {self.reason}"


class ChangedSample(BadSample):
    """A file whose contents have changed since the run's digest was computed; it ends the run."""


class WrongMask(BadSample):
    """A mask that can be decoded but has no class ids."""


def mean_color(mean: Triple) -> Color:
    """Return a mean of 0..1 per RGB channel (`data.mean`) as a colour of 0..255; normalization makes it about 0."""
    red, green, blue = (max(0, min(255, round(255 * value))) for value in mean)
    return red, green, blue


IMAGENET_COLOR = mean_color(IMAGENET_MEAN)
"""The mean colour of ImageNet."""


@dataclass(frozen=True, slots=True)
class Decoded:
    """An image, and what its conversion to 8-bit RGB may have changed."""

    pixels: NDArray[np.uint8]
    """(height, width, 3), RGB."""
    transparent: bool = False
    """Whether some pixels are transparent."""
    deep: bool = False
    """Whether the file has 16 or 32 bits per channel."""
    low_range: str = ""
    """Why scaling by 65535 may be wrong for the image; empty: it is not in doubt."""


@dataclass(frozen=True, slots=True)
class Header:
    """Facts from an image's header."""

    size: tuple[int, int]
    """Height and width, in pixels, of what `read_image` returns."""
    turned: bool
    """Whether EXIF's orientation swaps height and width."""
    flipped: bool
    """Whether EXIF's orientation turns or mirrors the image without a change of its size."""
    paged: bool
    """Whether further pages or frames follow the one that is read."""
    transparency: bool
    """Whether there is an alpha channel or a transparent colour; the pixels may all be opaque."""
    deep: bool
    """Whether there are 16 or 32 bits per channel."""


def read_image(path: Path | Member, max_pixels: int, background: Color = IMAGENET_COLOR) -> NDArray[np.uint8]:
    """Return an image file as RGB, uint8 (height, width, 3), upright by its EXIF orientation.

    Grey, palette, CMYK and 16-bit images are converted (16 bits scaled to 8), transparent pixels are composed onto
    `background`, and of an animation the first frame is read.

    Args:
        path: of the file.
        max_pixels: height times width at most.
        background: colour under transparent pixels.

    Raises:
        BadSample: the file is missing, no image, cut short, or has more than `max_pixels` pixels.
    """
    return decode_image(_read(path), max_pixels, str(path), background=background)


def inspect_image(path: Path | Member, max_pixels: int) -> Decoded:
    """Return an image file as `read_image` does, with what its conversion may have changed.

    Raises:
        BadSample: as `read_image`.
    """
    return decode(_read(path), max_pixels, str(path))


def decode_image(
    data: bytes,
    max_pixels: int,
    name: str = "image",
    *,
    refuse_damage: bool = False,
    limit: str = "data.max_pixels",
    background: Color = IMAGENET_COLOR,
) -> NDArray[np.uint8]:
    """Return what `read_image` returns for a file of these bytes.

    Args:
        data: the file's bytes.
        max_pixels: height times width at most.
        name: in place of the path, for errors.
        refuse_damage: true: a JPEG with damaged data is a BadSample, where TurboJPEG decodes it; false: what cannot be
            decoded is grey, and a line on standard error reports it.
        limit: the key that `max_pixels` comes from, for errors.
        background: colour under transparent pixels.

    Raises:
        BadSample: as `read_image`.
    """
    return decode(data, max_pixels, name, refuse_damage=refuse_damage, limit=limit, background=background).pixels


def decode(
    data: bytes,
    max_pixels: int,
    name: str = "image",
    *,
    refuse_damage: bool = False,
    limit: str = "data.max_pixels",
    background: Color = IMAGENET_COLOR,
) -> Decoded:
    """Return what `decode_image` returns, with what the conversion may have changed.

    Raises:
        BadSample: as `read_image`.
    """
    with _refuse_bad_bytes(name):
        scan = find_first_scan(data, max_pixels)
        if scan and data.rfind(_JPEG_END, scan) >= 0 and (pixels := _decode_jpeg(data, refuse_damage)) is not None:
            return Decoded(pixels)
        image = _open(io.BytesIO(data), max_pixels, name, limit)  # which also says what is wrong with the rest
        if image.format in ("JPEG", "MPO"):  # MPO: a JPEG followed by further ones
            # Decoders fill missing rows of a JPEG with grey without an error, so look for the end marker from the end.
            if data.rfind(_JPEG_END, _first_scan(image, data)) < 0:
                raise BadSample(name, "the file is cut short (no end-of-image marker)")
            if image.mode in ("RGB", "L") and (pixels := _decode_jpeg(data, refuse_damage)) is not None:
                return Decoded(_upright(pixels, _orientation(image)))
        if image.format == "PNG":
            _check_png(data, name)
        layout = _layout(image)
        orientation = _orientation(image)
        return _to_rgb(image, name, layout, background, orientation)


def convert_image(
    image: Image.Image, max_pixels: int, name: str = "image", background: Color = IMAGENET_COLOR
) -> NDArray[np.uint8]:
    """Return an image that Pillow has opened or made as `read_image` returns its file.

    Args:
        image: is not changed, except that its pixels are loaded.
        max_pixels: height times width at most.
        name: in place of a path, for errors.
        background: colour under transparent pixels.

    Raises:
        BadSample: as `read_image`.
    """
    with _refuse_bad_bytes(name):
        _check_size(image, max_pixels, name, "data.max_pixels")
        layout = _layout(image)
        kept = dict(image.info)
        orientation = _orientation(image)
        image.info.update(kept)
        return _to_rgb(image, name, layout, background, orientation).pixels


def read_header(path: Path | Member, max_pixels: int) -> Header:
    """Return facts from an image's header, without decoding it.

    Raises:
        BadSample: as `read_image`, for reasons that are in the header.
    """
    with _refuse_bad_bytes(str(path)), path.open("rb") as file:
        image = _open(file, max_pixels, str(path))
        transparency, deep = image.has_transparency_data, _is_deep(image, _layout(image))
        orientation = _exif_orientation(image)
        size, swapped = _upright_size(image), orientation in (5, 6, 7, 8) and image.width != image.height
        flipped = 2 <= orientation <= 8 and not swapped
        return Header(size, swapped, flipped, _is_paged(image), transparency, deep)


def read_mask(path: Path, max_pixels: int) -> NDArray[np.uint8]:
    """Return the class ids uint8 (height, width) of a PNG, TIFF or BMP.

    Ids are the indices of a palette image and the values of a grey one, also where it is written as RGB, with 1 to 4
    bits, or with 16 bits of which no value is above 255.

    Args:
        path: of the file.
        max_pixels: height times width at most.

    Raises:
        WrongMask: the values are no ids of 8 bits, or a lossy compression has changed them.
        BadSample: the file is missing, cut short or too large.
    """
    return _load_mask(path, max_pixels)[0]


def read_mask_and_palette(path: Path, max_pixels: int) -> tuple[NDArray[np.uint8], list[int]]:
    """Return what `read_mask` returns, and the palette: red, green, blue of value 0, of value 1, ...; empty: none.

    Raises:
        BadSample: as `read_mask`.
    """
    ids, image = _load_mask(path, max_pixels)
    return ids, (image.getpalette() or []) if image.mode == "P" else []


def _load_mask(path: Path, max_pixels: int) -> tuple[NDArray[np.uint8], Image.Image]:
    data = _read(path)
    with _refuse_bad_bytes(str(path)):
        image = _open_mask(io.BytesIO(data), max_pixels, str(path))
        if image.format == "PNG":
            _check_png(data, str(path))
        layout = _layout(image)
        orientation = _orientation(image)
        return _upright(_ids(image, layout, str(path)), orientation), image


def read_mask_size(path: Path, max_pixels: int) -> tuple[int, int]:
    """Return height and width of a mask in pixels, without decoding it.

    Raises:
        BadSample: as `read_mask`, for reasons that are in the header.
    """
    with _refuse_bad_bytes(str(path)), path.open("rb") as file:
        return _upright_size(_open_mask(file, max_pixels, str(path)))


def _read(path: Path | Member) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise BadSample(str(path), f"cannot be read: {error.strerror or error}") from error


@contextmanager
def _refuse_bad_bytes(name: str) -> Iterator[None]:
    """Turn whatever a decoder raises on bad bytes into a BadSample."""
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
    _check_size(image, max_pixels, name, limit)
    return image


def _check_size(image: Image.Image, max_pixels: int, name: str, limit: str) -> None:
    if image.width * image.height > max_pixels:
        raise BadSample(name, f"{image.width} x {image.height} pixels are more than {limit} ({max_pixels})")


def _open_mask(file: BinaryIO, max_pixels: int, name: str) -> ImageFile.ImageFile:
    """Read the header only, and refuse a file that by its header has no ids."""
    image = _open(file, max_pixels, name)
    layout = _layout(image)
    if image.format not in MASK_FORMATS:
        lossy = "JPEG changes class ids" if image.format in ("JPEG", "MPO") else f"this is {image.format}"
        raise WrongMask(name, f"a mask must be one of {', '.join(MASK_FORMATS)}; {lossy}")
    if image.format == "TIFF" and image.info.get("compression") in _LOSSY:
        raise WrongMask(name, f"the compression of this TIFF ({image.info['compression']}) changes class ids")
    if ";I" in layout:
        raise WrongMask(name, "its values are stored inverted (WhiteIsZero), so that ids are ambiguous")
    deep_color = ";16" in layout and not image.mode.startswith("I")
    if image.mode not in _MASK_MODES or deep_color:
        bits = " with 16 bits a channel" if deep_color else ""
        raise WrongMask(name, f"a mask must have one channel of whole numbers or a palette; this is {image.mode}{bits}")
    return image


def _ids(image: Image.Image, layout: str, name: str) -> NDArray[np.uint8]:
    """Return the class ids (height, width) of a mask that `_open_mask` has accepted."""
    if image.mode in ("P", "L", "1"):
        ids = np.array(image, np.uint8)
        # Pillow stretches grey of fewer bits to 0..255
        return ids // np.uint8(255 // (2 ** int(layout[-1]) - 1)) if layout in ("L;2", "L;4") else ids
    values = np.asarray(image)
    if values.ndim == 2:
        lowest, highest = int(values.min()), int(values.max())
        if lowest < 0 or highest > _LARGEST_ID:
            raise WrongMask(
                name, f"its values of 16 or 32 bits are {lowest}..{highest}; class ids are 0..{_LARGEST_ID}"
            )
        return values.astype(np.uint8)
    if image.mode in ("LA", "RGBA"):
        if (values[..., -1] != _LARGEST_ID).any():
            raise WrongMask(name, "it has transparent pixels, of which the class is unknown")
        values = values[..., :-1]
    if (values != values[..., :1]).any():
        raise WrongMask(name, _describe_colors(values))
    return np.array(values[..., 0])


def _describe_colors(values: NDArray[np.uint8]) -> str:
    """Return the reason why a mask of colours is refused: how many there are, and the most frequent ones."""
    packed = values.astype(np.uint32) @ np.array([2**16, 2**8, 1], np.uint32)
    colors, counts = np.unique(packed, return_counts=True)
    first = [int(color) for color in colors[np.argsort(-counts, kind="stable")[:_NAMED_COLORS]]]
    named = ", ".join(f"({color >> 16}, {color >> 8 & 255}, {color & 255})" for color in first)
    return f"{CODED_BY_COLOR}: {len(colors)} distinct colours, {named}{', ...' if len(colors) > len(first) else ''}"


def _check_png(data: bytes, name: str) -> None:
    """Refuse a PNG whose chunks differ from their CRC sums, which Pillow does not check."""
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
    """Return EXIF's orientation as decoded pixels have to be turned, 1 to 8; 1 for upright ones."""
    orientation = _exif_orientation(image)
    # Pillow turns a TIFF itself, in its size already and in its pixels when it loads them
    return 1 if image.format == "TIFF" else orientation


def _exif_orientation(image: Image.Image) -> int:
    """Return EXIF's orientation, 1 to 8; 1, upright, where there is none or it cannot be read.

    The header and all decoders use this one, since they differ on damaged EXIF. Pillow would also use XMP's, which
    viewers and OpenCV ignore.
    """
    for key in ("xmp", "XML:com.adobe.xmp"):
        image.info.pop(key, None)
    try:
        return int(image.getexif().get(_EXIF_ORIENTATION, 1))
    except Exception:  # the pixels are whole, whatever is wrong in the metadata
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


def _is_paged(image: Image.Image) -> bool:
    """Return whether pages or frames follow the first one; a JPEG's further pictures (MPO) are previews.

    As those of a TIFF may be: its second page then is of reduced resolution, or a mask of the first one.
    """
    try:
        if image.format == "MPO" or not getattr(image, "is_animated", False):
            return False
        if isinstance(image, TiffImageFile):
            image.seek(1)
            return not int(image.tag_v2.get(_NEW_SUBFILE_TYPE, 0)) & 0b101
        return True
    except Exception:  # the first one can be read, whatever follows it
        return False


def find_first_scan(data: bytes, max_pixels: int) -> int:
    """Return where the first scan of an ordinary JPEG begins, from its header; 0: Pillow has to read the header.

    An ordinary one is grey or has three channels, is upright (it has no EXIF), has one picture of at most `max_pixels`
    pixels, and has segments of no other kinds than nearly all files have. TurboJPEG reads the header when it decodes,
    and reading it by Pillow before that takes a tenth of the time of decoding a small image.

    Args:
        data: the file's bytes.
        max_pixels: height times width at most.
    """
    at, sized = len(_JPEG_BEGIN), False
    if not data.startswith(_JPEG_BEGIN):
        return 0
    while at + 4 <= len(data):
        marker, length = _SEGMENT.unpack_from(data, at)
        end = at + 2 + length
        if marker == _START_OF_SCAN:
            return end if sized and length > 2 and end < len(data) else 0
        if marker in _FRAMES:
            if sized or not _is_ordinary_frame(data[at + 4 : end], max_pixels):
                return 0
            sized = True
        elif marker in _ORDINARY:
            least, beginning = _ORDINARY[marker]
            if length < least or not data.startswith(beginning, at + 4):
                return 0
        elif marker not in _TABLES or length < 2:
            return 0
        at = end
    return 0


def _is_ordinary_frame(frame: bytes, max_pixels: int) -> bool:
    """Return whether a frame's header is of 8 bits, 1 or 3 channels and a size within bounds."""
    if len(frame) < 6:
        return False
    bits, height, width, channels = _FRAME.unpack_from(frame)
    # Pillow warns of images that are larger than its own limit
    fits = 0 < height * width <= min(max_pixels, Image.MAX_IMAGE_PIXELS or max_pixels)
    return bits == 8 and channels in (1, 3) and len(frame) == 6 + 3 * channels and fits


def _first_scan(image: ImageFile.ImageFile, data: bytes) -> int:
    """Return where the first scan of a JPEG begins: an end marker before it is of an embedded thumbnail."""
    if image.format == "MPO":  # Pillow has gone back to the file's beginning
        image = JpegImagePlugin.JpegImageFile(io.BytesIO(data))
    return image.fp.tell() if image.fp else 0  # Pillow has read up to the scan


def _decode_jpeg(data: bytes, refuse_damage: bool) -> NDArray[np.uint8] | None:
    """Return RGB pixels of a grey or three-channel JPEG, bit for bit those of Pillow, in two thirds of its time.

    Returns:
        None for kinds that TurboJPEG does not know, such as rare chroma subsamplings: Pillow decodes them.

    Raises:
        ValueError: its data is damaged, with `refuse_damage`.
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
    print(damage, file=sys.stderr, flush=True)  # as native decoders report it: `StderrCapture` reads it there
    return pixels


def _layout(image: Image.Image) -> str:
    """Return the file's layout of a pixel in Pillow's notation ("RGB;16B"); empty after the pixels are loaded."""
    if not isinstance(image, ImageFile.ImageFile) or not image.tile:
        return ""
    arguments = image.tile[0].args
    return arguments if isinstance(arguments, str) else str(arguments[0]) if arguments else ""


def _is_deep(image: Image.Image, layout: str) -> bool:
    return image.mode == "I" or image.mode.startswith("I;16") or ";16" in layout


def _to_rgb(image: Image.Image, name: str, layout: str, background: Color, orientation: int) -> Decoded:
    if image.mode == "F":
        raise BadSample(name, "floating-point values have no known range")
    deep, alpha, low_range = _is_deep(image, layout), None, ""
    if image.mode == "I" or image.mode.startswith("I;16"):
        values = np.asarray(image).astype(np.int64)
        if values.min() < 0 or values.max() > DEEPEST:
            raise BadSample(name, "32-bit values have no known range")
        grey = ((values * 255 + 32767) // DEEPEST).astype(np.uint8)
        low_range = _low_range(grey, int(values.max()), 32 if image.mode == "I" and image.format != "PPM" else 16)
        if (key := image.info.get("transparency")) is not None:
            alpha = np.where(values == key, 0, 255)
        pixels = np.repeat(grey[:, :, None], 3, axis=2)
    else:
        if image.has_transparency_data and image.mode in _KEYED:
            alpha = _keyed_alpha(image, layout)
        elif image.has_transparency_data:
            image = image.convert("RGBA")
            alpha = np.asarray(image.getchannel("A"))
        pixels = np.array(image.convert("RGB"), np.uint8)
        if deep and (highest := int(pixels.max())) < _LOW // 256:  # Pillow gives the upper 8 bits
            low_range = _low_range(pixels, highest * 256 + 255, 16)
    if transparent := alpha is not None and int(alpha.min()) < 255:
        pixels = _compose(pixels, np.asarray(alpha), background)
    return Decoded(_upright(pixels, orientation), transparent, deep, low_range)


def _low_range(pixels: NDArray[np.uint8], highest: int, bits: int) -> str:
    """Return why an image may have become too dark by scaling, or an empty text."""
    if highest >= _LOW and bits == 16:
        return ""
    return f"values up to {highest} in a {bits}-bit file: mean {pixels.mean():.1f} of 255 after scaling by {DEEPEST}"


def _keyed_alpha(image: Image.Image, layout: str) -> NDArray[np.int64]:
    """Return the opacity (height, width), 0 or 255, of an image in which one colour means transparency.

    Pillow's own conversion compares that colour of the file with values that it has stretched from 2 or 4 bits.
    """
    key = np.asarray(image.info["transparency"], bool if image.mode == "1" else int)
    values = np.asarray(image)
    if layout in ("L;2", "L;4"):
        values = values // (255 // (2 ** int(layout[-1]) - 1))
    if ";16" in layout:  # of RGB; what Pillow keeps of the values is their upper 8 bits
        key = key // 256
    matches = values == key
    return np.where(matches.all(axis=2) if matches.ndim == 3 else matches, 0, 255)


def _compose(pixels: NDArray[np.uint8], alpha: NDArray[np.generic], background: Color) -> NDArray[np.uint8]:
    """Return pixels (height, width, 3) composed onto a background; those of opacity 255 do not change."""
    over = alpha.astype(np.int32)[:, :, None]
    return ((pixels * over + np.array(background, np.int32) * (255 - over) + 127) // 255).astype(np.uint8)
