"""What exported files are tried with: the function that our page gives, and pictures."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from harness.pages import written


def page_predict() -> Callable[[str, str], Any]:
    """The function that docs/serve_and_export.md gives for exported files, taken from the page."""
    (block,) = [block for block in written("python") if "custom_metadata_map" in block]
    names: dict[str, Any] = {}
    exec(block, names)  # noqa: S102  # our own page
    return names["predict"]


def photos(folder: Path) -> list[Path]:
    """Smooth pictures: larger than a model's input, smaller and half transparent, and with EXIF's orientation."""
    folder.mkdir()
    generator, files = np.random.default_rng(0), []
    for number, size in enumerate([(150, 97), (31, 44), (120, 241)]):
        small = Image.fromarray(generator.integers(0, 256, (6, 8, 3), dtype=np.uint8))
        exif = Image.Exif()
        exif[0x0112] = 6 if number == 2 else 1
        files.append(folder / f"{number}.png")
        picture = small.resize(size, Image.Resampling.BICUBIC)
        if number == 1:
            picture.putalpha(Image.linear_gradient("L").resize(size))
        picture.save(files[-1], exif=exif)
    return files
