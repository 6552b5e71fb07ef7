"""The operator table of `.onnx`: what each operator is called here, its shapes, what it multiplies, what only says how.

To add an operator, add one entry, and its kind's role in `memfit/graph/optable.py` where the kind is new. Listed are
the standard operators of opsets 7 to 25 that work on tensors (https://onnx.ai/onnx/operators/), and those of
`com.microsoft` that ONNX Runtime's quantizers and optimizers write
(https://github.com/microsoft/onnxruntime/blob/main/docs/ContribOperators.md).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

from memfit.capture.sources.onnx import sequences as q
from memfit.capture.sources.onnx import shapes as s
from memfit.capture.sources.onnx import windows as w
from memfit.capture.sources.onnx.call import Call, Out


class Entry(NamedTuple):
    """One row of the table."""

    kind: str | Callable[[Call], str]
    shapes: Callable[[Call], list[Out]]
    settings: tuple[int, ...] = ()
    """Inputs that say how, not what: shapes, axes, scales. As constants they are buffers, not parameters."""
    macs: Callable[[Call], int] | None = None
    attrs: Callable[[Call], dict[str, Any]] | None = None
    view: bool = False
    """True where the first output shows the first input's bytes."""
    note: str | None = None
    """What a reader must know where the size of an output depends on values."""
    random: bool = False
    """True where it computes something else every time, so that it is never computed beforehand."""


def _named(
    words: str,
    shapes: Callable[[Call], list[Out]],
    settings: tuple[int, ...] = (),
    *,
    view: bool = False,
    random: bool = False,
) -> dict[str, Entry]:
    """Rows of operators that need no more than a name, `Operator=kind` each."""
    rows = {}
    for word in words.split():
        name, _, kind = word.partition("=")
        rows[name] = Entry(kind or name.lower(), shapes, settings, view=view, random=random)
    return rows


# -- products -----------------------------------------------------------------------------------------------------


def _product(left: int = 0, right: int = 1) -> Callable[[Call], str]:
    """A product is `linear` where an operand is a constant."""
    return lambda call: "linear" if call.is_constant(left) or call.is_constant(right) else "matmul"


def _product_macs(rule: Callable[[Call], list[Out]], left: int = 0) -> Callable[[Call], int]:
    """Every output element sums as many products as the left operand's last dimension has elements."""

    def macs(call: Call) -> int:
        shape = call.shape(left)
        return math.prod(rule(call)[0][0]) * (shape[-1] if shape else 1)

    return macs


def _matmul(left: int = 0, right: int = 1, dtype: str | None = None, settings: tuple[int, ...] = ()) -> Entry:
    rule = s.matmul(left, right, dtype)
    return Entry(_product(left, right), rule, settings, _product_macs(rule, left))


def _fused_macs(call: Call) -> int:
    left = call.shape(0)
    shared = left[-2] if call.integer("transA", 0) and len(left) > 1 else left[-1]
    return math.prod(s.fused_matmul(call)[0][0]) * shared


def _gemm_macs(first: int = 0, second: int = 1) -> Callable[[Call], int]:
    return lambda call: math.prod(s.gemm_shape(call, first, second))


def _einsum_macs(call: Call) -> int:
    """Two operands: the product of all sizes, once for each pair that is multiplied; one operand multiplies nothing."""
    sizes, letters, shape = s.einsum_sizes(call)
    if len(letters) < 2:
        return 0
    named = math.prod(sizes.values())
    spread = math.prod(shape) // max(1, math.prod(sizes[c] for c in _result_letters(call)))
    return named * spread * (len(letters) - 1)


def _result_letters(call: Call) -> str:
    terms, arrow, result = call.text("equation").replace(" ", "").partition("->")
    if arrow:
        return result.replace("...", "")
    every = terms.replace("...", "").replace(",", "")
    return "".join(letter for letter in set(every) if every.count(letter) == 1)


def _einsum_kind(call: Call) -> str:
    return "einsum" if len(call.inputs) < 2 else _product()(call)


def _nbits_macs(call: Call) -> int:
    return math.prod(s.matmul_nbits(call)[0][0]) * call.integer("K")


# -- activations --------------------------------------------------------------------------------------------------


def _bound(call: Call, position: int, name: str) -> float | None:
    if call.has(position):
        data = call.value(position).data
        return float(data.ravel()[0]) if data is not None and data.size == 1 else math.nan
    value = call.attributes.get(name)
    return float(value) if isinstance(value, int | float) and abs(value) < 3e38 else None


def _clip_kind(call: Call) -> str:
    bounds = (_bound(call, 1, "min"), _bound(call, 2, "max"))
    return {(0.0, 6.0): "relu6", (0.0, None): "relu"}.get(bounds, "clamp")  # type: ignore[arg-type]


