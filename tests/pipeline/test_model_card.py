"""The model card: what it says, and what it keeps to itself."""

import os
import re
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest

from scalablevit.config.loading import load_recipe
from scalablevit.inspection.statistics import SharedImages, SkippedFiles
from scalablevit.pipeline.init_weights import InitWeights
from scalablevit.pipeline.model_card import Registry, model_card
from scalablevit.pipeline.registration import plots_to_send
from scalablevit.pipeline.resolve import ResolvedStage, resolve
from scalablevit.run_files import CURVES, TRAINING_BATCH, VALIDATION
from scalablevit.runs.result import StageResult
from scalablevit.tracking.registry import LONGEST_DESCRIPTION

TINY = Path(__file__).parents[1] / "end_to_end" / "tiny.yaml"
SMALL = ["data.shapes={train_images: 18, val_images: 12, image_size: 48}"]
METRICS = {"val/top1": 0.75, "val/top5": 1.0, "val/top1_low95": 0.4677, "val/loss": 0.5, "val/samples": 11.0,
           "val/bad_samples": 1.0}  # fmt: skip


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("root")


@pytest.fixture(scope="module")
def pretrain(root: Path) -> ResolvedStage:
    return resolve(load_recipe(TINY, SMALL), root, ["pretrain"])[0]


def result_of(resolved: ResolvedStage, folder: str = "/runs/run") -> StageResult:
    return StageResult(
        name="pretrain", run_name=resolved.run_name, uid="0" * 32, folder=folder, metric="val/top1", value=0.75, step=8,
        metrics=METRICS, classes=resolved.classes, images_per_s=1.0, minutes=1.0, reason="finished",
        checkpoint="", weights_sha256="", registered_as="tiny-pretrain", lineage={}, last_step=12,
    )  # fmt: skip


def card_of(resolved: ResolvedStage, root: Path, uri: str | None = None) -> str:
    registry = Registry(root, uri or f"sqlite:///{root}/mlflow.db")
    return model_card("tiny", resolved, result_of(resolved), root, [CURVES], registry)


def test_it_says_what_the_model_is_and_how_good(pretrain: ResolvedStage, root: Path) -> None:
    card = card_of(pretrain, root)
    for fact in (
        "classification, 6 classes",
        f"`{pretrain.stage.model.name}`",
        "step 8 of 12, from random weights (seed 0)",
        "18 training and 12 validation images",
        "| images of circle | &emsp;3 | &emsp;2 |",
        "| top1 | &emsp;0.7500 | &emsp;from 0.4677 |",
        "| loss | &emsp;0.5000 | &emsp;- |",
        "at step 8, the best stored one by top1:",
        "1 validation images could not be decoded: no metric has them.",
        "`plots/curves.png`",
        f'sv.load_model("models:/tiny-pretrain/{{{{version}}}}", root="{root}")',
        f"export MLFLOW_TRACKING_URI=sqlite:///{root}/mlflow.db",
        f"scalablevit export models:/tiny-pretrain/{{{{version}}}} images/ --out onnx/ --root {root}",
    ):
        assert fact in card, fact
    assert "low95" not in card and "samples" not in card


def test_it_says_that_a_model_has_learned_nothing(pretrain: ResolvedStage, root: Path) -> None:
    useless = replace(result_of(pretrain), value=1 / 6)
    card = model_card("tiny", pretrain, useless, root, [CURVES], Registry(root, f"sqlite:///{root}/mlflow.db"))
    assert "- top1 0.1667 is no better than chance" in card and "chance" not in card_of(pretrain, root)


def test_it_says_what_is_wrong_with_the_data(pretrain: ResolvedStage, root: Path) -> None:
    known = pretrain.statistics
    assert known is not None
    val = replace(known.val, samples_by_class=(0, 0, 3, 3, 3, 3))
    shared = SharedImages(2, 12, (("secret/a.jpg", "secret/b.jpg"),))
    card = card_of(replace(pretrain, statistics=replace(known, val=val, shared=shared)), root)
    assert "Validation has nothing of 2 of the classes." in card
    assert "2 validation images are training images, too" in card
    assert "nothing of" not in card_of(pretrain, root) and "too good" not in card_of(pretrain, root)


def test_it_shows_no_password_and_no_file_of_the_data(
    pretrain: ResolvedStage, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "canary-0815")
    known = pretrain.statistics
    assert known is not None
    left = (SkippedFiles(".txt", 1, ("patients.txt",)),)
    data = pretrain.stage.data.model_copy(update={"root": "/mnt/canary-0815"})
    resolved = replace(
        pretrain,
        stage=pretrain.stage.model_copy(update={"data": data}),
        statistics=replace(known, train=replace(known.train, left_out=left)),
    )
    card = card_of(resolved, root, "http://someone:canary-4711@mlflow.example:5000")
    assert "http://mlflow.example:5000" in card and "`image_folder` in `***`" in card
    assert '"tracking.uri=http://mlflow.example:5000"' in card
    assert "canary" not in card and "someone" not in card and "patients" not in card


HOME = Path("/home/canary 4711")


def placed(resolved: ResolvedStage, data: str, weights: InitWeights) -> ResolvedStage:
    stage = resolved.stage.model_copy(update={"data": resolved.stage.data.model_copy(update={"root": data})})
    return replace(resolved, stage=stage, init_weights=weights)


