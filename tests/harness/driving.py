"""A process in which one script runs after another: importing torch, Ray and MLflow is paid for once."""

import contextlib
import importlib
import io
import itertools
import multiprocessing
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection
from typing import Any, NamedTuple

CALL_S = 1400
"""Longest wait for a call; a search on a busy machine takes minutes."""


class Done(NamedTuple):
    """A script that has ended."""

    code: int
    output: str


class Driver:
    """The parent's side: calls functions by module and name in the process."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._numbers = itertools.count()

    def call(self, module: str, function: str, *arguments: Any, limit_s: float = CALL_S) -> Any:
        """Return what `module.function(*arguments)` returns there; both must be picklable.

        Raises:
            AssertionError: the function raised, or there is no result in time.
        """
        number = next(self._numbers)
        self._connection.send((number, module, function, arguments))
        end = time.monotonic() + limit_s
        while self._connection.poll(max(0.0, end - time.monotonic())):
            of_number, result, error = self._connection.recv()
            if of_number == number:  # else what an earlier test did not wait for
                assert error is None, error
                return result
        raise AssertionError(f"no result of {module}.{function} within {limit_s:.0f} s")

    def script(self, name: str, *arguments: str) -> Done:
        """Run `pipelines/<name>.py`, by its verb, to its end."""
        return Done(*self.call("harness.driving", "run_script", name, list(arguments)))

    def cluster_state(self) -> dict[str, Any]:
        """Return what lives on the cluster, see `cluster_state`."""
        return dict(self.call("harness.driving", "cluster_state", limit_s=120))


@contextmanager
def driving(environment: dict[str, str]) -> Iterator[Driver]:
    """Start the process, with these variables and no others."""
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe()
    process = context.Process(target=_serve, args=(there, environment))
    process.start()
    there.close()
    try:
        yield Driver(here)
    finally:
        process.kill()  # Ray's handler of SIGTERM stays behind in it
        process.join(30)


def _serve(calls: Connection, environment: dict[str, str]) -> None:
    os.environ.clear()  # before anything of Ray is imported, which reads how to authenticate then
    os.environ.update(environment)
    while True:
        number, module, function, arguments = calls.recv()
        try:
            calls.send((number, getattr(importlib.import_module(module), function)(*arguments), None))
        except Exception as error:
            calls.send((number, None, f"{type(error).__name__}: {error}"))


def run_script(name: str, arguments: list[str]) -> tuple[int, str]:
    """Exit code and output of a script."""
    from scalablevit.cli import main

    output = io.StringIO()
    with _disconnected_after(), contextlib.redirect_stdout(output), contextlib.redirect_stderr(output):
        code = main(name, arguments)
    return code, output.getvalue()


def cluster_state() -> dict[str, Any]:
    """States of the cluster's placement groups, and classes of its living actors."""
    import ray
    from ray.util.state import list_actors, list_placement_groups

    with _disconnected_after():
        ray.init(logging_level="ERROR")
        return {
            "groups": [group.state for group in list_placement_groups(limit=1000)],
            "actors": [actor.class_name for actor in list_actors(limit=1000) if actor.state != "DEAD"],
        }


def predict_on_cluster(job: Any, names: list[str], workers: int) -> list[Any]:
    """What `predict_on_ray` gives."""
    from scalablevit.serving.predict import predict_on_ray
    from scalablevit.tasks.output import picture_names

    with _connected():
        return list(predict_on_ray(job, picture_names(names), workers))


def score_on_cluster(model: str, root: Any) -> Any:
    """`score_here` on a cluster."""
    with _connected():
        return score_here(model, root)


def score_here(model: str, root: Any) -> Any:
    """Score of a registered version as the gate takes it, from the database of a root."""
    from scalablevit.cli import promote
    from scalablevit.training.data_listing import store_listings

    found = promote.resolve_weights(model, f"sqlite:///{root}/mlflow.db", root / "cache")
    resolved = promote._resolve(found, [], root)
    store_listings(str(root / "cache" / "listed"), resolved.sources)
    stage, listing = promote._on_same_data(found, resolved), root / "cache" / "listed"
    return promote._score_version(found, stage, root, 1, listing)


@contextmanager
def _connected() -> Iterator[None]:
    import ray

    from scalablevit.pipeline.cluster import PACKAGE

    with _disconnected_after():
        ray.init(runtime_env={"py_modules": [str(PACKAGE)]}, logging_level="ERROR")
        yield


@contextmanager
def _disconnected_after() -> Iterator[None]:
    """Leave the cluster as the end of a process does."""
    import ray

    try:
        yield
    finally:
        ray.shutdown()
