"""A search whose command is given again: it goes on, or keeps the result that the training after it began with."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from scalablevit.config.errors import UserError
from scalablevit.config.space import Search
from scalablevit.pipeline import search as pipeline_search
from scalablevit.pipeline.search import SearchResult, run_search
from scalablevit.runs.run_store import RunStore
from scalablevit.tracking.outbox import Outbox, lacks_finish, read_lines
from scalablevit.tracking.records import NotificationRecord
from scalablevit.tuning.search import SearchCallback
from scalablevit.tuning.trial import TrialContext
from scalablevit.tuning.trials import Trial, save_list, write_result

UID = "1" * 32
Ends = list[tuple[str, dict[int, float]]]
"""Status and curve of each trial at the end of a search."""


class Session:
    """A run's session without lease and MLflow."""

    def __init__(self, store: RunStore, _address: str) -> None:
        self.uid, self.outbox = UID, Outbox(store.outbox)

    def __enter__(self) -> "Session":
        return self

    def __exit__(self, *_: object) -> None:
        self.outbox.close()

    @contextmanager
    def at_work(self, *_: object) -> Iterator[Any]:
        yield SimpleNamespace(update=lambda **_: None)


class Command:
    """Searches in one folder; `ends` is what becomes of the trials, None: they must not run."""

    def __init__(self, make_search: Callable[..., Search], root: Path) -> None:
        self._make_search, self._root = make_search, root
        self.ends: Ends | None = None
        self.interrupted = False
        self.space: dict[str, Any] = {}

    def give(self, ends: Ends | None, *, retrain: bool = True, **budget: float) -> SearchResult:
        """Give the command of a search of three trials in a minute, or with another budget."""
        self.ends = ends
        search = self._make_search(budget={"trials": 3, "wall_minutes": 1, **budget}, **self.space)
        resolved: Any = SimpleNamespace(
            stage=search.recipe.stages[search.stage], hash="h", digest="d", sources={}, train_samples=64, classes=()
        )
        return run_search(search, resolved, None, self._root, retrain=retrain)

    def run(self, callback: SearchCallback, context: TrialContext, _concurrency: int) -> None:
        """Stand for Ray Tune."""
        assert self.ends is not None, "the search ran again"
        if context.search.space.searcher == "tpe":
            callback.trials += [Trial(number, {"optimizer.lr": 0.001}) for number in range(len(self.ends))]
            save_list(context.folder, callback.trials)
        for trial, (status, curve) in zip(callback.trials, self.ends, strict=False):
            trial.status, trial.curve = status, dict(curve)  # type: ignore[assignment]
            if status in ("finished", "stopped"):
                write_result(context.folder, trial)
        if self.interrupted:
            raise KeyboardInterrupt


