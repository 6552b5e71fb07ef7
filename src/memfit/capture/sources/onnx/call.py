"""One operator with its values looked up: what the rules of the operator table read."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from memfit.errors import SourceError
from memfit.formats.onnx import Node, OnnxTensor
from memfit.formats.onnx.reader import ELEMENTS, RANK, show

Shape = tuple[int, ...]
Out = tuple[Shape, str]
"""Shape and dtype of one output."""


class Unresolved(Exception):
    """A shape that depends on values which only a run knows."""

    def __init__(self, value: Value | None, what: str) -> None:
        super().__init__(what)
        self.value, self.what = value, what


class Value:
    """What a name of the file stands for."""

    __slots__ = ("base", "constant", "data", "dtype", "name", "prepared", "shape", "stored", "tensor", "weighty")

    def __init__(
        self,
        name: str,
        shape: Shape,
        dtype: str,
        *,
        data: Any = None,
        constant: bool = False,
        prepared: bool = False,
        weighty: bool = False,
        tensor: OnnxTensor | None = None,
        base: Value | None = None,
        stored: str | None = None,
    ) -> None:
        self.name, self.shape, self.dtype = name, shape, dtype
        self.data = data
        """Its numbers where they are known and few: shapes, axes, sizes."""
        self.constant = constant
        """True for what exists before the network runs."""
        self.prepared = prepared or constant
        """True for what is computed from constants alone, if only in the run: a weight that is scaled first."""
        self.weighty = weighty
        """True for weights and what is made of them."""
        self.tensor = tensor
        """The file's own constant."""
        self.base = base
        """The value whose bytes it shares."""
        self.stored = stored or dtype
        """Type of the bytes in memory: int8 for a value that a quantized network computes with."""

    @property
    def elements(self) -> int:
        """Product of the shape."""
        return math.prod(self.shape)

    @property
    def root(self) -> Value:
        """The value that owns the bytes; the way there is cut short for the next time."""
        value = self
        while value.base is not None:
            if value.base.base is not None:
                value.base = value.base.base
            value = value.base
        return value

    def __repr__(self) -> str:
        return f"{'x'.join(map(str, self.shape)) or 'scalar'} {self.dtype} {show(self.name, 60)}".rstrip()


