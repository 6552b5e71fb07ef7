"""Autocast as on CUDA: the operations that it runs in fp32, which the CPU's autocast leaves alone.

Source: aten/src/ATen/autocast_mode.h, `AT_FORALL_FP32`, `AT_FORALL_FP32_SET_OPT_DTYPE` and
`AT_FORALL_DIFFERENT_REDISPATCH_SIGNATURE`. What both devices cast to the lower precision (convolution, linear, matmul,
attention) the CPU's own autocast does here, its cache of cast weights included.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_map

_FP32 = (
    "acos", "asin", "cosh", "erfinv", "exp", "expm1", "log", "log10", "log2", "log1p", "reciprocal", "rsqrt", "sinh",
    "tan", "pow.Tensor_Scalar", "pow.Tensor_Tensor", "pow.Scalar", "softplus", "layer_norm", "native_layer_norm",
    "rms_norm", "group_norm", "cosine_similarity", "poisson_nll_loss", "cosine_embedding_loss", "nll_loss",
    "nll_loss2d", "hinge_embedding_loss", "kl_div", "l1_loss", "smooth_l1_loss", "huber_loss", "mse_loss",
    "margin_ranking_loss", "multilabel_margin_loss", "soft_margin_loss", "triplet_margin_loss", "multi_margin_loss",
    "binary_cross_entropy_with_logits", "dist", "pdist", "cdist", "renorm", "logsumexp", "frobenius_norm.dim",
    "nuclear_norm", "nuclear_norm.dim", "upsample_nearest1d", "_upsample_nearest_exact1d", "upsample_nearest2d",
    "_upsample_nearest_exact2d", "upsample_nearest3d", "_upsample_nearest_exact3d", "upsample_linear1d",
    "upsample_bilinear2d", "_upsample_bilinear2d_aa", "upsample_trilinear3d", "upsample_bicubic2d",
    "_upsample_bicubic2d_aa",
)  # fmt: skip
"""Operations whose tensors are cast to fp32 first."""

_DTYPE = (
    "prod", "prod.dim_int", "softmax.int", "log_softmax.int", "cumprod", "cumsum", "linalg_vector_norm",
    "linalg_matrix_norm", "linalg_matrix_norm.str_ord", "sum", "sum.dim_IntList",
)  # fmt: skip
"""Operations that are told to answer in fp32, unless they are told another dtype."""


def _below() -> Any:
    """Leave autocast for what is called next, as autocast's own kernels do."""
    return torch._C._ExcludeDispatchKeyGuard(torch._C.DispatchKeySet(torch._C.DispatchKey.AutocastCPU))


def _operator(name: str) -> Any:
    base, _, overload = name.partition(".")
    return getattr(getattr(torch.ops.aten, base), overload or "default")


def _to_fp32(value: Any) -> Any:
    if isinstance(value, Tensor) and value.dtype in (torch.float16, torch.bfloat16):
        return value.to(torch.float32)
    return value


def _casting(name: str) -> Callable[..., Any]:
    operator = _operator(name)

    def kernel(*args: Any, **kwargs: Any) -> Any:
        with _below():
            return operator(*tree_map(_to_fp32, args), **tree_map(_to_fp32, kwargs))

    return kernel


def _answering(name: str) -> Callable[..., Any]:
    operator = _operator(name)
    names = [argument.name for argument in operator._schema.arguments]
    place = names.index("dtype")

    def kernel(*args: Any, **kwargs: Any) -> Any:
        given = args[place] if place < len(args) else kwargs.get("dtype")
        x = args[0]
        with _below():
            if given is not None or x.dtype not in (torch.float16, torch.bfloat16, torch.float32):
                return operator(*args, **kwargs)
            if x.dtype is torch.float16 and name in _FUSED:  # the kernel reads half and writes float
                return _FUSED[name](x, args[1], True)
            return operator(*args[:place], **{**kwargs, "dtype": torch.float32})

    return kernel


_FUSED = {"softmax.int": torch.ops.aten._softmax.default, "log_softmax.int": torch.ops.aten._log_softmax.default}
"""Source: aten/src/ATen/native/SoftMax.cpp: on CUDA, half to float is one kernel."""


_STAYS = ("_addmm_activation", "_native_multi_head_attention", "mkldnn_rnn_layer", ".padding")
"""Operations that the CPU's autocast runs in the lower precision, and that stand for others on CUDA."""


@cache
def left_alone() -> tuple[str, ...]:
    """Operators that the CPU's autocast has a kernel for and CUDA's has none, such as cross entropy as a whole.

    Both tables are in every build of PyTorch, so they are compared there.
    """
    has = torch._C._dispatch_has_kernel_for_dispatch_key
    return tuple(
        name.removeprefix("aten::")
        for name in torch._C._dispatch_get_all_op_names()
        if name.startswith("aten::")
        and has(name, "AutocastCPU")
        and not has(name, "AutocastCUDA")
        and not any(part in name for part in _STAYS)
    )


@cache
def kernels() -> dict[str, Callable[..., Any]]:
    """Operator → the kernel to register for autocast, for those that the CPU's autocast has none for."""
    made: dict[str, Callable[..., Any]] = {}
    for names, make in ((_FP32, _casting), (_DTYPE, _answering)):
        for name in names:
            if not torch._C._dispatch_has_kernel_for_dispatch_key(f"aten::{name}", "AutocastCPU"):
                made[name] = make(name)
    return made
