"""The look at every file before training."""

import errno
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from scalablevit.config.data import ImageFolder, MaskPairs, Split
from scalablevit.config.errors import UserErrors
from scalablevit.data.decoding import Header, inspect_image, read_header
from scalablevit.data.sources.base import Source
from scalablevit.data.sources.opening import open_source
from scalablevit.inspection import check
from scalablevit.inspection.check import Depth, Problem, Report, check_split, image_notes, raise_if_fatal
from scalablevit.inspection.counts import Counts
from scalablevit.inspection.statistics import split_statistics

FILES = 6


@pytest.fixture
def base(tmp_path: Path) -> Path:
    for split in ("train", "val"):
        for name in ("i", "m"):
            (tmp_path / split / name).mkdir(parents=True)
        for number in range(FILES):
            Image.new("RGB", (20, 10)).save(tmp_path / split / f"i/{number}.jpg")
            Image.fromarray(np.full((10, 20), number % 3, np.uint8)).save(tmp_path / split / f"m/{number}.png")
    return tmp_path


def pairs(base: Path, **fields: object) -> MaskPairs:
    values = {"classes": ["a", "b", "c"], **fields}
    splits = {split: Split(images=f"{split}/i", masks=f"{split}/m") for split in ("train", "val")}
    return MaskPairs(source="mask_pairs", root=str(base), **splits, **values)  # type: ignore[arg-type]


def checked(data: MaskPairs | ImageFolder, cache: Path | None = None, depth: Depth = "masks") -> Report:
    return check_split(open_source(data, "train", Path("/")), data, 2, cache, depth)


def sound(report: Report) -> bool:
    return report.samples == FILES and not report.unreadable and not report.wrong and not report.damaged


def test_good_data_has_no_problems(base: Path) -> None:
    report = checked(pairs(base))
    assert sound(report) and report.complete
    raise_if_fatal(report, 0.0)


def test_image_folder_headers(base: Path) -> None:
    data = ImageFolder(source="image_folder", root=str(base), train=Split(images="train"), val=Split(images="val"))
    (base / "train/i/1.jpg").write_bytes(b"")
    (base / "train/i/2.jpg").write_text("<html>not found</html>")
    report = checked(data)
    assert report.samples == 2 * FILES
    assert [Path(problem.path).name for problem in report.unreadable] == ["1.jpg", "2.jpg"]
    assert all("not an image" in problem.reason for problem in report.unreadable)
    assert checked(data.model_copy(update={"max_pixels": 199})).unreadable[0].reason.startswith("20 x 10 pixels")


@pytest.mark.parametrize(
    ("mask", "reason"),
    [
        (np.zeros((20, 10), np.uint8), "the mask is 10 x 20 pixels, its image 20 x 10"),
        (np.full((10, 20), 3, np.uint8), "mask values 3 are no class"),
    ],
)
def test_wrong_masks_are_fatal_whatever_the_fraction(
    base: Path, mask: np.ndarray[tuple[int, int], np.dtype[np.uint8]], reason: str
) -> None:
    Image.fromarray(mask).save(base / "train/m/4.png")
    report = checked(pairs(base))
    assert len(report.wrong) == 1
    assert report.unreadable == ()
    with pytest.raises(UserErrors) as caught:
        raise_if_fatal(report, 1.0, "data.train")
    assert f"{base}/train/m/4.png: {reason}" in str(caught.value)
    assert str(caught.value).startswith("data.train: 1 of 6 masks")


def test_masks_without_ids_are_wrong_with_true_advice(base: Path) -> None:
    colors = Image.new("RGB", (20, 10), (128, 0, 0))
    colors.save(base / "train/m/3.png")
    Image.new("L", (20, 10), 1).convert("RGB").save(base / "train/m/2.png")
    report = checked(pairs(base))
    assert [Path(problem.path).name for problem in report.wrong] == ["3.png"] and report.unreadable == ()
    with pytest.raises(UserErrors) as caught:
        raise_if_fatal(report, 1.0)
    assert "3.png: coded by colour: 1 distinct colours, (128, 0, 0)" in str(caught.value)
    assert caught.value.errors[0].fix.startswith("write masks with one channel of class ids")
    assert "ignore_index" not in caught.value.errors[0].fix
    assert checked(pairs(base), depth="headers").wrong == (), "the header does not tell"


