"""The check of room on a cluster with an autoscaler: what counts, what is waited for, and for how long."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from scalablevit.config.errors import UserError, UserErrors
from scalablevit.config.loading import load_recipe
from scalablevit.pipeline import cluster
from scalablevit.pipeline.resolve import ResolvedStage, resolve
from scalablevit.training.ray_internals import Node
from scalablevit.training.room import Autoscaler, NodeType

TINY = Path(__file__).parents[1] / "end_to_end" / "tiny.yaml"
ONE_CPU = ("cluster.cpus_per_worker=1",)


class Cluster:
    """A head without CPUs, and an autoscaler of nodes of one CPU: those that are asked for come one by one.

    Args:
        monkeypatch: to put it in the place of Ray.
        most: how many nodes the autoscaler may start; None: nobody says so.
        come: how many really come.
        each_s: seconds until each comes.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch, most: int | None, come: int = 0, each_s: float = 60.0) -> None:
        self.now = 0.0
        self.asked: list[int] = []
        self._come, self._each_s = come, each_s
        self._asked_at: float | None = None
        self._there = 0
        kinds = (NodeType("small", {"CPU": 1.0}, most or 0),)
        monkeypatch.setattr(cluster, "alive_nodes", self.alive_nodes)
        monkeypatch.setattr(cluster, "find_autoscaler", lambda: None if most is None else Autoscaler(kinds))
        monkeypatch.setattr(cluster, "ask_for_workers", self.ask)
        monkeypatch.setattr(cluster, "time", self)

    def alive_nodes(self) -> list[Node]:
        if self._asked_at is not None:
            self._there = max(self._there, min(self._come, int((self.now - self._asked_at) // self._each_s)))
        small = [Node(f"n{number}", {"CPU": 1.0}, "10.0.0.2", "small") for number in range(self._there)]
        return [Node("head", {"node:__internal_head__": 1.0}, "10.0.0.1"), *small]

    @contextmanager
    def ask(self, stage: cluster.Stage) -> Iterator[None]:
        self.asked.append(cluster.least_workers(stage))
        self._asked_at = self.now
        try:
            yield
        finally:
            self.asked.append(0)

    def monotonic(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds


def stages(root: Path, *overrides: str) -> list[ResolvedStage]:
    return resolve(load_recipe(TINY, [*ONE_CPU, *overrides]), root, ["pretrain"])


def wait(found: list[ResolvedStage]) -> str:
    return cluster._await_nodes({f"stage {each.name}: ": each.stage for each in found})


def test_nodes_that_are_missing_are_asked_for_and_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    ray = Cluster(monkeypatch, 3, come=2)
    assert wait(stages(tmp_path, "cluster.workers=2")) == ""
    assert ray.asked == [2, 0], "what was asked for is taken back"
    assert ray.now == 120
    said = capsys.readouterr().out
    for number in (0, 1):
        assert (
            f"[cluster] stage pretrain: waiting for room: {number} of 2 workers; the autoscaler may start up to "
            "3 x small (1 CPU)"
        ) in said
    assert said.count("waiting for room") == 2, "said when it changes, else only every 15 s"
    assert wait(stages(tmp_path, "cluster.workers=2")) == "" and ray.asked == [2, 0], "they are there"


def test_an_elastic_stage_waits_for_its_fewest_workers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ray = Cluster(monkeypatch, 3, come=1)
    wait(stages(tmp_path, "cluster.workers=3", "cluster.min_workers=1"))
    assert ray.asked == [1, 0] and ray.now == 60


def test_the_wait_has_a_limit_and_says_what_came(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ray = Cluster(monkeypatch, 3, come=1)
    with pytest.raises(UserError) as caught:
        wait(stages(tmp_path, "cluster.workers=3", "cluster.wait_for_nodes_minutes=2"))
    assert caught.value.what == (
        "after 2 minutes the cluster has room for 1 of 3 workers (3 x 1 = 3 CPU asked, 1 there): of what the "
        "autoscaler may start (3 x small (1 CPU)) 1 node(s) came"
    )
    assert caught.value.where == "stage pretrain: cluster.wait_for_nodes_minutes"
    assert 120 < ray.now <= 122 and ray.asked == [3, 0]


def test_more_than_the_autoscaler_may_start_is_refused_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ray = Cluster(monkeypatch, 3, come=3)
    with pytest.raises(UserError) as caught:
        wait(stages(tmp_path, "cluster.workers=5"))
    assert caught.value.what == (
        "the cluster of 1 node(s), with all that its autoscaler may start (3 x small (1 CPU)), has room for 3 of 5 "
        "workers (5 x 1 = 5 CPU asked, 3 there)"
    )
    assert "set cluster.workers=3" in caught.value.fix
    with pytest.raises(UserErrors, match="segment"):
        wait(resolve(load_recipe(TINY, ["cluster.cpus_per_worker=2"]), tmp_path))
    assert ray.now == 0 and not ray.asked


def test_without_a_word_on_the_autoscaler_the_refusal_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Cluster(monkeypatch, None)
    wanted = stages(tmp_path, "cluster.workers=2")
    hint = wait(wanted)
    with pytest.raises(
        UserError, match=r"the cluster has room for 0 of 2 workers \(2 x 1 = 2 CPU asked, 0 there\)"
    ) as caught:
        cluster._check_fit(wanted, [], "the cluster", hint)
    assert "what an autoscaler of this cluster may start is not known here (SCALABLEVIT_NODE_TYPES" in caught.value.fix


def test_a_recipe_may_want_no_waiting(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ray = Cluster(monkeypatch, 3, come=3)
    unwilling = stages(tmp_path, "cluster.workers=2", "cluster.wait_for_nodes_minutes=0")
    assert wait(unwilling) == "" and not ray.asked
    assert not cluster.has_room(unwilling)
    assert cluster.count_copies(unwilling[0].stage) == 0


def test_a_signal_ends_the_wait(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ray = Cluster(monkeypatch, 3)

    def interrupted(_seconds: float) -> None:
        raise KeyboardInterrupt

    ray.sleep = interrupted  # type: ignore[method-assign]
    with pytest.raises(KeyboardInterrupt):
        wait(stages(tmp_path, "cluster.workers=2"))
    assert ray.asked == [2, 0]


def test_stages_in_parallel_and_trials_count_what_may_be_started(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Cluster(monkeypatch, 3)
    one = stages(tmp_path, "cluster.workers=1")
    assert cluster.has_room(one * 3) and not cluster.has_room(one * 4)
    assert cluster.count_copies(one[0].stage) == 3


def test_a_task_waits_for_one_node(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ray = Cluster(monkeypatch, 3, come=1)
    (found,) = stages(tmp_path, "cluster.workers=3")
    assert cluster.count_processes(found.stage) == 1
    assert ray.asked == [1, 0]
    assert cluster.count_processes(found.stage) == 1 and ray.asked == [1, 0]
