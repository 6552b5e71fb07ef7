"""A graph and a memory model make a profile: rows of one kind, and their totals."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from memfit.analysis.blocks import ROOT, blocks
from memfit.analysis.layers import UNUSED, Layer, layers
from memfit.analysis.modules import modules
from memfit.analysis.ops import op_rows
from memfit.analysis.result import Profile
from memfit.analysis.values import FORWARD, is_kept_copy
from memfit.errors import UsageError
from memfit.graph.model import Graph, Phase, packed_bytes
from memfit.graph.optable import Role, role
from memfit.memory import kv_cache
from memfit.memory.demand import check_bits
from memfit.memory.model import Figures, MemoryModel, Options, View
from memfit.memory.registry import memory_model
from memfit.memory.tensors import allocated_bytes, listed

if TYPE_CHECKING:
    from memfit.memory.cuda.allocator import Settings

Row = dict[str, Any]

_TRAINABLE_BITS = 32
"""TinyTL's size of a trained parameter, https://arxiv.org/abs/2007.11622, section 4."""


class _Group(NamedTuple):
    """A row, the operations whose memory is its own, and its place in the sums."""

    row: Row
    ops: Sequence[int]


def profile_graph(
    graph: Graph,
    *,
    per: str = "layer",
    memory: str = "eager",
    samples: int = 1,
    fold: bool = True,
    blocks: str | None = None,
    inplace_depthwise: bool = True,
    bits: int = 8,
    layer_bits: Mapping[str, int] | None = None,
    frozen_bits: int | None = None,
    train_only: str | None = None,
    probes: Mapping[int, tuple[int, ...]] | None = None,
    allocator: Settings | None = None,
    estimate: bool = False,
    depth: int | None = None,
) -> Profile:
    """Show where a captured network's memory goes.

    Shapes, MACs and parameters are of the forward pass; in a training capture, backward's operations add to the peaks
    of the rows whose modules they serve, and have rows of their own only with `per="op"`. `activation_bytes` is
    activations · samples · bytes of the output's type, or with `mcunet` ⌈bits/8 · elements⌉.

    >>> from memfit.graph.model import Graph
    >>> profile_graph(Graph((), (), (), (), (), ()), memory="ideal").totals["peak_bytes"]
    0

    Args:
        graph: what a capture or a reader made.
        per: what a row is: layer, block, module, op or tensor.
        memory: name of a memory model.
        samples: multiplies activations: what keeping so many samples' activations takes.
        fold: False gives each operation but views its own layer row.
        blocks: a regular expression for module paths that are the blocks.
        inplace_depthwise: `mcunet`: depthwise convolutions overwrite their input.
        bits: `mcunet`: bits of an activation.
        layer_bits: bits of layers' outputs, by the layers' names, under mcunet, ideal, autograd or tinytl.
        frozen_bits: bits of a parameter that is not trained, in `model_bytes`.
        train_only: which parameters train: bias, norm, or a regular expression that their names contain.
        probes: `eager`: measured workspaces.
        allocator: `cuda`: settings of the caching allocator.
        estimate: `tflm`: let operators pass whose kernel the table lacks, with a note.
        depth: module rows down to that depth.

    Raises:
        UsageError: an option that cannot be, or a memory model that needs another capture.
    """
    _check(per, samples, bits, frozen_bits)
    model = memory_model(memory)
    if model.measures == "tensors" and per != "tensor":
        raise UsageError(
            f"the {memory} report has one row per tensor",
            where="--per",
            received=f"rows per {per}",
            todo="use --per tensor, or another memory model",
        )
    view = View(
        graph,
        Options(
            bits=bits,
            layer_bits=layer_bits,
            inplace_depthwise=inplace_depthwise,
            train_only=train_only,
            probes=probes,
            allocator=allocator,
            estimate=estimate,
        ),
    )
    if layer_bits is not None:
        _check_layer_bits(view, model, layer_bits)
    figures = model.figures(view)
    report = _Report(view, model, figures, samples=samples, fold=fold, pattern=blocks, depth=depth)
    rows = _PER[per](report)
    inputs = [graph.tensors[i] for i in graph.inputs]
    return Profile(
        source=graph.source,
        inputs=tuple({"name": t.name, "shape": t.shape, "dtype": t.dtype} for t in inputs),
        per=per,
        memory=memory,
        training=graph.training,
        device=str(graph.environment.get("device", "cpu")),
        rows=rows,
        totals=report.totals(per, rows, frozen_bits),
        notes=report.notes(per),
        environment=dict(graph.environment),
    )


