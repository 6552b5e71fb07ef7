"""The op table: what each operation of a framework is called here, what part it plays, and what it multiplies.

To add an operation, add one entry. An operation without an entry is an error that names it, never a zero.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from enum import StrEnum
from typing import Any, NamedTuple, Protocol

from memfit.errors import UnsupportedOp
from memfit.graph.model import Scope, Tensor


class Role(StrEnum):
    """The part that an operation plays in a network; passes dispatch on it."""

    CONV = "convolution"
    LINEAR = "linear"
    """A product with a parameter."""
    MATMUL = "matmul"
    """A product of two activations."""
    ATTENTION = "attention"
    RECURRENT = "recurrent"
    EMBEDDING = "embedding"
    BATCH_NORM = "batch norm"
    """Folds into the layer before it."""
    NORM = "norm"
    """Layer, group, instance and RMS norm: rows of their own."""
    ACTIVATION = "activation"
    """Element-wise non-linearity of one input; folds into the layer before it."""
    ADD = "add"
    ARITHMETIC = "arithmetic"
    """Other element-wise work: mul, sub, div, comparisons, where, casts."""
    SOFTMAX = "softmax"
    POOL = "pooling"
    RESIZE = "resize"
    CONCAT = "concatenation"
    REDUCE = "reduction"
    DROPOUT = "dropout"
    VIEW = "view"
    """Makes no bytes: reshape, transpose, slice, expand, detach."""
    COPY = "copy"
    """Same values in new bytes: clone, contiguous, pad, roll, repeat."""
    INDEX = "indexing"
    CREATE = "creation"
    """Makes values from nothing: zeros, arange, rand."""
    LOSS = "loss"
    BACKWARD = "backward"
    OPTIMIZER = "optimizer"
    OTHER = "other"


class RawOp(Protocol):
    """What the table needs to know of an operation."""

    @property
    def target(self) -> str:
        """Framework name, such as aten.add_.Tensor."""

    @property
    def args(self) -> tuple[Any, ...]:
        """Recorded arguments."""

    @property
    def inputs(self) -> tuple[int, ...]:
        """Tensor ids."""

    @property
    def outputs(self) -> tuple[int, ...]:
        """Tensor ids."""

    @property
    def scope(self) -> int:
        """Index of the module that ran it."""

    @property
    def backend(self) -> str | None:
        """Kernel family of a convolution."""


class Call(NamedTuple):
    """One operation with its tensors looked up: what the table's functions read."""

    args: tuple[Any, ...]
    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]
    tensors: Sequence[Tensor]
    parameters: frozenset[int] | set[int]
    """Storages that hold parameters."""

    def tensor(self, position: int) -> Tensor:
        """The tensor that stands at that argument."""
        found: Tensor = self.tensors[self.args[position]]
        return found

    def is_parameter(self, tensor: Tensor) -> bool:
        """True where the tensor is a parameter or a view of one."""
        return tensor.storage in self.parameters


class Entry(NamedTuple):
    """One row of the table."""

    kind: str | Callable[[Call], str]
    role: Role
    macs: Callable[[Call], int] | None = None
    attrs: Callable[[Call], dict[str, Any]] | None = None


# -- convolution --------------------------------------------------------------------------------------------------


def _per_dimension(values: Any, rank: int) -> tuple[int, ...]:
    sizes: tuple[int, ...] = (values,) if isinstance(values, int) else tuple(values)
    return sizes * rank if len(sizes) == 1 else sizes


def _conv_kind(call: Call) -> str:
    weight, transposed, groups = call.tensor(1), call.args[6], call.args[8]
    rank = len(weight.shape) - 2
    if transposed:
        return f"conv_transpose{rank}d"
    if groups > 1 and groups == call.tensor(0).shape[1] and weight.shape[1] == 1:
        return f"depthwise_conv{rank}d"
    return f"conv{rank}d"


def _conv_attrs(call: Call) -> dict[str, Any]:
    weight = call.tensor(1)
    _, _, bias, stride, padding, dilation, transposed, output_padding, groups = call.args
    rank = len(weight.shape) - 2
    attrs = {
        "kernel": weight.shape[2:],
        "stride": _per_dimension(stride, rank),
        "padding": _per_dimension(padding, rank),
        "dilation": _per_dimension(dilation, rank),
        "groups": groups,
        "bias": bias is not None,
    }
    if transposed:
        attrs["output_padding"] = _per_dimension(output_padding, rank)
    return attrs


