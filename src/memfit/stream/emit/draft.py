"""A model being written: tensors and operators after those of another, and which tensors lie in which.

Every tensor follows a template in the model it is made of: its type, its quantization, and as a rule its data.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple

import numpy as np

from memfit.formats.flatbuffer import Span
from memfit.formats.tflite import Operator, OperatorCode, Quantization, TfliteModel, TfliteTensor
from memfit.memory.tflm.builds import build_named
from memfit.memory.tflm.calls import Call, Scratch, tensor_bytes
from memfit.memory.tflm.operators import KERNELS

CODES = {"SLICE": (65, 2), "PAD": (34, 2), "CONCATENATION": (2, 2)}
"""Operators that patches add: BuiltinOperator and version, as converters write them for int8 and int16."""


class Part(NamedTuple):
    """Channels `[low, high)` along an axis of a constant."""

    axis: int
    low: int
    high: int


@dataclass(frozen=True)
class NewTensor:
    """A tensor of the new model."""

    template: int | None
    """Tensor of the old model; None for a constant that patches add, INT32."""
    shape: tuple[int, ...]
    name: str
    data: bytes | None = None
    """Of a constant that patches add."""
    part: Part | None = None
    """Of the template's channels, where a constant was cut."""


@dataclass(frozen=True)
class NewOperator:
    """An operator of the new model."""

    template: int | None
    """Operator of the old model; None for one that patches add."""
    name: str
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    padding: int | None = None
    """In place of the template's."""
    axis: int = 0
    """Of a CONCATENATION that patches add."""


class Cut(NamedTuple):
    """A place between operators that only whole tensors cross."""

    position: int
    """Nodes before it."""
    operators: int
    """Operators of the new model before it."""
    tensors: tuple[int, ...]
    """Those that cross it."""


