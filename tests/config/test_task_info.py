"""What is known of each kind of task without torch."""

from dataclasses import replace
from typing import get_args

import pytest

from scalablevit.config.errors import UserError
from scalablevit.config.promotion import Promotion
from scalablevit.config.task import Task
from scalablevit.config.task_info import TASKS, MetricInfo, kind_of_script, task_info

OF_SIZES = ("ap", "ap50", "ap75", "ap_small", "ap_medium", "ap_large")
MASK_METRICS = {f"val/mask_{name}": "max" for name in OF_SIZES}


def test_stage_names_and_scripts():
    names = {kind: info.stage_name for kind, info in TASKS.items()}
    assert names == {"classification": "pretrain", "segmentation": "segment", "detection": "detect"}
    assert [kind_of_script(script) for script in ("pretrain", "segment", "detect")] == list(TASKS)
    assert kind_of_script("full") is None


def test_sources_of_data():
    assert {kind: info.sources for kind, info in TASKS.items()} == {
        "classification": ("image_folder", "tar_shards"),
        "segmentation": ("mask_pairs",),
        "detection": ("coco",),
    }


def test_the_metric_that_decides():
    best = {kind: info.best_metric for kind, info in TASKS.items()}
    assert best == {"classification": "val/top1", "segmentation": "val/miou", "detection": "val/box_ap"}


def test_every_best_metric_is_better_when_larger():
    assert {info.metrics[0].better for info in TASKS.values()} == {"max"}


@pytest.mark.parametrize(
    ("kind", "heads", "metrics"),
    [
        ("classification", [None], {"val/top1": "max", "val/top5": "max", "val/top1_low95": "max", "val/loss": "min"}),
        ("segmentation", ["upernet"], {"val/miou": "max", "val/macc": "max", "val/aacc": "max"}),
        ("detection", ["mask_rcnn"], {f"val/box_{name}": "max" for name in OF_SIZES} | MASK_METRICS),
        ("detection", ["mask_rcnn", "retinanet"], {f"val/box_{name}": "max" for name in OF_SIZES}),
    ],
)
def test_metrics_that_a_search_may_name(kind, heads, metrics):
    reported = {each.reported_as: each.better for each in task_info(kind).metrics_with(heads)}
    assert list(reported.items()) == list(metrics.items())  # the order too: errors list them


@pytest.mark.parametrize(
    ("kind", "head", "names"),
    [
        ("classification", None, ("top1", "top5")),
        ("segmentation", "semantic_fpn", ("miou", "macc", "aacc")),
        ("detection", "retinanet", ("box_ap",)),
        ("detection", "mask_rcnn", ("box_ap", "mask_ap")),
    ],
)
def test_metrics_that_promotion_may_name(kind, head, names):
    assert task_info(kind).promotion_metrics(head) == names


def test_the_schema_takes_the_kinds_and_metrics_of_the_table():
    sections = get_args(get_args(Task)[0])
    assert [get_args(section.model_fields["kind"].annotation)[0] for section in sections] == list(TASKS)
    (metrics, _) = get_args(Promotion.model_fields["metric"].annotation)
    promotable = [each.name for info in TASKS.values() for each in info.metrics if each.promotable]
    assert list(get_args(metrics)) == promotable


def test_what_serving_needs_besides():
    more = {kind: info.serving_packages for kind, info in TASKS.items()}
    mmsegmentation = ("onedl-mmsegmentation", "onedl-mmcv", "onedl-mmengine")
    assert more == {"classification": (), "segmentation": mmsegmentation, "detection": ()}


def test_which_need_a_backbone_with_maps():
    assert [kind for kind, info in TASKS.items() if info.needs_pyramid] == ["segmentation", "detection"]


def test_an_unknown_kind_is_named():
    with pytest.raises(UserError, match="there is no task 'pose'") as caught:
        task_info("pose")
    assert caught.value.fix == "write one of classification, segmentation, detection"


def test_the_metrics_that_matter_most_come_first() -> None:
    detection = TASKS["detection"]
    assert detection.metrics_by_interest[:3] == ("val/box_ap", "val/mask_ap", "val/box_ap50")
    assert set(detection.metrics_by_interest) == {each.reported_as for each in detection.metrics}
    own = replace(detection, metrics=(*detection.metrics, MetricInfo("counted", package="mine")))
    assert own.metrics_by_interest[:3] == ("val/box_ap", "val/counted", "val/mask_ap")
