"""`training.compile: blocks` trains what eager training does, within rounding, and checkpoints fit both ways."""

from pathlib import Path

import pytest
import torch
from harness.ranks import Attempt, newest, run_attempts
from torch import _inductor as inductor

from scalablevit.run_files import START_NOTE
from scalablevit.training import worker
from scalablevit.training.worker import WorkerConfig

# one kind of block in one stage: each is compiled for seconds
TWO_BLOCKS = {"channels": [8], "num_heads": [1], "depths": [2], "attention_pattern": ["window"]}
BLOCKS, OFF = {"compile": "blocks"}, {"compile": False}


def worker_config(make_stage, folder: Path, compiling: dict[str, object]) -> WorkerConfig:
    stage = make_stage(
        model={"drop_path_rate": 0.0, "grad_checkpointing": True, "options": TWO_BLOCKS},
        optimizer={"layer_decay": 0.8, "name": "sgd", "lr": 0.05},
        training={"steps": 3, "global_batch_size": 7, "evaluate_every": {"steps": 3}, "log_every_steps": 1,
                  "checkpoint_every": {"steps": 1}, "ema_decay": 0.5, **compiling},
    )  # fmt: skip
    return WorkerConfig(stage.model_dump_json(), str(folder), str(folder), None)


@pytest.mark.long
def test_compiled_blocks_train_what_eager_ones_do_and_resume_exactly(make_stage, tmp_path):
    ways = {"eager": [OFF], "whole": [BLOCKS], "resumed": [BLOCKS, BLOCKS], "on": [OFF, BLOCKS], "off": [BLOCKS, OFF]}
    ends = {}
    for way, (first, *rest) in ways.items():
        attempts = [Attempt(worker_config(make_stage, tmp_path / way, first), stop_at=2 if rest else None)]
        attempts += [Attempt(worker_config(make_stage, tmp_path / way, then)) for then in rest]
        run_attempts(attempts, 1, tmp_path)
        ends[way] = newest(str(tmp_path / way))
        assert (tmp_path / way / START_NOTE).read_text().startswith("resumed at step 2" if rest else "random weights")
    for way, end in ends.items():
        for file, tensors in ends["eager"].files.items():
            assert tensors.keys() == end.files[file].keys()
            for name, tensor in tensors.items():
                torch.testing.assert_close(end.files[file][name], tensor, rtol=1e-3, atol=1e-5, msg=f"{way}: {name}")
                if way == "resumed":
                    assert torch.equal(end.files[file][name], ends["whole"].files[file][name]), name
        assert end.meta["last_metrics"]["val/loss"] == pytest.approx(ends["eager"].meta["last_metrics"]["val/loss"])
    eager, whole = (ends[way].files["model"] for way in ("eager", "whole"))
    assert not all(torch.equal(whole[name], tensor) for name, tensor in eager.items()), "nothing was compiled"


@pytest.mark.parametrize("compiling", ["blocks", True])
def test_a_machine_without_a_compiler_ends_the_run_before_its_first_step(make_stage, tmp_path, monkeypatch, compiling):
    torch.compiler.reset()
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "cache"))
    given = worker_config(make_stage, tmp_path / "run", {"compile": compiling})
    with inductor.config.patch({"cpp.cxx": (str(tmp_path / "no-compiler"),)}):
        result = worker.run(given, 0, 1, torch.device("cpu"), lambda records, node: None)
    what, where, fix = result.error.args
    assert "torch.compile does not work on" in what and "no-compiler" in what
    assert where == "training.compile" and "g++" in fix
