"""In which order stages run, and which run beside each other."""

import shlex
import signal
import sys
import threading
import time
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import pytest

from scalablevit.cli.tree import parse
from scalablevit.config.loading import load_recipe
from scalablevit.pipeline import chain
from scalablevit.pipeline.chain import group_stages, run_group
from scalablevit.pipeline.cluster import fit_together
from scalablevit.pipeline.export_weights import time_profile
from scalablevit.pipeline.resolve import resolve
from scalablevit.pipeline.stage import Job
from scalablevit.report.collect import gather
from scalablevit.run_files import OUTBOX, REPORT
from scalablevit.runs import session, signals
from scalablevit.runs.result import StageResult
from scalablevit.runs.status import read_status
from scalablevit.tracking.outbox import read_lines
from scalablevit.tracking.records import MetricsRecord
from scalablevit.training.attempt_events import Lost, StartupTimings, Submitted
from scalablevit.training.worker_result import TrainSummary

TINY = Path(__file__).parents[1] / "end_to_end" / "tiny.yaml"
RESULT = StageResult(
    name="pretrain", run_name="run", uid="0" * 32, folder="/runs/run", metric="val/top1", value=0.5, step=300,
    metrics={}, classes=("a", "b", "c"), images_per_s=1.0, minutes=1.0, reason="finished", checkpoint="",
    weights_sha256="", registered_as="tiny-pretrain", lineage={}, last_value=0.25, last_step=400,
)  # fmt: skip
SUMMARY = TrainSummary(
    step=400, best_value=0.5, best_step=300, best_metrics={}, last_metrics={}, seconds=100.0,
    spent={"data": 20.0, "checkpoint": 5.0, "evaluation": 50.0},
)  # fmt: skip


@pytest.fixture(scope="module")
def stages(tmp_path_factory):
    return resolve(load_recipe(TINY), tmp_path_factory.mktemp("root"))


def names(found):
    return [[stage.name for stage in group] for group in found]


def test_fine_tunings_run_beside_each_other_when_there_is_room(stages):
    assert names(group_stages(stages, lambda group: True)) == [["pretrain"], ["segment", "detect"]]


def test_without_room_they_follow_each_other(stages):
    assert names(group_stages(stages, lambda group: len(group) == 1)) == [["pretrain"], ["segment"], ["detect"]]


def test_room_is_counted_worker_by_worker():
    halves = ["cluster.cpus_per_worker=0.5", "cluster.workers=2"]
    segment, detect = list(load_recipe(TINY, halves).stages.values())[1:]
    assert fit_together([segment, detect], [{"CPU": 2.0}])
    assert fit_together([segment, detect], [{"CPU": 1.0}, {"CPU": 1.0}])
    assert not fit_together([segment, detect], [{"CPU": 1.9}])
    assert not fit_together([segment, detect], [{"CPU": 0.9}] * 3), "half CPUs of two nodes make no worker"
    on_gpu = segment.model_copy(update={"cluster": segment.cluster.model_copy(update={"gpus_per_worker": 1.0})})
    assert not fit_together([on_gpu], [{"CPU": 8.0, "GPU": 1.0}])
    assert fit_together([on_gpu, detect], [{"CPU": 1.0}, {"CPU": 1.0, "GPU": 2.0}])


def test_a_failure_lets_the_others_of_its_group_finish(stages, monkeypatch, tmp_path):
    failed, finished = threading.Event(), []

    def run_stage(job, stage, earlier):
        if stage.name == "segment":
            failed.set()
            raise RuntimeError("segment broke")
        assert failed.wait(timeout=20)
        finished.append(stage.name)

    monkeypatch.setattr(chain, "run_stage", run_stage)
    with pytest.raises(RuntimeError, match="segment broke"):
        run_group(Job(tmp_path, "tiny", "0" * 32, "sqlite://"), stages[1:], {})
    assert finished == ["detect"]


def test_an_interrupt_waits_until_all_stages_have_recorded_their_end(stages, monkeypatch, tmp_path):
    """The signal comes while the main thread waits: until 3.13, Python then takes a thread that it joins for ended."""
    disconnected, recorded = threading.Event(), []

    def run_stage(job, stage, earlier):
        if stage.name == "segment":
            time.sleep(0.3)  # the main thread waits by then
            signal.pthread_kill(threading.main_thread().ident, signal.SIGINT)
            assert disconnected.wait(timeout=20)
            time.sleep(0.3)
        recorded.append((stage.name, job.stopping.is_set()))

    monkeypatch.setattr(chain, "run_stage", run_stage)
    monkeypatch.setattr(chain.cluster, "disconnect", disconnected.set)
    with pytest.raises(KeyboardInterrupt):
        run_group(Job(tmp_path, "tiny", "0" * 32, "sqlite://"), stages[1:], {})
    assert recorded == [("detect", False), ("segment", True)]


