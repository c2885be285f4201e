"""The colours of classes: told apart by all who look, and the same in every picture."""

import hashlib

import numpy as np
import pytest
from matplotlib.colors import to_hex
from matplotlib.figure import Figure

from scalablevit.viz.overlays import draw_boxes, draw_labels
from scalablevit.viz.palette import COUNT, class_color, class_colors, class_hex, ink_on
from scalablevit.viz.samples import draw_boxes as draw_boxes_on_axes
from scalablevit.viz.samples import draw_label_map, draw_objects

BACKGROUNDS = [(255, 255, 255), (0, 0, 0), (26, 33, 42)]
"""Paper, and the report's cards in the dark."""
# G. M. Machado, M. M. Oliveira, L. A. F. Fernandes, "A Physiologically-based Model for Simulation of Color Vision
# Deficiency", 2009: the whole lack of red and of green cones, on linear RGB
VISIONS = {
    "all": np.eye(3),
    "no red": np.array([[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216],
                        [-0.003882, -0.048116, 1.051998]]),
    "no green": np.array([[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413],
                          [-0.011820, 0.042940, 0.968881]]),
}  # fmt: skip
TO_XYZ = np.array(
    [[0.4124564, 0.3575761, 0.1804375], [0.2126729, 0.7151522, 0.0721750], [0.0193339, 0.1191920, 0.9503041]]
)
WHITE = np.array([0.95047, 1.0, 1.08883])
CUBE_ROOT_ABOVE = (6 / 29) ** 3


def cielab(colors, vision="all"):
    """CIELAB (n, 3) of sRGB colours (n, 3) as somebody sees them; 2.3 is a just noticeable difference."""
    shares = np.array(colors) / 255
    linear = np.where(shares <= 0.04045, shares / 12.92, ((shares + 0.055) / 1.055) ** 2.4)
    xyz = np.clip(linear @ VISIONS[vision].T, 0, 1) @ TO_XYZ.T / WHITE
    f = np.where(xyz > CUBE_ROOT_ABOVE, np.cbrt(xyz), xyz * (29 / 6) ** 2 / 3 + 4 / 29)
    return np.stack([116 * f[:, 1] - 16, 500 * (f[:, 0] - f[:, 1]), 200 * (f[:, 1] - f[:, 2])], 1)


def distances(some, others):
    return np.linalg.norm(some[:, None] - others[None], axis=-1)


def nearest(colors, vision="all"):
    found = distances(lab := cielab(colors, vision), lab)
    return found[~np.eye(len(found), dtype=bool)].min()


def test_what_is_measured_is_known():
    """White, and the difference of two reds by their published values."""
    assert cielab([(255, 255, 255)])[0] == pytest.approx([100, 0, 0], abs=0.01)
    assert cielab([(255, 0, 0)])[0] == pytest.approx([53.24, 80.09, 67.20], abs=0.02)


@pytest.mark.parametrize("vision", VISIONS)
def test_the_first_eight_differ_also_without_red_or_green(vision):
    colors = class_colors(8)
    assert nearest(colors, vision) > 20
    assert distances(cielab(colors, vision), cielab(BACKGROUNDS, vision)).min() > 20


def test_many_classes_differ_from_each_other_and_from_the_background():
    for count, least in ((20, 25), (40, 15), (150, 8)):
        assert nearest(class_colors(count)) > least
    assert distances(cielab(class_colors(150)), cielab(BACKGROUNDS)).min() > 8
    assert len(set(class_colors(COUNT))) == COUNT


def test_a_class_has_its_colour_however_many_there_are_and_on_every_machine():
    many = class_colors(1000)
    assert many[:3] == class_colors(3) and many[COUNT] == many[0]
    assert class_color(np.uint8(3)) == many[3]  # a pixel of a label map
    assert [class_hex(number) for number in (0, 1, 7, 8)] == ["#1845fb", "#ff5e02", "#656364", "#00ff00"]
    found = hashlib.sha256(" ".join(map(class_hex, range(COUNT))).encode()).hexdigest()
    assert found == "0d8cf7d841c40a6ad84a6ae8af6f678c1b762646921c12c9552d177a1c1592ad"


@pytest.mark.parametrize("number", [0, 1, 7, 8, 149])
def test_a_class_has_one_colour_in_predictions_and_plots(number):
    """Of a mask, of its legend, of a box and of an object, drawn with Pillow and with matplotlib."""
    color, black = class_color(number), np.zeros((480, 480, 3), np.uint8)
    labels = np.full((480, 480), number, np.uint8)
    picture = draw_labels(black, labels, [(color, "x")], class_colors(150))
    assert picture.getpixel((240, 240)) == pytest.approx([part / 2 for part in color], abs=1)
    assert picture.getpixel((14, 494)) == color
    assert draw_boxes(black, [(100, 100, 400, 400)], ["x"], [color]).getpixel((100, 300)) == color

    axes = Figure().subplots()
    draw_label_map(axes, black / np.float32(255), labels, [str(each) for each in range(150)])
    assert to_hex(axes.get_legend().get_patches()[0].get_facecolor()) == class_hex(number)
    draw_objects(axes, black / np.float32(255), (480, 480), [labels * 0 + 1], [number])
    for image, share in zip(axes.images, (0.55, 0.45), strict=True):
        assert image.get_array()[0, 0].tolist() == pytest.approx([part * share for part in color], abs=1)
    draw_boxes_on_axes(axes, np.array([[1, 2, 3, 4]], np.float32), [number], ["x"] * 150)
    assert to_hex(axes.patches[-1].get_edgecolor()) == class_hex(number)
    assert to_hex(axes.texts[-1].get_bbox_patch().get_facecolor()) == class_hex(number)


def test_text_can_be_read_on_every_colour():
    """By the contrast of luminances that WCAG 2 asks of text."""
    for color in class_colors(COUNT):
        low, high = sorted((luminance(color), {"black": 0.0, "white": 1.0}[ink_on(color)]))
        assert (high + 0.05) / (low + 0.05) > 4.5


def luminance(color):
    lightness = cielab([color])[0, 0]
    return ((lightness + 16) / 116) ** 3 if lightness > 8 else lightness * (3 / 29) ** 3
