"""torchvision's own operators where its compiled library cannot load: schemas, shapes and gradients, no kernels.

torchvision's binary expects the CUDA libraries of the PyTorch it was built with. On a CPU-only PyTorch it does not
load, and `import torchvision` ends with `operator torchvision::nms does not exist`. Its Python side works once the
operators' schemas exist; a capture needs their shapes besides, and a training capture their gradients.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
import types
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from memfit.capture.dynamo import StandIn

_SIZES = "SymInt batch_size, SymInt channels, SymInt height, SymInt width"
_POOLED = "float spatial_scale, SymInt pooled_height, SymInt pooled_width"
_DEFORM = (
    "Tensor input, Tensor weight, Tensor offset, Tensor mask, Tensor bias, SymInt stride_h, SymInt stride_w, "
    "SymInt pad_h, SymInt pad_w, SymInt dilation_h, SymInt dilation_w, SymInt groups, SymInt offset_groups, "
    "bool use_mask"
)
SCHEMAS: dict[str, str] = {
    "nms": "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms": "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "roi_align": f"(Tensor input, Tensor rois, {_POOLED}, int sampling_ratio, bool aligned) -> Tensor",
    "qroi_align": (
        "(Tensor input, Tensor rois, float input_scale, int input_zero_point, float rois_scale, int rois_zero_point, "
        f"{_POOLED}, int sampling_ratio, bool aligned) -> Tensor"
    ),
    "roi_pool": f"(Tensor input, Tensor rois, {_POOLED}) -> (Tensor, Tensor)",
    "ps_roi_align": f"(Tensor input, Tensor rois, {_POOLED}, int sampling_ratio) -> (Tensor, Tensor)",
    "ps_roi_pool": f"(Tensor input, Tensor rois, {_POOLED}) -> (Tensor, Tensor)",
    "deform_conv2d": f"({_DEFORM}) -> Tensor",
    "_roi_align_backward": (
        f"(Tensor grad, Tensor rois, {_POOLED}, {_SIZES}, int sampling_ratio, bool aligned) -> Tensor"
    ),
    "_roi_pool_backward": f"(Tensor grad, Tensor rois, Tensor argmax, {_POOLED}, {_SIZES}) -> Tensor",
    "_ps_roi_align_backward": (
        f"(Tensor grad, Tensor rois, Tensor channel_mapping, {_POOLED}, int sampling_ratio, {_SIZES}) -> Tensor"
    ),
    "_ps_roi_pool_backward": f"(Tensor grad, Tensor rois, Tensor channel_mapping, {_POOLED}, {_SIZES}) -> Tensor",
    "_deform_conv2d_backward": f"(Tensor grad, {_DEFORM}) -> (Tensor, Tensor, Tensor, Tensor, Tensor)",
}
"""The thirteen operators as torchvision 0.28 registers them (`TORCH_LIBRARY(torchvision, m)` in its `csrc/ops`)."""


def define_missing_torchvision_schemas() -> bool:
    """Define the operators of a torchvision whose library does not load; True where it had to.

    Call it before torchvision, timm or transformers is imported; once they are defined, it does nothing.
    """
    if hasattr(torch.ops.torchvision, "nms") or _library_loads():
        return False
    library: Any = torch.library.Library("torchvision", "FRAGMENT")  # type: ignore[no-untyped-call]
    for name, signature in SCHEMAS.items():
        if hasattr(torch.ops.torchvision, name):
            continue
        library.define(name + signature)
        if name in _SHAPES:
            library.impl(name, _SHAPES[name], "Meta")
        if f"_{name}_backward" in SCHEMAS:
            library.impl(name, _with_gradient(name), "Autograd")
    _KEPT.append(library)
    return True


_KEPT: list[Any] = []
"""A library unregisters what it defined when it is collected."""


def _library_loads() -> bool:
    """Try what torchvision will try when it is imported; True also where there is no torchvision at all."""
    spec = importlib.util.find_spec("torchvision")
    if spec is None or not spec.submodule_search_locations:
        return True
    for folder in spec.submodule_search_locations:
        for library in sorted(Path(folder).glob("_C*")):
            if library.suffix in (".so", ".pyd", ".dll", ".dylib"):
                try:
                    torch.ops.load_library(str(library))  # type: ignore[no-untyped-call]
                except OSError:
                    return False
                return True
    return False


def import_torchvision() -> Any:
    """Import torchvision, with its operators defined and without torch._dynamo, which costs it a second.

    torchvision imports torch._dynamo for the sake of one function that only its own roi_align calls; that function
    is imported when it is called instead.
    """
    define_missing_torchvision_schemas()
    present = sys.modules.get("torch._dynamo")
    if "torchvision" in sys.modules or not (present is None or isinstance(present, StandIn)):
        return importlib.import_module("torchvision")
    package, utils = types.ModuleType("torch._dynamo"), types.ModuleType("torch._dynamo.utils")
    package.__path__ = []
    utils.is_compile_supported = _is_compile_supported  # type: ignore[attr-defined]
    before = set(sys.modules)
    sys.modules |= {"torch._dynamo": package, "torch._dynamo.utils": utils}
    try:
        module = importlib.import_module("torchvision")
    except (ImportError, AttributeError):
        module = None
    finally:
        if sys.modules.get("torch._dynamo.utils") is utils:
            del sys.modules["torch._dynamo.utils"], sys.modules["torch._dynamo"]
            if present is not None:
                sys.modules["torch._dynamo"] = present
    if module is None:  # another torchvision, which needs more of torch._dynamo: import it as it is
        for name in set(sys.modules) - before:
            if name.partition(".")[0] == "torchvision":
                del sys.modules[name]
        module = importlib.import_module("torchvision")
    return module


def _is_compile_supported(device_type: Any) -> Any:
    from torch._dynamo.utils import is_compile_supported

    return is_compile_supported(device_type)


@contextmanager
def operators_present() -> Iterator[None]:
    """Let torchvision believe during a capture that its library loaded, so that it calls its operators."""
    extension = sys.modules.get("torchvision.extension")
    if extension is None or extension._has_ops():
        yield
        return
    patched = [
        module
        for name, module in list(sys.modules.items())
        if name.startswith("torchvision.") and vars(module).get("_has_ops") is extension._has_ops
    ]
    original = extension._has_ops
    for module in patched:
        module._has_ops = _yes  # type: ignore[attr-defined]
    try:
        yield
    finally:
        for module in patched:
            module._has_ops = original  # type: ignore[attr-defined]


def _yes() -> bool:
    return True


# -- shapes -------------------------------------------------------------------------------------------------------


def _roi_shape(input: Tensor, rois: Tensor, *rest: Any) -> Tensor:
    height, width = rest[-4:-2]
    return input.new_empty((rois.shape[0], input.shape[1], height, width))


def _roi_pool_shape(input: Tensor, rois: Tensor, _scale: float, height: int, width: int) -> tuple[Tensor, Tensor]:
    shape = (rois.shape[0], input.shape[1], height, width)
    return input.new_empty(shape), input.new_empty(shape, dtype=torch.int32)


def _ps_roi_shape(input: Tensor, rois: Tensor, _scale: float, *sizes: int) -> tuple[Tensor, Tensor]:
    height, width = sizes[:2]
    shape = (rois.shape[0], input.shape[1] // (height * width), height, width)
    return input.new_empty(shape), input.new_empty(shape, dtype=torch.int32)


def _deform_shape(input: Tensor, weight: Tensor, offset: Tensor, *_rest: Any) -> Tensor:
    return input.new_empty((input.shape[0], weight.shape[0], *offset.shape[-2:]))


def _deform_backward_shape(_grad: Tensor, *rest: Any) -> tuple[Tensor, ...]:
    return tuple(torch.empty_like(t) for t in rest[:5])


def _backward_shape(name: str) -> Any:
    """Shape of a region's gradient: the sizes that the schema carries."""
    first = _argument_names(name).index("batch_size")

    def shape(grad: Tensor, *rest: Any) -> Tensor:
        return grad.new_empty((grad, *rest)[first : first + 4])

    return shape


