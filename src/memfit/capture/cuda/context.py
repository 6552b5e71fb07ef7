"""What stands in for CUDA while a model is traced for it, and is taken away again."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any

import torch

from memfit.capture.cuda.autocast import kernels, left_alone
from memfit.capture.cuda.device import Cuda
from memfit.capture.cuda.routes import routes

if TYPE_CHECKING:
    from memfit.capture.tracer import Placement, Tracer


@contextmanager
def as_cuda(tracer: Tracer, cuda: Cuda, *, autocast: bool = False) -> Iterator[None]:
    """Let dispatch and optimizers choose as they would for CUDA tensors, and autocast where it is on."""
    with ExitStack() as stack:
        library = torch.library.Library("aten", "IMPL")  # type: ignore[no-untyped-call]
        stack.callback(library._destroy)
        for name, kernel in routes(cuda).items():
            library.impl(name, kernel, "AutogradCPU")  # type: ignore[no-untyped-call]
        if autocast:
            for name, kernel in kernels().items():
                library.impl(name, kernel, "AutocastCPU")  # type: ignore[no-untyped-call]
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # PyTorch warns that a kernel is replaced, which is the intent
                for name in left_alone():
                    library.impl(name, torch.library.fallthrough_kernel, "AutocastCPU")  # type: ignore[no-untyped-call]
        stack.enter_context(_foreach_devices())
        stack.enter_context(_host_factories(tracer))
        yield


@contextmanager
def _foreach_devices() -> Iterator[None]:
    """Let optimizers take foreach kernels by default, as they do on CUDA."""
    from torch.optim import optimizer
    from torch.utils import _foreach_utils

    original = _foreach_utils._get_foreach_kernels_supported_devices
    places = (optimizer, _foreach_utils)

    def supported() -> list[str]:
        return [*original(), "cpu"]

    for place in places:
        place._get_foreach_kernels_supported_devices = supported  # type: ignore[attr-defined]
    try:
        yield
    finally:
        for place in places:
            place._get_foreach_kernels_supported_devices = original  # type: ignore[attr-defined]


_FACTORIES = (
    "arange", "empty", "eye", "full", "linspace", "ones", "rand", "randn", "randint", "randperm", "scalar_tensor",
    "tensor", "zeros",
)  # fmt: skip
"""Functions that make a tensor in the host's memory unless they are given a device other than the text "cpu"."""


@contextmanager
def _host_factories(tracer: Tracer) -> Iterator[None]:
    """Note which tensors a model or an optimizer makes without naming a device: those stay in the host's memory."""
    originals: dict[str, Callable[..., Any]] = {name: getattr(torch, name) for name in _FACTORIES}
    for name, original in originals.items():
        setattr(torch, name, _noting(original, tracer.placement))
    try:
        yield
    finally:
        for name, original in originals.items():
            setattr(torch, name, original)


def _noting(original: Callable[..., Any], placement: Placement) -> Callable[..., Any]:
    @functools.wraps(original)
    def factory(*args: Any, **kwargs: Any) -> Any:
        if not isinstance(kwargs.get("device"), str | None):  # a tensor's own device: the GPU that it stands for
            return original(*args, **kwargs)
        outer, placement.on_host = placement.on_host, True
        try:
            return original(*args, **kwargs)
        finally:
            placement.on_host = outer

    return factory
