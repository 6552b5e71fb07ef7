"""Small `.onnx` models that the tests make themselves, such as ONNX Runtime can run.

`OPERATOR_NETS` holds one operator each, `MIXED_NETS` whole networks, and what exporters and quantizers write.
Numbers are drawn from a fixed seed, so a model is the same bytes on every run.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from onnx import AttributeProto, GraphProto, ModelProto, TensorProto, helper, numpy_helper

Array = npt.NDArray[Any]

CODES = {"f4": TensorProto.FLOAT, "f8": TensorProto.DOUBLE, "f2": TensorProto.FLOAT16, "i8": TensorProto.INT64,
         "i4": TensorProto.INT32, "i1": TensorProto.INT8, "u1": TensorProto.UINT8, "?": TensorProto.BOOL}  # fmt: skip


class In(NamedTuple):
    """A graph input: NumPy's code of its type, and its sizes, of which a text is a symbol."""

    dtype: str
    shape: tuple[int | str, ...]


def I(*shape: int | str, dtype: str = "f4") -> In:  # noqa: E743, N802
    return In(dtype, shape)


def F(*shape: int, seed: int = 0) -> Array:  # noqa: N802
    """A weight."""
    return np.random.default_rng(seed).normal(0, 0.3, shape).astype(np.float32)


def N(*values: int) -> Array:  # noqa: N802
    """A list of whole numbers."""
    return np.array(values, dtype=np.int64)


class Net:
    """One model being built."""

    def __init__(self, opset: int = 21, microsoft: bool = False) -> None:
        self.opset, self.microsoft = opset, microsoft
        self.nodes: list[Any] = []
        self.inputs: list[Any] = []
        self.initializers: list[Any] = []
        self.functions: list[Any] = []
        self.infos: list[Any] = []
        self.count = 0

    def name(self, stem: str) -> str:
        self.count += 1
        return f"{stem}_{self.count}"

    def input(self, *shape: int | str, dtype: str = "f4", name: str | None = None) -> str:
        name = name or f"input{len(self.inputs)}"
        self.inputs.append(helper.make_tensor_value_info(name, CODES[dtype], shape))
        return name

    def constant(self, value: Array | float, name: str | None = None) -> str:
        name = name or self.name("const")
        array = np.asarray(value)
        self.initializers.append(numpy_helper.from_array(array, name))
        return name

    def scale(self, value: float = 0.05) -> str:
        return self.constant(np.float32(value), self.name("scale"))

    def op(
        self,
        kind: str,
        *inputs: str | Array | In | None,
        outputs: int | Sequence[str] = 1,
        name: str = "",
        **attrs: Any,
    ) -> Any:
        """Add an operator; gives its output's name, or all of them."""
        domain = attrs.pop("domain", "")
        if "opset_" in attrs:  # an attribute of the operator, not the model's
            attrs["opset"] = attrs.pop("opset_")
        names = []
        for value in inputs:
            if isinstance(value, In):
                names.append(self.input(*value.shape, dtype=value.dtype))
            elif value is None or isinstance(value, str):
                names.append(value or "")
            else:
                names.append(self.constant(value))
        results = [self.name(kind.lower()) for _ in range(outputs)] if isinstance(outputs, int) else list(outputs)
        self.nodes.append(helper.make_node(kind, names, results, name=name, domain=domain, **attrs))
        return results[0] if len(results) == 1 else results

    def graph(self, *outputs: str) -> GraphProto:
        infos = [helper.make_empty_tensor_value_info(name) for name in outputs]
        return helper.make_graph(self.nodes, "net", self.inputs, infos, self.initializers, value_info=self.infos)

    def model(self, *outputs: str) -> ModelProto:
        opsets = [helper.make_opsetid("", self.opset)]
        if self.microsoft:
            opsets.append(helper.make_opsetid("com.microsoft", 1))
        for function in self.functions:
            opsets.append(helper.make_opsetid(function.domain, 1))
        return helper.make_model(
            self.graph(*outputs), opset_imports=opsets, ir_version=10, functions=self.functions, producer_name="memfit"
        )

    def build(self, *outputs: str) -> bytes:
        return self.model(*outputs).SerializeToString(deterministic=True)


def one(
    kind: str, *inputs: Any, outputs: int | Sequence[str] = 1, opset: int = 21, **attrs: Any
) -> Callable[[], bytes]:
    """A model of one operator; an array is a constant, an `I(…)` an input."""

    def make() -> bytes:
        net = Net(opset, microsoft=attrs.get("domain") == "com.microsoft")
        made = net.op(kind, *inputs, outputs=outputs, **attrs)
        return net.build(*([made] if isinstance(made, str) else [name for name in made if name]))

    return make


IMAGE = I(1, 4, 9, 11)
ONE = np.float32(0.05)
ZERO, ZERO8 = np.uint8(128), np.int8(0)
MS = "com.microsoft"
_B = I(2, 3, dtype="?")
_X = I(2, 3, 4)

