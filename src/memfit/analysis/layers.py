"""The rows of a network: one layer each, with its norm and its activation folded in."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from memfit.analysis.values import NONE, Values, values_of
from memfit.graph.model import Graph, Op, StorageKind, Tensor
from memfit.graph.optable import Role

INPUT, UNUSED = "input", "unused"

WEIGHTED = frozenset({Role.CONV, Role.LINEAR, Role.RECURRENT, Role.EMBEDDING, Role.MATMUL, Role.ATTENTION})
"""Operations whose parameters of two or more dimensions are weights; fused attention holds linear layers."""

_USES_PREPARED = WEIGHTED | {Role.BATCH_NORM, Role.NORM}
_TAKES_BIAS = frozenset({Role.CONV, Role.LINEAR, Role.MATMUL})


class Layer(NamedTuple):
    """One row: an operation with what folds into it."""

    name: str
    type: str
    """The operation's kind; `input` for an input, `unused` for parameters that no operation reads."""
    norm: str | None
    activation: str | None
    kernel: tuple[int, ...] | None
    stride: tuple[int, ...] | None
    output_shape: tuple[int, ...]
    dtype: str
    activations: int
    """Elements of the folded layer's output."""
    weights: int
    """Elements of its parameters of two or more dimensions, in convolution, linear, recurrent or embedding work."""
    params: int
    macs: int
    scope: int
    """The module that ran the first operation; -1 for inputs and unused parameters."""
    head: int
    """Index of the operation that the row is named after; -1 where there is none."""
    role: Role
    ops: tuple[int, ...]
    """Every operation of the row, views included; each forward operation is in exactly one row."""
    parameters: tuple[int, ...]
    """Tensor ids of the parameters that this row is the first to use."""
    weight_parameters: tuple[int, ...]
    """Those that `weights` counts."""
    result: int = NONE
    """Tensor id of the folded layer's output; -1 for parameters that no operation reads."""


class _Row:
    """A layer in the making."""

    __slots__ = (
        "activation", "dtype", "elements", "head", "last", "macs", "norm", "op", "ops", "parameters", "reads",
        "role", "scope", "shape", "value", "weights",
    )  # fmt: skip

    def __init__(self, op: Op | None, role: Role, tensor: Tensor | None, scope: int) -> None:
        self.op = op
        self.head = NONE if op is None else op.index
        self.last = self.head
        self.value = NONE
        """What it makes, as far as it is folded."""
        self.role = role
        self.scope = scope
        self.norm: str | None = None
        self.activation: str | None = None if op is None else op.attrs.get("activation")
        """Of a file whose operations do one along with their work, or what folds in later."""
        self.shape: tuple[int, ...] = tensor.shape if tensor else ()
        self.dtype = tensor.dtype if tensor else "float32"
        self.elements = tensor.elements if tensor else 0
        self.macs = 0 if op is None else op.macs
        self.ops: list[int] = [] if op is None else [op.index]
        self.reads = False
        """True where the first operation reads a parameter, which may count in an earlier row."""
        self.parameters: list[int] = []
        self.weights: list[int] = []


def layers(graph: Graph, fold: bool = True, values: Values | None = None) -> tuple[Layer, ...]:
    """List the layers of a graph's forward pass in the order in which they run, the inputs first.

    A layer is an operation that makes a value: one with parameters, or pooling, add, concatenation, attention and so
    on. A batch norm and one element-wise activation that follow directly, each the only reader of what comes before,
    fold into it. So do a bias added apart from its product, and what only prepares a weight. Views, dropout in
    inference and adaptive pooling to the size there is have no row; their operations belong to the row whose value
    they pass on.

    >>> from memfit.graph.model import Graph
    >>> layers(Graph((), (), (), (), (), ()))
    ()

    Args:
        graph: the network; only its forward pass and loss make rows.
        fold: False gives every operation but views a row of its own.
        values: the result of `values_of(graph)`, where it is there already.
    """
    return _Build(graph, values or values_of(graph), fold).run()


