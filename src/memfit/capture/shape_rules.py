"""Own shape rules for the operations that networks run most: the meta kernel's answer in a tenth of its time.

A rule takes an operation's arguments and returns its outputs as phantoms, or NotImplemented where its own narrow case
does not hold; the meta kernel then answers. Tests compare every rule with the meta kernel.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from memfit.capture.phantom import contiguous_strides, dense, dense_strides, is_dense, phantom

Rule = Callable[..., Any]
aten = torch.ops.aten

_PRESERVE = torch.preserve_format


def _unary(x: Tensor, *args: Any, **kwargs: Any) -> Any:
    """Same shape, layout and dtype as a dense floating input."""
    if not x.is_floating_point():
        return NotImplemented
    if x.is_contiguous() or x.is_contiguous(memory_format=torch.channels_last):
        return phantom(tuple(x.shape), x.stride(), x.dtype)
    return NotImplemented


def _unary_(x: Tensor, *args: Any, **kwargs: Any) -> Any:
    return x if x.is_floating_point() else NotImplemented


def _binary(x: Tensor, y: Any, *args: Any, **kwargs: Any) -> Any:
    """Two operands of one dtype, one of which already has the result's shape and is contiguous."""
    if not isinstance(y, Tensor):
        return _unary(x) if isinstance(y, int | float) else NotImplemented
    if x.dtype != y.dtype or not x.is_contiguous() or not y.is_contiguous():
        return NotImplemented
    if x.shape == y.shape or (y.dim() <= x.dim() and _spreads(y.shape, x.shape)):
        return dense(tuple(x.shape), x.dtype)
    return NotImplemented


def _binary_(x: Tensor, y: Any, *args: Any, **kwargs: Any) -> Any:
    if not isinstance(y, Tensor):
        return x if x.is_floating_point() and isinstance(y, int | float) else NotImplemented
    if x.dtype == y.dtype and (x.shape == y.shape or (y.dim() <= x.dim() and _spreads(y.shape, x.shape))):
        return x
    return NotImplemented


def _spreads(small: tuple[int, ...], large: tuple[int, ...]) -> bool:
    """True where `small` broadcasts to `large`."""
    return all(s in (l, 1) for s, l in zip(reversed(small), reversed(large), strict=False))


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
    if rank != w.dim() or not 3 <= rank <= 5 or x.dtype != w.dtype:
        return NotImplemented
    channels = w.shape[1] * groups if transposed else w.shape[0]
    if x.shape[1] != (w.shape[0] if transposed else w.shape[1] * groups) or w.shape[0] % groups:
        return NotImplemented
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
    return phantom(shape, _strides_in(shape, layout), x.dtype)


def _strides_in(shape: tuple[int, ...], layout: torch.memory_format) -> tuple[int, ...]:
    """Dense strides of a shape in a memory format."""
    if layout is torch.contiguous_format:
        return contiguous_strides(shape)
    n, c, *space = shape
    inner = contiguous_strides((n, *space, c))
    return (inner[0], inner[-1], *inner[1:-1])


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


def _layer_norm(x: Tensor, normalized: list[int], weight: Any, bias: Any, eps: float) -> Any:
    rank = x.dim() - len(normalized)
    if not x.is_contiguous() or x.dtype != torch.float32 or list(x.shape[rank:]) != list(normalized):
        return NotImplemented
    stats = (*x.shape[:rank], *([1] * len(normalized)))
    return dense(tuple(x.shape), x.dtype), dense(stats, x.dtype), dense(stats, x.dtype)


def _mm(a: Tensor, b: Tensor) -> Any:
    if a.dim() != 2 or b.dim() != 2 or a.shape[1] != b.shape[0] or a.dtype != b.dtype:
        return NotImplemented
    return dense((a.shape[0], b.shape[1]), a.dtype)


def _addmm(bias: Tensor, a: Tensor, b: Tensor, **kwargs: Any) -> Any:
    if bias.dim() != 1 or b.dim() != 2 or bias.shape[0] != b.shape[1] or bias.dtype != a.dtype:
        return NotImplemented
    return _mm(a, b)


def _bmm(a: Tensor, b: Tensor) -> Any:
    if a.dim() != 3 or b.dim() != 3 or a.shape[0] != b.shape[0] or a.shape[2] != b.shape[1] or a.dtype != b.dtype:
        return NotImplemented
    return dense((a.shape[0], a.shape[1], b.shape[2]), a.dtype)


def _clone(x: Tensor, *, memory_format: torch.memory_format | None = None) -> Any:
    if memory_format is torch.contiguous_format:
        return dense(tuple(x.shape), x.dtype)
    if memory_format in (None, _PRESERVE) and x.is_contiguous():
        return phantom(tuple(x.shape), x.stride(), x.dtype)
    return NotImplemented


def _softmax(x: Tensor, dim: int, half_to_float: bool) -> Any:
    return NotImplemented if half_to_float or not x.is_contiguous() or x.dim() == 0 else _unary(x)