OPERATOR_NETS: dict[str, Callable[[], bytes]] = {
    # Convolution and pooling
    "conv": one("Conv", IMAGE, F(6, 4, 3, 3), F(6), pads=[1, 1, 1, 1], strides=[2, 1]),
    "conv_same_upper": one("Conv", IMAGE, F(6, 4, 4, 3), auto_pad="SAME_UPPER", strides=[2, 2]),
    "conv_same_lower": one("Conv", IMAGE, F(6, 4, 2, 2), auto_pad="SAME_LOWER"),
    "conv_valid_dilated": one("Conv", IMAGE, F(6, 4, 3, 3), auto_pad="VALID", dilations=[2, 3]),
    "conv_uneven_pads": one("Conv", IMAGE, F(6, 4, 3, 3), pads=[0, 1, 2, 3]),
    "conv_depthwise": one("Conv", IMAGE, F(4, 1, 3, 3), F(4), group=4, pads=[1, 1, 1, 1]),
    "conv_grouped": one("Conv", IMAGE, F(6, 2, 3, 3), group=2),
    "conv1d": one("Conv", I(2, 3, 20), F(5, 3, 4), strides=[3]),
    "conv3d": one("Conv", I(1, 2, 5, 6, 7), F(3, 2, 2, 3, 3), pads=[1, 1, 1, 1, 1, 1]),
    "conv_weight_is_input": one("Conv", IMAGE, I(6, 4, 3, 3)),
    "conv_transpose": one("ConvTranspose", IMAGE, F(4, 5, 3, 3), F(5), strides=[2, 2], pads=[1, 1, 1, 1],
                          output_padding=[1, 0]),
    "conv_transpose_groups": one("ConvTranspose", IMAGE, F(4, 3, 2, 2), group=2, strides=[2, 2], dilations=[2, 2]),
    "conv_transpose_same": one("ConvTranspose", IMAGE, F(4, 3, 3, 3), auto_pad="SAME_UPPER", strides=[2, 2]),
    "conv_transpose_output_shape": one("ConvTranspose", IMAGE, F(4, 3, 3, 3), output_shape=[19, 23], strides=[2, 2]),
    "deform_conv": one("DeformConv", I(1, 4, 6, 6), F(3, 4, 3, 3), I(1, 18, 4, 4), opset=19),
    "max_pool": one("MaxPool", IMAGE, kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1]),
    "max_pool_ceil": one("MaxPool", IMAGE, kernel_shape=[2, 2], strides=[2, 2], ceil_mode=1),
    "max_pool_indices": one("MaxPool", IMAGE, kernel_shape=[2, 3], outputs=2),
    "max_pool_same": one("MaxPool", IMAGE, kernel_shape=[3, 3], strides=[2, 2], auto_pad="SAME_UPPER"),
    "average_pool": one("AveragePool", IMAGE, kernel_shape=[3, 2], strides=[1, 2], count_include_pad=1),
    "average_pool_ceil": one("AveragePool", IMAGE, kernel_shape=[3, 3], strides=[3, 3], ceil_mode=1, pads=[1, 1, 1, 1]),
    "lp_pool": one("LpPool", IMAGE, kernel_shape=[2, 2], p=2),
    "global_average_pool": one("GlobalAveragePool", IMAGE),
    "global_average_pool_of_one": one("GlobalAveragePool", I(1, 4, 1, 1)),
    "global_max_pool": one("GlobalMaxPool", IMAGE),
    "max_unpool": one("MaxUnpool", I(1, 1, 2, 2), np.array([[[[0, 3], [9, 10]]]], np.int64), kernel_shape=[2, 2],
                      strides=[2, 2]),
    "max_roi_pool": one("MaxRoiPool", I(1, 3, 8, 8), np.float32([[0, 0, 0, 4, 4], [0, 1, 1, 6, 7]]),
                        pooled_shape=[3, 2]),
    "roi_align": one("RoiAlign", I(1, 3, 8, 8), np.float32([[0, 0, 4, 4], [1, 1, 6, 7]]), N(0, 0), output_height=3,
                     output_width=2),
    "grid_sample": one("GridSample", I(1, 3, 8, 8), I(1, 5, 6, 2), opset=16),
    "affine_grid": one("AffineGrid", I(2, 2, 3), N(2, 3, 5, 6), opset=20),
    "col2im": one("Col2Im", I(1, 8, 9), N(6, 6), N(2, 2), strides=[2, 2]),
    # Products
    "gemm": one("Gemm", I(2, 8), F(5, 8), F(5), transB=1),
    "gemm_a_transposed": one("Gemm", I(8, 2), F(8, 5), transA=1, alpha=0.5),
    "matmul": one("MatMul", I(2, 3, 8), F(8, 5)),
    "matmul_of_activations": one("MatMul", I(2, 1, 3, 8), I(4, 8, 5)),
    "matmul_vector": one("MatMul", I(3, 8), F(8)),
    "matmul_vectors": one("MatMul", I(8), F(8)),
    "einsum": one("Einsum", I(2, 3, 4, 8), I(2, 3, 5, 8), equation="bhid,bhjd->bhij"),
    "einsum_dots": one("Einsum", I(2, 3, 8), F(8, 5), equation="...i,ij->...j"),
    "einsum_implicit": one("Einsum", I(3, 8), I(8, 5), equation="ij,jk"),
    "einsum_one": one("Einsum", I(3, 4), equation="ij->ji"),
    "matmul_integer": one("MatMulInteger", I(2, 8, dtype="u1"), np.ones((8, 5), np.int8), ZERO, ZERO8),
    "conv_integer": one("ConvInteger", I(1, 2, 6, 6, dtype="u1"), np.ones((3, 2, 3, 3), np.uint8), ZERO),
    "qlinear_matmul": one("QLinearMatMul", I(2, 8, dtype="u1"), ONE, ZERO, np.ones((8, 5), np.uint8), ONE, ZERO, ONE,
                          ZERO),
    "qlinear_conv": one("QLinearConv", I(1, 4, 9, 11, dtype="u1"), ONE, ZERO, np.ones((6, 4, 3, 3), np.uint8), ONE, ZERO,
                        ONE, ZERO, np.ones(6, np.int32), pads=[1, 1, 1, 1]),
    # Norms
    "batch_norm": one("BatchNormalization", IMAGE, F(4), F(4), F(4), np.ones(4, np.float32)),
    "instance_norm": one("InstanceNormalization", IMAGE, F(4), F(4)),
    "group_norm": one("GroupNormalization", IMAGE, F(4), F(4), num_groups=2),
    "layer_norm": one("LayerNormalization", I(2, 3, 8), F(8), F(8), outputs=3, axis=-1, opset=17),
    "rms_norm": one("RMSNormalization", I(2, 3, 8), F(8), opset=23),
    "lp_norm": one("LpNormalization", I(3, 4), axis=1),
    "lrn": one("LRN", IMAGE, size=3),
    "mvn": one("MeanVarianceNormalization", IMAGE, axes=[0, 2, 3]),
    # Recurrent
    "lstm": one("LSTM", I(6, 2, 5), F(1, 12, 5), F(1, 12, 3), F(1, 24), outputs=3, hidden_size=3),
    "lstm_bidirectional": one("LSTM", I(6, 2, 5), F(2, 12, 5), F(2, 12, 3), hidden_size=3, direction="bidirectional",
                              outputs=["y", "", "c"]),
    "gru": one("GRU", I(6, 2, 5), F(1, 9, 5), F(1, 9, 3), outputs=2, hidden_size=3, linear_before_reset=1),
    "rnn": one("RNN", I(6, 2, 5), F(1, 3, 5), F(1, 3, 3), outputs=["", "h"], hidden_size=3),
    # Attention
    "attention": one("Attention", I(2, 4, 5, 8), I(2, 4, 7, 8), I(2, 4, 7, 6), opset=23),
    "attention_grouped": one("Attention", I(2, 5, 32), I(2, 7, 16), I(2, 7, 16), q_num_heads=4, kv_num_heads=2, opset=23),
    "rotary_embedding": one("RotaryEmbedding", I(2, 4, 3, 8), F(9, 4), F(9, 4), N(0, 1, 2, 0, 1, 2).reshape(2, 3),
                            opset=23),
    # Activations
    **{f"act_{name}": one(name, IMAGE) for name in (
        "Relu", "Elu", "Selu", "Celu", "LeakyRelu", "ThresholdedRelu", "Gelu", "Mish", "Softplus", "Softsign", "Sigmoid",
        "HardSigmoid", "HardSwish", "Tanh", "Erf", "Shrink", "Softmax", "LogSoftmax", "Hardmax",
    )},
    "clip": one("Clip", IMAGE, np.float32(0), np.float32(6)),
    "clip_old": one("Clip", IMAGE, min=0.0, max=6.0, opset=6),
    "clip_open": one("Clip", IMAGE, None, np.float32(1)),
    "prelu": one("PRelu", IMAGE, F(4, 1, 1)),
    # Element-wise
    **{f"binary_{name}": one(name, I(2, 3, 4), I(3, 1)) for name in ("Add", "Sub", "Mul", "Div", "Pow", "Max", "Min",
       "Mean", "Sum", "Less", "LessOrEqual", "Greater", "GreaterOrEqual", "Equal")},
    "mod": one("Mod", I(2, 3, dtype="i8"), N(2, 3, 4)),
    "bit_shift": one("BitShift", I(2, 3, dtype="u1"), np.uint8([1, 2, 3]), direction="LEFT"),
    "bitwise_and": one("BitwiseAnd", I(2, 3, dtype="i4"), np.int32([1, 2, 3])),
    **{f"logical_{name}": one(name, _B, _B) for name in ("And", "Or", "Xor")},
    "not": one("Not", _B),
    "where": one("Where", _B, I(2, 1), I(1, 3)),
    **{f"unary_{name}": one(name, _X) for name in ("Abs", "Neg", "Ceil", "Floor", "Round", "Sign", "Sqrt", "Exp", "Log",
       "Reciprocal", "Sin", "Cos", "Tan", "Atan", "Sinh", "Cosh", "Asinh", "IsNaN", "IsInf", "Identity")},
    "cast": one("Cast", _X, to=TensorProto.FLOAT16),
    "cast_to_itself": one("Cast", _X, to=TensorProto.FLOAT),
    "cast_like": one("CastLike", _X, np.float16([1])),
    "dropout": one("Dropout", _X, outputs=2),
    # Reductions
    **{f"reduce_{name}": one(f"Reduce{name}", _X, N(0, 2), opset=18) for name in ("Mean", "Sum", "Max", "Min", "Prod",
       "L1", "L2", "LogSum", "LogSumExp", "SumSquare")},
    "reduce_all": one("ReduceMean", _X, keepdims=0),
    "reduce_old": one("ReduceMean", _X, axes=[-1], keepdims=0, opset=13),
    "reduce_noop": one("ReduceSum", _X, noop_with_empty_axes=1),
    "argmax": one("ArgMax", _X, axis=1, keepdims=0),
    "argmin": one("ArgMin", _X, axis=-1),
    "cumsum": one("CumSum", _X, np.int64(1)),
    "topk": one("TopK", _X, N(2), axis=-1, outputs=2),
    # Shapes
    "reshape": one("Reshape", _X, N(0, -1)),
    "reshape_zero": one("Reshape", I(2, 0), N(0, 3), allowzero=1),
    "squeeze": one("Squeeze", I(1, 3, 1, 4), N(0, -2)),
    "squeeze_all": one("Squeeze", I(1, 3, 1, 4)),
    "squeeze_old": one("Squeeze", I(1, 3, 1, 4), axes=[2], opset=11),
    "unsqueeze": one("Unsqueeze", _X, N(0, -1)),
    "unsqueeze_old": one("Unsqueeze", _X, axes=[1, 2], opset=11),
    "flatten": one("Flatten", IMAGE, axis=2),
    "transpose": one("Transpose", _X, perm=[2, 0, 1]),
    "transpose_default": one("Transpose", _X),
    "concat": one("Concat", I(2, 3), I(2, 5), F(2, 1), axis=-1),
    "split": one("Split", I(2, 7), N(3, 4), axis=1, outputs=2),
    "split_equal": one("Split", I(2, 7), axis=1, num_outputs=3, outputs=3),
    "split_old": one("Split", I(2, 6), axis=1, split=[2, 4], outputs=2, opset=11),
    "slice": one("Slice", IMAGE, N(1, -3), N(9, 2**62), N(2, 3), N(2, 1)),
    "slice_back": one("Slice", IMAGE, N(-1), N(-(2**62)), N(3), N(-2)),
    "slice_old": one("Slice", IMAGE, starts=[1, 0], ends=[-1, 1000], axes=[2, 3], opset=9),
    "gather": one("Gather", I(5, 4), np.array([[0, 2], [4, -1]], np.int64), axis=0),
    "gather_axis": one("Gather", _X, np.int64(1), axis=-1),
    "embedding": one("Gather", F(10, 4), I(1, 3, dtype="i8")),
    "gather_elements": one("GatherElements", _X, np.zeros((2, 3, 2), np.int64), axis=2),
    "gather_nd": one("GatherND", _X, np.zeros((2, 1), np.int64), batch_dims=1),
    "scatter_nd": one("ScatterND", _X, np.zeros((1, 1), np.int64), F(1, 3, 4)),
    "scatter_elements": one("ScatterElements", _X, np.zeros((1, 3, 4), np.int64), F(1, 3, 4)),
    "expand": one("Expand", I(3, 1), N(2, 1, 4)),
    "tile": one("Tile", I(2, 3), N(2, 3)),
    "pad": one("Pad", IMAGE, N(0, 0, 1, 2, 0, 0, 3, 4), mode="reflect"),
    "pad_axes": one("Pad", IMAGE, N(1, -1, 2, 0), np.float32(0), N(2, 3)),
    "pad_old": one("Pad", IMAGE, pads=[0, 0, 1, 1, 0, 0, 1, 1], opset=10),
    "resize_scales": one("Resize", IMAGE, None, np.float32([1, 1, 2, 1.5])),
    "resize_sizes": one("Resize", IMAGE, None, None, N(1, 4, 18, 5), mode="linear"),
    "resize_down": one("Resize", I(1, 4, 17, 23), None, np.float32([1, 1, 0.6, 0.3])),
    "resize_policy": one("Resize", IMAGE, None, None, N(20, 20), axes=[2, 3], keep_aspect_ratio_policy="not_larger"),
    "resize_old": one("Resize", IMAGE, np.float32([1, 1, 2, 2]), opset=10),
    "upsample": one("Upsample", IMAGE, np.float32([1, 1, 2, 3]), opset=9),
    "depth_to_space": one("DepthToSpace", IMAGE, blocksize=2),
    "space_to_depth": one("SpaceToDepth", I(1, 3, 4, 6), blocksize=2),
    "center_crop_pad": one("CenterCropPad", IMAGE, N(12, 5), axes=[2, 3], opset=18),
    "trilu": one("Trilu", I(4, 4), upper=0),
    "reverse_sequence": one("ReverseSequence", I(4, 2), N(3, 4), time_axis=0, batch_axis=1),
    "one_hot": one("OneHot", I(2, 3, dtype="i8"), np.int64(5), np.float32([0, 1]), axis=1),
    "eye_like": one("EyeLike", I(3, 4)),
    "shape_slice": one("Shape", IMAGE, start=1, end=-1),
    "size": one("Size", IMAGE),
    "range": one("Range", np.int64(2), np.int64(11), np.int64(3)),
    "constant_of_shape": one("ConstantOfShape", N(2, 3)),
    "random_normal": one("RandomNormal", shape=[2, 3]),
    "random_uniform_like": one("RandomUniformLike", _X),
    "bernoulli": one("Bernoulli", I(3)),
    "hann_window": one("HannWindow", np.int64(8), opset=17),
    "mel_weights": one("MelWeightMatrix", np.int64(8), np.int64(16), np.int64(8192), np.float32(0), np.float32(4096),
                       opset=17),
    "dft": one("DFT", I(1, 10, 1), axis=1, onesided=1, opset=17),
    "stft": one("STFT", I(1, 128, 1), np.int64(8), np.ones(16, np.float32), opset=17),
    "det": one("Det", I(2, 3, 3)),
    "nll_loss": one("NegativeLogLikelihoodLoss", I(3, 5), N(1, 0, 4), opset=13),
    "cross_entropy": one("SoftmaxCrossEntropyLoss", I(3, 5), N(1, 0, 4), outputs=2, reduction="none", opset=13),
    # Quantization
    "quantize": one("QuantizeLinear", IMAGE, ONE, ZERO),
    "dequantize": one("DequantizeLinear", I(1, 4, 9, 11, dtype="u1"), ONE, ZERO),
    "dynamic_quantize": one("DynamicQuantizeLinear", IMAGE, outputs=3),
    # com.microsoft
    "ms_qlinear_add": one("QLinearAdd", I(1, 4, 5, dtype="u1"), ONE, ZERO, I(1, 4, 1, dtype="u1"), ONE, ZERO, ONE, ZERO,
                          domain=MS),
    "ms_qlinear_mul": one("QLinearMul", I(1, 4, 5, dtype="u1"), ONE, ZERO, I(1, 4, 5, dtype="u1"), ONE, ZERO, ONE, ZERO,
                          domain=MS),
    "ms_qlinear_sigmoid": one("QLinearSigmoid", I(1, 4, dtype="u1"), ONE, ZERO, ONE, ZERO, domain=MS),
    "ms_qlinear_leaky_relu": one("QLinearLeakyRelu", I(1, 4, dtype="u1"), ONE, ZERO, ONE, ZERO, domain=MS),
    "ms_qlinear_softmax": one("QLinearSoftmax", I(1, 4, dtype="u1"), ONE, ZERO, ONE, ZERO, domain=MS, opset_=13),
    "ms_qlinear_average_pool": one("QLinearAveragePool", I(1, 4, 8, 8, dtype="u1"), ONE, ZERO, ONE, ZERO,
                                   kernel_shape=[2, 2], strides=[2, 2], domain=MS),
    "ms_qlinear_global_average_pool": one("QLinearGlobalAveragePool", I(1, 4, 8, 8, dtype="u1"), ONE, ZERO, ONE, ZERO,
                                          domain=MS),
    "ms_qlinear_concat": one("QLinearConcat", ONE, ZERO, I(1, 4, dtype="u1"), ONE, ZERO, I(1, 5, dtype="u1"), ONE, ZERO,
                             axis=1, domain=MS),
    "ms_qlinear_where": one("QLinearWhere", _B, I(2, 3, dtype="u1"), ONE, ZERO, I(2, 3, dtype="u1"), ONE, ZERO, ONE,
                            ZERO, domain=MS),
    "ms_qgemm": one("QGemm", I(2, 8, dtype="u1"), ONE, ZERO, np.ones((8, 5), np.uint8), ONE, ZERO, np.ones(5, np.int32),
                    ONE, ZERO, domain=MS),
    "ms_qgemm_float": one("QGemm", I(2, 8, dtype="u1"), ONE, ZERO, np.ones((8, 5), np.uint8), ONE, ZERO, domain=MS),
    "ms_qattention": one("QAttention", I(2, 5, 8, dtype="u1"), np.ones((8, 24), np.uint8), F(24), ONE, ONE, None, ZERO,
                         ZERO, num_heads=2, domain=MS),
    "ms_dynamic_quantize_matmul": one("DynamicQuantizeMatMul", I(2, 8), np.ones((8, 5), np.uint8), ONE, ZERO, domain=MS),
    "ms_matmul_integer_to_float": one("MatMulIntegerToFloat", I(2, 8, dtype="u1"), np.ones((8, 5), np.uint8), ONE, ONE,
                                      ZERO, ZERO, domain=MS),
    "ms_matmul_nbits": one("MatMulNBits", I(2, 3, 32), np.ones((6, 1, 16), np.uint8), F(6), K=32, N=6, bits=4,
                           block_size=32, domain=MS),
    "ms_fused_conv": one("FusedConv", IMAGE, F(6, 4, 3, 3), F(6), activation="Relu", domain=MS),
    "ms_fused_gemm": one("FusedGemm", I(2, 8), F(8, 5), F(5), activation="Relu", domain=MS),
    "ms_fused_matmul": one("FusedMatMul", I(2, 3, 8), I(2, 5, 8), transB=1, domain=MS),
    "ms_attention": one("Attention", I(2, 5, 8), F(8, 24), F(24), num_heads=2, domain=MS),
    "ms_multi_head_attention": one("MultiHeadAttention", I(2, 5, 8), I(2, 7, 8), I(2, 7, 8), num_heads=2, domain=MS),
    "ms_group_query_attention": one("GroupQueryAttention", I(1, 4, 32), I(1, 4, 16), I(1, 4, 16), I(1, 2, 0, 8),
                                    I(1, 2, 0, 8), np.int32([3]), np.int32(4), outputs=3,
                                    num_heads=4, kv_num_heads=2, domain=MS),
    "ms_skip_layer_norm": one("SkipLayerNormalization", I(2, 3, 8), I(2, 3, 8), F(8), F(8), domain=MS),
    "ms_embed_layer_norm": one("EmbedLayerNormalization", I(2, 3, dtype="i4"), I(2, 3, dtype="i4"), F(10, 8), F(5, 8),
                               F(2, 8), F(8), F(8), outputs=2, domain=MS),
    "ms_fast_gelu": one("FastGelu", I(2, 8), F(8), domain=MS),
    "ms_bias_gelu": one("BiasGelu", I(2, 8), F(8), domain=MS),
    "ms_quick_gelu": one("QuickGelu", I(2, 8), domain=MS),
    # Sizes that depend on values
    "nonzero": one("NonZero", I(2, 3)),
    "unique": one("Unique", I(6), outputs=4),
    "compress": one("Compress", I(3, 4), I(3, dtype="?"), axis=0),
    "nms": one("NonMaxSuppression", I(1, 6, 4), I(1, 2, 6), N(3), np.float32([0.5])),
}  # fmt: skip

