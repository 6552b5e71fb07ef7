"""Which kernel CUDA takes for scaled dot product attention, and what it is given.

Source: PyTorch 2.13, aten/src/ATen/native/transformers/attention.cpp (`scaled_dot_product_attention`) and
aten/src/ATen/native/transformers/cuda/sdp_utils.cpp (`select_sdp_backend` and the `can_use_…` checks), with the
default settings of `torch.backends.cuda`.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

aten = torch.ops.aten

_HALVES = (torch.float16, torch.bfloat16)


class Call(NamedTuple):
    """One call of attention: queries, keys and values of shape (batch, heads, length, size)."""

    capability: tuple[int, int]
    q: Tensor
    k: Tensor
    v: Tensor
    mask: Tensor | None
    dropout: float
    causal: bool
    grouped: bool
    """Whether keys and values may have fewer heads."""

    @property
    def needs_grad(self) -> bool:
        """True where backward will be asked for."""
        return torch.is_grad_enabled() and any(t.requires_grad for t in (self.q, self.k, self.v))

    def heads_agree(self, grouped: bool) -> bool:
        """Tell whether batch and heads fit together."""
        if not self.q.shape[0] == self.k.shape[0] == self.v.shape[0] or 0 in (self.q.shape[2], self.k.shape[2]):
            return False
        heads, keys, values = (t.shape[1] for t in (self.q, self.k, self.v))
        return heads == keys == values or (grouped and keys == values and heads % keys == 0)

    @property
    def dense_rows(self) -> bool:
        """True where the last dimension is contiguous everywhere."""
        return all(t.stride(-1) == 1 or t.shape[-1] == 1 for t in (self.q, self.k, self.v))


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
    """Run attention as CUDA does."""
    if mask is not None and mask.dtype is torch.bool:
        mask = torch.where(mask, 0.0, torch.full((), -math.inf, dtype=q.dtype, device=q.device))
    call = Call(capability, q, k, v, mask, dropout, causal, enable_gqa)
    out: Tensor = _KERNELS[choose(call)](call, scale)
    return out


def choose(call: Call) -> str:
    """Name the kernel that is taken: the first in order that can run the call."""
    if not call.q.dim() == call.k.dim() == call.v.dim() == 4:
        return "math"
    # cuDNN comes first from its version 9.15 on; PyTorch 2.13 comes with 9.20.
    order = ("cudnn", "flash", "efficient") if call.capability[0] in (9, 10) else ("flash", "efficient")
    return next((name for name in order if _CAN[name](call)), "math")


def _can_flash(call: Call) -> bool:
    size = call.q.shape[-1]
    if not (8, 0) <= call.capability <= (12, 1) or call.mask is not None:
        return False
    if not call.q.dtype == call.k.dtype == call.v.dtype or call.q.dtype not in _HALVES:
        return False
    if not size == call.k.shape[-1] == call.v.shape[-1] or size > 256:
        return False
    small = (8, 6) <= call.capability <= (8, 9) or call.capability >= (12, 0)
    if call.needs_grad and small and size > 192 and not (call.dropout == 0 and size > 224):
        return False
    if call.causal and call.q.shape[2] != call.k.shape[2]:
        return False
    return call.heads_agree(call.grouped) and call.dense_rows


def _can_efficient(call: Call) -> bool:
    q, k, v, mask = call.q, call.k, call.v, call.mask
    modern = call.capability >= (8, 0)
    half = q.dtype in _HALVES
    if not (5, 0) <= call.capability <= (12, 1) or (q.dtype is torch.bfloat16 and not modern):
        return False
    if not half and q.dtype is not torch.float32:
        return False
    alignment = 8 if half else 4 if modern else 1
    sizes = (q.shape[-1], v.shape[-1])
    if q.shape[-1] != k.shape[-1] or any(size == 0 or size % alignment for size in sizes):
        return False
    if modern and any(t.storage_offset() % alignment for t in (q, k, v)):
        return False
    if mask is not None and mask.stride(-1) != 1:
        return False
    return call.heads_agree(grouped=False) and all(t.stride(-1) == 1 for t in (q, k, v))


def _can_cudnn(call: Call) -> bool:
    q, k, v, mask = call.q, call.k, call.v, call.mask
    if not (8, 0) <= call.capability <= (12, 1) or q.dtype not in _HALVES or call.dropout * 16 % 1:
        return False
    if mask is not None and (mask.requires_grad or mask.dim() not in (2, 4) or mask.stride(-1) != 1):
        return False
    sizes = (q.shape[-1], v.shape[-1])
    limit = 256 if call.capability == (9, 0) else 192 if sizes == (192, 128) else 128
    if max(sizes) > limit or any(size % 8 for size in sizes) or k.shape[2] == 1:
        return False
    if q.shape[2] == 1 and call.dropout:
        return False
    return call.heads_agree(grouped=True) and call.dense_rows


def _flash(call: Call, scale: float | None) -> Tensor:
    """Pad the heads' size to a multiple of 8, which copies queries, keys and values, and cut the result again."""
    size = call.q.shape[-1]
    q, k, v = call.q, call.k, call.v
    if size % 8:
        q, k, v = (functional.pad(t, (0, 8 - size % 8)) for t in (q, k, v))
    out: Tensor = aten._scaled_dot_product_flash_attention.default(
        q, k, v, call.dropout, call.causal, False, scale=scale if scale is not None else 1 / math.sqrt(size)
    )[0]
    return out[..., :size] if size % 8 else out


def _efficient(call: Call, scale: float | None) -> Tensor:
    bias = None if call.mask is None else _aligned(call.mask).expand(*call.q.shape[:3], call.k.shape[2])
    out: Tensor = aten._scaled_dot_product_efficient_attention.default(
        call.q, call.k, call.v, bias, call.needs_grad, call.dropout, call.causal, scale=scale
    )[0]
    return out


def _aligned(mask: Tensor) -> Tensor:
    """Pad a mask's rows to a multiple of 8 elements, unless its strides are such multiples (`preprocess_mask`)."""
    if all(stride % 8 == 0 for stride in mask.stride()[:-1]) and mask.stride(-1) == 1:
        return mask
    length = mask.shape[-1]
    return functional.pad(mask, (0, 8 - length % 8))[..., :length]


def _cudnn(call: Call, scale: float | None) -> Tensor:
    bias = None if call.mask is None else call.mask.expand(*call.q.shape[:3], call.k.shape[2])
    out: Tensor = aten._scaled_dot_product_cudnn_attention.default(
        call.q, call.k, call.v, bias, call.needs_grad, call.dropout, call.causal, False, scale=scale
    )[0]
    return out


def _math(call: Call, scale: float | None) -> Tensor:
    out: Tensor = aten._scaled_dot_product_attention_math.default(
        call.q, call.k, call.v, call.mask, call.dropout, call.causal, None, scale=scale, enable_gqa=call.grouped
    )[0]
    return out


_CAN = {"flash": _can_flash, "efficient": _can_efficient, "cudnn": _can_cudnn}
_KERNELS: dict[str, Any] = {"flash": _flash, "efficient": _efficient, "cudnn": _cudnn, "math": _math}