@dataclass
class Draft:
    """Tensors, operators and views of the model being written."""

    model: TfliteModel
    tensors: list[NewTensor] = field(default_factory=list)
    operators: list[NewOperator] = field(default_factory=list)
    whole: dict[int, int] = field(default_factory=dict)
    """Tensor of the old model → the same in the new one."""
    inside: dict[int, tuple[int, int]] = field(default_factory=dict)
    """Tensor → the tensor that it lies in, and how many bytes after its start."""
    numbers: dict[tuple[tuple[int, ...], bytes], int] = field(default_factory=dict)
    parts: dict[tuple[int, Part], int] = field(default_factory=dict)
    sizes: dict[int, int] = field(default_factory=dict)
    """By tensor, its bytes, where `nbytes` has found them."""
    scratches: dict[tuple[int, tuple[int, ...]], tuple[int, ...]] = field(default_factory=dict)
    """By operator of the old model and shape of its output: what `scratch` has found."""
    cuts: list[Cut] = field(default_factory=list)
    """Where units of patches begin and end, and where one tensor alone lives on."""
    upper: dict[int, bool] = field(default_factory=dict)
    """By tensor that may cross a cut: whether it lies at the upper end of the arena, or at the lower one."""

    def keep(self, tensor: int) -> int:
        """Take a tensor of the old model over; -1 stays -1."""
        if tensor < 0:
            return tensor
        found = self.whole.get(tensor)
        if found is None:
            old = self.model.main.tensors[tensor]
            self.tensors.append(NewTensor(tensor, old.shape, old.name))
            found = self.whole[tensor] = len(self.tensors) - 1
        return found

    def part(self, template: int, shape: Sequence[int], name: str) -> int:
        """Add a tensor that holds part of another one's image."""
        self.tensors.append(NewTensor(template, tuple(shape), name))
        return len(self.tensors) - 1

    def channels(self, template: int, part: Part) -> int:
        """Take some channels of a constant of the old model over; -1 stays -1."""
        if template < 0:
            return template
        found = self.parts.get((template, part))
        if found is None:
            old = self.model.main.tensors[template]
            shape = list(old.shape)
            shape[part.axis] = part.high - part.low
            name = f"{old.name}/channels {part.low} to {part.high - 1}"
            self.tensors.append(NewTensor(template, tuple(shape), name, part=part))
            found = self.parts[template, part] = len(self.tensors) - 1
        return found

    def content(self, tensor: int) -> bytes:
        """Give a constant's data; nothing for what is made at run time."""
        new = self.tensors[tensor]
        if new.template is None:
            return new.data or b""
        old = self.model.main.tensors[new.template]
        raw = self.model.content(old.data)
        if new.part is None:
            return raw
        item = old.nbytes // max(old.elements, 1)
        whole = np.frombuffer(raw[: old.nbytes], np.uint8).reshape(*old.shape, item)
        return whole.take(range(new.part.low, new.part.high), new.part.axis).tobytes()

    def quantization(self, tensor: int) -> Quantization | None:
        """Give a tensor's quantization: that of its template, or of its channels."""
        new = self.tensors[tensor]
        old = None if new.template is None else self.model.main.tensors[new.template].quantization
        if old is None or new.part is None or len(old.scales) < 2:
            return old
        span = slice(new.part.low, new.part.high)
        return old._replace(scales=old.scales[span], zero_points=old.zero_points[span])

    def integers(self, values: Sequence[int], shape: Sequence[int]) -> int:
        """Add a constant of INT32, or find an equal one."""
        key = tuple(shape), struct.pack(f"<{len(values)}i", *values)
        found = self.numbers.get(key)
        if found is None:
            name = "patch/" + ",".join(map(str, values))
            self.tensors.append(NewTensor(None, key[0], name, key[1]))
            found = self.numbers[key] = len(self.tensors) - 1
        return found

    def run(self, template: int, inputs: Sequence[int], outputs: Sequence[int], padding: int | None = None) -> None:
        """Add a copy of an operator of the old model."""
        old = self.model.main.operators[template]
        if old.options.get("padding") == padding:
            padding = None
        self.operators.append(NewOperator(template, old.name, tuple(inputs), tuple(outputs), padding))

    def add(self, name: str, inputs: Sequence[int], output: int, axis: int = 0) -> None:
        """Add an operator that moves bytes."""
        self.operators.append(NewOperator(None, name, tuple(inputs), (output,), axis=axis))

    def place(self, tensor: int, other: int, distance: int) -> None:
        """Let a tensor lie in another one, so many bytes after its start."""
        self.inside[tensor] = other, distance

    def root(self, tensor: int) -> tuple[int, int]:
        """Give the tensor that a tensor lies in, in the end, and how far from its start."""
        at = 0
        while tensor in self.inside:
            tensor, distance = self.inside[tensor]
            at += distance
        return tensor, at

    def is_constant(self, tensor: int) -> bool:
        """Tell whether the file holds a tensor's data."""
        new = self.tensors[tensor]
        return new.data is not None or (
            new.template is not None and self.model.main.tensors[new.template].data is not None
        )

    def nbytes(self, tensor: int) -> int:
        """Bytes of a tensor in the arena."""
        found = self.sizes.get(tensor)
        if found is None:
            new = self.tensors[tensor]
            old = None if new.template is None else self.model.main.tensors[new.template]
            item = 4 if old is None else tensor_bytes(old) // max(old.elements, 1)
            found = self.sizes[tensor] = item * math.prod(new.shape)
        return found

    def scratch(self, operator: NewOperator) -> tuple[int, ...]:
        """Give the bytes of each buffer that the runtime itself places while an operator runs."""
        kernel = KERNELS.get(operator.name)
        if operator.template is None or kernel is None or not operator.outputs:
            return ()
        key = operator.template, self.tensors[operator.outputs[0]].shape
        if key not in self.scratches:
            call = Call(self.model, 0, self.model.main.operators[operator.template], build_named("wheel"))
            call.outputs[0] = call.outputs[0]._replace(shape=key[1])
            self.scratches[key] = tuple(e.nbytes for e in kernel.prepare(call) if isinstance(e, Scratch) and e.nbytes)
        return self.scratches[key]

    def records(self) -> TfliteModel:
        """Give the model as the reader will read it, but for where data stands in the file."""
        model, main = self.model, self.model.main
        codes = list(model.codes)
        added = {}
        for operator in self.operators:
            if operator.template is None and operator.name not in added:
                builtin, version = CODES[operator.name]
                code = OperatorCode(builtin, operator.name, version, is_custom=False)
                if code not in codes:
                    codes.append(code)
                added[operator.name] = codes.index(code)
        tensors = []
        for index, new in enumerate(self.tensors):
            if new.template is None:
                data = Span(0, len(new.data or b""))
                tensors.append(
                    TfliteTensor(
                        index, new.name, new.shape, (), "INT32", 0, data, None, False, False, False, 0
                    )
                )  # fmt: skip
                continue
            old = main.tensors[new.template]
            if (new.shape, new.name) != (old.shape, old.name):
                old = old._replace(name=new.name, shape=new.shape, signature=())
            if new.part is not None:
                old = old._replace(data=Span(0, len(self.content(index))), quantization=self.quantization(index))
            tensors.append(old._replace(index=index))
        operators = []
        for index, made in enumerate(self.operators):
            if made.template is None:
                options = {"axis": made.axis, "fused_activation_function": 0} if made.name == "CONCATENATION" else {}
                kind = "ConcatenationOptions" if options else None
                code_index = added[made.name]
                operators.append(
                    Operator(
                        index, code_index, made.name, False, codes[code_index].version, made.inputs, made.outputs,
                        (), (), kind, options, None,
                    )
                )  # fmt: skip
                continue
            old_operator = main.operators[made.template]
            options = dict(old_operator.options)
            if made.padding is not None:
                options["padding"] = made.padding
            operators.append(
                old_operator._replace(index=index, inputs=made.inputs, outputs=made.outputs, options=options)
            )
        subgraph = main._replace(
            tensors=tuple(tensors),
            operators=tuple(operators),
            inputs=tuple(self.whole[i] for i in main.inputs),
            outputs=tuple(self.whole[i] for i in main.outputs),
        )
        return replace(model, codes=tuple(codes), subgraphs=(subgraph,))
