"""Images a second that one core turns from JPEG files into training batches, beside PIL + torchvision.

    python tests/benchmarks/bench_input.py ../shared/data --quick

Ours are `SampleDataset` and `collate_classification`, as a loading process runs them: uint8 NHWC, normalised later on
the device. PIL + torchvision reads, decodes, cuts and shrinks as torchvision's own training recipe does and ends in the
normalised float batch that its loop expects; a second metric leaves its conversion out. Both get the very same crops,
and the time of drawing them is counted on our side alone. Files are in the page cache.
"""

import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from benchmarks.rows import DATA, Row, benchmark_options, report
from benchmarks.timing import interleaved, speed_up, spread
from PIL import Image
from torch.utils.data import default_collate
from torchvision.transforms import functional as F

from scalablevit.config.data import IMAGENET_MEAN, IMAGENET_STD, MAX_PIXELS, ImageFolder, Split
from scalablevit.data.dataset import SampleDataset
from scalablevit.data.decoding import read_image
from scalablevit.data.loader import collate_classification
from scalablevit.data.sampler import Key
from scalablevit.data.sources.opening import open_source

SIDE = 224
IMAGES = 32
ROUNDS, QUICK_ROUNDS = 15, 5
QUALITY = 90
"""Of files made here."""

Box = tuple[int, int, int, int]
"""Top, left, height, width of a crop, pixels."""

SIZES: tuple[tuple[str, tuple[int, int], int, float | None], ...] = (
    ("500x375", (500, 375), QUALITY, 2.5),
    ("1280x960", (1280, 960), QUALITY, 2.0),
    ("short side 256", (341, 256), QUALITY, 3.5),
    ("short side 256, quality 75", (341, 256), 75, None),
    ("500x375 as published", (500, 375), 0, None),
)
"""Name, width and height, JPEG quality (0: the file as it is), bar."""


def photographs(data: Path) -> list[Path]:
    """Published photographs of 500x375, which all sizes are made from."""
    files = sorted((data / "photos").glob("*.JPEG"))
    return [file for file in files if Image.open(file).size == (500, 375)]


def write_files(photos: Sequence[Path], folder: Path, size: tuple[int, int], quality: int) -> int:
    """An image folder of one class; mean bytes of its files."""
    target = folder / "photos"
    target.mkdir(parents=True)
    for number in range(IMAGES):
        photo = photos[number % len(photos)]
        file = target / f"{number:03}.jpg"
        if quality:
            Image.open(photo).resize(size, Image.Resampling.BICUBIC).save(file, quality=quality)
        else:
            file.write_bytes(photo.read_bytes())
    return sum(file.stat().st_size for file in target.iterdir()) // IMAGES


def dataset(folder: Path, **fields: Any) -> SampleDataset:
    part = Split(images=".")
    data = ImageFolder(source="image_folder", root=str(folder), train=part, val=part, image_size=SIDE, **fields)
    return SampleDataset(open_source(data, "train", folder), data, seed=0, train=True)


def boxes_of(samples: SampleDataset, keys: Sequence[Key]) -> list[Box]:
    """The crops that the product draws for these keys."""
    crop = samples.transform[0]
    draw, boxes = crop.get_params_dependent_on_data, list[Box]()

    def drawn(**arguments: Any) -> dict[str, Any]:
        made = draw(**arguments)
        left, top, right, bottom = made["crop_coords"]
        boxes.append((top, left, bottom - top, right - left))
        return made

    crop.get_params_dependent_on_data = drawn
    for key in keys:
        samples[key]
    del crop.get_params_dependent_on_data
    return boxes


