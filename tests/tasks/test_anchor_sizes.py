"""Objects that no anchor fits are warned of with both sizes, and the value that fits is named."""

from dataclasses import replace
from pathlib import Path

import pytest

from scalablevit.config.data import Shapes
from scalablevit.config.loading import load_recipe
from scalablevit.config.recipe import Stage
from scalablevit.data.shapes import write_shapes
from scalablevit.data.sources.opening import open_source
from scalablevit.inspection.check import check_split
from scalablevit.inspection.statistics import DataStatistics, split_statistics
from scalablevit.tasks.registry import task_kind

TINY = Path(__file__).parents[1] / "end_to_end" / "tiny.yaml"


def detect(anchor_size: int) -> Stage:
    stage = load_recipe(TINY).stages["detect"]
    return stage.model_copy(update={"task": stage.task.model_copy(update={"anchor_size": anchor_size})})


@pytest.fixture(scope="module")
def statistics(tmp_path_factory: pytest.TempPathFactory) -> DataStatistics:
    """Of eight images of 64 x 64 pixels."""
    root = tmp_path_factory.mktemp("root")
    write_shapes(Shapes(train_images=8, val_images=8, image_size=64), root / "tiny-data")
    stage = detect(8)
    source = open_source(stage.data, "train", root)
    split = split_statistics(source, stage.data, check_split(source, stage.data, 2, None, "headers"))
    return DataStatistics(source.classes, "objects", train=split, val=split, shared=None, unknown=())


def with_side(statistics: DataStatistics, side: float | None) -> DataStatistics:
    boxes = statistics.train.boxes
    assert boxes is not None
    return replace(statistics, train=replace(statistics.train, boxes=replace(boxes, scaled_side=side)))


def warnings(statistics: DataStatistics, anchor_size: int) -> tuple[str, ...]:
    return task_kind("detection").data_warnings(detect(anchor_size), statistics)


def test_small_and_large_objects_name_the_anchors_that_fit(statistics: DataStatistics) -> None:
    """The overlap of squares in one another is the ratio of their areas: 0.3 at a side of 0.55."""
    (small,) = warnings(with_side(statistics, 17.0), 32)
    assert small.startswith("the median object of the training images is 17 pixels wide and high in the scaled image, "
                            "and the smallest anchors 32: "), small  # fmt: skip
    assert "set task.anchor_size=8, or a larger data.short_side" in small
    (large,) = warnings(with_side(statistics, 600.0), 16)
    assert "the largest anchors 256" in large and "task.anchor_size=256, or a smaller data.short_side" in large
    for side in (18.0, 32.0, 512.0, 900.0, None):
        assert warnings(with_side(statistics, side), 32) == (), side


def test_the_value_that_is_named_gets_no_warning(statistics: DataStatistics) -> None:
    for side in (3.0, 5.0, 9.0, 17.0, 700.0, 2000.0, 5000.0):
        for warning in warnings(with_side(statistics, side), 32):
            named = int(warning.partition("task.anchor_size=")[2].partition(",")[0])
            assert warnings(with_side(statistics, side), named) == (), (side, named)


def test_the_shapes_median_is_counted(statistics: DataStatistics) -> None:
    boxes = statistics.train.boxes
    assert boxes is not None and boxes.scaled_side is not None and 10 < boxes.scaled_side < 60
    assert warnings(statistics, 8) == ()


def test_other_tasks_do_not_warn(statistics: DataStatistics) -> None:
    assert task_kind("classification").data_warnings(load_recipe(TINY).stages["pretrain"], statistics) == ()