WORST_CASE = ("nonzero", "unique", "compress", "nms")
"""Models whose outputs are smaller in a run than the largest that they could be."""


# -- whole networks -----------------------------------------------------------------------------------------------


def cnn() -> bytes:
    """Convolution, batch norm, relu6, depthwise, pooling and a classifier, named as PyTorch's exporter does."""
    net = Net()
    x = net.input("N", 3, 16, 16, name="image")
    x = net.op("Conv", x, net.constant(F(8, 3, 3, 3), "features.0.0.weight"), pads=[1] * 4, strides=[2, 2],
               name="/features/features.0/features.0.0/Conv")  # fmt: skip
    x = net.op("BatchNormalization", x, F(8), F(8), F(8), np.ones(8, np.float32),
               name="/features/features.0/features.0.1/BatchNormalization")  # fmt: skip
    x = net.op("Clip", x, np.float32(0), np.float32(6), name="/features/features.0/features.0.2/Clip")
    y = net.op("Conv", x, F(8, 1, 3, 3), F(8), group=8, pads=[1] * 4, name="/features/features.1/conv/conv.0/Conv")
    y = net.op("Relu", y, name="/features/features.1/conv/conv.1/Relu")
    y = net.op("Conv", y, F(8, 8, 1, 1), F(8), name="/features/features.1/conv/conv.2/Conv")
    x = net.op("Add", x, y, name="/features/features.1/Add")
    x = net.op("GlobalAveragePool", x, name="/GlobalAveragePool")
    x = net.op("Flatten", x, name="/Flatten")
    return net.build(net.op("Gemm", x, F(10, 8), F(10), transB=1, name="/classifier/classifier.1/Gemm"))