def _conv_macs(call: Call) -> int:
    """Every output element sums (input channels / groups) · kernel products; transposed: every input element does."""
    weight = call.tensor(1)
    swept = call.tensor(0) if call.args[6] else call.outputs[0]
    return swept.elements * math.prod(weight.shape[1:])


def _conv_backward_macs(call: Call) -> int:
    """Backward multiplies once more for the input's gradient and once for the weight's, where they are asked for."""
    grad, x, weight = call.tensor(0), call.tensor(1), call.tensor(2)
    swept = x if call.args[7] else grad
    wanted = call.args[10]
    return swept.elements * math.prod(weight.shape[1:]) * (bool(wanted[0]) + bool(wanted[1]))


def _pool_attrs(rank: int) -> Callable[[Call], dict[str, Any]]:
    def attrs(call: Call) -> dict[str, Any]:
        kernel = _per_dimension(call.args[1], rank)
        stride = call.args[2] if len(call.args) > 2 else ()
        padding = call.args[3] if len(call.args) > 3 else 0
        return {
            "kernel": kernel,
            "stride": _per_dimension(stride, rank) if stride != () else kernel,
            "padding": _per_dimension(padding, rank),
        }

    return attrs


# -- products -----------------------------------------------------------------------------------------------------


def _product_kind(*positions: int) -> Callable[[Call], str]:
    """A product is `linear` where an operand at one of the positions is a parameter."""

    def kind(call: Call) -> str:
        return "linear" if any(call.is_parameter(call.tensor(p)) for p in positions) else "matmul"

    return kind


def _product_macs(left: int) -> Callable[[Call], int]:
    """Every output element sums as many products as the left operand's last dimension has elements."""

    def macs(call: Call) -> int:
        shape = call.tensor(left).shape
        return call.outputs[0].elements * (shape[-1] if shape else 1)

    return macs


def _grouped_macs(call: Call) -> int:
    """Count products of groups of rows with a matrix each; two plain matrices share their inner dimension out."""
    a, b = call.tensor(0).shape, call.tensor(1).shape
    return a[0] * a[1] * b[1] if len(a) == len(b) == 2 else call.outputs[0].elements * a[-1]


def _attention_macs(call: Call) -> int:
    """Query times key, then weights times value: N · heads · L · S · (E + Ev)."""
    q, k, v = call.tensor(0), call.tensor(1), call.tensor(2)
    return math.prod(q.shape[:-1]) * k.shape[-2] * (q.shape[-1] + v.shape[-1])


def _attention_backward_macs(call: Call) -> int:
    """Five products: the weights again, and gradients of query, key, value and weights."""
    q, k, v = call.tensor(1), call.tensor(2), call.tensor(3)
    return math.prod(q.shape[:-1]) * k.shape[-2] * (3 * q.shape[-1] + 2 * v.shape[-1])


def _fused_mha_macs(call: Call) -> int:
    """Projections of query, key and value, attention, output projection; inputs (N, L, E)."""
    q, k = call.tensor(0), call.tensor(1)
    n, length, width = q.shape
    keys = k.shape[1]
    return n * width * (width * (2 * length + 2 * keys) + 2 * length * keys)


def _encoder_layer_macs(call: Call) -> int:
    """Count a transformer encoder layer in one kernel: attention, its projections, and two linear layers.

    By position: source (N, L, E), E, heads, the three projections as one weight, its bias, output weight and bias,
    four norm settings and parameters, then the two linear layers' weights and biases.
    """
    x, first = call.tensor(0), call.tensor(14)
    n, length, width = x.shape
    return n * length * width * (4 * width + 2 * first.shape[0]) + 2 * n * length * length * width


def _mkldnn_rnn_macs(call: Call) -> int:
    """One layer, one direction: every step multiplies input and state by their gates' weights."""
    x, w_ih, w_hh = call.tensor(0), call.tensor(1), call.tensor(2)
    steps = math.prod(x.shape[:-1])
    return steps * (w_ih.elements + w_hh.elements)


