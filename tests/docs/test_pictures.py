"""The picture of docs/your_data.md is what its script draws."""

import importlib.util
import sys

import numpy as np
import pytest
from harness.pages import REPOSITORY
from PIL import Image

from scalablevit.viz.palette import class_color

KEPT = REPOSITORY / "docs" / "pictures" / "truth.png"
MOST_BYTES = 150_000


def test_the_picture_is_what_the_script_draws(tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    spec = importlib.util.spec_from_file_location("docs_pictures", REPOSITORY / "docs" / "pictures.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.setattr(sys, "argv", ["pictures.py", str(tmp_path)])
    assert module.main() == 0
    drawn, kept = (np.asarray(Image.open(file)).astype(int) for file in (tmp_path / KEPT.name, KEPT))
    assert drawn.shape == kept.shape and KEPT.stat().st_size <= MOST_BYTES
    assert np.abs(drawn - kept).mean() < 1, "run docs/pictures.py again"  # fonts differ a little between machines
    for number in (0, 2, 4):  # background, cross, square: in the mask's legend
        assert (kept == class_color(number)).all(axis=2).sum() > 100
