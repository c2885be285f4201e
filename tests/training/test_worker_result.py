"""A rank's result on its way to the driver: plain values, and nothing of it lost."""

import json

import pytest

from scalablevit.config.errors import UserError
from scalablevit.training.worker_result import TrainingEnd, WorkerResult

END = TrainingEnd(
    step=8, best_value=0.5, best_step=4, best_metrics={"val/top1": 0.5}, last_metrics={"val/top1": 0.25}, seconds=1.5,
    spent={"data": 0.5}, reason="stopped early", detail="no gain",
    device="A chip",
)  # fmt: skip


@pytest.mark.parametrize(
    "result", [WorkerResult(), WorkerResult(END, nondeterministic=["put_"]), WorkerResult(metrics={"val/top1": 0.5})]
)
def test_a_result_comes_back_as_it_was(result: WorkerResult) -> None:
    sent = json.loads(json.dumps(result.as_dict()))
    assert WorkerResult.from_dict(sent) == result


def test_what_the_user_must_do_comes_back_in_its_three_parts() -> None:
    error = UserError("the disk is full", where="/runs/a", fix="free space")
    sent = json.loads(json.dumps(WorkerResult(error=error).as_dict()))
    received = WorkerResult.from_dict(sent).error
    assert isinstance(received, UserError)
    assert (received.what, received.where, received.fix) == ("the disk is full", "/runs/a", "free space")
