"""What is told of a running stage: lines for people, its status and its metrics."""

import io
import json
import time

import pytest

from scalablevit.config.task_info import task_info
from scalablevit.run_files import ATTEMPTS, METRICS, START_NOTE
from scalablevit.runs import console, progress
from scalablevit.runs.console import Console, WaitReporter, format_duration, say_while_waiting
from scalablevit.runs.lease import Lease
from scalablevit.runs.progress import EtaEstimator, Progress
from scalablevit.runs.run_store import RunStore
from scalablevit.runs.status import JOB_VARIABLE, Best, StatusFile, read_status
from scalablevit.tracking.callback import OutboxCallback
from scalablevit.tracking.outbox import Outbox, now_ms
from scalablevit.training.attempt_events import Lost, add_event

UID = "0" * 32
NODE = {"rank": 0, "process_memory_gib": 1.25}


class Terminal(io.StringIO):
    def isatty(self):
        return True


def trained(step):
    metrics = {"train/loss": 1 / step, "train/lr": 0.1, "train/epoch": step / 10, "train/grad_norm": 2.0,
               "train/images_per_s": 80.0, "train/data_wait": 0.25}  # fmt: skip
    return {"step": step, "time_ms": now_ms() + 1000 * step, "metrics": metrics}


def evaluated(step, value, best):
    metrics = {"val/top1": value, "val/is_best": float(best), "val/iou/cat": 0.5}
    return {"step": step, "time_ms": now_ms() + 1000 * step, "metrics": metrics}


@pytest.fixture
def store(tmp_path):
    store = RunStore.open("run", None, tmp_path)
    Outbox(store.outbox).close()
    return store


def follow(store, *reports, total=400, note=b"random weights (seed 0)", metrics=("val/top1",)):
    """The reports come in while the stage is followed; then its status."""
    callback = OutboxCallback(store.outbox, UID)
    with (
        Lease(store) as lease,
        StatusFile(store, lease, "pretrain", total, "steps", "sqlite:////m.db") as status,
        Progress(store, UID, "pretrain", total, metrics, status),
    ):
        store.write(START_NOTE, note)
        for records in reports:
            callback.after_report(None, [{"records": records, "node": NODE}], None)
    return read_status(store.local)


def test_the_first_steps_are_shown_however_fast_they_come(store, capsys):
    follow(store, *([trained(step)] for step in (1, 2, 3, 5, 7, 10, 20, 50, 60, 100, 120, 400)))
    lines = [line for line in capsys.readouterr().out.splitlines() if "loss" in line]
    assert [int(line.split("step ")[1].split("/")[0]) for line in lines] == [1, 2, 5, 10, 50, 100, 400]
    for part in ("epoch 0.10", "loss 1.0000", "lr 1.00e-01", "grad 2.00", "80 images/s", "data wait 25 %",
                 "memory 1.2 GiB"):  # fmt: skip
        assert part in lines[0]
    assert "ETA" in lines[1]


def test_status_and_metrics_are_those_of_the_outbox(store, capsys):
    status = follow(store, [trained(1), evaluated(4, 0.5, True)], [trained(6), evaluated(8, 0.25, False)])
    assert (status.state, status.step, status.best) == ("finished", 8, Best("val/top1", 0.5, 4))
    steps = [json.loads(line)["step"] for line in (store.local / METRICS).read_text().splitlines()]
    assert steps == [1, 4, 6, 8]
    out = capsys.readouterr().out
    assert "[pretrain] random weights (seed 0)" in out
    assert "step 4/400  evaluation: top1 0.5000  (best so far)" in out and "iou/cat" not in out


def test_after_a_roll_back_the_time_left_and_the_step_are_those_of_the_steps_done_again(store, capsys):
    """One second a step, from 100 back to 10; step 110 of the first line, the best, is undone."""
    start = now_ms()
    first = [{**trained(step), "time_ms": start + 1000 * step} for step in (1, 50, 100)]
    again = [{**trained(step), "time_ms": start + 1000 * (100 + step), "roll_backs": 1} for step in (20, 50, 100)]
    undone, last = evaluated(110, 0.9, True), {**evaluated(100, 0.5, True), "time_ms": start + 200_000, "roll_backs": 1}
    status = follow(store, first, [undone], again, [last], total=400)
    shown = [line for line in capsys.readouterr().out.splitlines() if "step 100/" in line and "ETA" in line]
    assert len(shown) == 2 and all(f"ETA {format_duration(300)}" in line for line in shown)
    assert (status.step, status.best) == (100, Best("val/top1", 0.5, 100))