def resnet() -> bytes:
    net = Net(13)
    x = net.input(1, 3, 32, 32)
    x = net.op("Relu", net.op("Conv", x, F(8, 3, 7, 7), F(8), pads=[3] * 4, strides=[2, 2]))
    x = net.op("MaxPool", x, kernel_shape=[3, 3], strides=[2, 2], pads=[1] * 4)
    for stage, (channels, stride) in enumerate([(8, 1), (16, 2)]):
        inside = 8
        y = net.op(
            "Relu", net.op("Conv", x, F(channels, inside, 3, 3), F(channels), pads=[1] * 4, strides=[stride] * 2)
        )
        y = net.op("Conv", y, F(channels, channels, 3, 3), F(channels), pads=[1] * 4)
        if stage:
            x = net.op("Conv", x, F(channels, inside, 1, 1), F(channels), strides=[2, 2])
        x = net.op("Relu", net.op("Add", x, y))
    x = net.op("Flatten", net.op("GlobalAveragePool", x))
    return net.build(net.op("Gemm", x, F(10, 16), F(10), transB=1))


def unet() -> bytes:
    net = Net()
    x = net.input(1, 3, 16, 16)
    a = net.op("Relu", net.op("Conv", x, F(4, 3, 3, 3), pads=[1] * 4))
    b = net.op("MaxPool", a, kernel_shape=[2, 2], strides=[2, 2])
    b = net.op("Relu", net.op("Conv", b, F(8, 4, 3, 3), pads=[1] * 4))
    up = net.op("ConvTranspose", b, F(8, 4, 2, 2), strides=[2, 2])
    both = net.op("Concat", a, up, axis=1)
    other = net.op("Resize", b, None, np.float32([1, 1, 2, 2]), mode="linear")
    last = net.op("Conv", net.op("Concat", both, other, axis=1), F(2, 16, 1, 1))
    return net.build(net.op("Softmax", last, axis=1))


