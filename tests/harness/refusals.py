"""Every place in the source that makes a UserError, and which of them a test came to."""

import ast
import inspect
import sys
from pathlib import Path
from types import FunctionType, ModuleType

import pytest

from scalablevit.config import errors

Place = tuple[str, int]
"""File and line."""


def written_in(*modules: ModuleType, calls: tuple[str, ...] = ("UserError", "UserErrors")) -> set[Place]:
    """Where the modules call one of the names (`mistakes.add` for a method)."""
    found = set()
    for module in modules:
        file = Path(str(module.__file__))
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Call) and ast.unparse(node.func) in calls:
                found.add((file.name, node.lineno))
    return found


def lines_of(*functions: FunctionType) -> set[Place]:
    """All lines of functions."""
    found = set()
    for function in functions:
        lines, first = inspect.getsourcelines(function)
        found |= {(Path(function.__code__.co_filename).name, first + number) for number in range(len(lines))}
    return found


def caller(*skipped: str) -> Place:
    """Where the innermost function outside this file and the skipped ones stands."""
    frame = sys._getframe(1)
    while frame.f_code.co_filename in (__file__, *skipped):
        assert frame.f_back is not None
        frame = frame.f_back
    return Path(frame.f_code.co_filename).name, frame.f_lineno


def record(monkeypatch: pytest.MonkeyPatch) -> set[Place]:
    """From now on filled with the places that make a UserError."""
    reached: set[Place] = set()
    make = errors.UserError.__init__

    def noted(self: errors.UserError, *arguments: str, **named: str) -> None:
        reached.add(caller(str(errors.__file__)))
        make(self, *arguments, **named)

    monkeypatch.setattr(errors.UserError, "__init__", noted)
    return reached