def _cudnn_like_rnn_macs(call: Call) -> int:
    """All layers and directions: every step multiplies by every weight matrix."""
    steps = math.prod(call.inputs[0].shape[:-1])
    return steps * sum(t.elements for t in call.inputs[1:] if len(t.shape) == 2)


def _bilinear_macs(call: Call) -> int:
    x1, x2, weight = call.tensor(0), call.tensor(1), call.tensor(2)
    return math.prod(x1.shape[:-1]) * weight.shape[0] * x1.shape[-1] * (x2.shape[-1] + 1)


def _deform_conv_macs(call: Call) -> int:
    return call.outputs[0].elements * math.prod(call.tensor(1).shape[1:])


def _cdist_macs(call: Call) -> int:
    return call.outputs[0].elements * call.tensor(0).shape[-1]


# -- activations --------------------------------------------------------------------------------------------------


def _hardtanh_kind(call: Call) -> str:
    low = call.args[1] if len(call.args) > 1 else -1
    high = call.args[2] if len(call.args) > 2 else 1
    return "relu6" if (low, high) == (0, 6) else "hardtanh"


def _clamp_kind(call: Call) -> str:
    bounds = (*call.args[1:3], None, None)[:2]
    return {(0, 6): "relu6", (0, None): "relu"}.get(bounds, "clamp")


def _adaptive_kind(kind: str, rank: int) -> Callable[[Call], str]:
    """Adaptive pooling to the size that its input already has does nothing."""

    def name(call: Call) -> str:
        return "identity" if call.tensor(0).shape[-rank:] == call.outputs[0].shape[-rank:] else kind

    return name


# -- the table ----------------------------------------------------------------------------------------------------

_R = Role


def _entries(role: Role, names: str) -> dict[str, Entry]:
    """Rows of operations whose kind is their own name, or `target=kind`."""
    rows = {}
    for item in names.split():
        target, _, kind = item.partition("=")
        rows[f"aten.{target}"] = Entry(kind or target.lstrip("_"), role)
    return rows


