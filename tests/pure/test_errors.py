"""Every error that the package raises says what failed, where, what was received and what to do."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import memfit
from memfit.errors import MemfitError

PACKAGE = Path(memfit.__file__).parent
PARTS = ("where", "received", "todo")


def _family(trees: dict[Path, ast.Module]) -> set[str]:
    """Find MemfitError and the classes that come from it, by name."""
    bases = {
        node.name: {base.id for base in node.bases if isinstance(base, ast.Name)}
        for tree in trees.values()
        for node in ast.walk(tree)
        if isinstance(node, ast.ClassDef)
    }
    found = {MemfitError.__name__}
    while more := {name for name, of in bases.items() if of & found} - found:
        found |= more
    return found


def _incomplete(tree: ast.Module, family: set[str]) -> Iterator[tuple[int, str]]:
    """Give the line and the missing parts of every error that is made without one, or with an empty one."""
    for node in ast.walk(tree):
        if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in family):
            continue
        given = {word.arg for word in node.keywords if not _empty(word.value)}
        if missing := [part for part in PARTS if part not in given]:
            yield node.lineno, f"{node.func.id} lacks {', '.join(missing)}"


def _empty(value: ast.expr) -> bool:
    return isinstance(value, ast.Constant) and not value.value


TREES = {path: ast.parse(path.read_text(encoding="utf-8")) for path in sorted(PACKAGE.rglob("*.py"))}


def test_every_error_has_its_four_parts() -> None:
    family = _family(TREES)
    assert len(family) > 8
    found = [
        f"{path.relative_to(PACKAGE)}:{line}: {missing}"
        for path, tree in TREES.items()
        for line, missing in _incomplete(tree, family)
    ]
    assert found == []


@pytest.mark.parametrize(
    ("call", "missing"),
    [
        ("UsageError('x', where='a', received='b', todo='c')", []),
        ("UsageError('x', where='a', received='', todo=None)", ["UsageError lacks received, todo"]),
        ("OwnError('x')", ["OwnError lacks where, received, todo"]),
        ("ValueError('x')", []),
    ],
)
def test_a_missing_part_is_noticed(call: str, missing: list[str]) -> None:
    tree = ast.parse(f"class OwnError(MemfitError): ...\nraise {call}")
    family = _family({**TREES, Path("own.py"): tree})
    assert [words for _, words in _incomplete(tree, family)] == missing
