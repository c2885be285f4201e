"""The examples of docs/examples: run as they are, each on a Ray that it starts itself; and what they are made of."""

import ast
import os
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
from harness.heads import ROOT
from harness.pages import blocks, links, spans

import scalablevit as sv
from scalablevit.config.loading import drop_unknown_kinds
from scalablevit.pipeline.running import load_recipe_search

FOLDER = ROOT / "docs" / "examples"
EXAMPLE_S = 900
"""Longest wait: Ray is started once or twice, which takes minutes on a very busy machine."""
PRETRAINED = r"^pretrain: val/top1 [01]\.\d{3}, demo-pretrain version 1$"


@dataclass(frozen=True)
class Example:
    """A script of cells."""

    page: str
    """Of docs/, on its topic; links the script."""
    seconds: int
    """That the script takes on two CPU cores."""
    lines: dict[str, int]
    """What it prints, as patterns, and how often at least."""


EXAMPLES = {
    "train_and_predict.py": Example("recipes.md", 120, {
        r"^pretrain: (val/top1 [01]\.\d{3}), demo-pretrain version 1$(?s:.*)"
        r"^pretrain: \1, demo-pretrain version 1$": 1,
        r"^trained again: False$": 1,
        r"^\w+: \w+ \([01]\.\d\d\), \{": 3,
        r"^\(3, 6\) probabilities of circle, ": 1,
        r"^\d+\.\d M parameters$": 1,
    }),
    "segment.py": Example("segment.md", 120, {
        PRETRAINED: 1,
        r"^segment: val/miou [01]\.\d{3}, demo-segment version 1$": 1,
        r"^background: (0\.[5-9]\d\d|1\.000)$": 1,
        r"^\d{6}\.jpg: mask \(64, 64\) uint8, .*background \d+%": 3,
        r"^background in the first image: \d+ of 4096 pixels$": 1,
    }),
    "detect.py": Example("detect.md", 150, {
        PRETRAINED: 1,
        r"^detect: val/box_ap [01]\.\d{3}, demo-detect version 1$": 1,
        r"^masks: [01]\.\d{3}$": 1,
        r"^\d{6}\.jpg: (\d+) objects, boxes \(\1, 4\) float32$": 3,
        r"^  \w+ [01]\.\d\d, x \d+ to \d+, y \d+ to \d+, mask \(64, 64\) of \d+ pixels$": 1,
    }),
    "search.py": Example("tune.md", 170, {
        r"^pretrain: val/top1 [01]\.\d{3}, shapes-pretrain version 1$": 1,
        r"^\d+ finished, \d+ stopped$": 1,
        # the first of the five is the best one
        r"^val/top1  trial\n([01]\.\d{4}) +(\d+) \(\w+\): optimizer\.lr=(\S+), model\.drop_path_rate=(\S+)$(?s:.*)"
        r"^trial \2 of 16: val/top1 \1, optimizer\.lr=\3, model\.drop_path_rate=\4$(?s:.*)"
        r"^best values: lr \3, drop path \4$": 1,
    }),
    "own_task/train.py": Example("extend.md", 90, {
        r"^000000\.jpg(,\w+)+$": 1,
        r"^tag: val/f1 [01]\.\d{3}, tags-tag version 1$": 1,
        r"^\d{6}\.jpg: [\w ]+; circle [01]\.\d\d$": 3,
    }),
}  # fmt: skip


@pytest.mark.ray
@pytest.mark.long
@pytest.mark.timeout(1000)
@pytest.mark.parametrize("name", [
    pytest.param(name, marks=pytest.mark.rotating(f"example {name}", example.seconds))
    for name, example in EXAMPLES.items()
])  # fmt: skip
def test_an_example_prints_what_it_promises(name: str, tmp_path: Path) -> None:
    unset = ("RAY_ADDRESS", "RAY_AUTH_MODE")
    given = {"PYTHONPATH": str(ROOT / "platform"), "SCALABLEVIT_ROOT": str(tmp_path)}
    environment = {name: value for name, value in os.environ.items() if name not in unset} | given
    done = subprocess.run([sys.executable, str(FOLDER / name)], cwd=ROOT, env=environment, text=True,
                          stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=EXAMPLE_S, check=False)  # fmt: skip
    assert done.returncode == 0, done.stdout
    for pattern, times in EXAMPLES[name].lines.items():
        assert len(re.findall(pattern, done.stdout, re.MULTILINE)) >= times, f"{pattern}\n{done.stdout}"


# --- what they are made of ---


def overrides_of(text: str) -> list[list[str]]:
    """What an example gives to `sv.load_recipe`, call by call."""
    calls = [node for node in ast.walk(ast.parse(text)) if isinstance(node, ast.Call)]
    return [list(map(ast.literal_eval, call.args)) for call in calls if ast.unparse(call.func) == "sv.load_recipe"]


def mistakes(given: list[str]) -> list[sv.UserError]:
    """What is wrong with a recipe, its overrides and its search; kinds that a package would define are not."""
    try:
        load_recipe_search(sv.load_recipe(*given), ROOT)
    except sv.UserError as error:
        return drop_unknown_kinds(error)
    return []


def test_every_script_of_cells_is_run_here() -> None:
    scripts = [path for path in FOLDER.rglob("*.py") if path.read_text(encoding="utf-8").startswith("# %%")]
    assert {str(path.relative_to(FOLDER)) for path in scripts} == set(EXAMPLES)


@pytest.mark.parametrize("name", EXAMPLES)
def test_an_example_has_a_title_and_cells_of_text_and_code(name: str) -> None:
    text = (FOLDER / name).read_text(encoding="utf-8")
    assert text.startswith("# %% [markdown]\n# # ")
    cells = re.split(r"^# %%", text, flags=re.MULTILINE)[1:]
    prose = [cell.removeprefix(" [markdown]\n") for cell in cells if cell.startswith(" [markdown]\n")]
    code = [cell for cell in cells if cell.startswith("\n")]
    assert len(prose) + len(code) == len(cells) and len(code) >= 3
    assert all(line.startswith("# ") for cell in prose for line in cell.strip().splitlines() if line != "#")
    assert all(ast.parse(cell).body for cell in code)


@pytest.mark.parametrize("name", EXAMPLES)
def test_the_page_of_its_topic_links_an_example(name: str) -> None:
    assert f"examples/{name}" in links(ROOT / "docs" / EXAMPLES[name].page)


@pytest.mark.parametrize("name", EXAMPLES)
def test_every_key_that_an_example_overrides_is_there(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    (given,) = overrides_of((FOLDER / name).read_text(encoding="utf-8"))
    assert len(given) > 1 and mistakes(given) == []
    assert mistakes([*given, "training.epoch=1"])


def test_the_page_of_the_own_task_names_its_files() -> None:
    page = FOLDER / "own_task" / "README.md"
    files = {path.name for path in page.parent.iterdir()} - {page.name, "__pycache__"}
    assert len(files) == 5 and files <= set(spans(page))
    words = [word for _, content in blocks(page) for word in re.findall(r"(?:docs|pipelines)/[\w/.]+", content)]
    assert len(words) >= 5 and all((ROOT / word).exists() for word in words)
    assert all((page.parent / link).exists() for link in links(page))