def transformer() -> bytes:
    """A block with its shapes computed on the way, as PyTorch's first exporter writes them."""
    net = Net(17)
    ids = net.input("batch", "sequence", dtype="i8", name="input_ids")
    x = net.op("Gather", net.constant(F(20, 16), "embed.weight"), ids)
    shape = net.op("Shape", ids)
    batch, length = (net.op("Gather", shape, np.int64(k), axis=0) for k in (0, 1))
    position = net.op("Gather", F(32, 16), net.op("Range", np.int64(0), length, np.int64(1)))
    x = net.op("Add", x, position)
    y = net.op("LayerNormalization", x, F(16), F(16), axis=-1)
    heads = []
    for k in range(3):
        part = net.op("Add", net.op("MatMul", y, F(16, 16, seed=k)), F(16))
        size = net.op("Concat", net.op("Unsqueeze", batch, N(0)), net.op("Unsqueeze", length, N(0)), N(4), N(4), axis=0)
        heads.append(net.op("Transpose", net.op("Reshape", part, size), perm=[0, 2, 1, 3]))
    q, k, v = heads
    scores = net.op("Div", net.op("MatMul", q, net.op("Transpose", k, perm=[0, 1, 3, 2])), np.float32(2))
    square = net.op("Concat", net.op("Unsqueeze", length, N(0)), net.op("Unsqueeze", length, N(0)), axis=0)
    mask = net.op("Trilu", net.op("ConstantOfShape", square, value=numpy_helper.from_array(np.float32([1]))), upper=0)
    scores = net.op("Where", net.op("Cast", mask, to=TensorProto.BOOL), scores, np.float32(-1e9))
    mixed = net.op("Transpose", net.op("MatMul", net.op("Softmax", scores, axis=-1), v), perm=[0, 2, 1, 3])
    size = net.op("Concat", net.op("Unsqueeze", batch, N(0)), net.op("Unsqueeze", length, N(0)), N(16), axis=0)
    x = net.op("Add", x, net.op("MatMul", net.op("Reshape", mixed, size), F(16, 16)))
    half = net.op("Mul", net.op("MatMul", x, F(16, 32)), np.float32(0.5))
    return net.build(net.op("Add", x, net.op("MatMul", net.op("Mul", half, net.op("Erf", half)), F(32, 16))))