@pytest.mark.parametrize("sent", [1, 2])
def test_the_first_signal_lets_trainings_save_and_the_second_ends_at_once(stages, monkeypatch, tmp_path, sent):
    disconnected, ended = threading.Event(), []
    main = threading.main_thread().ident

    def run_stage(job, stage, earlier):
        file = tmp_path / stage.name
        job.training.add(file)
        if stage.name == "segment":
            for _ in range(sent):
                time.sleep(0.2)
                signal.pthread_kill(main, signal.SIGTERM)
        while not (file.exists() if sent == 1 else disconnected.is_set()):
            time.sleep(0.01)
        ended.append(stage.name)
        raise KeyboardInterrupt

    monkeypatch.setattr(chain, "run_stage", run_stage)
    monkeypatch.setattr(chain.cluster, "disconnect", disconnected.set)
    job = Job(tmp_path, "tiny", "0" * 32, "sqlite://")
    with pytest.raises(KeyboardInterrupt):
        run_group(job, stages[1:], {})
    assert sorted(ended) == ["detect", "segment"] and job.stopping.is_set()
    assert disconnected.is_set() == (sent == 2)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_only_a_sigterm_limits_the_time_to_save(stages, monkeypatch, tmp_path, number):
    """Its sender kills soon; a person sends Ctrl-C once more."""
    disconnected = threading.Event()

    def run_stage(job, stage, earlier):
        job.training.add(tmp_path / "stop")
        time.sleep(0.3)  # the main thread waits by then
        signal.pthread_kill(threading.main_thread().ident, number)
        assert disconnected.wait(timeout=20 if number == signal.SIGTERM else 1.5) == (number == signal.SIGTERM)
        raise KeyboardInterrupt

    monkeypatch.setattr(chain, "run_stage", run_stage)
    monkeypatch.setattr(chain.cluster, "disconnect", disconnected.set)
    monkeypatch.setattr(signals, "GRACE_S", 0.2)
    with pytest.raises(KeyboardInterrupt):
        run_group(Job(tmp_path, "tiny", "0" * 32, "sqlite://"), stages[:1], {})
    assert disconnected.is_set() == (number == signal.SIGTERM)


def test_trainings_of_which_one_cannot_be_told_to_save_are_ended(stages, monkeypatch, tmp_path):
    """Its folder is gone, or its disk full."""
    disconnected = threading.Event()
    told = tmp_path / "told"

    def run_stage(job, stage, earlier):
        job.training.update({tmp_path / "gone" / "stop", told})
        time.sleep(0.3)  # the main thread waits by then
        signal.pthread_kill(threading.main_thread().ident, signal.SIGINT)
        assert disconnected.wait(timeout=20)

    monkeypatch.setattr(chain, "run_stage", run_stage)
    monkeypatch.setattr(chain.cluster, "disconnect", disconnected.set)
    with pytest.raises(KeyboardInterrupt):
        run_group(Job(tmp_path, "tiny", "0" * 32, "sqlite://"), stages[:1], {})
    assert disconnected.is_set() and told.exists()


def test_whatever_ends_the_wait_lets_the_stages_record_their_end(stages, monkeypatch, tmp_path):
    disconnected, ended = threading.Event(), []

    def run_stage(job, stage, earlier):
        assert disconnected.wait(timeout=20)
        ended.append(stage.name)

    def wait(events, ask):
        raise OSError("broken")

    monkeypatch.setattr(chain, "run_stage", run_stage)
    monkeypatch.setattr(chain, "wait_saving_first", wait)
    monkeypatch.setattr(chain.cluster, "disconnect", disconnected.set)
    with pytest.raises(OSError, match="broken"):
        run_group(Job(tmp_path, "tiny", "0" * 32, "sqlite://"), stages[:1], {})
    assert ended == ["pretrain"]


@pytest.mark.parametrize(
    ("error", "state"), [(None, "finished"), (KeyboardInterrupt, "killed"), (RuntimeError, "failed")]
)
def test_the_jobs_own_status_follows_its_stages(stages, monkeypatch, tmp_path, error, state):
    """MLflow refuses connections, and is not waited for."""
    address = "http://127.0.0.1:9"
    for name in ("DRAIN_S", "FAILED_DRAIN_S"):
        monkeypatch.setattr(session, name, 0)
    monkeypatch.setattr(chain.cluster, "has_room", lambda group: len(group) == 1)
    seen = []

    def run_stage(job, stage, earlier):
        (found,) = (read_status(path.parent) for path in tmp_path.glob("runs/*/status.json"))
        seen.append((found.state, found.stage, found.step, found.total))
        if error and stage.name == "segment":
            raise error
        return RESULT

    monkeypatch.setattr(chain, "run_stage", run_stage)
    recipe = load_recipe(TINY, [f"tracking.uri={address}"])
    away = [replace(each, stage=recipe.stages[each.name]) for each in stages[:2]]
    with pytest.raises(error) if error else nullcontext():
        chain.run_chain(recipe, away, tmp_path)
    assert seen == [("running", "pretrain", 0, 2), ("running", "segment", 1, 2)]
    (ended,) = (read_status(path.parent) for path in tmp_path.glob("runs/*/status.json"))
    assert (ended.state, ended.unit, ended.step) == (state, "stages", 1 if error else 2)
    assert len(list(tmp_path.glob(f"runs/*/{REPORT}"))) == (state != "killed")
    (folder,) = (path.parent for path in tmp_path.glob("runs/*/status.json"))
    assert [part.name for part in gather(folder).stages] == [], "no stage wrote anything, and the job is known"
    metrics = [each.record.metrics for each in read_lines(folder / OUTBOX) if isinstance(each.record, MetricsRecord)]
    assert metrics == [{f"{name}/top1": 0.5} for name in (["pretrain"] if error else ["pretrain", "segment"])]


