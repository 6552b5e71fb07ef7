"""The integer arithmetic by which TensorFlow Lite Micro stands in for real numbers, on whole arrays.

Arrays of 32-bit values are carried in int64, so that products have room; where C++ keeps 32 bits, `wrap32` cuts them.
`FixedPoint` values of gemmlowp are their raw integers here, with the number of integer bits in a name or an argument:
`m` integer bits leave 31 - m for the fraction.

Sources: tensorflow/lite/kernels/internal/common.{h,cc} and quantization_util.cc of tflite-micro, and gemmlowp's
fixedpoint/fixedpoint.h. The runtime is built with two roundings per multiplication (TFLITE_SINGLE_ROUNDING is off).
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import numpy as np
import numpy.typing as npt

Ints = npt.NDArray[np.int64]
IntsLike = Any
"""An int64 array, or a number."""

INT32_MIN, INT32_MAX = -(1 << 31), (1 << 31) - 1


def wrap32(x: Ints) -> Ints:
    """Keep the lower 32 bits, as a signed number.

    >>> wrap32(np.array([1 << 31, 5])).tolist()
    [-2147483648, 5]
    """
    return x.astype(np.int32).astype(np.int64)


def round_half_away(x: float) -> float:
    """Round as C's `round`: halves away from zero.

    >>> round_half_away(2.5), round_half_away(-2.5), round_half_away(0.49999999999999994)
    (3.0, -3.0, 0.0)
    """
    whole = math.floor(abs(x))
    return math.copysign(whole + (abs(x) - whole >= 0.5), x)


def quantize_multiplier(real: float) -> tuple[int, int]:
    """Write a real factor as `multiplier · 2^(shift - 31)` with a 31-bit multiplier.

    Source: QuantizeMultiplier, quantization_util.cc.

    >>> quantize_multiplier(0.5)
    (1073741824, 0)
    >>> quantize_multiplier(3.0)
    (1610612736, 2)
    """
    if real == 0:
        return 0, 0
    fraction, shift = math.frexp(real)
    multiplier = int(round_half_away(fraction * (1 << 31)))
    if multiplier == 1 << 31:
        multiplier //= 2
        shift += 1
    return (0, 0) if shift < -31 else (multiplier, shift)


def quantize_multipliers(reals: Iterable[float]) -> tuple[Ints, Ints]:
    """Give the multipliers and the shifts of several real factors."""
    pairs = [quantize_multiplier(real) for real in reals]
    return np.array([m for m, _ in pairs], np.int64), np.array([s for _, s in pairs], np.int64)


def high_mul(a: IntsLike, b: IntsLike) -> Ints:
    """Multiply as numbers in [-1, 1) with 31 bits of fraction, rounded to nearest: `a·b / 2^31`.

    Rounding half up is what the source's sign-dependent nudge and truncating division come to. The one product that
    does not fit, (-1)·(-1), becomes the largest number.

    Source: SaturatingRoundingDoublingHighMul, fixedpoint.h.

    >>> high_mul(np.array([3 << 30, -(3 << 29)]), 1).tolist()
    [2, -1]
    """
    product = (np.asarray(a, np.int64) * b + (1 << 30)) >> 31
    made: Ints = np.minimum(product, INT32_MAX)
    return made


def divide_by_power(x: IntsLike, exponent: IntsLike) -> Ints:
    """Divide by `2^exponent`, rounded to nearest, halves away from zero.

    Source: RoundingDivideByPOT, fixedpoint.h.

    >>> divide_by_power(np.array([5, 6, -5, -6, 7]), np.array([1, 2, 1, 2, 0])).tolist()
    [3, 2, -3, -2, 7]
    """
    half = (np.int64(1) << np.asarray(exponent, np.int64)) >> 1
    x = np.asarray(x, np.int64)
    # Halves of negative numbers must not be rounded up; without a shift nothing is rounded.
    made: Ints = (x + half - ((x < 0) & (half > 0))) >> exponent
    return made


def scale(x: Ints, multiplier: IntsLike, shift: IntsLike) -> Ints:
    """Multiply 32-bit integers by `multiplier · 2^(shift - 31)`, rounding twice.

    Source: MultiplyByQuantizedMultiplier(int32_t, …), common.cc.

    Args:
        x: 32-bit values, in int64, any shape.
        multiplier: from `quantize_multiplier`; a number, or one per index of the last dimension.
        shift: likewise.

    Returns:
        32-bit values, of the shape of `x`.

    >>> scale(np.array([100, -101, 7]), *quantize_multiplier(0.5)).tolist()
    [50, -50, 4]
    """
    left, right = np.maximum(shift, 0), np.maximum(np.negative(shift), 0)
    if np.any(left):
        x = wrap32(x << left)
    made: Ints = x * multiplier
    made += 1 << 30
    made >>= 31
    if not np.any(right):
        return made
    # As divide_by_power, with fewer passes over the array: this is where most of the time goes.
    half = (np.int64(1) << np.asarray(right, np.int64)) >> 1
    negative = made >> 63
    if not np.all(right):
        negative &= -(half > 0).astype(np.int64)
    made += negative
    made += half
    made >>= right
    return made


def scale_wide(x: Ints, multiplier: IntsLike, shift: IntsLike) -> Ints:
    """Multiply 48-bit integers likewise, with a 16-bit multiplier and one rounding.

    Source: MultiplyByQuantizedMultiplier(int64_t, …), common.cc.

    >>> scale_wide(np.array([1 << 40, -3]), *quantize_multiplier(0.5)).tolist()
    [0, -1]
    """
    whole = np.asarray(multiplier, np.int64)
    reduced = np.where(whole < 0x7FFF0000, (whole + (1 << 15)) >> 16, 0x7FFF)
    total = 15 - np.asarray(shift, np.int64)
    return wrap32((x * reduced + (np.int64(1) << (total - 1))) >> total)


def scale_up(x: Ints, multiplier: IntsLike, shift: IntsLike) -> Ints:
    """Multiply by a factor above one, rounding once: MultiplyByQuantizedMultiplierGreaterThanOne, common.h.

    >>> scale_up(np.array([-3]), *quantize_multiplier(1.5)).tolist()
    [-4]
    """
    return high_mul(wrap32(x << np.asarray(shift, np.int64)), multiplier)


# -- fixed-point functions of gemmlowp --------------------------------------------------------------------------------

_EXP_MINUS_EIGHTH = 1895147668
_THIRD = 715827883
_EXP_OF_POWERS = (1672461947, 1302514674, 790015084, 290630308, 39332535, 720401, 242)
"""exp(-2^k) for k from -2 to 4."""
_48_17, _NEGATIVE_32_17 = 1515870810, -1010580540
"""48/17 and -32/17 with two integer bits: the first guess of Newton's division."""


