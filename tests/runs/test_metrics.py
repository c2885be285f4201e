"""A run's metrics as files: every step once, whatever was killed and reported again."""

import csv
import io
import json
import os
import random

import pytest

from scalablevit.run_files import METRICS, RECORDS, RESULTS
from scalablevit.runs import metrics
from scalablevit.runs.metrics import MetricFiles, best_step, metrics_by_step
from scalablevit.runs.run_store import RunStore
from scalablevit.tracking.outbox import Outbox

UID, OTHER = "0" * 32, "1" * 32


def trained(step):
    return {"step": step, "time_ms": 1_000 * step, "metrics": {"train/loss": 1 / step, "train/lr": 0.1}}


def evaluated(step, value, best):
    metrics = {"val/top1": value, "val/is_best": float(best)}
    return {"step": step, "time_ms": 1_000 * step + 500, "metrics": metrics}


@pytest.fixture
def store(tmp_path):
    """A run killed while it wrote step 8, resumed from step 4, with another run's records between."""
    store = RunStore.open("run", None, tmp_path)
    outbox = Outbox(store.outbox)
    outbox.metrics(UID, [trained(2), trained(4), evaluated(4, 0.5, True), trained(6)])
    outbox.metrics(OTHER, [trained(6), evaluated(6, 0.9, True)])
    outbox.close()
    with (store.outbox / RECORDS).open("ab") as file:
        file.write(b'{"v":1,"kind":"metrics","uid":"000')
    outbox = Outbox(store.outbox)
    outbox.metrics(UID, [trained(6), trained(8), evaluated(8, float("nan"), False)])
    outbox.metrics(UID, [{"step": 8, "time_ms": 1, "metrics": {"system/node0/cpu_used": 0.5}}])
    outbox.metrics(UID, [trained(9), evaluated(10, 0.7, True)])
    outbox.close()
    MetricFiles(store, UID).write()
    return store


def test_metrics_have_each_step_once_with_all_its_metrics(store):
    lines = [json.loads(line) for line in (store.local / METRICS).read_text().splitlines()]
    assert [line["step"] for line in lines] == [2, 4, 6, 8, 9, 10]
    assert lines[1] == {
        "step": 4, "time": "1970-01-01T00:00:04.000+00:00", "train/loss": 0.25, "train/lr": 0.1,
        "val/top1": 0.5, "val/is_best": 1.0,
    }  # fmt: skip
    assert lines[3]["val/top1"] == "NaN" and lines[3]["system/node0/cpu_used"] == 0.5


@pytest.mark.parametrize("at_once", [True, False])
def test_steps_done_again_after_a_roll_back_have_the_later_values(tmp_path, at_once):
    """The model has trained on those; also where the files had the earlier ones."""
    store = RunStore.open("run", None, tmp_path)
    outbox, files = Outbox(store.outbox), MetricFiles(store, UID)
    again = {"step": 6, "time_ms": 9_000, "metrics": {"train/loss": 0.75}, "roll_backs": 1}
    best = {**evaluated(8, 0.25, False), "roll_backs": 1}
    outbox.metrics(UID, [trained(4), evaluated(4, 0.5, True), trained(6), evaluated(8, 0.9, True)])
    if not at_once:
        files.write()
    outbox.metrics(UID, [again, best])
    files.write()
    outbox.close()
    lines = [json.loads(line) for line in (store.local / METRICS).read_text().splitlines()]
    assert [(line["step"], line.get("train/loss"), line.get("val/top1")) for line in lines] == [
        (4, 0.25, 0.5), (6, 0.75, None), (8, None, 0.25)]  # fmt: skip
    rows = metrics_by_step(store.outbox, UID)
    assert list(rows) == [4, 6, 8] and best_step(rows) == 4
    assert files.best is not None and files.best[0] == 4


@pytest.mark.parametrize("at_once", [True, False])
def test_steps_that_a_roll_back_has_undone_are_left_out(tmp_path, at_once):
    """Training went back from 8 to 4 and ended at 7: nobody has the weights of step 8, the best one."""
    store = RunStore.open("run", None, tmp_path)
    outbox, files = Outbox(store.outbox), MetricFiles(store, UID)
    outbox.metrics(UID, [trained(4), evaluated(4, 0.5, True), trained(6), evaluated(8, 0.9, True)])
    if not at_once:
        files.write()
    outbox.metrics(UID, [{**trained(6), "roll_backs": 1}, {**evaluated(7, 0.25, False), "roll_backs": 1}])
    files.write()
    outbox.metrics(UID, [{"step": 7, "time_ms": 1, "metrics": {"system/node0/x": 1.0}}])
    files.write()
    outbox.close()
    assert contents(store) == expected(store)
    rows = metrics_by_step(store.outbox, UID)
    assert list(rows) == [4, 6, 7] and best_step(rows) == 4
    assert files.last_step == 7 and files.best is not None and files.best[0] == 4


def test_results_have_a_row_for_each_evaluation_with_the_training_metrics_before_it(store):
    rows = list(csv.DictReader((store.local / RESULTS).open()))
    assert [(int(row["step"]), float(row["val/top1"])) for row in rows[::2]] == [(4, 0.5), (10, 0.7)]
    assert rows[1]["val/top1"] == "NaN"
    assert float(rows[2]["train/loss"]) == pytest.approx(1 / 9)


