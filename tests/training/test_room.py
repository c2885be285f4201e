"""What an autoscaler may start besides the nodes that live, and what is asked of it; no Ray is started."""

import importlib
import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import ray
import ray.exceptions

from scalablevit.config.errors import TrainingFailed, UserError
from scalablevit.config.loading import load_recipe
from scalablevit.config.recipe import Stage
from scalablevit.training import launch, room
from scalablevit.training.ray_internals import Node
from scalablevit.training.room import Autoscaler, NodeType, format_types, parse_config

TINY = Path(__file__).parents[1] / "end_to_end" / "tiny.yaml"
SMALL = NodeType("small", {"CPU": 1.0}, 3)
BIG = NodeType("big", {"CPU": 8.0, "GPU": 2.0}, 2)
HEAD = Node("h", {"CPU": 1.0, "node:__internal_head__": 1.0}, "10.0.0.1")


def node(kind: NodeType, label: str = "") -> Node:
    return Node("n", dict(kind.resources), "10.0.0.2", label)


def names(autoscaler: Autoscaler, living: Sequence[Node]) -> list[str]:
    return [kind.name for kind in autoscaler.startable(living)]


def stage(*overrides: str) -> Stage:
    return load_recipe(TINY, list(overrides)).stages["pretrain"]


@pytest.mark.parametrize(
    ("living", "most", "left"),
    [
        ([], None, ["big", "big", "small", "small", "small"]),
        ([HEAD], None, ["big", "big", "small", "small", "small"]),
        ([HEAD, node(BIG, "big"), node(SMALL, "small")], None, ["big", "small", "small"]),
        ([HEAD, node(SMALL)], None, ["big", "big", "small", "small"]),  # known by its resources
        ([HEAD, node(SMALL, "other")], None, ["big", "big", "small", "small", "small"]),  # of no type that it may start
        ([HEAD, *[node(SMALL, "small")] * 4], None, ["big", "big"]),  # more than the maximum
        ([], 3, ["big", "big", "small"]),
        ([HEAD, node(SMALL, "small")], 3, ["big", "big"]),
        ([HEAD, *[node(SMALL, "small")] * 3], 3, []),
    ],
)
def test_nodes_that_live_are_not_started_again(living: list[Node], most: int | None, left: list[str]) -> None:
    assert names(Autoscaler((SMALL, BIG), most), living) == left


def test_node_types_are_read_as_ray_reads_them() -> None:
    config = {
        "cluster_name": "x",
        "max_workers": 5,
        "head_node_type": "head",
        "available_node_types": {
            "head": {"resources": {"CPU": 4}, "node_config": {"a": 1}},
            "set": {"resources": {"CPU": 2}, "max_workers": 2},
            "unset": {"resources": {"CPU": 1}},
            "bare": {"max_workers": 1},
        },
    }
    found = parse_config(json.dumps(config), "here")
    assert {kind.name: kind.max_nodes for kind in found.types} == {"head": 0, "set": 2, "unset": 5, "bare": 1}
    assert found.max_nodes == 5
    assert parse_config("{available_node_types: {a: {resources: {CPU: 1}, max_workers: 1}}}", "").max_nodes is None


