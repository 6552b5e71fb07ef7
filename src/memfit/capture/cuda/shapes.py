"""Shape rules of operations that answer differently on CUDA than on the CPU."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from memfit.capture.layouts import same_layout
from memfit.capture.phantom import dense, run_on_meta

aten = torch.ops.aten


def _cudnn_batch_norm(
    x: Tensor, weight: Tensor, bias: Any, mean: Any, var: Any, training: bool, momentum: float, eps: float
) -> Any:
    """Output, the batch's mean and inverse deviation, and cuDNN's reserve.

    Source: aten/src/ATen/native/cudnn/BatchNorm.cpp: statistics are of the weight's type; the reserve is empty unless
    the layout is channels_last, where its size is cuDNN's own.
    """
    features = x.shape[1]
    kept = features if training else 0
    return (
        same_layout(x),
        dense((kept,), weight.dtype),
        dense((kept,), weight.dtype),
        dense((0,), torch.uint8),
    )


def _cudnn_batch_norm_backward(x: Tensor, grad: Tensor, weight: Tensor, *rest: Any) -> Any:
    return same_layout(x), dense(tuple(weight.shape), weight.dtype), dense(tuple(weight.shape), weight.dtype)


def _native_batch_norm(
    x: Tensor, weight: Any, bias: Any, mean: Any, var: Any, training: bool, momentum: float, eps: float
) -> Any:
    """Output and the statistics, which CUDA gives in evaluation too (aten/src/ATen/native/cuda/Normalization.cu)."""
    kind = _accumulated(x.dtype)
    features = x.shape[1]
    return same_layout(x), dense((features,), kind), dense((features,), kind)


def _native_layer_norm(x: Tensor, normalized: list[int], weight: Any, bias: Any, eps: float) -> Any:
    """Output, and mean and inverse deviation in the accumulator's type (native/cuda/layer_norm_kernel.cu)."""
    outer = tuple(x.shape[: len(x.shape) - len(normalized)]) + (1,) * len(normalized)
    kind = _accumulated(x.dtype)
    return dense(tuple(x.shape), x.dtype), dense(outer, kind), dense(outer, kind)


def _efficient_attention(q: Tensor, k: Tensor, v: Tensor, bias: Any, keeps: bool, *rest: Any, **more: Any) -> Any:
    """Output in (batch, length, heads, size) order, and sums in blocks of 32; seed and offset stay on the host.

    Source: aten/src/ATen/native/transformers/cuda/attention.cu, `_efficient_attention_forward`.
    """
    batch, heads, length, _ = q.shape
    out = dense((batch, length, heads, v.shape[-1]), q.dtype).transpose(1, 2)
    sums = dense((batch, heads, -(-length // 32) * 32 if keeps else 0), torch.float32)
    return out, sums, dense((0,), torch.int64), dense((0,), torch.int64)


def _cudnn_attention(q: Tensor, k: Tensor, v: Tensor, bias: Any, keeps: bool, *rest: Any, **more: Any) -> Any:
    """As the meta kernel says, but sums only where backward wants them (`_cudnn_attention_forward`)."""
    found = list(run_on_meta(aten._scaled_dot_product_cudnn_attention.default, (q, k, v, bias, keeps, *rest), more))
    if not keeps:
        found[1] = dense((0,), torch.float32)
    return tuple(found)


def _fused_rms_norm(x: Tensor, normalized: list[int], weight: Any, eps: Any) -> Any:
    """Output, and the inverse root mean square in the accumulator's type (native/cuda/layer_norm_kernel.cu)."""
    outer = tuple(x.shape[: len(x.shape) - len(normalized)]) + (1,) * len(normalized)
    return dense(tuple(x.shape), x.dtype), dense(outer, _accumulated(x.dtype))


def _native_group_norm(x: Tensor, weight: Any, bias: Any, batch: int, c: int, hw: int, groups: int, eps: float) -> Any:
    """Output, and mean and inverse deviation in the input's type (native/group_norm.cpp)."""
    return dense(tuple(x.shape), x.dtype), dense((batch, groups), x.dtype), dense((batch, groups), x.dtype)


def _log_sigmoid(x: Tensor) -> Any:
    """Output; the buffer that the CPU's backward reads is empty (native/cuda/Activation.cpp)."""
    return same_layout(x), dense((0,), x.dtype)


_GATES = {0: 2, 1: 2, 2: 6, 3: 5}
"""Numbers that cuDNN is taken to keep for each hidden unit and step, by kind of recurrent layer: an estimate."""


def _cudnn_rnn(x: Tensor, weights: list[Tensor], *rest: Any) -> Any:
    """Output, last states, cuDNN's reserve for backward (its size is an estimate) and no weight buffer.

    Source: aten/src/ATen/native/cudnn/RNN.cpp, `_cudnn_rnn`.
    """
    _, _, hx, cx, mode, hidden, projected, layers, batch_first, _, train, both, _, _ = rest
    directions = 2 if both else 1
    out = projected or hidden
    batch, steps = (x.shape[0], x.shape[1]) if batch_first else (x.shape[1], x.shape[0])
    output = dense((steps, batch, out * directions), x.dtype)
    kept = layers * directions * steps * batch * hidden * _GATES[mode] * x.element_size() if train else 0
    return (
        output.transpose(0, 1) if batch_first else output,
        dense(tuple(hx.shape), x.dtype),
        dense(tuple(cx.shape) if cx is not None else (0,), x.dtype),
        dense((kept,), torch.uint8),
        dense((0,), x.dtype),
    )


def _cudnn_rnn_backward(
    x: Tensor, weights: list[Tensor], stride: int, buffer: Any, hx: Tensor, cx: Any, *rest: Any
) -> Any:
    """Gradients of input, states and weights."""
    return (
        dense(tuple(x.shape), x.dtype),
        dense(tuple(hx.shape), x.dtype),
        dense(tuple(cx.shape), x.dtype) if cx is not None else None,
        [dense(tuple(w.shape), w.dtype) for w in weights],
    )


def _accumulated(dtype: torch.dtype) -> torch.dtype:
    """Type that CUDA kernels accumulate in."""
    return torch.float32 if dtype in (torch.float16, torch.bfloat16) else dtype


CUDA_RULES: dict[Any, Callable[..., Any]] = {
    aten.cudnn_batch_norm.default: _cudnn_batch_norm,
    aten.cudnn_batch_norm_backward.default: _cudnn_batch_norm_backward,
    aten.native_batch_norm.default: _native_batch_norm,
    aten.native_layer_norm.default: _native_layer_norm,
    aten.native_group_norm.default: _native_group_norm,
    aten._fused_rms_norm.default: _fused_rms_norm,
    aten.log_sigmoid_forward.default: _log_sigmoid,
    aten._cudnn_rnn.default: _cudnn_rnn,
    aten._cudnn_rnn_backward.default: _cudnn_rnn_backward,
    aten._scaled_dot_product_efficient_attention.default: _efficient_attention,
    aten._scaled_dot_product_cudnn_attention.default: _cudnn_attention,
}
"""Operation → rule."""
