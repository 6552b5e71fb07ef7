"""Own shape rules for the operations that networks run most: the meta kernel's answer in a tenth of its time.

A rule takes an operation's arguments and returns its outputs as phantoms, or NotImplemented where its own narrow case
does not hold; the meta kernel then answers. Tests compare every rule with the meta kernel.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from memfit.capture.layouts import elementwise_strides, laid_out_as, same_layout, strides_in, suggested_format
from memfit.capture.phantom import contiguous_strides, dense, dense_strides, is_dense, phantom

Rule = Callable[..., Any]
aten = torch.ops.aten

_PRESERVE = torch.preserve_format


# -- element-wise -------------------------------------------------------------------------------------------------


def _unary(x: Tensor, *args: Any, **kwargs: Any) -> Any:
    """Same shape, order of dimensions and dtype as a floating input."""
    if not x.is_floating_point() or kwargs.get("dtype") is not None:
        return NotImplemented
    if x.is_contiguous():
        return phantom(tuple(x.shape), x.stride(), x.dtype)
    return same_layout(x)


def _unary_(x: Tensor, *args: Any, **kwargs: Any) -> Any:
    return x if x.is_floating_point() else NotImplemented


def _binary(x: Tensor, y: Any, *args: Any, **kwargs: Any) -> Any:
    """Operands of one dtype, or a floating tensor and a Python number."""
    return _elementwise(x, y)


def _elementwise(*operands: Any, dtype: torch.dtype | None = None) -> Any:
    tensors = [t for t in operands if isinstance(t, Tensor)]
    kind = tensors[0].dtype
    for t in tensors:
        if t.dtype != kind:
            return NotImplemented
    if len(tensors) < len(operands) and not kind.is_floating_point and dtype is None:
        return NotImplemented
    shape: Sequence[int] = tensors[0].shape
    if len(tensors) > 1:
        for t in tensors[1:]:
            if t.shape != shape:
                spread = _broadcast(shape, t.shape)
                if spread is None:
                    return NotImplemented
                shape = spread
        # A tensor without dimensions takes the other's type, whatever rank that has; same types need no such rule.
    return phantom(tuple(shape), elementwise_strides(shape, tensors), dtype or kind)


def _comparison(x: Tensor, y: Any) -> Any:
    if not isinstance(y, Tensor):
        return _elementwise(x, dtype=torch.bool)
    return _elementwise(x, y, dtype=torch.bool)


def _gradient(grad: Tensor, x: Tensor, *args: Any, **kwargs: Any) -> Any:
    """Gradient of an element-wise operation."""
    return _elementwise(grad, x)


def _threshold_backward(grad: Tensor, x: Tensor, threshold: Any) -> Any:
    return _elementwise(x, grad)  # this one iterates over the input first


def _binary_(x: Tensor, y: Any, *args: Any, **kwargs: Any) -> Any:
    if not isinstance(y, Tensor):
        fits = isinstance(y, int | float) if x.is_floating_point() else type(y) is int
        return x if fits and x.dtype is not torch.bool else NotImplemented
    return x if x.dtype == y.dtype and _broadcast(x.shape, y.shape) == tuple(x.shape) else NotImplemented


def _broadcast(a: Sequence[int], b: Sequence[int]) -> tuple[int, ...] | None:
    """Shape that two shapes broadcast to, or None."""
    if len(a) < len(b):
        a, b = b, a
    lead = len(a) - len(b)
    out = list(a)
    for d, size in enumerate(b):
        if out[lead + d] == 1:
            out[lead + d] = size
        elif size not in (1, out[lead + d]):
            return None
    return tuple(out)


def _self(x: Tensor, *args: Any, **kwargs: Any) -> Any:
    return x


def _copy_(x: Tensor, y: Tensor, *args: Any) -> Any:
    return x if _broadcast(x.shape, y.shape) == tuple(x.shape) else NotImplemented


def _masked_fill(x: Tensor, mask: Tensor, value: Any) -> Any:
    shape = _broadcast(x.shape, mask.shape)
    return NotImplemented if shape is None else dense(shape, x.dtype)


# -- making and copying -------------------------------------------------------------------------------------------


def _zeros(size: list[int], *, dtype: torch.dtype | None = None, **kwargs: Any) -> Any:
    return dense(tuple(size), dtype or torch.get_default_dtype())


def _zeros_like(x: Tensor, *, dtype: torch.dtype | None = None, memory_format: Any = None, **kwargs: Any) -> Any:
    return same_layout(x, dtype) if memory_format in (None, _PRESERVE) else NotImplemented


def _new_zeros(x: Tensor, size: list[int], *, dtype: torch.dtype | None = None, **kwargs: Any) -> Any:
    return dense(tuple(size), dtype or x.dtype)


def _new_empty_strided(
    x: Tensor, size: list[int], stride: list[int], *, dtype: torch.dtype | None = None, **kwargs: Any
) -> Any:
    return phantom(tuple(size), tuple(stride), dtype or x.dtype)


def _clone(x: Tensor, *, memory_format: torch.memory_format | None = None) -> Any:
    if memory_format is torch.contiguous_format:
        return dense(tuple(x.shape), x.dtype)
    if memory_format in (None, _PRESERVE):
        return same_layout(x)
    return phantom(tuple(x.shape), strides_in(x.shape, memory_format), x.dtype) if x.dim() == 4 else NotImplemented


def _to_copy(
    x: Tensor, *, dtype: torch.dtype | None = None, layout: Any = None, device: Any = None,
    memory_format: torch.memory_format | None = None, **kwargs: Any,
) -> Any:  # fmt: skip
    return same_layout(x, dtype) if memory_format in (None, _PRESERVE) else NotImplemented


def _roll(x: Tensor, *args: Any) -> Any:
    return dense(tuple(x.shape), x.dtype) if x.is_contiguous() else NotImplemented


def _pad(x: Tensor, pad: list[int], *args: Any) -> Any:
    shape = list(x.shape)
    for i in range(len(pad) // 2):
        shape[-1 - i] += pad[2 * i] + pad[2 * i + 1]
    return laid_out_as(shape, x) if min(shape, default=0) >= 0 and x.is_contiguous() else NotImplemented


def _cat(tensors: list[Tensor], dim: int = 0) -> Any:
    first = tensors[0]
    rank = first.dim()
    dim = dim % rank if rank else 0
    total = 0
    layouts = set()
    for t in tensors:
        if t.dim() != rank or t.dtype != first.dtype:
            return NotImplemented
        if any(t.shape[d] != first.shape[d] for d in range(rank) if d != dim):
            return NotImplemented
        total += t.shape[dim]
        layouts.add(suggested_format(t))
    shape = (*first.shape[:dim], total, *first.shape[dim + 1 :])
    layout = layouts.pop() if len(layouts) == 1 else torch.contiguous_format
    return phantom(shape, strides_in(shape, layout), first.dtype)


# -- convolution, norms, products -----------------------------------------------------------------------------------


def _one_dtype(x: Tensor, w: Tensor) -> None:
    """Refuse what the kernels refuse, and the meta kernels let pass."""
    if x.dtype != w.dtype:
        raise RuntimeError(f"the operands must have one dtype, and got {x.dtype} and {w.dtype}")


def _convolution(
    x: Tensor,
    w: Tensor,
    bias: Tensor | None,
    stride: list[int],
    padding: list[int],
    dilation: list[int],
    transposed: bool,
    output_padding: list[int],
    groups: int,
) -> Any:
    rank = x.dim()
    if rank != w.dim() or not 3 <= rank <= 5 or w.shape[0] % groups:
        return NotImplemented
    _one_dtype(x, w)
    channels = w.shape[1] * groups if transposed else w.shape[0]
    expected = w.shape[0] if transposed else w.shape[1] * groups
    if x.shape[1] != expected:
        raise RuntimeError(f"the layer takes {expected} channels and got {x.shape[1]}")
    out = [x.shape[0], channels]
    for d in range(rank - 2):
        s, p, e = stride[d % len(stride)], padding[d % len(padding)], dilation[d % len(dilation)]
        reach = e * (w.shape[d + 2] - 1)
        if transposed:
            size = (x.shape[d + 2] - 1) * s - 2 * p + reach + output_padding[d % len(output_padding)] + 1
        else:
            size = (x.shape[d + 2] + 2 * p - reach - 1) // s + 1
        if size <= 0:
            return NotImplemented
        out.append(size)
    shape = tuple(out)
    if x.stride() == contiguous_strides(x.shape) and w.stride() == contiguous_strides(w.shape):
        return dense(shape, x.dtype)
    # The meta kernel does not know the CPU's choice of layout; these two functions are the ones that make it.
    backend = torch._C._select_conv_backend(
        x, w, bias, stride, padding, dilation, transposed, output_padding, groups, None
    )
    layout = torch._C._conv_determine_backend_memory_format(x, w, backend)
    return phantom(shape, strides_in(shape, layout), x.dtype)


def _convolution_backward(
    grad: Tensor, x: Tensor, w: Tensor, bias_sizes: Any, stride: list[int], padding: list[int], dilation: list[int],
    transposed: bool, output_padding: list[int], groups: int, wanted: list[bool],
) -> Any:  # fmt: skip
    layout = torch.contiguous_format
    if any(t.stride() != contiguous_strides(t.shape) for t in (grad, x, w)):
        backend = torch._C._select_conv_backend(
            x, w, None, stride, padding, dilation, transposed, output_padding, groups, bias_sizes
        )
        layout = torch._C._conv_determine_backend_memory_format(x, w, backend)
    return (
        phantom(tuple(x.shape), strides_in(x.shape, layout), x.dtype) if wanted[0] else None,
        phantom(tuple(w.shape), strides_in(w.shape, layout), w.dtype) if wanted[1] else None,
        dense((grad.shape[1],), grad.dtype) if wanted[2] else None,
    )


def _batch_norm(
    x: Tensor, weight: Any, bias: Any, mean: Any, var: Any, training: bool, momentum: float, eps: float
) -> Any:
    if not x.is_floating_point() or x.dim() < 2 or not is_dense(x.shape, x.stride()):
        return NotImplemented
    channels = x.shape[1]
    for parameter in (weight, bias, mean, var):
        if parameter is not None and parameter.shape[0] != channels:
            return NotImplemented
    # On the CPU an evaluation saves nothing; the meta kernel answers as CUDA does.
    saved = (channels if training else 0,)
    dtype = x.dtype if weight is None else weight.dtype
    return phantom(tuple(x.shape), x.stride(), x.dtype), dense(saved, dtype), dense(saved, dtype)


def _batch_norm_backward(
    grad: Tensor, x: Tensor, weight: Tensor | None, mean: Any, var: Any, saved_mean: Any, saved_var: Any,
    train: bool, eps: float, wanted: list[bool],
) -> Any:  # fmt: skip
    if x.stride() != contiguous_strides(x.shape) or grad.stride() != x.stride():
        return NotImplemented
    dtype = x.dtype if weight is None else weight.dtype
    channels = (x.shape[1],)
    return (
        dense(tuple(x.shape), x.dtype) if wanted[0] else None,
        dense(channels, dtype) if wanted[1] else None,
        dense(channels, dtype) if wanted[2] else None,
    )


def _layer_norm(x: Tensor, normalized: list[int], weight: Any, bias: Any, eps: float) -> Any:
    rank = x.dim() - len(normalized)
    if x.dtype != torch.float32 or list(x.shape[rank:]) != list(normalized):
        return NotImplemented
    stats = (*x.shape[:rank], *([1] * len(normalized)))
    return dense(tuple(x.shape), x.dtype), dense(stats, x.dtype), dense(stats, x.dtype)


def _layer_norm_backward(
    grad: Tensor,
    x: Tensor,
    normalized: list[int],
    mean: Tensor,
    rstd: Tensor,
    weight: Any,
    bias: Any,
    wanted: list[bool],
) -> Any:
    """The CPU's gradient is contiguous; the meta kernel answers with the input's own strides."""
    if x.dtype != torch.float32:
        return NotImplemented
    return (
        dense(tuple(x.shape), x.dtype) if wanted[0] else None,
        dense(tuple(normalized), x.dtype) if wanted[1] and weight is not None else None,
        dense(tuple(normalized), x.dtype) if wanted[2] and bias is not None else None,
    )


def _mm(a: Tensor, b: Tensor) -> Any:
    _one_dtype(a, b)
    if a.dim() != 2 or b.dim() != 2:
        return NotImplemented
    if a.shape[1] != b.shape[0]:
        raise RuntimeError(f"the layer takes {b.shape[0]} features and got {a.shape[1]}")
    return dense((a.shape[0], b.shape[1]), a.dtype)


def _addmm(bias: Tensor, a: Tensor, b: Tensor, **kwargs: Any) -> Any:
    if bias.dim() != 1 or b.dim() != 2 or bias.shape[0] != b.shape[1] or bias.dtype != a.dtype:
        return NotImplemented
    return _mm(a, b)


def _bmm(a: Tensor, b: Tensor) -> Any:
    if a.dim() != 3 or b.dim() != 3 or a.shape[0] != b.shape[0] or a.shape[2] != b.shape[1] or a.dtype != b.dtype:
        return NotImplemented
    return dense((a.shape[0], a.shape[1], b.shape[2]), a.dtype)


def _softmax(x: Tensor, dim: int, half_to_float: bool) -> Any:
    return (
        NotImplemented if half_to_float or x.dim() == 0 or not x.is_floating_point() else dense(tuple(x.shape), x.dtype)
    )


def _softmax_backward(grad: Tensor, output: Tensor, dim: int, dtype: torch.dtype) -> Any:
    return dense(tuple(output.shape), dtype) if grad.dtype == dtype else NotImplemented


def _nll_loss(x: Tensor, target: Tensor, weight: Any, reduction: int, ignore: int) -> Any:
    if x.dim() != 2 or target.dim() != 1 or x.shape[0] != target.shape[0]:
        return NotImplemented
    return dense((), x.dtype) if reduction else dense((x.shape[0],), x.dtype), dense((), x.dtype)


def _nll_loss_backward(grad: Tensor, x: Tensor, *args: Any) -> Any:
    return dense(tuple(x.shape), x.dtype)


def _mean(x: Tensor, dims: list[int] | None, keepdim: bool = False, *, dtype: Any = None) -> Any:
    if dtype is not None or not dims or not x.is_floating_point():
        return NotImplemented
    rank = x.dim()
    reduced = {d % rank for d in dims}
    if len(reduced) != len(dims):
        return NotImplemented
    shape = tuple(1 if d in reduced else size for d, size in enumerate(x.shape) if keepdim or d not in reduced)
    return dense(shape, x.dtype)


def _cpu_flash_attention(
    q: Tensor, k: Tensor, v: Tensor, dropout_p: float = 0.0, is_causal: bool = False, **kwargs: Any
) -> Any:
    """Output in the query's own layout, log-sum-exp in [N, L, H] seen as [N, H, L]."""
    n, h, length, _ = q.shape
    shape = (n, h, length, v.shape[3])
    strides = q.stride()
    lse_dtype = torch.float32 if q.dtype in (torch.bfloat16, torch.float16) else q.dtype
    out = phantom(shape, strides if is_dense(shape, strides) else dense_strides(shape, strides), q.dtype)
    return out, phantom((n, h, length), (length * h, 1, h), lse_dtype)


