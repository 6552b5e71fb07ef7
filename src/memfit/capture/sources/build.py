"""Build a model from its constructor without allocating or initialising a weight.

While a constructor runs, uninitialised and random tensors become phantoms, what writes to a phantom is skipped, and
what reads one is answered by shape. Everything else runs for real while it is small: constructors compute widths and
position indices on tensors, and need the values.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from contextvars import ContextVar
from itertools import pairwise
from types import FrameType
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from memfit.capture.phantom import dense, is_phantom, like, numel, phantom, run_on_meta
from memfit.capture.recording import tensors_in
from memfit.capture.worst_case import LIBRARIES, guarded_reads, model_frame
from memfit.errors import DataDependentError
from memfit.units import format_shape

REAL_LIMIT = 4 << 20
"""Elements up to which a tensor that a constructor computes is really computed."""

aten = torch.ops.aten

Handler = Callable[[Any, tuple[Any, ...], dict[str, Any]], Any]


class BuildMode(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Answers a constructor's operations; use it as a context around the constructor."""

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # True imports torch._dynamo at the first operation: more than a second, for nothing

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._handlers: dict[Any, Handler] = {}
        self._guards: list[ExitStack] = []

    def __enter__(self) -> BuildMode:
        guard = ExitStack()
        guard.enter_context(guarded_reads())
        self._guards.append(guard)
        super().__enter__()  # type: ignore[no-untyped-call]
        return self

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)  # type: ignore[no-untyped-call]
        self._guards.pop().close()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Answer one operation."""
        handler = self._handlers.get(func)
        if handler is None:
            handler = self._handlers[func] = _handler_of(func)
        return handler(func, args, kwargs or {})


def build(constructor: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """Call a constructor with phantom weights.

    >>> model = build(torch.nn.Linear, 8192, 8192)
    >>> tuple(model.weight.shape), is_phantom(model.weight)
    ((8192, 8192), True)
    """
    with BuildMode():
        return constructor(*args, **kwargs)


_REAL: ContextVar[bool] = ContextVar("real weights", default=False)


@contextmanager
def real_weights() -> Iterator[None]:
    """While it lasts, sources build their models truly: weights are allocated, and initialised as each model does.

    The same numbers each time, and none that the caller's generator would have drawn.
    """
    token = _REAL.set(True)
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            yield
    finally:
        _REAL.reset(token)


def constructing() -> AbstractContextManager[Any]:
    """Give the context in which a source runs a constructor: phantom weights, unless real ones were asked for."""
    return nullcontext() if _REAL.get() else BuildMode()


def _handler_of(func: Any) -> Handler:
    """Choose how to answer an operation, from its name and schema; made once per operation and build."""
    schema = func._schema
    name = schema.name.partition("::")[2]
    if name in _FRESH:
        return _FRESH[name]
    if name in _NEEDS_VALUES:
        return _value
    if name in _NATIVE or getattr(func, "is_view", False):
        return _native
    if schema.is_mutable:
        return _mutation
    return _result


def _empty(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    device = kwargs.get("device")
    if device is not None and device.type != "cpu":
        return func(*args, **kwargs)
    layout = kwargs.get("memory_format")
    if layout is not None and layout is not torch.contiguous_format:
        return run_on_meta(func, args, {**kwargs, "device": torch.device("meta")})
    return dense(tuple(args[0]), kwargs.get("dtype") or torch.get_default_dtype())


def _shaped(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Answer an uninitialised or random tensor by its meta kernel."""
    device = kwargs.get("device")
    if device is not None and device.type != "cpu":
        return func(*args, **kwargs)
    if any(t.device.type != "cpu" for t in tensors_in(args)):
        return func(*args, **kwargs)
    return run_on_meta(func, args, {**kwargs, "device": torch.device("meta")} if _takes_device(func) else kwargs)


def _takes_device(func: Any) -> bool:
    return any(a.name == "device" for a in func._schema.arguments)


