"""Facts of a model are counted once for the same stage, classes, code and libraries, and never taken for others'."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from scalablevit.config.loading import load_recipe
from scalablevit.config.recipe import Length
from scalablevit.pipeline import plan_cache
from scalablevit.pipeline.plan_cache import FOLDER, cached_facts
from scalablevit.pipeline.resolve import ResolvedStage

TINY = Path(__file__).parents[1] / "end_to_end" / "tiny.yaml"


def resolved(*overrides: str, **changes: object) -> ResolvedStage:
    stage = load_recipe(TINY, overrides).stages["pretrain"]
    made = ResolvedStage(
        name="pretrain", stage=stage, run_name="tiny-pretrain-0", hash="0", digest="content:0", classes=("cat", "dog"),
        train_samples=96, val_samples=25, unreadable=0, ignored=(), notes=(), length=Length.of(stage, 96),
    )  # fmt: skip
    return replace(made, **changes)  # type: ignore[arg-type]


class Counter:
    """Counts how often it was asked."""

    def __init__(self) -> None:
        self.asked = 0

    def __call__(self) -> dict[str, str]:
        self.asked += 1
        return {"model": f"count {self.asked}"}


@pytest.fixture
def counter() -> Counter:
    return Counter()


def facts_of(stage: ResolvedStage, root: Path, count: Callable[[], dict[str, str]], *further: str) -> dict[str, str]:
    return cached_facts(stage.stage, stage.classes, root, count, *further)


def test_the_same_model_is_counted_once(counter: Counter, tmp_path: Path) -> None:
    assert [facts_of(resolved(), tmp_path, counter) for _ in range(3)] == [{"model": "count 1"}] * 3
    other_data = resolved(train_samples=3, digest="content:1", run_name="tiny-pretrain-1")
    assert facts_of(other_data, tmp_path, counter) == {"model": "count 1"}


@pytest.mark.parametrize("override", ["model.name=resnet18", "model.options={depths: [1, 1, 1, 1]}",
                                      "stages.pretrain.data.eval_resize=48", "cluster.workers=1",
                                      "stages.pretrain.training.global_batch_size=12"])  # fmt: skip
def test_another_stage_is_counted_anew(override: str, counter: Counter, tmp_path: Path) -> None:
    facts_of(resolved(), tmp_path, counter)
    assert facts_of(resolved(override), tmp_path, counter) == {"model": "count 2"}


def test_other_classes_code_and_libraries_are_counted_anew(
    counter: Counter, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    facts_of(resolved(), tmp_path, counter)
    facts_of(resolved(classes=("cat", "dog", "cow")), tmp_path, counter)
    assert counter.asked == 2
    monkeypatch.setattr(plan_cache, "code_digest", lambda _: "changed")
    facts_of(resolved(), tmp_path, counter)
    assert counter.asked == 3
    monkeypatch.setattr(plan_cache.metadata, "version", lambda _: "99")
    facts_of(resolved(), tmp_path, counter)
    assert counter.asked == 4


def test_facts_that_depend_on_more_are_others(counter: Counter, tmp_path: Path) -> None:
    facts_of(resolved(), tmp_path, counter)
    facts = [facts_of(resolved(), tmp_path, counter, digest)["model"] for digest in ("a", "b", "a")]
    assert facts == ["count 2", "count 3", "count 2"]


@pytest.mark.parametrize("content", ["", "{", "[1]", '{"model": 1}'])
def test_a_damaged_file_is_counted_anew(content: str, counter: Counter, tmp_path: Path) -> None:
    facts_of(resolved(), tmp_path, counter)
    (file,) = (tmp_path / FOLDER).iterdir()
    file.write_text(content)
    assert facts_of(resolved(), tmp_path, counter) == facts_of(resolved(), tmp_path, counter)
    assert counter.asked == 2


def test_what_cannot_be_kept_and_what_fails_is_counted_the_next_time(counter: Counter, tmp_path: Path) -> None:
    (tmp_path / FOLDER.parent).write_text("no folder")
    assert [facts_of(resolved(), tmp_path, counter)["model"] for _ in range(2)] == ["count 1", "count 2"]

    def fail() -> dict[str, str]:
        raise ValueError("no such model")

    with pytest.raises(ValueError, match="no such model"):
        facts_of(resolved(), tmp_path / "other", fail)
    assert facts_of(resolved(), tmp_path / "other", counter) == {"model": "count 3"}


def test_no_secret_decides_and_none_is_kept(counter: Counter, tmp_path: Path) -> None:
    facts_of(resolved("tracking.uri=http://someone:canary-4711@tracking.example"), tmp_path, counter)
    assert facts_of(resolved(), tmp_path, counter) == {"model": "count 1"}
    assert not [file for file in tmp_path.rglob("*") if file.is_file() and "canary" in str(file) + file.read_text()]
