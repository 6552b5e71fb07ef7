"""Shape rules of operations that answer differently on CUDA than on the CPU."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from memfit.capture.layouts import same_layout
from memfit.capture.phantom import dense

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


def _accumulated(dtype: torch.dtype) -> torch.dtype:
    """Type that CUDA kernels accumulate in."""
    return torch.float32 if dtype in (torch.float16, torch.bfloat16) else dtype


CUDA_RULES: dict[Any, Callable[..., Any]] = {
    aten.cudnn_batch_norm.default: _cudnn_batch_norm,
    aten.cudnn_batch_norm_backward.default: _cudnn_batch_norm_backward,
    aten.native_batch_norm.default: _native_batch_norm,
    aten.native_layer_norm.default: _native_layer_norm,
}
"""Operation → rule."""
