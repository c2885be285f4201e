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


def detect(anchor_size: int, head: str = "mask_rcnn") -> Stage:
    stage = load_recipe(TINY).stages["detect"]
    return stage.model_copy(update={"task": stage.task.model_copy(update={"anchor_size": anchor_size, "head": head})})


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


def warnings(statistics: DataStatistics, anchor_size: int, head: str = "mask_rcnn") -> tuple[str, ...]:
    return task_kind("detection").data_warnings(detect(anchor_size, head), statistics)


def test_small_and_large_objects_name_the_anchors_that_fit(statistics: DataStatistics) -> None:
    """The overlap of squares in one another is the ratio of their areas: 0.3 at a side of 0.55."""
    (small,) = warnings(with_side(statistics, 17.0), 32)
    assert "has a side of 17 pixels in the scaled image" in small and "the smallest anchors of 32: " in small, small
    assert "an overlap below 0.3" in small
    assert small.endswith("set task.anchor_size=8, or take larger images (data.short_side: 64)"), small
    (large,) = warnings(with_side(statistics, 600.0), 16)
    assert "the largest anchors of 256" in large and "set task.anchor_size=256, or take smaller images" in large
    for side in (18.0, 32.0, 512.0, 900.0, None):
        assert warnings(with_side(statistics, side), 32) == (), side


def test_retinanet_has_larger_anchors_and_another_limit(statistics: DataStatistics) -> None:
    """Three sizes a level, the largest 2 ** (2/3) of the first; background is below 0.4, a side of 0.63."""
    assert warnings(with_side(statistics, 1000.0), 32, "retinanet") == ()
    (large,) = warnings(with_side(statistics, 1300.0), 32, "retinanet")
    assert "the largest anchors of 812" in large and "an overlap below 0.4" in large
    (small,) = warnings(with_side(statistics, 20.0), 32, "retinanet")
    assert "the smallest anchors of 32" in small
    assert warnings(with_side(statistics, 20.5), 32, "retinanet") == ()


@pytest.mark.parametrize("side", [3.0, 5.0, 9.0, 17.0, 1000.0, 2000.0, 5000.0])
def test_the_value_that_is_named_gets_no_warning(statistics: DataStatistics, side: float) -> None:
    (warning,) = warnings(with_side(statistics, side), 32)
    named = int(warning.partition("task.anchor_size=")[2].partition(",")[0])
    assert warnings(with_side(statistics, side), named) == ()


def test_where_no_value_fits_only_the_images_can_change(statistics: DataStatistics) -> None:
    (warning,) = warnings(with_side(statistics, 2.0), 4)
    assert "task.anchor_size" not in warning and "take larger images" in warning


def test_the_shapes_median_is_counted(statistics: DataStatistics) -> None:
    boxes = statistics.train.boxes
    assert boxes is not None and boxes.scaled_side is not None and 10 < boxes.scaled_side < 60
    assert warnings(statistics, 8) == ()


def test_a_threshold_that_drops_what_the_metric_counts_is_named(statistics: DataStatistics) -> None:
    stage = detect(8)
    high = stage.model_copy(update={"task": stage.task.model_copy(update={"score_threshold": 0.5})})
    (warning,) = task_kind("detection").data_warnings(high, statistics)
    assert warning.startswith("task.score_threshold 0.5 drops detections that COCO's average precision counts, too")


def test_other_tasks_do_not_warn(statistics: DataStatistics) -> None:
    assert task_kind("classification").data_warnings(load_recipe(TINY).stages["pretrain"], statistics) == ()
