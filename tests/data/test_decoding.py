"""Real files of every kind the platform reads or refuses."""

import io
import struct
import zlib
from pathlib import Path

import cv2
import numpy as np
import pytest
import simplejpeg
from numpy.typing import NDArray
from PIL import Image, ImageOps

from scalablevit.data import decoding
from scalablevit.data.decoding import (
    SUFFIXES,
    BadSample,
    WrongMask,
    convert_image,
    decode,
    decode_image,
    find_first_scan,
    read_header,
    read_image,
    read_mask,
    read_mask_size,
)

LIMIT = 10_000


def smooth_picture(height: int = 24, width: int = 40) -> NDArray[np.uint8]:
    corners = np.random.default_rng(0).integers(0, 256, (3, 4, 3), dtype=np.uint8)
    return np.asarray(cv2.resize(corners, (width, height), interpolation=cv2.INTER_LINEAR), np.uint8)


def encoded(image: Image.Image, kind: str, **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def chunk(kind: bytes, content: bytes) -> bytes:
    """One chunk of a PNG."""
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def png(width: int, depth: int, color_type: int, row: bytes, *more: bytes) -> bytes:
    """A PNG of one row, for kinds that Pillow does not write."""
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, 1, depth, color_type, 0, 0, 0))
    pixels = chunk(b"IDAT", zlib.compress(b"\0" + row))
    return b"".join((b"\x89PNG\r\n\x1a\n", header, *more, pixels, chunk(b"IEND", b"")))


def jpeg(image: Image.Image, **options: object) -> bytes:
    return encoded(image, "JPEG", quality=95, subsampling=0, **options)


def test_jpeg_keeps_rgb_order() -> None:
    picture = smooth_picture()
    made = decode_image(jpeg(Image.fromarray(picture)), LIMIT)
    assert made.shape == (24, 40, 3)
    assert made.dtype == np.uint8
    assert np.abs(made.astype(int) - picture).mean() < 3


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"progressive": True},
        {"subsampling": 0},
        {"subsampling": 1},
        {"keep_rgb": True},
        {"restart_marker_blocks": 1},
    ],
)
@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_pixels_of_a_jpeg_are_pillows(mode: str, options: dict[str, object]) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (37, 51, 3), dtype=np.uint8)
    data = encoded(Image.fromarray(noise).convert(mode), "JPEG", **options)
    wanted = np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))
    np.testing.assert_array_equal(decode_image(data, LIMIT), wanted)


def outcome(data: bytes, monkeypatch: pytest.MonkeyPatch, *, pillow: bool) -> tuple[tuple[int, ...], bytes] | str:
    """Shape and pixels, or the reason why there are none; with `pillow` it alone reads the header."""
    with monkeypatch.context() as patch:
        if pillow:
            patch.setattr(decoding, "find_first_scan", lambda *_: 0)
        try:
            made = decode_image(data, LIMIT)
        except BadSample as bad:
            return bad.reason
    return made.shape, made.tobytes()


def noise(mode: str) -> Image.Image:
    image = Image.fromarray(np.random.default_rng(1).integers(0, 256, (37, 51, 3), dtype=np.uint8))
    return image.convert(mode)


ORDINARY = {
    "plain": encoded(noise("RGB"), "JPEG"),
    "grey": encoded(noise("L"), "JPEG"),
    "progressive": encoded(noise("RGB"), "JPEG", progressive=True, optimize=True),
    "RGB inside": encoded(noise("RGB"), "JPEG", keep_rgb=True),
    "profile and comment": encoded(noise("RGB"), "JPEG", icc_profile=b"p" * 70_000, comment=b"c", dpi=(72, 72)),
    "restarts": encoded(noise("RGB"), "JPEG", restart_marker_blocks=2, qtables=[[9] * 64, [7] * 64]),
}


def turned(orientation: int) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return encoded(noise("RGB"), "JPEG", exif=exif.tobytes())


PLAIN = ORDINARY["plain"]
FRAME = PLAIN.index(b"\xff\xc0")


