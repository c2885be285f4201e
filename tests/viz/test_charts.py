"""Charts as parts of a page: their ids, their colours, and names that would break out of them."""

import re
from xml.etree import ElementTree as ET

import pytest

from scalablevit.viz.charts import LINES, PAGE_INK, line_chart
from scalablevit.viz.palette import class_hex

SVG = "{http://www.w3.org/2000/svg}"


def drawn(name="one", **lines):
    return line_chart(name, lines or {"a": ([1, 2, 3, 4], [1.0, 2.0, 1.5, 0.5])}, across="step", up="loss")


def test_charts_of_one_page_share_no_ids():
    first, second = (set(re.findall(r'id="([^"]+)"', drawn(name))) for name in ("one", "two"))
    assert first and all(each.startswith("one-") for each in first) and not first & second
    used = set(re.findall(r'(?:href="|url\()#([^")]+)', drawn()))
    assert used and used <= first


def test_lines_have_the_palettes_colours_and_all_else_the_pages():
    svg = drawn(**{f"line {number}": ([1, 2], [number, 2.0]) for number in range(LINES)})
    assert set(re.findall(r"#[0-9a-f]{6}", svg)) == {class_hex(number) for number in range(LINES)}
    assert "currentColor" in svg and "var(--faint)" in svg


def test_lines_can_be_given_colours():
    svg = line_chart("one", {"mean": ([1, 2], [1.0, 2.0]), "a": ([1, 2], [3.0, 4.0])}, across="step", up="loss",
                     colors={"mean": PAGE_INK, "a": class_hex(5)})  # fmt: skip
    lines = re.findall(r'<path d="M [^"]*"[^>]*style="fill: none; stroke: ([^;"]+); stroke-width: 1\.6', svg)
    assert lines == ["currentColor", class_hex(5)] * 2  # in the chart, and in its legend


@pytest.mark.parametrize(
    "name",
    ["</text><script>alert(1)</script>", "a$b$c", "$^$ x", r"$\frac$", r"5\$ or $6", "_hidden"],
)
def test_names_stay_text(name):
    found = ET.fromstring(drawn(**{name: ([1, 2], [1.0, 2.0]), "other": ([1, 2], [3.0, 4.0])}))  # noqa: S314  # our own
    assert [each.text for each in found.iter(f"{SVG}text") if each.text == name] == [name]
    assert not list(found.iter(f"{SVG}script")) and not list(found.iter(f"{SVG}style"))


def test_what_is_drawn_alike_is_written_alike():
    assert drawn() == drawn()