def lstm_net() -> bytes:
    net = Net(14)
    x = net.input(2, 7, 5)
    y, h, c = net.op("LSTM", net.op("Transpose", x, perm=[1, 0, 2]), F(1, 16, 5), F(1, 16, 4), F(1, 32), outputs=3,
                     hidden_size=4)  # fmt: skip
    y = net.op("Transpose", net.op("Squeeze", y, N(1)), perm=[1, 0, 2])
    return net.build(net.op("MatMul", y, F(4, 3)), h, c)


def resize_from_shape() -> bytes:
    """Interpolation to the size of another tensor."""
    net = Net(13)
    x, other = net.input("N", 4, 8, 8), net.input("N", 4, 13, 17)
    wanted = net.op("Cast", net.op("Slice", net.op("Shape", other), N(2), N(4), N(0)), to=TensorProto.INT64)
    kept = net.op("Slice", net.op("Shape", x), N(0), N(2), N(0))
    y = net.op("Resize", x, None, None, net.op("Concat", kept, wanted, axis=0), mode="linear")
    return net.build(net.op("Add", y, other))


def shuffle() -> bytes:
    """Channel shuffle with sizes that are divided and multiplied on the way."""
    net = Net(13)
    x = net.input("N", 8, 6, 6)
    shape = net.op("Shape", x)
    n, c, h, w = (net.op("Gather", shape, np.int64(k)) for k in range(4))
    half = net.op("Div", c, np.int64(2))
    parts = [net.op("Unsqueeze", v, N(0)) for v in (n, net.constant(np.int64(2)), half, h, w)]
    y = net.op("Transpose", net.op("Reshape", x, net.op("Concat", *parts, axis=0)), perm=[0, 2, 1, 3, 4])
    size = net.op("Concat", net.op("Unsqueeze", n, N(0)), N(-1), net.op("Unsqueeze", h, N(0)),
                  net.op("Unsqueeze", w, N(0)), axis=0)  # fmt: skip
    y = net.op("Reshape", y, size)
    even = net.op("Sub", h, net.op("Mod", h, np.int64(4)))
    cut = net.op("Slice", y, N(0), net.op("Unsqueeze", even, N(0)), N(2))
    wide = net.op("Pad", cut, net.op("Concat", N(0, 0, 0, 0, 0, 0), net.op("Unsqueeze", even, N(0)), N(1), axis=0))
    a, b = net.op("Split", wide, axis=1, outputs=2)
    return net.build(net.op("Mul", a, b))


