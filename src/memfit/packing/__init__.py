"""The arena problem: buffers with lifetimes, planners that place them, and an independent validator."""

from memfit.packing.buffers import Alias, Buffer, PackingError, Span
from memfit.packing.planners import PLANNERS, checked, pack
from memfit.packing.problem import Packing, Problem
from memfit.packing.validator import Violation, violations

__all__ = [
    "PLANNERS",
    "Alias",
    "Buffer",
    "Packing",
    "PackingError",
    "Problem",
    "Span",
    "Violation",
    "checked",
    "pack",
    "violations",
]
