"""The `.tflite` model that a network would become: records without data, to plan before anything is converted.

Converters fold norms into the layer before them, and of activations those that TensorFlow Lite fuses; the others stay
operators with an output of their own. A network of floats becomes integers of one byte an element, with biases of four;
a network that holds integers already keeps the types that it has. Views make no bytes. What a converter adds or leaves
out besides, such as transposes between layouts, is not known before the conversion.
"""

from __future__ import annotations

from collections.abc import Sequence

from memfit.analysis.layers import INPUT, UNUSED, Layer, layers
from memfit.analysis.values import Values, values_of
from memfit.errors import UsageError
from memfit.formats.flatbuffer import Span
from memfit.formats.tflite import Operator, Quantization, Subgraph, TfliteModel, TfliteTensor
from memfit.formats.tflite.model import Buffer, OperatorCode
from memfit.graph.model import Graph, Op, Tensor
from memfit.graph.optable import Role
from memfit.memory.flash_kernels import FUSED, OPERATORS

NOTE = "estimate: a network not yet converted, planned as the int8 .tflite that it would become"

CAPTURED = "captured"
"""Option of an estimated operator: the `Op` of the graph that it was made of."""

_FUSES = frozenset({Role.CONV, Role.LINEAR, Role.MATMUL, Role.POOL, Role.ADD})
"""Layers whose kernels apply an activation of FUSED along with their work."""

_SECOND_LOOK = frozenset({"silu", "layer_norm", "group_norm", "instance_norm", "rms_norm"})
"""Kinds of several operators whose last one reads their input again, so that it stays alive."""

_INDICES = frozenset({"MEAN", "SUM", "REDUCE_MAX", "PAD", "TRANSPOSE", "RESIZE_NEAREST_NEIGHBOR", "RESIZE_BILINEAR"})
"""Operators whose second input is a small constant of axes, pads or sizes."""

_INTEGERS = frozenset({"int8", "uint8", "int4", "uint4"})


def _operators(row: Layer) -> tuple[str, ...]:
    """Name the builtin operators that a layer becomes, in order; none for what a converter leaves out."""
    if row.role is Role.CONV and row.type not in OPERATORS:
        return ("CONV_2D",)
    return OPERATORS.get(row.type, (row.type.upper(),))


def _filter_shape(kind: str, shape: tuple[int, ...]) -> tuple[int, ...]:
    """Turn a filter's shape, output channels first, into that of TensorFlow Lite, input channels last.

    >>> _filter_shape("CONV_2D", (8, 3, 5, 5)), _filter_shape("DEPTHWISE_CONV_2D", (8, 1, 3))
    ((8, 5, 5, 3), (1, 1, 3, 8))
    """
    first, second, *kernel = shape
    kernel = [*[1] * (2 - len(kernel)), *kernel]
    if kind == "DEPTHWISE_CONV_2D":
        return (1, *kernel, first * second)
    return (second, *kernel, first) if kind == "TRANSPOSE_CONV" else (first, *kernel, second)


def as_tflite(graph: Graph) -> TfliteModel:
    """Make the records of the integer `.tflite` model that a network would become.

    >>> from memfit.graph.model import Graph
    >>> as_tflite(Graph((), (), (), (), (), ())).main.operators
    ()

    Args:
        graph: a network for inference, captured or read from a file.

    Raises:
        UsageError: a graph of training.
    """
    if graph.training:
        raise UsageError(
            "a plan is of inference, and this graph holds a training step",
            where=graph.source,
            received=f"{len(graph.ops):,} operations of forward and backward",
            todo="capture the network without --training",
        )
    return _Made(graph).model()