def _cpu_flash_attention_backward(
    grad: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, *args: Any, **kwargs: Any
) -> Any:
    """Gradients in the layout [N, L, H, E], seen as [N, H, L, E]."""
    return tuple(_heads_inside(t) for t in (q, k, v))


def _heads_inside(t: Tensor) -> Tensor:
    n, h, length, e = t.shape
    return phantom((n, h, length, e), (length * h * e, e, h * e, 1), t.dtype)


def _native_mha(
    q: Tensor, k: Tensor, v: Tensor, width: int, heads: int, qkv_weight: Tensor, qkv_bias: Tensor,
    out_weight: Tensor, out_bias: Tensor, mask: Any = None, need_weights: bool = True, *args: Any,
) -> Any:  # fmt: skip
    return (dense(tuple(q.shape), q.dtype), None) if not need_weights and q.dim() == 3 else NotImplemented


def _encoder_layer(x: Tensor, *args: Any) -> Any:
    return dense(tuple(x.shape), x.dtype) if x.dim() == 3 and not x.is_nested else NotImplemented


_PAGE = 4096
"""oneDNN starts each part of a recurrent layer's workspace on a new page."""


def _lstm_layer(
    x: Tensor, w_ih: Tensor, w_hh: Tensor, b_ih: Tensor, b_hh: Tensor, h: Tensor, c: Tensor, reverse: bool,
    batch_sizes: list[int], mode: int, hidden: int, layers: int, has_biases: bool, bidirectional: bool,
    batch_first: bool, train: bool,
) -> Any:  # fmt: skip
    """One oneDNN layer over input (T, N, I): output (T, N, H), states (N, H), and in training a workspace.

    The workspace's parts are gates, projected states, three sets of states and two of cell states, each padded as
    rnn_utils::get_good_ld pads. Source: src/cpu/rnn/rnn_utils.cpp of oneDNN 3.12, parts fitted to measured sizes.
    """
    if mode != 2 or x.dtype != torch.float32 or x.dim() != 3 or batch_sizes:
        return NotImplemented
    steps, batch, width = x.shape
    outputs = (dense((steps, batch, hidden), x.dtype), dense(tuple(h.shape), x.dtype), dense(tuple(c.shape), x.dtype))
    if not torch.is_grad_enabled():  # the kernel asks autograd, not its own argument
        return (*outputs, None)
    cells = 2 * (steps + 1) * batch
    parts = [
        steps * batch * _good_leading_dimension(4 * hidden),
        steps * batch * _good_leading_dimension(hidden),
        *[cells * _good_leading_dimension(max(width, hidden))] * 3,
        *[cells * hidden] * 2,
    ]
    workspace = sum(-(-part * 4 // _PAGE) * _PAGE for part in parts)
    return (*outputs, dense((workspace,), torch.uint8))


def _good_leading_dimension(elements: int) -> int:
    """Round up to a cache line of fp32, and off multiples of 256, which would collide in the cache."""
    padded = -(-elements // 16) * 16
    return padded + 16 if padded % 256 == 0 else padded


def _embedding(weight: Tensor, indices: Tensor, *args: Any) -> Any:
    return dense((*indices.shape, weight.shape[1]), weight.dtype) if weight.dim() == 2 else NotImplemented


def _pooled(size: int, kernel: int, stride: int, padding: int, dilation: int, ceil_mode: bool) -> int:
    """Output size of a pooling window; with `ceil_mode`, no window may start in the padding at the end."""
    reach = size + 2 * padding - dilation * (kernel - 1) - 1 + (stride - 1 if ceil_mode else 0)
    out = reach // stride + 1
    return out - 1 if ceil_mode and (out - 1) * stride >= size + padding else out


def _pool_shape(
    x: Tensor, kernel: Sequence[int], stride: Sequence[int], padding: Sequence[int], dilation: Sequence[int], ceil: bool
) -> tuple[int, ...] | None:
    stride = stride or kernel
    out = list(x.shape[:2])
    for d in range(2):
        k, p = kernel[d % len(kernel)], padding[d % len(padding)]
        size = _pooled(x.shape[d + 2], k, stride[d % len(stride)], p, dilation[d % len(dilation)], ceil)
        if size <= 0 or 2 * p > k:
            return None
        out.append(size)
    return tuple(out)


def _max_pool2d(
    x: Tensor,
    kernel: list[int],
    stride: Sequence[int] = (),
    padding: Sequence[int] = (0,),
    dilation: Sequence[int] = (1,),
    ceil_mode: bool = False,
) -> Any:
    shape = _pool_shape(x, kernel, stride, padding, dilation, ceil_mode) if x.dim() == 4 else None
    return NotImplemented if shape is None else (laid_out_as(shape, x), laid_out_as(shape, x, torch.int64))


def _avg_pool2d(
    x: Tensor,
    kernel: list[int],
    stride: Sequence[int] = (),
    padding: Sequence[int] = (0,),
    ceil_mode: bool = False,
    *args: Any,
) -> Any:
    shape = _pool_shape(x, kernel, stride, padding, (1,), ceil_mode) if x.dim() == 4 else None
    return NotImplemented if shape is None else laid_out_as(shape, x)


def _adaptive_avg_pool2d(x: Tensor, size: list[int]) -> Any:
    return laid_out_as((*x.shape[:2], *size), x) if x.dim() == 4 else NotImplemented


def _input_gradient(grad: Tensor, x: Tensor, *args: Any) -> Any:
    """Gradient of a pooling's input, in the memory format that the input suggests."""
    return laid_out_as(x.shape, x) if x.dim() == 4 else NotImplemented


def _select_backward(grad: Tensor, sizes: list[int], dim: int, index: int) -> Any:
    return dense(tuple(sizes), grad.dtype)


def _slice_backward(grad: Tensor, sizes: list[int], *args: Any) -> Any:
    return dense(tuple(sizes), grad.dtype)


def _first_overload(name: str) -> Any:
    packet = getattr(aten, name)
    return getattr(packet, packet.overloads()[0])


_UNARY = (
    "relu gelu silu sigmoid tanh hardtanh hardswish hardsigmoid leaky_relu elu mish softplus neg exp sqrt rsqrt abs "
    "sin cos reciprocal log erf"
)
_INPLACE = "relu_ silu_ sigmoid_ tanh_ hardtanh_ hardswish_ hardsigmoid_ leaky_relu_ elu_ mish_ zero_"

_GRADIENTS = (
    "hardtanh_backward silu_backward sigmoid_backward gelu_backward tanh_backward"
    " hardswish_backward hardsigmoid_backward leaky_relu_backward mish_backward"
)

SHAPE_RULES: dict[Any, Rule] = {
    **{getattr(aten, name).default: _unary for name in _UNARY.split()},
    **{getattr(aten, name).default: _unary_ for name in _INPLACE.split()},
    **{_first_overload(name): _gradient for name in _GRADIENTS.split()},
    **{
        getattr(getattr(aten, name), kind): _comparison
        for name in ("eq", "ne", "lt", "le", "gt", "ge")
        for kind in ("Tensor", "Scalar")
    },
    **{getattr(aten, name).Tensor: _binary for name in ("add", "sub", "mul", "div")},
    **{getattr(aten, name).Tensor: _binary_ for name in ("add_", "sub_", "mul_", "div_")},
    aten.threshold_backward.default: _threshold_backward,
    aten.div.Scalar: _unary,
    aten.mul.Scalar: _unary,
    aten.div_.Scalar: _unary_,
    aten.mul_.Scalar: _unary_,
    aten.pow.Tensor_Scalar: lambda x, y: _unary(x) if isinstance(y, int | float) else NotImplemented,
    aten.fill_.Scalar: _self,
    aten.fill_.Tensor: _self,
    aten.bernoulli_.float: _self,
    aten.copy_.default: _copy_,
    aten.masked_fill.Scalar: _masked_fill,
    aten.zeros.default: _zeros,
    aten.ones.default: _zeros,
    aten.empty_like.default: _zeros_like,
    aten.zeros_like.default: _zeros_like,
    aten.ones_like.default: _zeros_like,
    aten.new_zeros.default: _new_zeros,
    aten.new_empty_strided.default: _new_empty_strided,
    aten.clone.default: _clone,
    aten._to_copy.default: _to_copy,
    aten.roll.default: _roll,
    aten.constant_pad_nd.default: _pad,
    aten.cat.default: _cat,
    aten.convolution.default: _convolution,
    aten.convolution_backward.default: _convolution_backward,
    aten.native_batch_norm.default: _batch_norm,
    aten.native_batch_norm_backward.default: _batch_norm_backward,
    aten.native_layer_norm.default: _layer_norm,
    aten.native_layer_norm_backward.default: _layer_norm_backward,
    aten.mm.default: _mm,
    aten.addmm.default: _addmm,
    aten.bmm.default: _bmm,
    aten._softmax.default: _softmax,
    aten._log_softmax.default: _softmax,
    aten._softmax_backward_data.default: _softmax_backward,
    aten._log_softmax_backward_data.default: _softmax_backward,
    aten.nll_loss_forward.default: _nll_loss,
    aten.nll_loss_backward.default: _nll_loss_backward,
    aten.mean.dim: _mean,
    aten.sum.dim_IntList: _mean,
    aten._scaled_dot_product_flash_attention_for_cpu.default: _cpu_flash_attention,
    aten._scaled_dot_product_flash_attention_for_cpu_backward.default: _cpu_flash_attention_backward,
    aten._native_multi_head_attention.default: _native_mha,
    aten._transformer_encoder_layer_fwd.default: _encoder_layer,
    aten.mkldnn_rnn_layer.default: _lstm_layer,
    aten.embedding.default: _embedding,
    aten.max_pool2d_with_indices.default: _max_pool2d,
    aten.max_pool2d_with_indices_backward.default: _input_gradient,
    aten.avg_pool2d.default: _avg_pool2d,
    aten.avg_pool2d_backward.default: _input_gradient,
    aten._adaptive_avg_pool2d.default: _adaptive_avg_pool2d,
    aten._adaptive_avg_pool2d_backward.default: _input_gradient,
    aten.select_backward.default: _select_backward,
    aten.slice_backward.default: _slice_backward,
}
"""Operation → rule. Outputs stand in the order of the operation's schema."""