class _Build:
    """One run of the pass."""

    def __init__(self, graph: Graph, values: Values, fold: bool) -> None:
        self.graph = graph
        self.values = values
        self.fold = fold
        self.rows: list[_Row] = []
        self.row_of: list[_Row | None] = [None] * len(values.producer)
        self.parameter_ids: dict[int, list[Tensor]] = {}
        for tensor in graph.parameters():
            self.parameter_ids.setdefault(tensor.storage, []).append(tensor)
        self.owned: set[int] = set()
        self.unplaced: list[int] = []
        self.naming = Naming(graph)

    def run(self) -> tuple[Layer, ...]:
        graph, values, row_of = self.graph, self.values, self.row_of
        tensors = graph.tensors
        for i in graph.inputs:
            tensor = tensors[i]
            given = _Row(None, Role.CREATE, tensor, NONE)
            self.rows.append(given)
            row_of[values.value_of[tensor.storage, tensor.version]] = given
        dead: set[int] = set()
        for position, op in enumerate(values.forward):
            role = values.roles[position]
            if values.alias[position]:
                self._pass_on(values.outputs[position][0], op)
                continue
            row = self._folded(position, op, role) if self.fold else None
            if row is None and not op.macs:
                target = values.mutates[position]
                if target >= 0 and self.fold and self._is_filling(target, op, role):
                    row = row_of[target]
                elif not self._makes_activation(position) and not self._reads_parameter(position):
                    self._place(self.rows[-1] if self.rows else None, op)
                    continue
            if row is None:
                result = values.result[position]
                row = _Row(op, role, tensors[result] if result >= 0 else None, op.scope)
                self.rows.append(row)
                if self.unplaced:
                    row.ops = [*self.unplaced, op.index]
                    self.unplaced = []
                if role in _USES_PREPARED:
                    self._absorb(row, position, dead)
            else:
                row.ops.append(op.index)
                row.macs += op.macs
            for value in values.outputs[position]:
                if row_of[value] is None:
                    row_of[value] = row
            if op.index in (row.head, row.last):
                row.value = self._made(position)
            self._claim(row, position, op, role)
        if self.unplaced and self.rows:
            self.rows[-1].ops += self.unplaced
        rows = [row for row in self.rows if id(row) not in dead] if dead else self.rows
        return self._finish(rows)

    def _pass_on(self, value: int, op: Op) -> None:
        """Give a view to the row whose value it shows, and that row the shape that its own module gives its output."""
        row = self.row_of[value]
        if row is not None and row.op is not None and op.scope == row.scope and op.index == row.last + 1:
            tensor = self.graph.tensors[op.outputs[0]]
            if tensor.elements == row.elements and (row.last == row.head or self.naming.is_leaf(row.scope)):
                row.shape, row.last = tensor.shape, op.index
        self._place(row, op)

    def _result(self, row: _Row) -> int:
        """Find the tensor that a row gives on: what its last operation made, or viewed."""
        return self.values.result[self._position(row.last)]

    def _place(self, row: _Row | None, op: Op) -> None:
        """Give an operation that makes nothing to a row, or to the next one where that row is only an input."""
        if row is None or row.op is None:
            self.unplaced.append(op.index)
        else:
            row.ops.append(op.index)

    def _made(self, position: int) -> int:
        """Find the value of an operation's main output."""
        result = self.values.result[position]
        if result < 0:
            return NONE
        tensor = self.graph.tensors[result]
        return self.values.value_of[tensor.storage, tensor.version]

    def _makes_activation(self, position: int) -> bool:
        values, result = self.values, self.values.result[position]
        if result < 0:
            return False
        tensor = self.graph.tensors[result]
        if not tensor.elements or values.state[values.value_of[tensor.storage, tensor.version]]:
            return False
        return self.graph.storages[tensor.storage].kind is not StorageKind.CONSTANT

    def _reads_parameter(self, position: int) -> bool:
        values = self.values
        result = values.result[position]
        return any(values.parameter[v] >= 0 for v in values.inputs[position]) and (
            result < 0 or self._makes_activation(position)
        )

    def _is_filling(self, target: int, op: Op, role: Role) -> bool:
        """True for a write to a part of a value, and for one to a value that was only made to be filled."""
        row = self.row_of[target]
        if row is None or row.op is None:
            return False
        if self.graph.tensors[op.outputs[0]].elements < self.values.elements[target]:
            return True
        return row.role is Role.CREATE and role is not Role.ADD and len(self.values.readers[target]) == 1

    def _folded(self, position: int, op: Op, role: Role) -> _Row | None:
        """Find the row that a norm, an activation or a bias folds into."""
        values = self.values
        inputs = values.inputs[position]
        if role is Role.ADD:
            return self._biased(position, op)
        if role is not Role.BATCH_NORM and role is not Role.ACTIVATION:
            return None
        value = inputs[0]
        row = self.row_of[value]
        if (
            row is None
            or row.op is None
            or row.value != value
            or row.activation is not None
            or row.role is Role.ACTIVATION
            or len(values.readers[value]) != 1
            or value in values.leaving
        ):
            return None
        tensor = self.graph.tensors[values.result[position]]
        if tensor.elements != row.elements:
            return None
        if role is Role.BATCH_NORM:
            if row.norm is not None or row.role is Role.BATCH_NORM:
                return None
            row.norm = op.kind
        else:
            row.activation = op.kind
        row.shape, row.dtype, row.last = tensor.shape, tensor.dtype, op.index
        return row

    def _biased(self, position: int, op: Op) -> _Row | None:
        """Find the product that an addition of its module's own one-dimensional parameter completes."""
        values = self.values
        inputs = values.inputs[position]
        if len(inputs) != 2:
            return None
        for value, bias in (inputs, inputs[::-1]):
            row = self.row_of[value]
            if (
                row is not None
                and row.value == value
                and row.role in _TAKES_BIAS
                and row.norm is None
                and row.activation is None
                and row.scope == op.scope
                and len(values.readers[value]) == 1
                and values.parameter[bias] >= 0
                and all(len(t.shape) == 1 for t in self.parameter_ids.get(values.parameter[bias], ()))
            ):
                tensor = self.graph.tensors[op.outputs[0]]
                row.shape, row.dtype, row.last = tensor.shape, tensor.dtype, op.index
                return row
        return None

    def _absorb(self, row: _Row, position: int, dead: set[int]) -> None:
        """Take in the rows that only prepare this row's weight; without folding they keep their rows."""
        values, tensors = self.values, self.graph.tensors
        waiting = [v for v in values.inputs[position] if values.prepared[v]]
        if len(waiting) == len(values.inputs[position]):
            return
        sizes = {values.elements[v] for v in waiting}
        taken: list[_Row] = []
        while waiting:
            value = waiting.pop()
            source = self.row_of[value]
            if source is None or source in taken or id(source) in dead or source is row:
                continue
            taken.append(source)
            for index in source.ops:
                waiting.extend(
                    v for v in values.inputs[self._position(index)] if values.prepared[v] and values.producer[v] >= 0
                )
        for source in sorted(taken, key=lambda r: r.head):
            weights = [p for p in source.parameters if len(tensors[p].shape) > 1 and tensors[p].elements in sizes]
            if row.role in WEIGHTED:
                (row if self.fold else source).weights.extend(weights)
            if not self.fold:
                continue
            dead.add(id(source))
            row.reads = True
            row.ops = [*source.ops, *row.ops]
            row.macs += source.macs
            row.parameters = [*source.parameters, *row.parameters]
            for index in source.ops:
                for value in values.outputs[self._position(index)]:
                    if self.row_of[value] is source:
                        self.row_of[value] = row

    def _position(self, index: int) -> int:
        """Turn an operation's index into its position in the forward pass, which comes first in every graph."""
        forward = self.values.forward
        if index < len(forward) and forward[index].index == index:
            return index
        return next(position for position, op in enumerate(forward) if op.index == index)

    def _claim(self, row: _Row, position: int, op: Op, role: Role) -> None:
        """Give the parameters that an operation is the first to use to its row."""
        values = self.values
        for value in values.inputs[position]:
            storage = values.parameter[value]
            if storage < 0:
                continue
            row.reads = row.reads or op is row.op
            for tensor in self._parameters_of(storage, op):
                if tensor.id in self.owned:
                    continue
                self.owned.add(tensor.id)
                row.parameters.append(tensor.id)
                if len(tensor.shape) > 1 and role in WEIGHTED:
                    row.weights.append(tensor.id)

    def _parameters_of(self, storage: int, op: Op) -> Sequence[Tensor]:
        """List the parameters that an operation reads from a storage; several may share one as its windows."""
        held = self.parameter_ids.get(storage, ())
        if len(held) < 2:
            return held
        starts = {self.graph.tensors[i].offset for i in op.inputs if self.graph.tensors[i].storage == storage}
        return [t for t in held if any(t.offset <= start < t.offset + max(t.elements, 1) for start in starts)]

    def _finish(self, rows: list[_Row]) -> tuple[Layer, ...]:
        graph = self.graph
        tensors = graph.tensors
        naming = self.naming
        for row in rows:
            if row.op is not None:
                naming.note(row.scope, row.op.kind, row.reads)
        done: list[Layer] = []
        for position, row in enumerate(rows):
            op = row.op
            if op is None:
                name, kind = tensors[graph.inputs[position]].name or INPUT, INPUT
                kernel = stride = None
            else:
                kind = op.kind
                kernel, stride = op.attrs.get("kernel"), op.attrs.get("stride")
                first = tensors[row.parameters[0]].name if row.parameters and row.role in _USES_PREPARED else None
                name = naming.name(row.scope, kind, row.reads, first)
            done.append(
                Layer(
                    name=naming.unique(name),
                    type=kind,
                    norm=row.norm,
                    activation=row.activation,
                    kernel=kernel,
                    stride=stride,
                    output_shape=row.shape,
                    dtype=row.dtype,
                    activations=row.elements,
                    weights=sum(tensors[p].elements for p in row.weights),
                    params=sum(tensors[p].elements for p in row.parameters),
                    macs=row.macs,
                    scope=row.scope,
                    head=row.head,
                    role=row.role,
                    ops=tuple(sorted(row.ops)),
                    parameters=tuple(row.parameters),
                    weight_parameters=tuple(row.weights),
                    result=graph.inputs[position] if op is None else self._result(row),
                )
            )
        unused = [t for held in self.parameter_ids.values() for t in held if t.id not in self.owned]
        if unused:
            done.append(
                Layer(
                    name=f"({UNUSED})",
                    type=UNUSED,
                    norm=None,
                    activation=None,
                    kernel=None,
                    stride=None,
                    output_shape=(),
                    dtype=unused[0].dtype,
                    activations=0,
                    weights=0,
                    params=sum(t.elements for t in unused),
                    macs=0,
                    scope=NONE,
                    head=NONE,
                    role=Role.OTHER,
                    ops=(),
                    parameters=tuple(t.id for t in unused),
                    weight_parameters=(),
                )
            )
        return tuple(done)


