"""Mask values to labels."""

import numpy as np
import pytest

from scalablevit.config.data import MaskPairs, Split
from scalablevit.config.errors import UserError
from scalablevit.data.labels import IGNORE, label_table, to_labels


def pairs(**fields: object) -> MaskPairs:
    split = Split(images="images", masks="masks")
    return MaskPairs(source="mask_pairs", root="r", train=split, val=split, classes=["a", "b", "c"], **fields)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("fields", "values", "labels"),
    [
        ({}, [0, 1, 2, 255], [0, 1, 2, 255]),
        ({"ignore_index": 3}, [0, 2, 3, 255], [0, 2, 255, 255]),
        ({"reduce_zero_label": True}, [0, 1, 2, 3, 255], [255, 0, 1, 2, 255]),
        ({"reduce_zero_label": True, "ignore_index": 4}, [0, 3, 4, 255], [255, 2, 255, 255]),
        ({"reduce_zero_label": True, "ignore_index": 0}, [0, 1], [255, 0]),
    ],
)
def test_values_become_labels(fields: dict[str, object], values: list[int], labels: list[int]) -> None:
    table = label_table(pairs(**fields), ("a", "b", "c"))
    assert to_labels(np.array([values], np.uint8), table).tolist() == [labels]


@pytest.mark.parametrize(
    ("fields", "outside", "known"),
    [({}, 3, r"0\.\.2"), ({}, 254, r"0\.\.2"), ({"reduce_zero_label": True}, 4, r"1\.\.3")],
)
def test_unknown_values_are_named(fields: dict[str, object], outside: int, known: str) -> None:
    mask = np.array([[1, outside], [1, 1]], np.uint8)
    with pytest.raises(ValueError, match=rf"mask values {outside} are no class \(classes have {known}\)"):
        to_labels(mask, label_table(pairs(**fields), ("a", "b", "c")))


def test_an_ignored_class_is_refused() -> None:
    with pytest.raises(UserError, match="also the mask value of class 'a'"):
        label_table(pairs(ignore_index=0), ("a", "b", "c"))
    with pytest.raises(UserError, match="also the mask value of class 'c'"):
        label_table(pairs(ignore_index=3, reduce_zero_label=True), ("a", "b", "c"))


@pytest.mark.parametrize(("reduce", "most"), [(False, 254), (True, 253)])
def test_as_many_classes_as_8_bits_hold(reduce: bool, most: int) -> None:
    data = pairs(reduce_zero_label=reduce)
    names = [str(number) for number in range(most + 1)]
    every = np.arange(most, dtype=np.uint8) + reduce
    assert (to_labels(every[None], label_table(data, names[:most])) == np.arange(most)).all()
    assert label_table(data, names[:most])[255] == IGNORE
    with pytest.raises(UserError, match=f"{most + 1} classes do not fit"):
        label_table(data, names)
