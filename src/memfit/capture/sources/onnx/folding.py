"""The values of small constant subgraphs: shapes that exporters compute on the way, and the sizes made of them.

`Shape → Gather → Add → Concat → Reshape` must come out as numbers, or no size behind it is known. Only numbers that
are few are computed; weights never are. Each function gets the call and its outputs' shapes and types, and gives its
first output's values (Split: those of all outputs). What it cannot compute stays unknown, which is no error here.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from memfit.capture.sources.onnx.call import Call, Out
from memfit.capture.sources.onnx.shapes import chosen_sizes, slice_bounds
from memfit.formats.onnx import OnnxTensor

LARGEST = 4096
"""Elements of a value that is computed."""

_NUMPY = {
    "float64": np.float64, "float32": np.float32, "float16": np.float16, "int64": np.int64, "int32": np.int32,
    "int16": np.int16, "int8": np.int8, "uint64": np.uint64, "uint32": np.uint32, "uint16": np.uint16,
    "uint8": np.uint8, "bool": np.bool_,
}  # fmt: skip

Fold = Callable[[Call, list[Any], list[Out]], Any]


def fold(call: Call, outs: list[Out]) -> list[Any]:
    """Compute an operator's outputs where all that it needs is known; None for each that stays unknown."""
    nothing: list[Any] = [None] * len(outs)
    function = _FOLDS.get(call.node.op_type)
    if function is None or call.node.domain or any(_size(shape) > LARGEST for shape, _ in outs):
        return nothing
    data = [None if value is None else value.data for value in call.inputs]
    if call.node.op_type not in _FROM_SHAPES and any(
        d is None for d, value in zip(data, call.inputs, strict=True) if value is not None
    ):
        return nothing
    try:
        with np.errstate(all="ignore"):
            made = function(call, data, outs)
            results = made if isinstance(made, list) else [made]
            return [_fitting(result, out) for result, out in zip(results, outs, strict=False)] + nothing[len(results) :]
    except (ValueError, TypeError, IndexError, OverflowError, ZeroDivisionError, KeyError):
        return nothing


def _fitting(result: Any, out: Out) -> Any:
    """Give a result the type that the operator has; None where it has another shape than the rules say."""
    shape, dtype = out
    if result is None or dtype not in _NUMPY:
        return None
    array = np.asarray(result)
    return array.astype(_NUMPY[dtype]) if array.shape == shape else None


def _size(shape: tuple[int, ...]) -> int:
    size = 1
    for n in shape:
        size *= n
    return size


# -- one operator each --------------------------------------------------------------------------------------------


def _shape(call: Call, _data: list[Any], _outs: list[Out]) -> Any:
    shape = call.shape(0)
    return np.array(shape[chosen_sizes(call)], dtype=np.int64)


def _count(call: Call, _data: list[Any], _outs: list[Out]) -> Any:
    return np.int64(call.value(0).elements)


def _constant(call: Call, _data: list[Any], _outs: list[Out]) -> Any:
    for name, value in call.attributes.items():
        if isinstance(value, OnnxTensor):
            return value.data
        if name in ("value_float", "value_floats"):
            return np.asarray(value, dtype=np.float32)
        if name in ("value_int", "value_ints"):
            return np.asarray(value, dtype=np.int64)
    return None


def _filled(call: Call, _data: list[Any], outs: list[Out]) -> Any:
    held = call.attributes.get("value")
    if not isinstance(held, OnnxTensor):
        return np.zeros(outs[0][0], dtype=np.float32)
    return None if held.data is None else np.full(outs[0][0], held.data.ravel()[0])


def _to_out(_call: Call, data: list[Any], outs: list[Out]) -> Any:
    """Same values in the output's shape."""
    return data[0].reshape(outs[0][0])


def _axis_or(call: Call, default: int) -> int:
    return call.integer("axis", default)


