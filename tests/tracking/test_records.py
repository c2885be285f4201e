"""The outbox's file: to the byte as earlier releases wrote it, and what each line of it is read as."""

import hashlib
import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
from mlflow import MlflowClient

from scalablevit.tracking import outbox as outbox_module
from scalablevit.tracking.connection import Refused
from scalablevit.tracking.environment import code_digest
from scalablevit.tracking.mlflow_writer import MLflowWriter
from scalablevit.tracking.outbox import RECORDS, Outbox
from scalablevit.tracking.records import (
    EndRecord,
    MetricsRecord,
    ModelRecord,
    TagsRecord,
    UnknownRecord,
    parse_line,
    write_line,
)

UID = "a" * 32


@pytest.fixture
def outbox(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Outbox:
    monkeypatch.setattr(outbox_module, "now_ms", lambda: 1700000000123)
    return Outbox(tmp_path / "outbox")


def test_every_kind_of_record_is_written_as_it_always_was(outbox: Outbox, tmp_path: Path) -> None:
    """Older releases read the file, and newer ones what older ones left: no byte of it changes without a format."""
    (tmp_path / "log.txt").write_text("x")
    outbox.run(UID, "näme", experiment="e")
    outbox.run(UID, "name", experiment="e", parent="b" * 32, tags={"n": 1, "x": 0.5})
    outbox.params(UID, {"lr": 0.1, "steps": [1, 2]})
    outbox.tags(UID, {"best": None})
    outbox.artifact(UID, tmp_path / "log.txt")
    outbox.artifact(UID, tmp_path / "log.txt", "logs")
    outbox.dataset(UID, name="d", digest="9" * 64, source="/data", context="train")
    values = {"loss": 1.5, "a": math.nan, "b": math.inf, "c": -math.inf, "d": 1}
    outbox.metrics(UID, [{"step": 3, "time_ms": 7, "metrics": values}])
    outbox.end(UID, "FINISHED")
    outbox.end(UID, "KILLED", time_ms=77)
    head = f'{{"v":1,"kind":"KIND","uid":"{UID}","time_ms":1700000000123,'
    expected = [
        head.replace("KIND", "run") + '"name":"n\\u00e4me","experiment":"e","parent":null,"tags":{}}',
        head.replace("KIND", "run")
        + f'"name":"name","experiment":"e","parent":"{"b" * 32}","tags":{{"n":"1","x":"0.5"}}}}',
        head.replace("KIND", "params") + '"params":{"lr":"0.1","steps":"[1, 2]"}}',
        head.replace("KIND", "tags") + '"tags":{"best":"None"}}',
        head.replace("KIND", "artifact") + f'"path":"{tmp_path}/log.txt","artifact_path":null}}',
        head.replace("KIND", "artifact") + f'"path":"{tmp_path}/log.txt","artifact_path":"logs"}}',
        head.replace("KIND", "dataset") + f'"name":"d","digest":"{"9" * 64}","source":"/data","context":"train"}}',
        f'{{"v":1,"kind":"metrics","uid":"{UID}","time_ms":7,"step":3,'
        '"metrics":{"loss":1.5,"a":"NaN","b":"Infinity","c":"-Infinity","d":1.0}}',
        head.replace("KIND", "end") + '"status":"FINISHED"}',
        f'{{"v":1,"kind":"end","uid":"{UID}","time_ms":77,"status":"KILLED"}}',
    ]
    assert (outbox.folder / RECORDS).read_text().splitlines() == expected
    again = MetricsRecord(UID, 7, 3, {"loss": 1.5}, roll_backs=2)
    line = f'{{"v":1,"kind":"metrics","uid":"{UID}","time_ms":7,"step":3,"metrics":{{"loss":1.5}},"roll_backs":2}}\n'
    assert write_line(again).decode() == line and parse_line(line.encode()) == again


def test_a_model_is_written_as_it_always_was(outbox: Outbox, tmp_path: Path) -> None:
    package, model = tmp_path / "pkg", tmp_path / "model"
    package.mkdir()
    (package / "serve.py").write_text("1")
    model.mkdir()
    (model / "weights.safetensors").write_bytes(b"w")
    (model / "config.json").write_text("{}")
    outbox.model(UID, name="m", folder=model, package=package, serving="serve.py", requirements=["a==1"], tags={"t": 2})
    weights, config = hashlib.sha256(b"w").hexdigest(), hashlib.sha256(b"{}").hexdigest()
    registration = hashlib.sha256(f"{UID}\0m\0{weights}".encode()).hexdigest()[:32]
    code = code_digest(package)
    assert (outbox.folder / RECORDS).read_text() == (
        f'{{"v":1,"kind":"model","uid":"{UID}","time_ms":1700000000123,"registration":"{registration}","name":"m",'
        f'"folder":"{model}","code":"code/{code}/pkg","serving":"serve.py","requirements":["a==1"],'
        f'"tags":{{"t":"2","scalablevit.uid":"{registration}","scalablevit.run_uid":"{UID}",'
        f'"scalablevit.weights_sha256":"{weights}","scalablevit.config_sha256":"{config}",'
        f'"scalablevit.code_digest":"{code}"}},"alias":"candidate"}}\n'
    )


HEAD = b'{"v":1,"kind":"%s","uid":"u","time_ms":1'


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        (HEAD % b"tags" + b',"tags":{"a":"1"}}', TagsRecord("u", 1, {"a": "1"})),
        (HEAD % b"end" + b',"status":"FINISHED","later":1}', EndRecord("u", 1, "FINISHED")),
        (HEAD % b"metrics" + b',"step":3,"metrics":{"a":"NaN"}}', MetricsRecord("u", 1, 3, {"a": "NaN"})),
        (HEAD % b"metrics" + b',"step":"3","metrics":{}}', None),
        (HEAD % b"metrics" + b',"step":3,"metrics":[]}', None),
        (HEAD % b"metrics" + b',"step":3}', None),
        (b'{"v":2,"kind":"tags","uid":"u","time_ms":1,"tags":{}}', None),
        (b'{"v":1,"kind":"tags","uid":7,"time_ms":1,"tags":{}}', None),
        (b'{"v":1,"kind":"tags","uid":"u","time_ms":"1","tags":{}}', None),
        (b'{"v":1,"uid":"u","time_ms":1,"tags":{}}', None),
        (b'["v"]', None),
        (b'{"v":1', None),
        (b"\xff", None),
    ],
)
def test_a_line_is_read_as_its_record_or_as_none(line: bytes, expected: object) -> None:
    assert parse_line(line + b"\n") == expected


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        (HEAD % b"dance" + b',"with":["x"]}', "unknown kind of record 'dance'"),
        (HEAD % b"run" + b',"name":"n","tags":{}}', "a record of kind 'run' without experiment, parent"),
    ],
)
def test_a_record_that_cannot_be_sent_keeps_all_its_fields_and_says_why(line: bytes, problem: str) -> None:
    record = parse_line(line)
    assert isinstance(record, UnknownRecord)
    assert record.as_dict() == json.loads(line)
    assert record.problem == problem
    with pytest.raises(Refused, match=problem):
        MLflowWriter(MlflowClient("sqlite://"), "sqlite://", Path(), {}).send([record])


def test_a_younger_field_is_written_where_it_has_a_value_and_read_where_it_is() -> None:
    """Lines without users' packages are to the byte those of before there were any."""
    model = ModelRecord("u", 1, "r", "m", "/f", "code/1/a", "s.py", [], {}, "candidate")
    assert b"user_code" not in write_line(model) and parse_line(write_line(model)) == model
    with_code = replace(model, user_code=["code/2/b"])
    assert write_line(with_code).endswith(b',"alias":"candidate","user_code":["code/2/b"]}\n')
    assert parse_line(write_line(with_code)) == with_code
    described = replace(model, description="a card", sample="aQ==")
    assert write_line(described).endswith(b',"alias":"candidate","description":"a card","sample":"aQ=="}\n')
    assert parse_line(write_line(described)) == described
    zipped = replace(model, archive=True)
    assert write_line(zipped).endswith(b',"alias":"candidate","archive":true}\n')
    assert parse_line(write_line(zipped)) == zipped
