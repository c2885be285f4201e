"""The platform's benchmark: what it computes from records and times, and its parts without Ray at the smallest size."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time

import psutil
import pytest
from benchmarks import bare_ddp
from benchmarks.commands import CommandFailed, end, local_head, run_beside
from benchmarks.parts import Part, part_options, run_parts
from benchmarks.rates import WINDOW, platform_rates, ratio, read_rates
from benchmarks.ray_jobs import PARTS, control_metrics, start_metrics, start_parts, step_metrics
from benchmarks.rows import Row
from benchmarks.toy_stage import recipe, stage_of, write_pictures
from benchmarks.worker_costs import (
    checkpoint_metrics,
    checkpoint_times,
    evaluation_times,
    tracking_metrics,
    tracking_times,
)

from scalablevit.config.errors import UserError
from scalablevit.training.pace import Pace


def measured(rows: list[Row]) -> dict[str, float | None]:
    return {row.name: row.measured for row in rows}


# --- parts ---


def test_a_part_that_fails_is_told_and_the_others_are_measured(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr("benchmarks.rows.RESULTS", tmp_path)
    handlers = {}
    monkeypatch.setattr("signal.signal", handlers.__setitem__)

    def broken(options, settings):
        raise ValueError("no such thing\nand more")

    def sound(options, settings):
        settings["rounds"] = 7
        return [Row("a metric", 2.0, 3.0, "another")]

    def without_data(options, settings):
        raise UserError("no folder", where="there", fix="name another")

    parts = (
        Part("broken", "a broken metric", 9, 1, broken),
        Part("sound", "a metric", 3, 2, sound),
        Part("data", "a metric of data", 3, 2, without_data),
    )
    assert run_parts("made", parts, part_options("", parts).parse_args(["--quick"])) == 1
    said, complained = capsys.readouterr()
    assert "Traceback" in complained and complained.endswith("error: there: no folder\n  fix: name another\n")
    assert "made broken: about 1.0 min" in said and "made sound: about 2.0 min" in said
    results = {each["benchmark"]: each for each in (json.loads(path.read_text()) for path in tmp_path.iterdir())}
    assert results["made-broken"]["rows"][0]["verdict"] == "not run"
    assert results["made-broken"]["rows"][0]["note"] == "ValueError: no such thing"
    assert results["made-data"]["rows"][0]["note"] == "there: no folder"
    assert results["made-sound"]["rows"][0]["verdict"] == "met"
    assert results["made-sound"]["settings"]["rounds"] == 7
    assert run_parts("made", parts, part_options("", parts).parse_args(["--only", "sound"])) == 0
    with pytest.raises(SystemExit):  # what is to be stopped at the end is stopped
        handlers[signal.SIGTERM](signal.SIGTERM, None)


# --- commands ---


def test_a_command_is_ended_with_what_it_started():
    parent = (
        "import subprocess, time\n"
        "print(subprocess.Popen(['sleep', '600'], start_new_session=True).pid, flush=True)\n"
        "time.sleep(600)"
    )
    process = subprocess.Popen([sys.executable, "-c", parent], stdout=subprocess.PIPE)
    child = psutil.Process(int(process.stdout.readline()))
    end(process)
    assert process.poll() is not None
    with contextlib.suppress(psutil.NoSuchProcess):
        while child.status() != psutil.STATUS_ZOMBIE:  # if it lives on, the test's own limit ends this
            time.sleep(0.05)


def test_a_command_has_a_limit(tmp_path):
    with pytest.raises(CommandFailed, match="slow did not end in time"):
        run_beside({"slow": ["sleep", "600"]}, tmp_path, limit_s=0)


def test_the_end_of_a_failed_commands_output_is_told_and_the_other_is_ended(tmp_path):
    commands = {
        "bad": [sys.executable, "-c", "import sys; sys.exit('what went wrong')"],
        "other": [sys.executable, "-c", "import time; time.sleep(600)"],
    }
    with pytest.raises(CommandFailed, match=r"bad ended with code 1; .*\n.*what went wrong"):
        run_beside(commands, tmp_path, limit_s=300)
    assert not [each for each in psutil.Process().children() if "time.sleep(600)" in each.cmdline()[-1]]


HEAD = """
import pathlib, sys
with pathlib.Path(sys.argv[-1], "calls").open("a") as file:
    print(sys.argv[1], file=file)
if sys.argv[1] == "env":
    print("unset RAY_AUTH_TOKEN\\nexport RAY_ADDRESS=127.0.0.1:1\\nexport NO_PROXY='a b'")