def _cast_kind(call: Call) -> str:
    return "identity" if s.cast(call)[0][1] == call.dtype() else "cast"


def _channels_attrs(call: Call) -> dict[str, Any]:
    return {"groups": call.integer("num_groups", 1)}


# -- convolution --------------------------------------------------------------------------------------------------


def _conv(where: w.Conv, settings: tuple[int, ...] = ()) -> Entry:
    return Entry(where.kind, where.shapes, settings, where.macs, where.attrs)


def _fused_conv() -> Entry:
    where = w.Conv()

    def attrs(call: Call) -> dict[str, Any]:
        kind = call.text("activation")
        return {**where.attrs(call), **({"activation": kind.lower()} if kind else {})}

    return Entry(where.kind, where.shapes, (), where.macs, attrs)


def _fused_gemm_attrs(call: Call) -> dict[str, Any]:
    kind = call.text("activation")
    return {"activation": kind.lower()} if kind else {}


_UNKNOWN_SIZE = "the size of {kind}'s output depends on values; the largest there can be counts"

STANDARD: dict[str, Entry] = {
    # Convolution and products
    "Conv": _conv(w.Conv()),
    "ConvInteger": _conv(w.Conv(bias=9, dtype="int32"), (2, 3)),
    "QLinearConv": _conv(w.Conv(0, 3, 8, 7), (1, 2, 4, 5, 6, 7)),
    "ConvTranspose": Entry(
        w.transposed_kind, w.transposed, (), w.transposed_macs, lambda call: w.transposed_parts(call)[4]
    ),
    "DeformConv": Entry("deform_conv2d", w.deformed, (), w.deformed_macs),
    "MatMul": _matmul(),
    "MatMulInteger": _matmul(dtype="int32", settings=(2, 3)),
    "QLinearMatMul": Entry(
        _product(0, 3), s.qlinear_matmul, (1, 2, 4, 5, 6, 7), _product_macs(s.qlinear_matmul)
    ),
    "Gemm": Entry(_product(), s.gemm, (), _gemm_macs()),
    "Einsum": Entry(_einsum_kind, s.einsum, (), _einsum_macs),
    # Recurrent and attention
    "LSTM": Entry("lstm", q.recurrent(2), (4,), q.recurrent_macs),
    "GRU": Entry("gru", q.recurrent(1), (4,), q.recurrent_macs),
    "RNN": Entry("rnn", q.recurrent(1), (4,), q.recurrent_macs),
    "Attention": Entry("attention", q.attention, (6,), q.attention_macs),
    **_named("RotaryEmbedding=rotary_embedding", s.same, (1, 2, 3)),
    # Norms
    "BatchNormalization": Entry("batch_norm", q.batch_norm, (3, 4)),
    **_named("InstanceNormalization=instance_norm GroupNormalization=group_norm", s.same),
    **_named("MeanVarianceNormalization=instance_norm LpNormalization=l2_norm LRN=local_response_norm", s.same),
    **_named("LayerNormalization=layer_norm SimplifiedLayerNormalization=rms_norm RMSNormalization=rms_norm",
             q.layer_norm),
    # Activations
    "Clip": Entry(_clip_kind, s.same, (1, 2)),
    **_named(
        "Relu Elu Selu Celu LeakyRelu=leaky_relu ThresholdedRelu=threshold Gelu Mish Softplus Softsign Sigmoid"
        " HardSigmoid HardSwish Swish=silu Tanh Erf Shrink=hardshrink Softmax LogSoftmax=log_softmax Hardmax=softmax",
        s.same,
    ),
    **_named("PRelu", s.binary()),
    # Element-wise
    **_named("Add Sub Mul Div Pow Mod=remainder BitShift=bitwise_left_shift BitwiseAnd=bitwise_and"
             " BitwiseOr=bitwise_or BitwiseXor=bitwise_xor", s.binary()),
    **_named("And=logical_and Or=logical_or Xor=logical_xor Equal=eq Less=lt LessOrEqual=le Greater=gt"
             " GreaterOrEqual=ge", s.binary("bool")),
    **_named("Sum=add Max=maximum Min=minimum Mean=mean", s.stretched()),
    **_named("Where", s.stretched(source=1)),
    **_named(
        "Abs Neg Ceil Floor Round Sign Sqrt Exp Log Reciprocal Sin Cos Tan Asin Acos Atan Sinh Cosh Asinh Acosh Atanh"
        " BitwiseNot=bitwise_not",
        s.same,
    ),
    **_named("Not=logical_not IsNaN=isnan IsInf=isinf", s.typed("bool")),
    "Cast": Entry(_cast_kind, s.cast),
    **_named("CastLike=cast", s.cast_like, (1,)),
    **_named("BitCast=cast", s.cast),
    # Pooling
    "MaxPool": Entry(w.pool_kind("max_pool"), w.pooled(), (), None, w.pool_attrs),
    "AveragePool": Entry(w.pool_kind("avg_pool"), w.pooled(), (), None, w.pool_attrs),
    "LpPool": Entry(w.pool_kind("lp_pool"), w.pooled(), (), None, w.pool_attrs),
    "GlobalAveragePool": Entry(w.global_pool_kind("avg"), w.global_pooled()),
    "GlobalMaxPool": Entry(w.global_pool_kind("max"), w.global_pooled()),
    "GlobalLpPool": Entry(w.global_pool_kind("avg"), w.global_pooled()),
    **_named("MaxUnpool=max_unpool2d", w.unpooled, (2,)),
    **_named("MaxRoiPool=roi_pool", w.roi_pooled),
    **_named("RoiAlign=roi_align", w.roi_aligned),
    # Reductions
    **_named(
        "ReduceMean=mean ReduceSum=sum ReduceMax=amax ReduceMin=amin ReduceProd=prod ReduceL1=norm ReduceL2=norm"
        " ReduceLogSum=logsumexp ReduceLogSumExp=logsumexp ReduceSumSquare=norm",
        s.reduced,
        (1,),
    ),
    **_named("ArgMax ArgMin", s.arg_reduced),
    **_named("CumSum CumProd", s.same, (1,)),
    **_named("TopK", s.topk, (1,)),
    # Same values, same bytes
    **_named("Identity", s.same, view=True),
    **_named("Dropout=dropout", s.with_mask, (1, 2), view=True),
    **_named("Reshape", s.reshape, (1,), view=True),
    **_named("Squeeze", s.squeeze, (1,), view=True),
    **_named("Unsqueeze", s.unsqueeze, (1,), view=True),
    **_named("Flatten=view", s.flatten, view=True),
    # Same values, new bytes
    **_named("Transpose", s.transpose),
    **_named("Concat", s.concat),
    **_named("Split", s.split, (1,)),
    **_named("Slice", s.sliced, (1, 2, 3, 4)),
    **_named("Expand=expand_copy", s.expand, (1,)),
    **_named("Tile", s.tile, (1, 2)),
    **_named("Pad", s.pad, (1, 2, 3)),
    **_named("DepthToSpace=pixel_shuffle", s.depth_to_space),
    **_named("SpaceToDepth=pixel_unshuffle", s.space_to_depth),
    **_named("CenterCropPad=pad", s.center_crop_pad, (1,)),
    **_named("Trilu=tril", s.same, (1,)),
    **_named("ReverseSequence=flip", s.same, (1,)),
    **_named("Resize=upsample", s.resize, (1, 2, 3)),
    **_named("Upsample", s.resize, (1,)),
    **_named("GridSample=grid_sampler", w.grid_sampled),
    **_named("AffineGrid=affine_grid_generator", w.affine_grid, (1,)),
    **_named("Col2Im", w.column_to_image, (1, 2)),
    # Indexing
    "Gather": Entry(lambda call: "embedding" if _is_table(call) else "gather", s.gather),
    **_named("GatherElements=gather", s.gather_elements),
    **_named("GatherND=gather_nd", s.gather_nd),
    **_named("Scatter ScatterElements=scatter ScatterND=scatter_nd TensorScatter=index_copy", s.same),
    **_named("OneHot=one_hot", s.one_hot, (1, 2)),
    "NonZero": Entry("nonzero", s.nonzero, note=_UNKNOWN_SIZE),
    "Unique": Entry("unique", s.unique, note=_UNKNOWN_SIZE),
    "Compress": Entry("masked_select", s.compress, note=_UNKNOWN_SIZE),
    "NonMaxSuppression": Entry("nms", s.non_max_suppression, (2, 3, 4), note=_UNKNOWN_SIZE),
    # Values from nothing
    **_named("Shape", s.shape_of),
    **_named("Size=shape", s.scalar_of("int64")),
    **_named("ConstantOfShape=full", s.constant_of_shape, (0,)),
    **_named("Range=arange", s.arange, (0, 1, 2)),
    **_named("EyeLike=eye", s.eye_like),
    **_named("RandomNormal=randn RandomUniform=rand", s.random, random=True),
    **_named("RandomNormalLike=randn RandomUniformLike=rand Bernoulli", s.random_like, random=True),
    **_named("Multinomial", s.multinomial, random=True),
    **_named("HannWindow=hann_window HammingWindow=hann_window BlackmanWindow=hann_window", q.window_function, (0,)),
    **_named("MelWeightMatrix=mel_weights", q.mel_weights, (0, 1, 2, 3, 4)),
    # Quantization
    "QuantizeLinear": Entry("quantize", q.quantized, (1, 2)),
    "DequantizeLinear": Entry("dequantize", q.dequantized, (1, 2)),
    "DynamicQuantizeLinear": Entry("quantize", q.dynamic_quantized),
    # Signals, losses, the rest
    **_named("DFT=fft", q.fourier, (1, 2)),
    **_named("STFT", q.short_fourier, (1, 2, 3)),
    **_named("Det=det", lambda call: [(call.shape(0, at_least=2)[:-2], call.dtype())]),
    **_named("NegativeLogLikelihoodLoss=nll_loss SoftmaxCrossEntropyLoss=cross_entropy_loss", q.loss),
}  # fmt: skip
"""Operators of the standard domain, ai.onnx."""