@pytest.fixture
def command(make_search: Callable[..., Search], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Command:
    made = Command(make_search, tmp_path)
    monkeypatch.setattr(pipeline_search, "RunSession", Session)
    monkeypatch.setattr(pipeline_search, "_run", made.run)
    monkeypatch.setattr(pipeline_search, "_concurrency", lambda _search: 1)
    for name in ("store_listings", "_save_results", "publish"):
        monkeypatch.setattr(pipeline_search, name, lambda *_: None)
    return made


LEFT: Ends = [("finished", {8: 0.5}), ("unfinished", {4: 0.25, 6: 0.3}), ("failed", {4: 0.125})]
"""A minute was enough for one trial; the second, the best, had not ended; the third failed with a full disk."""


def test_a_search_that_has_ended_keeps_its_result_while_its_best_is_trained_in_full(
    command: Command, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first = command.give(LEFT)
    assert (first.best.number, first.step, first.value) == (1, 4, 0.25)
    capsys.readouterr()
    again = command.give(None)
    assert (again.best.number, again.best.values, again.step, again.value) == (1, first.best.values, 4, 0.25)
    assert again.origin() == first.origin() and again.best.status == "unfinished"
    line = capsys.readouterr().out
    assert "already finished: trial 1 is the best of 3, val/loss 0.2500" in line
    assert "2 trials have not begun or ended, or failed" in line and "--no-retrain" in line
    (folder,) = (tmp_path / "runs").iterdir()
    assert not lacks_finish(folder / "outbox", UID), "its run in MLflow is not left running"


def test_a_search_that_ends_is_notified_once(command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SCALABLEVIT_NOTIFY_COMMAND", "/bin/true")
    command.space = {"overrides": ("tracking.notify=[finished]",)}
    ends: Ends = [("finished", {8: 0.5}), ("finished", {8: 0.25}), ("finished", {8: 0.125})]
    command.give(ends, retrain=False)
    command.give(None)
    command.give(ends, retrain=False)
    (record,) = [line.record for line in read_lines(tmp_path / "notifications" / "command")]
    assert isinstance(record, NotificationRecord)
    assert (record.event, record.metric, record.value) == ("finished", "val/loss", 0.125)
    assert record.run == next((tmp_path / "runs").iterdir()).name


def test_nothing_is_said_of_trials_that_are_left_where_all_have_ended(
    command: Command, capsys: pytest.CaptureFixture[str]
) -> None:
    command.give([("finished", {8: 0.5}), ("stopped", {4: 0.75}), ("finished", {8: 0.25})])
    capsys.readouterr()
    assert command.give(None).best.number == 2
    assert "--no-retrain" not in capsys.readouterr().out


@pytest.mark.parametrize(
    "other", [{"budget": {"wall_minutes": 2.0}}, {"budget": {"trials": 4}}, {"retrain": False}], ids=str
)
def test_under_another_budget_or_without_the_training_it_goes_on_and_says_what_changed(
    command: Command, capsys: pytest.CaptureFixture[str], other: dict[str, Any]
) -> None:
    command.give(LEFT)
    capsys.readouterr()
    budget = other.get("budget", {})
    ends: Ends = [("finished", {8: 0.5}), ("finished", {8: 0.25}), ("finished", {8: 0.125}), ("finished", {8: 0.75})]
    found = command.give(ends, retrain=other.get("retrain", True), **budget)
    assert (found.best.number, found.value) == (2, 0.125)
    assert "the best is now trial 2; it was trial 1" in capsys.readouterr().out
    assert command.give(None, **budget).best.number == 2, "the new result is kept now"


def test_trials_that_were_never_proposed_are_left_too(command: Command, capsys: pytest.CaptureFixture[str]) -> None:
    """The time was up after two of three trials of TPE, which proposes one after the other."""
    command.space = {"searcher": "tpe"}
    command.give([("finished", {8: 0.5}), ("finished", {8: 0.25})])
    capsys.readouterr()
    assert command.give(None).best.number == 1
    line = capsys.readouterr().out
    assert "1 trials have not begun" in line and "space.budget.wall_minutes" in line and "--no-retrain" in line


def test_a_search_that_began_again_and_was_interrupted_has_no_result_to_keep(
    command: Command, capsys: pytest.CaptureFixture[str]
) -> None:
    """Trial 2 was better than the kept trial 1 when Ctrl-C came."""
    command.give(LEFT)
    command.interrupted = True
    with pytest.raises(KeyboardInterrupt):
        command.give([("finished", {8: 0.5}), ("unfinished", {4: 0.25}), ("finished", {8: 0.125})], retrain=False)
    command.interrupted = False
    capsys.readouterr()
    ends: Ends = [("finished", {8: 0.5}), ("finished", {8: 0.25}), ("finished", {8: 0.125})]
    assert command.give(ends).best.number == 2
    assert "the best is now trial 2; it was trial 1" in capsys.readouterr().out
    assert command.give(None).best.number == 2


@pytest.mark.parametrize("content", ["{}", '{"trial": 7, "values": {}, "step": 4, "value": 0.5, "budget": {}}',
                                     '{"trial": 0, "values": 3, "step": 4, "value": 0.5, "budget": {}}'])  # fmt: skip
def test_a_damaged_result_is_named(command: Command, tmp_path: Path, content: str) -> None:
    command.give(LEFT)
    (stored,) = (tmp_path / "runs").glob("*/best_trial.json")
    stored.write_text(content)
    with pytest.raises(UserError, match=r"best_trial\.json") as caught:
        command.give(None)
    assert "remove the file" in caught.value.fix
    stored.unlink()
    assert command.give(LEFT).best.number == 1


def test_a_search_of_an_earlier_release_goes_on(command: Command, tmp_path: Path) -> None:
    """It did not write which trial was the best."""
    command.give(LEFT)
    (stored,) = (tmp_path / "runs").glob("*/best_trial.json")
    stored.unlink()
    assert command.give([("finished", {8: 0.5})]).best.number == 0
