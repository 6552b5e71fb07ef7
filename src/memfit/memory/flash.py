"""Flash that a network takes with TensorFlow Lite Micro: the model file, and an estimate of the code that runs it.

The file is linked into the program as it is, so its size is exact. The code is an estimate, and stands apart: what
`flash_kernels` measured on a PC, carried over to a Cortex-M4 with gcc. Left out are the C library, the texts of error
messages, drivers and the program itself; optimised kernels (CMSIS-NN, Ethos-U) have code of other sizes.

For a network that is no `.tflite` file yet, the file is an estimate too: one byte for a weight, four for a bias, and
for quantization, tensors and names what the files of MLPerf Tiny and of TFLM's examples show (docs/flash.md).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import NamedTuple

from memfit.analysis.layers import INPUT, UNUSED, Layer, layers
from memfit.errors import UsageError
from memfit.formats.tflite import TfliteModel
from memfit.graph.model import Graph
from memfit.graph.optable import Role
from memfit.memory.flash_kernels import (
    COMMON,
    CORE,
    CORE_RATIO,
    DEFAULT,
    FUSED,
    KERNEL_RATIO,
    KERNELS,
    OPERATORS,
    SHARED,
)

TENSOR_BYTES = 192
"""Of a file for each tensor, apart from its data and its scales: its table, name, buffer and its operator's share.

The median of nine files, which lie between 116 (no names) and 541 (names of fused operators joined): docs/flash.md.
"""

CHANNEL_BYTES = 12
"""Scale (float32) and zero point (int64) of one channel: schema.fbs, QuantizationParameters."""

BIAS_BYTES = 4
"""An int32: TFLite's 8-bit quantization specification, https://ai.google.dev/edge/litert/models/quantization_spec."""

_CODE_NOTE = (
    "code is an estimate: TFLM's reference kernels as measured on x86-64, carried over to Cortex-M4 with gcc; the C "
    "library, error texts, drivers and the program itself are not in it"
)


class OperatorCode(NamedTuple):
    """What one kind of operator adds to the code."""

    name: str
    """As in the file: CONV_2D; a custom operator's own name."""
    code_bytes: int
    """Estimated; functions that it shares with operators before it count there."""
    known: bool
    """False where the table lacks it, and the figure is the median of the others."""


@dataclass(frozen=True)
class Flash:
    """Flash of one network on a 32-bit Cortex-M, in bytes.

    >>> flash = Flash(100, 80, 30, (OperatorCode("RELU", 12, True),), ())
    >>> flash.graph_bytes, flash.code_bytes, flash.total_bytes
    (20, 42, 142)
    """

    model_bytes: int
    """The file, as it is linked."""
    weight_bytes: int
    """Of it: the data of constant tensors, each buffer once."""
    core_bytes: int
    """Estimated: the interpreter, and what most kernels share."""
    by_operator: tuple[OperatorCode, ...]
    """Estimated, in the order in which the network first uses them."""
    notes: tuple[str, ...]

    @property
    def graph_bytes(self) -> int:
        """Of the file: everything but weights: operators, tensors, names, scales, metadata."""
        return self.model_bytes - self.weight_bytes

    @property
    def code_bytes(self) -> int:
        """Estimated: interpreter and kernels."""
        return self.core_bytes + sum(operator.code_bytes for operator in self.by_operator)

    @property
    def total_bytes(self) -> int:
        """File and code together: as exact as the code, which is an estimate."""
        return self.model_bytes + self.code_bytes


def flash(model: TfliteModel) -> Flash:
    """Give the flash of a `.tflite` file: the file exactly, the code as an estimate.

    >>> flash(TfliteModel("net.tflite", 3, "", (), (), (), (), (), (), data=bytes(2704))).model_bytes
    2704

    Args:
        model: what `memfit.formats.tflite.read_model` gives.
    """
    spans = {
        tensor.buffer: tensor.data.nbytes
        for subgraph in model.subgraphs
        for tensor in subgraph.tensors
        if tensor.data is not None
    }
    names = [operator.name for subgraph in model.subgraphs for operator in subgraph.operators]
    core, operators = code(names)
    notes = [_CODE_NOTE, *_unknown(operators)]
    if any(tensor.external for subgraph in model.subgraphs for tensor in subgraph.tensors):
        notes.append("some weights are in another file, which is not counted")
    return Flash(len(model.data), sum(spans.values()), core, operators, tuple(notes))