OP_TABLE: dict[str, Entry] = {
    # Convolution and products
    "aten.convolution": Entry(_conv_kind, _R.CONV, _conv_macs, _conv_attrs),
    "aten.convolution_backward": Entry("convolution_backward", _R.BACKWARD, _conv_backward_macs),
    "torchvision.deform_conv2d": Entry("deform_conv2d", _R.CONV, _deform_conv_macs),
    "aten.addmm": Entry(_product_kind(1, 2), _R.LINEAR, _product_macs(1)),
    "aten.mm": Entry(_product_kind(0, 1), _R.LINEAR, _product_macs(0)),
    "aten.bmm": Entry(_product_kind(0, 1), _R.LINEAR, _product_macs(0)),
    "aten.baddbmm": Entry(_product_kind(1, 2), _R.LINEAR, _product_macs(1)),
    "aten.addbmm": Entry(_product_kind(1, 2), _R.LINEAR, _product_macs(1)),
    "aten.mv": Entry(_product_kind(0, 1), _R.LINEAR, _product_macs(0)),
    "aten.addmv": Entry(_product_kind(1, 2), _R.LINEAR, _product_macs(1)),
    "aten.dot": Entry("matmul", _R.MATMUL, _product_macs(0)),
    "aten.vdot": Entry("matmul", _R.MATMUL, _product_macs(0)),
    "aten.linear": Entry(_product_kind(1), _R.LINEAR, _product_macs(0)),
    "aten.mkldnn_linear": Entry(_product_kind(1), _R.LINEAR, _product_macs(0)),
    "aten.matmul": Entry(_product_kind(0, 1), _R.LINEAR, _product_macs(0)),
    "aten._grouped_mm": Entry(_product_kind(0, 1), _R.LINEAR, _grouped_macs),
    "aten._trilinear": Entry("bilinear", _R.LINEAR, _bilinear_macs),
    "aten._cdist_forward": Entry("cdist", _R.MATMUL, _cdist_macs),
    # Attention
    "aten._scaled_dot_product_flash_attention_for_cpu": Entry("attention", _R.ATTENTION, _attention_macs),
    "aten._scaled_dot_product_flash_attention": Entry("attention", _R.ATTENTION, _attention_macs),
    "aten._scaled_dot_product_efficient_attention": Entry("attention", _R.ATTENTION, _attention_macs),
    "aten._scaled_dot_product_cudnn_attention": Entry("attention", _R.ATTENTION, _attention_macs),
    "aten._scaled_dot_product_fused_attention_overrideable": Entry("attention", _R.ATTENTION, _attention_macs),
    "aten._scaled_dot_product_flash_attention_for_cpu_backward": Entry(
        "attention_backward", _R.BACKWARD, _attention_backward_macs
    ),
    "aten._native_multi_head_attention": Entry("multi_head_attention", _R.ATTENTION, _fused_mha_macs),
    "aten._transformer_encoder_layer_fwd": Entry("transformer_encoder_layer", _R.ATTENTION, _encoder_layer_macs),
    # Recurrent
    "aten.mkldnn_rnn_layer": Entry("rnn_layer", _R.RECURRENT, _mkldnn_rnn_macs),
    "aten.mkldnn_rnn_layer_backward": Entry("rnn_layer_backward", _R.BACKWARD),
    **{
        f"aten._scaled_dot_product_{name}_attention_backward": Entry(
            "attention_backward", _R.BACKWARD, _attention_backward_macs
        )
        for name in ("flash", "efficient", "cudnn")
    },
    "aten._cudnn_rnn": Entry("rnn", _R.RECURRENT, _cudnn_like_rnn_macs),
    "aten._cudnn_rnn_backward": Entry("rnn_backward", _R.BACKWARD),
    "aten.lstm": Entry("lstm", _R.RECURRENT, _cudnn_like_rnn_macs),
    "aten.gru": Entry("gru", _R.RECURRENT, _cudnn_like_rnn_macs),
    "aten._thnn_fused_lstm_cell": Entry("lstm_cell", _R.RECURRENT),
    **_entries(_R.EMBEDDING, "embedding _embedding_bag=embedding_bag _embedding_bag_forward_only=embedding_bag"),
    # Norms
    **_entries(
        _R.BATCH_NORM,
        "native_batch_norm=batch_norm _native_batch_norm_legit=batch_norm cudnn_batch_norm=batch_norm"
        " _native_batch_norm_legit_functional=batch_norm"
        " _native_batch_norm_legit_no_training=batch_norm _batch_norm_with_update=batch_norm"
        " _batch_norm_no_update=batch_norm batch_norm",
    ),
    **_entries(
        _R.NORM,
        "native_layer_norm=layer_norm native_group_norm=group_norm _fused_rms_norm=rms_norm rms_norm"
        " instance_norm layer_norm group_norm local_response_norm _weight_norm_interface=weight_norm renorm",
    ),
    # Activations
    "aten.hardtanh": Entry(_hardtanh_kind, _R.ACTIVATION),
    "aten.clamp": Entry(_clamp_kind, _R.ACTIVATION),
    **_entries(
        _R.ACTIVATION,
        "relu relu6 gelu silu sigmoid tanh hardswish hardsigmoid leaky_relu elu mish softplus celu selu"
        " _prelu_kernel=prelu hardshrink softshrink threshold log_sigmoid_forward=log_sigmoid rrelu"
        " rrelu_with_noise=rrelu clamp_min=relu glu",
    ),
    **_entries(_R.SOFTMAX, "_softmax _log_softmax _safe_softmax=softmax"),
    # Element-wise
    **_entries(_R.ADD, "add"),
    **_entries(
        _R.ARITHMETIC,
        "sub rsub mul div neg abs exp exp2 expm1 log log2 log10 log1p sqrt rsqrt reciprocal pow square sin cos tan"
        " asin acos atan atan2 sinh cosh asinh acosh atanh erf erfc erfinv lgamma digamma floor ceil round trunc frac"
        " sign sgn floor_divide remainder fmod maximum minimum fmax fmin clamp_max clamp_tensor logical_and logical_or"
        " logical_not logical_xor bitwise_and bitwise_or bitwise_not bitwise_xor __and__=bitwise_and"
        " __or__=bitwise_or __lshift__=bitwise_left_shift __rshift__=bitwise_right_shift"
        " bitwise_left_shift bitwise_right_shift eq ne lt le gt ge isnan isinf isfinite where masked_fill addcmul"
        " addcdiv lerp nan_to_num logit xlogy hypot logaddexp sinc heaviside conj_physical angle polar complex real"
        " imag _to_copy=cast _conj_physical view_as_complex_copy copysign deg2rad rad2deg signbit special_entr i0"
        " gcd lcm bucketize searchsorted nextafter ldexp",
    ),
    # Pooling
    "aten.max_pool2d_with_indices": Entry("max_pool2d", _R.POOL, None, _pool_attrs(2)),
    "aten.max_pool3d_with_indices": Entry("max_pool3d", _R.POOL, None, _pool_attrs(3)),
    "aten.max_pool1d_with_indices": Entry("max_pool1d", _R.POOL, None, _pool_attrs(1)),
    "aten.max_pool1d": Entry("max_pool1d", _R.POOL, None, _pool_attrs(1)),
    "aten.max_pool2d": Entry("max_pool2d", _R.POOL, None, _pool_attrs(2)),
    "aten.mkldnn_max_pool2d": Entry("max_pool2d", _R.POOL, None, _pool_attrs(2)),
    "aten.avg_pool1d": Entry("avg_pool1d", _R.POOL, None, _pool_attrs(1)),
    "aten.avg_pool2d": Entry("avg_pool2d", _R.POOL, None, _pool_attrs(2)),
    "aten.avg_pool3d": Entry("avg_pool3d", _R.POOL, None, _pool_attrs(3)),
    "aten._adaptive_avg_pool2d": Entry(_adaptive_kind("adaptive_avg_pool2d", 2), _R.POOL),
    "aten._adaptive_avg_pool3d": Entry(_adaptive_kind("adaptive_avg_pool3d", 3), _R.POOL),
    "aten.adaptive_avg_pool1d": Entry(_adaptive_kind("adaptive_avg_pool1d", 1), _R.POOL),
    "aten.adaptive_max_pool2d": Entry(_adaptive_kind("adaptive_max_pool2d", 2), _R.POOL),
    "aten.adaptive_max_pool3d": Entry(_adaptive_kind("adaptive_max_pool3d", 3), _R.POOL),
    "aten.fractional_max_pool2d": Entry("fractional_max_pool2d", _R.POOL),
    "torchvision.roi_align": Entry("roi_align", _R.POOL),
    "torchvision.roi_pool": Entry("roi_pool", _R.POOL),
    "torchvision.ps_roi_align": Entry("ps_roi_align", _R.POOL),
    "torchvision.ps_roi_pool": Entry("ps_roi_pool", _R.POOL),
    "torchvision.nms": Entry("nms", _R.INDEX),
    # Resizing, joining, reducing
    **_entries(
        _R.RESIZE,
        "upsample_nearest1d upsample_nearest2d upsample_nearest3d upsample_bilinear2d upsample_trilinear3d"
        " upsample_linear1d upsample_bicubic2d _upsample_bilinear2d_aa=upsample_bilinear2d"
        " _upsample_bicubic2d_aa=upsample_bicubic2d _upsample_nearest_exact1d=upsample_nearest1d"
        " _upsample_nearest_exact2d=upsample_nearest2d grid_sampler_2d=grid_sample grid_sampler_3d=grid_sample"
        " affine_grid_generator=affine_grid pixel_shuffle pixel_unshuffle channel_shuffle"
        " native_channel_shuffle=channel_shuffle",
    ),
    **_entries(_R.CONCAT, "cat=concat stack=concat"),
    **_entries(
        _R.REDUCE,
        "mean sum prod amax amin max min aminmax argmax argmin var std var_mean std_mean norm linalg_vector_norm=norm"
        " logsumexp any all _is_all_true=all _is_any_true=any"
        " cumsum cumprod cummax cummin logcumsumexp count_nonzero median nanmedian sort topk"
        " kthvalue argsort mode linalg_norm=norm nansum histc bincount trace _cummax_helper _cummin_helper"
        " _linalg_svd=svd linalg_qr linalg_solve_triangular linalg_inv_ex linalg_cholesky_ex"
        " _linalg_eigh=eigh _linalg_slogdet=slogdet"
        " _linalg_det=det unique_dim _unique2=unique unique_consecutive nonzero nonzero_static",
    ),
    **_entries(_R.DROPOUT, "native_dropout=dropout _fused_dropout=dropout alpha_dropout feature_dropout"),
    # Views and copies
    **_entries(
        _R.VIEW,
        "view _unsafe_view=view reshape _reshape_alias=view t transpose permute slice select expand squeeze unsqueeze"
        " split split_with_sizes unbind chunk as_strided diagonal unfold alias detach movedim narrow view_as_real"
        " view_as_complex swapaxes conj _conj=conj _neg_view=neg lift lift_fresh=constant unsafe_split=split"
        " unsafe_split_with_sizes=split unsafe_chunk=chunk expand_as real imag swapdims",
    ),
    **_entries(
        _R.COPY,
        "clone contiguous copy constant_pad_nd=pad reflection_pad1d=pad reflection_pad2d=pad reflection_pad3d=pad"
        " replication_pad1d=pad replication_pad2d=pad replication_pad3d=pad roll flip repeat repeat_interleave tile"
        " im2col col2im rot90 tril triu pixel_unshuffle split_with_sizes_copy unfold_copy block_diag"
        " expand_copy slice_scatter select_scatter as_strided_copy diagonal_copy _pack_padded_sequence"
        " _pad_packed_sequence _nested_tensor_from_mask set",
    ),
    **_entries(
        _R.INDEX,
        "index gather index_select masked_select take take_along_dim index_put _index_put_impl=index_put"
        " _unsafe_index=index _unsafe_masked_index=index scatter scatter_add scatter_reduce index_add index_copy"
        " index_fill masked_scatter put one_hot embedding_renorm _unsafe_index_put=index_put diagonal_scatter",
    ),
    **_entries(
        _R.CREATE,
        "empty empty_like empty_strided new_empty new_empty_strided zeros zeros_like new_zeros ones ones_like new_ones"
        " full full_like new_full arange linspace logspace eye rand randn rand_like randn_like randint randint_like"
        " randperm bernoulli uniform normal fill zero scalar_tensor tril_indices triu_indices multinomial exponential"
        " hann_window random meshgrid log_normal cauchy geometric poisson empty_permuted",
    ),
    **_entries(_R.OTHER, "_fft_r2c=fft _fft_c2r=fft _fft_c2c=fft stft istft _assert_async resize resize_as"),
    # Losses
    **_entries(
        _R.LOSS,
        "nll_loss_forward=nll_loss nll_loss2d_forward=nll_loss mse_loss smooth_l1_loss huber_loss soft_margin_loss"
        " binary_cross_entropy binary_cross_entropy_with_logits _ctc_loss kl_div l1_loss multi_margin_loss"
        " multilabel_margin_loss_forward cross_entropy_loss nll_loss cosine_embedding_loss",
    ),
    # Optimizer arithmetic that only steps use
    **_entries(
        _R.OPTIMIZER,
        "_foreach_add _foreach_mul _foreach_addcmul _foreach_addcdiv _foreach_lerp _foreach_sqrt"
        " _foreach_div _foreach_neg _foreach_abs _foreach_clamp_max _foreach_clamp_min _foreach_copy"
        " _foreach_exp _foreach_maximum _foreach_minimum _foreach_reciprocal _foreach_rsqrt"
        " _foreach_sign _foreach_sub _foreach_norm _foreach_pow _fused_adam _fused_adagrad _fused_adamw"
        " _fused_sgd _foreach_zero",
    ),
    # Quantized simulation
    **_entries(
        _R.ARITHMETIC,
        "fake_quantize_per_tensor_affine fake_quantize_per_channel_affine fake_quantize_per_tensor_affine_cachemask"
        " fake_quantize_per_channel_affine_cachemask _fake_quantize_learnable_per_tensor_affine",
    ),
}
"""Framework name without overload and in-place underscore → what memfit knows of it."""

