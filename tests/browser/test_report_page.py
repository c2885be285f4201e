"""The report in headless Chromium: whole, quiet, without network, and no wider than the window."""

import pytest
from harness.chromium import Tab, chromium
from harness.job_folder import write_page
from harness.toys import leave_status

from scalablevit.cli import report
from scalablevit.cli.tree import parse
from scalablevit.run_files import INDEX

pytestmark = pytest.mark.browser
WIDTHS = (390, 1440)
BROKEN = "[...document.images].filter(image => !image.complete || !image.naturalWidth).map(image => image.alt)"
TOO_WIDE = """[...document.querySelectorAll("body *")]
    .filter(each => each.getBoundingClientRect().right > innerWidth + 1 && !each.closest(".wide, pre"))
    .map(each => each.outerHTML.slice(0, 200))"""
SMALL = """[...document.querySelectorAll("main svg text")]
    .filter(each => each.getBoundingClientRect().height < 8).map(each => each.textContent)"""
OPEN = "document.querySelectorAll('details').forEach(each => { each.open = true })"
ON_FIRST_SCREEN = """["started", "took", "machine", "Results", "What to do next"].filter(words =>
    ![...document.querySelectorAll("dt, h2")].some(each =>
        each.textContent == words && each.getBoundingClientRect().bottom < innerHeight))"""
INK = "getComputedStyle(document.querySelector('.chart svg text')).fill"


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    return write_page(tmp_path_factory.mktemp("root"))[0]


@pytest.fixture(scope="module")
def tab(tmp_path_factory):
    with chromium(tmp_path_factory.mktemp("profile")) as opened:
        yield opened


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("width", WIDTHS)
def test_the_report_reads_at_any_width(tab: Tab, page, width, dark):
    tab.open(page, width, dark=dark)
    assert tab.value(ON_FIRST_SCREEN) == []
    assert tab.value("document.documentElement.scrollHeight") < 2500
    for what in ("folded", "open"):
        assert tab.value("document.documentElement.scrollWidth") <= width, what
        assert tab.value(TOO_WIDE) == [], what
        tab.value(OPEN)
    assert tab.complaints() == []
    assert tab.requests() == [page.as_uri()]
    assert tab.value("innerWidth") == width
    assert tab.value("document.images.length") > 30 and tab.value(BROKEN) == []
    assert tab.value("document.querySelectorAll('.chart svg text').length") > 50 and tab.value(SMALL) == []
    assert tab.value(INK) == ("rgb(228, 233, 239)" if dark else "rgb(27, 36, 48)")


def test_a_link_to_a_stage_opens_it(tab: Tab, page):
    tab.open(page, 1440)
    stage = "document.getElementById('stage-2').closest('details').open"
    assert tab.value(stage) is False
    tab.value("document.querySelector('.results a[href=\"#stage-2\"]').click()")
    assert tab.value(stage) is True and tab.value("document.querySelectorAll('main > details[open]').length") == 1


@pytest.mark.parametrize("width", WIDTHS)
def test_the_index_reads_at_any_width(tab: Tab, page, width):
    root = page.parents[2]
    for folder in page.parents[1].glob("tiny-*"):
        leave_status(folder, state="failed", why="a reason without a place to break it: " + "x" * 200)
    assert report.run(parse("report", ["--index", "--root", str(root)])) == 0
    tab.open(page.parents[1] / INDEX, width)
    assert tab.complaints() == [] and tab.value("document.documentElement.scrollWidth") <= width
    assert tab.value(TOO_WIDE) == [] and tab.value("document.querySelectorAll('.runs a').length") == 4


def test_the_browser_tells_of_what_would_be_wrong(tab: Tab, tmp_path):
    """The checks above can fail."""
    wrong = tmp_path / "wrong.html"
    wrong.write_text(
        '<p style="width:900px">x</p><img src="absent.png" alt="gone"><script>console.error("no")</script>'
    )
    tab.open(wrong, 390)
    assert any("no" in complaint for complaint in tab.complaints())
    assert any(url.endswith("absent.png") for url in tab.requests())
    assert len(tab.value(TOO_WIDE)) == 1 and tab.value(BROKEN) == ["gone"]


def test_a_missing_browser_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr("harness.chromium.PROGRAMS", ("no-such-browser",))
    with pytest.raises(RuntimeError, match="apt-get install chromium"), chromium(tmp_path):
        pass
