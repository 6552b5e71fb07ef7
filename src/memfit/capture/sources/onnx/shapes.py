"""Shape rules of element-wise operators, reductions, products and what moves values."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from memfit.capture.sources.onnx.call import Call, Out, Shape, Unresolved, Value
from memfit.formats.onnx import DTYPES, OnnxTensor

Rule = Callable[[Call], list[Out]]

# -- element-wise -------------------------------------------------------------------------------------------------


def same(call: Call) -> list[Out]:
    """As the first input."""
    return [(call.shape(0), call.dtype())]


def typed(dtype: str) -> Rule:
    """As the first input, of another type."""
    return lambda call: [(call.shape(0), dtype)]


def like(position: int, dtype: str | None = None) -> Rule:
    """As one of the inputs."""
    return lambda call: [(call.shape(position), dtype or call.dtype(position))]


def with_mask(call: Call) -> list[Out]:
    """A value and the mask of what was dropped."""
    return [(call.shape(0), call.dtype()), (call.shape(0), "bool")]


def broadcast(call: Call, shapes: Sequence[Shape]) -> Shape:
    """Give the shape to which all of these stretch, by NumPy's rule."""
    rank = max((len(shape) for shape in shapes), default=0)
    result = [1] * rank
    for shape in shapes:
        for place, size in enumerate(shape, rank - len(shape)):
            if size != result[place] and size != 1:
                if result[place] != 1:
                    raise call.wrong("its inputs' shapes do not fit together")
                result[place] = size
    return tuple(result)


def stretched(dtype: str | None = None, source: int = 0) -> Rule:
    """Give all inputs' common shape; the type is that of one of them."""

    def rule(call: Call) -> list[Out]:
        shapes = [v.shape for v in call.inputs if v is not None]
        call.value(source)
        return [(broadcast(call, shapes), dtype or call.dtype(source))]

    return rule


def binary(dtype: str | None = None) -> Rule:
    """Two inputs' common shape; the old `axis` of opsets before 7 places the second."""

    def rule(call: Call) -> list[Out]:
        left, right = call.shape(0), call.shape(1)
        if call.opset < 7 and call.attributes.get("broadcast"):
            axis = call.axis(call.integer("axis", len(left) - len(right)), len(left)) if right else 0
            right = (*right, *(1,) * (len(left) - axis - len(right)))
        return [(broadcast(call, (left, right)), dtype or call.dtype())]

    return rule


def cast(call: Call) -> list[Out]:
    dtype = DTYPES.get(call.integer("to"))
    if dtype is None:
        raise call.wrong("it casts to no known type", f"to={call.integer('to')}")
    return [(call.shape(0), dtype)]


def cast_like(call: Call) -> list[Out]:
    return [(call.shape(0), call.dtype(1))]


def attribute_dtype(call: Call, default: str | None = None) -> str:
    """Read the attribute `dtype`."""
    if default is not None and not call.attributes.get("dtype"):
        return default
    dtype = DTYPES.get(call.integer("dtype", 1))
    if dtype is None:
        raise call.wrong("it makes no known type", f"dtype={call.integer('dtype')}")
    return dtype


# -- reductions ---------------------------------------------------------------------------------------------------


def reduced(call: Call) -> list[Out]:
    """Without the axes, or with size 1 there; axes are an attribute, later an input."""
    shape = call.shape(0)
    rank = len(shape)
    axes: list[int] | None = None
    if call.has(1):
        axes = call.known(1, "axes")
    elif "axes" in call.attributes:
        axes = call.integers("axes")
    if not axes:
        if call.integer("noop_with_empty_axes", 0):
            return [(shape, call.dtype())]
        axes = list(range(rank))
    gone = set(call.axes(axes, rank))
    if call.integer("keepdims", 1):
        return [(tuple(1 if d in gone else size for d, size in enumerate(shape)), call.dtype())]
    return [(tuple(size for d, size in enumerate(shape) if d not in gone), call.dtype())]


def arg_reduced(call: Call) -> list[Out]:
    shape = call.shape(0)
    axis = call.axis(call.integer("axis", 0), len(shape))
    kept = (1,) if call.integer("keepdims", 1) else ()
    return [((*shape[:axis], *kept, *shape[axis + 1 :]) if shape else (), "int64")]


