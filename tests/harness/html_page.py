"""A page's HTML taken apart, without a browser."""

from html.parser import HTMLParser

VOID = {"meta", "link", "img", "br"}
LOADING = {"src", "href", "xlink:href", "action", "poster", "data", "srcset"}
"""Attributes by which a page fetches something."""


class HtmlPage(HTMLParser):
    """Elements in order, with their attributes; `data` elements by what they are of; all text.

    Raises:
        AssertionError: an element is not closed, or another is closed in its place.
    """

    def __init__(self, html: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str]]] = []
        self.metrics: dict[str, set[float]] = {}
        self.text = ""
        self._open: list[str] = []
        self.feed(html)
        self.close()
        assert self._open == []

    def handle_starttag(self, tag, attrs):
        found = {name: value or "" for name, value in attrs}
        self.elements.append((tag, found))
        if "data-metric" in found:
            self.metrics.setdefault(found["data-metric"], set()).add(float(found["value"]))
        if tag not in VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.elements.append((tag, {name: value or "" for name, value in attrs}))

    def handle_endtag(self, tag):
        assert self._open.pop() == tag, f"</{tag}> at {self.getpos()}"

    def handle_data(self, data):
        self.text += data

    def all(self, tag: str) -> list[dict[str, str]]:
        """Attributes of all elements of a kind."""
        return [attributes for name, attributes in self.elements if name == tag]

    def values(self, attribute: str) -> list[str]:
        """Of an attribute, wherever it is."""
        return [attributes[attribute] for _, attributes in self.elements if attribute in attributes]

    def loads(self) -> list[str]:
        """What it would fetch, but what lies in itself."""
        found = [value for _, attributes in self.elements for name, value in attributes.items() if name in LOADING]
        return [value for value in found if not value.startswith(("data:", "#"))]

    def headings(self) -> list[int]:
        """Levels in order."""
        return [int(tag[1]) for tag, _ in self.elements if tag in ("h1", "h2", "h3", "h4", "h5", "h6")]
