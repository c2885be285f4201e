"""What this machine lacks for a recipe is said before anything starts."""

from pathlib import Path

import pytest

from scalablevit.config.loading import load_recipe
from scalablevit.config.recipe import Length
from scalablevit.pipeline import machine, node_checks
from scalablevit.pipeline.machine import machine_warnings
from scalablevit.pipeline.resolve import ResolvedStage

TINY = Path(__file__).parents[1] / "end_to_end" / "tiny.yaml"


def resolved(*overrides: str) -> ResolvedStage:
    stage = load_recipe(TINY, overrides).stages["pretrain"]
    return ResolvedStage(
        name="pretrain", stage=stage, run_name="tiny-pretrain-0", hash="0", digest="content:0", classes=("cat", "dog"),
        train_samples=96, val_samples=25, unreadable=0, ignored=0, notes=(), length=Length.of(stage, 96),
    )  # fmt: skip


@pytest.fixture(autouse=True)
def _two_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr(machine, "local_resources", lambda **_: {"CPU": 2.0, "GPU": 0.0})
    monkeypatch.setattr(machine, "_available_bytes", lambda: 20 * 2.0**30)
    monkeypatch.setattr(node_checks, "NVIDIA", Path("/nowhere"))


def test_what_fits_is_passed_over_without_counting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("scalablevit.training.memory_estimate.estimate_memory", None)
    assert machine_warnings([resolved()]) == []


def test_gpus_and_cores_that_are_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = resolved("cluster.workers=4", "cluster.gpus_per_worker=1")
    gpus, cores = machine_warnings([asked])
    assert gpus.startswith("stage pretrain asks for 4 workers x 1 GPUs = 4, and this machine has 0: ")
    assert cores.startswith("stage pretrain asks for 4 workers x 1 CPU cores = 4, and this machine has 2: ")
    assert machine_warnings([resolved("cluster.workers=4", "cluster.min_workers=2")]) == []
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6379")
    assert machine_warnings([asked]) == [], "the cluster is asked when the job starts"


def test_memory_is_counted_where_a_rough_bound_does_not_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    large = resolved("stages.pretrain.data.image_size=128", "stages.pretrain.data.eval_resize=128",
                     "stages.pretrain.training.global_batch_size=96")  # fmt: skip
    monkeypatch.setattr(machine, "_available_bytes", lambda: 2.5 * 2.0**30)
    (warning,) = machine_warnings([large])
    needed = float(warning.partition("takes about ")[2].partition(" GiB")[0])
    assert 2.5 < needed < 10 and "2.5 GiB are free" in warning and "training.accumulation_steps" in warning
    monkeypatch.setattr(machine, "_available_bytes", lambda: needed * 1.1 * 2**30)
    assert machine_warnings([large]) == []


def test_gpus_that_no_stage_uses(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for gpu in ("0000:01:00.0", "0000:02:00.0"):
        (tmp_path / gpu).mkdir()
    monkeypatch.setattr(node_checks, "NVIDIA", tmp_path)
    monkeypatch.setattr(machine, "local_resources", lambda **_: {"CPU": 2.0, "GPU": 2.0})
    assert machine_warnings([resolved()]) == [
        "this machine has 2 GPUs, and no stage uses one: set cluster.gpus_per_worker=1"
    ]
    assert machine_warnings([resolved("cluster.gpus_per_worker=1")]) == []
