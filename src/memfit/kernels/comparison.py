"""Comparisons, choices and logic: EQUAL, GREATER …, SELECT_V2, LOGICAL_AND, LOGICAL_OR.

Sources in tflite-micro: micro/kernels/{comparisons,select,logical}.cc, kernels/internal/reference/comparisons.h.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from memfit.kernels.elementwise import elementwise
from memfit.kernels.fixed_point import Ints, quantize_multiplier, scale
from memfit.kernels.kernel import Array, Kernel, Node, nothing, scale_of, zero_of

Relation = Callable[[Array, Array], Array]


@dataclass(frozen=True)
class Compared:
    """What quantized numbers come to before they are compared."""

    zeros: tuple[int, int]
    multipliers: tuple[tuple[int, int], tuple[int, int]]

    def value(self, side: int, x: Array) -> Ints:
        """Bring one side to the common scale, which has eight bits of fraction."""
        return scale((x.astype(np.int64) - self.zeros[side]) << 8, *self.multipliers[side])


def _parameters(node: Node) -> Compared | None:
    first, second = node.input(0), node.input(1)
    if first.type not in ("INT8", "INT16"):
        return None
    return Compared(
        (zero_of(first), zero_of(second)),
        (quantize_multiplier(scale_of(first)), quantize_multiplier(scale_of(second))),
    )


def _comparison(relation: Relation) -> Kernel:
    def compute(parameters: Compared | None, inputs: list[Array]) -> Array:
        if parameters is None:
            return relation(inputs[0], inputs[1])
        return relation(parameters.value(0, inputs[0]), parameters.value(1, inputs[1]))

    return elementwise(_parameters, compute)


def _select(_: None, inputs: list[Array]) -> Array:
    return np.where(inputs[0], inputs[1], inputs[2])


def _logic(relation: Relation) -> Kernel:
    return elementwise(nothing, lambda _, inputs: relation(inputs[0], inputs[1]))


COMPARISONS: dict[str, Kernel] = {
    "EQUAL": _comparison(np.equal),
    "GREATER": _comparison(np.greater),
    "GREATER_EQUAL": _comparison(np.greater_equal),
    "LESS": _comparison(np.less),
    "LESS_EQUAL": _comparison(np.less_equal),
    "NOT_EQUAL": _comparison(np.not_equal),
    "LOGICAL_AND": _logic(np.logical_and),
    "LOGICAL_OR": _logic(np.logical_or),
    "SELECT_V2": elementwise(nothing, _select),
}