class Call:
    """One operator, its inputs and its attributes."""

    __slots__ = ("attributes", "inputs", "node", "opset", "where")

    def __init__(self, node: Node, inputs: Sequence[Value | None], opset: int, where: str) -> None:
        self.node, self.inputs, self.opset, self.where = node, tuple(inputs), opset, where
        self.attributes = node.attributes

    # -- inputs ----------------------------------------------------------------------------------------------------

    def has(self, position: int) -> bool:
        """True where that input is given."""
        return position < len(self.inputs) and self.inputs[position] is not None

    def value(self, position: int) -> Value:
        """Give an input that must be there."""
        found = self.inputs[position] if position < len(self.inputs) else None
        if found is None:
            raise self.wrong(f"input {position} is missing", f"{len(self.inputs)} inputs")
        return found

    def shape(self, position: int, rank: int | None = None, at_least: int = 0) -> Shape:
        """Give the shape of an input that must be there, and of that rank."""
        value = self.value(position)
        if (rank is not None and len(value.shape) != rank) or len(value.shape) < at_least:
            wanted = str(rank) if rank is not None else f"{at_least} or more"
            raise self.wrong(f"input {position} has {len(value.shape)} dimensions instead of {wanted}", repr(value))
        return value.shape

    def dtype(self, position: int = 0) -> str:
        """Give the dtype of an input that must be there."""
        return self.value(position).dtype

    def is_constant(self, position: int) -> bool:
        """True where an input is a constant, or is made of constants alone."""
        return self.has(position) and self.value(position).prepared

    def known(self, position: int, what: str = "size") -> list[int]:
        """Give the whole numbers of an input that says how.

        Raises:
            Unresolved: they are computed from values that only a run knows.
        """
        value = self.value(position)
        if value.data is None or value.data.dtype.kind not in "iub":
            if value.data is not None and value.data.dtype.kind == "f":
                return [int(v) for v in value.data.ravel().tolist() if math.isfinite(v)]
            raise Unresolved(value, what)
        return [int(v) for v in value.data.ravel().tolist()]

    def scalar(self, position: int, what: str = "size") -> int:
        """Give the one whole number of an input."""
        values = self.known(position, what)
        if len(values) != 1:
            raise self.wrong(f"input {position} should hold one number", repr(self.value(position)))
        return values[0]

    def floats(self, position: int, what: str = "scale") -> list[float]:
        """Give the numbers of an input that says how."""
        value = self.value(position)
        if value.data is None:
            raise Unresolved(value, what)
        return [float(v) for v in value.data.ravel().tolist()]

    # -- attributes ------------------------------------------------------------------------------------------------

    def integer(self, name: str, default: int | None = None) -> int:
        """Give a whole number among the attributes."""
        found = self.attributes.get(name, default)
        if not isinstance(found, int):
            raise self.wrong(f"attribute {name} should be a whole number", _kind(found))
        return found

    def integers(self, name: str, default: Sequence[int] | None = None, count: int | None = None) -> list[int]:
        """Give a list of whole numbers among the attributes, of that length."""
        found = self.attributes.get(name, default)
        if not isinstance(found, tuple | list | range) or not all(isinstance(v, int) for v in found):
            raise self.wrong(f"attribute {name} should be a list of whole numbers", _kind(found))
        if count is not None and len(found) != count:
            raise self.wrong(f"attribute {name} should hold {count} numbers", f"{len(found)} numbers")
        return list(found)

    def text(self, name: str, default: str = "") -> str:
        """Give a text among the attributes."""
        found = self.attributes.get(name, default)
        if not isinstance(found, str):
            raise self.wrong(f"attribute {name} should be a text", _kind(found))
        return found

    def axis(self, axis: int, rank: int, extra: int = 0) -> int:
        """Turn an axis that may count from the end into one that counts from the start."""
        if not -rank <= axis < max(rank, 1) + extra:
            raise self.wrong(f"axis {axis} is outside its input's {rank} dimensions", self.received)
        return axis + rank if axis < 0 else axis

    def axes(self, axes: Sequence[int], rank: int) -> list[int]:
        """Turn axes; none may come twice."""
        turned = [self.axis(axis, rank) for axis in axes]
        if len(set(turned)) != len(turned):
            raise self.wrong("an axis is named twice", f"{list(axes)[:32]}")
        return turned

    # -- words -----------------------------------------------------------------------------------------------------

    @property
    def received(self) -> str:
        """The inputs, for messages."""
        return ", ".join("left out" if v is None else repr(v) for v in self.inputs[:8]) or "no inputs"

    def wrong(self, what: str, received: str | None = None) -> SourceError:
        """Make the error for an operator that cannot run."""
        return SourceError(
            f"{show(self.node.op_type, 80)} cannot run: {what}",
            where=self.where,
            received=received or self.received,
            todo="give other inputs with --input, or export the model again: it does not fit together as it is",
        )

    def check(self, shape: Shape) -> Shape:
        """Refuse a shape that no tensor has."""
        if len(shape) > RANK or any(size < 0 for size in shape) or math.prod(shape) > ELEMENTS:
            text = "x".join(str(size)[:24] for size in shape[:RANK])
            raise self.wrong("its output would have no possible shape", f"{text} from {self.received}")
        return shape


def _kind(found: Any) -> str:
    if found is None:
        return "nothing"
    if isinstance(found, tuple | list):
        return f"a list of {len(found)}"
    return f"{type(found).__name__}: {show(str(found), 60)}" if isinstance(found, int | float | str) else "a tensor"