def with_frame(bits: int, height: int) -> bytes:
    return PLAIN[: FRAME + 4] + struct.pack(">BH", bits, height) + PLAIN[FRAME + 7 :]


def after_begin(segment: bytes, rest: bytes = PLAIN[2:]) -> bytes:
    return b"\xff\xd8" + segment + rest


OTHERS = {
    "12 bits": with_frame(12, 37),
    "no height": with_frame(8, 0),
    "end before the scan": after_begin(b"\xff\xd9\0\2"),
    "damaged JFIF": after_begin(b"\xff\xe0\0\7JFIF\0", PLAIN[20:]),
    "second frame": after_begin(PLAIN[FRAME : FRAME + 19]),
    **{f"orientation {number}": turned(number) for number in range(10)},
    "CMYK": encoded(noise("CMYK"), "JPEG"),
    "thumbnail": after_begin(b"\xff\xe1\0\x0eExif\0\0\xff\xd8\xff\xda\xff\xd9"),
    "two pictures": encoded(noise("RGB"), "MPO", save_all=True, append_images=[noise("RGB")]),
    "too large": encoded(Image.new("RGB", (LIMIT + 1, 1)), "JPEG"),
    "no frame": PLAIN[:20] + b"\xff\xda\0\x08\0\0\0\0\0\0\xff\xd9",
    "16 bits": encoded(Image.fromarray(np.arange(800, dtype=np.uint16).reshape(20, 40) * 80), "PNG"),
    "no JPEG": encoded(noise("RGB"), "PNG"),
    "nothing": b"",
}


