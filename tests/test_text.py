"""Tables as text, and styles."""

import io

import pytest

from scalablevit.text import and_more, format_table, paint

ROWS = [("run", "state", "at"), ("a", "finished", ""), ("longer", "-", "3")]


def test_columns_are_as_wide_as_their_widest_cell():
    assert format_table(ROWS).splitlines() == [
        "run     state     at",
        "------  --------  --",
        "a       finished",
        "longer  -         3",
    ]


def test_a_table_without_a_rule():
    assert format_table(ROWS, rule=False).splitlines() == [
        line for line in format_table(ROWS).splitlines() if not line.startswith("--")
    ]


def test_the_rule_is_below_the_heading():
    assert format_table([["a", "bb"], ["ccc", "d"]]).splitlines() == ["a    bb", "---  --", "ccc  d"]


def test_what_a_list_leaves_out_is_counted():
    assert and_more(5, 5) == and_more(0, 5) == ""
    assert and_more(7, 5) == " and 2 more"
    assert and_more(6, 5, before="\n  ", what="more files") == "\n  and 1 more files"


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_styles_are_for_terminals_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("TERM", "xterm")
    assert paint("stage", "bold", Terminal()) == "\033[1mstage\033[0m"
    assert paint("warning", "yellow", io.StringIO()) == "warning"
    monkeypatch.setenv("TERM", "dumb")
    assert paint("stage", "bold", Terminal()) == "stage"
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("NO_COLOR", "1")
    assert paint("best", "green", Terminal()) == "best"