def _check(per: str, samples: int, bits: int, frozen_bits: int | None) -> None:
    if per not in _PER:
        raise UsageError(
            "there is no such kind of row", where="--per", received=repr(per), todo=f"choose one of {', '.join(_PER)}"
        )
    for name, value in (("--samples", samples), ("--bits", bits), ("--frozen-bits", frozen_bits)):
        if value is not None and value < 1:
            raise UsageError(
                f"{name} must be at least 1", where=name, received=str(value), todo="give a positive number"
            )


def _check_layer_bits(view: View, model: MemoryModel, chosen: Mapping[str, int]) -> None:
    if model.demand is None:
        raise UsageError(
            "this memory model knows no bits by layer",
            where="--memory",
            received=model.name,
            todo="use mcunet, ideal, autograd or tinytl",
        )
    check_bits([[layer.name for layer in view.layers]], chosen)


class _Counts(Protocol):
    """What every kind of row counts."""

    @property
    def name(self) -> str: ...
    @property
    def type(self) -> str: ...
    @property
    def activations(self) -> int: ...
    @property
    def weights(self) -> int: ...
    @property
    def params(self) -> int: ...
    @property
    def macs(self) -> int: ...


class _Sum(NamedTuple):
    """The counts of several layers together."""

    name: str
    type: str
    activations: int
    weights: int
    params: int
    macs: int