def flash_of_graph(graph: Graph, *, weight_bits: int = 8) -> Flash:
    """Give the flash of any network: exactly as `flash` for one read from a `.tflite` file, else all estimated.

    >>> from memfit.graph.model import Graph
    >>> empty = flash_of_graph(Graph((), (), (), (), (), ()))
    >>> empty.model_bytes, empty.by_operator
    (0, ())

    Args:
        graph: the network; batch norms count as folded into the layers before them.
        weight_bits: bits of a weight in the file; biases and other parameters take four bytes.

    Raises:
        UsageError: `weight_bits` is not from 1 to 32.
    """
    if isinstance(graph.origin, TfliteModel):
        return flash(graph.origin)
    return estimate(graph, weight_bits=weight_bits)


def estimate(graph: Graph, *, weight_bits: int = 8) -> Flash:
    """Estimate the flash of a network from its graph alone, even where its file is there.

    >>> from memfit.graph.model import Graph
    >>> estimate(Graph((), (), (), (), (), ())).weight_bytes
    0

    Args:
        graph: the network.
        weight_bits: bits of a weight in the file.

    Raises:
        UsageError: `weight_bits` is not from 1 to 32.
    """
    if not 1 <= weight_bits <= 32:
        raise UsageError(
            "a weight has from 1 to 32 bits", where="weight_bits", received=str(weight_bits), todo="use 8 for int8"
        )
    channels_last = graph.environment.get("format") == "tflite"
    weights = biases = tensors = scales = 0
    names: list[str] = []
    for row in layers(graph):
        if row.type == UNUSED:
            continue
        tensors += 1
        scales += 1
        if row.type == INPUT:
            continue
        names += _operators(row)
        if row.weights:
            channels = _channels(row, channels_last)
            quantized = channels if row.role is Role.CONV else 1
            biases += channels
            tensors += 2
            scales += 2 * quantized
            weights += -(-row.weights * weight_bits // 8)
        elif row.params and row.role is not Role.BATCH_NORM:
            biases += row.params
            tensors += 1
            scales += 1
    weight_bytes = weights + BIAS_BYTES * biases
    graph_bytes = TENSOR_BYTES * tensors + CHANNEL_BYTES * scales
    core, operators = code(names)
    notes = (
        f"the model file is an estimate: weights at {weight_bits} bits, biases at 32, {TENSOR_BYTES} bytes for each of "
        f"{tensors:,} tensors and {CHANNEL_BYTES} for each of {scales:,} scales",
        _CODE_NOTE,
        *_unknown(operators),
    )
    return Flash(weight_bytes + graph_bytes, weight_bytes, core, operators, notes)


def code(names: Iterable[str]) -> tuple[int, tuple[OperatorCode, ...]]:
    """Estimate the code of the interpreter, and what each of these operators adds to it, in bytes on a Cortex-M4.

    >>> core, (pool, other) = code(["AVERAGE_POOL_2D", "MAX_POOL_2D", "MAX_POOL_2D"])
    >>> core, pool.code_bytes, other.code_bytes
    (14941, 3502, 2307)

    Args:
        names: operators as in a file, in any number.
    """
    core = round(CORE * CORE_RATIO) + round(COMMON * KERNEL_RATIO)
    found: list[OperatorCode] = []
    linked: set[str] = set()
    for name in dict.fromkeys(names):
        nbytes = KERNELS.get(name, DEFAULT)
        nbytes -= sum(shared for group, shared in SHARED if name in group and linked & group)
        linked.add(name)
        found.append(OperatorCode(name, round(nbytes * KERNEL_RATIO), name in KERNELS))
    return core, tuple(found)


def _operators(row: Layer, table: Mapping[str, tuple[str, ...]] = OPERATORS) -> list[str]:
    """List what a converter makes of a layer; a kind without an entry goes by its own name, which no kernel has."""
    names = list(table.get(row.type, (row.type.upper(),)))
    if row.activation and row.activation not in FUSED:
        names += table.get(row.activation, (row.activation.upper(),))
    return names


def _channels(row: Layer, channels_last: bool) -> int:
    """Count a layer's output channels, each of which has a bias; PyTorch and ONNX have a convolution's second."""
    shape = row.output_shape
    if not shape:
        return 0
    return shape[1] if row.role is Role.CONV and not channels_last and len(shape) > 2 else shape[-1]


def _unknown(operators: Iterable[OperatorCode]) -> tuple[str, ...]:
    names = [operator.name for operator in operators if not operator.known]
    if not names:
        return ()
    return (f"no figure for {', '.join(names)}: counted as the median kernel, {round(DEFAULT * KERNEL_RATIO):,} bytes",)
