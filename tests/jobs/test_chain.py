"""In which order stages run, and which run beside each other."""

import threading
from pathlib import Path

import pytest

from scalablevit.config.loading import load_recipe
from scalablevit.jobs import chain
from scalablevit.jobs.chain import groups, run_group
from scalablevit.jobs.cluster import fit_together
from scalablevit.jobs.resolve import resolve
from scalablevit.jobs.stage import Job

TINY = Path(__file__).parents[1] / "end_to_end" / "tiny.yaml"


@pytest.fixture(scope="module")
def stages(tmp_path_factory):
    return resolve(load_recipe(TINY), tmp_path_factory.mktemp("root"))


def names(found):
    return [[stage.name for stage in group] for group in found]


def test_fine_tunings_run_beside_each_other_when_there_is_room(stages):
    assert names(groups(stages, lambda group: True)) == [["pretrain"], ["segment", "detect"]]


def test_without_room_they_follow_each_other(stages):
    assert names(groups(stages, lambda group: len(group) == 1)) == [["pretrain"], ["segment"], ["detect"]]


def test_room_is_counted_worker_by_worker(stages):
    segment, detect = stages[1].stage, stages[2].stage  # two workers of half a CPU each
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
