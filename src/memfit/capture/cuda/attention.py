"""Which kernel CUDA takes for scaled dot product attention, and what it is given."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

aten = torch.ops.aten

_HALVES = (torch.float16, torch.bfloat16)


def attention(
    capability: tuple[int, int],
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: Tensor | None = None,
    dropout: float = 0.0,
    causal: bool = False,
    *,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    """Run attention as CUDA does.

    Source: aten/src/ATen/native/transformers/attention.cpp, `scaled_dot_product_attention`; the choice is in
    aten/src/ATen/native/transformers/cuda/sdp_utils.cpp.
    """
    if mask is not None and mask.dtype is torch.bool:
        mask = torch.zeros_like(mask, dtype=q.dtype).masked_fill_(mask.logical_not(), -math.inf)
    chosen = choose(capability, q, k, v, mask, dropout, causal, enable_gqa)
    if chosen == "flash":
        size = q.shape[-1]
        if size % 8:
            q, k, v = (functional.pad(t, (0, 8 - size % 8)) for t in (q, k, v))
        out: Tensor = aten._scaled_dot_product_flash_attention.default(
            q, k, v, dropout, causal, False, scale=scale if scale is not None else 1 / math.sqrt(size)
        )[0]
        return out[..., :size] if size % 8 else out
    if chosen == "efficient":
        keeps = torch.is_grad_enabled() and any(t.requires_grad for t in (q, k, v))
        bias = None if mask is None else _aligned(mask, q, k)
        result: Tensor = aten._scaled_dot_product_efficient_attention.default(
            q, k, v, bias, keeps, dropout, causal, scale=scale
        )[0]
        return result
    math_result: Tensor = aten._scaled_dot_product_attention_math.default(
        q, k, v, mask, dropout, causal, None, scale=scale, enable_gqa=enable_gqa
    )[0]
    return math_result


def choose(
    capability: tuple[int, int],
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: Tensor | None,
    dropout: float,
    causal: bool,
    enable_gqa: bool,
) -> str:
    """Choose among flash, efficient and math, in that order."""
    if q.dim() != 4 or k.dim() != 4 or v.dim() != 4 or 0 in (q.shape[2], k.shape[2]):
        return "math"
    if any(t.stride(-1) != 1 for t in (q, k, v)):
        return "math"
    grad = torch.is_grad_enabled() and any(t.requires_grad for t in (q, k, v))
    if _takes_flash(capability, q, k, v, mask, causal, grad, enable_gqa):
        return "flash"
    return "efficient" if _takes_efficient(capability, q, k, v, enable_gqa) else "math"


def _takes_flash(
    capability: tuple[int, int],
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: Tensor | None,
    causal: bool,
    grad: bool,
    enable_gqa: bool,
) -> bool:
    if capability < (8, 0) or q.dtype not in _HALVES or mask is not None:
        return False
    size = q.shape[-1]
    if not size == k.shape[-1] == v.shape[-1] or size > 256:
        return False
    if causal and q.shape[2] != k.shape[2]:
        return False
    return _same_heads(q, k, v) or (enable_gqa and q.shape[0] == k.shape[0] and q.shape[1] % k.shape[1] == 0)


def _takes_efficient(capability: tuple[int, int], q: Tensor, k: Tensor, v: Tensor, enable_gqa: bool) -> bool:
    if q.dtype is torch.bfloat16 and capability < (8, 0):
        return False
    if q.dtype not in (torch.float32, *_HALVES) or not _same_heads(q, k, v):
        return False
    half = q.dtype in _HALVES
    alignment = 4 if capability >= (8, 0) else 1
    if half or capability >= (8, 0):
        alignment = max(alignment, 128 // (16 if half else 32))
    return q.shape[-1] % alignment == 0 and v.shape[-1] % alignment == 0 and q.shape[-1] == k.shape[-1]


def _same_heads(q: Tensor, k: Tensor, v: Tensor) -> bool:
    return q.shape[:2] == k.shape[:2] == v.shape[:2]


def _aligned(mask: Tensor, q: Tensor, k: Tensor) -> Any:
    """Pad a mask to rows of a multiple of 16 elements, and expand it to all heads.

    Source: attention.cpp, `preprocess_mask` and `pad_bias`.
    """
    last = mask.shape[-1]
    if last % 16:
        mask = functional.pad(mask, (0, 16 - last % 16))[..., :last]
    return mask.expand(q.shape[0], q.shape[1], q.shape[2], k.shape[2])
