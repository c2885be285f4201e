"""The YAML reader: numbers, lines, and nothing but a UserError for whatever it is given."""

import contextlib
import math
import time
from typing import Any

import pytest
import yaml
from hypothesis import example, given
from hypothesis import strategies as st

from scalablevit.config.errors import UserError
from scalablevit.config.strict_yaml import MAX_DEPTH, load


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-3", 0.001),
        ("1E3", 1000.0),
        ("-2.5e+2", -250.0),
        ("1.", 1.0),
        (".5", 0.5),
        ("+7", 7),
        ("010", 10),
        ("-0", 0),
        (".inf", math.inf),
        ("-.Inf", -math.inf),
        ("true", True),
        ("False", False),
        ("null", None),
        ("~", None),
        ("", None),
        # text in YAML 1.2, though PyYAML makes booleans, numbers and dates of them
        ("no", "no"),
        ("on", "on"),
        ("0x10", "0x10"),
        ("1_000", "1_000"),
        ("12:30:45", "12:30:45"),
        ("2020-01-01", "2020-01-01"),
        ("e5", "e5"),
        (".", "."),
        ("1e", "1e"),
        ("'1e-3'", "1e-3"),
    ],
)
def test_scalars(text: str, value: Any) -> None:
    loaded = load(f"key: {text}", "f")[0]["key"]
    assert loaded == value
    assert type(loaded) is type(value)


def test_nan_is_a_number() -> None:
    assert math.isnan(load("key: .NaN", "f")[0]["key"])


@given(st.floats(allow_nan=False))
def test_floats_come_back_as_they_were_written(number: float) -> None:
    written = repr(number).replace("inf", ".inf")
    loaded = load(f"key: {written}", "f")[0]["key"]
    assert type(loaded) is float
    assert loaded == number


@given(st.integers(-(10**40), 10**40))
def test_integers_come_back_as_they_were_written(number: int) -> None:
    loaded = load(f"key: {number}", "f")[0]["key"]
    assert type(loaded) is int
    assert loaded == number


plain = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False)
    # zero bytes are refused; of a NEL (U+0085) PyYAML's own writer makes a line break that its own reader folds
    | st.text(st.characters(codec="utf-8", exclude_characters="\0\x85")),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text("abcdefgh", min_size=1), inner, max_size=4),
    max_leaves=15,
)


@given(plain)
def test_plain_values_come_back(value: Any) -> None:
    """PyYAML's own writer is the other side."""
    written = yaml.safe_dump(value, allow_unicode=True)
    assert load(written, "f")[0] == value


def test_lines_of_keys_and_list_entries() -> None:
    _, lines = load("a: 1\nb:\n  c: 2\n  d:\n    - 3\n    - {e: 4}\n", "f")
    assert lines == {(): 1, ("a",): 1, ("b",): 2, ("b", "c"): 3, ("b", "d"): 4, ("b", "d", 0): 5, ("b", "d", 1): 6,
                     ("b", "d", 1, "e"): 6}  # fmt: skip


def test_keys_are_text() -> None:
    assert load("1: a\n01: b\ntrue: c\nTrue: d\nnull: e\n", "f")[0] == {
        "1": "a",
        "01": "b",
        "true": "c",
        "True": "d",
        "null": "e",
    }


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("a: 1\nb: 2\na: 3", ["f:3", "'a'", "stands twice", "line 1"]),
        ("a:\n  b: 1\n  'b': 2", ["f:3", "'b'", "stands twice"]),
        ("a: &x 1\nb: *x", ["f:2", "aliases"]),
        ("a: !!python/object/apply:os.system [ls]", ["f:1", "tags"]),
        ("a: !!int '3'", ["f:1", "tags"]),
        ("? [1]\n: 2", ["f:1", "plain text"]),
        ("a: 1\n---\nb: 2", ["f:2", "another document"]),
        ("a: [1, 2", ["f:1"]),
        ("a: 1\n\tb: 2", ["f:2", "fix: indent with spaces, not tabs"]),
        ("a:\n\tb: 2", ["f:2", "fix: indent with spaces, not tabs"]),
        ('a: "\\ud800"', ["f:1", "half a character"]),
        ("a: \x00", ["f", "not allowed"]),
        ("a: " + "9" * 5000, ["f", "digits"]),
        ("[" * (MAX_DEPTH + 1) + "]" * (MAX_DEPTH + 1), ["f:1", "nested deeper"]),
    ],
)
def test_refused_with_the_place(text: str, said: list[str]) -> None:
    with pytest.raises(UserError) as caught:
        load(text, "f")
    for part in said:
        assert part in str(caught.value)


def test_deepest_allowed_nesting() -> None:
    load("[" * MAX_DEPTH + "]" * MAX_DEPTH, "f")


def test_merge_keys_are_ordinary_keys() -> None:
    assert load("<<: {a: 1}\nb: 2", "f")[0] == {"<<": {"a": 1}, "b": 2}


@pytest.mark.parametrize("text", ["[" * 100_000, "{a: " * 50_000, "- " * 50_000, "a:\n" + " " * 100_000 + "b: 1"])
def test_hostile_nesting_is_answered_fast(text: str) -> None:
    begin = time.process_time()
    with contextlib.suppress(UserError):
        load(text, "f")
    assert time.process_time() - begin < 2


@given(st.text())
@example("a: *")
@example("%TAG ! tag:x,2000:\n--- !x a")
@example("%YAML 9.9\n---\n")
@example('"\\U00110000"')
@example("? ")
@example("- !<")
@example("a: |99\n b")
def test_any_text_gives_a_value_or_a_user_error(text: str) -> None:
    try:
        load(text, "f")
    except UserError as error:
        assert str(error).startswith("f")


@given(st.lists(st.sampled_from([*"[]{}:,&*!|>%@`'\"#-?~ \n\t", "a", "1", ".inf", "<<", "---", "\\", "\ufeff"])))
def test_any_mixture_of_marks_gives_a_value_or_a_user_error(marks: list[str]) -> None:
    try:
        load("".join(marks), "f")
    except UserError as error:
        assert str(error).startswith("f")
