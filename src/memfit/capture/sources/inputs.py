"""A model's inputs: from text such as `ids=1x128:int64`, or from its own configuration, to phantom tensors."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from memfit.capture.phantom import dense
from memfit.errors import UsageError
from memfit.units import format_shape

DTYPES: dict[str, torch.dtype] = {
    "fp64": torch.float64,
    "fp32": torch.float32,
    "fp16": torch.float16,
    "bf16": torch.bfloat16,
    "float": torch.float32,
    "half": torch.float16,
    "long": torch.int64,
    "int": torch.int32,
    **{
        name: getattr(torch, name)
        for name in (
            "float64", "float32", "float16", "bfloat16", "complex64", "complex128", "int64", "int32", "int16", "int8",
            "uint8", "bool",
        )
    },
}  # fmt: skip
"""Names of dtypes on the command line."""

_TEXT = re.compile(r"(?:(?P<name>[A-Za-z_]\w*)=)?(?P<shape>[0-9]+(?:[x,][0-9]+)*|scalar)(?::(?P<dtype>\w+))?")
_TODO = "write a shape such as 1x3x224x224, 1x128:int64 or ids=1x128:int64"


@dataclass(frozen=True)
class InputSpec:
    """One input tensor: shape, dtype by its PyTorch name (None: the default), and the argument it belongs to."""

    shape: tuple[int, ...]
    dtype: str | None = None
    name: str | None = None

    def __str__(self) -> str:
        text = format_shape(self.shape) + (f":{self.dtype}" if self.dtype not in (None, "float32") else "")
        return f"{self.name}={text}" if self.name else text


def parse_input(text: str) -> InputSpec:
    """Read one `--input`: dimensions, then optionally a dtype, with the argument's name in front if there are several.

    >>> parse_input("1x3x224x224"), parse_input("ids=1x128:int64")  # doctest: +NORMALIZE_WHITESPACE
    (InputSpec(shape=(1, 3, 224, 224), dtype=None, name=None),
     InputSpec(shape=(1, 128), dtype='int64', name='ids'))

    Raises:
        UsageError: the text is not a shape, or the dtype is unknown.
    """
    match = _TEXT.fullmatch(text.strip())
    if match is None:
        raise UsageError("this is not an input shape", where="--input", received=repr(text), todo=_TODO)
    shape = match["shape"]
    sizes = () if shape == "scalar" else tuple(int(size) for size in re.split("[x,]", shape))
    dtype = None if match["dtype"] is None else dtype_name(match["dtype"], where=f"--input {text}")
    return InputSpec(sizes, dtype, match["name"])


def dtype_name(text: str, *, where: str) -> str:
    """Read a dtype, such as `bf16` or `int64`, as PyTorch spells it.

    >>> dtype_name("bf16", where="--dtype")
    'bfloat16'

    Raises:
        UsageError: there is no such dtype.
    """
    dtype = DTYPES.get(text.lower().removeprefix("torch."))
    if dtype is None:
        raise UsageError(
            "this is not a dtype", where=where, received=repr(text), todo=f"use one of {', '.join(DTYPES)}"
        )
    return str(dtype).removeprefix("torch.")


def resolve(
    defaults: Sequence[InputSpec], given: Sequence[InputSpec], *, batch: int | None = None
) -> tuple[InputSpec, ...]:
    """Put the inputs that a user gave in the place of a model's own.

    Unnamed inputs replace the model's in order, named ones by name or are added. What is not given keeps its shape, but
    takes the batch of what is; `batch` then replaces the first dimension of every input.

    >>> image = InputSpec((1, 3, 224, 224), "float32", "input")
    >>> [str(s) for s in resolve([image], [parse_input("1x3x192x192")], batch=8)]
    ['input=8x3x192x192']

    Raises:
        UsageError: more inputs than the model takes, or a batch below 1.
    """
    specs = list(defaults)
    names = [s.name for s in specs]
    position = 0
    replaced: set[int] = set()
    for spec in given:
        if spec.name is not None:
            index = names.index(spec.name) if spec.name in names else len(specs)
        else:
            index, position = position, position + 1
            if defaults and index >= len(defaults):
                raise UsageError(
                    "more inputs than the model takes",
                    where="--input",
                    received=f"{len(given)} inputs",
                    todo=f"the model takes {', '.join(map(str, defaults))}; give further ones a name (NAME=SHAPE)",
                )
            index = min(index, len(specs))
        old = specs[index] if index < len(specs) else None
        new = InputSpec(spec.shape, spec.dtype or (old.dtype if old else None), old.name if old else spec.name)
        specs[index : index + 1] = [new]
        replaced.add(index)
    if given and given[0].shape:
        for index, spec in enumerate(specs):
            if index not in replaced and spec.shape:
                specs[index] = replace(spec, shape=(given[0].shape[0], *spec.shape[1:]))
    if batch is not None:
        if batch < 1:
            raise UsageError(
                "the batch must be at least 1", where="--batch", received=str(batch), todo="give 1 or more"
            )
        specs = [replace(s, shape=(batch, *s.shape[1:])) if s.shape else s for s in specs]
    return tuple(specs)


def make(spec: InputSpec) -> Tensor:
    """Make the phantom tensor of one input."""
    return dense(spec.shape, DTYPES[spec.dtype or "float32"])