"""
"""Says what infra/head.py would, and notes what it was asked for."""


def test_the_head_is_stopped_whatever_happens_beside_it(tmp_path, monkeypatch):
    (tmp_path / "head.py").write_text(HEAD)
    monkeypatch.setattr("benchmarks.commands.HEAD", [sys.executable, str(tmp_path / "head.py")])
    monkeypatch.setenv("RAY_AUTH_TOKEN", "another head's")
    seen: dict[str, str] = {}

    def work() -> None:
        with local_head(tmp_path / "root") as environment:
            seen.update(environment)
            raise ValueError("something went wrong")

    with pytest.raises(ValueError, match="went wrong"):
        work()
    assert (seen["RAY_ADDRESS"], seen["NO_PROXY"], seen["PATH"]) == ("127.0.0.1:1", "a b", os.environ["PATH"])
    assert "RAY_AUTH_TOKEN" not in seen
    assert (tmp_path / "root" / "calls").read_text().split() == ["start", "env", "stop"]


# --- arithmetic ---


def test_rates_are_those_of_the_log_points_after_the_first_window(tmp_path):
    lines = [{"step": step, "train/images_per_s": float(step)} for step in (1, 10, 20, 40, 50)]
    lines += [{"step": 50, "val/top1": 0.5}]
    assert platform_rates(lines) == [40.0, 50.0]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert read_rates(tmp_path) == [40.0, 50.0]
    assert ratio([3.0, 300.0, 2.0], [2.0, 1.0, 4.0]) == 1.5


def test_step_rows_compare_two_workers_with_torchrun_and_with_one():
    rows = step_metrics({"torchrun": [100.0, 101, 99], "two workers": [97.0, 97, 97], "one worker": [50.0, 49, 51]})
    assert measured(rows) == {"step through Ray Train": 0.97, "1 -> 2 workers, one thread each": 1.94}
    assert [row.verdict for row in rows] == ["missed", "met"]


def test_the_parts_of_a_start_sum_up_to_the_first_step(tmp_path):
    reached = {"entered": 107.0, "imported": 109.0, "opened": 109.5, "built": 111.0, "first_step": 111.25}
    lines = [{"event": "lost", "time": 1.0, "ranks": {}}, {"event": "started", "world": 2, "from_step": 0, **reached}]
    (tmp_path / "attempts.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (tmp_path / "environment.json").write_text("{}")
    os.utime(tmp_path / "environment.json", (103.0, 103.0))
    parts = start_parts(100.0, tmp_path)
    assert parts == dict(zip(PARTS, (3.0, 4.0, 2.0, 0.5, 1.5, 0.25), strict=True))
    rows = start_metrics([parts, parts, {**parts, "Ray": 40.0}], [9.0, 7.5, 7.0])
    assert rows[0].measured == 1.5 and rows[0].verdict == "met"
    assert measured(rows[1:]) == {f"start, of it: {name}": seconds for name, seconds in parts.items()}


def test_shares_of_checkpoints_and_tracking():
    seconds = {"plain": [5.0, 5.1, 4.9], "saving": [6.2, 6.1, 9.0]}
    rows = checkpoint_metrics([0.3, 0.9, 0.2], seconds, 2**29)
    shares = {"checkpoint, loop held": 0.5, "checkpoint, with steps beside the write": 2.0}
    assert measured(rows) == pytest.approx(shares)
    assert "512 MiB" in rows[0].baseline
    assert measured(tracking_metrics([0.002, 0.008], 5.0, 20)) == pytest.approx({"tracking, outbox calls": 0.2})


def test_the_control_planes_share_counts_reports_and_looks_for_a_notice(monkeypatch):
    monkeypatch.setattr("benchmarks.ray_jobs.pace_of", lambda world: Pace(0.5, report_s=4.0, notice_s=2.0))
    rows = control_metrics({64: (0.01, 0.1), 256: (0.02, 0.2), 1000: (0.08, 0.4)})
    assert [row.measured for row in rows] == pytest.approx([0.75, 1.5, 6.0])
    assert [row.verdict for row in rows] == ["met", "", ""]
    assert "a meeting holds them 80 ms" in rows[2].baseline and "in 400 ms every 0.5 s" in rows[2].note


# --- the parts without Ray, at the smallest size ---


def test_a_save_holds_the_loop_and_all_steps_are_counted():
    held, seconds, size = checkpoint_times("scalablevit_tiny", 32, 2, 2)
    assert len(held) == 2 and all(each > 0 for each in held)
    assert {way: len(taken) for way, taken in seconds.items()} == {"plain": 2, "saving": 2}
    assert size > 2**20


def test_every_report_of_a_training_is_recorded():
    spent, seconds = tracking_times(3, pictures=8)
    assert len(spent) >= 2 and 0 < sum(spent) < seconds


def test_evaluation_and_inference_see_all_pictures():
    seconds = evaluation_times("scalablevit_tiny", 32, 9, 1)
    assert {way: len(taken) for way, taken in seconds.items()} == {"evaluation": 1, "inference": 1}


def test_bare_ddp_trains_the_stage(tmp_path, monkeypatch):
    """As torchrun starts it, with one process."""
    write_pictures(tmp_path / "data", train=8, val=8, side=32)
    sections = recipe(tmp_path / "data", 1, 2 * WINDOW)
    sections["training"]["global_batch_size"] = 2
    sections["data"] |= {"image_size": 32, "eval_resize": 32}
    (tmp_path / "stage.json").write_text(stage_of(sections).model_dump_json())
    monkeypatch.setattr(sys, "argv", ["", str(tmp_path / "stage.json"), str(tmp_path / "bare.json")])
    for name, value in (("MASTER_ADDR", "127.0.0.1"), ("MASTER_PORT", "0"), ("RANK", "0"), ("WORLD_SIZE", "1")):
        monkeypatch.setenv(name, value)
    assert bare_ddp.main() == 0
    (rate,) = json.loads((tmp_path / "bare.json").read_text())["rates"]
    assert rate > 0
