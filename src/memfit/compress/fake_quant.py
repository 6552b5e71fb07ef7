"""Fake quantization: values rounded to a grid of whole numbers and turned back into floating point."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from memfit.compress.observers import check_bits, grid
from memfit.errors import UsageError


@dataclass(frozen=True, eq=False)
class Grids:
    """What values are rounded to: `scale · (q - zero_point)` for whole q from `least` to `most`."""

    scale: Tensor
    """float32, one number, or one per channel."""
    zero_point: Tensor
    """Whole numbers in float32, as many."""
    least: int
    most: int
    axis: int | None = None
    """Dimension of the channels; None where one grid is for all values."""

    @property
    def bits(self) -> int:
        """Bits that a number of the grid takes."""
        return (self.most - self.least).bit_length()


def of_range(
    low: float | Sequence[float],
    high: float | Sequence[float],
    bits: int = 8,
    *,
    symmetric: bool = False,
    axis: int | None = None,
) -> Grids:
    """Lay a grid over a range, or one over each channel's; see `memfit.compress.observers.grid`.

    >>> of_range(-1.0, 1.55).scale.item(), of_range([0.0, -1.0], [2.55, 1.55], axis=0).zero_point.tolist()
    (0.009999999776482582, [-128.0, -28.0])

    Args:
        low: least value to represent; a list of them, one per channel.
        high: largest one, likewise.
        bits: 2 to 16.
        symmetric: zero in the middle.
        axis: dimension of the channels.

    Raises:
        UsageError: bits that cannot be.
    """
    if axis is None:
        found = grid(float(low), float(high), bits, symmetric=symmetric)  # type: ignore[arg-type]
        return Grids(torch.tensor(found.scale), torch.tensor(float(found.zero_point)), found.least, found.most)
    check_bits(bits)
    laid = [grid(a, b, bits, symmetric=symmetric) for a, b in zip(low, high, strict=True)]  # type: ignore[arg-type]
    if not laid:
        raise UsageError(
            "there are no channels to lay grids over",
            where="low",
            received="no ranges",
            todo="give one range for each channel",
        )
    scale = torch.tensor([entry.scale for entry in laid], dtype=torch.float32)
    zero_point = torch.tensor([float(entry.zero_point) for entry in laid], dtype=torch.float32)
    return Grids(scale, zero_point, laid[0].least, laid[0].most, axis)


def of_weight(weight: Tensor, bits: int = 8, *, axis: int | None = 0) -> Grids:
    """Lay symmetric grids over a weight, each channel's as wide as its largest magnitude.

    A batch norm behind a convolution multiplies each channel of its weight by one number, and the channel's grid by the
    same. So the result is that of quantizing the two folded into one.

    >>> of_weight(torch.tensor([[0.0, -1.27], [2.54, 1.0]])).scale.tolist()
    [0.009999999776482582, 0.019999999552965164]

    Args:
        weight: two or more dimensions.
        bits: 2 to 16.
        axis: dimension of the channels; None lays one grid over all.

    Raises:
        UsageError: bits that cannot be.
    """
    check_bits(bits)
    values = weight.detach().float().abs()
    most = (1 << (bits - 1)) - 1
    if axis is None:
        return of_range(-float(values.max()), float(values.max()), bits, symmetric=True)
    largest = values.movedim(axis, 0).flatten(1).amax(1) if values.numel() else values.new_zeros(values.shape[axis])
    wide = (largest.double() / most).clamp_min(float(np.finfo(np.float32).tiny))
    scale = torch.where(largest > 0, wide, torch.ones_like(wide)).float()
    return Grids(scale, torch.zeros_like(scale), -most, most, axis)


def fake_quantize(values: Tensor, grids: Grids) -> Tensor:
    """Round values to a grid, the nearest number, halves to the even one, and what lies outside to its ends.

    Bit for bit what `torch.fake_quantize_per_tensor_affine` and `torch.fake_quantize_per_channel_affine` give on the
    CPU (PyTorch 2.13, https://github.com/pytorch/pytorch/tree/v2.13.0/aten/src/ATen/native/quantized), except that
    values too large for their 64-bit integers, infinite ones among them, go to the ends of the grid too. It is made of
    vector operations and several times as fast.

    >>> fake_quantize(torch.tensor([0.05, 0.15, 0.25, 9.0]), of_range(0.0, 1.5, bits=4)).tolist()
    [0.0, 0.20000000298023224, 0.20000000298023224, 1.5]

    Args:
        values: floating point; what is narrower than float32 is rounded in float32 and turned back.
        grids: what to round to.

    Returns:
        A new tensor of the same shape, dtype and strides.
    """
    scale, zero_point = grids.scale, grids.zero_point
    if grids.axis is not None:
        shape = [1] * values.dim()
        shape[grids.axis] = -1
        scale, zero_point = scale.view(shape), zero_point.view(shape)
    wide = values if values.dtype in (torch.float32, torch.float64) else values.float()
    q = wide * scale.reciprocal().to(wide.dtype)
    q.round_().add_(zero_point).clamp_(grids.least, grids.most).sub_(zero_point).mul_(scale)
    return q if q.dtype is values.dtype else q.to(values.dtype)
