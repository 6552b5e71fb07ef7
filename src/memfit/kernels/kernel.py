"""What a kernel is: parameters worked out once, and a function that computes an operator into given arrays.

Most kernels of images can also compute a part of their output from a part of their input, which is how networks run
in little memory. Places are absolute: rows and columns of the whole tensors, half-open.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from memfit.errors import SourceError, UnsupportedOp
from memfit.formats.tflite import Operator, TfliteModel, TfliteTensor
from memfit.formats.tflite.model import COMPRESSION

Array = npt.NDArray[Any]
Inputs = Sequence[Array | None]
Outputs = Sequence[Array]

DTYPES = {
    "FLOAT32": "f4", "INT4": "i1", "INT8": "i1", "UINT8": "u1", "INT16": "i2", "INT32": "i4", "INT64": "i8",
    "BOOL": "?", "UINT32": "u4",
}  # fmt: skip
"""Element types by the schema's names. An element of INT4 takes a byte, as in TFLM's arena."""


class Region(NamedTuple):
    """Rows and columns of an image tensor (batch, height, width, channels): a part of its area, with all channels."""

    top: int
    bottom: int
    """First row that is not in it."""
    left: int
    right: int

    @property
    def height(self) -> int:
        """Number of rows."""
        return self.bottom - self.top

    @property
    def width(self) -> int:
        """Number of columns."""
        return self.right - self.left

    def of(self, image: Array, held: Region) -> Array:
        """Take this region out of an array that holds another one around it; no copy.

        >>> image = np.arange(12).reshape(1, 3, 4, 1)
        >>> Region(2, 3, 1, 3).of(image, Region(0, 3, 0, 4)).ravel().tolist()
        [9, 10]
        """
        return image[:, self.top - held.top : self.bottom - held.top, self.left - held.left : self.right - held.left]


Held = Sequence[Region | None]
"""For each input, the part that its array holds; None for one that is whole and has no area."""


class Node:
    """One operator of a model's main subgraph, with what it touches at hand."""

    def __init__(self, model: TfliteModel, operator: Operator) -> None:
        self.model, self.operator = model, operator

    def input(self, position: int) -> TfliteTensor:
        """Give an input that must be there."""
        found = self.optional(position)
        if found is None:
            raise self.unsupported("an input is left out", f"input {position}")
        return found

    def optional(self, position: int) -> TfliteTensor | None:
        """Give an input, or None if it is left out."""
        inputs = self.operator.inputs
        index = inputs[position] if position < len(inputs) else -1
        return None if index < 0 else self.model.main.tensors[index]

    def output(self, position: int = 0) -> TfliteTensor:
        """Give an output."""
        return self.model.main.tensors[self.operator.outputs[position]]

    def constant(self, position: int) -> Array | None:
        """Give the data of a constant input, None for one that is made at run time or left out."""
        tensor = self.optional(position)
        return None if tensor is None or not tensor.is_constant else constant(self.model, tensor)

    def numbers(self, position: int) -> tuple[int, ...]:
        """Give the integers of an input that must be constant."""
        found = self.constant(position)
        if found is None:
            raise self.unsupported("an input is not constant", f"input {position}")
        return tuple(int(value) for value in found.ravel())

    def option(self, name: str, default: Any = 0) -> Any:
        """Give a builtin option."""
        return self.operator.options.get(name, default)

    def unsupported(self, what: str, received: str) -> UnsupportedOp:
        """Make the error for an operator that no kernel computes like this."""
        return UnsupportedOp(
            f"{self.operator.name}: {what}",
            where=f"{self.model.source}, operator {self.operator.index}",
            received=received,
            todo="convert the model without it, or add it to KERNELS in memfit/kernels/table.py",
        )

    def need(self, holds: bool, what: str, received: object) -> None:
        """Raise `unsupported` if something does not hold."""
        if not holds:
            raise self.unsupported(what, str(received))


def nothing(node: Node) -> None:
    """Prepare nothing, for kernels that need no parameters; the operator has an input."""
    node.input(0)


def constant(model: TfliteModel, tensor: TfliteTensor) -> Array:
    """Read a constant tensor: an array of its shape, read-only; INT4 is unpacked to int8.

    Source of the order of nibbles, the lower one first: UnpackDenseInt4IntoInt8, portable_tensor_utils.cc.
    """
    raw = np.frombuffer(model.content(tensor.data), np.uint8)[: tensor.nbytes]
    packed = any(entry.name == COMPRESSION for entry in model.metadata)
    kind = DTYPES.get(tensor.type)
    if kind is None or tensor.sparse or tensor.external or packed or len(raw) < tensor.nbytes:
        how = "compressed" if packed else "sparse" if tensor.sparse else "in another file" if tensor.external else ""
        raise UnsupportedOp(
            "a constant is stored in a way that kernels do not read",
            where=f"{model.source}, tensor {tensor.index} ({tensor.name})",
            received=" ".join(part for part in (tensor.type, how) if part),
            todo="convert the model with dense constants of the types in DTYPES, memfit/kernels/kernel.py",
        )
    if tensor.type == "INT4":
        pairs = np.stack([raw << 4, raw], axis=1).view(np.int8) >> 4
        return pairs.reshape(-1)[: tensor.elements].reshape(tensor.shape)
    return raw.view(np.dtype(kind)).reshape(tensor.shape)


def scale_of(tensor: TfliteTensor) -> float:
    """Give a tensor's scale, the first one if it has several; 0 without quantization, as in TFLM."""
    quantization = tensor.quantization
    return quantization.scales[0] if quantization and quantization.scales else 0.0