def test_the_best_step_is_the_latest_that_was_best(store):
    assert best_step(metrics_by_step(store.outbox, UID)) == 10
    assert best_step(metrics_by_step(store.outbox, "2" * 32)) is None


def test_a_run_without_evaluations_has_an_empty_table(tmp_path):
    store = RunStore.open("run", None, tmp_path)
    Outbox(store.outbox).close()
    MetricFiles(store, UID).write()
    assert (store.local / METRICS).read_text() == ""
    assert (store.local / RESULTS).read_text() == "step,time\n"


def contents(store):
    return (store.local / METRICS).read_text(), (store.local / RESULTS).read_text()


def expected(store):
    """Both files from the whole outbox, by the plain rule."""
    rows = metrics_by_step(store.outbox, UID)
    lines = "".join(json.dumps({"step": step, **row}) + "\n" for step, row in rows.items())
    trained, evaluations = {}, []
    for step, row in rows.items():
        trained |= {name: value for name, value in row.items() if name.startswith("train/")}
        evaluated = {name: value for name, value in row.items() if name.startswith("val/")}
        if evaluated:
            evaluations.append({"step": step, "time": row["time"], **trained, **evaluated})
    names = sorted({name for row in evaluations for name in row} - {"step", "time"})
    table = io.StringIO()
    writer = csv.DictWriter(table, ["step", "time", *names], lineterminator="\n")
    writer.writeheader()
    writer.writerows(evaluations)
    return lines, table.getvalue()


@pytest.mark.parametrize("seed", range(20))
def test_files_that_are_carried_on_are_those_written_at_once(seed, tmp_path):
    """Resumes, torn lines, doubled records, late metrics, other runs, edited and lost files, in any order."""
    draw = random.Random(seed)
    store = RunStore.open("run", None, tmp_path)
    outbox = Outbox(store.outbox)
    records, files, step = store.outbox / RECORDS, MetricFiles(store, UID), 1
    for _ in range(60):
        step += draw.randint(0, 3)
        reported = [trained(step)]
        if draw.random() < 0.5:
            reported.append(evaluated(step, draw.random(), draw.random() < 0.5))
        if draw.random() < 0.2:
            reported.append({"step": step, "time_ms": 1, "metrics": {f"val/iou/{draw.randint(0, 3)}": 0.5}})
        outbox.metrics(draw.choice([UID, UID, OTHER]), reported)
        happens = draw.random()
        if happens < 0.1:  # killed, resumed from an earlier step, with other log points
            step = max(1, step - draw.randint(1, 20))
            files = MetricFiles(store, UID) if draw.random() < 0.5 else files
        elif happens < 0.2:
            late = {"step": draw.randint(0, step), "time_ms": 2, "metrics": {f"system/node{draw.randint(0, 3)}/x": 1.0}}
            outbox.metrics(UID, [late])
        elif happens < 0.3:
            records.open("ab").write(draw.choice(records.read_bytes().splitlines(keepends=True)))
        elif happens < 0.4:
            torn = b'{"v":1,"kind":"metrics","uid":"000'
            records.open("ab").write(torn)
            files.write()
            os.truncate(records, records.stat().st_size - len(torn))
        elif happens < 0.5:
            (store.local / draw.choice([METRICS, RESULTS])).unlink(missing_ok=True)
        if draw.random() < 0.5:
            files.write()
            assert contents(store) == expected(store)
            rows = metrics_by_step(store.outbox, UID)
            best = best_step(rows)
            assert files.best == (None if best is None else (best, rows[best]))
            assert files.last_step == max(rows, default=0)
    outbox.close()


def test_a_run_of_many_evaluations_reads_its_outbox_once(tmp_path, monkeypatch):
    """The work at each evaluation is that of the records since the one before, not of all."""
    read, written = [], []
    monkeypatch.setattr(metrics, "read_lines", count(metrics.read_lines, read))
    keep = metrics._continue
    monkeypatch.setattr(metrics, "_continue", lambda *given: (written.append(len(given[2])), keep(*given)))
    store = RunStore.open("run", None, tmp_path)
    outbox, files = Outbox(store.outbox), MetricFiles(store, UID)
    for evaluation in range(100):
        steps = range(50 * evaluation + 1, 50 * evaluation + 51)
        outbox.metrics(UID, [*map(trained, steps), evaluated(steps[-1], evaluation / 100, True)])
        files.write()
        assert len(files._rows) <= 100
    outbox.close()
    assert sum(read) == (store.outbox / RECORDS).stat().st_size
    assert sum(written) <= 2 * sum(map(len, contents(store)))
    assert contents(store) == expected(store)


def count(read_lines, read):
    def counted(folder, offset=0):
        for line in read_lines(folder, offset):
            read.append(len(line.raw))
            yield line

    return counted


def test_a_failed_write_is_made_good_by_the_next(store, monkeypatch):
    files = MetricFiles(store, UID)
    files.write()
    outbox = Outbox(store.outbox)
    for step in (12, 14):
        outbox.metrics(UID, [trained(step), evaluated(step, 0.5, False)])
        with monkeypatch.context() as full:
            full.setattr(metrics.os, "fsync", fail)
            with pytest.raises(OSError, match="disk is full"):
                files.write()
    files.write()
    outbox.close()
    assert contents(store) == expected(store)


def fail(*_):
    raise OSError(28, "the disk is full")
