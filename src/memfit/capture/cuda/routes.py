"""How CUDA decomposes the operations that PyTorch dispatches by asking a tensor's device."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from memfit.capture.cuda.attention import attention
from memfit.capture.cuda.device import Cuda

aten = torch.ops.aten

_CUDNN_NORM_BATCH = {True: 880_801, False: 65_535}
"""Largest batch that cuDNN's batch norm takes, in training and in evaluation."""


def routes(cuda: Cuda) -> dict[str, Callable[..., Any]]:
    """Operator → the kernel that decomposes it as CUDA does."""
    return {
        "scaled_dot_product_attention": partial(attention, cuda.capability),
        "dropout": _dropout,
        "batch_norm": _batch_norm,
        "rms_norm": _rms_norm,
        "lstm.input": _lstm,
        **{f"{name}.input": partial(_rnn, mode) for name, mode in (("rnn_relu", 0), ("rnn_tanh", 1), ("gru", 3))},
    }


def _dropout(x: Tensor, p: float, train: bool) -> Tensor:
    """Source: aten/src/ATen/native/Dropout.cpp, `dropout` and `is_fused_kernel_acceptable`."""
    if not train or p == 0 or x.numel() == 0:
        return x
    if p == 1:
        return x * torch.zeros((), dtype=x.dtype, device=x.device)
    result: Tensor = aten.native_dropout.default(x, p, True)[0]
    return result


def _batch_norm(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    mean: Tensor | None,
    var: Tensor | None,
    training: bool,
    momentum: float,
    eps: float,
    cudnn_enabled: bool,
) -> Tensor:
    """Source: aten/src/ATen/native/Normalization.cpp, `_select_batch_norm_backend` and `_batch_norm_impl_index`."""
    low = (torch.bfloat16,)
    with_cudnn = (
        cudnn_enabled
        and weight is not None
        and bias is not None
        and x.dtype not in low
        and weight.dtype not in low
        and (x.dtype is not torch.float16 or weight.dtype is torch.float32)
        and ((mean is None) == (var is None))
        and (mean is not None or training)
        and x.dim() >= 3
        and x.shape[0] <= _CUDNN_NORM_BATCH[training]
        and x.numel() < 2**31 - 1
        and eps >= 1e-5
    )
    outputs: tuple[Tensor, ...]
    if with_cudnn:
        outputs = aten.cudnn_batch_norm.default(
            x.contiguous(memory_format=_suggested(x)), weight, bias, mean, var, training, momentum, eps
        )
    else:
        outputs = aten.native_batch_norm.default(x, weight, bias, mean, var, training, momentum, eps)
    return outputs[0]


class _FusedRmsNorm(torch.autograd.Function):
    """The fused norm with its backward, which a build without CUDA would take apart."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, shape: list[int], weight: Tensor | None, eps: float | None) -> Tensor:
        with torch._C._AutoDispatchBelowAutograd():
            out, scale = aten._fused_rms_norm.default(x, shape, weight, eps)
        ctx.save_for_backward(x, scale, *(() if weight is None else (weight,)))
        ctx.shape = shape
        result: Tensor = out
        return result

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        x, scale, *rest = ctx.saved_tensors
        weight = rest[0] if rest else None
        dx, dw = aten._fused_rms_norm_backward.default(
            gradients[0], x, ctx.shape, scale, weight, [ctx.needs_input_grad[0], ctx.needs_input_grad[2]]
        )
        return dx, None, dw, None


def _rms_norm(x: Tensor, shape: list[int], weight: Tensor | None = None, eps: float | None = None) -> Tensor:
    """Source: aten/src/ATen/native/layer_norm.cpp, `rms_norm_symint`."""
    plain = _suggested(x) is torch.contiguous_format and not x.is_complex()
    if plain and (weight is None or weight.dtype == x.dtype):
        fused: Tensor = _FusedRmsNorm.apply(x, shape, weight, eps)  # type: ignore[no-untyped-call]
        return fused
    wide = x.to(torch.float32) if x.dtype in (torch.float16, torch.bfloat16) else x
    dims = list(range(x.dim() - len(shape), x.dim()))
    scale = wide.pow(2).mean(dims, keepdim=True).add_(eps or torch.finfo(wide.dtype).eps).rsqrt()
    result = wide.mul(scale)
    return (result if weight is None else result.mul(weight)).type_as(x)


def _cudnn_rnn(
    mode: int,
    x: Tensor,
    hx: Tensor,
    cx: Tensor | None,
    params: list[Tensor],
    has_biases: bool,
    layers: int,
    dropout: float,
    train: bool,
    bidirectional: bool,
    batch_first: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Source: aten/src/ATen/native/cudnn/RNN.cpp, `_cudnn_impl`; parameters are views of one buffer."""
    hidden = hx.shape[2] if cx is None else cx.shape[2]
    projected = hx.shape[2] if hx.shape[2] != hidden else 0
    stride = (4 if has_biases else 2) + bool(projected)
    out, hy, cy, _, _ = aten._cudnn_rnn.default(
        x, params, stride, None, hx, cx, mode, hidden, projected, layers, batch_first, dropout, train, bidirectional,
        [], None,
    )  # fmt: skip
    return out, hy, cy


def _lstm(
    x: Tensor,
    hx: list[Tensor],
    params: list[Tensor],
    has_biases: bool,
    layers: int,
    dropout: float,
    train: bool,
    bidirectional: bool,
    batch_first: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    return _cudnn_rnn(2, x, hx[0], hx[1], params, has_biases, layers, dropout, train, bidirectional, batch_first)


def _rnn(
    mode: int,
    x: Tensor,
    hx: Tensor,
    params: list[Tensor],
    has_biases: bool,
    layers: int,
    dropout: float,
    train: bool,
    bidirectional: bool,
    batch_first: bool,
) -> tuple[Tensor, Tensor]:
    out, hy, _ = _cudnn_rnn(mode, x, hx, None, params, has_biases, layers, dropout, train, bidirectional, batch_first)
    return out, hy


def _suggested(x: Tensor) -> torch.memory_format:
    """Layout that `Tensor::suggest_memory_format` gives."""
    if x.dim() == 4 and x.is_contiguous(memory_format=torch.channels_last) and not x.is_contiguous():
        return torch.channels_last
    if x.dim() == 5 and x.is_contiguous(memory_format=torch.channels_last_3d) and not x.is_contiguous():
        return torch.channels_last_3d
    return torch.contiguous_format


def conv_backend(args: tuple[Any, ...]) -> str:
    """Kernel family of a convolution: cuDNN, or PyTorch's own for depthwise ones in NCHW.

    Source: aten/src/ATen/native/Convolution.cpp, `_select_conv_backend` and `use_cudnn_depthwise`. In half precision
    some NCHW depthwise shapes take cuDNN too; both make the same tensors.
    """
    x, weight, *_, transposed, _, groups = args
    depthwise = groups > 1 and groups == x.shape[1] and weight.shape[0] % x.shape[1] == 0
    if depthwise and not transposed and _suggested(x) is torch.contiguous_format:
        return "CudaDepthwise3d" if x.dim() == 5 else "CudaDepthwise2d"
    return "CudnnTranspose" if transposed else "Cudnn"