def masks() -> bytes:
    """What detection models compute from shapes: where, equal, expand, tile, gather_nd, scatter_nd, cumsum."""
    net = Net(16)
    x = net.input(3, 4)
    shape = net.op("Shape", x)
    same = net.op("Where", net.op("Equal", N(-1, 4), N(-1, -1)), shape, N(2, 4))
    y = net.op("Expand", net.op("ReduceMax", x, keepdims=0), same)
    wide = net.op("ScatterND", net.op("ConstantOfShape", net.op("Shape", shape),
                  value=numpy_helper.from_array(N(1))), N(1).reshape(1, 1), N(2))  # fmt: skip
    z = net.op("Tile", y, wide)
    count = net.op("ReduceProd", net.op("GatherND", shape, N(0, 1).reshape(2, 1)), keepdims=0)
    flat = net.op("Reshape", z, net.op("Concat", N(-1), net.op("Unsqueeze", net.op("Div", count, np.int64(6)), N(0)),
                  axis=0))  # fmt: skip
    most = net.op("Min", net.op("CumSum", N(1, 1), np.int64(0)), N(5, 1))
    return net.build(net.op("Slice", flat, N(0), net.op("Slice", most, N(0), N(1)), N(0)))


def qdq_cnn(weight: str = "int8", activation: Any = np.uint8) -> bytes:
    """What a static quantizer writes: a pair of QuantizeLinear and DequantizeLinear around every operator."""
    net = Net(21)
    zero = activation(128 if activation is np.uint8 else 0)

    def pair(x: str) -> str:
        scale, point = net.scale(), net.constant(zero)
        return str(net.op("DequantizeLinear", net.op("QuantizeLinear", x, scale, point), scale, point))

    def held(*shape: int) -> str:
        if weight == "int4":
            raw = np.random.default_rng(0).integers(0, 255, (int(np.prod(shape)) + 1) // 2, dtype=np.uint8).tobytes()
            name = net.name("weight_quantized")
            net.initializers.append(helper.make_tensor(name, TensorProto.INT4, shape, raw, raw=True))
            return str(net.op("DequantizeLinear", name, net.scale()))
        data = np.random.default_rng(0).integers(-127, 127, shape).astype(np.int8)
        return str(net.op("DequantizeLinear", net.constant(data, net.name("weight_quantized")), net.scale(), ZERO8))

    def bias(size: int) -> str:
        return str(net.op("DequantizeLinear", np.arange(size, dtype=np.int32), net.scale(0.01)))

    x = pair(net.input(1, 3, 16, 16))
    x = pair(net.op("Relu", net.op("Conv", x, held(8, 3, 3, 3), bias(8), pads=[1] * 4, strides=[2, 2])))
    y = pair(net.op("Conv", x, held(8, 1, 3, 3), bias(8), group=8, pads=[1] * 4))
    x = pair(net.op("Add", x, y))
    x = pair(net.op("MaxPool", x, kernel_shape=[2, 2], strides=[2, 2]))
    x = pair(net.op("GlobalAveragePool", x))
    x = pair(net.op("Reshape", x, N(1, 8)))
    return net.build(pair(net.op("Gemm", x, held(10, 8), bias(10), transB=1)))


def qdq_float_tail() -> bytes:
    """The last operators have no QuantizeLinear, so they work in floating point."""
    net = Net(13)
    scale, zero = net.scale(), net.constant(ZERO)
    x = net.op("DequantizeLinear", net.op("QuantizeLinear", net.input(1, 8), scale, zero), scale, zero)
    w = net.op("DequantizeLinear", np.ones((8, 6), np.int8), net.scale(), ZERO8)
    x = net.op("MatMul", x, w)
    x = net.op("DequantizeLinear", net.op("QuantizeLinear", x, scale, zero), scale, zero)
    return net.build(net.op("Softmax", x))


def qlinear_cnn() -> bytes:
    net = Net(13, microsoft=True)
    x = net.op("QuantizeLinear", net.input(1, 3, 8, 8), ONE, ZERO)
    x = net.op("QLinearConv", x, ONE, ZERO, np.ones((4, 3, 3, 3), np.uint8), ONE, ZERO, ONE, ZERO,
               np.ones(4, np.int32), pads=[1] * 4)  # fmt: skip
    x = net.op("QLinearAdd", x, ONE, ZERO, x, ONE, ZERO, ONE, ZERO, domain=MS)
    x = net.op("QLinearGlobalAveragePool", x, ONE, ZERO, ONE, ZERO, domain=MS)
    x = net.op("Flatten", x)
    x = net.op(
        "QGemm", x, ONE, ZERO, np.ones((4, 10), np.uint8), ONE, ZERO, np.ones(10, np.int32), ONE, ZERO, domain=MS
    )
    return net.build(net.op("DequantizeLinear", x, ONE, ZERO))


def dynamic_quantized() -> bytes:
    net = Net(13)
    x, scale, zero = net.op("DynamicQuantizeLinear", net.input(2, 8), outputs=3)
    y = net.op("MatMulInteger", x, np.ones((8, 5), np.uint8), zero)
    return net.build(net.op("Mul", net.op("Cast", y, to=TensorProto.FLOAT), scale))


def tied() -> bytes:
    """One matrix embeds and, transposed, makes the scores."""
    net = Net(13)
    weight = net.constant(F(20, 8), "embed.weight")
    x = net.op("Gather", weight, net.input(1, 5, dtype="i8"))
    return net.build(net.op("MatMul", x, net.op("Transpose", weight, perm=[1, 0])))


def half() -> bytes:
    """Weights are stored in half precision, and cast before they are used."""
    net = Net(13)
    return net.build(net.op("MatMul", net.input(2, 8), net.op("Cast", F(8, 5).astype(np.float16), to=1)))


def function() -> bytes:
    """Functions that the file itself defines, one within the other, with an attribute handed through."""
    net = Net(18)
    inner = helper.make_function(
        "local", "scaled", ["a"], ["b"],
        [helper.make_node("LeakyRelu", ["a"], ["b"])], [helper.make_opsetid("", 18)], ["alpha"],
    )  # fmt: skip
    ref = AttributeProto(name="alpha", ref_attr_name="alpha", type=AttributeProto.FLOAT)
    inner.node[0].attribute.append(ref)
    outer = helper.make_function(
        "local", "block", ["x", "w", "s"], ["z"],
        [helper.make_node("MatMul", ["x", "w"], ["y"]), helper.make_node("scaled", ["y"], ["t"], domain="local", alpha=0.1),
         helper.make_node("Reshape", ["t", "s"], ["z"])],
        [helper.make_opsetid("", 18), helper.make_opsetid("local", 1)],
    )  # fmt: skip
    net.functions = [inner, outer]
    x = net.op("block", net.input(2, 6), F(6, 6), N(2, 6), domain="local", name="/layers/layers.0/block")
    x = net.op("block", x, F(6, 6), N(3, 4), domain="local", name="/layers/layers.1/block")
    return net.build(x)


def _branch(name: str, kind: str, source: str, *more: str) -> GraphProto:
    out = helper.make_empty_tensor_value_info(f"{name}_out")
    return helper.make_graph([helper.make_node(kind, [source, *more], [f"{name}_out"])], name, [], [out])


def if_known() -> bytes:
    """A condition that shapes decide, as PyTorch's squeeze writes it."""
    net = Net(13)
    x = net.input("N", 1, 5)
    axes = net.constant(N(1))
    one_row = net.op("Equal", net.op("Gather", net.op("Shape", x), np.int64(1)), np.int64(1))
    y = net.op(
        "If", one_row, then_branch=_branch("then", "Squeeze", x, axes), else_branch=_branch("else", "Identity", x)
    )
    return net.build(net.op("Relu", y))


def if_unknown() -> bytes:
    net = Net(13)
    x, c = net.input(2, 3), net.input(dtype="?")
    y = net.op("If", c, then_branch=_branch("then", "Relu", x), else_branch=_branch("else", "Softmax", x))
    return net.build(net.op("Neg", y))


def loop(rounds: int | None = 5) -> bytes:
    """A state goes round, and every round adds to the output."""
    net = Net(16)
    x = net.input(2, 4)
    body = helper.make_graph(
        [
            helper.make_node("MatMul", ["h", "loop_weight"], ["g"]),
            helper.make_node("Tanh", ["g"], ["h_out"]),
            helper.make_node("Identity", ["cond"], ["cond_out"]),
            helper.make_node("Relu", ["h_out"], ["each"]),
        ],
        "body",
        [
            helper.make_tensor_value_info("i", TensorProto.INT64, []),
            helper.make_tensor_value_info("cond", TensorProto.BOOL, []),
            helper.make_tensor_value_info("h", TensorProto.FLOAT, [2, 4]),
        ],
        [helper.make_empty_tensor_value_info(name) for name in ("cond_out", "h_out", "each")],
        [numpy_helper.from_array(F(4, 4), "loop_weight")],
    )
    count = net.constant(np.int64(rounds)) if rounds is not None else net.input(dtype="i8")
    last, every = net.op("Loop", count, np.bool_(True), x, outputs=2, body=body)
    return net.build(last, every)


def scan() -> bytes:
    net = Net(16)
    state, sequence = net.input(3), net.input(6, 3)
    body = helper.make_graph(
        [helper.make_node("Add", ["s", "x"], ["s_out"]), helper.make_node("Relu", ["s_out"], ["y"])],
        "body",
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, [3]) for name in ("s", "x")],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, [3]) for name in ("s_out", "y")],
    )
    return net.build(*net.op("Scan", state, sequence, outputs=2, body=body, num_scan_inputs=1))