@pytest.mark.parametrize(
    ("data", "weights", "folder", "expected"),
    [
        ("data/flowers", InitWeights("resnet18.a1_in1k", "5" * 64, None), f"{HOME}/root/runs/r",
         ("in `data/flowers`", "from resnet18.a1_in1k (sha256 555555555555)", "`runs/r`")),
        (f"{HOME}/root/data/x", InitWeights(f"{HOME}/root/w/a.pth", "5" * 64, None), f"{HOME}/storage/r",
         ("in `data/x`", "from w/a.pth (sha256", "Folder of the run: `r`")),
        ("~/photos", InitWeights(f"{HOME}/w/a.pth", "5" * 64, None), "s3://bucket/runs/r",
         ("in `photos`", "from a.pth (sha256", "`s3://bucket/runs/r`")),
        ("../photos/", InitWeights(f"{HOME}/root/cache/models/m", "5" * 64, None, "flowers/3"), "/mnt/runs/r",
         ("in `photos`", "from flowers/3 (sha256", "Folder of the run: `r`")),
    ],
    ids=["relative", "inside the root", "outside", "registered"],
)  # fmt: skip
def test_a_folder_is_named_below_the_root_or_without_what_it_is_in(
    data: str, weights: InitWeights, folder: str, expected: tuple[str, ...], pretrain: ResolvedStage,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setenv("HOME", str(HOME))
    resolved, root = placed(pretrain, data, weights), HOME / "root"
    result, registry = result_of(resolved, folder), Registry(root, f"sqlite:///{root}/mlflow.db")
    card = model_card("tiny", resolved, result, root, [], registry)
    assert [fact for fact in expected if fact not in card] == []
    assert "canary" not in card and "/mnt" not in card


@pytest.mark.parametrize(
    ("place", "uri", "given"),
    [
        (HOME / "it's my root", None, f"{HOME}/it's my root"),
        (HOME, None, str(HOME)),
        (HOME / "root", f"sqlite:///{HOME}/other.db", f"tracking.uri=sqlite:///{HOME}/other.db"),
        (Path(f"{HOME}2"), None, f"{HOME}2"),
        (HOME / "root", "http://mlflow.example", "tracking.uri=http://mlflow.example"),
    ],
    ids=["below home", "home", "another file", "next to home", "server"],
)
def test_its_commands_name_the_registry_without_the_home_folder(
    place: Path, uri: str | None, given: str, pretrain: ResolvedStage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(HOME))
    address = uri or f"sqlite:///{place}/mlflow.db"
    card = card_of(pretrain, place, address)
    assert f"{HOME}/" not in card and f"{HOME}'" not in card
    (python,) = re.findall(r"```python\n(.*?)model = ", card, re.DOTALL)
    (argument,) = re.findall(r"sv\.load_model\(.*?, (?:root=)?(.*)\)\n", card)
    names: dict[str, object] = {}
    exec(f"{python}value = {argument}", names)  # noqa: S102  # as a reader runs it
    assert os.path.expanduser(str(names["value"])) == given  # noqa: PTH111  # as load_model does
    lines = [line for line in card.splitlines() if line.startswith(("export MLFLOW", "scalablevit export"))]
    script = f'{lines[0]}\nscalablevit() {{ printf \'%s\\n\' "$MLFLOW_TRACKING_URI" "${{@: -1}}"; }}\n{lines[1]}'
    said = subprocess.run(["bash", "-c", script], text=True, capture_output=True, timeout=20, check=True).stdout
    assert said.splitlines() == [address, given]


@pytest.mark.parametrize("known", [True, False], ids=["with statistics", "without"])
def test_it_fits_whatever_the_classes_are(known: bool, pretrain: ResolvedStage, root: Path) -> None:
    names = tuple(f"![x](http://evil.example/{number}) | `{'y' * 500}`" for number in range(1000))
    statistics = None
    if known and pretrain.statistics is not None:
        counts = tuple(range(1000))
        splits = [
            replace(each, samples_by_class=counts) for each in (pretrain.statistics.train, pretrain.statistics.val)
        ]
        statistics = replace(pretrain.statistics, classes=names, train=splits[0], val=splits[1])
    card = card_of(replace(pretrain, classes=names, statistics=statistics), root)
    assert len(card) <= LONGEST_DESCRIPTION
    assert "1000 classes" in card and "\\!\\[x\\](" in card and "y" * 100 not in card
    assert card.endswith("```")  # nothing was cut off


def test_a_root_with_a_strange_name_is_quoted(pretrain: ResolvedStage) -> None:
    strange = Path('/my "root"')
    card = card_of(pretrain, strange)
    assert r'root="/my \"root\""' in card and "--root '/my \"root\"'" in card
    assert not Registry(Path("/what?"), "http://mlflow.example").is_default


def test_without_error_analysis_it_says_no_cost(pretrain: ResolvedStage, root: Path, tmp_path: Path) -> None:
    (tmp_path / "examination").mkdir()
    (tmp_path / "examination" / "findings.json").write_text("{")
    registry = Registry(root, f"sqlite:///{root}/mlflow.db")
    assert "GMACs" not in model_card("tiny", pretrain, result_of(pretrain), tmp_path, [], registry)


@pytest.mark.parametrize(("shapes", "asked"), [(True, False), (False, True), (False, False)])
def test_images_of_the_data_are_sent_when_asked_for(
    shapes: bool, asked: bool, pretrain: ResolvedStage, tmp_path: Path
) -> None:
    for name in (CURVES, TRAINING_BATCH, VALIDATION):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    stage = pretrain.stage.model_copy(
        update={
            "tracking": pretrain.stage.tracking.model_copy(update={"log_images": asked}),
            "data": pretrain.stage.data if shapes else pretrain.stage.data.model_copy(update={"shapes": None}),
        }
    )
    expected = [CURVES, TRAINING_BATCH, VALIDATION] if shapes or asked else [CURVES]
    assert plots_to_send(stage, tmp_path) == expected
    (tmp_path / CURVES).unlink()
    assert plots_to_send(stage, tmp_path) == expected[1:]
