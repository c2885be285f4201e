"""The look at single validation images: which are taken, what is kept of them, and what it costs at most."""

from pathlib import Path

import cv2
import pytest
import torch

from scalablevit.config.data import Shapes
from scalablevit.config.loading import load_recipe
from scalablevit.data.decoding import BadSample
from scalablevit.data.shapes import write_shapes
from scalablevit.data.sources.opening import open_source
from scalablevit.pipeline import error_analysis
from scalablevit.report.findings import load_findings
from scalablevit.tasks.registry import build_task

TINY = Path(__file__).parents[1] / "end_to_end" / "tiny.yaml"


@pytest.fixture(scope="module")
def shapes(tmp_path_factory):
    root = tmp_path_factory.mktemp("root")
    write_shapes(Shapes(train_images=8, val_images=12, image_size=64), root / "tiny-data")
    return root


def analysed(name, shapes, folder):
    stage = load_recipe(TINY).stages[name]
    source = open_source(stage.data, "val", shapes)
    task = build_task(stage, source.classes)
    torch.manual_seed(0)
    return error_analysis.analyse_errors(task, stage, task.build_model(), source, folder)


@pytest.mark.parametrize(("name", "wide"), [("pretrain", 1), ("segment", 2), ("detect", 2)])
def test_each_task_leaves_findings_and_pictures(name, wide, shapes, tmp_path):
    (tmp_path / "seen").mkdir()
    (tmp_path / "seen" / "old.jpg").touch()
    found = analysed(name, shapes, tmp_path / "seen")
    assert load_findings(tmp_path / "seen") == found
    assert (found.images, found.split, found.bad) == (12, 12, 0)
    assert found.parameters > 10_000 and found.macs > 10_000
    errors = [case.error for case in found.worst]
    assert errors == sorted(errors, reverse=True) and min(errors) > 0 and len(found.cases) == error_analysis.SHOWN
    pictures = {case.picture for case in found.cases + found.worst}
    assert {path.name for path in (tmp_path / "seen").iterdir()} == {*pictures, "findings.json"}
    for picture in pictures:
        height, width = cv2.imread(str(tmp_path / "seen" / picture)).shape[:2]
        assert width == pytest.approx(wide * height, abs=2)
    assert all(case.file.count("/") == 1 and len(case.words) > 10 for case in found.cases)
    assert {case.outcome for case in found.cases + found.worst} <= {"right", "partly", "wrong"}


def test_no_more_images_are_taken_than_allowed(shapes, tmp_path, monkeypatch):
    monkeypatch.setattr(error_analysis, "IMAGES", 5)
    assert analysed("pretrain", shapes, tmp_path).images == 5
    monkeypatch.setattr(error_analysis, "IMAGES", 200)
    monkeypatch.setattr(error_analysis, "SECONDS", 0.0)
    found = analysed("pretrain", shapes, tmp_path)
    assert (found.images, found.split) == (error_analysis.BATCH, 12)


def test_images_that_cannot_be_read_are_counted(shapes, tmp_path, monkeypatch):
    read, calls = error_analysis.SampleDataset._read, iter(range(100))

    def unreadable_at_first(self, key):
        if next(calls) < error_analysis.BATCH:
            raise BadSample(str(self.source[key.index].image), "cut short")
        return read(self, key)

    monkeypatch.setattr(error_analysis.SampleDataset, "_read", unreadable_at_first)
    found = analysed("segment", shapes, tmp_path)
    assert (found.images, found.bad) == (4, error_analysis.BATCH)
    calls = iter([0] * 100)
    with pytest.raises(ValueError, match="none of 12 validation images could be read"):
        analysed("segment", shapes, tmp_path)