def topk(call: Call) -> list[Out]:
    shape = call.shape(0, at_least=1)
    k = call.scalar(1) if len(call.inputs) > 1 else call.integer("k")
    axis = call.axis(call.integer("axis", -1), len(shape))
    if not 0 <= k <= shape[axis]:
        raise call.wrong(f"there are no {k} largest", repr(call.value(0)))
    result = (*shape[:axis], k, *shape[axis + 1 :])
    return [(result, call.dtype()), (result, "int64")]


# -- products -----------------------------------------------------------------------------------------------------


def matmul_shape(call: Call, left: Shape, right: Shape) -> Shape:
    """Give the shape of NumPy's matmul."""
    if not left or not right:
        raise call.wrong("an operand is a scalar")
    a = left if len(left) > 1 else (1, *left)
    b = right if len(right) > 1 else (*right, 1)
    if a[-1] != b[-2]:
        raise call.wrong(f"its operands do not share a dimension: {a[-1]} and {b[-2]}")
    result = (*broadcast(call, (a[:-2], b[:-2])), a[-2], b[-1])
    if len(left) == 1:
        result = (*result[:-2], result[-1])
    return result[:-1] if len(right) == 1 else result


def matmul(left: int = 0, right: int = 1, dtype: str | None = None) -> Rule:
    """Rule for a product whose operands stand at these inputs."""

    def rule(call: Call) -> list[Out]:
        return [(matmul_shape(call, call.shape(left), call.shape(right)), dtype or call.dtype(left))]

    return rule


def qlinear_matmul(call: Call) -> list[Out]:
    return [(matmul_shape(call, call.shape(0), call.shape(3)), call.dtype(7))]


def fused_matmul(call: Call) -> list[Out]:
    left, right = call.shape(0, at_least=1), call.shape(1, at_least=1)
    if call.integer("transA", 0) and len(left) > 1:
        left = (*left[:-2], left[-1], left[-2])
    if call.integer("transB", 0) and len(right) > 1:
        right = (*right[:-2], right[-1], right[-2])
    return [(matmul_shape(call, left, right), call.dtype())]


def gemm_shape(call: Call, first: int = 0, second: int = 1) -> tuple[int, int, int]:
    """Rows, columns and what both share."""
    a, b = call.shape(first, 2), call.shape(second, 2)
    rows, shared = a[::-1] if call.integer("transA", 0) else a
    other, columns = b[::-1] if call.integer("transB", 0) else b
    if shared != other:
        raise call.wrong(f"its operands do not share a dimension: {shared} and {other}")
    return rows, columns, shared


def gemm(call: Call) -> list[Out]:
    rows, columns, _ = gemm_shape(call)
    if call.has(2) and broadcast(call, ((rows, columns), call.shape(2))) != (rows, columns):
        raise call.wrong("its third input does not fit the product")
    return [((rows, columns), call.dtype())]


def qgemm(call: Call) -> list[Out]:
    rows, columns, _ = gemm_shape(call, 0, 3)
    return [((rows, columns), call.dtype(8) if call.has(8) else "float32")]


def matmul_nbits(call: Call) -> list[Out]:
    shape = call.shape(0, at_least=1)
    if shape[-1] != call.integer("K"):
        raise call.wrong(f"its input is not {call.integer('K')} wide")
    return [((*shape[:-1], call.integer("N")), call.dtype())]


