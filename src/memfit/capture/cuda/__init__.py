"""Tracing as on a GPU, on a machine without one: the operations that CUDA would run, on phantom tensors.

Dispatch is the CPU's, except where PyTorch itself asks for the device: there, for the time of a capture, kernels are
registered with the dispatcher that decompose as CUDA's do (attention, batch norm, dropout, recurrent layers, autocast),
and optimizers are told that the device has foreach kernels.
"""

from memfit.capture.cuda.context import as_cuda
from memfit.capture.cuda.device import Cuda

__all__ = ["Cuda", "as_cuda"]