def test_initial_weights_take_one_line_and_their_names_stay_in_the_file(store, capsys):
    note = "initial weights: 198 tensors from w.pth (sha256 0); 1 new, 1 ignored\n  new: a.weight\n  ignored: b.bias"
    follow(store, [trained(1)], note=note.encode())
    (line, *_) = [line for line in capsys.readouterr().out.splitlines() if "weight" in line]
    assert line == f"[pretrain] {note.splitlines()[0]} ({store.location}/{START_NOTE} names them)"
    assert store.read(START_NOTE).decode() == note


def test_workers_that_go_on_after_a_loss_say_from_where(store, capsys):
    """The first attempt's note is still there when the loss is seen."""
    callback = OutboxCallback(store.outbox, UID)
    with (
        Lease(store) as lease,
        StatusFile(store, lease, "pretrain", 400, "steps", "sqlite:////m.db") as status,
        Progress(store, UID, "pretrain", 400, ("val/top1",), status) as progress,
    ):
        store.write(START_NOTE, b"random weights (seed 0)")
        callback.after_report(None, [{"records": [trained(1)], "node": NODE}], None)
        progress._print_new()
        add_event(store.local / ATTEMPTS, Lost(time.time(), {"1": "killed"}))
        progress._print_new()
        store.write(START_NOTE, b"resumed at step 1")
        progress._print_new()
    lines = [line for line in capsys.readouterr().out.splitlines() if "resumed" in line or "random" in line]
    assert lines == ["[pretrain] random weights (seed 0)", "[pretrain] resumed at step 1"]


def test_an_evaluation_shows_what_matters_most_and_the_files_have_the_rest(store, capsys):
    values = {"box_ap": 0.5, "box_ap50": 0.6, "box_ap75": 0.4, "box_ap_small": 0.0, "mask_ap": 0.3, "mask_ap50": 0.35,
              "bad_samples": 3.0, "samples": 400.0, "is_best": 1.0, "box_ap/cat": 0.5}  # fmt: skip
    record = {"step": 8, "time_ms": now_ms(), "metrics": {f"val/{name}": value for name, value in values.items()}}
    follow(store, [record], metrics=task_info("detection").metrics_by_interest)
    line = "step 8/400  evaluation: box_ap 0.5000, mask_ap 0.3000, box_ap50 0.6000, box_ap75 0.4000, bad_samples 3.0000"
    assert f"[pretrain] {line}  (best so far)\n" in capsys.readouterr().out
    assert set(record["metrics"]) <= set(json.loads((store.local / METRICS).read_text()))


def test_a_resumed_run_still_knows_its_best(store):
    follow(store, [evaluated(4, 0.5, True)])
    status = follow(store, [evaluated(8, 0.25, False)])
    assert status.best == Best("val/top1", 0.5, 4)


def test_metrics_that_cannot_be_written_end_nothing_and_are_said(store, capsys):
    (store.local / METRICS).mkdir()
    follow(store, [evaluated(4, 0.5, True)], [evaluated(8, 0.6, True)])
    out = capsys.readouterr().out
    assert "were not written" in out and "step 8/400" in out


def test_a_terminal_has_one_live_line_and_a_job_has_none(monkeypatch):
    out = Terminal()
    lines = Console("pretrain", out)
    lines.show("step 3/400")
    lines.say("evaluation")
    lines.show("step 4/400")
    lines.close()
    text = out.getvalue()
    assert "\r[pretrain] step 3/400" in text and "[pretrain] evaluation\n" in text
    assert "step 3/400\n" not in text, "the live line must not stay"
    monkeypatch.setenv(JOB_VARIABLE, json.dumps({"metadata": {"job_submission_id": "raysubmit_1"}}))
    assert not Console("pretrain", Terminal()).is_live
    plain = io.StringIO()
    lines = Console("pretrain", plain)
    lines.show("step 3/400")
    lines.say("evaluation")
    assert plain.getvalue() == "[pretrain] evaluation\n"


def clock(monkeypatch):
    """Seconds that pass as the test says."""
    now = [100.0]
    monkeypatch.setattr(console.time, "monotonic", lambda: now[0])
    return now


def test_what_is_waited_for_is_said_from_time_to_time(monkeypatch):
    out, now = io.StringIO(), clock(monkeypatch)
    waiting = WaitReporter(Console("pretrain", out), "the workers")
    for _ in range(80):  # half a second each
        waiting.update()
        now[0] += 0.5
    waiting.begin("news since step 2/9", quiet_s=60.0)
    for _ in range(240):
        waiting.update()
        now[0] += 0.5
    assert out.getvalue().splitlines() == [
        "[pretrain] waiting for the workers: 15 s",
        "[pretrain] waiting for the workers: 30 s",
        "[pretrain] waiting for news since step 2/9: 60 s",
    ]


