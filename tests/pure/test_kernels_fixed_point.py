"""The fixed-point arithmetic against slow, obvious arithmetic on exact integers and fractions."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from memfit.kernels import fixed_point

INT32 = st.integers(-(1 << 31), (1 << 31) - 1)
SCALES = st.floats(2.0**-40, 2.0**13, width=32)


def nearest(x: Fraction, *, half_away: bool) -> int:
    """Round to the nearest integer; halves up, or away from zero."""
    below = math.floor(x)
    rest = x - below
    if rest == Fraction(1, 2):
        return below if half_away and x < 0 else below + 1
    return below + (rest > Fraction(1, 2))


def wrapped(x: int, bits: int = 32) -> int:
    return (x + (1 << (bits - 1))) % (1 << bits) - (1 << (bits - 1))


def slow_scale(x: int, multiplier: int, shift: int) -> int:
    """Shift left, multiply and round, shift right and round: each step by the definition of rounding."""
    shifted = wrapped(x << max(shift, 0))
    product = min(nearest(Fraction(shifted * multiplier, 1 << 31), half_away=False), (1 << 31) - 1)
    return nearest(Fraction(product, 1 << max(-shift, 0)), half_away=True)


@given(INT32, st.integers(0, (1 << 31) - 1), st.integers(-31, 8))
@example(-(1 << 31), (1 << 31) - 1, 0)
@example(-1, 1 << 30, -1)
@example(3, 1 << 30, -1)
@example(-3, 1 << 30, -1)
def test_scale(x: int, multiplier: int, shift: int) -> None:
    expected = slow_scale(x, multiplier, shift)
    assert fixed_point.scale(np.array([x]), multiplier, shift).tolist() == [expected]
    # One shift per channel, of both kinds at once, goes another way through the code.
    shifts, multipliers = np.array([shift, 0, -3, 2]), np.array([multiplier] * 4)
    made = fixed_point.scale(np.full((2, 4), x), multipliers, shifts)
    assert made.tolist() == [[slow_scale(x, multiplier, int(s)) for s in shifts]] * 2


@given(st.integers(-(1 << 47), (1 << 47) - 1), st.integers(0, (1 << 31) - 1), st.integers(-31, 7))
def test_scale_wide(x: int, multiplier: int, shift: int) -> None:
    reduced = min(math.floor(Fraction(multiplier, 1 << 16) + Fraction(1, 2)), 0x7FFF)
    expected = wrapped(math.floor(Fraction(x * reduced, 1) / Fraction(2) ** (15 - shift) + Fraction(1, 2)))
    assert fixed_point.scale_wide(np.array([x]), multiplier, shift).tolist() == [expected]


@given(INT32, INT32)
@example(-(1 << 31), -(1 << 31))
def test_high_mul(a: int, b: int) -> None:
    expected = min(nearest(Fraction(a * b, 1 << 31), half_away=False), (1 << 31) - 1)
    assert fixed_point.high_mul(np.array([a]), b).tolist() == [expected]


@given(INT32, st.integers(0, 31))
def test_divide_by_power(x: int, exponent: int) -> None:
    expected = nearest(Fraction(x, 1 << exponent), half_away=True)
    assert fixed_point.divide_by_power(np.array([x]), exponent).tolist() == [expected]


@given(SCALES)
@example(1.0)
@example(1 - 2**-33)
def test_quantize_multiplier_is_the_nearest(real: float) -> None:
    multiplier, shift = fixed_point.quantize_multiplier(real)
    if multiplier == 0:
        assert real < 2**-31
        return
    assert 1 << 30 <= multiplier < 1 << 31
    error = abs(Fraction(real) - Fraction(multiplier) * Fraction(2) ** (shift - 31))
    assert error <= Fraction(2) ** (shift - 32)


@given(st.integers(-(1 << 31), 0))
def test_exponential(a: int) -> None:
    made = int(fixed_point.exp_negative(np.array([a]), 5)[0])
    assert made / 2**31 == pytest.approx(math.exp(a / 2**26), abs=1e-6)


@given(INT32)
def test_curves(a: int) -> None:
    x = a / 2**27
    assert int(fixed_point.logistic(np.array([a]), 4)[0]) / 2**31 == pytest.approx(1 / (1 + math.exp(-x)), abs=3e-7)
    if abs(x) < 8:
        assert int(fixed_point.tanh(np.array([a]), 4)[0]) / 2**31 == pytest.approx(math.tanh(x), abs=3e-7)


@given(st.integers(1, (1 << 31) - 1))
def test_reciprocal_and_root_and_logarithm(x: int) -> None:
    made, moved = fixed_point.reciprocal(np.array([x]), 12)
    assert int(made[0]) / 2**31 * 2.0 ** -int(moved[0]) == pytest.approx(2**19 / x, rel=1e-7)
    multiplier, shift = fixed_point.inverse_square_root(x)
    assert multiplier * 2.0 ** (shift - 31) == pytest.approx(1 / math.sqrt(x), rel=1e-5)
    if x >= 1 << 19:
        log = int(fixed_point.logarithm(np.array([x]), 12, 5)[0])
        assert log / 2**26 == pytest.approx(math.log(x / 2**19), abs=1e-5)


@given(st.integers(0, (1 << 32) - 1))
def test_leading_zeros(x: int) -> None:
    assert fixed_point.leading_zeros(np.array([x])).tolist() == [32 - x.bit_length()]