def big() -> bytes:
    """Weights of 288 KiB."""
    net = Net()
    return net.build(net.op("Conv", net.input(1, 128, 8, 8), F(64, 128, 3, 3), F(64)))


def constants() -> bytes:
    """Values among the nodes, every way there is; and one that nothing reads."""
    net = Net(13)
    x = net.op("Reshape", net.input(1, 12), net.op("Constant", value_ints=[3, 4]))
    x = net.op("Mul", x, net.op("Constant", value_float=2.0))
    x = net.op("Add", x, net.op("Constant", value=numpy_helper.from_array(F(3, 4))))
    net.op("Sin", x)
    return net.build(net.op("Identity", net.op("Mul", x, net.op("Constant", value_floats=[1.0, 2.0, 3.0, 4.0]))))


def vgg() -> bytes:
    """Names that say nothing, as exporters before names had them."""
    net = Net(9)
    x = net.input(1, 3, 16, 16)
    inside = 3
    for k, outside in enumerate((4, 8)):
        weight = net.constant(F(outside, inside, 3, 3), f"features.{3 * k}.weight")
        x = net.op("Relu", net.op("Conv", x, weight, pads=[1] * 4, name=f"Conv_{3 * k}"), name=f"Relu_{3 * k + 1}")
        x = net.op("MaxPool", x, kernel_shape=[2, 2], strides=[2, 2], name=f"MaxPool_{3 * k + 2}")
        inside = outside
    return net.build(net.op("Gemm", net.op("Flatten", x), F(128, 5), F(5), name="Gemm_7"))


MIXED_NETS: dict[str, Callable[[], bytes]] = {
    "cnn": cnn,
    "resnet": resnet,
    "unet": unet,
    "transformer": transformer,
    "lstm_net": lstm_net,
    "resize_from_shape": resize_from_shape,
    "shuffle": shuffle,
    "masks": masks,
    "qdq_cnn": qdq_cnn,
    "qdq_cnn_int4": lambda: qdq_cnn("int4"),
    "qdq_cnn_int16": lambda: qdq_cnn(activation=np.int16),
    "qdq_float_tail": qdq_float_tail,
    "qlinear_cnn": qlinear_cnn,
    "dynamic_quantized": dynamic_quantized,
    "tied": tied,
    "half": half,
    "function": function,
    "if_known": if_known,
    "if_unknown": if_unknown,
    "loop": loop,
    "scan": scan,
    "big": big,
    "constants": constants,
    "vgg": vgg,
}

NETS = {**OPERATOR_NETS, **MIXED_NETS}

INPUTS: dict[str, list[str]] = {"transformer": ["2x6"], "resize_from_shape": ["2x4x8x8"]}
"""What models with symbols besides the batch need."""
