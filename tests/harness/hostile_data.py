"""Samples that data sets should not hold and do, each made by code, with what must become of it."""

import io
import os
import pickle
import struct
import zipfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, features

SIDE = 32
"""Of every image, so that the platform's transforms change nothing and pixels can be compared."""
MAX_PIXELS = 100_000
JPEG_TOLERANCE = 8
MEAN = (0.2, 0.4, 0.8)
"""Of the recipe that reads images; not ImageNet's, so that it shows which of them is taken."""
MEAN_COLOR = (51, 102, 204)

Pixels = NDArray[np.uint8]


@dataclass(frozen=True)
class Accepted:
    """The sample is used, with these pixels (or labels, for masks)."""

    pixels: Pixels
    tolerance: int = 0


@dataclass(frozen=True)
class Named:
    """The sample is left out under its name, with a reason that says this."""

    reason: str
    by_header: bool = False
    """Whether the header alone tells; else decoding does."""
    fatal: bool = False
    """Whether it stops a training before it starts, whatever `max_bad_fraction` is."""


@dataclass(frozen=True)
class Damaged:
    """Decoders pass over the damage; the full check names it."""

    reason: str


@dataclass(frozen=True)
class Case:
    """One file of a data set."""

    name: str
    """Of the file."""
    content: bytes
    outcome: Accepted | Named | Damaged
    transparent: bool = False
    """Whether the full check counts it among the images with transparent pixels."""
    low_range: bool = False
    """Whether the check counts it among the images that scaling may have made too dark."""

    def __str__(self) -> str:
        return self.name.encode("unicode_escape").decode()


# --- what the files are made of ---


def gradient() -> Pixels:
    """A picture that no rotation or reflection leaves as it is."""
    y, x = np.mgrid[:SIDE, :SIDE]
    return np.stack([7 * x, 7 * y, 3 * x + 2 * y + 40], axis=2).astype(np.uint8)


PICTURE = gradient()
GREY = PICTURE[:, :, 2].copy()
NOISE = np.random.default_rng(0).integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8)
GREY_OF_RGB = GREY[:, :, None].repeat(3, axis=2)


def encoded(image: Image.Image | Pixels, kind: str, **options: Any) -> bytes:
    file = io.BytesIO()
    (image if isinstance(image, Image.Image) else Image.fromarray(image)).save(file, kind, **options)
    return file.getvalue()


def jpeg(image: Image.Image | Pixels, **options: Any) -> bytes:
    return encoded(image, "JPEG", **{"quality": 97, "subsampling": 0, **options})


def png(image: Image.Image | Pixels, **options: Any) -> bytes:
    return encoded(image, "PNG", **options)


def chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def raw_png(width: int, height: int, depth: int, color: int, rows: bytes, *extra: bytes) -> bytes:
    """A PNG from its rows, each with its filter byte; `extra` chunks stand before the pixels."""
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, color, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + b"".join(extra) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def exif(orientation: int) -> bytes:
    """A TIFF structure with one entry."""
    return b"II*\0\x08\0\0\0\x01\0" + struct.pack("<HHIHH", 0x0112, 3, 1, orientation, 0) + b"\0\0\0\0"


def with_segment(data: bytes, payload: bytes, marker: int = 0xE1) -> bytes:
    """A JPEG with one more metadata segment at its start."""
    return data[:2] + bytes([0xFF, marker]) + struct.pack(">H", len(payload) + 2) + payload + data[2:]


def turned(pixels: Pixels, orientation: int) -> Pixels:
    """What a viewer shows of stored pixels (the table of the EXIF standard, spelt out)."""
    h, w = pixels.shape[:2]
    shown = {
        1: lambda y, x: (y, x),
        2: lambda y, x: (y, w - 1 - x),
        3: lambda y, x: (h - 1 - y, w - 1 - x),
        4: lambda y, x: (h - 1 - y, x),
        5: lambda y, x: (x, y),
        6: lambda y, x: (h - 1 - x, y),
        7: lambda y, x: (h - 1 - x, w - 1 - y),
        8: lambda y, x: (x, w - 1 - y),
    }[orientation]
    rows, columns = (h, w) if orientation < 5 else (w, h)
    return np.array([[pixels[shown(y, x)] for x in range(columns)] for y in range(rows)], np.uint8)


def zeroed(data: bytes, start: float, length: int) -> bytes:
    first = int(len(data) * start)
    return data[:first] + bytes(length) + data[first + length :]


def flipped(data: bytes, at: int) -> bytes:
    return data[:at] + bytes([data[at] ^ 0x10]) + data[at + 1 :]


class Evil:
    """Unpickling it makes a folder named by the environment: the canary."""

    def __reduce__(self) -> tuple[Any, ...]:
        return eval, ("__import__('os').mkdir(__import__('os').environ['CANARY'])",)


def zipped() -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("../../escaped.jpg", jpeg(PICTURE))
    return file.getvalue()


# --- images ---

NOT_AN_IMAGE = Named("not an image of a known format", by_header=True)
TOO_LARGE = Named("are more than data.max_pixels", by_header=True)
BROKEN = Named("cannot be decoded")
NOT_ITS_SUM = Named("differs from its sum")
PLAIN_JPEG = jpeg(PICTURE)
NOISY_JPEG = jpeg(NOISE)
NOISY_PNG = png(NOISE)
LARGE_JPEG = jpeg(np.tile(NOISE, (5, 5, 1))[:160, :160])


GIF_HEADER = b"GIF89a" + struct.pack("<HHBBB", 60_000, 60_000, 0, 0, 0)


def frames(kind: str, **options: Any) -> bytes:
    first, second = (Image.new("RGB", (SIDE, SIDE), color) for color in ((255, 0, 51), (0, 51, 255)))
    return encoded(first, kind, save_all=True, append_images=[second], duration=50, **options)


def flat(*rgb: int) -> Pixels:
    return np.broadcast_to(np.array(rgb, np.uint8), (SIDE, SIDE, 3)).copy()


def over_mean(pixels: Pixels, opacity: NDArray[Any]) -> Pixels:
    """What is seen of pixels with an opacity of 0..255 before the mean colour."""
    part = opacity[:, :, None] / 255
    return np.rint(pixels * part + np.array(MEAN_COLOR) * (1 - part)).astype(np.uint8)


