"""Kinds that a package registers: what fits, what is refused, and a source of its own for a task of ours."""

import pytest
from harness.toys import RECIPE
from harness.user_code import packages_in, write_package

from scalablevit.config.errors import UserError
from scalablevit.config.loading import load_and_import
from scalablevit.config.recipe import Stage
from scalablevit.config.task_info import TASKS
from scalablevit.config.user_code import import_user_code
from scalablevit.data.shapes import write_shapes
from scalablevit.data.sources.opening import SOURCES, open_source

TASK = """\
from typing import Literal
from scalablevit import register_task
from scalablevit.config.task import TaskSection
from scalablevit.config.task_info import MetricInfo, TaskInfo

class Section(TaskSection):
    kind: Literal["{kind}"]

register_task(TaskInfo(kind="{info}", module="mine", stage_name="{stage}", sources=("image_folder",),
                       metrics=({metrics})), Section)
"""
FITTING = {"kind": "mine", "info": "mine", "stage": "own", "metrics": 'MetricInfo("score"),'}
SOURCE = """\
from typing import Literal
from scalablevit import register_source
from scalablevit.config.data import LabelledImages
from scalablevit.data.sources.image_folder import ImageFolderSource

class Photos(LabelledImages):
    source: Literal["photos"]
    owner: str = "me"

register_source(Photos, ImageFolderSource, tasks=["classification"])
"""


@pytest.fixture
def place(tmp_path):
    with packages_in(tmp_path / "code") as folder:
        yield folder


@pytest.mark.parametrize(
    ("changed", "reason"),
    [
        ({"info": "other"}, "its section has the kind 'mine'"),
        ({"kind": "classification", "info": "classification"}, "'classification' is taken by scalablevit.config.task"),
        ({"kind": "two words", "info": "two words"}, "does not say which kind it is"),
        ({"stage": "segment"}, "the stage name 'segment' means segmentation"),
        ({"stage": "full"}, "the stage name 'full' means all stages"),
        ({"metrics": ""}, "it reports no metric"),
        ({"metrics": 'MetricInfo("loss", better="min"),'}, "its first metric loss decides"),
    ],
)
def test_a_task_that_does_not_fit_is_refused_with_its_line(place, changed, reason):
    before = dict(TASKS)
    package = write_package(place, "mine", init=TASK.format(**FITTING | changed))
    with pytest.raises(UserError, match=reason) as caught:
        import_user_code(["mine"])
    assert caught.value.where.startswith(f"{package / '__init__.py'}:9: register_task")
    assert before == TASKS


def test_a_task_is_part_of_the_schema_once_it_is_registered(place):
    write_package(place, "mine", init=TASK.format(**FITTING))
    override = ["imports=[mine]", "stages.pretrain.task={kind: mine}", "stages.pretrain.data.mixup=0"]
    stage = load_and_import(RECIPE, override).stages["pretrain"]
    assert type(stage.task).__module__ == "mine" and TASKS["mine"].best_metric == "val/score"
    assert Stage.model_validate_json(stage.model_dump_json()) == stage
    section = type(stage.task)
    load_and_import(RECIPE, override)
    assert Stage.model_validate_json(stage.model_dump_json()).task.__class__ is section


def test_a_source_of_its_own_serves_a_task_of_ours(place, tmp_path):
    write_package(place, "mine", init=SOURCE)
    override = ["imports=[mine]", "stages.pretrain.data.source=photos"]
    with pytest.raises(UserError, match="unknown key 'ownr'; did you mean 'owner'"):
        load_and_import(RECIPE, [*override, "stages.pretrain.data.ownr=you"])
    stage = load_and_import(RECIPE, [*override, "stages.pretrain.data.owner=you"]).stages["pretrain"]
    assert (stage.data.source, stage.data.owner) == ("photos", "you")
    write_shapes(stage.data.shapes, tmp_path / stage.data.root)
    assert len(open_source(stage.data, "train", tmp_path)) == 96
    other = "{source: photos, root: d, train: {images: a}, val: {images: b}}"
    with pytest.raises(UserError, match=r"task segmentation needs data.source mask_pairs, not photos"):
        load_and_import(RECIPE, [*override, f"stages.segment.data={other}"])


def test_a_source_whose_section_is_none_is_refused(place):
    before = dict(SOURCES)
    text = SOURCE.replace("(LabelledImages)", "(Section)")
    write_package(place, "mine", init="from scalablevit.config.section import Section\n" + text)
    with pytest.raises(UserError, match="is no subclass of LabelledImages or MaskPairs or CocoInstances"):
        import_user_code(["mine"])
    assert before == SOURCES