def _split(call: Call, data: list[Any], outs: list[Out]) -> Any:
    axis = call.axis(call.integer("axis", 0), data[0].ndim)
    ends = np.cumsum([shape[axis] for shape, _ in outs])[:-1]
    return list(np.split(data[0], ends, axis=axis))


def _slice(call: Call, data: list[Any], _outs: list[Out]) -> Any:
    cuts = [slice(None)] * data[0].ndim
    for start, end, axis, step in zip(*slice_bounds(call), strict=True):
        size = data[0].shape[axis]
        cuts[axis] = slice(start, None if step < 0 and end < -size else end, step)
    return data[0][tuple(cuts)]


def _gather(call: Call, data: list[Any], _outs: list[Out]) -> Any:
    return np.take(data[0], data[1], axis=call.integer("axis", 0))


def _gather_elements(call: Call, data: list[Any], _outs: list[Out]) -> Any:
    return np.take_along_axis(data[0], data[1], axis=call.integer("axis", 0))


def _gather_nd(call: Call, data: list[Any], _outs: list[Out]) -> Any:
    return data[0][tuple(np.moveaxis(data[1], -1, 0))] if not call.integer("batch_dims", 0) else None


def _scatter_nd(call: Call, data: list[Any], _outs: list[Out]) -> Any:
    if call.text("reduction", "none") != "none":
        return None
    result = data[0].copy()
    result[tuple(np.moveaxis(data[1], -1, 0))] = data[2]
    return result


def _scatter_elements(call: Call, data: list[Any], _outs: list[Out]) -> Any:
    if call.text("reduction", "none") != "none":
        return None
    result = data[0].copy()
    np.put_along_axis(result, data[1], data[2], axis=call.integer("axis", 0))
    return result


def _pad(call: Call, data: list[Any], _outs: list[Out]) -> Any:
    if call.text("mode", "constant") != "constant" or len(data) > 3 or len(data) < 2:
        return None
    pads = [int(p) for p in data[1]]
    rank = data[0].ndim
    if any(p < 0 for p in pads):
        return None
    fill = data[2].ravel()[0] if len(data) > 2 and data[2] is not None else 0
    return np.pad(data[0], [(pads[d], pads[d + rank]) for d in range(rank)], constant_values=fill)


def _divide(_call: Call, data: list[Any], _outs: list[Out]) -> Any:
    """Whole numbers are cut toward zero, as C does."""
    a, b = data
    if a.dtype.kind not in "iu":
        return a / b
    if not np.all(b):
        return None
    quotient = np.abs(a) // np.abs(b)
    return np.where((a < 0) != (b < 0), -quotient, quotient)


def _modulo(call: Call, data: list[Any], _outs: list[Out]) -> Any:
    if data[0].dtype.kind in "iu" and not np.all(data[1]):
        return None
    return np.fmod(*data) if call.integer("fmod", 0) else np.mod(*data)


def _power(_call: Call, data: list[Any], _outs: list[Out]) -> Any:
    return np.power(data[0].astype(np.float64), data[1].astype(np.float64))


def _reduce(function: Callable[..., Any]) -> Fold:
    def run(call: Call, data: list[Any], _outs: list[Out]) -> Any:
        axes = tuple(call.known(1)) if call.has(1) else tuple(call.integers("axes", ()))
        if not axes and call.integer("noop_with_empty_axes", 0):
            return data[0]
        return function(data[0], axis=axes or None, keepdims=bool(call.integer("keepdims", 1)))

    return run


def _one(function: Callable[..., Any]) -> Fold:
    return lambda _call, data, _outs: function(data[0])


def _all(function: Callable[..., Any]) -> Fold:
    def run(_call: Call, data: list[Any], _outs: list[Out]) -> Any:
        result = data[0]
        for other in data[1:]:
            result = function(result, other)
        return result

    return run