def _is_table(call: Call) -> bool:
    """True for rows picked out of a matrix of weights."""
    table = call.value(0)
    return (
        table.prepared
        and len(table.shape) == 2
        and not call.integer("axis", 0)
        and table.dtype.startswith(("float", "bfloat", "int8", "uint8"))
    )


_Q3 = (1, 2, 4, 5, 6, 7)
"""Scales and zero points of two operands and a result."""

MICROSOFT: dict[str, Entry] = {
    **_named("QLinearAdd=add QLinearMul=mul", q.qlinear_binary, _Q3),
    **_named("QLinearSigmoid=sigmoid QLinearLeakyRelu=leaky_relu QLinearSoftmax=softmax", s.same, (1, 2, 3, 4)),
    **_named("QLinearReduceMean=mean", q.qlinear_reduced, (1, 2, 3, 4)),
    "QLinearAveragePool": Entry(w.pool_kind("avg_pool"), w.pooled(), (1, 2, 3, 4), None, w.pool_attrs),
    "QLinearGlobalAveragePool": Entry(w.global_pool_kind("avg"), w.global_pooled(), (1, 2, 3, 4)),
    "QLinearConcat": Entry("concat", q.qlinear_concat, (0, 1, *(k for k in range(2, 3 * 256) if (k - 2) % 3))),
    "QLinearWhere": Entry("where", q.qlinear_where, (2, 3, 5, 6, 7, 8)),
    "QLinearConv": _conv(w.Conv(0, 3, 8, 7), (1, 2, 4, 5, 6, 7)),
    "QGemm": Entry(_product(0, 3), s.qgemm, (1, 2, 4, 5, 7, 8), _gemm_macs(0, 3)),
    "QAttention": Entry(
        "multi_head_attention", q.projected_attention, (3, 4, 6, 7), q.projected_attention_macs
    ),
    "QuantizeLinear": Entry("quantize", q.quantized, (1, 2)),
    "DequantizeLinear": Entry("dequantize", q.dequantized, (1, 2)),
    "DynamicQuantizeMatMul": _matmul(settings=(2, 3)),
    "MatMulIntegerToFloat": _matmul(dtype="float32", settings=(2, 3, 4, 5)),
    "MatMulNBits": Entry("linear", s.matmul_nbits, (2, 3, 4), _nbits_macs),
    "FusedConv": _fused_conv(),
    "FusedGemm": Entry(_product(), s.gemm, (), _gemm_macs(), _fused_gemm_attrs),
    "FusedMatMul": Entry(_product(), s.fused_matmul, (), _fused_macs),
    "TransposeMatMul": Entry(_product(), s.fused_matmul, (), _fused_macs),
    "Attention": Entry("multi_head_attention", q.projected_attention, (), q.projected_attention_macs),
    "MultiHeadAttention": Entry("attention", q.multi_head, (), q.multi_head_macs),
    "GroupQueryAttention": Entry("attention", q.grouped_attention, (5, 6, 7, 8), q.grouped_attention_macs),
    **_named("RotaryEmbedding=rotary_embedding", s.same, (1, 2, 3)),
    **_named("SkipLayerNormalization=layer_norm SkipSimplifiedLayerNormalization=rms_norm", q.skip_layer_norm),
    **_named("EmbedLayerNormalization=embedding", q.embed_layer_norm),
    **_named("Gelu FastGelu=gelu BiasGelu=gelu QuickGelu=gelu", s.same),
    **_named("GroupNorm=group_norm", s.same),
}  # fmt: skip
"""Operators of com.microsoft."""

OPERATORS: dict[tuple[str, str], Entry] = {
    **{("", name): entry for name, entry in STANDARD.items()},
    **{("com.microsoft", name): entry for name, entry in MICROSOFT.items()},
}
"""Domain (empty for the standard one) and operator → what memfit knows of it."""

CONTROL = frozenset({"If", "Loop", "Scan", "Constant"})
"""Operators that `steps` takes apart."""