_ROLES: dict[str, Role] = {
    "linear": Role.LINEAR,
    "matmul": Role.MATMUL,
    "identity": Role.VIEW,
    "constant": Role.CREATE,
    "unknown": Role.OTHER,
    **{f"{d}conv{r}d": Role.CONV for d in ("", "depthwise_") for r in (1, 2, 3)},
    **{f"conv_transpose{r}d": Role.CONV for r in (1, 2, 3)},
    **{f"adaptive_{p}_pool{r}d": Role.POOL for p in ("avg", "max") for r in (1, 2, 3)},
    **dict.fromkeys(("relu6", "hardtanh", "relu", "clamp"), Role.ACTIVATION),
    # Kinds that only files of other tools have
    **dict.fromkeys(("svdf", "lstm_cell", "rnn_cell"), Role.RECURRENT),
    **dict.fromkeys(("quantize", "dequantize", "fake_quantize", "squared_difference"), Role.ARITHMETIC),
    **dict.fromkeys(("depth_to_space", "space_to_depth"), Role.RESIZE),
    **dict.fromkeys(("batch_to_space", "space_to_batch", "read_variable", "decode", "circular_buffer"), Role.COPY),
    **dict.fromkeys(("gather_nd", "scatter_nd"), Role.INDEX),
    **dict.fromkeys(("shape", "rank", "broadcast_args", "affine_grid_generator", "mel_weights"), Role.CREATE),
    **dict.fromkeys(("upsample", "grid_sampler"), Role.RESIZE),
    **dict.fromkeys(("softsign",), Role.ACTIVATION),
    **dict.fromkeys(("bitwise_not", "rotary_embedding"), Role.ARITHMETIC),
    **dict.fromkeys(("max_unpool2d", "lp_pool1d", "lp_pool2d", "lp_pool3d"), Role.POOL),
    "einsum": Role.REDUCE,
    "add_n": Role.ADD,
    "l2_pool2d": Role.POOL,
    "l2_norm": Role.NORM,
    **{entry.kind: entry.role for entry in reversed(OP_TABLE.values()) if isinstance(entry.kind, str)},
}