def einsum_sizes(call: Call) -> tuple[dict[str, int], list[str], Shape]:
    """Sizes by letter, letters of each operand's named dimensions, and the result's shape."""
    equation = call.text("equation").replace(" ", "")
    if len(equation) > 512:
        raise call.wrong("its equation is too long", f"{len(equation)} characters")
    terms, arrow, result = equation.partition("->")
    operands = terms.split(",")
    if len(operands) != len(call.inputs):
        raise call.wrong("its equation has another number of operands", repr(equation)[:80])
    sizes: dict[str, int] = {}
    spread: Shape = ()
    letters: list[str] = []
    for position, term in enumerate(operands):
        shape = call.shape(position)
        before, dots, after = term.partition("...")
        named = before + after
        extra = len(shape) - len(named)
        if extra < 0 or (extra and not dots):
            raise call.wrong("its equation does not fit its inputs", repr(equation)[:80])
        spread = broadcast(call, (spread, shape[len(before) : len(before) + extra]))
        for letter, size in zip(named, (*shape[: len(before)], *shape[len(before) + extra :]), strict=True):
            if sizes.get(letter, 1) not in (1, size) and size != 1:
                raise call.wrong(f"its equation gives {letter!r} two sizes", repr(equation)[:80])
            sizes[letter] = max(size, sizes.get(letter, size)) if size else 0
        letters.append(named)
    if not arrow:
        every = "".join(letters)
        result = "..." + "".join(sorted(letter for letter in set(every) if every.count(letter) == 1))
    before, dots, after = result.partition("...")
    if any(letter not in sizes for letter in before + after):
        raise call.wrong("its equation's result has letters that no operand has", repr(equation)[:80])
    shape = (*(sizes[c] for c in before), *(spread if dots else ()), *(sizes[c] for c in after))
    return sizes, letters, shape


def einsum(call: Call) -> list[Out]:
    return [(einsum_sizes(call)[2], call.dtype())]


# -- shapes of the same values ------------------------------------------------------------------------------------


def reshape(call: Call) -> list[Out]:
    shape = call.shape(0)
    wanted = call.known(1, "shape") if len(call.inputs) > 1 else call.integers("shape")
    sizes = list(wanted)
    keep_zero = bool(call.integer("allowzero", 0))
    for place, size in enumerate(sizes):
        if size == 0 and not keep_zero:
            if place >= len(shape):
                raise call.wrong("it keeps a dimension that its input does not have", f"{wanted} from {shape}")
            sizes[place] = shape[place]
    elements = math.prod(shape)
    if sizes.count(-1) == 1:
        rest = math.prod(size for size in sizes if size != -1)
        sizes[sizes.index(-1)] = elements // rest if rest else 0
    if math.prod(sizes) != elements or any(size < 0 for size in sizes):
        raise call.wrong("the new shape has another number of elements", f"{wanted} from {call.value(0)!r}")
    return [(tuple(sizes), call.dtype())]


def squeeze(call: Call) -> list[Out]:
    shape = call.shape(0)
    axes = call.known(1, "axes") if call.has(1) else call.integers("axes", ())
    if not call.has(1) and "axes" not in call.attributes:
        return [(tuple(size for size in shape if size != 1), call.dtype())]
    gone = set(call.axes(axes, len(shape)))
    if any(shape[d] != 1 for d in gone):
        raise call.wrong("it removes a dimension that is not 1", f"axes {list(axes)} of {call.value(0)!r}")
    return [(tuple(size for d, size in enumerate(shape) if d not in gone), call.dtype())]


def unsqueeze(call: Call) -> list[Out]:
    shape = call.shape(0)
    axes = call.known(1, "axes") if call.has(1) else call.integers("axes")
    rank = len(shape) + len(axes)
    added = set(call.axes(axes, rank))
    rest = iter(shape)
    return [(tuple(1 if d in added else next(rest) for d in range(rank)), call.dtype())]


def flatten(call: Call) -> list[Out]:
    shape = call.shape(0)
    axis = call.axis(call.integer("axis", 1), len(shape), extra=1)
    return [((math.prod(shape[:axis]), math.prod(shape[axis:])), call.dtype())]


def transpose(call: Call) -> list[Out]:
    shape = call.shape(0)
    order = call.integers("perm", range(len(shape))[::-1])
    if sorted(order) != list(range(len(shape))):
        raise call.wrong("its order is none of its input's dimensions", f"{order[:32]} of {call.value(0)!r}")
    return [(tuple(shape[d] for d in order), call.dtype())]


def concat(call: Call) -> list[Out]:
    return [(joined(call, [v for v in call.inputs if v is not None], call.integer("axis", 1)), call.dtype())]


