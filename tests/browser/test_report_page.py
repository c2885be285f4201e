"""The report in headless Chromium: whole, quiet, without network, and no wider than the window."""

import pytest
from harness.chromium import Tab, chromium
from harness.job_folder import write_page

pytestmark = pytest.mark.browser
WIDTHS = (390, 1440)
BROKEN = "[...document.images].filter(image => !image.complete || !image.naturalWidth).map(image => image.alt)"
TOO_WIDE = """[...document.querySelectorAll("body *")]
    .filter(each => each.getBoundingClientRect().right > innerWidth + 1 && !each.closest(".wide, pre"))
    .map(each => each.outerHTML.slice(0, 200))"""
SMALL = """[...document.querySelectorAll("main svg text")]
    .filter(each => each.getBoundingClientRect().height < 8).map(each => each.textContent)"""
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
    assert tab.complaints() == []
    assert tab.requests() == [page.as_uri()]
    assert tab.value("innerWidth") == width
    assert tab.value("document.documentElement.scrollWidth") <= width
    assert tab.value(TOO_WIDE) == []
    assert tab.value("document.images.length") > 30 and tab.value(BROKEN) == []
    assert tab.value("document.querySelectorAll('.chart svg text').length") > 50 and tab.value(SMALL) == []
    assert tab.value(INK) == ("rgb(228, 233, 239)" if dark else "rgb(27, 36, 48)")


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
