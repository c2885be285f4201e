"""Toy trainings, each in one process that is worker, Ray Train's controller and driver at once.

A step is real torch work and the report that the controller would get of it, and the driver's sync is a thread
beside it: what tracking costs a training, it costs here, and more, since in a job these are three processes.

`python toy_training.py JSON`, a list of `{"folder": ..., "uri": ..., "uid": ..., "period_s": ...}`. Libraries are
imported once: each training is a fork of this process, and its process id lies in its folder as `pid`. Without a `uri`
nothing is sent: what the steps take by themselves.
"""

import json
import os
import sys
import time
import traceback
from pathlib import Path
from typing import Any

import mlflow.store.tracking.sqlalchemy_store  # noqa: F401  # what the syncs import: once, and not while steps are timed
import torch
from torch import nn

from scalablevit.tracking.callback import OutboxCallback
from scalablevit.tracking.outbox import Outbox, now_ms
from scalablevit.tracking.records import StepMetrics
from scalablevit.tracking.sync import OutboxSync

EXPERIMENT = "outages"
LOG = "steps.jsonl"
"""The training's own log, a line behind each report: `step`, `time_ms`, `loss`, `begun` (monotonic), `seconds`."""
STOP = "stop"
"""This file in the training's folder ends it."""
MORE = "more"
"""This file has it record one of everything else that a run has."""
LEFT = "left.json"
"""What its driver found unsent at the end: records, refused, error, and the seconds it waited for it."""
DRAIN_S = 120.0
MORE_POINTS = 50


def train(folder: Path, uri: str | None, uid: str, period_s: float) -> None:
    """Steps, one in `period_s` seconds, until told to stop; then what a driver does at the end of a run."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    outbox = Outbox(folder / "outbox")
    callback = OutboxCallback(folder / "outbox", uid)
    sync = None
    if uri is not None:
        sync = OutboxSync(folder / "outbox", uri)
        sync.start()
    outbox.run(uid, folder.name, experiment=EXPERIMENT)
    outbox.params(uid, {"lr": 0.1})
    step = Step()
    log = os.open(folder / LOG, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    while not (folder / STOP).exists():
        begun = time.monotonic()
        record = step()
        callback.after_report(None, [{"records": [record], "node": {"rank": 0, "cpu": 0.5}}], None)
        line = {**record, "begun": begun, "seconds": time.monotonic() - begun}
        os.write(log, json.dumps(line).encode() + b"\n")
        if (folder / MORE).exists():
            (folder / MORE).unlink()
            record_more(folder, outbox, uid)
        time.sleep(max(0.0, begun + period_s - time.monotonic()))
    outbox.end(uid, "FINISHED")
    if sync is not None:
        ended = time.monotonic()
        left = sync.drain(DRAIN_S)
        sync.stop()
        (folder / LEFT).write_text(json.dumps({**vars(left), "seconds": time.monotonic() - ended}))


class Step:
    """Forward, backward and update of a small network: a few milliseconds."""

    def __init__(self) -> None:
        self._model = nn.Sequential(nn.Linear(256, 512), nn.GELU(), nn.Linear(512, 1))
        self._step = 0

    def __call__(self) -> StepMetrics:
        self._model.zero_grad()
        loss = self._model(torch.randn(128, 256)).square().mean()
        loss.backward()
        with torch.no_grad():  # by hand: torch.optim would import its compiler, seconds in each process
            for parameter in self._model.parameters():
                parameter.sub_(parameter.grad, alpha=1e-3)
        self._step += 1
        return {"step": self._step, "time_ms": now_ms(), "metrics": {"loss": loss.item()}}


def record_more(folder: Path, outbox: Outbox, uid: str) -> None:
    """A file, a folder, data, a tag, another parameter, and a run below this one."""
    child = child_of(uid)
    (folder / "note.txt").write_text(uid)
    (folder / "plots").mkdir()
    (folder / "plots" / "curve.txt").write_text(child)
    outbox.params(uid, {"during": "outage"})
    outbox.tags(uid, {"best": "loss"})
    outbox.dataset(uid, name="photos", digest="d" * 64, source="/data/photos", context="training")
    outbox.artifact(uid, folder / "note.txt")
    outbox.artifact(uid, folder / "plots", "plots")
    outbox.run(child, "child", experiment=EXPERIMENT, parent=uid)
    outbox.metrics(child, [{"step": n, "time_ms": 1_000 + n, "metrics": {"loss": n / 7}} for n in range(MORE_POINTS)])
    outbox.end(child, "FAILED")


def child_of(uid: str) -> str:
    """Uid of the run below a run."""
    return uid[::-1]


def main(trainings: list[dict[str, Any]]) -> int:
    """Fork the trainings and wait for them."""
    processes = []
    for each in trainings:
        pid = os.fork()
        if pid == 0:
            try:
                (Path(each["folder"]) / "pid").write_text(str(os.getpid()))
                train(Path(each["folder"]), each["uri"], each["uid"], each["period_s"])
                os._exit(0)
            except BaseException:
                traceback.print_exc()
                os._exit(1)
        processes.append(pid)
    for pid in processes:
        os.waitpid(pid, 0)
    return 0


if __name__ == "__main__":
    sys.exit(main(json.loads(sys.argv[1])))
