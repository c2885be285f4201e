"""A run's gauges: what a thread of the controller reads of the run's files, and hands to Ray."""

import asyncio
import json
import math
import os
import threading
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import ray.cloudpickle

from scalablevit.run_files import ATTEMPTS, CHECKPOINTS, MANIFEST, SENT
from scalablevit.tracking.callback import OutboxCallback
from scalablevit.tracking.outbox import Outbox, outbox_of, read_lines
from scalablevit.training import gauges
from scalablevit.training.attempt_events import Lost, StartupTimings, Submitted, add_event
from scalablevit.training.gauges import GAUGES, VALIDATION, GaugeReader, GaugesCallback

UID, NOW = "a" * 32, 2_000_000_000.0
TRAINING = {"train/loss": 1.5, "train/images_per_s": 16.0, "train/data_wait": 0.25, "train/lr": 0.1}


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """The module's time, which stands still; `clock.now` is changed to let it pass."""
    clock = SimpleNamespace(now=NOW, sleep=lambda seconds: time.sleep(0.001))
    clock.time = clock.monotonic = lambda: clock.now
    monkeypatch.setattr(gauges, "time", clock)
    return clock


@pytest.fixture
def run(tmp_path: Path, clock: SimpleNamespace) -> Path:
    """A run's folder with an empty outbox."""
    Outbox(outbox_of(tmp_path)).close()
    return tmp_path


def reader_of(run: Path) -> GaugeReader:
    return GaugeReader(run, str(run), UID, "val/top1", 8)


def read(reader: GaugeReader) -> dict[str, float]:
    """The values after every file was read."""
    for reading in reader.readings():
        reader.read(reading)
    return reader.values()


def report(run: Path, step: int, age_s: float = 0.0, uid: str = UID, **more: float) -> None:
    """A toy report through the callback that writes the outbox."""
    metrics = {key.replace("__", "/"): value for key, value in more.items()} or TRAINING
    record = {"step": step, "time_ms": int((NOW - age_s) * 1000), "metrics": metrics}
    OutboxCallback(outbox_of(run), uid).after_report(None, [{"records": [record], "node": {"rank": 0, "cpu": 1}}], None)


def send(run: Path, lines: int) -> None:
    """MLflow has so many of the outbox's lines."""
    end = [0, *(line.end for line in read_lines(outbox_of(run)))][lines]
    (outbox_of(run) / SENT).write_text(json.dumps({"uri": "http://a", "offset": end, "runs": {}}))


def test_values_of_steps_come_from_the_reports(run: Path) -> None:
    report(run, 3)  # of an earlier job
    reader = reader_of(run)
    known = {"scalablevit_restarts", "scalablevit_report_age_seconds", "scalablevit_outbox_age_seconds"}
    assert read(reader).keys() == known
    report(run, 7)
    report(run, 8, uid="b" * 32, train__loss=9.0)
    values = read(reader)
    assert {name: values[name] for name in values.keys() - known} == {
        "scalablevit_step": 7, "scalablevit_images_per_second": 16.0, "scalablevit_step_seconds": 0.5,
        "scalablevit_data_wait_ratio": 0.25, "scalablevit_loss": 1.5}  # fmt: skip
    report(run, 9, val__top1=0.75, val__top5=0.9)
    values = read(reader)
    assert (values["scalablevit_step"], values[VALIDATION], values["scalablevit_loss"]) == (9, 0.75, 1.5)


def test_a_value_that_is_not_finite_is_absent(run: Path) -> None:
    """Ray's exporter refuses it, and would go on with the last one."""
    reader = reader_of(run)
    report(run, 1, train__loss=math.nan, val__top1=math.inf)
    assert not {"scalablevit_loss", VALIDATION} & read(reader).keys()
    report(run, 2, train__loss=0.5, train__images_per_s=0.0)
    values = read(reader)
    assert values["scalablevit_loss"] == 0.5 and "scalablevit_step_seconds" not in values