def joined(call: Call, values: Sequence[Value], axis: int) -> Shape:
    """Give the shape of values side by side."""
    if not values:
        raise call.wrong("it joins nothing")
    first = values[0].shape
    axis = call.axis(axis, len(first))
    total = 0
    for value in values:
        shape = value.shape
        if not shape or (*shape[:axis], *shape[axis + 1 :]) != (*first[:axis], *first[axis + 1 :]):
            raise call.wrong("its inputs differ in more than the axis that they are joined on")
        total += shape[axis]
    return (*first[:axis], total, *first[axis + 1 :])


def split(call: Call) -> list[Out]:
    shape = call.shape(0)
    axis = call.axis(call.integer("axis", 0), len(shape))
    count = len(call.node.outputs)
    if not shape:
        raise call.wrong("a scalar has no parts")
    if call.has(1):
        sizes = call.known(1, "sizes of the parts")
    elif "split" in call.attributes:
        sizes = call.integers("split")
    else:
        count = call.integer("num_outputs", count)
        if count < 1 or count > max(shape[axis], len(call.node.outputs)):
            raise call.wrong("it makes no parts", f"{count} parts of {call.value(0)!r}")
        part = -(-shape[axis] // count)
        sizes = [min(part, max(0, shape[axis] - part * k)) for k in range(count)]
    if sum(sizes) != shape[axis] or len(sizes) < len(call.node.outputs) or any(size < 0 for size in sizes):
        raise call.wrong("its parts are not as large as the whole", f"{sizes[:32]} of {call.value(0)!r}")
    return [((*shape[:axis], size, *shape[axis + 1 :]), call.dtype()) for size in sizes]


def slice_bounds(call: Call) -> tuple[list[int], list[int], list[int], list[int]]:
    """Starts, ends, axes and steps."""
    shape = call.shape(0)
    if len(call.inputs) > 1:
        starts, ends = call.known(1, "start"), call.known(2, "end")
        axes = call.known(3, "axes") if call.has(3) else list(range(len(starts)))
        steps = call.known(4, "step") if call.has(4) else [1] * len(starts)
    else:
        starts, ends = call.integers("starts"), call.integers("ends")
        axes = call.integers("axes", range(len(starts)))
        steps = [1] * len(starts)
    if not len(starts) == len(ends) == len(axes) == len(steps) or 0 in steps:
        raise call.wrong("its starts, ends, axes and steps do not fit together")
    return starts, ends, call.axes(axes, len(shape)), steps


def sliced(call: Call) -> list[Out]:
    sizes = list(call.shape(0))
    for start, end, axis, step in zip(*slice_bounds(call), strict=True):
        sizes[axis] = len(range(*slice(start, None if step < 0 and end < -sizes[axis] else end, step).indices(
            sizes[axis]
        )))  # fmt: skip
    return [(tuple(sizes), call.dtype())]


def gather(call: Call) -> list[Out]:
    shape, indices = call.shape(0, at_least=1), call.shape(1)
    axis = call.axis(call.integer("axis", 0), len(shape))
    return [((*shape[:axis], *indices, *shape[axis + 1 :]), call.dtype())]


def gather_elements(call: Call) -> list[Out]:
    if len(call.shape(0)) != len(call.shape(1)):
        raise call.wrong("its indices have another rank than its values")
    return [(call.shape(1), call.dtype())]


def gather_nd(call: Call) -> list[Out]:
    shape, indices = call.shape(0, at_least=1), call.shape(1, at_least=1)
    batch, last = call.integer("batch_dims", 0), indices[-1]
    if not 0 <= batch < len(indices) or batch + last > len(shape):
        raise call.wrong("its indices point past its values' dimensions")
    return [((*indices[:-1], *shape[batch + last :]), call.dtype())]


def expand(call: Call) -> list[Out]:
    wanted = tuple(call.known(1, "shape"))
    if any(size < 0 for size in wanted):
        raise call.wrong("it expands to a negative size", str(list(wanted)[:32]))
    return [(broadcast(call, (call.shape(0), wanted)), call.dtype())]


def tile(call: Call) -> list[Out]:
    shape = call.shape(0)
    times = call.known(1, "repeats")
    if len(call.inputs) > 2:  # opset 1: how often, and on which axis
        axis = call.axis(call.scalar(2), len(shape))
        times = [call.scalar(1) if d == axis else 1 for d in range(len(shape))]
    if len(times) != len(shape):
        raise call.wrong("it repeats another number of dimensions than there are", f"{times[:32]}")
    return [(tuple(size * n for size, n in zip(shape, times, strict=True)), call.dtype())]


def pad(call: Call) -> list[Out]:
    shape = call.shape(0)
    name = "paddings" if "paddings" in call.attributes else "pads"
    pads = call.known(1, "pads") if len(call.inputs) > 1 else call.integers(name)
    axes = call.axes(call.known(3, "axes"), len(shape)) if call.has(3) else list(range(len(shape)))
    if len(pads) != 2 * len(axes):
        raise call.wrong("its pads are not two for each dimension", f"{pads[:32]} for {call.value(0)!r}")
    sizes = list(shape)
    for place, axis in enumerate(axes):
        sizes[axis] += pads[place] + pads[place + len(axes)]
    return [(tuple(sizes), call.dtype())]


def resize(call: Call) -> list[Out]:
    """New sizes, or scales: before opset 11 the second input, in Upsample's first opsets an attribute."""
    shape = call.shape(0)
    rank = len(shape)
    old = call.opset < 11 or call.node.op_type == "Upsample"
    axes = call.axes(call.integers("axes"), rank) if "axes" in call.attributes else list(range(rank))
    place = 1 if old else 2
    result = list(shape)
    if not old and call.has(3) and call.shape(3) != (0,):
        wanted = call.known(3, "sizes")
        if len(wanted) != len(axes):
            raise call.wrong("its sizes are not one for each dimension", f"{wanted[:32]} for {call.value(0)!r}")
        policy = call.text("keep_aspect_ratio_policy", "stretch")
        if policy != "stretch" and all(shape[a] for a in axes) and axes:
            ratios = [w / shape[a] for w, a in zip(wanted, axes, strict=True)]
            scale = min(ratios) if policy == "not_larger" else max(ratios)
            wanted = [math.floor(scale * shape[a] + 0.5) for a in axes]
        for axis, size in zip(axes, wanted, strict=True):
            result[axis] = size
        return [(tuple(result), call.dtype())]
    if call.has(place):
        scales = call.floats(place)
    else:
        found = call.attributes.get("scales")
        if not isinstance(found, tuple) or not all(isinstance(v, float | int) for v in found):
            raise call.wrong("it has neither scales nor sizes")
        scales = [float(v) for v in found]
    if len(scales) != len(axes) or not all(0 < s < 1e6 for s in scales):
        raise call.wrong("its scales are not one for each dimension", f"{scales[:32]} for {call.value(0)!r}")
    roi = call.floats(1) if call.text("coordinate_transformation_mode") == "tf_crop_and_resize" and call.has(1) else []
    for k, (axis, scale) in enumerate(zip(axes, scales, strict=True)):
        span = roi[k + len(axes)] - roi[k] if len(roi) == 2 * len(axes) else 1.0
        stretched_size = shape[axis] * span * scale
        if not math.isfinite(stretched_size):
            raise call.wrong("its region is none", f"{roi[:32]}")
        result[axis] = math.floor(_single(stretched_size))
    return [(tuple(result), call.dtype())]


def _single(value: float) -> float:
    """Round as a runtime does, which multiplies in single precision, where that lands on a whole number."""
    near = round(value)
    return float(near) if abs(value - near) < 1e-6 * max(1.0, abs(value)) else value


def depth_to_space(call: Call) -> list[Out]:
    n, c, *space = call.shape(0, 4)
    size = call.integer("blocksize")
    if size < 1 or c % (size * size):
        raise call.wrong("its channels are no multiple of the block", f"blocksize {size}, {call.value(0)!r}")
    return [((n, c // size**2, *(s * size for s in space)), call.dtype())]


def space_to_depth(call: Call) -> list[Out]:
    n, c, *space = call.shape(0, 4)
    size = call.integer("blocksize")
    if size < 1 or any(s % size for s in space):
        raise call.wrong("its size is no multiple of the block", f"blocksize {size}, {call.value(0)!r}")
    return [((n, c * size**2, *(s // size for s in space)), call.dtype())]


def center_crop_pad(call: Call) -> list[Out]:
    sizes = list(call.shape(0))
    wanted = call.known(1, "shape")
    axes = call.axes(call.integers("axes", range(len(sizes))), len(sizes))
    if len(axes) != len(wanted):
        raise call.wrong("its sizes are not one for each axis")
    for axis, size in zip(axes, wanted, strict=True):
        sizes[axis] = size
    return [(tuple(sizes), call.dtype())]


# -- values from nothing ------------------------------------------------------------------------------------------


def shape_of(call: Call) -> list[Out]:
    rank = len(call.shape(0))
    return [((len(range(rank)[chosen_sizes(call)]),), "int64")]


def chosen_sizes(call: Call) -> slice:
    """Which of its input's sizes Shape gives."""
    return slice(call.integer("start", 0), call.integer("end") if "end" in call.attributes else None)


def scalar_of(dtype: str) -> Rule:
    """One number."""
    return lambda _call: [((), dtype)]


def constant_of_shape(call: Call) -> list[Out]:
    held = call.attributes.get("value")
    return [(tuple(call.known(0, "shape")), held.dtype if isinstance(held, OnnxTensor) else "float32")]


def arange(call: Call) -> list[Out]:
    start, end, step = (call.floats(k, "range")[:1] for k in range(3))
    if not start or not end or not step or not step[0]:
        raise call.wrong("it has no step")
    count = math.ceil((end[0] - start[0]) / step[0]) if all(map(math.isfinite, (*start, *end, *step))) else -1
    if count < 0 and not math.isfinite(end[0] - start[0]):
        raise call.wrong("it has no end")
    return [((max(0, count),), call.dtype())]


def random(call: Call) -> list[Out]:
    return [(tuple(call.integers("shape")), attribute_dtype(call))]


def random_like(call: Call) -> list[Out]:
    return [(call.shape(0), attribute_dtype(call, call.dtype()))]


def eye_like(call: Call) -> list[Out]:
    return [(call.shape(0, 2), attribute_dtype(call, call.dtype()))]


def multinomial(call: Call) -> list[Out]:
    return [((call.shape(0, 2)[0], call.integer("sample_size", 1)), attribute_dtype(call, "int32"))]


def one_hot(call: Call) -> list[Out]:
    shape = call.shape(0)
    depth = call.scalar(1, "depth")
    axis = call.axis(call.integer("axis", -1), len(shape) + 1)
    return [((*shape[:axis], depth, *shape[axis:]), call.dtype(2))]


# -- sizes that depend on values: the largest there can be ---------------------------------------------------------


def nonzero(call: Call) -> list[Out]:
    shape = call.shape(0)
    data = call.value(0).data
    count = math.prod(shape) if data is None else int((data != 0).sum())
    return [((len(shape), count), "int64")]


def unique(call: Call) -> list[Out]:
    shape = call.shape(0)
    if "axis" not in call.attributes:
        count = math.prod(shape)
        return [((count,), call.dtype()), *[((count,), "int64")] * 3]
    axis = call.axis(call.integer("axis"), len(shape))
    count = shape[axis] if shape else 1
    return [(shape, call.dtype()), *[((count,), "int64")] * 3]


def compress(call: Call) -> list[Out]:
    shape = call.shape(0)
    chosen = call.value(1).data
    count = None if chosen is None else int(chosen.astype(bool).sum())
    if "axis" not in call.attributes:
        return [((math.prod(shape) if count is None else count,), call.dtype())]
    axis = call.axis(call.integer("axis"), len(shape))
    if not shape:
        raise call.wrong("a scalar has no axis")
    return [((*shape[:axis], shape[axis] if count is None else count, *shape[axis + 1 :]), call.dtype())]


def non_max_suppression(call: Call) -> list[Out]:
    boxes, scores = call.shape(0, 3), call.shape(1, 3)
    most = boxes[1]
    if call.has(2):
        try:
            most = min(most, max(0, call.scalar(2)))
        except Unresolved:
            most = boxes[1]
    else:
        most = 0
    return [((scores[0] * scores[1] * most, 3), "int64")]
