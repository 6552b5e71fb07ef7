"""From the file's nodes to the steps of one run: functions and control flow taken apart, every shape known.

Nodes run in the file's order. What is computed from constants and shapes alone is computed here, as every runtime does
before the network runs, and makes no step. A function's body stands in the place of its call, and so does the branch
of an `If` whose condition is known; a branch that is not is the larger of the two. The body of a `Loop` or `Scan`
stands there once, and what it multiplies counts once for each round.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

from memfit.capture.sources.onnx.call import Call, Out, Shape, Unresolved, Value
from memfit.capture.sources.onnx.folding import LARGEST, fold
from memfit.capture.sources.onnx.operators import OPERATORS, Entry
from memfit.capture.sources.onnx.scopes import Path, path_of
from memfit.errors import SourceError, UnsupportedOp
from memfit.formats.onnx import DTYPES, Function, Node, OnnxGraph, OnnxModel, OnnxTensor, Reference, ValueInfo
from memfit.formats.onnx.reader import ELEMENTS, show

STEPS = 30_000
"""Steps that a file may unfold into; functions that call functions would else double with every level."""

NESTING = 24
"""Functions and bodies inside each other."""

ROUNDS = 1 << 32
"""Rounds of a loop."""

FEW = 16
"""Elements up to which a constant is worked with beforehand even where it may be a weight."""

UNKNOWN = Entry("unknown", lambda call: [(call.shape(0), call.dtype())])


@dataclass(eq=False, slots=True)
class Step:
    """One operator as it runs."""

    node: Node
    entry: Entry
    call: Call
    outputs: list[Value | None]
    path: Path
    times: int = 1
    """Rounds of the loops around it."""
    settings: list[Value] = field(default_factory=list)
    """Scales and zero points of the quantization that was folded into it."""
    writes: Value | None = None
    """The value that its output is a later version of."""

    @property
    def inputs(self) -> tuple[Value | None, ...]:
        """What it reads."""
        return self.call.inputs


class Turns(NamedTuple):
    """How a body runs again and again."""

    carried: Sequence[Value]
    """Values that go from round to round, as the first round gets them."""
    rounds: int
    skipped: int
    """Outputs of the body before those that every round adds to."""
    axes: Sequence[int]
    """Axes along which rounds stand side by side."""


class Names:
    """The values that a graph's names stand for; the body of a control-flow node sees the names outside too."""

    def __init__(self, outer: Names | None = None) -> None:
        self.held: dict[str, Value] = {}
        self.outer = outer

    def find(self, name: str) -> Value | None:
        """Look a name up, here and outside."""
        names: Names | None = self
        while names is not None:
            if name in names.held:
                return names.held[name]
            names = names.outer
        return None


@dataclass(frozen=True)
class Place:
    """Where a node stands."""

    names: Names
    opsets: Mapping[str, int]
    infos: Mapping[str, ValueInfo]
    path: Path = ()
    """Module path of the function or body around it."""
    times: int = 1
    depth: int = 0
    where: str = "graph"
    calls: frozenset[tuple[str, str, str]] = frozenset()
    """Functions that are being taken apart."""


