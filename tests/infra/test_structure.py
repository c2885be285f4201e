"""How the package's files depend on each other; import-linter holds the layers."""

import ast
from graphlib import TopologicalSorter
from pathlib import Path

PACKAGE = Path(__file__).parents[2] / "platform" / "scalablevit"


def imported(file: Path) -> set[str]:
    """Names of modules, or of things in them, that a file imports anywhere, also in functions and for type checkers."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module, *(f"{node.module}.{each.name}" for each in node.names)}
        elif isinstance(node, ast.Import):
            found |= {each.name for each in node.names}
    return found


def modules() -> dict[str, Path]:
    files = [*PACKAGE.rglob("*.py")]
    assert len(files) > 200
    return {".".join(file.relative_to(PACKAGE.parent).with_suffix("").parts).removesuffix(".__init__"): file
            for file in files}  # fmt: skip


def test_no_files_import_each_other_in_a_circle() -> None:
    named = modules()
    graph = {name: imported(file) & named.keys() - {name} for name, file in named.items()}
    assert sum(map(len, graph.values())) > 500
    assert len([*TopologicalSorter(graph).static_order()]) == len(named)  # CycleError names the files


def test_what_is_imported_within_functions_is_there_too() -> None:
    trees = {name: ast.parse(file.read_text(encoding="utf-8")) for name, file in modules().items()}
    defined = {name: {each for node in ast.walk(tree) for each in names_in(node)} for name, tree in trees.items()}
    wanted = {
        (name, node.lineno, node.module, each.name)
        for name, tree in trees.items()
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "scalablevit"
        for each in node.names
    }
    assert len(wanted) > 1000
    missing = [
        each for each in wanted if f"{each[2]}.{each[3]}" not in trees and each[3] not in defined.get(each[2], ())
    ]
    assert missing == []


def names_in(node: ast.AST) -> set[str]:
    """What a statement defines."""
    match node:
        case ast.FunctionDef(name=name) | ast.ClassDef(name=name):
            return {name}
        case ast.Name(id=name, ctx=ast.Store()):
            return {name}
        case ast.ImportFrom(names=names) | ast.Import(names=names):
            return {(each.asname or each.name).split(".")[0] for each in names}
    return set()
