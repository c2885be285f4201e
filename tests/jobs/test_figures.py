"""A run's figures as files: every step once, whatever was killed and reported again."""

import csv
import json

import pytest

from scalablevit.jobs.figures import METRICS, RESULTS, best_step, by_step, write_figures
from scalablevit.jobs.run_store import RunStore
from scalablevit.tracking.spool import RECORDS, Spool

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
    spool = Spool(store.local / "spool")
    spool.metrics(UID, [trained(2), trained(4), evaluated(4, 0.5, True), trained(6)])
    spool.metrics(OTHER, [trained(6), evaluated(6, 0.9, True)])
    spool.close()
    with (store.local / "spool" / RECORDS).open("ab") as file:
        file.write(b'{"v":1,"kind":"metrics","uid":"000')
    spool = Spool(store.local / "spool")
    spool.metrics(UID, [trained(6), trained(8), evaluated(8, float("nan"), False)])
    spool.metrics(UID, [{"step": 8, "time_ms": 1, "metrics": {"system/node0/cpu_used": 0.5}}])
    spool.metrics(UID, [trained(9), evaluated(10, 0.7, True)])
    spool.close()
    write_figures(store, by_step(store.local / "spool", UID))
    return store


def test_metrics_have_each_step_once_with_all_its_figures(store):
    lines = [json.loads(line) for line in (store.local / METRICS).read_text().splitlines()]
    assert [line["step"] for line in lines] == [2, 4, 6, 8, 9, 10]
    assert lines[1] == {
        "step": 4, "time": "1970-01-01T00:00:04.000+00:00", "train/loss": 0.25, "train/lr": 0.1,
        "val/top1": 0.5, "val/is_best": 1.0,
    }  # fmt: skip
    assert lines[3]["val/top1"] == "NaN" and lines[3]["system/node0/cpu_used"] == 0.5


def test_results_have_a_row_for_each_evaluation_with_the_training_figures_before_it(store):
    rows = list(csv.DictReader((store.local / RESULTS).open()))
    assert [(int(row["step"]), float(row["val/top1"])) for row in rows[::2]] == [(4, 0.5), (10, 0.7)]
    assert rows[1]["val/top1"] == "NaN"
    assert float(rows[2]["train/loss"]) == pytest.approx(1 / 9)


def test_the_best_step_is_the_latest_that_was_best(store):
    assert best_step(by_step(store.local / "spool", UID)) == 10
    assert best_step(by_step(store.local / "spool", "2" * 32)) is None


def test_a_run_without_evaluations_has_an_empty_table(tmp_path):
    store = RunStore.open("run", None, tmp_path)
    write_figures(store, {})
    assert (store.local / METRICS).read_text() == ""
    assert (store.local / RESULTS).read_text() == "step,time\n"