class Walk:
    """One walk over a model."""

    def __init__(
        self, model: OnnxModel, inputs: Mapping[str, Value], symbols: Mapping[str, int], estimate: bool
    ) -> None:
        self.model, self.symbols, self.estimate = model, symbols, estimate
        self.steps: list[Step] = []
        self.notes: dict[str, None] = {}
        self.count = 0
        self.names = Names()
        self.names.held.update(inputs)
        self.constants: dict[int, Value] = {}

    def run(self) -> list[Value]:
        """Walk over the main graph and give its outputs."""
        graph = self.model.graph
        infos = {**graph.values, **{o.name: o for o in graph.outputs}}
        place = Place(self.names, self.model.opsets, infos)
        self._body(graph, place)
        outputs = []
        for info in graph.outputs:
            value = self.names.find(info.name)
            if value is None:
                raise self.wrong("the network's output is never computed", "graph.output", show(info.name))
            outputs.append(value)
        return outputs

    # -- nodes -----------------------------------------------------------------------------------------------------

    def _body(self, graph: OnnxGraph, place: Place) -> None:
        for tensor in graph.initializers.values():
            if tensor.name not in place.names.held:
                place.names.held[tensor.name] = self.constant(tensor)
        for node in graph.nodes:
            self._node(node, place)

    def _node(self, node: Node, place: Place) -> None:
        self.count += 1
        if self.count > STEPS:
            raise self.wrong(f"it unfolds into more than {STEPS:,} operators", self.place(node, place), "one more")
        function = self.model.functions.get((node.domain, node.op_type, node.overload))
        if function is not None:
            self._call(node, function, place)
            return
        if not node.domain and node.op_type in ("If", "Loop", "Scan"):
            {"If": self._if, "Loop": self._loop, "Scan": self._scan}[node.op_type](node, place)
            return
        inputs = [self._read(name, node, place) if name else None for name in node.inputs]
        if node.op_type == "CastLike" and not node.domain and len(inputs) == 2 and inputs[1] is not None:
            code = next(code for code, dtype in DTYPES.items() if dtype == inputs[1].dtype)  # only its type is read
            node = node._replace(op_type="Cast", inputs=node.inputs[:1], attributes={"to": code})
            inputs = inputs[:1]
        call = Call(node, inputs, place.opsets.get(node.domain, 1), self.place(node, place))
        if node.op_type == "Constant" and not node.domain:
            outs = [self._literal(call)]
            entry = UNKNOWN
        else:
            entry = self._entry(node, call)
            outs = self._shapes(entry, call, place)
        self._make(node, entry, call, outs, place)

    def _read(self, name: str, node: Node, place: Place) -> Value:
        value = place.names.find(name)
        if value is None:
            raise self.wrong(
                "an operator reads a value before anything has written it", self.place(node, place), show(name)
            )
        return value

    def _entry(self, node: Node, call: Call) -> Entry:
        found = OPERATORS.get((node.domain, node.op_type))
        if found is not None:
            return found
        name = show(f"{node.domain}.{node.op_type}" if node.domain else node.op_type, 120)
        if not self.estimate:
            raise UnsupportedOp(
                f"memfit does not know the operator {name}",
                where=call.where,
                received=call.received,
                todo="add a row to OPERATORS in memfit/capture/sources/onnx/operators.py, or allow an estimate with "
                "--estimate",
            )
        self.notes[f"estimate: {name} is unknown, and counts with its tensors but without MACs"] = None
        return UNKNOWN

    def _shapes(self, entry: Entry, call: Call, place: Place) -> list[Out]:
        """Find the outputs' shapes by the operator's rule, or else in what the file says of them."""
        node = call.node
        if entry is UNKNOWN:
            told = [self._told(name, place) for name in node.outputs]
            known: list[Out] = entry.shapes(call) if call.has(0) else [((), "float32")]
            return [out or known[0] for out in told]
        try:
            outs = entry.shapes(call)
        except Unresolved as missing:
            told = [self._told(name, place) for name in node.outputs]
            if any(out is None and name for out, name in zip(told, node.outputs, strict=True)):
                source = missing.value.name if missing.value is not None else ""
                raise SourceError(
                    f"the shape of {show(node.outputs[0], 200)} depends on values that only a run knows",
                    where=call.where,
                    received=f"{show(node.op_type, 80)}, whose {missing.what} is computed: {show(source, 200)}",
                    todo="export the model with sizes that are fixed, or simplify it (onnxsim), so that the file says "
                    "this shape",
                ) from None
            outs = [out or ((), "float32") for out in told]
        return outs

    def _told(self, name: str, place: Place) -> Out | None:
        """Read a value's shape in value_info, where it stands there complete."""
        info = place.infos.get(name)
        if info is None or info.shape is None or info.dtype is None:
            return None
        sizes = [self.symbols.get(size) if isinstance(size, str) else size for size in info.shape]
        return None if any(size is None for size in sizes) else (tuple(s for s in sizes if s is not None), info.dtype)

    def _literal(self, call: Call) -> Out:
        """Shape and type of a Constant."""
        for name, value in call.attributes.items():
            if isinstance(value, OnnxTensor):
                return value.shape, value.dtype
            if name in ("value_float", "value_int") and isinstance(value, int | float):
                return (), "float32" if name == "value_float" else "int64"
            if name in ("value_floats", "value_ints") and isinstance(value, tuple):
                return (len(value),), "float32" if name == "value_floats" else "int64"
            if name in ("value_string", "value_strings"):
                return (len(value),) if isinstance(value, tuple) else (), "string"
        raise call.wrong("it holds no value", ", ".join(show(name, 40) for name in call.attributes) or "no attributes")

    def _make(self, node: Node, entry: Entry, call: Call, outs: list[Out], place: Place) -> None:
        """Name the outputs, and keep a step where they are not known beforehand."""
        if any(node.outputs[len(outs) :]):
            raise call.wrong(f"it has {len(node.outputs)} outputs instead of {len(outs)} at most")
        for shape, _ in outs:
            call.check(shape)
        data = fold(call, outs)
        given = [v for v in call.inputs if v is not None]
        literal = node.op_type == "Constant" and not node.domain
        fixed = not entry.random and entry is not UNKNOWN
        weighty = any(v.weighty for v in given) and node.op_type not in ("Shape", "Size")
        base = self._shown(node, entry, call, outs, known=fixed and all(v.constant for v in given))
        if (
            weighty and max(math.prod(shape) for shape, _ in outs) > FEW
        ):  # a weight is made beforehand only where that keeps its bytes; other work on it is the file's own
            folded = fixed and all(v.constant for v in given) and (base is not None or node.op_type == "QuantizeLinear")
        else:
            folded = (fixed and all(v.constant for v in given)) or all(d is not None for d in data[: len(node.outputs)])
        folded = folded or literal
        prepared = fixed and all(v.prepared for v in given)
        outputs: list[Value | None] = []
        for position, name in enumerate(node.outputs):
            if not name:
                outputs.append(None)
                continue
            shape, dtype = outs[position]
            shared = base if position == 0 else None
            value = Value(
                name, shape, dtype, data=data[position], constant=folded, prepared=prepared, weighty=weighty,
                base=shared, stored=shared.stored if shared is not None else None,
            )  # fmt: skip
            if literal:
                value.tensor = next((v for v in node.attributes.values() if isinstance(v, OnnxTensor)), None)
                value.weighty = value.tensor is not None and _is_weight(value.tensor)
            self._name(name, value, node, place)
            outputs.append(value)
        if folded:
            return
        if entry.note:
            kind = entry.kind if isinstance(entry.kind, str) else node.op_type
            self.notes[entry.note.format(kind=kind)] = None
        path = path_of(node, call, place.path)
        self.steps.append(Step(node, entry, call, outputs, path, place.times))

    def _shown(self, node: Node, entry: Entry, call: Call, outs: list[Out], *, known: bool) -> Value | None:
        """Find the input whose bytes the first output shows: a view's, or a weight's that is only stored otherwise."""
        if not call.inputs or call.inputs[0] is None:
            return None
        source = call.inputs[0]
        if entry.view or (
            entry is not UNKNOWN and entry.kind is OPERATORS["", "Cast"].kind and outs[0][1] == source.dtype
        ):
            return source
        stored = known and source.elements > 1 and source.elements == math.prod(outs[0][0])
        return source if stored and node.op_type in ("DequantizeLinear", "Cast", "Transpose") else None

    def _name(self, name: str, value: Value, node: Node, place: Place) -> None:
        if name in place.names.held:
            raise self.wrong("two values have one name", self.place(node, place), show(name))
        place.names.held[name] = value

    def constant(self, tensor: OnnxTensor) -> Value:
        """Give the value of one of the file's constants."""
        data = tensor.data if tensor.data is not None and tensor.elements <= LARGEST else None
        return Value(
            tensor.name,
            tensor.shape,
            tensor.dtype,
            data=data,
            constant=True,
            tensor=tensor,
            weighty=_is_weight(tensor),
        )

    # -- functions and control flow --------------------------------------------------------------------------------

    def _call(self, node: Node, function: Function, place: Place) -> None:
        """Put a function's body in the place of its call."""
        key = (function.domain, function.name, function.overload)
        if key in place.calls or place.depth >= NESTING:
            raise self.wrong("functions call each other in a circle", self.place(node, place), show(function.name))
        if len(node.inputs) > len(function.inputs) or len(node.outputs) > len(function.outputs):
            raise self.wrong(
                f"the function {show(function.name, 80)} takes {len(function.inputs)} inputs and gives "
                f"{len(function.outputs)} outputs",
                self.place(node, place),
                f"{len(node.inputs)} inputs, {len(node.outputs)} outputs",
            )
        inner = Names()
        missing: set[str] = set(function.inputs[len(node.inputs) :])
        for formal, name in zip(function.inputs, node.inputs, strict=False):
            if name:
                inner.held[formal] = self._read(name, node, place)
            else:
                missing.add(formal)
        attributes = {**function.defaults, **node.attributes}
        within = Place(
            inner,
            function.opsets,
            {},
            path_of(node, None, place.path, whole=True),
            place.times,
            place.depth + 1,
            f"{place.where}: function {show(function.name, 80)}",
            place.calls | {key},
        )
        for body in function.nodes:
            self._node(_filled(body, attributes, missing), within)
        for formal, name in zip(function.outputs, node.outputs, strict=False):
            if not name:
                continue
            value = inner.find(formal)
            if value is None:
                raise self.wrong(
                    "a function's output is never computed", self.place(node, place), show(f"{function.name}.{formal}")
                )
            self._name(name, value, node, place)

    def _graph(self, node: Node, name: str, place: Place) -> OnnxGraph:
        found = node.attributes.get(name)
        if not isinstance(found, OnnxGraph):
            raise self.wrong(f"{node.op_type} has no {name}", self.place(node, place), "nothing that is a graph")
        if place.depth >= NESTING:
            raise self.wrong("bodies stand too deep inside each other", self.place(node, place), f"{NESTING} levels")
        return found

    def _inside(
        self, graph: OnnxGraph, node: Node, place: Place, given: Mapping[str, Value], times: int = 1
    ) -> list[Value]:
        """Walk over a body and give its outputs."""
        inner = Names(place.names)
        inner.held.update(given)
        infos = {**graph.values, **{o.name: o for o in graph.outputs}}
        within = replace(
            place,
            names=inner,
            infos=infos,
            path=path_of(node, None, place.path, whole=True),
            times=place.times * times,
            depth=place.depth + 1,
            where=f"{self.place(node, place)}: {show(graph.name, 80) or 'body'}",
        )
        self._body(graph, within)
        outputs = []
        for info in graph.outputs:
            value = inner.find(info.name)
            if value is None:
                raise self.wrong("a body's output is never computed", within.where, show(info.name))
            outputs.append(value)
        return outputs

    def _if(self, node: Node, place: Place) -> None:
        condition = self._inputs(node, place, 1)[0]
        branches = [self._graph(node, name, place) for name in ("then_branch", "else_branch")]
        known = _whole(condition)
        chosen = branches if known is None else [branches[0 if known else 1]]
        best: tuple[int, list[Step], list[Value], dict[str, None]] | None = None
        kept, notes = self.steps, self.notes
        failed: SourceError | None = None
        for graph in chosen:
            self.steps, self.notes = [], dict(notes)
            try:
                outputs = self._inside(graph, node, place, {})
            except SourceError as error:  # a branch that is never taken may not fit the shapes that there are
                if len(chosen) == 1:
                    raise
                failed = error
                continue
            size = sum(v.elements for step in self.steps for v in step.outputs if v is not None)
            if best is None or size > best[0]:
                best = (size, self.steps, outputs, self.notes)
        self.steps, self.notes = kept, notes
        if best is None:
            assert failed is not None
            raise failed
        _, steps, outputs, self.notes = best
        if len(chosen) > 1:
            self.notes["the condition of If depends on values; of its two branches the larger counts"] = None
        self.steps += steps
        self._bind(node, outputs, place)

    def _loop(self, node: Node, place: Place) -> None:
        given = self._inputs(node, place, 2)
        graph = self._graph(node, "body", place)
        carried = [v for v in given[2:] if v is not None]
        if len(graph.inputs) != len(carried) + 2 or len(graph.outputs) < len(carried) + 1:
            raise self.wrong(
                "the body of Loop does not fit its inputs",
                self.place(node, place),
                f"{len(graph.inputs)} inputs and {len(graph.outputs)} outputs for {len(carried)} values",
            )
        times = _whole(given[0])
        stops = _whole(given[1]) == 0
        rounds = 0 if stops else times
        if rounds is None or not rounds < ROUNDS:
            if not self.estimate:
                raise UnsupportedOp(
                    "a Loop runs as often as its values say",
                    where=self.place(node, place),
                    received="no number of rounds" if rounds is None else f"{rounds:,} rounds",
                    todo="export the model with a fixed number of rounds, or count one round with --estimate",
                )
            self.notes["estimate: a Loop whose rounds depend on values counts with one round"] = None
            rounds = 1
        rounds = max(0, rounds)
        first = {
            graph.inputs[0].name: Value(graph.inputs[0].name, (), "int64", constant=False),
            graph.inputs[1].name: Value(graph.inputs[1].name, (), "bool", constant=False),
        }
        fixed = self._fed(node, place, first)
        states = {
            info.name: Value(info.name, v.shape, v.dtype, base=v, constant=False, stored=v.stored)
            for info, v in zip(graph.inputs[2:], carried, strict=True)
        }
        turns = Turns(carried, rounds, 1 + len(carried), [0] * len(graph.outputs))
        self._rounds(node, place, graph, {**fixed, **states}, turns)

    def _fed(self, node: Node, place: Place, values: Mapping[str, Value]) -> dict[str, Value]:
        """Let one step make the values that a control-flow node itself gives to its body."""
        call = Call(node, (), 1, self.place(node, place))
        entry = Entry(node.op_type.lower(), lambda _call: [])
        self.steps.append(Step(node, entry, call, list(values.values()), path_of(node, call, place.path), place.times))
        return dict(values)

    def _rounds(
        self,
        node: Node,
        place: Place,
        graph: OnnxGraph,
        given: Mapping[str, Value],
        turns: Turns,
    ) -> None:
        """Walk over a body once for all rounds, and put together what every round adds to its outputs.

        The whole of such an output is there from the first round on: one step makes it, a later one writes to it.
        """
        carried, rounds, skipped, axes = turns
        before = len(self.steps)
        outputs = self._inside(graph, node, place, given, max(1, rounds))
        body, self.steps = self.steps[before:], self.steps[:before]
        results: list[Value] = []
        for state, value in zip(carried, outputs[skipped - len(carried) : skipped], strict=True):
            if state.shape != value.shape and rounds > 1:
                raise self.wrong(
                    f"a value that {node.op_type} carries changes its shape from round to round",
                    self.place(node, place),
                    f"{state!r} becomes {value!r}",
                )
            results.append(value if rounds else state)
        wholes: list[tuple[Value, Value]] = []
        for position, value in enumerate(outputs[skipped:]):
            axis = axes[position] if position < len(axes) else 0
            rank = len(value.shape) + 1
            if not -rank <= axis < rank:
                raise self.wrong("an axis is outside its value's dimensions", self.place(node, place), str(axis))
            axis %= rank
            shape: Shape = (*value.shape[:axis], rounds, *value.shape[axis:])
            if math.prod(shape) > ELEMENTS:
                raise self.wrong(
                    "the output of all rounds would have no possible size", self.place(node, place), f"{shape}"[:200]
                )
            wholes.append((Value(value.name, shape, value.dtype), value))
        if not rounds:
            body = []
        entry = Entry(node.op_type.lower(), lambda _call: [])
        path = path_of(node, None, place.path)
        where = self.place(node, place)
        if wholes:
            start = Call(node, (), 1, where)
            self.steps.append(Step(node, entry, start, [whole for whole, _ in wholes], path, place.times))
        self.steps += body
        for whole, part in wholes:
            done = Value(whole.name, whole.shape, whole.dtype, base=whole)
            if rounds:
                end = Call(node, (part, whole), 1, where)
                self.steps.append(
                    Step(node, entry._replace(kind="slice_scatter"), end, [done], path, place.times, writes=whole)
                )
            results.append(done)
        self._bind(node, results, place)

    def _scan(self, node: Node, place: Place) -> None:
        given = [v for v in self._inputs(node, place, 1) if v is not None]
        graph = self._graph(node, "body", place)
        call = Call(node, given, place.opsets.get("", 1), self.place(node, place))
        if call.opset < 9:
            raise call.wrong("Scan before opset 9 is not read")
        count = call.integer("num_scan_inputs")
        states = len(given) - count
        if not 0 < count <= len(given) or len(graph.inputs) != len(given) or len(graph.outputs) < states:
            raise call.wrong("its body does not fit its inputs")
        axes = call.integers("scan_input_axes", (0,) * count, count)
        scanned = given[states:]
        lengths = {v.shape[call.axis(a, len(v.shape))] if v.shape else -1 for v, a in zip(scanned, axes, strict=True)}
        if len(lengths) != 1 or -1 in lengths:
            raise call.wrong("its inputs have different lengths")
        rounds = lengths.pop()
        inner = {
            info.name: Value(info.name, v.shape, v.dtype, base=v, stored=v.stored)
            for info, v in zip(graph.inputs[:states], given, strict=False)
        }
        parts = {}
        for info, value, axis in zip(graph.inputs[states:], scanned, axes, strict=True):
            place_of = call.axis(axis, len(value.shape))
            shape = (*value.shape[:place_of], *value.shape[place_of + 1 :])
            parts[info.name] = Value(info.name, shape, value.dtype)
        slices = Step(
            node,
            Entry("slice", lambda _call: []),
            Call(node, scanned, 1, call.where),
            list(parts.values()),
            path_of(node, call, place.path),
            place.times,
        )
        self.steps.append(slices)
        out_axes = call.integers("scan_output_axes", (0,) * (len(graph.outputs) - states))
        self._rounds(node, place, graph, {**inner, **parts}, Turns(given[:states], rounds, states, out_axes))

    def _inputs(self, node: Node, place: Place, least: int) -> list[Value | None]:
        given = [self._read(name, node, place) if name else None for name in node.inputs]
        if len(given) < least:
            raise self.wrong(f"{node.op_type} lacks an input", self.place(node, place), f"{len(given)} inputs")
        return given

    def _bind(self, node: Node, outputs: Sequence[Value], place: Place) -> None:
        if len(outputs) < len(node.outputs):
            raise self.wrong(
                f"the body of {node.op_type} gives too few outputs",
                self.place(node, place),
                f"{len(outputs)} instead of {len(node.outputs)}",
            )
        for name, value in zip(node.outputs, outputs, strict=False):
            if name:
                self._name(name, value, node, place)

    # -- words -----------------------------------------------------------------------------------------------------

    def place(self, node: Node, place: Place) -> str:
        """Say where a node stands."""
        name = f" ({show(node.name, 200)})" if node.name else ""
        return f"{self.model.source}: {place.where}.node[{node.index}]{name}"

    def wrong(self, what: str, where: str, received: str) -> SourceError:
        """Make the error for a network that cannot run."""
        return SourceError(
            f"this .onnx file cannot run: {what}",
            where=where if where.startswith(self.model.source) else f"{self.model.source}: {where}",
            received=received or "empty text",
            todo="export the model again: the file is damaged, or its exporter has a fault",
        )


def _whole(value: Value | None) -> int | None:
    """Give a known whole number or truth value."""
    if value is None or value.data is None or value.data.size != 1 or value.data.dtype.kind not in "iub":
        return None
    return int(value.data.ravel()[0])


def _is_weight(tensor: OnnxTensor) -> bool:
    """True for what may have been trained: whole numbers say how, and a single number is a literal of the program."""
    return bool(tensor.shape) and tensor.dtype not in ("int64", "bool", "string")


def _filled(node: Node, attributes: Mapping[str, Any], missing: set[str]) -> Node:
    """Give a function's node the attributes of the call, and leave out the inputs that the call leaves out."""
    filled = {}
    for name, value in node.attributes.items():
        if isinstance(value, Reference):
            if value.name in attributes:
                filled[name] = attributes[value.name]
        elif isinstance(value, OnnxGraph):
            filled[name] = value._replace(nodes=tuple(_filled(inner, attributes, set()) for inner in value.nodes))
        else:
            filled[name] = value
    return node._replace(attributes=filled, inputs=tuple("" if name in missing else name for name in node.inputs))


def every(steps: Sequence[Step]) -> Iterator[Value]:
    """List the values that steps make."""
    for step in steps:
        for value in step.outputs:
            if value is not None:
                yield value