def multiply_by_power(x: IntsLike, exponent: int) -> Ints:
    """Multiply by `2^exponent`, saturating for a positive one, rounding for a negative one.

    Source: SaturatingRoundingMultiplyByPOT, fixedpoint.h.

    >>> multiply_by_power(np.array([3, 1 << 30]), 1).tolist(), multiply_by_power(np.array([3]), -1).tolist()
    ([6, 2147483647], [2])
    """
    x = np.asarray(x, np.int64)
    if exponent <= 0:
        return divide_by_power(x, -exponent) if exponent else x
    threshold = (1 << (31 - exponent)) - 1
    made = np.where(x > threshold, INT32_MAX, wrap32(x << exponent))
    return np.where(x < -threshold, INT32_MIN, made)


def exp_negative(a: Ints, integer_bits: int) -> Ints:
    """Give exp(a) for a ≤ 0, with no integer bits; `a` has `integer_bits`.

    Source: exp_on_negative_values, fixedpoint.h.

    >>> (exp_negative(np.array([0, -(1 << 26)]), 5) / 2**31).round(6).tolist()
    [1.0, 0.36788]
    """
    fraction = 31 - integer_bits
    quarter = 1 << (fraction - 2)
    within = (a & (quarter - 1)) - quarter
    x = multiply_by_power(within, integer_bits) + (1 << 28)  # expanded around -1/8
    x2 = high_mul(x, x)
    x3, x4 = high_mul(x2, x), high_mul(x2, x2)
    rest = divide_by_power(high_mul(divide_by_power(x4, 2) + x3, _THIRD) + x2, 1)
    made = _EXP_MINUS_EIGHTH + high_mul(_EXP_MINUS_EIGHTH, x + rest)
    remainder = within - a
    for exponent, factor in enumerate(_EXP_OF_POWERS, -2):
        if integer_bits > exponent:
            made = np.where(remainder & (1 << (fraction + exponent)), high_mul(made, factor), made)
    if integer_bits > 5:
        made = np.where(a < -(1 << (36 - integer_bits)), 0, made)
    return np.where(a == 0, INT32_MAX, made)


