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


def _suggested(x: Tensor) -> torch.memory_format:
    """Layout that `Tensor::suggest_memory_format` gives."""
    if x.dim() == 4 and x.is_contiguous(memory_format=torch.channels_last) and not x.is_contiguous():
        return torch.channels_last
    if x.dim() == 5 and x.is_contiguous(memory_format=torch.channels_last_3d) and not x.is_contiguous():
        return torch.channels_last_3d
    return torch.contiguous_format


def conv_backend(args: tuple[Any, ...]) -> str:
    """Kernel family of a convolution: cuDNN, or PyTorch's own for depthwise ones in fp32.

    Source: aten/src/ATen/native/Convolution.cpp, `_select_conv_backend` and `use_cudnn_depthwise`.
    """
    x, weight, *_, transposed, _, groups = args
    depthwise = x.dim() == 4 and groups > 1 and groups == x.shape[1] and weight.shape[0] % x.shape[1] == 0
    if depthwise and not transposed:
        return "CudaDepthwise2d"
    return "CudnnTranspose" if transposed else "Cudnn"
