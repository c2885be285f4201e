"""The shipped recipes on real pictures: what they count, what they call their classes, and a few steps of training.

Run by `make test-real DATA=<folder>`, without the slow ones by `.ci/run`; the folder holds `classification-photos`,
`classification-cifar10`, `segmentation` (CamVid), `segmentation-ade20k-sample` and `detection` (a COCO subset).
"""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from scalablevit.cli import check_data, main
from scalablevit.cli.tree import parse
from scalablevit.config.data import MaskPairs
from scalablevit.config.loading import load_recipe

REPOSITORY = Path(__file__).parents[2]
RECIPES = REPOSITORY / "pipelines" / "recipes"
SHORT = [
    "training.epochs=null",
    "training.steps=6",
    "training.evaluate_every={steps: 6}",
    "training.log_every_steps=3",
    "optimizer.schedule.warmup_epochs=0",
    "optimizer.schedule.warmup_steps=0",
]

pytestmark = [pytest.mark.real, pytest.mark.timeout(900)]


@pytest.fixture(scope="session")
def data() -> Path:
    folder = os.environ.get("SCALABLEVIT_DATA")
    assert folder, "SCALABLEVIT_DATA names no folder; run these tests by `make test-real DATA=<folder>`"
    assert Path(folder).is_dir(), f"SCALABLEVIT_DATA: there is no folder {folder}"
    return Path(folder)


def full(root: Path, recipe: str, *arguments: str) -> str:
    command = [sys.executable, "pipelines/full.py", "--recipe", f"pipelines/recipes/{recipe}.yaml", "--root", str(root)]
    # a session of its own, wherever the caller's environment points
    env = {key: value for key, value in os.environ.items() if not key.startswith("RAY_")}
    done = subprocess.run(
        [*command, *arguments], cwd=REPOSITORY, env=env, capture_output=True, text=True, timeout=600, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture
def dry_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """The dry run of a recipe, in this process, and what it prints."""

    def run(recipe: str, *arguments: str) -> str:
        place = ["--recipe", str(RECIPES / f"{recipe}.yaml"), "--root", str(tmp_path)]
        code = main("full", [*place, "--dry-run", *arguments])
        said = capsys.readouterr()
        assert code == 0, said.out + said.err
        return said.out

    return run


def all_read(counts: str, said: str) -> bool:
    """Whether a plan has these counts, and names no unreadable samples and no files left out after them."""
    return counts in said and f"{counts}, " not in said


def test_photos_and_camvid_are_counted(data: Path, dry_run: Callable[..., str]) -> None:
    said = dry_run("photos_camvid", f"data.root={data}")
    assert all_read("1200 training and 400 validation samples, 10 classes", said)
    assert all_read("200 training and 60 validation samples, 11 classes", said)


def test_cifar10_is_counted(data: Path, dry_run: Callable[..., str]) -> None:
    said = dry_run("cifar10", f"data.root={data / 'classification-cifar10'}")
    assert all_read("5000 training and 1000 validation samples, 10 classes", said)


def test_ade20k_classes_are_the_published_names_in_order(data: Path) -> None:
    table = data / "segmentation-ade20k-sample" / "ADEChallengeData2016" / "objectInfo150.txt"
    rows = [line.split("\t") for line in table.read_text(encoding="utf-8").splitlines()[1:]]
    names = [synonyms.split(",")[0].strip() for _, _, _, _, synonyms in rows]
    recipes = sorted(RECIPES.glob("ade20k_*.yaml"))
    assert len(recipes) == 6
    for path in recipes:
        (stage,) = load_recipe(path).stages.values()
        assert isinstance(stage.data, MaskPairs)
        assert stage.data.classes == names


def test_ade20k_masks_have_the_ids_that_the_recipe_expects(data: Path) -> None:
    from scalablevit.data.sources.opening import open_source
    from scalablevit.inspection.check import check_split

    root = data / "segmentation-ade20k-sample" / "ADEChallengeData2016"
    (stage,) = load_recipe(RECIPES / "ade20k_upernet_scalablevit_small.yaml", [f"data.root={root}"]).stages.values()
    report = check_split(open_source(stage.data, "val", Path.cwd()), stage.data, workers=2)
    assert report.samples == 3
    assert not report.unreadable
    assert not report.wrong


def test_a_few_steps_on_photos_and_camvid_end_with_two_registered_models(data: Path, tmp_path: Path) -> None:
    said = full(tmp_path, "photos_camvid", f"data.root={data}", *SHORT)
    assert "photos_camvid-pretrain v1 @candidate" in said
    assert "photos_camvid-segment v1 @candidate" in said


def test_coco_subset_is_counted(data: Path, dry_run: Callable[..., str]) -> None:
    said = dry_run("coco_subset", f"data.root={data / 'detection'}")
    assert all_read("150 training and 80 validation samples, 80 classes", said)


@pytest.mark.parametrize(
    ("recipe", "folder"),
    [("photos_camvid", ""), ("cifar10", "classification-cifar10"), ("coco_subset", "detection")],
)
def test_every_image_and_mask_is_sound(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], recipe: str, folder: str
) -> None:
    """All are decoded in full."""
    place = ["--recipe", str(RECIPES / f"{recipe}.yaml"), "--root", str(tmp_path)]
    code = check_data.run(parse("check-data", [*place, f"data.root={data / folder}"]))
    assert code == 0 and "Nothing bad" in capsys.readouterr().out


@pytest.mark.slow
def test_coco_subset_takes_some_steps(data: Path, tmp_path: Path) -> None:
    """Two steps: the validation split goes through evaluation, boxes and masks, in original pixels."""
    said = full(
        tmp_path, "coco_subset", f"data.root={data / 'detection'}", *SHORT, "training.steps=2",
        "training.evaluate_every={steps: 2}", "optimizer.schedule={kind: constant}", "task.max_detections=5",
    )  # fmt: skip
    assert "box_ap" in said and "coco_subset-detect v1 @candidate" in said
