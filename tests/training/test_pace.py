"""Few workers meet as often as ever; many meet seldom enough that meetings take no larger share of the time."""

import os
from typing import Any

import pytest

from scalablevit.training import ray_internals
from scalablevit.training.callbacks import PreemptionPoller, ThrottledReporter
from scalablevit.training.pace import Pace, pace_of
from scalablevit.training.state import Record


def test_few_workers_meet_every_second_and_are_asked_five_times_a_second() -> None:
    assert pace_of(1) == pace_of(8) == Pace(poll_s=0.2, report_s=1.0, notice_s=1.0)


@pytest.mark.parametrize("workers", [64, 256, 1000, 4000])
def test_many_workers_are_asked_and_meet_less_often(workers: int) -> None:
    pace = pace_of(workers)
    assert workers / pace.poll_s <= 400
    assert pace.report_s == min(0.12 * workers, 60.0), "who watches sees it go on"
    assert pace.poll_s < pace.report_s, "a report that no poll has taken would hold the next one"
    assert pace.notice_s == min(0.12 * workers, 10.0), "clouds take a machine half a minute after the notice"


def test_the_controllers_interval_is_set_unless_the_user_has_set_it(monkeypatch: pytest.MonkeyPatch) -> None:
    name = ray_internals.POLL_VARIABLE
    monkeypatch.setenv(name, "0.2")
    monkeypatch.setattr(ray_internals, "_POLL_IS_GIVEN", False)
    ray_internals.set_poll_interval(2.5)
    assert os.environ[name] == "2.5"
    monkeypatch.setattr(ray_internals, "_POLL_IS_GIVEN", True)
    ray_internals.set_poll_interval(0.5)
    assert os.environ[name] == "2.5"


class Sampler:
    """Stands for the sampler of a node's metrics."""

    def latest(self) -> dict[str, float]:
        return {}


def record(time_ms: int, rate: float = 0.0) -> Record:
    return Record(step=1, time_ms=time_ms, metrics={"train/images_per_s": rate})


@pytest.mark.parametrize(("every_s", "sent"), [(1.0, [1, 2, 1]), (3.0, [1, 3]), (None, [])])
def test_records_wait_for_the_pace_and_are_sent_together(every_s: float | None, sent: list[int]) -> None:
    reports: list[int] = []
    sampler: Any = Sampler()
    reporter = ThrottledReporter(lambda records, _: reports.append(len(records)), sampler, [], every_s=every_s)
    for time_ms in (10_000, 10_900, 11_000, 13_000):
        reporter.add(record(time_ms))
    assert reports == sent
    reporter.flush()
    assert sum(reports) == 4


def test_a_notice_is_looked_for_at_its_pace() -> None:
    asked: list[int] = []
    timings: Any = type("Timings", (), {"first_step": 1.0})()
    poller = PreemptionPoller(lambda: bool(asked.append(1)), timings, every_s=10.0)
    poller.learn(record(0, rate=64.0), 32)  # two steps a second
    for step in range(1, 101):
        poller.after_step(step)
    assert len(asked) == 5
