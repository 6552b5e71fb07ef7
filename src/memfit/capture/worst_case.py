"""What a capture answers where sizes or values depend on data: a stated worst case, or an error that names the line.

A capture does no arithmetic, so it cannot know how many boxes survive non-maximum suppression, or whether a mask is
all true. Sizes take their largest possible value, and the graph's notes say so. Values asked by torchvision, timm or
transformers themselves take the answer that continues (False, 1); a user's own model that branches on values is an
error, because no stated answer would be the true one.
"""

from __future__ import annotations

import linecache
import os
import sys
import sysconfig
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType
from typing import Any, NamedTuple

import torch
from torch import Tensor

from memfit.capture.phantom import dense, is_phantom, like, numel, run_on_meta
from memfit.errors import DataDependentError
from memfit.units import format_shape

aten = torch.ops.aten

LIBRARIES = frozenset({"torchvision", "timm", "transformers"})
"""Packages whose questions about values get the answer that continues."""

_TODO = (
    "let the model decide on shapes or Python values instead, or keep the choice in tensors (torch.where); "
    "a capture computes no values"
)
_BOUND = "its size depends on data and is taken at its largest, so figures are upper bounds"


class ModelFrame(NamedTuple):
    """The line of Python that asked: the innermost one outside PyTorch, memfit and the standard library."""

    filename: str
    lineno: int
    line: str
    package: str
    """Top-level package of the code, such as torchvision; the module's own name for a user's file."""
    module: str
    function: str
    local_names: dict[str, Any]


_HERE = str(Path(__file__).resolve().parent.parent) + os.sep
_TORCH = str(Path(torch.__file__).resolve().parent) + os.sep
_STDLIB = sysconfig.get_paths()["stdlib"] + os.sep
_PACKAGES = tuple(f"{os.sep}{name}{os.sep}" for name in ("site-packages", "dist-packages"))


def model_frame() -> ModelFrame | None:
    """Find the line of the model's source that is running, or None outside any model's code."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        filename = frame.f_code.co_filename
        module = str(frame.f_globals.get("__name__", ""))
        if not _is_machinery(filename, module):
            line = linecache.getline(filename, frame.f_lineno).strip()
            package = module.partition(".")[0]
            return ModelFrame(filename, frame.f_lineno, line, package, module, frame.f_code.co_name, frame.f_locals)
        frame = frame.f_back
    return None


def _is_machinery(filename: str, module: str) -> bool:
    if filename.startswith("<"):
        return module != "__main__"  # generated code, unless someone typed it
    if filename.startswith((_HERE, _TORCH)):
        return True
    return filename.startswith(_STDLIB) and not any(part in filename for part in _PACKAGES)


def is_data_dependent(func: Any) -> bool:
    """True where an operation's output has a size or a value that no shape tells."""
    return func in _ANSWERS or str(func) in _ANSWERS_BY_NAME


