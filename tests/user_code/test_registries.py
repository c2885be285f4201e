"""Kinds that a package registers: what fits, what is refused, and a source of its own for a task of ours."""

import pickle
import sys

import pytest
import torch
from harness.toys import RECIPE
from harness.user_code import packages_in, write_package
from safetensors.torch import save_file

from scalablevit.config.errors import UserError
from scalablevit.config.loading import load_and_import, load_recipe
from scalablevit.config.recipe import Stage
from scalablevit.config.space_loading import load_search
from scalablevit.config.stored import stored_stage, to_store
from scalablevit.config.task_info import TASKS
from scalablevit.config.transforms import register_transform
from scalablevit.config.user_code import import_user_code, package_sums
from scalablevit.data.dataset import SampleDataset
from scalablevit.data.sampler import Key
from scalablevit.data.shapes import CLASSES, write_shapes
from scalablevit.data.sources.opening import SOURCES, open_source
from scalablevit.tasks.registry import build_task
from scalablevit.training.worker import WorkerConfig, run

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


@pytest.mark.parametrize(
    ("base", "field", "reason"),
    [
        ("LabelledImages", "transforms: str = ''", "transforms .str in place of tuple"),
        ("LabelledImages", "mean: float = 0.5", "mean .float in place of tuple"),
        ("ImageFolder", "image_size: tuple[int, int] = (32, 64)", "image_size .tuple"),
        ("CocoInstances", "transforms: tuple[str, ...] = ()", "transforms, which CocoInstances does not apply"),
    ],
)
def test_a_section_that_gives_a_key_of_ours_another_type_is_refused(place, base, field, reason):
    """Else it would be found by the workers."""
    text = SOURCE.replace("LabelledImages", base).replace('owner: str = "me"', field)
    write_package(place, "mine", init=text)
    with pytest.raises(UserError, match=f"Photos redeclares {reason}") as caught:
        import_user_code(["mine"])
    assert "register_source Photos" in caught.value.where and "another name" in caught.value.fix


def test_a_section_may_have_other_defaults_and_bounds(place):
    field = "image_size: Annotated[int, Field(ge=8, le=64)] = 32\n    antialias: Literal[True] = True"
    field += "\n    train: Folder\n    shapes: Shapes = Shapes(train_images=8, val_images=8, image_size=64)"
    head = "from typing import Annotated\nfrom pydantic import Field\n"
    head += "from scalablevit.config.data import Shapes, Split\nclass Folder(Split):\n    licence: str = ''\n"
    write_package(place, "mine", init=head + SOURCE.replace('owner: str = "me"', field))
    override = ["imports=[mine]", "stages.pretrain.data.source=photos"]
    assert load_and_import(RECIPE, override).stages["pretrain"].data.antialias


TRANSFORM = """\
from scalablevit import register_transform

def spots(image, draws):
    height, width, _ = image.shape
    image[draws.integers(height), draws.integers(width)] = 255
    return image

def crop(image, draws):
    return image[1:]

register_transform("spots", spots)
register_transform("spots", spots)
register_transform("crop", crop)
"""


def test_a_transform_is_applied_in_training_by_the_samples_place_alone(place, tmp_path):
    write_package(place, "mine", init=TRANSFORM)
    override = ["imports=[mine]", "stages.pretrain.data.transforms=[spots, spots]"]
    with pytest.raises(UserError, match="no transform 'spots' is registered"):
        load_recipe(RECIPE, override)
    stage = load_and_import(RECIPE, override).stages["pretrain"]
    assert stored_stage(to_store(stage)) == stage
    write_shapes(stage.data.shapes, tmp_path / stage.data.root)
    source = open_source(stage.data, "train", tmp_path)
    plain = SampleDataset(source, stage.data.model_copy(update={"transforms": ()}), 0, train=True)
    spotted, key = SampleDataset(source, stage.data, 0, train=True), Key(0, 1, 2)
    changed = (plain[key]["image"] != spotted[key]["image"]).any(axis=2)
    assert changed.sum() == 2 and (spotted[key]["image"][changed] == 255).all()
    travelled = pickle.loads(pickle.dumps(spotted))  # noqa: S301  # as a loading process gets it
    assert (spotted[key]["image"] == travelled[key]["image"]).all()
    elsewhere = (plain[Key(0, 1, 3)]["image"] != spotted[Key(0, 1, 3)]["image"]).any(axis=2)
    assert elsewhere.sum() == 2 and (elsewhere != changed).any()
    prepared = [SampleDataset(source, each, 0, train=False)[key]["image"] for each in (plain_of(stage), stage.data)]
    assert (prepared[0] == prepared[1]).all(), "evaluation is not changed"


def plain_of(stage):
    return stage.data.model_copy(update={"transforms": ()})


def test_a_transform_that_changes_the_shape_ends_training(place, tmp_path):
    write_package(place, "mine", init=TRANSFORM)
    stage = load_and_import(RECIPE, ["imports=[mine]", "stages.pretrain.data.transforms=[crop]"]).stages["pretrain"]
    write_shapes(stage.data.shapes, tmp_path / stage.data.root)
    dataset = SampleDataset(open_source(stage.data, "train", tmp_path), stage.data, 0, train=True)
    with pytest.raises(TypeError, match=r"mine.crop makes uint8 \(31, 32, 3\) of uint8 \(32, 32, 3\)"):
        dataset[Key(0, 0, 0)]


