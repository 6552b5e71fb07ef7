"""The part that a layer plays in its block, by the structure of the graph alone: what explains how sensitive it is."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from enum import StrEnum

from memfit.analysis.layers import WEIGHTED, Layer
from memfit.analysis.values import values_of
from memfit.graph.model import Graph, StorageKind
from memfit.graph.optable import Role


class Part(StrEnum):
    """Roles of layers with weights; the first that holds is a layer's."""

    FIRST = "first"
    """Reads an input of the network with no layer with weights before it."""
    LAST = "last"
    """No layer with weights comes after it."""
    DEPTHWISE = "depthwise"
    """A depthwise convolution."""
    ATTENTION_SCALING = "attention_scaling"
    """A 1x1 inside attention, without norm and activation, that scales what the projection before it gives."""
    EXIT = "exit"
    """The exit layer of a block, without activation: it ends a residual branch that began with other layers, or it is
    the 1x1 convolution behind the spatial one of an inverted residual or a fused MBConv block without a shortcut."""
    OTHER = "other"


_PLAIN = frozenset({Role.ARITHMETIC, Role.COPY, Role.NORM, Role.BATCH_NORM, Role.ACTIVATION, Role.DROPOUT, Role.VIEW})
"""What a block has between its layers, squeeze-and-excitation's product and layer scale among it."""


def weighted(graph: Graph, layers: Sequence[Layer]) -> tuple[int, ...]:
    """List the layers that multiply by weights: convolutions, linear, recurrent, embedding and attention layers.

    >>> from memfit.graph.model import Graph
    >>> weighted(Graph((), (), (), (), (), ()), ())
    ()

    Args:
        graph: the network.
        layers: the result of `layers(graph)`.

    Returns:
        Positions in the sequence of layers; one whose weights belong to an earlier one too is among them.
    """
    return tuple(n for n, layer in enumerate(layers) if layer.role in WEIGHTED and _has_weights(graph, layer))


def _has_weights(graph: Graph, layer: Layer) -> bool:
    if layer.weights:
        return True
    read = (graph.tensors[i] for index in layer.ops for i in graph.ops[index].inputs)
    return any(len(t.shape) > 1 and graph.storages[t.storage].kind is StorageKind.PARAMETER for t in read)


def parts(graph: Graph, layers: Sequence[Layer]) -> dict[int, Part]:
    """Tell the role of each layer with weights.

    >>> from memfit.graph.model import Graph
    >>> parts(Graph((), (), (), (), (), ()), ())
    {}

    Args:
        graph: the network, in inference.
        layers: the result of `layers(graph)`.

    Returns:
        Role by position in the sequence of layers.
    """
    return _Structure(graph, layers).parts()