class _Report:
    """One profile in the making."""

    def __init__(
        self,
        view: View,
        model: MemoryModel,
        figures: Figures,
        *,
        samples: int,
        fold: bool,
        pattern: str | None,
        depth: int | None,
    ) -> None:
        self.view, self.graph, self.model, self.figures = view, view.graph, model, figures
        self.samples, self.fold, self.pattern, self.depth = samples, fold, pattern, depth
        self.layer_bits = view.options.layer_bits or {}
        self.total_params = sum(t.elements for t in self.graph.parameters())
        self.quiet = [role(op.kind) is Role.VIEW for op in self.graph.ops]
        for op, alias in zip(view.values.forward, view.values.alias, strict=True):
            self.quiet[op.index] = alias and not is_kept_copy(op)
        self.place: list[str | None] = [None] * len(self.graph.ops)
        """Name of the row that each operation's memory is shown in."""

    # -- rows ------------------------------------------------------------------------------------------------------

    def layer_rows(self) -> tuple[Row, ...]:
        chosen = self.rows_of_network()
        later = self._backward_of(chosen)
        groups = []
        for layer in chosen:
            row = self._counts(layer)
            row["norm"], row["activation"] = layer.norm, layer.activation
            row["kernel"], row["stride"] = layer.kernel, layer.stride
            row["output_shape"] = None if layer.type == UNUSED else layer.output_shape
            if self.layer_bits:
                row["bits"] = self.layer_bits.get(layer.name)
            row["activation_bytes"] = self._output_bytes(layer)
            groups.append(_Group(row, (*layer.ops, *later.get(layer.name, ()))))
        return self._with_memory(groups)

    def block_rows(self) -> tuple[Row, ...]:
        chosen = self.rows_of_network()
        later = self._backward_of(chosen)
        groups = []
        for block in blocks(self.graph, chosen, self.pattern):
            held = [chosen[i] for i in block.layers]
            row = self._counts(
                _Sum(
                    block.name,
                    block.type,
                    sum(layer.activations for layer in held),
                    sum(layer.weights for layer in held),
                    sum(layer.params for layer in held),
                    sum(layer.macs for layer in held),
                )
            )
            row["output_shape"] = None if held[-1].type == UNUSED else held[-1].output_shape
            row["activation_bytes"] = sum(self._output_bytes(layer) for layer in held)
            ops = [i for layer in held for i in (*layer.ops, *later.get(layer.name, ()))]
            groups.append(_Group(row, ops))
        return self._with_memory(groups)

    def module_rows(self) -> tuple[Row, ...]:
        graph, chosen = self.graph, self.rows_of_network()
        own: list[list[int]] = [[] for _ in graph.scopes]
        for op in graph.ops:
            own[op.scope].append(op.index)
            self.place[op.index] = graph.scopes[op.scope].path or ROOT
        figures = [self._figures(ops) for ops in own]
        for scope in reversed(graph.scopes[1:]):
            figures[scope.parent] = self._joined(figures[scope.parent], figures[scope.index])
        rows = []
        for module in modules(graph, chosen, [self._output_bytes(layer) for layer in chosen]):
            if self.depth is not None and module.depth > self.depth:
                continue
            row = self._counts(module)
            row["output_shape"] = module.output_shape
            row["depth"] = module.depth
            row["activation_bytes"] = module.activation_bytes
            row.update(figures[module.scope])
            rows.append(row)
        return tuple(rows)

    def op_rows(self) -> tuple[Row, ...]:
        unfolded = layers(self.graph, fold=False, values=self.view.values)
        layer_of = {i: layer.name for layer in self.view.layers for i in layer.ops} if self.layer_bits else {}
        rows = []
        for op in op_rows(self.graph, unfolded):
            row = self._counts(op)
            row["kernel"], row["stride"], row["output_shape"] = op.kernel, op.stride, op.output_shape
            row["phase"] = str(op.phase)
            row["activation_bytes"] = self._bytes(op.activations, op.dtype or "float32", layer_of.get(op.op))
            self.place[op.op] = op.name
            row.update(self._figures((op.op,), quiet=True))
            rows.append(row)
        for layer in unfolded:
            if layer.type == UNUSED:
                row = self._counts(layer)
                row.update({"phase": None, "activation_bytes": 0, **self._figures(())})
                rows.append(row)
        return tuple(rows)

    def tensor_rows(self) -> tuple[Row, ...]:
        for layer in self.rows_of_network():
            for index in layer.ops:
                self.place[index] = layer.name
        rows: list[Row] = []
        for kind, tensor in listed(self.view):
            row: Row = {
                "name": tensor.name,
                "type": kind,
                "shape": tensor.shape,
                "dtype": tensor.dtype,
                "elements": tensor.elements,
                "params": tensor.elements if kind == "parameter" else 0,
                "params_share": None,
                "bytes": tensor.nbytes,
            }
            if self.total_params:
                row["params_share"] = row["params"] / self.total_params
            if self.model.measures == "tensors":
                row["allocated_bytes"] = allocated_bytes(tensor)
            rows.append(row)
        return tuple(rows)

    def _counts(self, part: _Counts) -> Row:
        """Make a row with the columns that every kind of row has, in the contract's order."""
        total = self.total_params
        return {
            "name": part.name,
            "type": part.type,
            "norm": None,
            "activation": None,
            "kernel": None,
            "stride": None,
            "output_shape": None,
            "activations": part.activations * self.samples,
            "weights": part.weights,
            "params": part.params,
            "params_share": part.params / total if total else None,
            "macs": part.macs,
        }

    # -- memory ----------------------------------------------------------------------------------------------------

    def rows_of_network(self) -> tuple[Layer, ...]:
        """List the layers, folded or not as asked for."""
        return self.view.layers if self.fold else layers(self.graph, fold=False, values=self.view.values)

    def _with_memory(self, groups: list[_Group]) -> tuple[Row, ...]:
        for group in groups:
            name = group.row["name"]
            for index in group.ops:
                self.place[index] = name
            group.row.update(self._figures(group.ops))
        return tuple(group.row for group in groups)

    def _figures(self, ops: Sequence[int], *, quiet: bool = False) -> Row:
        """Give a row's figures: the sum of its operations' for saved models, the largest for peak models.

        Views make nothing, so the bytes around them are no need of the row that they belong to; `quiet` counts them
        all the same.
        """
        per_op = self.figures.per_op
        if self.model.measures == "saved":
            return {"saved_bytes": sum(per_op[i] or 0 for i in ops)}
        if self.model.measures == "tensors":
            return {}
        row: Row = {"peak_bytes": self._largest(per_op, ops, quiet)}
        for name, column in self.figures.columns:
            row[name] = self._largest(column, ops, quiet)
        return row

    def _largest(self, per_op: Sequence[int | None], ops: Iterable[int], quiet: bool) -> int | None:
        skipped = self.quiet
        found = [f for i in ops if (f := per_op[i]) is not None and (quiet or not skipped[i])]
        return max(found) if found else None

    def _joined(self, one: Row, other: Row) -> Row:
        """Join the figures of two parts of the network."""
        if self.model.measures == "saved":
            return {key: one[key] + other[key] for key in one}
        return {key: max((v for v in (one[key], other[key]) if v is not None), default=None) for key in one}

    def _backward_of(self, chosen: Sequence[Layer]) -> dict[str, list[int]]:
        """Give each backward operation to the last row that its module takes part in, by that row's name."""
        later: dict[str, list[int]] = {}
        if not self.graph.training:
            return later
        row_of: dict[int, str] = {}
        for layer in chosen:
            for index in layer.ops:
                if not self.quiet[index]:
                    row_of[self.graph.ops[index].scope] = layer.name
        for op in self.graph.ops:
            if op.phase is not Phase.BACKWARD:
                continue
            scope = op.scope
            while scope >= 0 and scope not in row_of:
                scope = self.graph.scopes[scope].parent
            if scope >= 0:
                later.setdefault(row_of[scope], []).append(op.index)
        return later

    def _bytes(self, elements: int, dtype: str, layer: str | None = None) -> int:
        if layer is not None and layer in self.layer_bits and not dtype.startswith(("int", "uint", "bool")):
            return (elements * self.layer_bits[layer] + 7) // 8 * self.samples
        if self.model.name == "mcunet":
            return (elements * self.view.options.bits + 7) // 8 * self.samples
        return packed_bytes(elements, dtype) * self.samples

    def _output_bytes(self, layer: Layer) -> int:
        return self._bytes(layer.activations, layer.dtype, layer.name)

    # -- totals ----------------------------------------------------------------------------------------------------

    def totals(self, per: str, rows: tuple[Row, ...], frozen_bits: int | None) -> Row:
        graph = self.graph
        totals: Row = {}
        if per == "tensor":
            totals.update(_sums(rows, ("elements", "bytes")))
            totals["macs"] = sum(op.macs for op in graph.ops if op.phase in FORWARD)
        elif per == "module":
            wanted = ("activations", "weights", "macs", "activation_bytes")
            totals.update({key: rows[0][key] if rows else 0 for key in wanted})
        else:
            totals.update(_sums(rows, ("activations", "weights", "macs", "activation_bytes")))
        totals["params"] = self.total_params
        totals["params_share"] = 1.0 if self.total_params else None
        if graph.training:
            totals["backward_macs"] = sum(op.macs for op in graph.ops if op.phase not in FORWARD)
        totals.update(self._memory_totals())
        state = [(kind, tensor) for kind, tensor in listed(self.view)]
        totals["input_bytes"] = sum(self._bytes(t.elements, t.dtype, t.name) for kind, t in state if kind == "input")
        totals["parameter_bytes"] = sum(t.nbytes for kind, t in state if kind == "parameter")
        totals["buffer_bytes"] = sum(t.nbytes for kind, t in state if kind == "buffer")
        totals["model_bytes"] = self._model_bytes(frozen_bits, totals["parameter_bytes"] + totals["buffer_bytes"])
        totals.update(kv_cache.totals(graph))
        if "peak_allocated_bytes" in totals and "kv_cache_bytes" in totals:
            lasting = totals["parameter_bytes"] + totals["kv_cache_bytes"]
            totals["activation_peak_bytes"] = totals["peak_allocated_bytes"] - lasting
        return totals

    def _memory_totals(self) -> Row:
        figures = self.figures
        totals: Row = {}
        if self.model.measures == "saved":
            totals["saved_bytes"] = figures.total_bytes
        if self.model.measures == "tensors":
            totals["allocated_bytes"] = figures.total_bytes
        totals["peak_bytes"] = totals["peak_at"] = None
        if self.model.measures == "peak":
            totals["peak_bytes"] = figures.total_bytes
            index = self._peak_op()
            if index is not None:
                op = self.graph.ops[index]
                totals["peak_at"] = self.place[index] or f"({op.phase})"
                if self.graph.training:
                    totals["peak_phase"] = str(op.phase)
        totals.update(figures.extra)
        return totals

    def _peak_op(self) -> int | None:
        """Find the first operation at the peak, one that makes something where there is one."""
        per_op, total = self.figures.per_op, self.figures.total_bytes
        at = [i for i, figure in enumerate(per_op) if figure == total]
        return next((i for i in at if not self.quiet[i]), at[0] if at else None)

    def _model_bytes(self, frozen_bits: int | None, stored: int) -> int:
        """Give the model's size: as stored, or as TinyTL counts it, where only parameters do."""
        if frozen_bits is None:
            return stored
        trained = self.view.trainable
        elements = [(t.storage in trained, t.elements) for t in self.graph.parameters()]
        bits = sum(count * (_TRAINABLE_BITS if trains else frozen_bits) for trains, count in elements)
        return (bits + 7) // 8

    def notes(self, per: str) -> tuple[str, ...]:
        notes = dict.fromkeys((*self.graph.notes, *self.figures.notes, *kv_cache.notes(self.graph)))
        if self.samples > 1:
            notes[f"activations and their bytes are of {self.samples} samples"] = None
        if self.graph.training and per not in ("op", "tensor"):
            notes["MACs are of the forward pass; backward's are in the totals"] = None
        if self.graph.training and self.model.name == "mcunet":
            notes["mcunet counts the forward pass only"] = None
        if not self.fold and self.model.name == "mcunet" and per == "layer":
            notes["mcunet always folds: a norm or activation that folds has no figure of its own"] = None
        return tuple(notes)


def _sums(rows: tuple[Row, ...], keys: Iterable[str]) -> Row:
    return {key: sum(row[key] or 0 for row in rows) for key in keys}


_PER = {
    "layer": _Report.layer_rows,
    "block": _Report.block_rows,
    "module": _Report.module_rows,
    "op": _Report.op_rows,
    "tensor": _Report.tensor_rows,
}
"""What a row is → how its rows are made."""

PER = tuple(_PER)
"""What rows can be."""
