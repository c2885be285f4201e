"""Line charts for a page: SVG whose text and axes take their colours from the page, and so follow light and dark."""

import io
import re
from collections.abc import Mapping, Sequence

import matplotlib as mpl
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from scalablevit.viz.palette import FIRST, class_hex
from scalablevit.viz.style import plain

SIZE = (4.4, 2.7)
"""Inches; pages scale it to their columns."""
LINES = len(FIRST)
"""Of one chart: more cannot be told apart."""
STYLES = ("-", "--", "-.", ":")
"""With the colours, so that lines are told apart without them."""
PAGE_INK = "currentColor"
"""The colour of the text around a chart."""
_INK, _FAINT, _NONE = "#010203", "#010204", {"Date": None, "Creator": None, "Format": None, "Type": None}
_SPOTS = 3
"""Of so few points each is marked: one alone makes no line."""

Line = tuple[Sequence[float], Sequence[float]]
"""Places across and values."""


def line_chart(
    name: str,
    lines: Mapping[str, Line],
    *,
    across: str,
    up: str,
    colors: Mapping[str, str] | None = None,
    log: bool = False,
    limits: tuple[float, float] | None = None,
    mark: float | None = None,
) -> str:
    """An `<svg>` element to be put into HTML as it is.

    Args:
        name: letters, digits and hyphens; different for each chart of a page, since its elements' ids begin with it.
        lines: by label, at most `LINES`.
        across, up: labels of the axes.
        colors: of the lines by label, `#rrggbb` or `PAGE_INK`; None: those of the palette in their order.
        log: the vertical axis is logarithmic.
        limits: of the vertical axis.
        mark: place across of a vertical line.
    """
    figure = Figure(figsize=SIZE, layout="constrained")
    axes = figure.subplots()
    drawn: list[Line2D] = []
    for number, (label, (places, values)) in enumerate(lines.items()):
        color = class_hex(number) if colors is None else colors[label].replace(PAGE_INK, _INK)
        drawn += axes.plot(places, values, STYLES[number // 2 % len(STYLES)], color=color, linewidth=1.6,
                           marker="o" if len(places) <= _SPOTS else None, markersize=4)  # fmt: skip
    if mark is not None:
        axes.axvline(mark, color=_FAINT, linestyle=":")
    if log:
        axes.set_yscale("log")
    if limits is not None:
        axes.set_ylim(*limits)
    axes.set_xlabel(plain(across), color=_INK)
    axes.set_ylabel(plain(up), color=_INK)
    axes.grid(color=_FAINT, linewidth=0.5)
    axes.tick_params(which="both", color=_FAINT, labelcolor=_INK)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(_FAINT)
    if len(lines) > 1:
        # both given: a label that begins with "_" would be left out
        axes.legend(drawn, [plain(label) for label in lines], labelcolor=_INK, fontsize="small", frameon=False)
    return _themed(_svg(figure), name)


def _svg(figure: Figure) -> str:
    text = io.StringIO()
    with mpl.rc_context({"svg.fonttype": "none", "svg.hashsalt": "page"}):
        figure.savefig(text, format="svg", transparent=True, metadata=_NONE)
    found = text.getvalue()
    return found[found.index("<svg") :]


def _themed(svg: str, name: str) -> str:
    """The page's colours in place of our marks, and ids that no other chart of the page has."""
    # matplotlib's first style is for `*`, which would be all of the page
    svg = re.sub(r"<metadata>.*?</metadata>|<style.*?</style>", "", svg, flags=re.DOTALL)
    for mark, colour in ((_INK, PAGE_INK), (_FAINT, "var(--faint)")):
        svg = svg.replace(mark, colour)
    return re.sub(r'(\bid="|href="#|url\(#)', rf"\g<1>{name}-", svg)