def _reciprocal_of_half(a: Ints) -> Ints:
    """Give 2/(1 + a) for a in [0, 1), with two integer bits: three steps of Newton's division."""
    total = a + INT32_MAX
    half = (total + np.where(total >= 0, 1, -1)) // 2  # RoundingHalfSum; the sum is never negative here
    x = _48_17 + high_mul(half, _NEGATIVE_32_17)
    for _ in range(3):
        x = x + multiply_by_power(high_mul(x, (1 << 29) - high_mul(half, x)), 2)
    return x


def reciprocal_of_one_plus(a: Ints) -> Ints:
    """Give 1/(1 + a) for a in [0, 1), no integer bits: one_over_one_plus_x_for_x_in_0_1, fixedpoint.h.

    >>> (reciprocal_of_one_plus(np.array([0, 1 << 30])) / 2**31).round(6).tolist()
    [1.0, 0.666667]
    """
    return multiply_by_power(_reciprocal_of_half(a), 1)


def logistic(a: Ints, integer_bits: int) -> Ints:
    """Give 1/(1 + exp(-a)), with no integer bits; `a` has `integer_bits`. Source: logistic, fixedpoint.h.

    >>> (logistic(np.array([0, 1 << 27, -(1 << 27)]), 4) / 2**31).round(6).tolist()
    [0.5, 0.731059, 0.268941]
    """
    positive = reciprocal_of_one_plus(exp_negative(-np.abs(a), integer_bits))
    made = np.where(a > 0, positive, INT32_MAX - positive)
    return np.where(a == 0, 1 << 30, made)


def tanh(a: Ints, integer_bits: int) -> Ints:
    """Give tanh(a), with no integer bits; `a` has `integer_bits`. Source: tanh, fixedpoint.h.

    >>> (tanh(np.array([0, 1 << 27, -(1 << 27)]), 4) / 2**31).round(6).tolist()
    [0.0, 0.761594, -0.761594]
    """
    exponential = exp_negative(-np.abs(a), integer_bits + 1)  # exp(-2|a|): the same bits, one more of them integer
    made = multiply_by_power(_reciprocal_of_half(exponential) - (1 << 29), 2)
    return np.where(a == 0, 0, np.where(a < 0, -made, made))


def leading_zeros(x: Ints) -> Ints:
    """Count the zero bits before the first one in 32 bits.

    >>> leading_zeros(np.array([1, 1 << 31, 0, 255])).tolist()
    [31, 0, 32, 24]
    """
    return 32 - np.frexp(np.asarray(x, np.float64))[1].astype(np.int64)


def reciprocal(x: Ints, integer_bits: int) -> tuple[Ints, Ints]:
    """Give 1/x for positive `x` as a number in (0.5, 1] without integer bits, and the bits that it must be shifted by.

    Source: GetReciprocal, common.h.
    """
    zeros = leading_zeros(x)
    rest = wrap32((x << zeros) - (1 << 31))
    return reciprocal_of_one_plus(rest), integer_bits - zeros


