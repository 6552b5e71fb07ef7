"""Recurrent layers, attention, norms with several outputs, and signals: shapes and multiplications."""

from __future__ import annotations

import math
from collections.abc import Callable

from memfit.capture.sources.onnx.call import Call, Out, Shape
from memfit.capture.sources.onnx.shapes import broadcast, joined
from memfit.formats.onnx import DTYPES

Rule = Callable[[Call], list[Out]]

# -- recurrent ----------------------------------------------------------------------------------------------------


def _recurrent_sizes(call: Call) -> tuple[int, int, int, int, bool]:
    """Steps, batch, directions, state, and whether the batch stands first."""
    x, weight = call.shape(0, 3), call.shape(2, 3)
    directions, state = weight[0], call.integer("hidden_size", weight[2])
    batch_first = bool(call.integer("layout", 0))
    steps, batch = (x[1], x[0]) if batch_first else (x[0], x[1])
    if directions not in (1, 2) or state != weight[2] or call.shape(1, 3)[0] != directions:
        raise call.wrong("its weights do not fit together")
    return steps, batch, directions, state, batch_first


def recurrent(states: int) -> Rule:
    """Rule for every step's output, then so many states."""

    def rule(call: Call) -> list[Out]:
        steps, batch, directions, state, batch_first = _recurrent_sizes(call)
        dtype = call.dtype()
        if batch_first:
            return [((batch, steps, directions, state), dtype), *[((batch, directions, state), dtype)] * states]
        return [((steps, directions, batch, state), dtype), *[((directions, batch, state), dtype)] * states]

    return rule


def recurrent_macs(call: Call) -> int:
    """Every step multiplies its input and the state by each gate's weights, the same for every direction."""
    steps, batch, *_ = _recurrent_sizes(call)
    w, r = call.shape(1, 3), call.shape(2, 3)
    return steps * batch * (math.prod(w) + math.prod(r))


# -- attention ----------------------------------------------------------------------------------------------------


class Heads:
    """Sizes of an attention: N, heads, L, S, E and Ev."""

    def __init__(self, call: Call) -> None:
        q, k, v = (call.shape(p) for p in range(3))
        if any(len(s) not in (3, 4) for s in (q, k, v)):
            raise call.wrong("its query, key and value should have 3 or 4 dimensions")
        self.flat = len(q) == 3
        if self.flat:
            self.batch, self.length, width = q
            self.heads = call.integer("q_num_heads")
            self.kv_heads = call.integer("kv_num_heads")
            if self.heads < 1 or self.kv_heads < 1 or width % self.heads or v[-1] % self.kv_heads:
                raise call.wrong("its heads do not divide its width")
            self.size, self.value_size = width // self.heads, v[-1] // self.kv_heads
        else:
            self.batch, self.heads, self.length, self.size = q
            self.kv_heads = k[1] if len(k) == 4 else call.integer("kv_num_heads")
            self.value_size = v[-1]
        past = call.shape(4, 4)[2] if call.has(4) else 0
        self.keys = (k[-2] if len(k) == 4 or not self.flat else k[1]) + past

    @property
    def macs(self) -> int:
        """Query times key, then weights times value."""
        return self.batch * self.heads * self.length * self.keys * (self.size + self.value_size)


def attention(call: Call) -> list[Out]:
    """Attention of opset 23: output, present key and value, and the scores."""
    h, dtype = Heads(call), call.dtype()
    shape: Shape = (h.batch, h.heads, h.length, h.value_size)
    if h.flat:
        shape = (h.batch, h.length, h.heads * h.value_size)
    return [
        (shape, dtype),
        ((h.batch, h.kv_heads, h.keys, h.size), call.dtype(1)),
        ((h.batch, h.kv_heads, h.keys, h.value_size), call.dtype(2)),
        ((h.batch, h.heads, h.length, h.keys), dtype),
    ]


def attention_macs(call: Call) -> int:
    return Heads(call).macs