def test_the_report_age_begins_when_workers_are_asked_for(run: Path, clock: SimpleNamespace) -> None:
    reader = reader_of(run)
    clock.now = NOW + 40
    assert read(reader)["scalablevit_report_age_seconds"] == 40
    report(run, 1, age_s=-30)
    assert read(reader)["scalablevit_report_age_seconds"] == 10
    report(run, 2, age_s=50)  # what a lost controller had not passed on
    assert read(reader)["scalablevit_report_age_seconds"] == 10
    report(run, 3, age_s=-60)  # the clock of another node
    assert read(reader)["scalablevit_report_age_seconds"] == 0


def test_restarts_are_those_within_jobs(run: Path) -> None:
    started, submitted = StartupTimings(1.0), Submitted(1.0, None)
    reader = reader_of(run)
    counted = []
    for event in (submitted, started, started, submitted, started, Lost(1.0), Lost(1.0), started):
        add_event(run / ATTEMPTS, event)
        counted.append(read(reader)["scalablevit_restarts"])
    # the second start: the workers left in time, or their controller was lost
    assert counted == [0, 0, 1, 1, 1, 2, 3, 3]
    assert read(reader_of(run))["scalablevit_restarts"] == 3, "another controller goes on with them"


def test_the_outbox_is_as_old_as_the_oldest_record_that_was_not_sent(run: Path) -> None:
    reader = reader_of(run)
    report(run, 1, age_s=90)
    report(run, 2, age_s=30)
    ages = [read(reader)["scalablevit_outbox_age_seconds"]]
    count = sum(1 for _ in read_lines(outbox_of(run)))
    for sent in (count // 2, count):
        send(run, sent)
        ages.append(read(reader)["scalablevit_outbox_age_seconds"])
    assert ages == [90, 30, 0]


def test_the_newest_manifest_says_how_old_the_checkpoint_is(run: Path, clock: SimpleNamespace) -> None:
    reader = reader_of(run)
    for step, age in ((5, 300), (9, 100), (12, None)):  # the last one is being written
        folder = run / CHECKPOINTS / f"step_{step:09d}-00000000"
        folder.mkdir(parents=True)
        (folder / "model.safetensors").touch()
        if age is not None:
            (folder / MANIFEST).touch()
            os.utime(folder / MANIFEST, (NOW - age, NOW - age))
    assert read(reader)["scalablevit_checkpoint_age_seconds"] == 100
    (run / CHECKPOINTS / "step_000000012-00000000" / MANIFEST).touch()
    os.utime(run / CHECKPOINTS / "step_000000012-00000000" / MANIFEST, (NOW, NOW))
    clock.now += 6
    assert reader.values()["scalablevit_checkpoint_age_seconds"] == 106, "it goes on until storage is asked again"
    assert read(reader)["scalablevit_checkpoint_age_seconds"] == 6


def test_what_cannot_be_read_does_not_stop_the_rest(run: Path) -> None:
    reader = reader_of(run)
    report(run, 4)
    (run / CHECKPOINTS).write_text("a file where the folder should be")
    (run / ATTEMPTS).mkdir()
    (outbox_of(run) / SENT).write_text("{")
    values = read(reader)
    assert values["scalablevit_step"] == 4
    assert values.keys().isdisjoint({"scalablevit_restarts", "scalablevit_outbox_age_seconds"}), "unknown is not 0"


def test_what_was_read_long_ago_is_absent_and_the_age_of_the_report_goes_on(
    run: Path, clock: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    reader, checkpoint = reader_of(run), run / CHECKPOINTS / "step_000000001-00000000"
    checkpoint.mkdir(parents=True)
    (checkpoint / MANIFEST).touch()
    report(run, 1)
    everything = read(reader).keys()
    assert everything == GAUGES.keys() - {VALIDATION}

    def fail(*_: object) -> None:
        raise OSError("stale file handle")

    for broken, lost in (("open_filesystem", {"scalablevit_checkpoint_age_seconds"}), ("read_lines", everything)):
        with monkeypatch.context() as context:
            context.setattr(gauges, broken, fail)
            if broken == "read_lines":
                context.setattr(gauges, "read_attempts", fail)
                context.setattr(gauges, "open_filesystem", fail)
            clock.now += gauges.STALE_S
            assert read(reader).keys() == everything
            clock.now += 1
            assert read(reader).keys() == everything - lost | {"scalablevit_report_age_seconds"}
            assert reader.values()["scalablevit_report_age_seconds"] == clock.now - NOW
        assert read(reader).keys() == everything, "it came back"


class Exported:
    """In place of Ray's gauge."""

    values: dict[str, tuple[float, dict[str, str]]]

    def __init__(self, name: str, text: str, keys: tuple[str, ...]) -> None:
        self.name, self.text, self.keys = name, text, keys

    def set_default_tags(self, tags: dict[str, str]) -> "Exported":
        assert tuple(tags) == self.keys and GAUGES[self.name] == self.text
        self.tags = tags
        return self

    def set(self, value: float) -> None:
        assert threading.current_thread().name == "gauges", "what reads files may hang"
        self.values[self.name] = (value, self.tags)


def test_a_thread_exports_them_while_the_controller_lives(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gauges, "Gauge", Exported)
    monkeypatch.setattr(Exported, "values", {}, raising=False)
    driver = GaugesCallback({"run": "toy-0", "stage": "pretrain"}, reader_of(run))
    callback: Any = ray.cloudpickle.loads(ray.cloudpickle.dumps(driver))  # type: ignore[no-untyped-call]
    (run / CHECKPOINTS / "step_000000001-00000000").mkdir(parents=True)
    (run / CHECKPOINTS / "step_000000001-00000000" / MANIFEST).touch()
    callback.after_controller_start(None)
    report(run, 1, **{**TRAINING, "val/top1": 0.5})
    deadline = time.monotonic() + 20
    while Exported.values.keys() != GAUGES.keys() and time.monotonic() < deadline:
        time.sleep(0.001)
    ray.cloudpickle.dumps(callback)  # type: ignore[no-untyped-call]  # to new workers
    asyncio.run(callback.before_controller_shutdown())
    while any(thread.name in ("gauges", "reader") for thread in threading.enumerate()) and time.monotonic() < deadline:
        time.sleep(0.001)
    assert time.monotonic() < deadline
    labels = {"run": "toy-0", "stage": "pretrain"}
    assert Exported.values["scalablevit_loss"] == (1.5, labels)
    assert Exported.values[VALIDATION] == (0.5, {**labels, "metric": "val/top1"})
    assert len(Exported.values) == len(GAUGES) == 10


def test_a_file_system_that_hangs_holds_up_no_gauge_of_another(
    run: Path, clock: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Run storage hangs, then the folder of the run, too."""
    monkeypatch.setattr(gauges, "Gauge", Exported)
    monkeypatch.setattr(Exported, "values", {}, raising=False)
    hanging, storage, folder = threading.Event(), gauges.open_filesystem, gauges.read_lines
    monkeypatch.setattr(gauges, "open_filesystem", lambda *given: hanging.wait(60) and storage(*given))
    callback = GaugesCallback({"run": "toy-0", "stage": "pretrain"}, reader_of(run))
    deadline = time.monotonic() + 20

    def exported(*names: str) -> None:
        """Wait until these and no others are set again."""
        Exported.values.clear()
        while Exported.values.keys() != set(names) and time.monotonic() < deadline:
            time.sleep(0.001)
            if Exported.values.keys() - set(names):
                Exported.values.clear()
        assert Exported.values.keys() == set(names)

    callback.after_controller_start(None)
    try:
        age = "scalablevit_report_age_seconds"
        exported(age, "scalablevit_restarts", "scalablevit_outbox_age_seconds")
        monkeypatch.setattr(gauges, "read_lines", lambda *given: hanging.wait(60) and folder(*given))
        monkeypatch.setattr(gauges, "read_attempts", lambda *given: hanging.wait(60) and ([], 0))
        time.sleep(0.05)  # a reading that had begun ends
        clock.now += gauges.STALE_S + 1
        exported(age)
        assert Exported.values[age][0] == gauges.STALE_S + 1
    finally:
        asyncio.run(callback.before_controller_shutdown())
        hanging.set()
