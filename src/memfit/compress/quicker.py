"""Quicker forms of operations, with the same bits: results where the input lay, weights packed once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

TWINS: dict[str, str] = {
    f"aten.{name}.default": f"{name}_"
    for name in ("elu", "gelu", "hardsigmoid", "hardswish", "hardtanh", "leaky_relu", "relu", "sigmoid", "silu", "tanh")
}
"""Activation → PyTorch's own form of it in place."""

BATCH_NORM, CONVOLUTION = "aten.native_batch_norm.default", "aten.convolution.default"

_TRAINING, _TRANSPOSED = 5, 6
"""Which argument of the one says whether it trains, and of the other whether it is transposed."""


def in_place(target: str, args: Sequence[Any]) -> Callable[..., Any] | None:
    """Find the form in place of an operation that reads its first argument and makes one of the same shape.

    >>> double = in_place("aten.relu.default", ())
    >>> double(torch.tensor([-1.0, 2.0]))
    tensor([0., 2.])

    Args:
        target: the operation as it was captured.
        args: its arguments as far as they are no tensors.
    """
    if target in TWINS:
        found: Callable[..., Any] = getattr(torch.ops.aten, TWINS[target]).default
        return found
    if target == BATCH_NORM and args[_TRAINING] is False and _rounds_once():
        return BatchNorm()
    return None


def packing(target: str, args: Sequence[Any]) -> Callable[..., Any] | None:
    """Find the form of an operation that packs its weight once.

    >>> packing("aten.relu.default", ()) is None
    True

    Args:
        target: the operation as it was captured.
        args: its arguments as far as they are no tensors.
    """
    if target == CONVOLUTION and args[_TRANSPOSED] is False and hasattr(torch.ops.mkldnn, "_convolution_pointwise"):
        return Convolution()
    return None


class Convolution:
    """Convolution over float32 images whose channels lie last, by oneDNN; whatever else goes to PyTorch's own.

    PyTorch lays the weight down anew for oneDNN in every call. Here that is done once for each weight. It is the same
    kernel; all the same, the first result is held against PyTorch's own, and where a bit or the layout differs all are
    PyTorch's.
    """

    def __init__(self) -> None:
        self._of: Tensor | None = None
        self._changes = 0
        self._packed: Tensor | None = None
        self._same: bool | None = None

    def __call__(self, x: Tensor, weight: Tensor, bias: Tensor | None, *rest: Any) -> Tensor:
        """Take the operation's own arguments."""
        own = torch.ops.aten.convolution.default
        lies = x.dim() == 4 and x.is_contiguous(memory_format=torch.channels_last)
        if self._same is False or not lies or weight.is_inference():
            found: Tensor = own(x, weight, bias, *rest)
            return found
        if weight is not self._of or weight._version != self._changes:
            self._of, self._changes, self._packed = weight, weight._version, _packed(x, weight, bias, *rest)
        if self._packed is None:
            found = own(x, weight, bias, *rest)
            return found
        stride, padding, dilation, _, _, groups = rest
        quick: Tensor = torch.ops.mkldnn._convolution_pointwise.default(
            x, self._packed, bias, padding, stride, dilation, groups, "none", [], ""
        )
        if self._same is None:
            found = own(x, weight, bias, *rest)
            self._same = torch.equal(found, quick) and found.stride() == quick.stride()
            return found
        return quick


def _packed(x: Tensor, weight: Tensor, bias: Tensor | None, *rest: Any) -> Tensor | None:
    """Lay a weight down as oneDNN wants it, or give None where PyTorch has another kernel for this convolution."""
    if x.dtype is not torch.float32 or weight.dtype is not torch.float32:
        return None
    if str(torch._C._select_conv_backend(x, weight, bias, *rest)) != "_ConvBackend.Mkldnn":
        return None
    stride, padding, dilation, _, _, groups = rest
    found: Tensor = torch.ops.mkldnn._reorder_convolution_weight(
        weight, padding, stride, dilation, groups, list(x.shape)
    )
    return found


class BatchNorm:
    """Batch norm of inference over float32 images whose channels lie last; whatever else goes to PyTorch's own.

    PyTorch computes `x · slope + shift` with two numbers for each channel, and so does `addcmul`, in a pass that is two
    or three times as fast. The numbers are asked of PyTorch's own kernel, which gives them for images of ones and of
    zeros, and kept until one of the tensors that they come from changes.
    """

    def __init__(self) -> None:
        self._from: tuple[Tensor | None, ...] = ()
        self._changes: tuple[int, ...] = ()
        self._numbers: tuple[Tensor, Tensor] | None = None

    def __call__(self, x: Tensor, *rest: Any) -> Any:
        """Take the operation's own arguments."""
        if x.dtype is torch.float32 and x.dim() == 4 and x.is_contiguous(memory_format=torch.channels_last):
            numbers = self._asked(*rest)
            if numbers is not None:
                slope, shift = numbers
                return torch.addcmul(shift, x, slope, out=x)
        return torch.ops.aten.native_batch_norm.default(x, *rest)

    def _asked(self, *args: Any) -> tuple[Tensor, Tensor] | None:
        """Give the slope and the shift of each channel, or None where they are not finite."""
        given = args[:4]  # weight, bias, mean and variance
        if any(t is not None and t.is_inference() for t in given):  # whose changes are not counted
            return None
        changes = tuple(0 if t is None else t._version for t in given)
        same = changes == self._changes and all(a is b for a, b in zip(given, self._from, strict=True))
        if not same:
            weight, _, mean, variance = given
            images = torch.zeros(1, mean.numel(), 1, 1)
            slope = _norm(images + 1, weight, None, torch.zeros_like(mean), variance, *args[4:])
            shift = _norm(images, *args)
            finite = bool((slope.isfinite() & shift.isfinite()).all())
            self._numbers = (slope, shift) if finite else None
            self._from, self._changes = given, changes
        return self._numbers


def _norm(*args: Any) -> Tensor:
    found: Tensor = torch.ops.aten.native_batch_norm.default(*args)[0]
    return found


def _rounds_once() -> bool:
    """Try whether PyTorch's batch norm and `addcmul` round alike on this processor."""
    generator = torch.Generator().manual_seed(0)
    x, slope, shift = (torch.randn(size, generator=generator) for size in ((2, 37, 3, 5), (37,), (37,)))
    x = x.contiguous(memory_format=torch.channels_last)
    zeros, ones = torch.zeros(37), torch.ones(37)
    own = _norm(x, slope, shift, zeros, ones, False, 0.0, 0.0)
    return torch.equal(own, torch.addcmul(shift.view(1, -1, 1, 1), x, slope.view(1, -1, 1, 1)))