def answer(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Answer an operation whose outputs depend on data.

    Returns:
        The outputs as phantoms and a note for the graph, or NotImplemented where the operation's shapes tell all.

    Raises:
        DataDependentError: a user's own code asks for a value, or for a size that has no useful bound.
    """
    rule = _ANSWERS.get(func)
    if rule is None:
        rule = _ANSWERS_BY_NAME.get(str(func)) if func.namespace != "aten" else None
        if rule is None:
            return NotImplemented
    return rule(func, args, kwargs)


# -- values -------------------------------------------------------------------------------------------------------


def _refuse(func: Any, tensor: Tensor, frame: ModelFrame | None) -> DataDependentError:
    kind = str(tensor.dtype).removeprefix("torch.")
    return DataDependentError(
        "the model's control flow depends on values, which a capture does not compute",
        where=f"{frame.filename}:{frame.lineno}: {frame.line}" if frame else None,
        received=f"the value of a {kind} tensor of shape {format_shape(tuple(tensor.shape))}, asked by {func}",
        todo=_TODO,
    )


def _scalar(func: Any, args: tuple[Any, ...], _kwargs: dict[str, Any]) -> Any:
    frame = model_frame()
    if frame is None or frame.package not in LIBRARIES:
        raise _refuse(func, args[0], frame)
    value = continuing(args[0].dtype)
    largest = _LARGEST.get((frame.module, frame.function))
    if largest is not None and value is not False:
        with suppress(KeyError):
            value = largest(frame.local_names)
    where = f"{frame.package} ({Path(frame.filename).name}:{frame.lineno})"
    return value, f"{where} asks for a value that depends on data; {value!r} was answered"


def continuing(dtype: torch.dtype) -> Any:
    """The answer with which code continues: not empty, not exceptional."""
    if dtype is torch.bool:
        return False
    return 1.0 if dtype.is_floating_point else 1 + 0j if dtype.is_complex else 1


def _largest_side(names: dict[str, Any]) -> int:
    """Position of the largest among the image sizes that training draws from."""
    return int(names["k"].index(max(names["k"])))


def _mask_side(names: dict[str, Any]) -> int:
    """Width, then height of a box onto which a mask is pasted: at most the image's."""
    return int(names["im_w"] if "w" not in names else names["im_h"] if "h" not in names else 1)


_LARGEST: dict[tuple[str, str], Callable[[dict[str, Any]], int]] = {
    ("torchvision.models.detection.roi_heads", "paste_mask_in_image"): _mask_side,
    ("torchvision.models.detection.transform", "torch_choice"): _largest_side,
}
"""Values that set a size: (module, function) → its local variables → the largest value that the code allows."""


def _untrue(func: Any, args: tuple[Any, ...], _kwargs: dict[str, Any]) -> Any:
    frame = model_frame()
    if frame is None or frame.package not in LIBRARIES:
        raise _refuse(func, args[0], frame)
    where = f"{frame.package} ({Path(frame.filename).name}:{frame.lineno})"
    return False, f"{where} compares tensors, which depends on data; False was answered"


_READERS = ("tolist", "numpy")
"""Methods that read a tensor's bytes without asking the dispatcher."""


@contextmanager
def guarded_reads() -> Iterator[None]:
    """Make `tolist` and `numpy` of a tensor without bytes an error that names the line; they would read zeros."""
    originals = {name: getattr(Tensor, name) for name in _READERS}
    inherited = {name for name in _READERS if name not in vars(Tensor)}

    def guarded(name: str) -> Callable[..., Any]:
        original = originals[name]

        def read(tensor: Tensor, *args: Any, **kwargs: Any) -> Any:
            if tensor.numel() and tensor.device.type == "cpu" and is_phantom(tensor):
                raise _refuse(f"Tensor.{name}", tensor, model_frame())
            return original(tensor, *args, **kwargs)

        return read

    for name in _READERS:
        setattr(Tensor, name, guarded(name))
    try:
        yield
    finally:
        for name, original in originals.items():
            if name in inherited:
                delattr(Tensor, name)
            else:
                setattr(Tensor, name, original)


# -- sizes --------------------------------------------------------------------------------------------------------


def _int_size(size: int) -> Tensor:
    return dense((size,), torch.int64)


def _note(func: Any) -> str:
    return f"{func.namespace}::{func._schema.name.partition('::')[2]}: {_BOUND}"


def _nonzero(func: Any, args: tuple[Any, ...], _kwargs: dict[str, Any]) -> Any:
    mask = args[0]
    return dense((_true_count(mask), mask.dim()), torch.int64), _note(func)


def _true_count(mask: Tensor) -> int:
    """Largest number of true elements that a mask can have, from what its asker guarantees."""
    count = mask.numel()
    frame = model_frame()
    limit = _LIMITS.get((frame.module, frame.function)) if frame is not None else None
    if frame is not None and limit is not None:
        with suppress(KeyError, AttributeError, TypeError, ValueError):  # another version's names: numel still holds
            count = min(count, limit(frame.local_names))
    return count


def _level_share(names: dict[str, Any]) -> int:
    """Boxes on one level of a feature pyramid: each box is on exactly one, and most bytes move if that is the first."""
    return int(names["num_rois"]) if names["level"] == 0 else 0


def _sampled(names: dict[str, Any]) -> int:
    """Boxes that the sampler leaves for one image."""
    return int(names["self"].fg_bg_sampler.batch_size_per_image)


def _sampled_positives(names: dict[str, Any]) -> int:
    sampler = names["self"].fg_bg_sampler
    return int(sampler.batch_size_per_image * sampler.positive_fraction)


def _sampled_anchors(names: dict[str, Any]) -> int:
    return int(names["self"].fg_bg_sampler.batch_size_per_image) * len(names["labels"])


_ROI_HEADS = "torchvision.models.detection.roi_heads"
_LIMITS: dict[tuple[str, str], Callable[[dict[str, Any]], int]] = {
    ("torchvision.ops.poolers", "_multiscale_roi_align"): _level_share,
    (_ROI_HEADS, "subsample"): _sampled,
    (_ROI_HEADS, "forward"): _sampled_positives,
    ("torchvision.models.detection.rpn", "compute_loss"): _sampled_anchors,
}
"""Bounds that a function's own code guarantees: (module, function) → its local variables → largest count."""


def _nms(func: Any, args: tuple[Any, ...], _kwargs: dict[str, Any]) -> Any:
    return _int_size(args[0].shape[0]), _note(func)


def _unique(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """All elements may differ; torchvision's loop over distinct labels takes one label that all boxes have."""
    values, frame = args[0], model_frame()
    dimension = args[1] if func is aten.unique_dim.default else None
    inverse = numel(tuple(values.shape)) if dimension is None else values.shape[dimension]
    count = 1 if frame is not None and frame.package == "torchvision" else inverse
    shape = [count]
    if dimension is not None:
        shape = list(values.shape)
        shape[dimension] = count
    positions = {a.name: i for i, a in enumerate(func._schema.arguments)}

    def asked(name: str) -> bool:
        position = positions[name]
        return bool(args[position] if position < len(args) else kwargs.get(name, False))

    inverse_shape = tuple(values.shape) if dimension is None else (inverse,)
    outputs = (
        dense(tuple(shape), values.dtype),
        dense(inverse_shape if asked("return_inverse") else (0,), torch.int64),
        dense((count,) if asked("return_counts") else (0,), torch.int64),
    )
    return outputs, _note(func)


def _masked_select(func: Any, args: tuple[Any, ...], _kwargs: dict[str, Any]) -> Any:
    shape = torch.broadcast_shapes(args[0].shape, args[1].shape)  # type: ignore[no-untyped-call]
    return dense((numel(tuple(shape)),), args[0].dtype), _note(func)


def _index(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    if not any(_is_mask(i) for i in args[1]):
        return NotImplemented
    indices: list[Tensor | None] = []
    for index in args[1]:
        if index is not None and _is_mask(index):
            indices.extend([_int_size(_true_count(index))] * index.dim())
        else:
            indices.append(index)
    return run_on_meta(func, (args[0], indices), kwargs), _note(func)


def _is_mask(index: Tensor | None) -> bool:
    return index is not None and index.dtype in (torch.bool, torch.uint8)


def _bincount(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    weights = args[1] if len(args) > 1 else kwargs.get("weights")
    least = args[2] if len(args) > 2 else kwargs.get("minlength", 0)
    frame = model_frame()
    if not least and (frame is None or frame.package not in LIBRARIES):
        raise _refuse(func, args[0], frame)
    dtype = torch.int64 if weights is None else torch.float32 if weights.dtype == torch.float32 else torch.float64
    return dense((max(int(least), 1),), dtype), f"{_short(func)}: no value above its minlength was assumed"


def _short(func: Any) -> str:
    return str(func._schema.name)


def _repeat_interleave(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    size = kwargs.get("output_size")
    if size is None:
        raise _refuse(func, args[0], model_frame())
    return _int_size(int(size)), f"{_short(func)}: the size that the model states was taken"


def _ctc_loss(func: Any, args: tuple[Any, ...], _kwargs: dict[str, Any]) -> Any:
    """Losses and the table of path scores, as long as the longest target can be; it has no meta kernel."""
    scores, targets, _, lengths = args[:4]
    batch = scores.shape[1] if scores.dim() == 3 else 1
    longest = targets.shape[-1] if isinstance(lengths, Tensor) or targets.dim() == 2 else max(lengths, default=0)
    return (
        dense((batch,), scores.dtype),
        dense((batch, scores.shape[0], 2 * longest + 1), scores.dtype),
    ), f"{_short(func)}: targets are taken as long as their tensor allows"


def _ctc_loss_backward(func: Any, args: tuple[Any, ...], _kwargs: dict[str, Any]) -> Any:
    return like(args[1]), f"{_short(func)}: targets are taken as long as their tensor allows"


def _grouped_mm(_func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Rows of all groups together; the meta kernel refuses float32, which the CPU kernel takes."""
    left, right = args[0], args[1]
    offsets: Any = args[2] if len(args) > 2 else kwargs.get("offs")
    if left.dim() == 2 and right.dim() == 2:
        shape: tuple[int, ...] = (offsets.shape[0], left.shape[0], right.shape[1])
    elif left.dim() == 2 or right.dim() == 2:
        shape = (left.shape[-2], right.shape[-1])
    else:
        shape = (left.shape[0], left.shape[1], right.shape[2])
    dtype = kwargs.get("out_dtype") or left.dtype
    return dense(shape, dtype), "aten::_grouped_mm: how many rows each group gets depends on data; their sum does not"


def _holds(func: Any, _args: tuple[Any, ...], _kwargs: dict[str, Any]) -> Any:
    return None, f"{_short(func)}: taken to hold"


_ANSWERS: dict[Any, Callable[[Any, tuple[Any, ...], dict[str, Any]], Any]] = {
    aten._local_scalar_dense.default: _scalar,
    aten.equal.default: _untrue,
    aten.is_nonzero.default: _untrue,
    aten.nonzero.default: _nonzero,
    aten._unique2.default: _unique,
    aten.unique_dim.default: _unique,
    aten.unique_consecutive.default: _unique,
    aten.masked_select.default: _masked_select,
    aten.index.Tensor: _index,
    aten._unsafe_index.Tensor: _index,
    aten.bincount.default: _bincount,
    aten.repeat_interleave.Tensor: _repeat_interleave,
    aten._ctc_loss.default: _ctc_loss,
    aten._ctc_loss.Tensor: _ctc_loss,
    aten._ctc_loss_backward.default: _ctc_loss_backward,
    aten._ctc_loss_backward.Tensor: _ctc_loss_backward,
    aten._grouped_mm.default: _grouped_mm,
    aten._assert_async.default: _holds,
    aten._assert_async.msg: _holds,
}

_ANSWERS_BY_NAME: dict[str, Callable[[Any, tuple[Any, ...], dict[str, Any]], Any]] = {
    "torchvision.nms.default": _nms,
    "torchvision.qnms.default": _nms,
}
"""Operators that may not be defined when this file is imported."""
