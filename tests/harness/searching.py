"""What a process does that makes one search after another: the seconds of importing torch, Ray and MLflow come once."""

import contextlib
import io
import os
from multiprocessing.connection import Connection
from typing import Any


def serve(calls: Connection, environment: dict[str, str]) -> None:
    """Do what is sent, a function of this file and its arguments, and answer; in a process of its own."""
    os.environ.clear()  # before anything of Ray is imported, which reads how to authenticate then
    os.environ.update(environment)
    while True:
        number, function, arguments = calls.recv()
        calls.send((number, globals()[function](*arguments)))


def search(arguments: list[str]) -> tuple[int, str]:
    """Exit code and output of `pipelines/tune.py`."""
    import ray

    from scalablevit.jobs import tune

    output = io.StringIO()
    try:
        with contextlib.redirect_stdout(output), contextlib.redirect_stderr(output):
            code = tune.main("", arguments)
    finally:
        ray.shutdown()  # as the end of a process does
    return code, output.getvalue()


def state() -> dict[str, Any]:
    """States of the cluster's placement groups, and classes of its living actors."""
    import ray
    from ray.util.state import list_actors, list_placement_groups

    ray.init(logging_level="ERROR")
    try:
        return {
            "groups": [group.state for group in list_placement_groups(limit=1000)],
            "actors": [actor.class_name for actor in list_actors(limit=1000) if actor.state != "DEAD"],
        }
    finally:
        ray.shutdown()