@pytest.mark.parametrize(
    "text", ["{", "7", "{}", "available_node_types: 1", "{available_node_types: {a: {max_workers: -1}}}"]
)
def test_another_form_is_refused(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6379")
    monkeypatch.setenv(room.NODE_TYPES, text)
    with pytest.raises(UserError, match="no configuration of Ray's autoscaler") as caught:
        room.find_autoscaler()
    assert caught.value.where == room.NODE_TYPES


def test_who_says_what_may_be_started(monkeypatch: pytest.MonkeyPatch) -> None:
    """The operator before the head; nobody where Ray was started by this process."""
    said = "{available_node_types: {%s: {resources: {CPU: 1}, max_workers: 1}}}"
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setenv(room.NODE_TYPES, said % "operator")
    monkeypatch.setattr(room, "_read_on_head", lambda: said % "head")
    assert room.find_autoscaler() is None
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6379")
    assert names(room.find_autoscaler() or Autoscaler(()), []) == ["operator"]
    monkeypatch.delenv(room.NODE_TYPES)
    assert names(room.find_autoscaler() or Autoscaler(()), []) == ["head"]
    monkeypatch.setattr(room, "_read_on_head", lambda: "")
    assert room.find_autoscaler() is None


def test_nodes_are_named_with_their_number_and_size() -> None:
    assert format_types([BIG, BIG, SMALL]) == "2 x big (8 CPU, 2 GPU), 1 x small (1 CPU)"
    assert format_types([]) == "nothing more"


def test_the_least_workers_are_asked_for_and_taken_back(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []
    module = importlib.import_module("ray.util.placement_group")  # as an attribute it is a function of that name
    monkeypatch.setattr(module, "placement_group", lambda bundles: asked.append(bundles) or "group")
    monkeypatch.setattr(module, "remove_placement_group", asked.append)
    monkeypatch.setattr(ray, "is_initialized", lambda: True)
    elastic = stage("cluster.workers=4", "cluster.min_workers=2", "cluster.cpus_per_worker=3")
    with room.ask_for_workers(elastic):
        assert asked == [[{"CPU": 3.0}] * 2]
    assert asked[1:] == ["group"]
    with room.ask_for_workers(stage("cluster.workers=1", "cluster.gpus_per_worker=1", "cluster.cpus_per_worker=1")):
        monkeypatch.setattr(ray, "is_initialized", lambda: False)
    assert asked[2:] == [[{"CPU": 1.0, "GPU": 1.0}]]


# --- workers that Ray Train could not place


@dataclass
class Clock:
    """Time that passes by waiting for a placement group, which has room after some seconds."""

    ready_s: float
    now: float = 0.0
    asked: int = 0
    then: Callable[[], None] = field(default=lambda: None)

    def monotonic(self) -> float:
        return self.now

    def wait(self, seconds: float) -> bool:
        self.now += seconds
        self.then()
        return self.now >= self.ready_s

    @contextmanager
    def ask(self, _stage: Stage) -> Iterator["Clock"]:
        self.asked += 1
        yield self
        self.asked -= 1


@pytest.fixture
def waiting(monkeypatch: pytest.MonkeyPatch) -> Callable[..., tuple[Clock, Callable[..., bool]]]:
    """A clock, and the wait for nodes of an autoscaler that may start the given ones."""

    def wait_with(ready_s: float, *kinds: NodeType) -> tuple[Clock, Callable[..., bool]]:
        clock = Clock(ready_s)
        monkeypatch.setattr(launch, "time", clock)
        monkeypatch.setattr(launch, "alive_nodes", lambda: [HEAD])
        monkeypatch.setattr(launch, "find_autoscaler", lambda: Autoscaler(kinds) if kinds else None)
        monkeypatch.setattr(launch, "ask_for_workers", clock.ask)
        monkeypatch.setattr(ray, "is_initialized", lambda: True)
        return clock, lambda *overrides, stop=None: launch._wait_for_nodes(stage(*overrides), stop, "runs/x", "no room")

    return wait_with


def test_workers_without_room_wait_for_nodes(waiting: Any, capsys: pytest.CaptureFixture[str]) -> None:
    clock, wait = waiting(300, SMALL)
    assert wait("cluster.cpus_per_worker=1")
    assert clock.now == 300
    assert "waiting up to 20 minutes; the autoscaler may start up to 3 x small (1 CPU)" in capsys.readouterr().out


def test_the_wait_has_a_limit(waiting: Any) -> None:
    clock, wait = waiting(1e9, SMALL)
    with pytest.raises(TrainingFailed, match="no room came within 2 minutes"):
        wait("cluster.cpus_per_worker=1", "cluster.wait_for_nodes_minutes=2")
    assert 120 < clock.now <= 122


@pytest.mark.parametrize(
    ("kinds", "override"),
    [
        ((), "cluster.workers=1"),
        ((SMALL,), "cluster.cpus_per_worker=2"),
        ((SMALL,), "cluster.wait_for_nodes_minutes=0"),
    ],
)
def test_nothing_is_waited_for_where_no_node_can_help(waiting: Any, kinds: tuple[NodeType, ...], override: str) -> None:
    """Ray Train's tries are counted there."""
    clock, wait = waiting(0, *kinds)
    assert not wait("cluster.cpus_per_worker=1", override)
    assert clock.now == 0


def test_a_stop_or_a_lost_connection_ends_the_wait(
    waiting: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock, wait = waiting(1e9, SMALL)
    clock.then = (tmp_path / "stop").touch
    with pytest.raises(KeyboardInterrupt):
        wait("cluster.cpus_per_worker=1", stop=tmp_path / "stop")
    clock.then = lambda: monkeypatch.setattr(ray, "is_initialized", lambda: False)
    with pytest.raises(TrainingFailed, match="no room"):
        wait("cluster.cpus_per_worker=1")
    assert clock.now == 2


class Trainer:
    """Ray Train's, whose workers find no room at its first fits.

    Args:
        without_room: how many fits.
    """

    def __init__(self, without_room: int) -> None:
        self.fits = 0
        self._without_room = without_room

    def fit(self) -> Any:
        self.fits += 1
        if self.fits <= self._without_room:
            error = ray.exceptions.RayActorError()
            error.controller_failure = launch.WorkerGroupStartupTimeoutError(2)  # type: ignore[attr-defined]
            raise error
        end = SimpleNamespace(reason="finished", step=1, detail="")
        return SimpleNamespace(return_value=SimpleNamespace(training=end, error=None))


@pytest.mark.parametrize(("room_came", "fits"), [(True, 9), (False, launch.PLACING_RETRIES + 1)])
def test_tries_are_counted_only_where_no_node_came(room_came: bool, fits: int, monkeypatch: pytest.MonkeyPatch) -> None:
    trainer = Trainer(8)
    monkeypatch.setattr(launch, "_trainer", lambda *_: trainer)
    monkeypatch.setattr(launch, "_wait_for_nodes", lambda *_: room_came)
    monkeypatch.setattr(launch, "remove_orphans", lambda: None)
    monkeypatch.setattr(launch.time, "sleep", lambda _: None)
    monkeypatch.setattr(ray, "is_initialized", lambda: True)
    monkeypatch.setattr(launch.WorkerResult, "from_dict", lambda value: value)
    config: Any = SimpleNamespace(evaluate_only=False)
    with nullcontext() if room_came else pytest.raises(TrainingFailed, match="no room for the workers"):
        launch.launch(stage(), config, "runs/x", [])
    assert trainer.fits == fits
