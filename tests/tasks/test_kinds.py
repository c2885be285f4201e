"""Kinds of task come by the registry: nothing outside `tasks/` asks which one it has."""

import ast
import sys
from pathlib import Path

import pytest

from scalablevit.config.errors import UserError
from scalablevit.config.task_info import TASKS, MetricInfo, TaskInfo, kind_of_script
from scalablevit.tasks.registry import TaskKind, task_kind

PACKAGE = Path(sys.modules["scalablevit"].__path__[0])
SECTIONS = {"Classification", "Segmentation", "Detection"}
OWN = ("tasks/", "config/task.py", "config/task_info.py")
"""Where kinds are told apart."""
NAMES_A_LAYER = {"serving/any_size.py"}
"""Traces a layer of MMSegmentation, whatever the task."""


def told_apart(tree: ast.AST) -> list[int]:
    """Lines that compare with a kind by its name, ask for its section, or hold a table by kind."""
    found = []
    for node in ast.walk(tree):
        match node:
            case ast.Compare():
                parts = [each.value for each in ast.walk(node) if isinstance(each, ast.Constant)]
                found += [node.lineno] * bool({part for part in parts if isinstance(part, str)} & set(TASKS))
            case ast.Call(func=ast.Name(id="isinstance")):
                asked = {each.id for each in ast.walk(node.args[1]) if isinstance(each, ast.Name)}
                found += [node.lineno] * bool(asked & SECTIONS)
            case ast.match_case(pattern=ast.MatchClass(cls=ast.Name(id=name))) if name in SECTIONS:
                found.append(node.pattern.lineno)
            case ast.Dict(keys=keys):
                named = {each.value for each in keys if isinstance(each, ast.Constant)}
                found += [node.lineno] * (len(named & set(TASKS)) > 1)
    return found


@pytest.mark.parametrize(
    "text",
    [
        'if stage.task.kind != "detection":\n    pass',
        "isinstance(task, Detection | Segmentation)",
        "match task:\n    case Segmentation():\n        pass",
        'TABLE = {"detection": 1, "segmentation": 2}',
    ],
)
def test_what_tells_kinds_apart_is_found(text):
    assert len(told_apart(ast.parse(text))) == 1


def test_no_file_outside_tasks_tells_kinds_apart():
    found = {}
    for file in PACKAGE.rglob("*.py"):
        name = file.relative_to(PACKAGE).as_posix()
        if not name.startswith(OWN) and (lines := told_apart(ast.parse(file.read_text(encoding="utf-8")))):
            found[name] = lines
    assert found == {}


def test_no_file_outside_tasks_imports_a_kind():
    found = set()
    for file in PACKAGE.rglob("*.py"):
        name = file.relative_to(PACKAGE).as_posix()
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            module = node.module if isinstance(node, ast.ImportFrom) else None
            if module and module.startswith(tuple(info.module for info in TASKS.values())):
                found |= {name} if not name.startswith("tasks/") else set()
    assert found == NAMES_A_LAYER


@pytest.mark.parametrize("info", TASKS.values(), ids=lambda info: info.kind)
def test_each_kind_of_the_table_is_there(info, tmp_path):
    kind = task_kind(info.kind)
    for metric in info.metrics:
        if metric.promotable:
            assert kind.build_sample_statistics(metric.name, ("a", "b")).indices == []
    assert kind.build_error_analysis(("a", "b")).measure
    with kind.build_output(("a", "b"), tmp_path):
        pass
    assert {path.name for path in tmp_path.iterdir()} <= set(info.output_files)


def test_a_further_kind_is_one_folder_and_one_entry(tmp_path, monkeypatch):
    names = sorted(TaskKind.__abstractmethods__)
    methods = "\n".join(f"    def {name}(self, *given):\n        return {name!r}, given" for name in names)
    (tmp_path / "toy_kind.py").write_text(
        f"from scalablevit.tasks.registry import TaskKind\n\n\nclass Toy(TaskKind):\n{methods}\n\n\nKIND = Toy()\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    toy = TaskInfo("toy", module="toy_kind", stage_name="play", sources=("coco",), metrics=(MetricInfo("joy"),))
    monkeypatch.setitem(TASKS, "toy", toy)
    assert task_kind("toy").build_error_analysis(("a",)) == ("build_error_analysis", (("a",),))
    assert task_kind("toy").automatic_values("any stage") == {}
    assert (kind_of_script("play"), TASKS["toy"].best_metric) == ("toy", "val/joy")


def test_an_unknown_kind_is_a_users_mistake():
    with pytest.raises(UserError, match="no task 'toy'"):
        task_kind("toy")