def _mean(x: Tensor, dims: list[int] | None, keepdim: bool = False, *, dtype: Any = None) -> Any:
    if dtype is not None or not dims or not x.is_floating_point() or not x.is_contiguous():
        return NotImplemented
    rank = x.dim()
    reduced = {d % rank for d in dims}
    shape = tuple(
        1 if d in reduced else size for d, size in enumerate(x.shape) if keepdim or d not in reduced
    )
    return dense(shape, x.dtype)


def _cat(tensors: list[Tensor], dim: int = 0) -> Any:
    first = tensors[0]
    rank = first.dim()
    dim = dim % rank if rank else 0
    total = 0
    for t in tensors:
        if t.dim() != rank or t.dtype != first.dtype or not t.is_contiguous() or _looks_channels_last(t):
            return NotImplemented
        if any(t.shape[d] != first.shape[d] for d in range(rank) if d != dim):
            return NotImplemented
        total += t.shape[dim]
    return dense((*first.shape[:dim], total, *first.shape[dim + 1 :]), first.dtype)


def _looks_channels_last(t: Tensor) -> bool:
    return t.dim() == 4 and t.is_contiguous(memory_format=torch.channels_last) and (
        t.stride() != contiguous_strides(t.shape)
    )


def _cpu_flash_attention(
    q: Tensor, k: Tensor, v: Tensor, dropout_p: float = 0.0, is_causal: bool = False, **kwargs: Any
) -> Any:
    """Output in the query's own layout, log-sum-exp in [N, L, H] seen as [N, H, L]."""
    n, h, l, _ = q.shape
    shape = (n, h, l, v.shape[3])
    strides = q.stride()
    lse_dtype = torch.float32 if q.dtype in (torch.bfloat16, torch.float16) else q.dtype
    out = phantom(shape, strides if is_dense(shape, strides) else dense_strides(shape, strides), q.dtype)
    return out, phantom((n, h, l), (l * h, 1, h), lse_dtype)


def _embedding(weight: Tensor, indices: Tensor, *args: Any) -> Any:
    return dense((*indices.shape, weight.shape[1]), weight.dtype) if weight.dim() == 2 else NotImplemented


def _max_pool2d(
    x: Tensor,
    kernel: list[int],
    stride: list[int] | tuple[()] = (),
    padding: list[int] | tuple[int, ...] = (0,),
    dilation: list[int] | tuple[int, ...] = (1,),
    ceil_mode: bool = False,
) -> Any:
    if x.dim() != 4 or ceil_mode or not x.is_contiguous() or x.is_contiguous(memory_format=torch.channels_last):
        return NotImplemented
    stride = stride or kernel
    out = list(x.shape[:2])
    for d in range(2):
        p, e, k, s = padding[d % len(padding)], dilation[d % len(dilation)], kernel[d % len(kernel)], stride[d % len(stride)]
        size = (x.shape[d + 2] + 2 * p - e * (k - 1) - 1) // s + 1
        if size <= 0 or 2 * p > k:
            return NotImplemented
        out.append(size)
    return dense(tuple(out), x.dtype), dense(tuple(out), torch.int64)


_UNARY = (
    "relu gelu silu sigmoid tanh hardtanh hardswish hardsigmoid leaky_relu elu mish softplus neg exp sqrt rsqrt abs "
    "sin cos reciprocal log erf"
)
_INPLACE = "relu_ silu_ sigmoid_ tanh_ hardtanh_ hardswish_ hardsigmoid_ leaky_relu_ elu_ mish_ zero_"

SHAPE_RULES: dict[Any, Rule] = {
    **{getattr(aten, name).default: _unary for name in _UNARY.split()},
    **{getattr(aten, name).default: _unary_ for name in _INPLACE.split()},
    aten.pow.Tensor_Scalar: lambda x, y: _unary(x) if isinstance(y, int | float) else NotImplemented,
    aten.add.Tensor: _binary,
    aten.sub.Tensor: _binary,
    aten.mul.Tensor: _binary,
    aten.div.Tensor: _binary,
    aten.add_.Tensor: _binary_,
    aten.sub_.Tensor: _binary_,
    aten.mul_.Tensor: _binary_,
    aten.div_.Tensor: _binary_,
    aten.convolution.default: _convolution,
    aten.native_batch_norm.default: _batch_norm,
    aten.native_layer_norm.default: _layer_norm,
    aten.mm.default: _mm,
    aten.addmm.default: _addmm,
    aten.bmm.default: _bmm,
    aten.clone.default: _clone,
    aten._softmax.default: _softmax,
    aten.mean.dim: _mean,
    aten.cat.default: _cat,
    aten._scaled_dot_product_flash_attention_for_cpu.default: _cpu_flash_attention,
    aten.embedding.default: _embedding,
    aten.max_pool2d_with_indices.default: _max_pool2d,
}
"""Operation → rule. Outputs stand in the order of the operation's schema."""

