"""Line charts for a page: SVG whose text and axes take their colours from the page, as for a dark theme."""

import io
import re
from collections.abc import Mapping, Sequence

import matplotlib as mpl
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from scalablevit.viz.palette import FIRST, class_hex
from scalablevit.viz.style import plain

SIZE = (4.4, 2.7)
"""Width and height in inches; pages scale a chart to their columns."""
LINES = len(FIRST)
"""Most lines of one chart: more cannot be told apart."""
STYLES = ("-", "--", "-.", ":")
"""Line styles, by which lines can be told apart without colours, too."""
PAGE_INK = "currentColor"
"""The colour of the text around a chart."""
_INK, _FAINT, _NONE = "#010203", "#010204", {"Date": None, "Creator": None, "Format": None, "Type": None}
_MARKED_POINTS = 3
"""Most points of a line that has markers: a single point draws no line."""

Line = tuple[Sequence[float], Sequence[float]]
"""Positions on the horizontal axis, and values."""


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
    """Return an `<svg>` element to be put into HTML as it is.

    Args:
        name: letters, digits and hyphens; different for each chart of a page, since its elements' ids begin with it.
        lines: at most `LINES` lines, by label.
        across: label of the horizontal axis.
        up: label of the vertical axis.
        colors: colours of the lines by label, `#rrggbb` or `PAGE_INK`; None: those of the palette in order.
        log: whether the vertical axis is logarithmic.
        limits: lowest and highest value of the vertical axis; None: chosen by matplotlib.
        mark: position of a vertical line on the horizontal axis; None: no line.
    """
    figure = Figure(figsize=SIZE, layout="constrained")
    axes = figure.subplots()
    drawn: list[Line2D] = []
    for index, (label, (positions, values)) in enumerate(lines.items()):
        color = class_hex(index) if colors is None else colors[label].replace(PAGE_INK, _INK)
        drawn += axes.plot(positions, values, STYLES[index // 2 % len(STYLES)], color=color, linewidth=1.6,
                           marker="o" if len(positions) <= _MARKED_POINTS else None, markersize=4)  # fmt: skip
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
        # lines and labels are given: matplotlib skips a label that begins with "_" otherwise
        axes.legend(drawn, [plain(label) for label in lines], labelcolor=_INK, fontsize="small", frameon=False)
    return _apply_theme(_svg(figure), name)


def _svg(figure: Figure) -> str:
    text = io.StringIO()
    with mpl.rc_context({"svg.fonttype": "none", "svg.hashsalt": "page"}):
        figure.savefig(text, format="svg", transparent=True, metadata=_NONE)
    content = text.getvalue()
    return content[content.index("<svg") :]


def _apply_theme(svg: str, name: str) -> str:
    """Return the SVG with the page's colours in place of our placeholders, and ids that begin with `name`."""
    # matplotlib's first style is for `*`, which would be all of the page
    svg = re.sub(r"<metadata>.*?</metadata>|<style.*?</style>", "", svg, flags=re.DOTALL)
    for placeholder, colour in ((_INK, PAGE_INK), (_FAINT, "var(--faint)")):
        svg = svg.replace(placeholder, colour)
    return re.sub(r'(\bid="|href="#|url\(#)', rf"\g<1>{name}-", svg)
