"""Shape rules of the operations over lists of tensors, which optimizers are made of."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from memfit.capture.layouts import same_layout
from memfit.capture.phantom import dense

aten = torch.ops.aten

_NAMES = (
    "abs", "add", "addcdiv", "addcmul", "clamp_max", "clamp_min", "copy", "div", "exp", "lerp", "maximum", "minimum",
    "mul", "neg", "pow", "reciprocal", "rsqrt", "sign", "sqrt", "sub", "zero",
)  # fmt: skip
_FUSED = ("_fused_adam_", "_fused_adamw_", "_fused_sgd_", "_fused_adagrad_")


def _each(tensors: list[Tensor], *args: Any, **kwargs: Any) -> Any:
    """One result per tensor, of its shape and dtype."""
    return [same_layout(t) for t in tensors]


def _in_place(*args: Any, **kwargs: Any) -> None:
    """An operation on lists in place returns nothing."""


def _powers(base: Any, exponents: list[Tensor]) -> Any:
    """One number to the power of each tensor, in row-major order (native/Pow.cpp, `pow.Scalar`)."""
    return [dense(tuple(t.shape), t.dtype) for t in exponents]


def _norms(tensors: list[Tensor], order: Any = 2, dtype: torch.dtype | None = None) -> Any:
    return [dense((), dtype or t.dtype) for t in tensors]


def _rules() -> dict[Any, Callable[..., Any]]:
    found: dict[Any, Callable[..., Any]] = {}
    for name in _NAMES:
        for written, rule in ((f"_foreach_{name}", _each), (f"_foreach_{name}_", _in_place)):
            packet = getattr(aten, written, None)
            for overload in packet.overloads() if packet is not None else ():
                if not overload.endswith("out"):
                    found[getattr(packet, overload)] = rule
    for name in _FUSED:
        packet = getattr(aten, name)
        found |= {getattr(packet, overload): _in_place for overload in packet.overloads()}
    found[aten._foreach_norm.Scalar] = _norms
    found[aten._foreach_pow.ScalarAndTensor] = _powers
    return found


FOREACH_RULES = _rules()
"""Operation → rule."""