def without(pixels: Pixels, gone: NDArray[np.bool_]) -> Pixels:
    """Pixels with the mean colour in place of some."""
    return np.where(gone[:, :, None], np.array(MEAN_COLOR, np.uint8), pixels)


def packed_rows(values: Pixels, bits: int) -> bytes:
    """Rows of a PNG whose pixels have fewer than 8 bits, each with its filter byte."""
    each = np.unpackbits(values[:, :, None], axis=2)[:, :, -bits:].reshape(len(values), -1)
    return b"".join(b"\0" + row.tobytes() for row in np.packbits(each, axis=1))


def key_color(*values: int) -> bytes:
    """The chunk of a PNG that names its transparent colour."""
    return chunk(b"tRNS", struct.pack(f">{len(values)}H", *values))


def palette(bits: int, **options: Any) -> tuple[bytes, Pixels]:
    """An image of 2^bits colours that are far from their numbers, and its RGB."""
    indices = (np.arange(SIDE * SIDE).reshape(SIDE, SIDE) % 2**bits).astype(np.uint8)
    colors = np.random.default_rng(bits).integers(0, 256, (2**bits, 3), dtype=np.uint8)
    image = Image.fromarray(indices).convert("P")
    image.putpalette(colors.tobytes())
    return png(image, bits=bits, **options), colors[indices]


def scaled(deep: NDArray[np.uint16]) -> Pixels:
    """The RGB of grey values of 16 bits."""
    shallow = np.array([[round(float(value) / 65535 * 255) for value in row] for row in deep], np.uint8)
    return shallow[:, :, None].repeat(3, axis=2)


DEEP = (np.arange(SIDE * SIDE, dtype=np.uint32).reshape(SIDE, SIDE) * 64).astype(np.uint16)
DEEP_RGB = scaled(DEEP)


def cmyk() -> tuple[Image.Image, Pixels]:
    """Flat parts of cyan, magenta, yellow and black; RGB by (1 - c)(1 - k)."""
    ink = np.zeros((SIDE, SIDE, 4), np.uint8)
    for part in range(4):
        ink[:, part * 8 : part * 8 + 8, part] = 255
    ink[16:, :, 3] = 128
    light = (255 - ink[:, :, :3].astype(float)) * (255 - ink[:, :, 3:]) / 255
    return Image.fromarray(ink, "CMYK"), light.round().astype(np.uint8)


CMYK, CMYK_RGB = cmyk()
XMP = (
    b'http://ns.adobe.com/xap/1.0/\0<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF '
    b'xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#"><rdf:Description '
    b'xmlns:tiff="http://ns.adobe.com/tiff/1.0/" tiff:Orientation="6"/></rdf:RDF></x:xmpmeta>'
)
SAME = Accepted(PICTURE, JPEG_TOLERANCE)
EXACT = Accepted(PICTURE)