@pytest.mark.parametrize("data", [*ORDINARY.values(), *OTHERS.values()], ids=[*ORDINARY, *OTHERS])
def test_the_header_read_once_gives_the_pixels_of_the_header_read_by_pillow(
    data: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert bool(find_first_scan(data, LIMIT)) == (data in ORDINARY.values())
    assert outcome(data, monkeypatch, pillow=False) == outcome(data, monkeypatch, pillow=True)


@pytest.mark.parametrize("kind", ORDINARY)
def test_a_damaged_header_is_judged_as_pillow_judges_it(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Sizes and reasons are compared, not pixels: what libjpeg makes of damaged tables differs from call to call."""
    decode_jpeg = decoding._decode_jpeg

    def blacken(data: bytes, refuse_damage: bool) -> NDArray[np.uint8] | None:
        pixels = decode_jpeg(data, refuse_damage)
        return pixels if pixels is None else np.zeros_like(pixels)

    monkeypatch.setattr(decoding, "_decode_jpeg", blacken)
    data, draws = ORDINARY[kind], np.random.default_rng(0)
    scan = find_first_scan(data, LIMIT)
    assert data[scan - 14 : scan].count(b"\xff\xda") == 1
    structure = [at for at in range(scan) if at < 30 or at > scan - 700]
    for _ in range(150):
        damaged = bytearray(data)
        for at in draws.choice(structure, draws.integers(1, 3), replace=False):
            damaged[at] = draws.choice([0, 1, 2, 8, 0xC0, 0xC4, 0xD9, 0xDA, 0xDB, 0xE1, 0xFF, draws.integers(256)])
        cut = bytes(damaged[: len(data) - draws.choice([0, 0, len(data) - scan, len(data) // 2])])
        assert outcome(cut, monkeypatch, pillow=False) == outcome(cut, monkeypatch, pillow=True)


def test_a_rare_subsampling_decodes_as_well() -> None:
    image = Image.fromarray(smooth_picture(32, 32)).convert("YCbCr")
    data = bytearray(encoded(image, "JPEG", subsampling=2))
    at = data.index(b"\xff\xc0") + 11  # factors of the first component; each has 3 bytes
    data[at], data[at + 3], data[at + 6] = 0x12, 0x21, 0x21  # as many blocks in a unit as before
    with pytest.raises(ValueError, match="subsampling"):
        simplejpeg.decode_jpeg(bytes(data), strict=False)
    wanted = np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))
    np.testing.assert_array_equal(decode_image(bytes(data), LIMIT), wanted)


def test_damage_inside_a_jpeg_is_said_and_passed_over(capfd: pytest.CaptureFixture[str]) -> None:
    data = bytearray(jpeg(Image.fromarray(smooth_picture(64, 64))))
    decode_image(bytes(data), LIMIT)
    assert capfd.readouterr().err == ""
    data[-60:-30] = bytes(30)
    assert decode_image(bytes(data), LIMIT).shape == (64, 64, 3)
    assert "Corrupt JPEG data" in capfd.readouterr().err


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
def test_exif_orientation_turns_the_image(tmp_path: Path, kind: str, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    file = tmp_path / "image"
    file.write_bytes(encoded(Image.fromarray(smooth_picture()), kind, exif=exif.tobytes()))
    upright = np.asarray(ImageOps.exif_transpose(Image.open(file)))
    made = read_image(file, LIMIT)
    assert np.abs(made.astype(int) - upright).max() <= 1
    assert read_header(file, LIMIT).size == made.shape[:2] == ((24, 40) if orientation < 5 else (40, 24))


@pytest.mark.parametrize("loaded", [False, True])
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "TIFF", "WEBP"])
def test_an_image_that_pillow_opened_is_converted_like_its_file(tmp_path: Path, kind: str, loaded: bool) -> None:
    exif, path = Image.Exif(), tmp_path / "image"
    exif[0x0112] = 6
    picture = Image.fromarray(smooth_picture())
    if kind != "JPEG":
        picture.putalpha(Image.fromarray(np.arange(24, dtype=np.uint8).repeat(40).reshape(24, 40) * 10))
    picture.save(path, kind, exif=exif)
    opened = Image.open(io.BytesIO(path.read_bytes()))  # of a TIFF opened by its path, Pillow loses the orientation
    if loaded:
        opened.load()
    info = dict(opened.info)
    expected = read_image(path, LIMIT, (9, 90, 200))
    assert expected.shape == (40, 24, 3)
    for _ in range(2):
        assert np.array_equal(convert_image(opened, LIMIT, background=(9, 90, 200)), expected)
    assert kind == "TIFF" or opened.info.items() >= info.items()  # Pillow's loading adds some, and takes from a TIFF's


def test_an_image_that_was_made_is_converted() -> None:
    grey = Image.fromarray(np.full((3, 5), 65535 * 2 // 3, np.uint16))
    assert np.array_equal(convert_image(grey, LIMIT), np.full((3, 5, 3), 170))
    with pytest.raises(BadSample, match=r"photo: 5 x 3 pixels are more than data.max_pixels \(14\)"):
        convert_image(grey, 14, "photo")


@pytest.mark.parametrize("kind", ["PNG", "WEBP", "BMP", "TIFF", "GIF", "PPM", "AVIF", "JPEG2000", "TGA"])
def test_other_formats(kind: str) -> None:
    flat = Image.new("RGB", (64, 40), (255, 0, 51))
    options = {"lossless": True} if kind == "WEBP" else {}
    made = decode_image(encoded(flat, kind, **options), LIMIT, f"photo.{SUFFIXES[kind][0].upper()}")
    assert made.shape == (40, 64, 3)
    assert np.abs(made.astype(int) - (255, 0, 51)).max() <= (2 if kind == "AVIF" else 0)


def test_formats_without_a_signature_are_read_by_name_alone() -> None:
    with pytest.raises(BadSample, match="not an image of a known format"):
        decode_image(encoded(Image.new("RGB", (6, 4)), "TGA"), LIMIT, "photo.jpg")


def test_avif_is_upright_by_its_exif_orientation(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    picture = np.zeros((24, 40, 3), np.uint8)
    picture[:, :20] = 255  # the stored left half is the upper one
    Image.fromarray(picture).save(tmp_path / "a.avif", exif=exif.tobytes())
    made = read_image(tmp_path / "a.avif", LIMIT)
    assert made.shape[:2] == read_header(tmp_path / "a.avif", LIMIT).size == (40, 24)
    assert made[2:18].min() > 200 and made[22:38].max() < 50


@pytest.mark.parametrize(
    ("mode", "color", "rgb"),
    [
        ("L", 90, (90, 90, 90)),
        ("LA", (90, 255), (90, 90, 90)),
        ("RGBA", (10, 200, 30, 255), (10, 200, 30)),
        ("1", 1, (255, 255, 255)),
    ],
)
def test_modes_become_rgb(mode: str, color: int | tuple[int, ...], rgb: tuple[int, ...]) -> None:
    assert (decode_image(encoded(Image.new(mode, (6, 4), color), "PNG"), LIMIT) == rgb).all()


BACKGROUND = (100, 150, 200)


def made_of(mode: str, values: list[int | tuple[int, ...]]) -> Image.Image:
    image = Image.new(mode, (len(values), 1))
    image.putdata(values)
    return image


def palette() -> Image.Image:
    image = made_of("P", [0, 1])
    image.putpalette([10, 20, 30, 40, 50, 60])
    return image


@pytest.mark.parametrize(
    ("data", "opaque"),
    [
        (encoded(made_of("RGBA", [(9, 9, 9, 0), (10, 200, 30, 255)]), "PNG"), (10, 200, 30)),
        (encoded(made_of("RGBA", [(9, 9, 9, 0), (10, 200, 30, 255)]), "WEBP", lossless=True), (10, 200, 30)),
        (encoded(made_of("RGBA", [(9, 9, 9, 0), (10, 200, 30, 255)]), "TIFF"), (10, 200, 30)),
        (encoded(made_of("LA", [(9, 0), (90, 255)]), "PNG"), (90, 90, 90)),
        (encoded(palette(), "PNG", transparency=0), (40, 50, 60)),
        (encoded(palette(), "PNG", transparency=bytes([0, 255])), (40, 50, 60)),
        (encoded(palette(), "GIF", transparency=0), (40, 50, 60)),
        (encoded(made_of("L", [7, 90]), "PNG", transparency=7), (90, 90, 90)),
        (encoded(made_of("1", [1, 0]), "PNG", transparency=1), (0, 0, 0)),
        (encoded(made_of("RGB", [(7, 8, 9), (7, 8, 10)]), "PNG", transparency=(7, 8, 9)), (7, 8, 10)),
        (encoded(Image.fromarray(np.array([[9, 65535]], np.uint16)), "PNG", transparency=9), (255, 255, 255)),
        (png(2, 16, 2, bytes([1, 2, 3, 4, 5, 6, 40, 0, 50, 0, 60, 0]), chunk(b"tRNS", bytes([1, 2, 3, 4, 5, 6]))),
         (40, 50, 60)),
    ],
    ids=["RGBA", "WebP", "TIFF", "LA", "palette", "palette with an alpha each", "GIF", "grey", "1 bit", "RGB",
         "16 bits", "RGB of 16 bits"],
)  # fmt: skip
def test_transparent_pixels_are_composed_onto_the_background(data: bytes, opaque: tuple[int, int, int]) -> None:
    made = decode(data, LIMIT, background=BACKGROUND)
    assert made.transparent
    assert made.pixels[0].tolist() == [list(BACKGROUND), list(opaque)]
    assert decode_image(data, LIMIT)[0, 0].tolist() == [124, 116, 104], "ImageNet's mean where no recipe is at hand"


def test_half_transparent_pixels_are_mixed_and_opaque_images_stay_as_they_are() -> None:
    image = made_of("RGBA", [(0, 255, 10, 51)])
    assert decode_image(encoded(image, "PNG"), LIMIT, background=BACKGROUND)[0, 0].tolist() == [80, 171, 162]
    noise = np.random.default_rng(0).integers(0, 256, (40, 64, 4), dtype=np.uint8)
    noise[..., 3] = 255
    made = decode(encoded(Image.fromarray(noise), "PNG"), LIMIT, background=BACKGROUND)
    np.testing.assert_array_equal(made.pixels, noise[..., :3])
    assert not made.transparent


@pytest.mark.parametrize("bits", [2, 4])
def test_the_transparent_value_of_grey_of_few_bits(bits: int) -> None:
    row = bytes([(1 << (8 - bits)) | (2 << (8 - 2 * bits))])
    data = png(2, bits, 0, row, chunk(b"tRNS", b"\0\1"))
    grey = 2 * 255 // (2**bits - 1)
    assert decode_image(data, LIMIT, background=BACKGROUND)[0].tolist() == [list(BACKGROUND), [grey] * 3]


@pytest.mark.parametrize(
    ("values", "kind", "reason"),
    [
        (np.array([[0, 4095]], np.uint16), "PNG", "values up to 4095 in a 16-bit file: mean 8.0 of 255"),
        (np.array([[0, 4095]], np.int32), "TIFF", "values up to 4095 in a 32-bit file: mean 8.0 of 255"),
        (np.array([[0, 65535]], np.int32), "TIFF", "values up to 65535 in a 32-bit file: mean 127.5 of 255"),
        (np.array([[0, 4096]], np.uint16), "PNG", ""),
        (np.array([[0, 9]], np.uint8), "PNG", ""),
    ],
)
def test_low_values_of_deep_files_are_told(values: NDArray[np.uint16], kind: str, reason: str) -> None:
    made = decode(encoded(Image.fromarray(values), kind), LIMIT)
    assert made.low_range.startswith(reason) and bool(made.low_range) == bool(reason)
    assert made.deep == (values.dtype != np.uint8)


@pytest.mark.parametrize(("highest", "low"), [(4095, True), (4096, False)])
def test_low_values_of_deep_colour_are_told(highest: int, low: bool) -> None:
    _, data = cv2.imencode(".png", np.full((4, 4, 3), highest, np.uint16))
    made = decode(data.tobytes(), LIMIT)
    assert made.deep and bool(made.low_range) == low


def test_cmyk_and_grey_jpeg() -> None:
    cmyk = decode_image(jpeg(Image.new("CMYK", (16, 16), (0, 255, 255, 0))), LIMIT)
    assert np.abs(cmyk.astype(int) - (255, 0, 0)).max() <= 3
    assert np.abs(decode_image(jpeg(Image.new("L", (16, 16), 90)), LIMIT).astype(int) - 90).max() <= 1


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "PPM"])
def test_16_bits_are_scaled_not_clipped(kind: str) -> None:
    deep = np.array([[0, 257, 32896, 65535]], np.uint16)
    made = decode_image(encoded(Image.fromarray(deep), kind), LIMIT)
    assert made[0, :, 0].tolist() == [0, 1, 128, 255]
    assert (made == made[:, :, :1]).all()


def test_16_bit_color_png_is_scaled() -> None:
    deep = np.full((4, 4, 3), (65535, 32768, 257), np.uint16)  # blue, green, red
    _, data = cv2.imencode(".png", deep)
    assert np.abs(decode_image(data.tobytes(), LIMIT).astype(int) - (1, 128, 255)).max() <= 1


@pytest.mark.parametrize("values", [np.full((4, 4), 0.5, np.float32), np.full((4, 4), 70_000, np.int32)])
def test_values_without_range_are_refused(values: NDArray[np.float32]) -> None:
    with pytest.raises(BadSample, match="no known range"):
        decode_image(encoded(Image.fromarray(values), "TIFF"), LIMIT)


def test_animation_gives_the_first_frame() -> None:
    frames = [Image.new("RGB", (6, 4), color) for color in ((255, 0, 0), (0, 0, 255))]
    data = encoded(frames[0], "GIF", save_all=True, append_images=frames[1:])
    assert (decode_image(data, LIMIT) == (255, 0, 0)).all()


def with_thumbnail(data: bytes) -> bytes:
    """The same JPEG with a whole small JPEG inside its first metadata segment."""
    payload = b"Exif\0\0" + jpeg(Image.new("RGB", (8, 8)))
    return data[:2] + b"\xff\xe1" + (len(payload) + 2).to_bytes(2, "big") + payload + data[2:]


@pytest.mark.parametrize("progressive", [False, True])
@pytest.mark.parametrize("thumbnail", [False, True])
@pytest.mark.parametrize("tail", [b"", b"\0" * 200_000])
def test_cut_jpeg_is_refused(tail: bytes, thumbnail: bool, progressive: bool) -> None:
    data = jpeg(Image.fromarray(smooth_picture(64, 64)), progressive=progressive)
    whole = with_thumbnail(data) if thumbnail else data
    assert decode_image(whole, LIMIT).shape == (64, 64, 3)
    for kept in (0.6, 0.9):
        with pytest.raises(BadSample, match=r"cut short|cannot be decoded"):
            decode_image(whole[: int(len(whole) * kept)] + tail, LIMIT)
    with pytest.raises(BadSample, match="cut short"):
        decode_image(whole[:-2] + tail, LIMIT)


def test_data_after_the_end_of_a_jpeg_does_no_harm() -> None:
    data = jpeg(Image.fromarray(smooth_picture()))
    assert (decode_image(data + b"trailer \xff\xda", LIMIT) == decode_image(data, LIMIT)).all()


@pytest.mark.parametrize("kind", ["PNG", "GIF", "BMP", "TIFF", "WEBP", "AVIF", "JPEG2000", "TGA"])
def test_other_cut_files_are_refused(kind: str) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    data = encoded(Image.fromarray(noise), kind)
    with pytest.raises(BadSample):
        decode_image(data[: len(data) // 2], LIMIT, f"photo.{SUFFIXES[kind][0]}")


def test_pixel_cap_holds_before_decoding(tmp_path: Path) -> None:
    file = tmp_path / "large.jpg"
    file.write_bytes(jpeg(Image.new("RGB", (101, 100)))[:700])  # the header is whole, the pixels are not
    for read in (read_image, read_header):
        with pytest.raises(BadSample, match=r"101 x 100 pixels.*max_pixels \(10000\)") as caught:
            read(file, LIMIT)
        assert caught.value.path == str(file)


@pytest.mark.parametrize("content", [b"", b"hello", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n"])
def test_what_is_no_image_is_refused_by_name(tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "note.jpg"
    file.write_bytes(content)
    with pytest.raises(BadSample, match="not an image of a known format") as caught:
        read_image(file, LIMIT)
    assert str(caught.value).startswith(str(file))
    with pytest.raises(BadSample):
        read_header(file, LIMIT)


def test_missing_file_is_a_bad_sample(tmp_path: Path) -> None:
    for read in (read_image, read_mask, read_header):
        with pytest.raises(BadSample, match="No such file"):
            read(tmp_path / "gone.png", LIMIT)


@pytest.mark.parametrize("bits", [1, 2, 4, 8])
def test_palette_mask_keeps_its_ids(tmp_path: Path, bits: int) -> None:
    ids = (np.arange(16).reshape(4, 4) % 2**bits).astype(np.uint8)
    image = Image.fromarray(ids).convert("P")
    image.putpalette(np.random.default_rng(0).integers(0, 256, 3 * 2**bits).tolist())
    image.save(tmp_path / "mask.png", bits=bits)
    assert (read_mask(tmp_path / "mask.png", LIMIT) == ids).all()


def test_grey_mask_of_8_bits(tmp_path: Path) -> None:
    ids = np.arange(256, dtype=np.uint8).reshape(8, 32)
    Image.fromarray(ids).save(tmp_path / "mask.png")
    assert (read_mask(tmp_path / "mask.png", LIMIT) == ids).all()


IDS = np.array([[0, 1, 2, 255], [7, 7, 1, 0]], np.uint8)


@pytest.mark.parametrize(
    ("image", "kind"),
    [
        (Image.fromarray(IDS), "TIFF"),
        (Image.fromarray(IDS), "BMP"),
        (Image.fromarray(IDS).convert("RGB"), "PNG"),
        (Image.fromarray(IDS).convert("RGB"), "TIFF"),
        (Image.fromarray(IDS).convert("RGBA"), "PNG"),
        (Image.fromarray(IDS).convert("LA"), "PNG"),
        (Image.fromarray(IDS.astype(np.uint16)), "PNG"),
        (Image.fromarray(IDS.astype(np.uint16)), "TIFF"),
        (Image.fromarray(IDS.astype(np.int32)), "TIFF"),
    ],
    ids=lambda value: getattr(value, "mode", value),
)
def test_unambiguous_masks_of_other_kinds(tmp_path: Path, image: Image.Image, kind: str) -> None:
    image.save(tmp_path / "mask.png", kind)
    assert read_mask(tmp_path / "mask.png", LIMIT).tolist() == IDS.tolist()
    assert read_mask_size(tmp_path / "mask.png", LIMIT) == (2, 4)


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "BMP"])
def test_masks_of_one_bit_hold_0_and_1(tmp_path: Path, kind: str) -> None:
    bits = np.array([[0, 1, 1, 0, 1], [1, 0, 0, 0, 1]], np.uint8)
    Image.fromarray(bits.astype(bool)).save(tmp_path / "mask.png", kind)
    assert read_mask(tmp_path / "mask.png", LIMIT).tolist() == bits.tolist()


@pytest.mark.parametrize("bits", [2, 4])
def test_grey_masks_of_few_bits_keep_their_ids(tmp_path: Path, bits: int) -> None:
    last = 2**bits - 1
    (tmp_path / "mask.png").write_bytes(png(2, bits, 0, bytes([(1 << (8 - bits)) | (last << (8 - 2 * bits))])))
    assert read_mask(tmp_path / "mask.png", LIMIT).tolist() == [[1, last]]


COLORS = made_of("RGB", [(0, 0, 0), (128, 0, 0), (0, 128, 0), (128, 0, 0)])


@pytest.mark.parametrize(
    ("image", "kind", "options", "reason"),
    [
        (COLORS, "PNG", {}, r"coded by colour: 3 distinct colours, \(128, 0, 0\), \(0, 0, 0\), \(0, 128, 0\)$"),
        (made_of("RGB", [(i, 0, 0) for i in range(7)]), "PNG", {}, r"7 distinct colours, .*\(4, 0, 0\), ...$"),
        (made_of("LA", [(1, 255), (1, 254)]), "PNG", {}, "transparent pixels"),
        (Image.fromarray(np.array([[0, 256]], np.uint16)), "PNG", {}, r"of 16 or 32 bits are 0\.\.256"),
        (Image.fromarray(np.array([[-1, 2]], np.int32)), "TIFF", {}, r"of 16 or 32 bits are -1\.\.2"),
        (Image.fromarray(np.zeros((4, 4), np.float32)), "TIFF", {}, "whole numbers or a palette; this is F"),
        (Image.new("L", (16, 16)), "TIFF", {"compression": "jpeg"}, "compression of this TIFF"),
        (Image.new("L", (4, 4)), "TIFF", {"tiffinfo": {262: 0}}, "WhiteIsZero"),
        (Image.new("L", (4, 4)), "JPEG", {}, "one of PNG, TIFF, BMP; JPEG changes class ids"),
        (Image.new("L", (4, 4)), "GIF", {}, "one of PNG, TIFF, BMP; this is GIF"),
    ],
    ids=["colours", "many colours", "transparent", "16 bits", "32 bits", "floats", "JPEG in TIFF", "inverted", "JPEG",
         "GIF"],
)  # fmt: skip
def test_other_masks_are_refused(
    tmp_path: Path, image: Image.Image, kind: str, options: dict[str, object], reason: str
) -> None:
    image.save(tmp_path / "mask.png", kind, **options)
    with pytest.raises(WrongMask, match=reason):
        read_mask(tmp_path / "mask.png", LIMIT)


def test_colours_of_16_bits_are_no_ids(tmp_path: Path) -> None:
    (tmp_path / "mask.png").write_bytes(png(1, 16, 2, bytes(6)))
    for read in (read_mask, read_mask_size):
        with pytest.raises(WrongMask, match="RGB with 16 bits a channel"):
            read(tmp_path / "mask.png", LIMIT)


def test_cut_mask_is_refused(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (32, 32), dtype=np.uint8)
    (tmp_path / "mask.png").write_bytes(encoded(Image.fromarray(noise), "PNG")[:600])
    with pytest.raises(BadSample, match="differs from its sum"):
        read_mask(tmp_path / "mask.png", LIMIT)
