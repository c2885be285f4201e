"""The example of the Python API, run as it stands, on a Ray that it starts itself."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from harness.heads import ROOT

EXAMPLE = ROOT / "docs" / "examples" / "train_and_predict.py"
EXAMPLE_S = 900
"""Longest wait: it starts Ray twice, which takes minutes on a very busy machine."""


@pytest.mark.ray
@pytest.mark.long
@pytest.mark.rotating("python api", 120)
@pytest.mark.timeout(1000)
def test_the_example_trains_twice_and_predicts(tmp_path: Path) -> None:
    unset = ("RAY_ADDRESS", "RAY_AUTH_MODE")
    given = {"PYTHONPATH": str(ROOT / "platform"), "SCALABLEVIT_ROOT": str(tmp_path)}
    environment = {name: value for name, value in os.environ.items() if name not in unset} | given
    done = subprocess.run([sys.executable, str(EXAMPLE)], cwd=ROOT, env=environment, text=True, stdout=subprocess.PIPE,
                          stderr=subprocess.STDOUT, timeout=EXAMPLE_S, check=False)  # fmt: skip
    said = done.stdout
    assert done.returncode == 0, said
    results = re.findall(r"^pretrain: (val/top1 [01]\.\d{3}), demo-pretrain version 1$", said, re.MULTILINE)
    assert len(results) == 2 and len(set(results)) == 1, said
    assert "trained again: False" in said
    assert len(re.findall(r"^(\w+): \w+ \([01]\.\d\d\), \{", said, re.MULTILINE)) == 3, said
    assert re.search(r"^\(3, \d+\) probabilities of ", said, re.MULTILINE), said
    assert "M parameters" in said
