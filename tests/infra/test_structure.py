"""How the package's files depend on each other; import-linter holds the layers."""

import ast
from collections.abc import Iterator
from contextlib import suppress
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


FREE_MAPPINGS = 28
"""Signatures and fields that take any value under any name: signatures of libraries, and the edges to other processes.

It may only go down: a record is a class, and what is really free has a name of its own (`YamlMapping`).
"""


def test_records_are_classes() -> None:
    found = {name: count for name, file in modules().items() if (count := free_mappings(ast.parse(file.read_text())))}
    assert sum(found.values()) <= FREE_MAPPINGS, found


def test_free_mappings_are_found_wherever_they_are_written() -> None:
    source = """
def f(a: dict[str, Any], *b: Mapping[str, object], c: "dict[str, Any] | None" = None) -> list[dict[str, Any]]: ...
class C:
    d: MutableMapping[str, Any]
    e: dict[str, int] = {}
    async def g(self, **h: dict[int, Any]) -> Callable[[dict[str, Any]], dict[str, Any]]:
        i: dict[str, Any] = {}
"""
    assert free_mappings(ast.parse(source)) == 4 + 1 + 2


def free_mappings(tree: ast.Module) -> int:
    """Count the mappings from text to anything in the annotations of arguments, results and fields."""
    annotations: list[ast.expr | None] = []
    for node in ast.walk(tree):
        match node:
            case ast.FunctionDef() | ast.AsyncFunctionDef():
                given = node.args
                every = [*given.posonlyargs, *given.args, given.vararg, *given.kwonlyargs, given.kwarg]
                annotations += [node.returns, *(each.annotation for each in every if each)]
            case ast.ClassDef():
                annotations += [each.annotation for each in node.body if isinstance(each, ast.AnnAssign)]
    return sum(is_free_mapping(node) for each in annotations if each for node in parts_of(each))


def parts_of(annotation: ast.expr) -> Iterator[ast.AST]:
    """An annotation and everything in it, also in quotes."""
    for node in ast.walk(annotation):
        yield node
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            with suppress(SyntaxError):  # it may also be one of a `Literal`
                yield from ast.walk(ast.parse(node.value, mode="eval"))


def is_free_mapping(node: ast.AST) -> bool:
    match node:
        case ast.Subscript(
            value=ast.Name(id="dict" | "Mapping" | "MutableMapping"),
            slice=ast.Tuple(elts=[ast.Name(id="str"), ast.Name(id="Any" | "object")]),
        ):
            return True
    return False