def torchvision_batch(files: Sequence[Path], boxes: Sequence[Box], *, convert: bool) -> Any:
    """Float (samples, 3, SIDE, SIDE), or without `convert` uint8 (samples, SIDE, SIDE, 3)."""
    made = []
    for number, (file, box) in enumerate(zip(files, boxes, strict=True)):
        image = Image.open(file).convert("RGB")
        image = F.resized_crop(image, *box, [SIDE, SIDE], F.InterpolationMode.BILINEAR)
        if number % 2:
            image = F.hflip(image)
        made.append(F.normalize(F.to_tensor(image), IMAGENET_MEAN, IMAGENET_STD) if convert else np.array(image))
    return default_collate(made)


def endless_batches(files: int, boxes: Sequence[Box]) -> Iterator[tuple[list[Key], list[Box]]]:
    """Keys and their crops, new ones for each batch, over and over."""
    position = 0
    while True:
        slots = [(position + number) % len(boxes) for number in range(files)]
        yield [Key(slot % files, 0, slot) for slot in slots], [boxes[slot] for slot in slots]
        position += files


def ways(folder: Path) -> dict[str, Callable[[], Any]]:
    """One batch each: ours, without antialiasing, only decoded; torchvision's as float and as uint8."""
    samples, plain = dataset(folder), dataset(folder, antialias=False)
    files = [sample.image for sample in samples.source]
    keys = [Key(slot % IMAGES, 0, slot) for slot in range(8 * IMAGES)]
    boxes = boxes_of(samples, keys)
    streams = {name: endless_batches(IMAGES, boxes) for name in ("ours", "ours plain", "torchvision", "to uint8")}

    return {
        "ours": lambda: collate_classification([samples[key] for key in next(streams["ours"])[0]]),
        "ours plain": lambda: collate_classification([plain[key] for key in next(streams["ours plain"])[0]]),
        # not kept: new memory for each picture would take longer than its pixels
        "decoding": lambda: sum(read_image(file, MAX_PIXELS).size for file in files),
        "torchvision": lambda: torchvision_batch(files, next(streams["torchvision"])[1], convert=True),
        "to uint8": lambda: torchvision_batch(files, next(streams["to uint8"])[1], convert=False),
    }


def main() -> int:
    parser = benchmark_options(__doc__ or "")
    parser.add_argument("data", nargs="?", type=Path, default=DATA,
                        help="folder with photos/*.JPEG (%(default)s)")  # fmt: skip
    options = parser.parse_args()
    cv2.setNumThreads(0)
    torch.set_num_threads(1)
    photos = photographs(options.data)
    rows: list[Row] = []
    settings: dict[str, Any] = {"images": IMAGES, "side": SIDE, "clock": "process_time", "sizes": {}}
    for name, size, quality, bar in SIZES:
        if not photos:
            rows.append(Row(f"input {name}", bar, None, "PIL + torchvision", note=f"no photographs in {options.data}"))
            continue
        with tempfile.TemporaryDirectory() as folder:
            size_bytes = write_files(photos, Path(folder), size, quality)
            seconds = interleaved(ways(Path(folder)), QUICK_ROUNDS if options.quick else ROUNDS)
        settings["sizes"][name] = {"size": size, "quality": quality, "bytes": size_bytes, "times": spread(seconds)}
        rows += size_rows(name, bar, seconds)
    report("input", rows, settings)
    return 0


def size_rows(name: str, bar: float | None, seconds: dict[str, list[float]]) -> list[Row]:
    """The metrics of one size of files."""
    speed = IMAGES / float(np.median(seconds["ours"]))
    peer = f"PIL + torchvision, {IMAGES / float(np.median(seconds['torchvision'])):.0f} images/s"
    limit = f"{speed_up(seconds, 'decoding', 'torchvision'):.2f} x if nothing came after decoding"
    return [
        Row(f"input {name}", bar, speed_up(seconds, "ours", "torchvision"), f"{peer}; ours {speed:.0f}", note=limit),
        Row(f"input {name}, no antialiasing", None, speed_up(seconds, "ours plain", "torchvision"), peer),
        Row(f"input {name}, peer to uint8", None, speed_up(seconds, "ours", "to uint8"), "its batch not normalised"),
    ]


if __name__ == "__main__":
    sys.exit(main())
