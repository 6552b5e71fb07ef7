"""The sizes of a file's inputs: its own, symbols such as `batch` made numbers, and what the user gave instead."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from memfit.capture.sources.onnx.call import Value
from memfit.errors import UnsupportedOp, UsageError
from memfit.formats.onnx import OnnxModel, ValueInfo
from memfit.formats.onnx.reader import ELEMENTS, RANK, show

_TEXT = re.compile(r"(?:(?P<name>.+)=)?(?P<shape>[0-9]{1,15}(?:[x,][0-9]{1,15})*|scalar)(?::(?P<dtype>\w+))?")
_SHORT = {"fp64": "float64", "fp32": "float32", "fp16": "float16", "bf16": "bfloat16", "float": "float32",
          "half": "float16", "long": "int64", "int": "int32"}  # fmt: skip


class Given(NamedTuple):
    """What a user gave for one input."""

    name: str | None
    shape: tuple[int, ...]
    dtype: str | None


def read_inputs(inputs: Any) -> list[Given]:
    """Read what stands for the inputs: texts such as `1x3x224x224` or `ids=1x128:int64`, arrays, or a mapping.

    >>> read_inputs("1x3x224x224"), read_inputs(["input.1=1x8:int64"])
    ([Given(name=None, shape=(1, 3, 224, 224), dtype=None)], [Given(name='input.1', shape=(1, 8), dtype='int64')])

    Raises:
        UsageError: it is no shape.
    """
    if inputs is None:
        return []
    if isinstance(inputs, Mapping):
        return [_given(name, value) for name, value in inputs.items()]
    if isinstance(inputs, str) or hasattr(inputs, "shape"):
        inputs = [inputs]
    return [_given(None, value) for value in inputs]


def _given(name: str | None, value: Any) -> Given:
    if hasattr(value, "shape") and hasattr(value, "dtype"):
        return Given(name, tuple(int(size) for size in value.shape), str(value.dtype).removeprefix("torch."))
    match = _TEXT.fullmatch(value.strip()) if isinstance(value, str) else None
    if match is None:
        raise UsageError(
            "this is not an input shape",
            where="--input",
            received=repr(value)[:200],
            todo="write a shape such as 1x3x224x224, 1x128:int64 or ids=1x128:int64",
        )
    shape = () if match["shape"] == "scalar" else tuple(int(size) for size in re.split("[x,]", match["shape"]))
    dtype = match["dtype"]
    return Given(match["name"] or name, shape, _SHORT.get(dtype, dtype) if dtype else None)


def place_inputs(
    model: OnnxModel, given: Sequence[Given], batch: int | None
) -> tuple[dict[str, Value], dict[str, int], list[str]]:
    """Give each input a shape: values by name, numbers by symbol, and notes.

    A symbol or an unknown size in the first place is the batch and becomes 1; the same symbol is the same number
    everywhere. What the user gives replaces the file's shape, and its numbers the symbols there.

    Raises:
        UsageError: a size that remains unknown, more inputs than there are, or another rank or type than the file's.
        UnsupportedOp: an input that is no tensor.
    """
    infos = [info for info in model.graph.inputs if info.name not in model.graph.initializers]
    chosen = _chosen(model, infos, given)
    symbols: dict[str, int] = {}
    for info in infos:
        new = chosen.get(info.name)
        _check(model, info, new)
        if new is not None and info.shape is not None:
            for size, number in zip(info.shape, new.shape, strict=True):
                if isinstance(size, str):
                    symbols.setdefault(size, number)
    assumed: dict[str, None] = {}
    for info in infos:
        first = info.shape[0] if info.shape and info.name not in chosen else 0
        if isinstance(first, str) and first not in symbols:
            symbols[first] = batch or 1
            if batch is None:
                assumed[first] = None
    values: dict[str, Value] = {}
    for info in infos:
        shape = _shape(model, info, chosen.get(info.name), symbols, assumed, batch)
        dtype = (chosen[info.name].dtype if info.name in chosen else None) or info.dtype
        if len(shape) > RANK or _product(shape) > ELEMENTS:
            raise UsageError(
                "an input would have no possible size",
                where=f"{model.source}: input {show(info.name, 200)}",
                received="x".join(map(str, shape))[:200],
                todo="give a smaller shape with --input",
            )
        if info.name in values:
            raise UsageError(
                "two inputs have one name",
                where=f"{model.source}: graph.input",
                received=show(info.name, 200) or "empty text",
                todo="export the model again: the file is damaged",
            )
        assert dtype is not None  # checked above
        values[info.name] = Value(info.name, shape, dtype)
    notes = []
    if assumed:
        names = ", ".join(show(name, 60) for name in assumed if name)
        notes.append(f"the batch{f' ({names})' if names else ''} is not fixed in the file and counts as 1 (--batch)")
    return values, symbols, notes


def _chosen(model: OnnxModel, infos: Sequence[ValueInfo], given: Sequence[Given]) -> dict[str, Given]:
    """Match what the user gave with inputs, by name or in order."""
    names = [info.name for info in infos]
    shown = {show(name): name for name in names}
    chosen: dict[str, Given] = {}
    free = [name for name in names if name not in {shown.get(g.name or "", g.name) for g in given}]
    for new in given:
        name = shown.get(new.name, new.name) if new.name is not None else (free.pop(0) if free else None)
        if name is None or name not in names:
            raise UsageError(
                "the model has no such input" if new.name is not None else "more inputs than the model takes",
                where="--input",
                received=new.name or f"{len(given)} inputs",
                todo=f"the inputs of {model.source} are {', '.join(_text(info) for info in infos[:8]) or 'none'}",
            )
        chosen[name] = new
    return chosen


def _check(model: OnnxModel, info: ValueInfo, new: Given | None) -> None:
    where = f"{model.source}: input {show(info.name, 200)}"
    if info.kind != "tensor":
        raise UnsupportedOp(
            "an input that is no tensor has no size that the file tells",
            where=where,
            received=info.kind,
            todo="export the model with tensors as inputs",
        )
    if info.dtype is None or info.dtype == "string":
        raise UnsupportedOp(
            "an input's type has no size that the file tells",
            where=where,
            received=info.dtype or "no known type",
            todo="export the model with numbers as inputs",
        )
    if new is None:
        return
    if info.shape is not None and len(new.shape) != len(info.shape):
        raise UsageError(
            "the input's shape has another number of dimensions than the file's",
            where=where,
            received="x".join(map(str, new.shape)) or "scalar",
            todo=f"give a shape like {_text(info)}",
        )
    if new.dtype is not None and new.dtype != info.dtype:
        raise UsageError(
            "the input has another type in the file",
            where=where,
            received=new.dtype,
            todo=f"leave the type out: the file takes {info.dtype}",
        )


def _shape(  # noqa: PLR0917  (one call, and every argument another thing)
    model: OnnxModel,
    info: ValueInfo,
    new: Given | None,
    symbols: Mapping[str, int],
    assumed: dict[str, None],
    batch: int | None,
) -> tuple[int, ...]:
    if new is not None:
        sizes = list(new.shape)
        if batch is not None and sizes:
            sizes[0] = batch
        return tuple(sizes)
    if info.shape is None:
        raise _unknown(model, info)
    shape: list[int] = []
    for place, size in enumerate(info.shape):
        number = symbols.get(size) if isinstance(size, str) else size
        if place == 0 and batch is not None:
            number = batch
        if place == 0 and not number:
            number = 1
            assumed.setdefault(size if isinstance(size, str) else "", None)
        if number is None:
            raise _unknown(model, info)
        shape.append(number)
    return tuple(shape)


def _unknown(model: OnnxModel, info: ValueInfo) -> UsageError:
    example = "1x3x224x224"
    if info.shape:
        example = "x".join(
            str(s) if isinstance(s, int) and s else "1" if p == 0 else "…" for p, s in enumerate(info.shape)
        )
    return UsageError(
        "a size of this input is not fixed in the file",
        where=f"{model.source}: input {show(info.name, 200)}",
        received=_text(info),
        todo=f"give its shape: --input {show(info.name, 80)}={example}",
    )


def _text(info: ValueInfo) -> str:
    if info.shape is None:
        return f"{show(info.name, 80)}=?"
    sizes = "x".join("?" if size is None else show(str(size), 40) for size in info.shape) or "scalar"
    return f"{show(info.name, 80)}={sizes}"


def _product(shape: Sequence[int]) -> int:
    result = 1
    for size in shape:
        result *= size
    return result
