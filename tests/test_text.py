"""Tables as text."""

from scalablevit.text import lined_up

ROWS = [("run", "state", "at"), ("a", "finished", ""), ("longer", "-", "3")]


def test_columns_are_as_wide_as_their_widest_cell():
    assert lined_up(ROWS).splitlines() == [
        "run     state     at",
        "------  --------  --",
        "a       finished",
        "longer  -         3",
    ]


def test_a_table_without_a_rule():
    assert lined_up(ROWS, rule=False).splitlines() == [
        line for line in lined_up(ROWS).splitlines() if not line.startswith("--")
    ]


def test_the_rule_is_below_the_heading():
    assert lined_up([["a", "bb"], ["ccc", "d"]]).splitlines() == ["a    bb", "---  --", "ccc  d"]
