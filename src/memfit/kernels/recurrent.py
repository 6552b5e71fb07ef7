"""SVDF and UNIDIRECTIONAL_SEQUENCE_LSTM: operators whose variable tensors live on from run to run.

Sources in tflite-micro: micro/kernels/{svdf_common,lstm_eval,lstm_eval_common}.cc, lstm_eval.h.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from memfit.kernels.activation import LIMITS, RELU, RELU6, float_range, round_float
from memfit.kernels.activations import fine_logistic, fine_tanh, in_double, logistic_float
from memfit.kernels.convolution import Matrix
from memfit.kernels.fixed_point import Ints, quantize_multiplier, scale, scale_wide
from memfit.kernels.kernel import Array, Inputs, Kernel, Node, Outputs, scale_of, zero_of
from memfit.kernels.linear import sequential_product


def _given(inputs: Inputs, position: int) -> Array:
    found = inputs[position]
    assert found is not None  # Node.input saw it
    return found


# -- SVDF -------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Svdf:
    """Parameters of SVDF."""

    rank: int
    floats: tuple[np.float32, np.float32] | None
    """The activation's range; None for integers."""
    features: tuple[int, int]
    """Multiplier and shift from products of inputs and features to the state."""
    outputs: tuple[int, int]
    """And from products of the state and the weights of time to the output."""
    zeros: tuple[int, int, int]
    """Of input, state and output."""
    state_limits: tuple[int, int]


def _svdf_parameters(node: Node) -> Svdf:
    source, features, times, state, output = *(node.input(k) for k in (0, 1, 2, 4)), node.output()
    rank = int(node.option("rank"))
    if source.type == "FLOAT32":
        activation = int(node.option("fused_activation_function"))
        node.need(activation in (0, RELU, RELU6), "a fused activation that is not computed", activation)
        return Svdf(rank, float_range(node), (0, 0), (0, 0), (0, 0, 0), (0, 0))
    node.need(
        source.type == "INT8" and features.type == "INT8" and times.type == state.type,
        "no kernel for these types", f"{source.type}, {features.type}, {times.type}",
    )  # fmt: skip
    one, two, three, four, five = (np.float32(scale_of(t)) for t in (source, features, state, times, output))
    return Svdf(
        rank,
        None,
        quantize_multiplier(float(one * two / three)),  # in single precision
        quantize_multiplier(float(three * four / five)),
        (zero_of(source), zero_of(state), zero_of(output)),
        LIMITS[state.type],
    )


def _svdf(parameters: Svdf, inputs: Inputs, outputs: Outputs) -> None:
    x, features, times, state = (_given(inputs, k) for k in (0, 1, 2, 4))
    bias = inputs[3]
    filters, memory = times.shape
    flat = state.reshape(-1)
    flat[:-1] = flat[1:].copy()  # every row of the memory moves by one; what a row gets at its end is overwritten below
    rows = state.reshape(len(x), filters, memory)
    if parameters.floats is not None:
        rows[:, :, -1] = sequential_product(x, features.T)
        total = np.zeros(rows.shape[:2], np.float32)
        for step in range(memory):
            total += times[:, step] * rows[:, :, step]
        made = (
            np.zeros(outputs[0].shape, np.float32) if bias is None else np.broadcast_to(bias, outputs[0].shape).copy()
        )
        for part in range(parameters.rank):
            made += total[:, part :: parameters.rank]
        outputs[0][...] = np.clip(made, *parameters.floats)
        return
    source_zero, state_zero, output_zero = parameters.zeros
    products = (x.astype(np.int64) - source_zero) @ features.astype(np.int64).T
    fresh = np.clip(scale(products, *parameters.features), *parameters.state_limits) + state_zero
    rows[:, :, -1] = fresh.astype(rows.dtype)
    each = (times.astype(np.int64) * (rows.astype(np.int64) - state_zero)).sum(axis=2)
    sums = each.reshape(len(x), -1, parameters.rank).sum(axis=2)
    if bias is not None:
        sums += bias
    outputs[0][...] = np.clip(scale(sums, *parameters.outputs) + output_zero, -128, 127)


SVDF = Kernel(_svdf_parameters, _svdf)
"""Of 8 bits with a state of 8 or 16 bits; of floats. The state, its fifth input, is changed in place."""


# -- LSTM -------------------------------------------------------------------------------------------------------------

_GATES = {"input": (1, 5, 12), "forget": (2, 6, 13), "cell": (3, 7, 14), "output": (4, 8, 15)}
"""Inputs that hold each gate's weights, recurrent weights and bias."""
_HIDDEN, _CELL = 18, 19
_SIGMOID_SCALE, _PRODUCT_SCALE = 2.0**-12, 2.0**-15
"""Of what goes into the gates' curves, and of what comes out."""


@dataclass(frozen=True)
class Gate:
    """Multipliers of one gate's two matrix products."""

    input: tuple[int, int]
    recurrent: tuple[int, int]


@dataclass(frozen=True)
class Lstm:
    """Parameters of UNIDIRECTIONAL_SEQUENCE_LSTM."""

    time_major: bool
    clip: float
    """Of the cell; 0 for none."""
    gates: dict[str, Gate] | None
    """None for floats."""
    zeros: tuple[int, int]
    """Of input and hidden state."""
    forget: tuple[int, int]
    remember: tuple[int, int]
    emit: tuple[int, int]
    """Multipliers of forget gate by cell, input gate by cell gate, output gate by the cell's tanh."""
    tanh: tuple[int, int]
    """Of the cell, on its way into tanh."""
    limits: tuple[int, int]
    """Of the hidden state."""
    wide: bool