def _projected(call: Call) -> tuple[int, int, int, int, int, list[int]]:
    """com.microsoft's Attention: batch, length, width, keys before, heads, and widths of Q, K and V."""
    batch, length, width = call.shape(0, 3)
    weight = call.shape(1, 2)
    heads = call.integer("num_heads")
    sizes = call.integers("qkv_hidden_sizes", (weight[1] // 3,) * 3, 3)
    if weight[0] != width or sum(sizes) != weight[1] or heads < 1 or any(s % heads for s in sizes):
        raise call.wrong("its weight does not fit its input and heads")
    place = 8 if call.node.op_type == "QAttention" else 4
    past = call.shape(place, 5)[3] if call.has(place) else 0
    return batch, length, width, past, heads, sizes


def projected_attention(call: Call) -> list[Out]:
    batch, length, _, past, heads, sizes = _projected(call)
    dtype = call.dtype(3) if call.node.op_type == "QAttention" else call.dtype()
    return [((batch, length, sizes[2]), dtype), ((2, batch, heads, past + length, sizes[1] // heads), dtype)]


def projected_attention_macs(call: Call) -> int:
    """Projections of query, key and value, then attention."""
    batch, length, width, past, _, sizes = _projected(call)
    return batch * length * (width * sum(sizes) + (past + length) * (sizes[0] + sizes[2]))


def _grouped(call: Call) -> tuple[int, int, int, int, int, int]:
    """com.microsoft's GroupQueryAttention: batch, length, heads, key heads, head size, keys."""
    batch, length, width = call.shape(0, 3)
    heads, kv_heads = call.integer("num_heads"), call.integer("kv_num_heads")
    packed = not call.has(1)
    groups = heads + 2 * kv_heads if packed else heads
    if heads < 1 or kv_heads < 1 or width % groups:
        raise call.wrong("its heads do not divide its width")
    past = call.shape(3, 4)[2] if call.has(3) else 0
    return batch, length, heads, kv_heads, width // groups, past + length


def grouped_attention(call: Call) -> list[Out]:
    batch, length, heads, kv_heads, size, keys = _grouped(call)
    cache = ((batch, kv_heads, keys, size), call.dtype())
    return [((batch, length, heads * size), call.dtype()), cache, cache]


def grouped_attention_macs(call: Call) -> int:
    batch, length, heads, _, size, keys = _grouped(call)
    return 2 * batch * length * keys * heads * size


def _multi_head(call: Call) -> tuple[int, int, int, int, int, int]:
    """com.microsoft's MultiHeadAttention: batch, length, heads, keys, width of Q and of V."""
    query, heads = call.shape(0), call.integer("num_heads")
    if heads < 1:
        raise call.wrong("it has no heads")
    if len(query) == 5:
        batch, length, count, _, size = query
        return batch, length, count, length, count * size, count * size
    batch, length, width = call.shape(0, 3)
    key = call.shape(1, at_least=3)
    keys = key[2] if len(key) == 4 else key[1]
    value = call.shape(2, at_least=3) if call.has(2) else key
    past = call.shape(6, 4)[2] if call.has(6) else 0
    wide = value[1] * value[3] if len(value) == 4 else value[-1]
    return batch, length, heads, keys + past, width, wide


def multi_head(call: Call) -> list[Out]:
    batch, length, heads, keys, width, wide = _multi_head(call)
    return [
        ((batch, length, wide), call.dtype()),
        ((batch, heads, keys, width // heads), call.dtype()),
        ((batch, heads, keys, wide // heads), call.dtype()),
    ]


def multi_head_macs(call: Call) -> int:
    batch, length, _, keys, width, wide = _multi_head(call)
    return batch * length * keys * (width + wide)


# -- norms --------------------------------------------------------------------------------------------------------


def layer_norm(call: Call) -> list[Out]:
    """The output, and mean and inverse deviation where they are asked for."""
    shape = call.shape(0)
    axis = call.axis(call.integer("axis", -1), len(shape))
    left = (*shape[:axis], *(1,) * (len(shape) - axis))
    return [(shape, call.dtype()), (left, "float32"), (left, "float32")]


def batch_norm(call: Call) -> list[Out]:
    shape = call.shape(0)
    outs: list[Out] = [(shape, call.dtype())]
    for position in (3, 4, 3, 4):
        outs.append((call.shape(position), call.dtype(position)))
    return outs


def skip_layer_norm(call: Call) -> list[Out]:
    shape = call.shape(0)
    left = (*shape[:-1], 1)
    return [(shape, call.dtype()), (left, "float32"), (left, "float32"), (shape, call.dtype())]


def embed_layer_norm(call: Call) -> list[Out]:
    ids, words = call.shape(0, 2), call.shape(2, 2)
    return [((*ids, words[1]), call.dtype(2)), ((ids[0],), "int32"), ((*ids, words[1]), call.dtype(2))]


# -- quantization -------------------------------------------------------------------------------------------------


def quantized(call: Call) -> list[Out]:
    """QuantizeLinear: the type of the zero point, or the one that is asked for."""
    if call.has(2):
        return [(call.shape(0), call.dtype(2))]
    call.shape(1)
    return [(call.shape(0), _asked(call) if call.integer("output_dtype", 0) else "uint8")]


def _asked(call: Call) -> str:
    dtype = DTYPES.get(call.integer("output_dtype"))
    if dtype is None:
        raise call.wrong("it makes no known type", f"output_dtype={call.integer('output_dtype')}")
    return dtype


def dequantized(call: Call) -> list[Out]:
    asked = call.integer("output_dtype", 0)
    return [(call.shape(0), _asked(call) if asked else call.dtype(1))]


def dynamic_quantized(call: Call) -> list[Out]:
    return [(call.shape(0), "uint8"), ((), "float32"), ((), "uint8")]


def qlinear_binary(call: Call) -> list[Out]:
    return [(broadcast(call, (call.shape(0), call.shape(3))), call.dtype())]


def qlinear_concat(call: Call) -> list[Out]:
    """Output scale and zero point, then value, scale and zero point of each input."""
    values = [v for v in call.inputs[2::3] if v is not None]
    return [(joined(call, values, call.integer("axis")), call.dtype(1))]


def qlinear_where(call: Call) -> list[Out]:
    return [(broadcast(call, (call.shape(0), call.shape(1), call.shape(4))), call.dtype(1))]


def qlinear_reduced(call: Call) -> list[Out]:
    shape = call.shape(0)
    gone = set(call.axes(call.integers("axes", range(len(shape))), len(shape)))
    if call.integer("keepdims", 1):
        return [(tuple(1 if d in gone else size for d, size in enumerate(shape)), call.dtype())]
    return [(tuple(size for d, size in enumerate(shape) if d not in gone), call.dtype())]


# -- signals and losses -------------------------------------------------------------------------------------------


def window_function(call: Call) -> list[Out]:
    return [((call.scalar(0),), _window_dtype(call))]


def _window_dtype(call: Call) -> str:
    return DTYPES.get(call.integer("output_datatype", 1), "float32")


def fourier(call: Call) -> list[Out]:
    shape = list(call.shape(0, at_least=2))
    rank = len(shape)
    axis = call.scalar(2) if call.has(2) else call.integer("axis", 1 if call.opset < 20 else -2)
    axis = call.axis(axis, rank)
    if call.has(1):
        shape[axis] = call.scalar(1)
    if call.integer("onesided", 0):
        shape[axis] = shape[axis] // 2 + 1
    shape[-1] = 2
    return [(tuple(shape), call.dtype())]


def short_fourier(call: Call) -> list[Out]:
    signal, step = call.shape(0, at_least=2), call.scalar(1)
    length = call.scalar(3) if call.has(3) else call.shape(2, 1)[0]
    if step < 1 or length < 1 or length > signal[1]:
        raise call.wrong("its frames do not fit its signal")
    bins = length // 2 + 1 if call.integer("onesided", 1) else length
    return [((signal[0], (signal[1] - length) // step + 1, bins, 2), call.dtype())]


def mel_weights(call: Call) -> list[Out]:
    return [((call.scalar(1) // 2 + 1, call.scalar(0)), _window_dtype(call))]


def loss(call: Call) -> list[Out]:
    """One number, or one for each sample; softmax cross entropy can give the logarithms besides."""
    scores, labels = call.shape(0), call.shape(1)
    shape: Shape = labels if call.text("reduction", "mean") == "none" else ()
    return [(shape, call.dtype()), (scores, call.dtype())]
