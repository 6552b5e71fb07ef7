"""Integer kernels in NumPy, equal to the bit to TensorFlow Lite Micro's reference kernels."""

from __future__ import annotations

from memfit.kernels.interpreter import Interpreter, kernel_of
from memfit.kernels.kernel import Kernel, Region
from memfit.kernels.table import KERNELS

__all__ = ["KERNELS", "Interpreter", "Kernel", "Region", "kernel_of"]