def _argument_names(name: str) -> list[str]:
    return [part.split()[-1] for part in SCHEMAS[name].partition(" -> ")[0].strip("()").split(", ")]


_SHAPES: dict[str, Any] = {
    "roi_align": _roi_shape,
    "qroi_align": _roi_shape,
    "roi_pool": _roi_pool_shape,
    "ps_roi_align": _ps_roi_shape,
    "ps_roi_pool": _ps_roi_shape,
    "deform_conv2d": _deform_shape,
    "_deform_conv2d_backward": _deform_backward_shape,
    **{
        name: _backward_shape(name)
        for name in ("_roi_align_backward", "_roi_pool_backward", "_ps_roi_align_backward", "_ps_roi_pool_backward")
    },
}


# -- gradients ----------------------------------------------------------------------------------------------------


def _with_gradient(name: str) -> Any:
    """Make an operator's autograd kernel: forward below autograd, backward by the operator `_NAME_backward`."""
    forward_names, backward_names = _argument_names(name), _argument_names(f"_{name}_backward")
    tensors = SCHEMAS[name].partition(" -> ")[0].count("Tensor ")
    kept = [n for n in forward_names[:tensors] if n in backward_names]

    class Operator(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, *args: Any) -> Any:
            with torch._C._AutoDispatchBelowAutograd():
                outputs = getattr(torch.ops.torchvision, name).default(*args)
            values = dict(zip(forward_names, args, strict=True))
            extra: tuple[Tensor, ...] = ()
            if isinstance(outputs, tuple):
                ctx.mark_non_differentiable(outputs[1])
                extra = (outputs[1],)
            ctx.save_for_backward(*(values[n] for n in kept), *extra)
            ctx.numbers = {n: v for n, v in values.items() if not isinstance(v, Tensor)}
            ctx.sizes = tuple(values["input"].shape)
            return outputs

        @staticmethod
        def backward(ctx: Any, *gradients: Any) -> Any:
            values = dict(ctx.numbers)
            values |= zip(("batch_size", "channels", "height", "width"), ctx.sizes, strict=True)
            values["grad"] = gradients[0]
            values |= zip(kept, ctx.saved_tensors, strict=False)
            if len(ctx.saved_tensors) > len(kept):
                values["argmax"] = values["channel_mapping"] = ctx.saved_tensors[-1]
            result = getattr(torch.ops.torchvision, f"_{name}_backward").default(*(values[n] for n in backward_names))
            results = result if isinstance(result, tuple) else (result,)
            return (*results, *(None,) * (len(forward_names) - len(results)))

    def kernel(*args: Any) -> Any:
        return Operator.apply(*args)  # type: ignore[no-untyped-call]

    return kernel