def role(kind: str) -> Role:
    """The part that operations of this kind play.

    >>> role("depthwise_conv2d"), role("relu6")
    (<Role.CONV: 'convolution'>, <Role.ACTIVATION: 'activation'>)
    """
    found = _ROLES.get(kind)
    if found is not None:
        return found
    return Role.BACKWARD if kind.endswith("_backward") else Role.OTHER


def base_name(target: str) -> str:
    """A framework name without overload and without the underscore of an in-place variant.

    >>> base_name("aten.add_.Tensor"), base_name("aten.__and__.Tensor")
    ('aten.add', 'aten.__and__')
    """
    namespace, _, rest = target.partition(".")
    name = rest.partition(".")[0]
    if name.endswith("_") and not name.endswith("__"):
        name = name[:-1]
    return f"{namespace}.{name}"


def entry(target: str) -> Entry | None:
    """The table's row for a framework name, or None; backward operations without a row of their own share one."""
    name = base_name(target)
    found = OP_TABLE.get(name)
    if found is None and "backward" in name:
        return Entry(name.partition(".")[2].lstrip("_"), Role.BACKWARD)
    return found


def describe(
    raw: RawOp,
    tensors: Sequence[Tensor],
    parameters: set[int],
    scopes: Sequence[Scope],
    *,
    strict: bool = True,
) -> tuple[str, dict[str, Any], int]:
    """Kind, attributes and MACs of a recorded operation.

    Raises:
        UnsupportedOp: the table has no row for it, and `strict` is set.
    """
    found = entry(raw.target)
    if found is None:
        if not strict:
            return "unknown", {}, 0
        raise UnsupportedOp(
            f"memfit does not know the operation {raw.target}",
            where=scopes[raw.scope].path or "(root)",
            received=", ".join("x".join(map(str, tensors[i].shape)) or "scalar" for i in raw.inputs) or "no tensors",
            todo="add a row to OP_TABLE in memfit/graph/optable.py, or allow an estimate with --estimate",
        )
    kind, _, macs, attrs = found
    if isinstance(kind, str) and macs is None and attrs is None:
        return kind, {}, 0
    call = Call(
        raw.args,
        tuple(tensors[i] for i in raw.inputs),
        tuple(tensors[i] for i in raw.outputs),
        tensors,
        parameters,
    )
    name = kind if isinstance(kind, str) else kind(call)
    extra = attrs(call) if attrs is not None else {}
    if raw.backend is not None:
        extra["backend"] = raw.backend
    return name, extra, macs(call) if macs is not None else 0
