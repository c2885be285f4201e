"""Curves of a run: what is drawn of which metrics."""

import cv2

from scalablevit.viz.curves import save_curves


def test_curves_leave_out_what_is_not_finite_and_mark_the_best(tmp_path, monkeypatch):
    drawn = []
    monkeypatch.setattr("scalablevit.viz.curves.save", lambda metric, file: drawn.append(metric))
    rows = {1: {"time": "t", "train/loss": 2.0, "train/lr": 0.1}, 2: {"train/loss": "NaN"}, 4: {"train/loss": 1.0},
            5: {"val/top1": 0.5}, 8: {"val/top1": 0.25}}  # fmt: skip
    save_curves(rows, "val/top1", tmp_path / "curves.png")
    loss, evaluation, *_ = drawn[0].axes
    assert loss.get_lines()[0].get_xydata().tolist() == [[1, 2.0], [4, 1.0]]
    assert [text.get_text() for text in evaluation.get_legend().get_texts()] == ["val/top1"]
    assert evaluation.get_title() == "best val/top1 0.5000 at step 5"


def test_curves_of_a_run_without_metrics_are_an_empty_picture(tmp_path):
    save_curves({}, "val/top1", tmp_path / "plots" / "curves.png")
    assert cv2.imread(str(tmp_path / "plots" / "curves.png")) is not None