def multiplier_of(real: float) -> tuple[int, int]:
    """Write a real factor as `quantize_multiplier` does, but leave a multiplier of 2^31 as it is, as C++ does not care.

    >>> multiplier_of(8.0)
    (1073741824, 4)
    """
    fraction, shift = math.frexp(real)
    return int(round_half_away(fraction * (1 << 31))), shift


def inverse_square_root(x: int) -> tuple[int, int]:
    """Give 1/√x as a multiplier and a shift, for an integer x ≥ 0.

    Source: GetInvSqrtQuantizedMultiplierExp, common.h: five steps of Newton's method from 1, three integer bits.

    >>> multiplier, shift = inverse_square_root(16)
    >>> round(multiplier * 2.0**shift / 2**31, 6)
    0.25
    """
    if x <= 1:
        return INT32_MAX, 0
    shift = 11
    while x >= 1 << 29:
        x //= 4
        shift += 1
    pairs = (32 - x.bit_length() - 1) // 2 - 1
    shift -= pairs
    value = np.array(x << (2 * pairs), np.int64) >> 1
    half = divide_by_power(value, 1)
    guess = np.array(1 << 28, np.int64)
    for _ in range(5):
        cube = multiply_by_power(high_mul(high_mul(guess, guess), guess), 6)
        guess = multiply_by_power(high_mul((1 << 28) + (1 << 27), guess) - high_mul(half, cube), 3)
    made = int(high_mul(guess, 1518500250))  # √2/2
    if shift < 0:
        made, shift = made << -shift, 0
    return made, -shift


def half_sum(a: Ints, b: int) -> Ints:
    """Give (a + b)/2, halves away from zero: RoundingHalfSum, fixedpoint.h.

    >>> half_sum(np.array([2, -4]), 1).tolist()
    [2, -2]
    """
    total = a + b
    made: Ints = np.sign(total) * ((np.abs(total) + 1) // 2)
    return made


def logarithm(x: Ints, input_bits: int, output_bits: int) -> Ints:
    """Give the natural logarithm of x ≥ 1; `x` and the result have that many integer bits.

    Source: log_x_for_x_greater_than_or_equal_to_1_impl, common.h.

    >>> (logarithm(np.array([1 << 19, 3 << 19]), 12, 5) / 2**26).round(5).tolist()
    [0.0, 1.09861]
    """
    accumulator = output_bits + 1
    log_2, root_half, fourth_root_half = 1488522236, 1518500250, 1805811301
    n, d, i, f = 117049297, 127690142, 1057819769, 638450708
    quarter = divide_by_power(1 << 29, accumulator)
    zeros = leading_zeros(x)
    first = _saturating_shift(high_mul(_saturating_shift(x, zeros - 1), root_half), 1)
    first_power = _clip32(_saturating_shift(input_bits - zeros, 31 - accumulator) + quarter)
    room = leading_zeros(high_mul(x, root_half)) - 1
    second = _saturating_shift(x, room)
    second_power = _clip32(_saturating_shift(input_bits - room, 31 - accumulator) - quarter)
    r, power = np.minimum(first, second), np.maximum(first_power, second_power)
    p = half_sum(r, fourth_root_half)
    q = 2 * (r - fourth_root_half)
    square = high_mul(q, q)
    above = high_mul(q, r) + high_mul(high_mul(q, square), n)
    below = high_mul(p, i + q + high_mul(d, square)) + high_mul(f, q)
    fraction = high_mul(divide_by_power(above, accumulator), reciprocal_of_one_plus(below))
    return multiply_by_power(high_mul(power, log_2) + fraction, 1)


def _clip32(x: Ints) -> Ints:
    return np.clip(x, INT32_MIN, INT32_MAX)


def _saturating_shift(x: Ints, amounts: IntsLike) -> Ints:
    """Shift left, saturating: SaturatingRoundingMultiplyByPOTParam, common.h; an amount per element."""
    threshold = (np.int64(1) << (31 - np.asarray(amounts, np.int64))) - 1
    made = np.where(x > threshold, INT32_MAX, wrap32(x << amounts))
    made = np.where(x < -threshold, INT32_MIN, made)
    return np.where(np.asarray(amounts) == 0, x, made)