def _clip(call: Call, data: list[Any], _outs: list[Out]) -> Any:
    low = data[1] if len(data) > 1 else call.attributes.get("min")
    high = data[2] if len(data) > 2 else call.attributes.get("max")
    result = data[0]
    result = result if low is None else np.maximum(result, low)
    return result if high is None else np.minimum(result, high)


def _cumsum(call: Call, data: list[Any], _outs: list[Out]) -> Any:
    if call.integer("exclusive", 0) or call.integer("reverse", 0):
        return None
    return np.cumsum(data[0], axis=int(data[1].ravel()[0]))


def _range(_call: Call, data: list[Any], outs: list[Out]) -> Any:
    start, step = data[0].ravel()[0], data[2].ravel()[0]
    return start + np.arange(outs[0][0][0]) * step


def _topk(call: Call, data: list[Any], outs: list[Out]) -> Any:
    axis = call.axis(call.integer("axis", -1), data[0].ndim)
    keys = data[0].astype(np.float64) * (-1 if call.integer("largest", 1) else 1)
    order = np.take(np.argsort(keys, axis=axis, kind="stable"), np.arange(outs[0][0][axis]), axis=axis)
    return [np.take_along_axis(data[0], order, axis=axis), order]


_FROM_SHAPES = frozenset({"Shape", "Size"})

_FOLDS: dict[str, Fold] = {
    "Shape": _shape,
    "Size": _count,
    "Constant": _constant,
    "ConstantOfShape": _filled,
    **dict.fromkeys(("Identity", "Cast", "CastLike", "Reshape", "Squeeze", "Unsqueeze", "Flatten", "Dropout"), _to_out),
    "Concat": lambda call, data, _outs: np.concatenate(data, axis=call.integer("axis", 1)),
    "Split": _split,
    "Slice": _slice,
    "Gather": _gather,
    "GatherElements": _gather_elements,
    "GatherND": _gather_nd,
    "ScatterND": _scatter_nd,
    "ScatterElements": _scatter_elements,
    "Pad": _pad,
    "Transpose": lambda call, data, _outs: np.transpose(data[0], call.attributes.get("perm")),
    "Expand": lambda _call, data, outs: np.broadcast_to(data[0], outs[0][0]),
    "Tile": lambda _call, data, _outs: np.tile(data[0], tuple(int(n) for n in data[1])) if len(data) == 2 else None,
    "Range": _range,
    "NonZero": _one(lambda x: np.array(np.nonzero(np.atleast_1d(x)))),
    "Add": _all(np.add),
    "Sub": _all(np.subtract),
    "Mul": _all(np.multiply),
    "Sum": _all(np.add),
    "Max": _all(np.maximum),
    "Min": _all(np.minimum),
    "Div": _divide,
    "Mod": _modulo,
    "Pow": _power,
    "And": _all(np.logical_and),
    "Or": _all(np.logical_or),
    "Xor": _all(np.logical_xor),
    "Not": _one(np.logical_not),
    "Equal": _all(np.equal),
    "Greater": _all(np.greater),
    "GreaterOrEqual": _all(np.greater_equal),
    "Less": _all(np.less),
    "LessOrEqual": _all(np.less_equal),
    "Where": lambda _call, data, _outs: np.where(*data),
    "Neg": _one(np.negative),
    "Abs": _one(np.abs),
    "Sign": _one(np.sign),
    "Floor": _one(np.floor),
    "Ceil": _one(np.ceil),
    "Round": _one(np.round),
    "Sqrt": _one(np.sqrt),
    "Reciprocal": _one(lambda x: 1 / x),
    "Exp": _one(np.exp),
    "Log": _one(np.log),
    "Relu": _one(lambda x: np.maximum(x, 0)),
    "Clip": _clip,
    "CumSum": _cumsum,
    "ReduceProd": _reduce(np.prod),
    "ReduceSum": _reduce(np.sum),
    "ReduceMax": _reduce(np.max),
    "ReduceMin": _reduce(np.min),
    "ReduceMean": _reduce(np.mean),
    "TopK": _topk,
}  # fmt: skip