def test_ids_follow_the_recipe(base: Path) -> None:
    assert checked(pairs(base, classes=["a", "b"])).wrong[0].reason.startswith("mask values 2 are no class")
    assert checked(pairs(base, classes=["a", "b"], reduce_zero_label=True)).wrong == ()
    assert checked(pairs(base, classes=["a", "b"], ignore_index=2)).wrong == ()


@pytest.mark.parametrize("depth", ["masks", "pixels"])
def test_pixels_are_counted_by_mask_value_in_the_same_pass(base: Path, depth: Depth) -> None:
    first = np.full((10, 20), 255, np.uint8)
    first[0, :7] = 2
    Image.fromarray(first).save(base / "train/m/0.png")
    counts = checked(pairs(base), base / "cache", depth).counts
    assert counts.looked_at == FILES and sum(counts.pixels) == FILES * 200
    assert {value: count for value, count in enumerate(counts.pixels) if count} == {0: 200, 1: 400, 2: 407, 255: 193}
    assert checked(pairs(base), base / "cache", depth).counts == counts, "from the cache"
    assert checked(pairs(base), depth="headers").counts.pixels == ()


@pytest.mark.parametrize("depth", ["masks", "pixels"])
def test_values_of_several_colours_in_palettes_are_noted(base: Path, depth: Depth) -> None:
    """As `quantize` makes a palette for each image, whose indices mean nothing."""
    red, green = ((0, 0, 0, 255, 0, 0), (0, 0, 0, 0, 255, 0))
    for number, palette in ((1, red), (2, green), (4, green), (5, red)):
        mask = Image.fromarray(
            np.repeat(np.array([[0] * 10, [1] * 10], np.uint8), 10).reshape(10, 20) % 2, "L"
        ).convert("P")
        mask.putpalette(palette)
        mask.save(base / f"train/m/{number}.png")
    data = pairs(base)
    report = checked(data, base / "cache", depth)
    first, second = base / "train/m/1.png", base / "train/m/2.png"
    assert report.counts.colors == ((0, "(0, 0, 0)", str(first)), (1, "(255, 0, 0)", str(first)),
                                    (1, "(0, 255, 0)", str(second)))  # fmt: skip
    assert checked(data, base / "cache", depth) == report
    pixels = split_statistics(open_source(data, "train", Path("/")), data, report).pixels
    assert pixels and pixels.recolored == {1: (f"(255, 0, 0) in {first}", f"(0, 255, 0) in {second}")}


def test_images_that_exif_turns_are_counted(base: Path) -> None:
    exif = Image.Exif()
    for number, orientation in enumerate((6, 3, 8)):  # 3 is upside down: height and width stay
        exif[0x0112] = orientation
        size = (20, 10) if orientation == 3 else (10, 20)
        Image.new("RGB", size).save(base / f"train/i/{number}.jpg", exif=exif)
    for depth in ("headers", "masks", "pixels"):
        counts = checked(pairs(base), depth=depth).counts
        assert (counts.turned, [Path(name).name for name in counts.turned_images]) == (2, ["0.jpg", "2.jpg"])


def test_images_that_exif_turns_within_their_size_are_counted_where_there_are_masks(base: Path) -> None:
    """Sizes cannot tell whether a mask is meant for the upright image."""
    exif = Image.Exif()
    for number, (orientation, size, suffix) in enumerate(
        ((3, (20, 10), "jpg"), (2, (20, 10), "png"), (6, (10, 20), "jpg"), (8, (10, 10), "jpg"), (4, (20, 10), "tif"),
         (1, (20, 10), "webp"))
    ):  # fmt: skip
        exif[0x0112] = orientation
        (base / f"train/i/{number}.jpg").unlink()
        Image.new("RGB", size).save(base / f"train/i/{number}.{suffix}", exif=exif)
    Image.new("L", (10, 10)).save(base / "train/m/3.png")
    for depth in ("headers", "masks", "pixels"):
        counts = checked(pairs(base), depth=depth).counts
        assert (counts.flipped, counts.turned) == (4, 1)
        assert [Path(name).name for name in counts.flipped_images] == ["0.jpg", "1.png", "3.jpg", "4.tif"]
    assert checked(folder_of(base)).counts.flipped == 0, "a class has no place in the image"