class _Made:
    """The model in the making."""

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self.values: Values = values_of(graph)
        self.place = {op.index: number for number, op in enumerate(self.values.forward)}
        """Operation → position in the forward pass."""
        self.tensors: list[TfliteTensor] = []
        self.operators: list[Operator] = []
        self.codes: dict[str, int] = {}
        self.data = 0
        """Bytes of constants so far."""
        self.of_value: dict[int, int] = {}
        """Value → tensor index."""
        self.of_parameter: dict[int, int] = {}
        """Tensor id of a parameter → tensor index."""
        self.shown: dict[int, Tensor] = {}
        """Value → the first tensor that shows it."""
        for tensor in graph.tensors:
            value = self.values.value_of.get((tensor.storage, tensor.version))
            if value is not None:
                self.shown.setdefault(value, tensor)
        self.keeps_types = any(
            tensor.dtype in _INTEGERS and tensor.elements and self.values.producer[value] >= 0
            for value, tensor in self.shown.items()
            if not self.values.state[value]
        )
        """True for a network that is quantized already."""

    def model(self) -> TfliteModel:
        """Write every layer in the order in which it is done."""
        graph, values = self.graph, self.values
        inputs = []
        for i in graph.inputs:
            tensor = graph.tensors[i]
            inputs.append(self._activation(values.value_of[tensor.storage, tensor.version], tensor.name or "input"))
        rows = [row for row in layers(graph, values=values) if row.type not in (INPUT, UNUSED) and row.ops]
        for row in sorted(rows, key=self._done):
            self._row(row)
        outputs = tuple(sorted({self.of_value[value] for value in values.leaving if value in self.of_value}))
        main = Subgraph(0, "main", tuple(self.tensors), tuple(self.operators), tuple(inputs), outputs)
        codes = tuple(OperatorCode(-1, name, 1, False) for name in self.codes)
        return TfliteModel(graph.source, 3, NOTE, codes, (main,), (Buffer(None, False),), (), (), ())

    def _done(self, row: Layer) -> int:
        """Give the last operation of a layer that makes something; views of it may come after its first readers."""
        return max((i for i in row.ops if not self.values.alias[self.place[i]]), default=max(row.ops))

    def _row(self, row: Layer) -> None:
        """Write one layer, and its activation behind it where no kernel does that along."""
        values = self.values
        places = [self.place[i] for i in row.ops if not values.alias[self.place[i]]]
        made = dict.fromkeys(value for place in places for value in values.outputs[place] if not values.state[value])
        read = dict.fromkeys(
            value
            for place in places
            for value in values.inputs[place]
            if value not in made and not values.state[value] and not values.prepared[value]
        )
        inside = set(places)
        leave = [
            value
            for value in made
            if value in values.leaving or any(reader not in inside for reader in values.readers[value])
        ]
        names = _operators(row)
        inputs = [self._known(value) for value in read]
        if not names:
            self._leave_out(inputs, leave, row)
            return
        results = [self._activation(value, row.name) for value in leave or list(made)[-1:]]
        if not results:
            return
        activation = row.activation
        if activation is None or row.role is Role.ACTIVATION or (activation in FUSED and row.role in _FUSES):
            self._chain(names, row, row.type, inputs, results)
            return
        between = self._like(results[0], f"{row.name}/before {activation}")
        self._chain(names, row, row.type, inputs, [between])
        self._chain(OPERATORS.get(activation, (activation.upper(),)), row, activation, [between], results)

    def _leave_out(self, inputs: Sequence[int], values: Sequence[int], row: Layer) -> None:
        """Let values stand for what they are copies of, or for constants where nothing is copied."""
        for value in values:
            tensor = self.shown[value]
            same = [i for i in inputs if self.tensors[i].elements == self.values.elements[value]]
            self.of_value[value] = (
                same[0] if same else self._constant(row.name, (self.values.elements[value],), self._type(tensor.dtype))
            )

    def _chain(
        self, names: Sequence[str], row: Layer, kind: str, inputs: Sequence[int], results: Sequence[int]
    ) -> None:
        """Write operators one behind the other: the first reads the inputs, each of the others what the last made."""
        own = list(inputs)
        for number, name in enumerate(names):
            last = number == len(names) - 1
            constants = self._constants(row, name) if kind == row.type and number == 0 else self._shape_of(name, row)
            if last:
                made = list(results)
            elif row.role is Role.ATTENTION:
                made = [self._scores(row, results[0])]
            else:
                made = [self._like(results[0], f"{row.name}/{name.lower()}")]
            if last and number and kind in _SECOND_LOOK:
                own += inputs[:1]
            elif last and number and row.role is Role.ATTENTION:  # scores times values
                own += inputs[-1:]
            if name == "BATCH_MATMUL" and len(own) == 1:  # both operands are parts of one tensor
                own *= 2
            if name == "TRANSPOSE_CONV" and constants:  # the output's shape, the filter, the input, the bias
                shape = self._constant(f"{row.name}/shape", (4,), "INT32")
                own, constants = [shape, constants[0], *own], constants[1:]
            self._operator(name, (*own, *constants), made, self.graph.ops[row.head] if number == 0 else None)
            own = made[:1]

    def _like(self, other: int, name: str) -> int:
        tensor = self.tensors[other]
        return self._tensor(name, tensor.shape, tensor.type)

    def _scores(self, row: Layer, result: int) -> int:
        """Make the scores of attention: one for each pair of query and key."""
        op = self.graph.ops[row.head]
        query, key = (self.graph.tensors[i].shape for i in op.inputs[:2])
        if len(query) < 2 or len(key) < 2:
            return self._like(result, f"{row.name}/scores")
        return self._tensor(f"{row.name}/scores", (*query[:-1], key[-2]), self.tensors[result].type)

    def _shape_of(self, name: str, row: Layer) -> list[int]:
        """Write the axes, sizes or paddings that an operator reads."""
        return [self._constant(f"{row.name}/indices", (2,), "INT32")] if name in _INDICES else []

    def _constants(self, row: Layer, kind: str) -> list[int]:
        """Write what the operator reads besides activations: weights and bias in the layout of TensorFlow Lite."""
        if kind in _INDICES:
            return self._shape_of(kind, row)
        found = [self._parameter(i, row, kind) for i in self._parameters(row)]
        if row.role not in (Role.CONV, Role.LINEAR):
            return found
        found = sorted(found, key=lambda i: -len(self.tensors[i].shape))[:2]
        if row.norm is not None and len(found) == 1:  # what is left of the norm
            shape = self.tensors[found[0]].shape
            channels = shape[-1] if kind == "DEPTHWISE_CONV_2D" else shape[0]
            found.append(self._constant(f"{row.name}/folded bias", (channels,), "INT32"))
        return found

    def _parameters(self, row: Layer) -> list[int]:
        """Give the parameters that a layer reads, without those of a norm that folds away."""
        graph, values = self.graph, self.values
        found: dict[tuple[int, int], int] = {}
        for i in row.ops:
            if values.roles[self.place[i]] is Role.BATCH_NORM:
                continue
            for t in graph.ops[i].inputs:
                tensor = graph.tensors[t]
                value = values.value_of.get((tensor.storage, tensor.version))
                if value is not None and tensor.elements and (values.state[value] or values.prepared[value]):
                    found.setdefault((tensor.storage, tensor.version), t)
        return list(found.values())

    def _parameter(self, i: int, row: Layer, kind: str) -> int:
        if i in self.of_parameter:
            return self.of_parameter[i]
        tensor = self.graph.tensors[i]
        is_weight = len(tensor.shape) > 1
        shape, scales = tensor.shape, 1
        if is_weight and row.role is Role.CONV:  # a scale for each output channel; other weights have one in all
            if self.graph.ops[row.head].attrs.get("layout") != "nhwc":
                shape = _filter_shape(kind, shape)
            scales = shape[-1] if kind == "DEPTHWISE_CONV_2D" else shape[0]
        type_ = self._type(tensor.dtype) if is_weight or self.keeps_types else "INT32"
        self.of_parameter[i] = self._constant(tensor.name or f"{row.name}/constant", shape, type_, scales)
        return self.of_parameter[i]

    def _known(self, value: int) -> int:
        """Give the tensor of a value; one that nothing made before is a constant of the file."""
        if value not in self.of_value:
            tensor = self.shown[value]
            self.of_value[value] = self._constant(f"constant{value}", tensor.shape, self._type(tensor.dtype))
        return self.of_value[value]

    def _activation(self, value: int, name: str) -> int:
        if value not in self.of_value:
            tensor = self.shown[value]
            whole = tensor.elements == self.values.elements[value]  # or else a view of a part shows it first
            shape = tensor.shape if whole else (self.values.elements[value],)
            self.of_value[value] = self._tensor(name, shape, self._type(tensor.dtype))
        return self.of_value[value]

    def _type(self, dtype: str) -> str:
        return "INT8" if "float" in dtype and not self.keeps_types else dtype.upper()

    def _tensor(self, name: str, shape: Sequence[int], type_: str, data: Span | None = None, scales: int = 1) -> int:
        index = len(self.tensors)
        quantized = not type_.startswith(("FLOAT", "BFLOAT", "BOOL"))
        quantization = Quantization((1.0,) * scales, (0,) * scales, 0, None) if quantized else None
        self.tensors.append(
            TfliteTensor(index, name, tuple(shape), (), type_, 0, data, quantization, False, True, False, 0)
        )
        return index

    def _constant(self, name: str, shape: Sequence[int], type_: str, scales: int = 1) -> int:
        index = self._tensor(name, shape, type_, Span(0, 0), scales)
        nbytes = self.tensors[index].nbytes
        self.tensors[index] = self.tensors[index]._replace(data=Span(self.data, nbytes))
        self.data += nbytes
        return index

    def _operator(self, kind: str, inputs: Sequence[int], outputs: Sequence[int], captured: Op | None = None) -> None:
        """Write an operator; its only option is the captured operation, which knows window, padding and axis."""
        options = {} if captured is None else {CAPTURED: captured}
        code = self.codes.setdefault(kind, len(self.codes))
        index = len(self.operators)
        self.operators.append(
            Operator(index, code, kind, False, 1, tuple(inputs), tuple(outputs), (), (), None, options, None)
        )
