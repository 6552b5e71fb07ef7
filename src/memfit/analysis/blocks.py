"""The blocks of a network: the repeated parts that people talk about, each operation in exactly one."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import NamedTuple

from memfit.analysis.layers import INPUT, UNUSED, Layer
from memfit.errors import UsageError
from memfit.graph.model import Graph
from memfit.graph.optable import Role

ROOT = "(root)"
"""Name of the block that holds the operations of the root module itself."""

_LISTS = frozenset({"Sequential", "ModuleList", "ModuleDict"})
_NUMBERED = re.compile(r"(.*?)\d+")
_ELEMENTWISE = frozenset({Role.ACTIVATION, Role.ARITHMETIC, Role.CREATE, Role.COPY, Role.INDEX})


class Block(NamedTuple):
    """A part of the network, with the rows that it holds."""

    name: str
    type: str
    """Class of its module."""
    layers: tuple[int, ...]
    """Positions in the sequence of layers, in order of execution."""


def blocks(graph: Graph, layers: Sequence[Layer], pattern: str | None = None) -> tuple[Block, ...]:
    """Group the layers of a network into blocks, in order of execution; the input rows are in none.

    From the root down, a module is opened while it holds a list (Sequential, ModuleList, or a module that holds
    nothing but numbered modules of one class) with at least two members of two or more layers each; the first module
    on a layer's path that is not opened is its block. A plain chain of single layers is cut after each pooling
    where there are at least two. A module is one layer's worth at most where it has no children, and element-wise
    arithmetic does not count as a layer here.

    >>> from memfit.graph.model import Graph
    >>> blocks(Graph((), (), (), (), (), ()), ())
    ()

    Args:
        graph: the network.
        layers: the result of `layers(graph)`.
        pattern: a regular expression; the topmost modules whose whole path it matches are the blocks instead.

    Raises:
        UsageError: the pattern matches no module, or is not a regular expression.
    """
    if not graph.scopes:
        return ()
    names = _by_pattern(graph, pattern) if pattern is not None else _by_structure(graph, layers)
    types = {scope.path or ROOT: scope.class_name for scope in graph.scopes}
    members: dict[str, list[int]] = {}
    for position, layer in enumerate(layers):
        if layer.type != INPUT:
            name = f"({UNUSED})" if layer.type == UNUSED else names[max(layer.scope, 0)]
            members.setdefault(name, []).append(position)
    return tuple(
        Block(name, types.get(name, UNUSED if name == f"({UNUSED})" else "Sequential"), tuple(rows))
        for name, rows in members.items()
    )


def _by_pattern(graph: Graph, pattern: str) -> list[str]:
    try:
        compiled = re.compile(pattern)
    except re.error as error:
        raise UsageError(
            f"this is not a regular expression: {error}",
            where="--blocks",
            received=repr(pattern),
            todo=r"match whole module paths, such as 'features\.\d+'",
        ) from None
    matches = [bool(scope.path and compiled.fullmatch(scope.path)) for scope in graph.scopes]
    if not any(matches):
        some = ", ".join(scope.path for scope in graph.scopes[1:6])
        raise UsageError(
            "no module has a path like this",
            where="--blocks",
            received=repr(pattern),
            todo=f"match whole module paths, such as {some}" if some else "the network has no modules inside",
        )
    return _names(graph, matches, [None] * len(graph.scopes), whole=matches)


def _by_structure(graph: Graph, layers: Sequence[Layer]) -> list[str]:
    scopes = graph.scopes
    count = len(scopes)
    children: list[list[int]] = [[] for _ in scopes]
    for scope in scopes:
        if scope.parent >= 0:
            children[scope.parent].append(scope.index)
    weight = [0] * count
    pools = [0] * count
    for layer in layers:
        if layer.scope < 0:
            continue
        if layer.role is Role.POOL:
            pools[layer.scope] += 1
        if layer.role in _ELEMENTWISE and not layer.params:
            continue
        if layer.role is Role.ATTENTION:  # one kernel for several linear layers
            weight[layer.scope] += max(1, len(layer.weight_parameters))
        elif children[layer.scope] or not weight[layer.scope]:
            weight[layer.scope] += 1
    for index in range(count - 1, 0, -1):
        parent = scopes[index].parent
        weight[parent] += weight[index]
        pools[parent] += pools[index]
    splits = [False] * count
    groups: list[str | None] = [None] * count
    for scope in scopes:
        members = children[scope.index]
        if len(members) < 2 or not (scope.container or scope.class_name in _LISTS or _is_repetition(graph, members)):
            continue
        large = sum(weight[m] >= 2 for m in members)
        if large >= 2:
            splits[scope.index] = True
        elif not large and sum(pools[m] > 0 for m in members) >= 2:
            splits[scope.index] = True
            _cut(graph, members, pools, groups)
    return _names(graph, splits, groups)


def _is_repetition(graph: Graph, members: list[int]) -> bool:
    """True where all members are of one class and their names only count up, as a dense block's layers do."""
    scopes = [graph.scopes[m] for m in members]
    numbered = [_NUMBERED.fullmatch(scope.path.rpartition(".")[2]) for scope in scopes]
    return (
        len({scope.class_name for scope in scopes}) == 1 and all(numbered) and (len({m[1] for m in numbered if m}) == 1)
    )


def _cut(graph: Graph, members: list[int], pools: list[int], groups: list[str | None]) -> None:
    """Cut a plain chain after each of its poolings."""
    start = 0
    for end, member in enumerate(members):
        if pools[member] or end == len(members) - 1:
            first, last = graph.scopes[members[start]].path, graph.scopes[member].path
            name = first if start == end else f"{first}-{last.rpartition('.')[2]}"
            for m in members[start : end + 1]:
                groups[m] = name
            start = end + 1


def _names(graph: Graph, splits: list[bool], groups: list[str | None], whole: list[bool] | None = None) -> list[str]:
    """Name the block of every module: itself or the first module on its path that is not opened."""
    scopes = graph.scopes
    opened = list(splits)
    for index in range(len(scopes) - 1, 0, -1):
        if opened[index]:
            opened[scopes[index].parent] = True
    if whole is not None:
        opened = [inside and not own for inside, own in zip(opened, whole, strict=True)]
    opened[0] = True
    names: list[str] = [ROOT] * len(scopes)
    closed = [False] * len(scopes)
    for scope in scopes[1:]:
        if closed[scope.parent]:
            names[scope.index], closed[scope.index] = names[scope.parent], True
        else:
            names[scope.index] = groups[scope.index] or scope.path
            closed[scope.index] = not opened[scope.index]
    return names