@pytest.mark.parametrize("depth", ["headers", "masks", "pixels"])
def test_files_of_several_pages_or_frames_are_counted(base: Path, depth: Depth) -> None:
    pages = [Image.new("RGB", (20, 10), (90 * number, 0, 0)) for number in range(3)]
    for number, suffix in enumerate(("tif", "gif", "webp", "png")):
        (base / f"train/i/{number}.jpg").unlink()
        pages[0].save(base / f"train/i/{number}.{suffix}", save_all=True, append_images=pages[1:])
    (base / "train/i/5.jpg").unlink()
    small = Image.new("RGB", (10, 5))
    small.encoderinfo = {"tiffinfo": {254: 1}}  # of reduced resolution, as in cloud-optimized GeoTIFFs
    pages[0].save(base / "train/i/5.tif", save_all=True, append_images=[small])
    masks = [Image.new("L", (20, 10), number) for number in range(2)]
    (base / "train/m/4.png").unlink()
    masks[0].save(base / "train/m/4.tif", save_all=True, append_images=masks[1:])
    report = checked(pairs(base), base / "cache", depth)
    assert sound(report) and report.counts.paged == 5
    assert [Path(name).name for name in report.counts.paged_files] == ["0.tif", "1.gif", "2.webp", "3.png", "4.tif"]
    assert checked(pairs(base), base / "cache", depth) == report


def test_what_follows_the_first_page_may_be_damaged(base: Path) -> None:
    pages = [Image.new("L", (20, 10), number) for number in range(2)]
    file = base / "train/i/0.gif"
    (base / "train/i/0.jpg").unlink()
    pages[0].save(file, save_all=True, append_images=pages[1:])
    content = file.read_bytes()
    file.write_bytes(content[: content.rindex(b"\x2c") + 4])
    assert sound(checked(pairs(base)))


