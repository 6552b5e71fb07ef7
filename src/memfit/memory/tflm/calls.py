"""What a kernel asks of the arena while it prepares, in order."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import NamedTuple

from memfit.errors import UnsupportedOp
from memfit.formats.tflite import Operator, TfliteModel, TfliteTensor
from memfit.formats.tflite.model import TYPE_BITS
from memfit.memory.tflm.builds import Build, Sizes


class Hold(NamedTuple):
    """A temporary TfLiteTensor, which is freed when the operator has been prepared."""

    tensor: TfliteTensor


class Keep(NamedTuple):
    """A persistent buffer, at a multiple of 16 in the tail."""

    nbytes: int
    what: str


class Scratch(NamedTuple):
    """A buffer of the head that lives during its operator."""

    nbytes: int
    what: str


Event = Hold | Keep | Scratch


def tensor_bytes(tensor: TfliteTensor) -> int:
    """Bytes of a tensor in the arena: TFLM unpacks types under a byte (TfLiteTypeSizeOf, memory_helpers.cc).

    Raises:
        UnsupportedOp: a type that has no size.
    """
    bits = TYPE_BITS.get(tensor.type)
    if bits is None:
        raise UnsupportedOp(
            f"a tensor of type {tensor.type} has no size that the file tells",
            where=f"tensor {tensor.index} ({tensor.name})",
            received=tensor.type,
            todo="TFLM cannot run it; convert the model without such tensors",
        )
    return tensor.elements * max(1, bits // 8)


class Call:
    """One operator with its tensors, as its kernel's Prepare sees it."""

    def __init__(self, model: TfliteModel, subgraph: int, operator: Operator, build: Build) -> None:
        self.model, self.subgraph, self.operator, self.build = model, subgraph, operator, build
        tensors = model.subgraphs[subgraph].tensors
        self.inputs = [tensors[i] if i >= 0 else None for i in operator.inputs]
        self.outputs = [tensors[i] for i in operator.outputs]

    @property
    def where(self) -> str:
        """Where a message says that the operator is."""
        graph = f"subgraphs[{self.subgraph}]." if self.subgraph else ""
        return f"{self.model.source}: {graph}operators[{self.operator.index}] ({self.operator.name})"

    def input(self, number: int) -> TfliteTensor:
        """Give an input that the operator cannot do without.

        Raises:
            UnsupportedOp: it is left out.
        """
        found = self.inputs[number] if number < len(self.inputs) else None
        if found is None:
            raise UnsupportedOp(
                f"{self.operator.name} has no input {number}",
                where=self.where,
                received=f"{len(self.inputs)} inputs",
                todo="TFLM cannot run it; convert the model again",
            )
        return found

    def output(self, number: int = 0) -> TfliteTensor:
        """Give an output; errors as for `input`."""
        if number >= len(self.outputs):
            raise UnsupportedOp(
                f"{self.operator.name} has no output {number}",
                where=self.where,
                received=f"{len(self.outputs)} outputs",
                todo="TFLM cannot run it; convert the model again",
            )
        return self.outputs[number]

    def option(self, name: str) -> bool:
        """Tell whether an option is set."""
        return bool(self.operator.options.get(name, False))

    def hold(self, names: str) -> Iterator[Hold]:
        """Hold tensors by position, as in `i0 i1 o0`; an input that is left out takes nothing."""
        for name in names.split():
            number = int(name[1:])
            if name[0] == "o":
                yield Hold(self.output(number))
            elif number < len(self.inputs) and (tensor := self.inputs[number]) is not None:
                yield Hold(tensor)


Prepare = Callable[[Call], Iterator[Event]]


class Kernel(NamedTuple):
    """What memfit knows of one operator's reference kernel."""

    prepare: Prepare
    parameters: Sizes | None = None
    """The parsed options, TfLite…Params of c/builtin_op_data.h."""
    data: Sizes | None = None
    """Operator data, which Init allocates; none in a build where its size is 0."""
    parameters_alignment: Sizes | None = None
    """None takes 4, or 1 where the parameters are no multiple of it."""


def elements(shape: tuple[int, ...]) -> int:
    """Product of a shape.

    >>> elements((2, 3)), elements(())
    (6, 1)
    """
    return math.prod(shape)