def test_transforms_that_cannot_be_had(place):
    write_package(place, "mine", init=TRANSFORM)
    with pytest.raises(UserError, match=r"no transform 'stripes' is registered; there are .*spots, crop") as caught:
        load_and_import(RECIPE, ["imports=[mine]", "stages.pretrain.data.transforms=[stripes]"])
    assert "data.transforms" in caught.value.where and "mine registered no such name" in caught.value.fix
    with pytest.raises(UserError, match="transform spots is defined by mine: name it in this stage's imports"):
        load_and_import(RECIPE, ["stages.pretrain.data.transforms=[spots]"])
    with pytest.raises(UserError, match="unknown key 'transforms'"):
        load_and_import(RECIPE, ["imports=[mine]", "stages.detect.data.transforms=[spots]"])
    with pytest.raises(UserError, match=r"is taken by mine\.spots"):
        register_transform("spots", sys.modules["mine"].crop)
    write_package(place, "theirs", init=TRANSFORM + 'register_transform("other", lambda image, draws: image)\n')
    with pytest.raises(UserError, match="taken by mine"):
        import_user_code(["theirs"])
    write_package(place, "third", init="import scalablevit as sv\nsv.register_transform('no', lambda i, d: i)\n")
    with pytest.raises(UserError, match=r"no worker can import third\.<lambda> as yours"):
        import_user_code(["third"])


METRIC = """\
from scalablevit import register_metric
from scalablevit.config.task_info import MetricInfo

class Worst:
    def __init__(self, classes):
        self.hits = {name: [] for name in classes}

    def update(self, predictions, batch):
        for label, hit in zip(batch.labels.tolist(), (predictions.argmax(1) == batch.labels).tolist()):
            list(self.hits.values())[label].append(hit)

    def synchronize(self):
        pass

    def compute(self):
        return {"val/NAME": min(sum(hits) / len(hits) for hits in self.hits.values())}

register_metric("classification", MetricInfo("worst"), Worst)
register_metric("classification", MetricInfo("worst"), Worst)
"""


def evaluated(stage, root):
    """What a worker reports of fresh weights."""
    write_shapes(stage.data.shapes, root / stage.data.root)
    task, weights = build_task(stage, CLASSES), root / "weights.safetensors"
    save_file(task.build_model().state_dict(), weights)
    config = WorkerConfig(stage=stage.model_dump_json(), run_folder="", root=str(root), init_weights=str(weights),
                          evaluate_only=True, user_code=package_sums(stage.imports))  # fmt: skip
    return run(config, 0, 1, torch.device("cpu"), lambda *_: None)


def test_a_metric_is_reported_beside_the_tasks_own(place, tmp_path):
    write_package(place, "mine", init=METRIC.replace("NAME", "worst"))
    stage = load_and_import(RECIPE, ["imports=[mine]"]).stages["pretrain"]
    metrics = evaluated(stage, tmp_path).metrics
    assert 0 <= metrics["val/worst"] <= metrics["val/top1"] <= metrics["val/top5"]
    without = evaluated(stage.model_copy(update={"imports": ()}), tmp_path).metrics
    assert "val/worst" not in without and set(metrics) - set(without) == {"val/worst"}
    space = tmp_path / "space.yaml"
    text = f"recipe: {RECIPE}\nstage: pretrain\nmetric: val/worst\nbudget: {{trials: 2, epochs: 1}}\n"
    space.write_text(text + "parameters: {optimizer.lr: {loguniform: [1.0e-4, 1.0e-3]}}\n")
    assert load_search(space, ["imports=[mine]"], imports=True).space.metric == "val/worst"
    with pytest.raises(UserError, match="task classification reports no 'val/worst'"):
        load_search(space, imports=True)


def test_a_metric_under_another_name_ends_training(place, tmp_path):
    write_package(place, "mine", init=METRIC.replace("NAME", "top1"))
    stage = load_and_import(RECIPE, ["imports=[mine]"]).stages["pretrain"]
    with pytest.raises(ValueError, match="metric val/worst of mine computes val/top1"):
        evaluated(stage, tmp_path)


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        ('"classification", MetricInfo("top1"), Worst', "task classification reports top1 itself"),
        ('"unheard", MetricInfo("worst"), Worst', "there is no task 'unheard'"),
        ('"classification", MetricInfo("best", promotable=True), Worst', "are for a task's own metrics"),
        ('"classification", MetricInfo("a b"), Worst', "is not a valid name"),
        ('"classification", MetricInfo("best"), lambda classes: None', "no worker can import mine.<lambda> as yours"),
        ('"classification", MetricInfo("worst"), dict', "is taken by mine"),
    ],
)
def test_a_metric_that_does_not_fit_is_refused(place, arguments, reason):
    write_package(place, "mine", init=METRIC + f"register_metric({arguments})\n")
    with pytest.raises(UserError, match=reason):
        import_user_code(["mine"])