class _Structure:
    """Which rows read which."""

    def __init__(self, graph: Graph, layers: Sequence[Layer]) -> None:
        self.layers = layers
        self.weighted = frozenset(weighted(graph, layers))
        self.inputs = frozenset(n for n, layer in enumerate(layers) if layer.head < 0 and layer.result >= 0)
        values = values_of(graph)
        owner = {index: number for number, layer in enumerate(layers) for index in layer.ops}
        given = {
            values.value_of[graph.tensors[layers[n].result].storage, graph.tensors[layers[n].result].version]: n
            for n in self.inputs
        }
        self.sources: list[list[int]] = [[] for _ in layers]
        """By row: the rows whose values it reads."""
        self.readers: list[list[int]] = [[] for _ in layers]
        for position, op in enumerate(values.forward):
            number = owner.get(op.index)
            if number is None:
                continue
            for value in values.inputs[position]:
                made = values.producer[value]
                source = owner.get(values.forward[made].index) if made >= 0 else given.get(value)
                if source is not None and source != number and source not in self.sources[number]:
                    self.sources[number].append(source)
                    self.readers[source].append(number)

    def parts(self) -> dict[int, Part]:
        """Tell the role of each layer with weights."""
        order = range(len(self.layers))
        behind = self._spread(order, self.sources, self.weighted)
        fed = self._spread(order, self.sources, self.inputs)
        ahead = self._spread(reversed(order), self.readers, self.weighted)
        scaling = self._scaling()
        found: dict[int, Part] = {}
        for number in sorted(self.weighted):
            layer = self.layers[number]
            holds = (
                (Part.FIRST, number in fed and number not in behind),
                (Part.LAST, number not in ahead),
                (Part.DEPTHWISE, layer.type.startswith("depthwise")),
                (Part.ATTENTION_SCALING, number in scaling),
                (Part.EXIT, self._is_exit(number)),
            )
            found[number] = next((part for part, true in holds if true), Part.OTHER)
        return found

    def _spread(self, order: Iterable[int], before: list[list[int]], marked: Collection[int]) -> set[int]:
        """Find the rows that have a marked one somewhere before them, in the direction of `order`."""
        reached: set[int] = set()
        for number in order:
            if any(other in marked or other in reached for other in before[number]):
                reached.add(number)
        return reached

    def _behind(self, number: int, through: Collection[Role]) -> set[int]:
        """Find the layers with weights that a row reads, directly or through rows of these roles."""
        found: set[int] = set()
        seen: set[int] = set()
        waiting = list(self.sources[number])
        while waiting:
            source = waiting.pop()
            if source in seen:
                continue
            seen.add(source)
            if source in self.weighted:
                found.add(source)
            elif self.layers[source].role in through or (
                self.layers[source].role is Role.ADD and len(self.sources[source]) < 2
            ):
                waiting += self.sources[source]
        return found

    def _is_exit(self, number: int) -> bool:
        layer = self.layers[number]
        if layer.activation is not None or layer.role not in (Role.CONV, Role.LINEAR):
            return False
        branch = {w for w in self._behind(number, _PLAIN) if self._is_inside(w, number)}
        if not branch:
            return False
        if self._reaches_add(number):
            return True
        return layer.role is Role.CONV and _is_pointwise(layer) and any(_is_spatial(self.layers[w]) for w in branch)

    def _is_inside(self, before: int, number: int) -> bool:
        """True where a layer is there for this branch alone: no other layer with weights reads it directly."""
        return all(reader == number or reader not in self.weighted for reader in self.readers[before])

    def _reaches_add(self, number: int) -> bool:
        """True where what a layer gives is added to another value of the network."""
        seen: set[int] = set()
        waiting = list(self.readers[number])
        while waiting:
            reader = waiting.pop()
            if reader in seen:
                continue
            seen.add(reader)
            part = self.layers[reader].role
            if part is Role.ADD and len(self.sources[reader]) > 1:
                return True
            if part in _PLAIN or part is Role.ADD:
                waiting += self.readers[reader]
        return False

    def _scaling(self) -> set[int]:
        """Find the 1x1 layers between attention's projection and its product."""
        through = frozenset(Role) - WEIGHTED - {Role.ADD}
        found: set[int] = set()
        for product, layer in enumerate(self.layers):
            if layer.role not in (Role.MATMUL, Role.ATTENTION) or product in self.weighted:
                continue
            given = self._behind(product, through)
            found |= {n for n in given if _is_bare(self.layers[n]) and self._comes_from(n, given - {n})}
        return found

    def _comes_from(self, number: int, others: Collection[int]) -> bool:
        """True where one of the others is before a layer, with nothing but layers and plain rows in between."""
        seen: set[int] = set()
        waiting = [number]
        while waiting:
            for before in self._behind(waiting.pop(), _PLAIN):
                if before in others:
                    return True
                if before not in seen:
                    seen.add(before)
                    waiting.append(before)
        return False


def _is_bare(layer: Layer) -> bool:
    """True for a 1x1 without norm and activation."""
    return layer.norm is None and layer.activation is None and _is_pointwise(layer)


def _is_pointwise(layer: Layer) -> bool:
    return layer.role in (Role.CONV, Role.LINEAR) and all(size == 1 for size in layer.kernel or ())


def _is_spatial(layer: Layer) -> bool:
    return layer.role is Role.CONV and any(size > 1 for size in layer.kernel or ())
