"""Where scripts send their overrides, as far as it is said before anything slow is loaded."""

from pathlib import Path

import pytest

from scalablevit.cli import analyse, check_data, main, plan
from scalablevit.cli.tree import parse
from scalablevit.config.errors import UserError


@pytest.fixture
def refused_root(tmp_path: Path) -> str:
    """A root that is refused after the recipe was read, so that nothing slow follows."""
    return str(tmp_path / "session_latest" / "root")


@pytest.mark.parametrize(
    ("script", "override", "expected"),
    [
        ("pretrain", "data.image_size=48", "data.image_size=48 applies to: pretrain\n"),
        ("segment", "data.short_side=64", "data.short_side=64 applies to: segment\n"),
        ("detect", "training.seed=7", "training.seed=7 applies to: pretrain, detect\n"),
        ("full", "data.crop_size=64", "data.crop_size=64 applies to: segment\n"),
        ("full", "training.seed=7", ""),
        ("full", "stages.detect.training.seed=7", ""),
    ],
)
def test_the_stages_of_an_override_are_printed(
    script: str, override: str, expected: str, refused_root: str, capsys: pytest.CaptureFixture[str]
) -> None:
    code, shown = main(script, [override, "--root", refused_root, "--dry-run"]), capsys.readouterr()
    assert code == 2 and refused_root in shown.err
    assert shown.out == f"no --recipe given: running the demo, demo.yaml\n{expected}"


@pytest.mark.parametrize(
    ("script", "override", "expected"),
    [
        ("pretrain", "data.crop_size=64", "has no effect here: pretrain.py runs pretrain; data.crop_size is a key of"),
        ("segment", "stages.detect.training.seed=7", "has no effect here: segment.py runs segment (starting from pre"),
        ("full", "data.imag_size=48", "did you mean 'image_size'?"),
        ("full", "task.head=retinanet", "write stages.detect.task.head=..."),
    ],
)
def test_an_override_without_effect_ends_with_code_2(
    script: str, override: str, expected: str, capsys: pytest.CaptureFixture[str]
) -> None:
    code, shown = main(script, [override, "--dry-run"]), capsys.readouterr()
    assert code == 2 and "Traceback" not in shown.err
    assert f"override {override!r}" in shown.err and expected in shown.err


def test_scripts_of_chosen_stages_send_overrides_there(
    refused_root: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(UserError, match="nonesuch"):
        plan.run(parse("plan", ["--step-s", "1", "--stage", "segment", "model.name=nonesuch"]))
    assert "model.name=nonesuch applies to: pretrain, segment\n" in capsys.readouterr().out
    with pytest.raises(UserError, match=r"plan.py plans pretrain; data.crop_size is a key of segment"):
        plan.run(parse("plan", ["--step-s", "1", "--stage", "pretrain", "data.crop_size=64"]))
    with pytest.raises(UserError, match="session folder"):
        check_data.run(parse("check-data", ["--root", refused_root, "data.crop_size=64"]))
    assert "data.crop_size=64 applies to: segment\n" in capsys.readouterr().out
    arguments = ["ablation", "--stages", "pretrain", "--out", str(tmp_path), "data.crop_size=64"]
    with pytest.raises(UserError, match=r"analyse.py ablation trains pretrain; data.crop_size is a key of segment"):
        analyse.run(parse("analyse", arguments))
    assert main("tune", ["--root", refused_root, "training.seed=7"]) == 2
    assert "training.seed=7 applies to: pretrain\n" in capsys.readouterr().out