def zero_of(tensor: TfliteTensor) -> int:
    """Give a tensor's zero point, the first one if it has several; 0 without quantization."""
    quantization = tensor.quantization
    return quantization.zero_points[0] if quantization and quantization.zero_points else 0


def area_of(tensor: TfliteTensor | None) -> Region | None:
    """Give the whole area of an image tensor; None for one of another rank."""
    if tensor is None or len(tensor.shape) != 4:
        return None
    return Region(0, tensor.shape[1], 0, tensor.shape[2])


@dataclass(frozen=True)
class Sums:
    """How an operator that adds up a whole image takes it part by part, so that the image is never whole.

    Sums are int32, (batch, channels), zeros at the start: the memory that TFLM's kernels ask for as well.
    """

    shape: Callable[[Any], tuple[int, int] | None]
    """(parameters) → the shape of the sums; None if this operator cannot be taken in parts."""
    add: Callable[[Array, Array], None]
    """(sums, part of the image) adds a part to the sums, in place."""
    finish: Callable[[Any, Array, Outputs], None]
    """(parameters, sums, outputs) writes the outputs."""


def add_part(sums: Array, part: Array) -> None:
    """Add a part of an image (batch, rows, columns, channels) to its sums (batch, channels), in place.

    >>> sums = np.zeros((1, 2), np.int32)
    >>> add_part(sums, np.array([[[[1, -2], [3, -4]]]], np.int8))
    >>> sums.tolist()
    [[4, -6]]
    """
    sums += part.sum(axis=(1, 2), dtype=sums.dtype)


def senseless(model: TfliteModel, operator: Operator, error: Exception) -> SourceError:
    """Make the error for an operator whose tensors or options contradict each other."""
    main = model.main
    shapes = ["-" if i < 0 else f"{list(main.tensors[i].shape)}" for i in (*operator.inputs, *operator.outputs)]
    return SourceError(
        f"{operator.name}: its tensors or options do not fit together",
        where=f"{model.source}, operator {operator.index}",
        received=f"shapes {', '.join(shapes)} ({error})",
        todo="check how the model was made: TensorFlow Lite Micro does not run it either",
    )


@dataclass(frozen=True)
class Kernel:
    """How one kind of operator is computed.

    `parameters` works out what does not depend on the data. `whole` computes all of the outputs. A kernel with `part`
    computes any region of its outputs, and `needs` says which regions of its inputs that takes.
    """

    parameters: Callable[[Node], Any]
    whole: Callable[[Any, Inputs, Outputs], None] | None = None
    needs: Callable[[Any, Region], Held] | None = None
    part: Callable[[Any, Inputs, Held, Outputs, Region], None] | None = None
    sums: Sums | None = None
    """Of MEAN, SUM and AVERAGE_POOL_2D of integers over a whole image."""

    def prepare(self, model: TfliteModel, operator: Operator) -> Any:
        """Work out the parameters of an operator of the main subgraph: frozen, and independent of the data.

        Raises:
            UnsupportedOp: this kernel does not compute the operator with these types or options.
            SourceError: the operator's options or tensors make no sense.
        """
        try:
            return self.parameters(Node(model, operator))
        except (ArithmeticError, LookupError, ValueError) as error:
            raise senseless(model, operator, error) from error

    def run(self, parameters: Any, inputs: Inputs, outputs: Outputs) -> None:
        """Compute an operator into `outputs`.

        Args:
            parameters: from `prepare`.
            inputs: an array per input of the operator, constants too; None for one that is left out. They may be views
                of one array; variable tensors are changed in place.
            outputs: an array of the right shape and type per output, which may be a view. An output may share memory
                with an input only where they are equal and the operator is element-wise.
        """
        if self.whole is not None:
            with np.errstate(all="ignore"):  # floats overflow as quietly as in C++
                self.whole(parameters, inputs, outputs)
            return
        region = Region(0, outputs[0].shape[1], 0, outputs[0].shape[2])
        held = [Region(0, x.shape[1], 0, x.shape[2]) if x is not None and x.ndim == 4 else None for x in inputs]
        self.run_region(parameters, inputs, held, outputs, region)

    @property
    def by_regions(self) -> bool:
        """True if it can compute a part of an image; of tensors with four dimensions, that is."""
        return self.part is not None

    def needed(self, parameters: Any, region: Region) -> Held:
        """Say which part of each input a region of the output takes; None for an input that is taken whole.

        Inputs after the last entry are taken whole too. Padding is left out: what lies outside of an input is never
        asked for, and a part may be empty.
        """
        assert self.needs is not None  # asked for only where by_regions
        return self.needs(parameters, region)

    def run_region(self, parameters: Any, inputs: Inputs, held: Held, outputs: Outputs, region: Region) -> None:
        """Compute a region of the outputs from parts of the inputs, to the bit what `run` computes there.

        Args:
            parameters: from `prepare`.
            inputs: arrays as for `run`; those with an area hold only `held` of it.
            held: the part of each input that its array holds, at least what `needed` says; None for whole ones,
                and for those after the last entry.
            outputs: arrays (batch, region.height, region.width, channels). What it takes for a row is read
                before the row is written, but for PAD and CONCATENATION.
            region: rows and columns of the output.
        """
        assert self.part is not None  # an entry of the table has a whole or a part, and this is for those with a part
        with np.errstate(all="ignore"):
            self.part(parameters, inputs, held, outputs, region)