def _copy(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Answer `clone` and `empty_like`: a phantom's copy is a phantom."""
    source = args[0]
    if not _is_unknown(source) and func is aten.clone.default and source.numel() <= REAL_LIMIT:
        return func(*args, **kwargs)
    layout = kwargs.get("memory_format")
    if (
        source.device.type != "cpu"
        or kwargs.keys() - {"memory_format", "pin_memory"}
        or (layout is not None and layout is not torch.preserve_format)
    ):
        return _shaped(func, args, kwargs)
    return like(source)


_FRESH: dict[str, Handler] = {
    "empty": _empty,
    "clone": _copy,
    "empty_like": _copy,
    **dict.fromkeys(
        (
            "empty_strided", "new_empty", "new_empty_strided", "empty_permuted", "rand", "randn", "rand_like",
            "randn_like", "normal", "bernoulli", "multinomial",
        ),
        _shaped,
    ),
}  # fmt: skip
_NATIVE = {
    "_unsafe_view", "_reshape_alias", "detach", "alias", "lift", "lift_fresh", "t_", "transpose_", "squeeze_",
    "unsqueeze_", "swapaxes_", "swapdims_", "as_strided_", "detach_",
}  # fmt: skip
"""Views, those made in place included: they touch no bytes."""

_NEEDS_VALUES = {
    "_local_scalar_dense",
    "equal",
    "is_nonzero",
    "allclose",
    "nonzero",
    "_unique2",
    "unique_dim",
    "unique_consecutive",
    "masked_select",
}


def _native(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    return func(*args, **kwargs)


def _value(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Answer an operation that needs values: truly, or for PyTorch's and libraries' initialisers with False."""
    unknown = next((t for t in tensors_in(args) if _is_unknown(t)), None)
    if unknown is None:
        return func(*args, **kwargs)
    frame = model_frame()
    if frame is None or frame.package in LIBRARIES or _is_pytorch_asking():
        if func is aten.allclose.default:
            return True
        if func is aten._local_scalar_dense.default and unknown.dtype is torch.bool:
            return False  # "is any value out of range?": nothing is left to initialise
    raise DataDependentError(
        "the model's constructor asks for the values of a weight, and weights are not allocated",
        where=f"{frame.filename}:{frame.lineno}: {frame.line}" if frame else None,
        received=f"{func} of a {format_shape(tuple(unknown.shape))} tensor that is uninitialised or random",
        todo="build the module yourself and pass it to memfit from Python",
    )


def _is_pytorch_asking() -> bool:
    frame: FrameType | None = sys._getframe(2)
    while frame is not None and frame.f_globals.get("__name__") in (__name__, "torch.utils._python_dispatch"):
        frame = frame.f_back
    return frame is not None and str(frame.f_globals.get("__name__")).startswith("torch.nn.")


_RANDOM_WRITES = {
    f"aten::{name}_"
    for name in ("normal", "uniform", "random", "bernoulli", "exponential", "geometric", "cauchy", "log_normal")
}


def _mutation(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Skip what writes to a phantom; what writes unknown values to a real tensor makes it a phantom."""
    target = args[0] if args and isinstance(args[0], Tensor) else kwargs.get("out")
    if not isinstance(target, Tensor) or target.device.type != "cpu":
        return func(*args, **kwargs)
    if is_phantom(target):
        return target if len(func._schema.returns) == 1 else run_on_meta(func, args, kwargs)
    if func._schema.name in _RANDOM_WRITES or any(_is_unknown(t) for t in tensors_in((args, kwargs))):
        elements = target.untyped_storage().nbytes() // target.element_size()
        if elements == target.numel():
            shape, strides = tuple(target.shape), target.stride()
            target.set_(phantom(shape, strides, target.dtype, elements=elements).untyped_storage(), 0, shape, strides)
        return target
    return func(*args, **kwargs)


def _result(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Compute what is small and known; answer the rest by shape."""
    tensors = list(tensors_in((args, kwargs)))
    unknown = False
    for tensor in tensors:
        if tensor.device.type != "cpu":
            return func(*args, **kwargs)
        unknown = unknown or is_phantom(tensor)
    if unknown:
        if func in _SAME_SHAPE_MASKS and args[0].dim() and _same_shape(args):
            return dense(tuple(args[0].shape), torch.bool)
        return dense((), torch.bool) if func is aten.any.default else run_on_meta(func, args, kwargs)
    if tensors and func._schema.name not in _GROWING and _largest_result(tensors) <= REAL_LIMIT:
        return func(*args, **kwargs)
    device = kwargs.get("device")
    if device is not None and device.type != "cpu":
        return func(*args, **kwargs)
    if func in _RANGES and _RANGES[func](args) <= REAL_LIMIT:
        return func(*args, **kwargs)
    if func in _FILLED:
        shape = tuple(args[0])
        small = numel(shape) <= REAL_LIMIT
        return func(*args, **kwargs) if small else dense(shape, kwargs.get("dtype") or torch.get_default_dtype())
    try:
        answer = run_on_meta(func, args, kwargs if tensors else {**kwargs, "device": torch.device("meta")})
    except (NotImplementedError, TypeError, RuntimeError):
        return func(*args, **kwargs)  # no meta kernel, or not one for these arguments: the real one says what is wrong
    return answer if sum(t.numel() for t in tensors_in((answer,))) > REAL_LIMIT else func(*args, **kwargs)


_SAME_SHAPE_MASKS = {aten.lt.Scalar, aten.gt.Scalar, aten.le.Scalar, aten.ge.Scalar, aten.bitwise_or.Tensor}
_RANGES: dict[Any, Callable[[tuple[Any, ...]], float]] = {
    aten.arange.default: lambda args: abs(args[0]),
    aten.arange.start: lambda args: abs(args[1] - args[0]),
    aten.arange.start_step: lambda args: (
        abs((args[1] - args[0]) / args[2]) if len(args) > 2 else abs(args[1] - args[0])
    ),
    aten.linspace.default: lambda args: args[2],
}
"""Elements of a range, by its arguments."""

_FILLED = {aten.zeros.default, aten.ones.default}
_GROWING = {"aten::repeat", "aten::constant_pad_nd", "aten::repeat_interleave", "aten::new_full", "aten::new_zeros"}


def _largest_result(tensors: list[Tensor]) -> int:
    """Elements that an operation on these tensors can make, one that grows its input left out."""
    if len(tensors) == 1:
        return tensors[0].numel()
    total = sum(t.numel() for t in tensors)
    return max(total, *(a.numel() * b.numel() for a, b in pairwise(tensors) if a.shape != b.shape), 0)


def _same_shape(args: tuple[Any, ...]) -> bool:
    return all(not isinstance(a, Tensor) or (a.shape == args[0].shape and a.dtype is not torch.uint8) for a in args)


def _is_unknown(tensor: Tensor) -> bool:
    return tensor.device.type == "meta" or (tensor.device.type == "cpu" and is_phantom(tensor))