def test_the_parts_of_a_stages_time_add_up_to_the_wall_time_of_its_jobs():
    """Ray's 27 s before the workers' code count; a killed job ends when its status was last written."""
    one = [Submitted(1000.0, None),
           StartupTimings(1027.0, first_step=1036.0)]  # fmt: skip
    profile = time_profile(SUMMARY, one, 1000 + 36 + 150 + 2)
    assert profile["start"] == 36 and profile["other"] == 2 and sum(profile.values()) == 188
    two = [*one, Submitted(9000.0, 1086.0),
           StartupTimings(9003.0, first_step=9012.0)]  # fmt: skip
    profile = time_profile(SUMMARY, two, 9120.0)
    assert profile["start"] == 48 and sum(profile.values()) == 86 + 120
    skewed = [Submitted(1030.0, None), one[1]]
    assert time_profile(SUMMARY, skewed, 1190.0)["start"] == 9
    earlier_version = time_profile(SUMMARY, one[1:], 1190.0)
    assert earlier_version["start"] == 9 and earlier_version["other"] == 0


def test_the_table_sets_best_against_last_and_says_where_the_time_went(tmp_path):
    attempts = [Submitted(0.0, None),
                StartupTimings(10.0, first_step=20.0), Lost(90.0),
                StartupTimings(100.0, first_step=120.0)]  # fmt: skip
    result = replace(RESULT, profile=time_profile(SUMMARY, attempts, 240.0))
    lines = chain.format_results([result], tmp_path, "http://someone:canary-4711@tracking.example").splitlines()
    assert lines[2].split()[:6] == ["pretrain", "top1", "0.5000", "300", "0.2500", "400"]
    assert lines[3] == ("time of pretrain: start 50 s (21 %), data 20 s (8 %), step 75 s (31 %), "
                        "evaluation 50 s (21 %), checkpoint 5 s (2 %), other 40 s (17 %)")  # fmt: skip
    assert "canary-4711" not in "\n".join(lines)
    brief = {**result.profile, "checkpoint": 0.4}
    assert "checkpoint" not in chain.format_results([replace(result, profile=brief)], tmp_path, "sqlite:////m.db")
    earlier = replace(result, last_value=None, last_step=0, profile={})
    assert chain.format_results([earlier], tmp_path, "sqlite:////m.db").splitlines()[2].split()[4:6] == ["-", "-"]


def test_the_next_commands_are_complete_and_understood(tmp_path, monkeypatch):
    (tmp_path / "scalablevit").touch()
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    registered = replace(RESULT, version="3")
    shown = chain.format_results([registered], tmp_path / "my root", "http://tracking.example").partition("next:\n")[2]
    commands = [line.partition(f"{tmp_path}/scalablevit ")[2] for line in shown.splitlines() if "/scalablevit " in line]
    verbs = {}
    for verb, *arguments in map(shlex.split, commands):
        verbs[verb] = parse(verb, arguments)
        assert verbs[verb].root == str(tmp_path / "my root")
    assert verbs["predict"].model == verbs["evaluate"].model == "models:/tiny-pretrain/3"
    assert verbs["promote"].name == "tiny-pretrain" and list(verbs) == ["predict", "evaluate", "promote", "runs"]
    assert verbs["predict"].overrides == verbs["promote"].overrides == ["tracking.uri=http://tracking.example"]
    serve = f"{tmp_path}/mlflow models serve -m models:/tiny-pretrain/3 --env-manager local"
    assert f" PATH={tmp_path}:$PATH MLFLOW_TRACKING_URI=http://tracking.example {serve}" in shown


def test_a_model_that_has_learned_nothing_is_not_offered_for_promotion(tmp_path):
    chance = replace(RESULT, version="3", value=1 / 3)
    shown = chain.format_results([chance], tmp_path, "sqlite:////m.db")
    assert "pretrain: top1 0.3333 is no better than chance" in shown and "promote" not in shown
    assert "promote" in chain.format_results([replace(chance, value=0.34)], tmp_path, "sqlite:////m.db")


def test_no_next_command_is_of_another_run_s_version(tmp_path):
    """Its own may wait for MLflow, and after an earlier job's end another run may have become the candidate."""
    waiting = chain.format_results([RESULT], tmp_path, "sqlite:////m.db")
    assert "not registered yet" in waiting and "@candidate" not in waiting and "promote" not in waiting
    assert f" run --root {tmp_path}" in waiting
    done = chain.format_results([replace(RESULT, version="1", skipped=True)], tmp_path, "sqlite:////m.db")
    assert "tiny-pretrain v1\n" in done and "models:/tiny-pretrain/1 " in done and "@candidate" not in done
