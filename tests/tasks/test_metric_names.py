"""Every class has a metric of its own, under a name that MLflow takes."""

import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st
from mlflow.utils.validation import MAX_ENTITY_KEY_LENGTH, _validate_metric_name

from scalablevit.tasks.metric_names import class_metric_names


@pytest.mark.parametrize(
    ("classes", "expected"),
    [
        (["背景", "道路", "建筑"], ["背景", "道路", "建筑"]),
        (["straße", "Ärger", "niño", "дом", "δ"], ["straße", "Ärger", "niño", "дом", "δ"]),
        (["street light", "a-b", "a_b", "v1.2", "time: night"], ["street light", "a-b", "a_b", "v1.2", "time: night"]),
        (["wall, brick", "door/window", "50%"], ["wall_ brick", "door_window", "50_"]),
        (["a,b", "a;b", "a!b"], ["a_b", "a_b_2", "a_b_3"]),
        # who keeps the name is who has it
        (["a,b", "a_b", "a_b_2"], ["a_b_3", "a_b", "a_b_2"]),
        ([".", "..", "a..b", "_"], ["__2", "__", "a..b", "_"]),
        ([unicodedata.normalize("NFD", "café")], ["café"]),
    ],
)
def test_names_by_hand(classes, expected):
    assert class_metric_names("val/iou", classes) == [f"val/iou/{name}" for name in expected]


@given(st.lists(st.text(min_size=1).filter(str.isprintable), min_size=1, max_size=20, unique=True))
def test_mlflow_takes_all_of_them_and_none_is_another_ones(classes):
    names = class_metric_names("val/mask_ap", classes)
    assert len(set(names)) == len(classes)
    for name in names:
        _validate_metric_name(name)
    long = class_metric_names("val/mask_ap", ["x" * 400 + "a", "x" * 400 + "b"])
    assert len(set(long)) == 2 and all(len(name) <= MAX_ENTITY_KEY_LENGTH for name in long)