def test_a_deadline_ends_the_look_and_keeps_nothing(base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = pairs(base)
    (base / "train/i/5.jpg").write_bytes(b"spoilt")
    source = open_source(data, "train", Path("/"))
    source.read_contents()
    times = iter(range(100))  # one for each look at the clock
    monkeypatch.setattr(check.time, "monotonic", lambda: next(times))
    report = check_split(source, data, 1, base / "cache", deadline=5)
    assert 0 < report.counts.looked_at < FILES and not report.complete and report.unreadable == ()
    assert report.counts.pixels and not (base / "cache").exists()
    monkeypatch.undo()
    assert check_split(source, data, 1, base / "cache").complete and (base / "cache").exists()


def test_counts_add_up() -> None:
    some = Counts(looked_at=1, turned=1, turned_images=("a",), loose_boxes=2, flat_masks=3, flat_images=("b",))
    masks = Counts(looked_at=2, pixels=(1, 2), turned_images=tuple("cdefg"))
    total = some + masks + masks
    assert (total.looked_at, total.turned, total.loose_boxes, total.flat_masks) == (5, 1, 2, 3)
    assert total.pixels == (2, 4) and total.turned_images == tuple("acdef") and total.flat_images == ("b",)


def test_lying_images_with_upright_masks(base: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (10, 20)).save(base / "train/i/0.jpg", exif=exif)  # stored 10 x 20, meant 20 x 10
    assert sound(checked(pairs(base)))


def test_unreadable_files_are_fatal_above_the_fraction(base: Path) -> None:
    (base / "train/i/0.jpg").write_bytes(b"spoilt")
    (base / "train/m/1.png").write_bytes(b"spoilt")
    report = checked(pairs(base))
    assert [Path(problem.path).name for problem in report.unreadable] == ["0.jpg", "1.png"]
    raise_if_fatal(report, 2 / 6)
    with pytest.raises(UserErrors) as caught:
        raise_if_fatal(report, 0.3)
    assert "2 of 6 samples cannot be read" in str(caught.value)
    assert f"{base}/train/i/0.jpg: not an image" in str(caught.value)


def test_both_kinds_are_reported_together_and_the_first_named() -> None:
    problems = tuple(Problem(f"{number}.png", "reason") for number in range(8))
    with pytest.raises(UserErrors) as caught:
        raise_if_fatal(Report(100, problems, problems), 0.01)
    assert len(caught.value.errors) == 2
    assert str(caught.value).count("and 3 more") == 2
    assert "5.png" not in str(caught.value)


def folder_of(base: Path) -> ImageFolder:
    """The images alone, the class being their folder."""
    return ImageFolder(source="image_folder", root=str(base), train=Split(images="train"), val=Split(images="val"))


@pytest.mark.parametrize(("depth", "what"), [("headers", "an alpha channel"), ("pixels", "transparent pixels")])
def test_transparent_images_are_counted(base: Path, depth: Depth, what: str) -> None:
    opaque, half = Image.new("RGBA", (20, 10), (0, 0, 0, 255)), Image.new("RGBA", (20, 10), (0, 0, 0, 128))
    opaque.save(base / "train/i/a.png")
    half.save(base / "train/i/b.png")
    half.save(base / "train/m/c.png")
    report = checked(folder_of(base), base / "cache", depth)
    assert (report.transparent, report.low_range) == ({"headers": 3, "pixels": 2}[depth], 0)
    (note,) = image_notes(report)
    assert note.startswith(f"{report.transparent} of 15 images: {what}") and "train/i/" in note
    assert checked(folder_of(base), base / "cache", depth) == report


@pytest.mark.parametrize("depth", ["headers", "pixels"])
def test_low_values_of_deep_images_are_counted_with_their_range(base: Path, depth: Depth) -> None:
    ramp = np.linspace(0, 4095, 200).reshape(10, 20)
    for name, values in (("a.png", ramp.astype(np.uint16)), ("b.tif", ramp.astype(np.int32)),
                         ("c.png", (16 * ramp).astype(np.uint16))):  # fmt: skip
        Image.fromarray(values).save(base / "train/i" / name)
    report = checked(folder_of(base), depth=depth)
    assert (report.low_range, report.deep, report.unreadable) == (2, 3, ())
    (note,) = image_notes(report)
    assert note.startswith("2 of 3 images of 16 or 32 bits that were looked at may become too dark")
    assert "a.png: values up to 4095 in a 16-bit file: mean 8.0 of 255 after scaling by 65535" in note


def test_where_headers_are_read_the_values_of_few_deep_images_are_looked_at(
    base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(9):
        Image.fromarray(np.full((10, 20), 9, np.uint16)).save(base / f"train/i/deep{number}.png")
    looked: list[Path] = []
    monkeypatch.setattr(check, "inspect_image", lambda path, cap: looked.append(path) or inspect_image(path, cap))
    report = checked(folder_of(base))
    assert len(looked) == report.deep == report.low_range == 4


def counted(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    looked: list[Path] = []

    def look(path: Path, max_pixels: int) -> Header:
        looked.append(path)
        return read_header(path, max_pixels)

    monkeypatch.setattr(check, "read_header", look)
    return looked


def test_second_check_of_the_same_data_reads_the_cache(base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Image.fromarray(np.full((10, 20), 3, np.uint8)).save(base / "train/m/4.png")
    (base / "train/i/0.jpg").write_bytes(b"spoilt")
    looked, cache = counted(monkeypatch), base / "cache"
    first = checked(pairs(base), cache)
    assert len(looked) == FILES
    assert checked(pairs(base), cache) == first
    assert len(looked) == FILES
    checked(pairs(base, classes=["a", "b", "c", "d"]), cache)
    checked(pairs(base, max_pixels=500), cache)
    assert len(looked) == 3 * FILES
    Image.new("RGB", (20, 10), (9, 9, 9)).save(base / "train/i/0.jpg")
    assert checked(pairs(base), cache).unreadable == ()
    assert len(looked) == 4 * FILES


@pytest.mark.parametrize("name", ["i/1.jpg", "m/1.png"])
def test_a_failure_of_the_storage_is_no_lasting_verdict(base: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    cache, open_file = base / "cache", Path.open

    def fail(path: Path, *arguments: Any, **options: Any) -> Any:
        if path == base / "train" / name:
            raise OSError(errno.EIO, "Input/output error")
        return open_file(path, *arguments, **options)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "open", fail)
        (problem,) = checked(pairs(base), cache).unreadable
    assert problem.path == str(base / "train" / name) and "Input/output error" in problem.reason
    assert sound(checked(pairs(base), cache))
    looked = counted(monkeypatch)
    assert sound(checked(pairs(base), cache)) and looked == [], "what the storage gave is kept"


@pytest.mark.parametrize("content", [b"", b"{}", b'{"samples": 6, "unreadable": [{"x": 1}], "wrong": []}', b"\xff"])
def test_damaged_cache_is_made_again(base: Path, monkeypatch: pytest.MonkeyPatch, content: bytes) -> None:
    cache = base / "cache"
    first = checked(pairs(base), cache)
    (file,) = cache.iterdir()
    file.write_bytes(content)
    looked = counted(monkeypatch)
    assert checked(pairs(base), cache) == first
    assert len(looked) == FILES
    assert [entry.name for entry in cache.iterdir()] == [file.name]


def test_a_cache_that_cannot_be_written_does_not_end_the_check(
    base: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (base / "file").write_text("")
    assert sound(checked(pairs(base), base / "file/checks"))
    assert capsys.readouterr().out.startswith(f"{base}/file/checks cannot be written (Not a directory): ")

    def fill(*arguments: object, **options: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(check, "write_file", fill)
    assert sound(checked(pairs(base), base / "cache"))
    line = "cache cannot be written (No space left on device): the next check reads all files again"
    assert capsys.readouterr().out == f"{base}/{line}\n"


def test_any_number_of_threads(base: Path) -> None:
    data = pairs(base)
    source: Source = open_source(data, "train", Path("/"))
    assert check_split(source, data, 0) == check_split(source, data, 8)


@pytest.mark.parametrize("depth", ["headers", "pixels"])
def test_the_other_depths_of_good_data(base: Path, depth: Depth) -> None:
    assert sound(checked(pairs(base), depth=depth))


def test_headers_show_sizes_and_kinds_of_masks_but_not_their_ids(base: Path) -> None:
    Image.fromarray(np.zeros((20, 10), np.uint8)).save(base / "train/m/0.png")
    Image.new("L", (20, 10)).save(base / "train/m/1.png", "JPEG")
    Image.fromarray(np.full((10, 20), 3, np.uint8)).save(base / "train/m/2.png")
    report = checked(pairs(base), depth="headers")
    assert [problem.reason for problem in report.wrong] == [
        "the mask is 10 x 20 pixels, its image 20 x 10 (width x height)",
        "a mask must be one of PNG, TIFF, BMP; JPEG changes class ids",
    ]
    assert report.unreadable == ()
    assert len(checked(pairs(base), depth="masks").wrong) == 3


def test_broken_data_inside_a_jpeg_is_found_by_decoding_and_remembered(base: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (10, 20, 3), dtype=np.uint8)
    file = base / "train/i/3.jpg"
    Image.fromarray(noise).resize((200, 100)).crop((0, 0, 200, 100)).save(file, quality=95)
    Image.fromarray(np.zeros((100, 200), np.uint8)).save(base / "train/m/3.png")
    content = bytearray(file.read_bytes())
    content[-900:-300] = bytes(600)
    file.write_bytes(content)
    assert sound(checked(pairs(base)))
    report = checked(pairs(base), base / "cache", depth="pixels")
    assert report.unreadable == report.wrong == ()
    assert [problem.path for problem in report.damaged] == [str(file)]
    assert report.damaged[0].reason.startswith("the decoder says: Corrupt JPEG data")
    assert checked(pairs(base), base / "cache", depth="pixels") == report
    assert sound(checked(pairs(base), base / "cache"))