class Naming:
    """Names that people know, each given once."""

    def __init__(self, graph: Graph) -> None:
        self._scopes = graph.scopes
        self._inner = {scope.parent for scope in graph.scopes}
        self._leaf_paths = {scope.path for scope in graph.scopes if scope.index not in self._inner and scope.path}
        self._main: dict[int, tuple[str, bool]] = {}
        self._given: dict[str, int] = {}

    def is_leaf(self, scope: int) -> bool:
        """True for a module without children."""
        return scope not in self._inner

    def note(self, scope: int, kind: str, reads: bool) -> None:
        """Learn what a module without children does: its first operation that reads parameters, or else its last."""
        known = self._main.get(scope)
        if known is None or not known[1]:
            self._main[scope] = (kind, reads)

    def name(self, scope: int, kind: str, reads: bool, parameter: str | None = None) -> str:
        """Name an operation: its module where that is what the module does, else the module and the kind.

        A product inside a larger module goes by the module whose parameter it uses.
        """
        path = self._scopes[scope].path
        if scope not in self._inner and path:
            return path if self._main.get(scope, (kind, reads)) == (kind, reads) else f"{path}.{kind}"
        if parameter is not None:
            owner = parameter.rpartition(".")[0]
            if owner in self._leaf_paths:
                return owner
        return f"{path}.{kind}" if path else kind

    def unique(self, name: str) -> str:
        """Number a name from its second use on."""
        count = self._given[name] = self._given.get(name, 0) + 1
        return name if count == 1 else self.unique(f"{name}#{count}")