def test_a_terminals_live_line_counts_the_seconds(monkeypatch):
    out, now = Terminal(), clock(monkeypatch)
    waiting = WaitReporter(Console("pretrain", out), "the workers")
    now[0] += 7
    waiting.update()
    assert out.getvalue().endswith("\r[pretrain] waiting for the workers: 7 s") and "\n" not in out.getvalue()


def test_a_start_and_a_silent_training_are_not_silent(store, capsys, monkeypatch):
    monkeypatch.setattr(console, "WAIT_S", 0.0)
    monkeypatch.setattr(progress, "SILENT_S", 0.0)
    monkeypatch.setattr(progress, "POLL_S", 0.01)

    def report(records):
        OutboxCallback(store.outbox, UID).after_report(None, [{"records": records, "node": NODE}], None)

    with (
        Lease(store) as lease,
        StatusFile(store, lease, "pretrain", 9, "steps", "sqlite:////m.db") as status,
        Progress(store, UID, "pretrain", 9, ("val/top1",), status),
    ):
        said = ""
        for event, expected in (
            (lambda: None, progress.WORKERS),
            (lambda: store.write(START_NOTE, b"random weights"), "the first step"),
            (lambda: report([trained(2)]), "news since step 2/9"),
        ):
            event()
            deadline = time.monotonic() + 20
            while f"[pretrain] waiting for {expected}: 0 s\n" not in said and time.monotonic() < deadline:
                time.sleep(0.01)
                said += capsys.readouterr().out
            assert f"[pretrain] waiting for {expected}: 0 s\n" in said


def test_a_stalled_training_is_notified_once_until_there_is_news(store, monkeypatch):
    """Silence that is ordinary for this training, such as a long evaluation, is no stall the next time."""
    monkeypatch.setattr(progress, "STALLED_S", 0.2)
    monkeypatch.setattr(progress, "POLL_S", 0.01)
    heard = []

    class Listener:
        def record(self, *event):
            heard.append((time.monotonic(), *event))

    def wait_for(count):
        deadline = time.monotonic() + 20
        while len(heard) < count and time.monotonic() < deadline:
            time.sleep(0.01)

    def report(records):
        OutboxCallback(store.outbox, UID).after_report(None, [{"records": records, "node": NODE}], None)

    with (
        Lease(store) as lease,
        StatusFile(store, lease, "pretrain", 9, "steps", "sqlite:////m.db") as status,
        Progress(store, UID, "pretrain", 9, ("val/top1",), status, Listener()),
    ):
        wait_for(1)
        report([evaluated(2, 0.5, True)])
        silent = time.monotonic()
        wait_for(2)
        time.sleep(0.1)
    assert [event[1:] for event in heard] == [("stalled", None, None), ("stalled", "val/top1", 0.5)]
    assert heard[1][0] - silent > 0.5, "three times the first silence"


def test_a_call_that_takes_long_is_named_while_it_lasts(capsys, monkeypatch):
    monkeypatch.setattr(console, "WAIT_S", 0.0)
    monkeypatch.setattr(console, "LIVE_S", 0.01)
    said = ""
    with say_while_waiting("segment", "MLflow"):
        deadline = time.monotonic() + 20
        while "waiting" not in said and time.monotonic() < deadline:
            time.sleep(0.01)
            said += capsys.readouterr().out
    assert said.startswith("[segment] waiting for MLflow: 0 s\n")
    capsys.readouterr()
    time.sleep(0.05)
    assert capsys.readouterr().out == "", "it has ended"


def test_the_rest_is_reckoned_from_this_attempts_steps_only():
    eta = EtaEstimator(1000)
    start = now_ms() + 1000
    eta.add(90, start - 10**8)  # rode along in a checkpoint of the attempt before
    eta.add(100, start)
    assert eta.format(100) == ""
    eta.add(110, start + 20_000)
    assert eta.format(110) == "ETA 29.7 min"


def test_the_rest_is_reckoned_by_the_work_of_its_steps():
    """Ten steps of half the work in 20 s; of the other 990 steps all but 90 have twice that."""
    start = now_ms()
    eta = EtaEstimator(1000, start, lambda step: step / 2 if step <= 100 else 50 + step - 100)
    eta.add(0, start)
    eta.add(10, start + 20_000)
    assert eta.format(10) == f"ETA {format_duration((900 + 45) * 4)}"


@pytest.mark.parametrize(("seconds", "said"), [(0.4, "0 s"), (89, "89 s"), (90, "1.5 min"), (5400, "1 h 30 min")])
def test_durations_are_for_people(seconds, said):
    assert format_duration(seconds) == said