def _lstm_parameters(node: Node) -> Lstm:
    source, hidden, cell = node.input(0), node.input(_HIDDEN), node.input(_CELL)
    others = [k for k in (9, 10, 11, 16, 17, 20, 21, 22, 23) if node.optional(k) is not None]
    node.need(not others, "peepholes, projections and normalization are not computed", f"inputs {others}")
    major, clip = bool(node.option("time_major")), float(node.option("cell_clip"))
    if source.type == "FLOAT32":
        none = (0, 0)
        return Lstm(major, clip, None, none, none, none, none, none, none, wide=False)
    node.need(source.type in ("INT8", "INT16"), "no kernel for this type", source.type)

    def multiplier(left: int, right: int) -> tuple[int, int]:
        product = np.float32(scale_of(node.input(left))) * np.float32(scale_of(node.input(right)))
        return quantize_multiplier(float(product) / _SIGMOID_SCALE)

    gates = {name: Gate(multiplier(0, w), multiplier(_HIDDEN, r)) for name, (w, r, _) in _GATES.items()}
    cell_scale, product = scale_of(cell), _PRODUCT_SCALE * _PRODUCT_SCALE
    left = 12 + round_float(math.log2(cell_scale))
    limit = int(min(max(np.float64(clip) / cell_scale, -32768.0), 32767.0))
    return Lstm(
        major,
        limit,
        gates,
        (zero_of(source), zero_of(hidden)),
        quantize_multiplier(_PRODUCT_SCALE * cell_scale / cell_scale),
        quantize_multiplier(product / cell_scale),
        quantize_multiplier(product / scale_of(hidden)),
        (3 << left, 0) if left >= 0 else (3, -left),
        LIMITS[hidden.type],
        source.type == "INT16",
    )


def _saturated(x: Ints) -> Ints:
    made: Ints = np.clip(x, -32768, 32767)
    return made


def _integer_step(p: Lstm, inputs: Inputs) -> Callable[[Array, Array, Array], tuple[Array, Array]]:
    rescale, largest = (scale_wide, 32768) if p.wide else (scale, 128)
    gates = p.gates
    assert gates is not None  # floats go another way
    matrices = {
        position: (Matrix.of(weights.T[None], largest), weights.astype(np.int64).sum(axis=1))
        for position in (p for pair in _GATES.values() for p in pair[:2])
        for weights in (_given(inputs, position),)
    }

    def gate(name: str, x: Array, hidden: Array) -> Ints:
        (first, first_sum), (second, second_sum) = (matrices[position] for position in _GATES[name][:2])
        bias = inputs[_GATES[name][2]]
        seen = first.multiply(x) - p.zeros[0] * first_sum
        if bias is not None:
            seen += bias
        kept = second.multiply(hidden) - p.zeros[1] * second_sum
        return _saturated(
            _saturated(rescale(seen, *gates[name].input)) + _saturated(rescale(kept, *gates[name].recurrent))
        )

    def step(x: Array, hidden: Array, cell: Array) -> tuple[Array, Array]:
        forget, remember, emit = (fine_logistic(gate(name, x, hidden), 3, 0) for name in ("forget", "input", "output"))
        fresh = fine_tanh(gate("cell", x, hidden), 3, 0)
        kept = _saturated(scale(forget * cell, *p.forget))
        added = _saturated(scale(remember * fresh, *p.remember))
        state = _saturated(kept + added)
        if p.clip > 0:
            state = np.clip(state, -p.clip, p.clip)
        made = scale(fine_tanh(state, *p.tanh) * emit, *p.emit) + p.zeros[1]
        return np.clip(made, *p.limits), state

    return step


def _float_step(p: Lstm, inputs: Inputs) -> Callable[[Array, Array, Array], tuple[Array, Array]]:
    tanh = in_double(np.tanh)

    def gate(name: str, x: Array, hidden: Array) -> Array:
        w, r, b = _GATES[name]
        made = sequential_product(x, _given(inputs, w).T)
        bias = inputs[b]
        if bias is not None:
            made += bias
        return made + sequential_product(hidden, _given(inputs, r).T)

    def step(x: Array, hidden: Array, cell: Array) -> tuple[Array, Array]:
        forget, remember, emit = (logistic_float(gate(name, x, hidden)) for name in ("forget", "input", "output"))
        state = forget * cell + remember * tanh(gate("cell", x, hidden))
        if p.clip > 0:
            state = np.clip(state, -np.float32(p.clip), np.float32(p.clip))
        return tanh(state) * emit, state

    return step


def _lstm(parameters: Lstm, inputs: Inputs, outputs: Outputs) -> None:
    x, hidden, cell = (_given(inputs, k) for k in (0, _HIDDEN, _CELL))
    output: Any = outputs[0]
    if not parameters.time_major:
        x, output = x.swapaxes(0, 1), output.swapaxes(0, 1)
    step = (_float_step if parameters.gates is None else _integer_step)(parameters, inputs)
    shape = x.shape[1], -1
    wide = np.float32 if parameters.gates is None else np.int64
    for time, row in enumerate(x):
        made, state = step(row, hidden.reshape(shape), cell.reshape(shape).astype(wide))
        hidden[...] = made.reshape(hidden.shape)
        cell[...] = state.reshape(cell.shape)
        output[time] = made


LSTM = Kernel(_lstm_parameters, _lstm)
"""Of 8 bits, of 16 bits with weights of 8, of floats. Its two states are changed in place."""