def image_cases() -> list[Case]:
    """Files of an image folder."""
    pair = encoded(NOISE, "MPO", save_all=True, append_images=[Image.fromarray(NOISE)], quality=97, subsampling=0)
    photo_pair = with_segment(pair, b"Exif\0\0" + exif(1) + NOISY_JPEG)  # a thumbnail, then the first of two images
    rgba = np.dstack([PICTURE, np.arange(SIDE * SIDE).reshape(SIDE, SIDE).astype(np.uint8)])
    opacity = rgba[:, :, 3]
    two_bits = (np.arange(SIDE * SIDE).reshape(SIDE, SIDE) % 4).astype(np.uint8)
    two_bits_rgb = (two_bits * 85)[:, :, None].repeat(3, 2)
    one_bit_rgb = ((GREY_OF_RGB > 100) * 255).astype(np.uint8)
    deep_rgb = np.stack([DEEP, DEEP.T, 65535 - DEEP], axis=2)
    deep_rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in deep_rgb)
    deep_alpha = np.dstack([deep_rgb, opacity.astype(np.uint16) * 257])
    deep_alpha_rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in deep_alpha)
    deep_grey_rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in DEEP)
    plain_rows = b"".join(b"\0" + row.tobytes() for row in PICTURE)
    palette_8, palette_8_rgb = palette(8)
    see_through, see_through_rgb = palette(4, transparency=3)
    half, half_rgb = palette(4, transparency=bytes(range(0, 256, 17)))
    indices = np.arange(SIDE * SIDE).reshape(SIDE, SIDE) % 16
    twelve_bits = (DEEP // 16).astype(np.uint16)
    dark = scaled(GREY.astype(np.uint16))  # little is left of 8-bit values
    bomb = zlib.compress(bytes(50_000_000), 9)
    thin = np.full((1, 60_000, 3), (200, 10, 90), np.uint8)
    return [
        # no image at all
        Case("zero_byte.jpg", b"", NOT_AN_IMAGE),
        Case("text.jpg", b"hello, I am no picture\n", NOT_AN_IMAGE),
        Case("html.jpg", b"<!doctype html><title>404</title>", NOT_AN_IMAGE),
        Case("svg.png", b'<svg xmlns="http://www.w3.org/2000/svg"><script>1</script></svg>', NOT_AN_IMAGE),
        Case("postscript.jpg", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n(x) run", NOT_AN_IMAGE),
        Case("pdf.jpg", b"%PDF-1.7\n1 0 obj\n<<>>\nendobj\n", NOT_AN_IMAGE),
        Case("archive.jpg", zipped(), NOT_AN_IMAGE),
        Case("pickle.jpg", pickle.dumps(Evil()), NOT_AN_IMAGE),
        Case("only_a_signature.png", b"\x89PNG\r\n\x1a\n", Named("", by_header=True)),
        Case("jpeg_2000.jpg", b"\0\0\0\x0cjP  \r\n\x87\n" + bytes(64), NOT_AN_IMAGE),
        Case("icon.png", encoded(PICTURE, "ICO"), NOT_AN_IMAGE),
        Case("targa.jpg", encoded(PICTURE, "TGA"), NOT_AN_IMAGE),  # has no signature, so only its name tells
        Case("text.tga", b"hello, I am no picture\n", Named("", by_header=True)),
        # cut short
        Case("cut_in_header.jpg", PLAIN_JPEG[:40], Named("", by_header=True)),
        Case("cut_in_half.jpg", NOISY_JPEG[: len(NOISY_JPEG) * 2 // 3], Named("cut short")),
        Case("without_end.jpg", NOISY_JPEG[:-2], Named("cut short")),
        Case("cut_and_padded.jpg", NOISY_JPEG[: len(NOISY_JPEG) * 2 // 3] + bytes(5000), Named("cut short")),
        Case("cut_progressive.jpg", jpeg(NOISE, progressive=True)[:-700], Named("cut short")),
        Case("cut_photo_pair.jpg", photo_pair[: len(NOISY_JPEG) * 3 // 2], Named("cut short")),
        Case("cut.png", NOISY_PNG[: len(NOISY_PNG) // 2], NOT_ITS_SUM),
        Case("cut.gif", encoded(NOISE, "GIF")[:1500], BROKEN),
        Case("cut.webp", encoded(NOISE, "WEBP", lossless=True)[:1500], Named("")),
        Case("cut.bmp", encoded(NOISE, "BMP")[:1500], BROKEN),
        Case("cut.tif", encoded(NOISE, "TIFF")[:1500], BROKEN),
        Case("cut.ppm", encoded(NOISE, "PPM")[:1500], BROKEN),
        Case("cut.tga", encoded(NOISE, "TGA")[:1500], BROKEN),
        *(Case(f"cut.{kind}", content[: len(content) // 2], Named("")) for kind, content, _ in modern(NOISE)),
        # damaged in the middle
        Case("damaged.jpg", zeroed(LARGE_JPEG, 0.5, 3000), Damaged("Corrupt JPEG data")),
        Case("damaged_header.jpg", zeroed(PLAIN_JPEG, 0.05, 200), Named("")),
        Case("damaged.png", flipped(NOISY_PNG, len(NOISY_PNG) // 2), NOT_ITS_SUM),
        Case("damaged_sum.png", flipped(NOISY_PNG, len(NOISY_PNG) - 18), NOT_ITS_SUM),
        Case("damaged_header.png", flipped(NOISY_PNG, 19), Named("", by_header=True)),
        Case("damaged.webp", zeroed(encoded(NOISE, "WEBP", lossless=True), 0.02, 60), Named("")),
        Case("damaged.tif", zeroed(encoded(NOISE, "TIFF", compression="tiff_adobe_deflate"), 0.3, 200), BROKEN),
        Case("no_width.png", raw_png(0, SIDE, 8, 2, b""), Named("", by_header=True)),
        # more than they seem
        Case("bomb_header.png", raw_png(90_000, 90_000, 8, 2, b"\0"), Named("", by_header=True)),
        Case("bomb.png", raw_png(4000, 4000, 8, 0, bytes(4001 * 4000)), TOO_LARGE),
        Case("bomb_screen.gif", GIF_HEADER + b";", Named("", by_header=True)),
        Case("bomb.jpg", jpeg(Image.new("L", (5000, 5000))), TOO_LARGE),
        Case(
            "bomb_text.png",
            raw_png(SIDE, SIDE, 8, 2, plain_rows, chunk(b"zTXt", b"Comment\0\0" + bomb)),
            Named("", by_header=True),
        ),
        Case("just_too_large.png", png(Image.new("L", (MAX_PIXELS + 1, 1))), TOO_LARGE),
        # strange, and meant so
        Case("plain.jpg", PLAIN_JPEG, SAME),
        Case("progressive.jpg", jpeg(PICTURE, progressive=True), SAME),
        Case("grey.jpg", jpeg(GREY), Accepted(GREY_OF_RGB, JPEG_TOLERANCE)),
        Case("cmyk.jpg", jpeg(CMYK), Accepted(CMYK_RGB, JPEG_TOLERANCE)),
        Case("cmyk.tif", encoded(CMYK, "TIFF"), Accepted(CMYK_RGB, 1)),
        Case("trailing.jpg", PLAIN_JPEG + b"and then \xff\xd8 some more", SAME),
        Case("two_in_one.jpg", PLAIN_JPEG + NOISY_JPEG, SAME),
        Case("thumbnail.jpg", with_segment(PLAIN_JPEG, b"Exif\0\0" + exif(1) + NOISY_JPEG), SAME),
        Case(
            "photo_pair.jpg",
            encoded(
                Image.fromarray(PICTURE),
                "MPO",
                save_all=True,
                quality=97,
                subsampling=0,
                append_images=[Image.fromarray(NOISE)],
            ),
            SAME,
        ),
        Case("png_named.jpg", png(PICTURE), EXACT),
        Case("jpeg_named.png", PLAIN_JPEG, SAME),
        Case("interlaced.png", interlaced(PICTURE), EXACT),
        Case("grey.png", png(GREY), Accepted(GREY_OF_RGB)),
        Case("one_bit.png", png(Image.fromarray(GREY > 100)), Accepted(one_bit_rgb)),
        Case("two_bits.png", raw_png(SIDE, SIDE, 2, 0, packed_rows(two_bits, 2)), Accepted(two_bits_rgb)),
        Case("sixteen_bits.png", png(Image.fromarray(DEEP)), Accepted(DEEP_RGB)),
        Case("sixteen_bits.tif", encoded(Image.fromarray(DEEP), "TIFF"), Accepted(DEEP_RGB)),
        Case("sixteen_bits_rgb.png", raw_png(SIDE, SIDE, 16, 2, deep_rows), Accepted((deep_rgb >> 8).astype("u1"), 1)),
        Case("palette.png", palette_8, Accepted(palette_8_rgb)),
        Case("float.tif", encoded(Image.fromarray(GREY.astype(np.float32)), "TIFF"), Named("no known range")),
        Case("integers.tif", encoded(Image.fromarray(GREY.astype(np.int32) * 10**6), "TIFF"), Named("no known range")),
        Case("below_zero.tif", encoded(Image.fromarray(GREY.astype(np.int32) - 41), "TIFF"), Named("no known range")),
        *(
            Case(f"{name}.tif", encoded(Image.fromarray(values.astype(np.int32)), "TIFF"), outcome, low_range=True)
            for name, values, outcome in (
                ("deep_integers", DEEP, Accepted(DEEP_RGB)),
                ("small_integers", GREY, Accepted(dark)),
            )
        ),
        Case("twelve_bits.png", png(Image.fromarray(twelve_bits)), Accepted(scaled(twelve_bits)), low_range=True),
        Case("animated.gif", frames("GIF"), Accepted(flat(255, 0, 51))),
        Case("animated.webp", frames("WEBP", lossless=True), Accepted(flat(255, 0, 51))),
        Case("animated.png", frames("PNG"), Accepted(flat(255, 0, 51))),
        Case("pages.tif", frames("TIFF"), Accepted(flat(255, 0, 51))),
        Case("one_pixel.png", png(Image.new("RGB", (1, 1), (9, 80, 200))), Accepted(flat(9, 80, 200))),
        Case("wide.png", png(thin), Accepted(flat(200, 10, 90))),
        Case("high.png", png(thin.transpose(1, 0, 2)), Accepted(flat(200, 10, 90))),
        Case("named.jfif", PLAIN_JPEG, SAME),
        Case("named.JPE", PLAIN_JPEG, SAME),
        Case("plain.tga", encoded(PICTURE, "TGA"), EXACT),
        *(Case(f"plain.{kind}", content, Accepted(PICTURE, tolerance)) for kind, content, tolerance in modern(PICTURE)),
        # transparency: what lies below a transparent pixel was never seen
        *(
            Case(name, content, Accepted(pixels), transparent=True)
            for name, content, pixels in (
                ("alpha.png", png(rgba), over_mean(PICTURE, opacity)),
                ("alpha.webp", encoded(rgba, "WEBP", lossless=True, exact=True), over_mean(PICTURE, opacity)),
                ("alpha.tif", encoded(rgba, "TIFF"), over_mean(PICTURE, opacity)),
                ("alpha.tga", encoded(rgba, "TGA"), over_mean(PICTURE, opacity)),
                ("alpha_0.png", png(np.dstack([PICTURE, np.zeros_like(GREY)])), flat(*MEAN_COLOR)),
                (
                    "alpha_turned.png",
                    png(rgba, exif=exif(6)),
                    turned(over_mean(PICTURE, opacity), 6),
                ),
                (
                    "grey_alpha.png",
                    png(Image.fromarray(np.dstack([GREY, GREY.T]), "LA")),
                    over_mean(GREY_OF_RGB, GREY.T),
                ),
                ("palette_see_through.png", see_through, without(see_through_rgb, indices == 3)),
                ("palette_half_see_through.png", half, over_mean(half_rgb, indices * 17)),
                ("grey_see_through.png", png(GREY, transparency=100), without(GREY_OF_RGB, GREY == 100)),
                (
                    "colour_see_through.png",
                    png(PICTURE, transparency=tuple(map(int, PICTURE[3, 5]))),
                    without(PICTURE, (PICTURE[3, 5] == PICTURE).all(axis=2)),
                ),
                (
                    "one_bit_see_through.png",
                    raw_png(SIDE, SIDE, 1, 0, packed_rows((GREY > 100).astype(np.uint8), 1), key_color(1)),
                    without(one_bit_rgb, GREY > 100),
                ),
                (
                    "two_bits_see_through.png",
                    raw_png(SIDE, SIDE, 2, 0, packed_rows(two_bits, 2), key_color(1)),
                    without(two_bits_rgb, two_bits == 1),
                ),
                (
                    "sixteen_bits_see_through.png",
                    raw_png(SIDE, SIDE, 16, 0, deep_grey_rows, key_color(int(DEEP[3, 5]))),
                    without(DEEP_RGB, DEEP[3, 5] == DEEP),
                ),
            )
        ),
        Case(
            "sixteen_bits_alpha.png",
            raw_png(SIDE, SIDE, 16, 6, deep_alpha_rows),
            Accepted(over_mean((deep_rgb >> 8).astype(np.uint8), opacity), 1),
            transparent=True,
        ),
        Case("alpha_opaque.png", png(np.dstack([PICTURE, np.full_like(GREY, 255)])), EXACT),
        Case("key_that_no_pixel_has.png", png(PICTURE, transparency=(1, 2, 3)), EXACT),
        # orientation
        *(
            Case(
                f"orientation_{n}.jpg",
                jpeg(PICTURE, exif=b"Exif\0\0" + exif(n)),
                Accepted(turned(PICTURE, n), JPEG_TOLERANCE),
            )
            for n in range(1, 9)
        ),
        *(
            Case(
                f"orientation_{n}.{kind.lower()}",
                encoded(PICTURE, kind, exif=exif(n), **options),
                Accepted(turned(PICTURE, n)),
            )
            for n, kind, options in ((6, "PNG", {}), (3, "WEBP", {"lossless": True}), (8, "TIFF", {}))
        ),
        Case(
            "orientation_after_pixels.png",
            png(PICTURE)[:-12] + chunk(b"eXIf", exif(6)) + chunk(b"IEND", b""),
            Accepted(turned(PICTURE, 6)),
        ),
        Case("orientation_0.jpg", jpeg(PICTURE, exif=b"Exif\0\0" + exif(0)), SAME),
        Case("orientation_9.jpg", jpeg(PICTURE, exif=b"Exif\0\0" + exif(9)), SAME),
        Case("orientation_of_xmp.jpg", with_segment(PLAIN_JPEG, XMP), SAME),
        Case(
            "orientation_of_grey.jpg",
            jpeg(GREY, exif=b"Exif\0\0" + exif(6)),
            Accepted(turned(GREY_OF_RGB, 6), JPEG_TOLERANCE),
        ),
        Case("broken_exif.jpg", with_segment(PLAIN_JPEG, b"Exif\0\0MM\0*\0\0\0\x08\xff\xff"), SAME),
        Case("no_exif.jpg", with_segment(PLAIN_JPEG, b"Exif\0\0garbage"), SAME),
        Case("no_exif.png", png(PICTURE)[:33] + chunk(b"eXIf", b"garbage") + png(PICTURE)[33:], EXACT),
        # names
        Case("-rf.jpg", PLAIN_JPEG, SAME),
        Case("a b\n\x1b[31mc.jpg", PLAIN_JPEG, SAME),
        Case("\N{SNOWMAN} na\N{LATIN SMALL LETTER I WITH DIAERESIS}ve \N{GRINNING FACE}.JPG", PLAIN_JPEG, SAME),
        Case(os.fsdecode(b"\xff\xfe\xe4.jpg"), PLAIN_JPEG, SAME),
        Case("x" * 251 + ".jpg", PLAIN_JPEG, SAME),
        Case("'; drop table; $(reboot) `reboot` %s {0}.jpg", PLAIN_JPEG, SAME),
        Case(os.fsdecode(b"bad \n\xff.jpg"), b"", NOT_AN_IMAGE),
    ]


def modern(pixels: Pixels) -> list[tuple[str, bytes, int]]:
    """Formats that Pillow may have been built without: suffix, file, and how far pixels may differ."""
    made = []
    if features.check("avif"):
        made.append(("avif", encoded(pixels, "AVIF", quality=100, subsampling="4:4:4"), JPEG_TOLERANCE))
    if features.check("jpg_2000"):
        made.append(("jp2", encoded(pixels, "JPEG2000", irreversible=False), 0))
    return made


def interlaced(pixels: Pixels) -> bytes:
    """Adam7, which Pillow reads and does not write."""
    rows = b""
    for y, x, down, right in (
        (0, 0, 8, 8),
        (0, 4, 8, 8),
        (4, 0, 8, 4),
        (0, 2, 4, 4),
        (2, 0, 4, 2),
        (0, 1, 2, 2),
        (1, 0, 2, 1),
    ):
        rows += b"".join(b"\0" + row.tobytes() for row in pixels[y::down, x::right])
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", SIDE, SIDE, 8, 2, 0, 0, 1))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


# --- masks ---

CLASSES = ("sky", "road", "car")
IDS = (np.arange(SIDE * SIDE).reshape(SIDE, SIDE) // 50 % 3).astype(np.uint8)


def bmp_header(width: int, height: int) -> bytes:
    """Of a picture with 24 bits a pixel, none of which follows."""
    return b"BM" + struct.pack("<IIIIiiHHIIiiII", 54, 0, 54, 40, width, height, 1, 24, 0, 0, 0, 0, 0, 0)


def palette_image(bits: int) -> Image.Image:
    image = Image.fromarray(IDS).convert("P")
    image.putpalette(np.random.default_rng(0).integers(0, 256, 3 * 2**bits).tolist())
    return image


def palette_ids(bits: int, **options: Any) -> bytes:
    return png(palette_image(bits), bits=bits, **options)


def mask_cases() -> list[Case]:
    """Masks of class ids for images of `SIDE` x `SIDE`; labels are ids, and 255 is ignored."""
    wrong_size = Named("the mask is 16 x 32 pixels, its image 32 x 32", by_header=True, fatal=True)
    see_through = Named("it has transparent pixels, of which the class is unknown", fatal=True)
    grey_of_rgb = IDS[:, :, None].repeat(3, axis=2)
    opaque, half = np.full_like(IDS, 255), np.where(IDS == 1, 128, 255).astype(np.uint8)
    class_colors = np.array([(0, 0, 0), (128, 64, 128), (0, 0, 142)], np.uint8)[IDS]
    deep_rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in grey_of_rgb)
    noise = NOISE[:, :, 0]
    beyond = IDS.copy()
    beyond[3, 5] = 3
    edged = np.where(IDS == 2, 255, IDS).astype(np.uint8)
    return [
        Case("plain.png", png(IDS), Accepted(IDS)),
        Case("ignored_parts.png", png(edged), Accepted(edged)),
        Case("all_ignored.png", png(np.full_like(IDS, 255)), Accepted(np.full_like(IDS, 255))),
        Case("palette_2.png", palette_ids(2), Accepted(IDS)),
        Case("palette_4.png", palette_ids(4), Accepted(IDS)),
        Case("palette_8.png", palette_ids(8), Accepted(IDS)),
        Case("palette_see_through.png", palette_ids(8, transparency=1), Accepted(IDS)),
        Case("grey_see_through.png", png(Image.fromarray(IDS), transparency=1), Accepted(IDS)),
        Case("turned.png", png(IDS, exif=exif(6)), Accepted(turned(IDS, 6))),
        Case(
            "animated.png",
            encoded(
                Image.fromarray(IDS), "PNG", save_all=True, duration=50, append_images=[Image.fromarray(255 - IDS)]
            ),
            Accepted(IDS),
        ),
        Case("other_size.png", png(IDS[:, :16]), wrong_size),
        Case("one_id_beyond.png", png(beyond), Named("mask values 3 are no class", fatal=True)),
        # as other tools write ids
        Case("grey_as_rgb.png", png(grey_of_rgb), Accepted(IDS)),
        Case("grey_as_rgba.png", png(np.dstack([grey_of_rgb, opaque])), Accepted(IDS)),
        Case("grey_opaque.png", png(Image.fromarray(np.dstack([IDS, opaque]), "LA")), Accepted(IDS)),
        Case("one_bit.png", png(Image.fromarray(IDS > 0)), Accepted((IDS > 0).astype(np.uint8))),
        Case("two_bits.png", raw_png(SIDE, SIDE, 2, 0, packed_rows(IDS, 2)), Accepted(IDS)),
        Case("four_bits.png", raw_png(SIDE, SIDE, 4, 0, packed_rows(IDS, 4)), Accepted(IDS)),
        Case("sixteen_bits.png", png(Image.fromarray(edged.astype(np.uint16))), Accepted(edged)),
        Case("capitals.PNG", png(IDS), Accepted(IDS)),
        Case("grey.tif", encoded(IDS, "TIFF", compression="tiff_lzw"), Accepted(IDS)),
        Case("palette.tiff", encoded(palette_image(8), "TIFF"), Accepted(IDS)),
        Case("one_bit_too.TIF", encoded(Image.fromarray(IDS > 0), "TIFF"), Accepted((IDS > 0).astype(np.uint8))),
        Case("sixteen_bits_too.tif", encoded(Image.fromarray(IDS.astype(np.uint16)), "TIFF"), Accepted(IDS)),
        Case("integers.tif", encoded(Image.fromarray(edged.astype(np.int32)), "TIFF"), Accepted(edged)),
        Case("turned_too.tif", encoded(IDS, "TIFF", exif=exif(6)), Accepted(turned(IDS, 6))),
        Case("pages.tif", encoded(Image.fromarray(IDS), "TIFF", save_all=True, append_images=[Image.fromarray(edged)]),
             Accepted(IDS)),
        Case("grey_too.bmp", encoded(IDS, "BMP"), Accepted(IDS)),
        Case("palette_too.bmp", encoded(palette_image(8), "BMP"), Accepted(IDS)),
        # no ids
        Case("colors.png", png(PICTURE), Named("coded by colour: 1024 distinct colours, (0, 0, 40), ", fatal=True)),
        Case("class_colors.png", png(class_colors),
             Named("coded by colour: 3 distinct colours, (0, 0, 0), (128, 64, 128), (0, 0, 142)", fatal=True)),
        Case("colors_too.bmp", encoded(class_colors, "BMP"), Named("coded by colour: 3 distinct colours", fatal=True)),
        Case("grey_alpha.png", png(Image.fromarray(np.dstack([IDS, half]), "LA")), see_through),
        Case("grey_as_rgb_alpha.png", png(np.dstack([grey_of_rgb, half])), see_through),
        Case("sixteen_bits_large.png", png(Image.fromarray(IDS.astype(np.uint16) * 1000)),
             Named("its values of 16 or 32 bits are 0..2000; class ids are 0..255", fatal=True)),
        Case("integers_below_zero.tif", encoded(Image.fromarray(IDS.astype(np.int32) - 1), "TIFF"),
             Named("its values of 16 or 32 bits are -1..1; class ids are 0..255", fatal=True)),
        Case("sixteen_bits_rgb.png", raw_png(SIDE, SIDE, 16, 2, deep_rows),
             Named("this is RGB with 16 bits a channel", by_header=True, fatal=True)),
        Case("float.tif", encoded(Image.fromarray(IDS.astype(np.float32)), "TIFF"),
             Named("one channel of whole numbers or a palette; this is F", by_header=True, fatal=True)),
        Case("cmyk.tif", encoded(CMYK, "TIFF"),
             Named("one channel of whole numbers or a palette; this is CMYK", by_header=True, fatal=True)),
        Case("inverted.tif", encoded(IDS, "TIFF", tiffinfo={262: 0}),
             Named("stored inverted (WhiteIsZero)", by_header=True, fatal=True)),
        Case("jpeg_inside.tif", encoded(IDS, "TIFF", compression="jpeg"),
             Named("the compression of this TIFF (jpeg) changes class ids", by_header=True, fatal=True)),
        Case("jpeg_named.png", jpeg(IDS), Named("JPEG changes class ids", by_header=True, fatal=True)),
        Case("webp_named.png", encoded(IDS, "WEBP", lossless=True), Named("this is WEBP", by_header=True, fatal=True)),
        Case("gif_named.png", encoded(IDS, "GIF"), Named("this is GIF", by_header=True, fatal=True)),
        Case("cut_bmp.bmp", encoded(noise, "BMP")[:1500], BROKEN),
        Case("cut_tif.tif", encoded(noise, "TIFF")[:600], BROKEN),
        Case("damaged_too.tif", zeroed(encoded(noise, "TIFF", compression="tiff_adobe_deflate"), 0.3, 200), BROKEN),
        Case("bomb_header.bmp", bmp_header(4000, 4000), TOO_LARGE),
        Case("zero_byte.png", b"", NOT_AN_IMAGE),
        Case("cut.png", png(NOISE[:, :, 0])[:700], NOT_ITS_SUM),
        Case("damaged.png", flipped(png(NOISE[:, :, 0]), 500), NOT_ITS_SUM),
        Case("bomb.png", raw_png(4000, 4000, 8, 0, bytes(4001 * 4000)), TOO_LARGE),
    ]  # fmt: skip


# --- COCO annotations ---

Change = Callable[[dict[str, Any]], Any]


def coco_content() -> dict[str, Any]:
    """Two images with one object each."""
    return {
        "images": [
            {"id": number, "file_name": f"{name}.png", "height": SIDE, "width": SIDE}
            for number, name in ((1, "a"), (2, "b"))
        ],
        "categories": [{"id": 5, "name": "cat"}, {"id": 9, "name": "dog"}],
        "annotations": [
            {
                "id": 10 + number,
                "image_id": number,
                "category_id": 5,
                "bbox": [4, 6, 10, 8],
                "area": 80,
                "iscrowd": 0,
                "segmentation": [[4, 6, 14, 6, 14, 14, 4, 14]],
            }
            for number in (1, 2)
        ],
    }


@dataclass(frozen=True)
class CocoCase:
    """A change to sound annotations."""

    name: str
    change: Change
    refused: str = ""
    """What the refusal says; "" when the file is used."""
    boxes: tuple[tuple[float, ...], ...] = ((4, 6, 14, 14),)
    """Of the first image, when the file is used."""
    masked: bool = True
    """Whether the first object has a mask; without, it is a crowd."""

    def __str__(self) -> str:
        return self.name


def _object(**changes: Any) -> Change:
    return lambda content: content["annotations"][0].update(changes)


def _image(**changes: Any) -> Change:
    return lambda content: content["images"][0].update(changes)


def _category(**changes: Any) -> Change:
    return lambda content: content["categories"][0].update(changes)


def _table(name: str, value: Any) -> Change:
    return lambda content: content.update({name: value})


def _without(table: str, key: str) -> Change:
    return lambda content: content[table][0].pop(key)


def _rle(size: Any, counts: Any) -> Change:
    return _object(segmentation={"size": size, "counts": counts})


_NUMBERS = "bbox is not four finite numbers"
COCO_CASES = [
    CocoCase("plain", lambda content: None),
    # boxes
    CocoCase("box_nan", _object(bbox=[float("nan"), 0, 1, 1]), _NUMBERS),
    CocoCase("box_infinite", _object(bbox=[0, 0, float("inf"), 1]), _NUMBERS),
    CocoCase("box_text", _object(bbox=["4", 6, 10, 8]), _NUMBERS),
    CocoCase("box_flags", _object(bbox=[True, False, 1, 1]), _NUMBERS),
    CocoCase("box_of_three", _object(bbox=[1, 2, 3]), _NUMBERS),
    CocoCase("box_nested", _object(bbox=[[1, 2], [3, 4], 1, 1]), _NUMBERS),
    CocoCase("box_null", _object(bbox=None), _NUMBERS),
    CocoCase("box_missing", _without("annotations", "bbox"), _NUMBERS),
    CocoCase("box_number_of_400_digits", _object(bbox=[10**400, 0, 1, 1]), _NUMBERS),
    CocoCase("box_negative_size", _object(bbox=[10, 10, -5, 4]), boxes=()),
    CocoCase("box_zero_size", _object(bbox=[10, 10, 0, 4]), boxes=()),
    CocoCase("box_outside", _object(bbox=[100, 100, 5, 5]), boxes=()),
    CocoCase("box_across_the_edge", _object(bbox=[-10, 28, 20, 20]), boxes=((0, 28, 10, 32),)),
    CocoCase("box_huge", _object(bbox=[-1e308, -1e308, 1.7e308, 1.7e308]), boxes=((0, 0, 32, 32),)),
    CocoCase("box_huge_and_outside", _object(bbox=[1e308, 1e308, 1e308, 1e308]), boxes=()),
    CocoCase("box_tiny", _object(bbox=[5, 5, 1e-30, 1e-30]), boxes=()),
    # what else an object says
    CocoCase("area_nan", _object(area=float("nan")), "area is no"),
    CocoCase("area_text", _object(area="80"), "area is no"),
    CocoCase("area_huge", _object(area=1e300), "area is no"),
    CocoCase("area_negative", _object(area=-4), "area is no"),
    CocoCase("crowd_of_two", _object(iscrowd=2), "iscrowd is neither 0 nor 1"),
    CocoCase("crowd_null", _object(iscrowd=None)),
    CocoCase("crowd_list", _object(iscrowd=[]), "iscrowd is neither 0 nor 1"),
    CocoCase("id_text", _object(id="11")),
    CocoCase("id_fraction", _object(image_id=1.5), "image_id is neither a whole number nor a text"),
    CocoCase("id_flag", _object(category_id=True), "category_id is no whole number"),
    CocoCase("id_huge", _object(id=10**30)),
    CocoCase("id_twice", _object(id=12), "ids of annotations occur twice: 12"),
    CocoCase("unknown_image", _object(image_id=77), "annotations of images that are not there"),
    CocoCase("unknown_category", _object(category_id=77), "unknown category_id"),
    # masks
    CocoCase("mask_missing", _without("annotations", "segmentation"), masked=False),
    CocoCase("mask_null", _object(segmentation=None), masked=False),
    CocoCase("mask_empty", _object(segmentation=[]), masked=False),
    CocoCase("polygon_of_two_points", _object(segmentation=[[1, 1, 2, 2]]), masked=False),
    CocoCase("polygon_nan", _object(segmentation=[[1, 1, 2, 2, float("nan"), 3]]), "no list of finite numbers"),
    CocoCase("polygon_far", _object(segmentation=[[1, 1, 2, 2, 1e300, 3]]), "corners more than"),
    CocoCase("polygon_flat", _object(segmentation=[1, 1, 2, 2, 3, 3]), "no list of finite numbers"),
    CocoCase("polygon_outside", _object(segmentation=[[-50, -50, -40, -50, -40, -40]])),
    CocoCase("runs_of_another_size", _rle([8, 8], [64]), "for another size than their image"),
    CocoCase("runs_too_short", _rle([SIDE, SIDE], [3]), "do not add up"),
    CocoCase("runs_negative", _rle([SIDE, SIDE], [-1, SIDE * SIDE + 1]), "do not add up"),
    CocoCase("runs_huge", _rle([SIDE, SIDE], [2**63, 2**63]), "do not add up"),
    CocoCase("runs_of_a_huge_image", _rle([2**31, 2**31], [2**62]), "segmentation"),
    CocoCase("runs_text", _rle([SIDE, SIDE], "\x00\x01"), "counts"),
    CocoCase("runs_text_without_end", _rle([SIDE, SIDE], "o" * 4000), "counts"),
    CocoCase("runs_not_ascii", _rle([SIDE, SIDE], "\N{SNOWMAN}"), "counts"),
    CocoCase("runs_size_text", _rle("32", [1]), "size is not two whole numbers"),
    # images
    CocoCase("image_twice", _image(id=2), "ids of images occur twice: 2"),
    CocoCase("image_id_list", _image(id=[1]), "id is neither a whole number nor a text"),
    CocoCase("image_without_height", _without("images", "height"), "width or height"),
    CocoCase("image_negative", _image(height=-32), "width or height"),
    CocoCase("image_huge", _image(height=10**9), "width or height"),
    CocoCase("same_file_twice", _image(file_name="./b.png"), "images share a file_name"),
    CocoCase("file_absolute", _image(file_name="/etc/passwd"), "leads out of the folder"),
    CocoCase("file_above", _image(file_name="../train.json"), "leads out of the folder"),
    CocoCase("file_above_inside", _image(file_name="a/../../../x.png"), "leads out of the folder"),
    CocoCase("file_backslash", _image(file_name="..\\..\\a.png"), "leads out of the folder"),
    CocoCase("file_zero", _image(file_name="a.png\0.jpg"), "leads out of the folder"),
    CocoCase("file_empty", _image(file_name=" "), "file_name is missing"),
    CocoCase("file_list", _image(file_name=["a.png"]), "file_name is missing"),
    CocoCase("file_half_character", _image(file_name="\ud800.png"), "no possible name"),
    CocoCase("file_link_out", _image(file_name="link.png"), "links"),
    CocoCase("file_hidden_link_out", _image(file_name=".link.png"), "links"),
    CocoCase("file_below_a_link", _image(file_name="away/secret.png"), "links"),
    CocoCase("file_pipe", _image(file_name=".pipe.png"), "links"),
    # categories
    CocoCase("category_twice", _category(id=9), "ids of categories occur twice"),
    CocoCase("category_name_twice", _category(name="dog"), "categories share a name"),
    CocoCase("category_name_number", _category(name=3), "name is missing"),
    CocoCase("category_name_blank", _category(name=" "), "name is missing"),
    CocoCase("category_name_half_character", _category(name="\ud800"), "name"),
    CocoCase("category_name_escape", _category(name="\x1b[2Jcat"), "name"),
    # tables
    CocoCase("no_images", _table("images", []), "there are no images"),
    CocoCase("no_categories", _table("categories", []), "there are no categories"),
    CocoCase("images_mapping", _table("images", {"1": "a.png"}), "has no list images"),
    CocoCase("images_of_text", _table("images", ["a.png"]), "is no mapping"),
    CocoCase("annotations_null", _table("annotations", None), "has no list annotations"),
    CocoCase("nothing_annotated", _table("annotations", []), boxes=()),
    CocoCase("annotations_of_lists", _table("annotations", [[1, 2]]), "is no mapping"),
]

COCO_FILES = {
    "zero_byte": (b"", "is no JSON"),
    "cut": (b'{"images": [{"id": 1, "file_na', "is no JSON"),
    "deep": (b"[" * 100_000, "is no JSON"),
    "deep_and_closed": (b'{"a": ' * 50_000 + b"1" + b"}" * 50_000, "is no JSON"),
    "number_of_5000_digits": (b'{"images": ' + b"1" * 5000 + b"}", "is no JSON"),
    "pickle": (pickle.dumps(Evil()), "is no JSON"),
    "latin_1": ('{"images": "\N{LATIN SMALL LETTER U WITH DIAERESIS}"}'.encode("latin-1"), "is no JSON"),
    "list": (b"[]", "has no list images"),
    "text": (b'"images"', "has no list images"),
}
"""Whole files, and what the refusal says."""


# --- trees ---


@dataclass(frozen=True)
class TreeCase:
    """A change to the folders of a sound image folder `set`, with a folder `outside` beside it."""

    name: str
    change: Callable[[Path], Any]
    refused: str = ""
    added: tuple[str, ...] = ()
    """Images of class `cat` besides `0.jpg`, when the folder is used."""

    def __str__(self) -> str:
        return self.name


def write(file: Path, content: bytes = PLAIN_JPEG) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(content)
    return file


def _link(name: str, target: str) -> Callable[[Path], Any]:
    return lambda root: (root / name).symlink_to(root / target)


def _pipe(root: Path) -> None:
    os.mkfifo(root / "set/train/cat/pipe.jpg")


def _circle(root: Path) -> None:
    (root / "set/train/cat/circle").symlink_to(root / "set/train/cat")


def _self_link(root: Path) -> None:
    (root / "set/train/cat/self.jpg").symlink_to("self.jpg")


def _class_of(name: bytes) -> Callable[[Path], Any]:
    def change(root: Path) -> None:
        for split in ("train", "val"):
            write(root / "set" / split / os.fsdecode(name) / "0.jpg")

    return change


def _no_folder(root: Path) -> None:
    for file in sorted((root / "set/train").rglob("*"), reverse=True):
        file.rmdir() if file.is_dir() else file.unlink()
    (root / "set/train").rmdir()
    (root / "set/train").write_text("no folder")


TREE_CASES = [
    TreeCase("plain", lambda root: None),
    TreeCase("link_out", _link("set/train/cat/1.jpg", "outside/secret.jpg"), "links"),
    TreeCase("link_to_a_device", lambda root: (root / "set/train/cat/1.jpg").symlink_to("/dev/zero"), "links"),
    TreeCase("link_out_of_a_folder", _link("set/train/cat/more", "outside"), "links"),
    TreeCase("link_to_nothing", _link("set/train/cat/1.jpg", "gone.jpg"), "links"),
    TreeCase("link_to_itself", _self_link, "links"),
    TreeCase("link_in_a_circle", _circle, "links"),
    TreeCase("link_inside", _link("set/train/cat/1.jpg", "set/train/dog/0.jpg"), added=("1.jpg",)),
    TreeCase("class_link_out", _link("set/train/emu", "outside"), "only train has emu"),
    TreeCase("pipe", _pipe, "links"),
    TreeCase(
        "folder_named_jpg", lambda root: write(root / "set/train/cat/album.jpg/1.jpg"), added=("album.jpg/1.jpg",)
    ),
    TreeCase("empty_folder_named_jpg", lambda root: (root / "set/train/cat/album.jpg").mkdir()),
    TreeCase("hidden", lambda root: write(root / "set/train/cat/.secret.jpg")),
    TreeCase("rubbish", lambda root: write(root / "set/train/cat/Thumbs.db")),
    TreeCase("file_beside_classes", lambda root: write(root / "set/train/readme.jpg")),
    TreeCase(
        "deep",
        lambda root: write(root / "set/train/cat" / "/".join("d" * 60) / "1.jpg"),
        added=("/".join("d" * 60) + "/1.jpg",),
    ),
    TreeCase("no_suffix", lambda root: write(root / "set/train/cat/picture")),
    TreeCase("only_a_suffix", lambda root: write(root / "set/train/cat/x.jpg.exe")),
    TreeCase("missing_split", lambda root: (root / "set/val").rename(root / "set/valid"), "does not exist"),
    TreeCase("split_is_a_file", _no_folder, "does not exist"),
    TreeCase("empty_class", lambda root: (root / "set/train/cat/0.jpg").unlink(), "hold no images: cat"),
    TreeCase("classes_differ", lambda root: write(root / "set/val/emu/0.jpg"), "only val has emu"),
    TreeCase("class_name_escape", _class_of(b"\x1b[2J"), "class"),
    TreeCase("class_name_of_bytes", _class_of(b"\xff\xfe"), "class"),
    TreeCase("class_name_of_two_lines", _class_of(b"a\nb"), "class"),
]

CLASS_FILES = {
    "byte_order_mark": (b"\xef\xbb\xbfsky\r\nroad\r\ncar\r\n", ""),
    "empty": (b"", "class names are missing"),
    "blank": (b"\n \n\n", "class names are missing"),
    "gap": (b"wall\n\nfloor\n", "line 2 is empty"),
    "gap_first": (b"\nsky\nroad\ncar\n", "line 1 is empty"),
    "gap_first_windows": (b"\xef\xbb\xbf \r\n\r\nsky\r\nroad\r\ncar\r\n", "line 1 is empty"),
    "gaps_last": (b"sky\nroad\ncar\n\n \n", ""),
    "gaps_last_windows": (b"sky\r\nroad\r\ncar\r\n\r\n \r\n", ""),
    "gap_before_one": (b"\nsky\n", "line 1 is empty"),
    "twice": (b"sky\nroad\nsky\n", "class names occur twice: sky"),
    "latin_1": (b"sky\nstra\xdfe\ncar\n", "classes"),
    "utf_16": ("sky\nroad\ncar\n".encode("utf-16"), "classes"),
    "escape": (b"sky\n\x1b[2Jroad\ncar\n", "classes"),
    "too_many": ("\n".join(map(str, range(300))).encode(), "300 classes do not fit"),
}
"""Contents of `classes.txt`, and what the refusal says; "" when it gives `CLASSES`."""
