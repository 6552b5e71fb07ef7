"""Networks with QuantizeLinear and DequantizeLinear around every operator, read as the integer networks they mean.

`DequantizeLinear → Conv → Relu → QuantizeLinear` runs in integers: its tensors are the integers, and no bytes are ever
taken by the floating-point values in between. An operator runs in integers where all its activations come from
DequantizeLinear and all that reads its outputs is QuantizeLinear; one activation function may stand before that.
Everything else stays as the file says: a DequantizeLinear for an operator that works in floating point makes a
floating-point tensor.
"""

from __future__ import annotations

from collections.abc import Sequence

from memfit.capture.sources.onnx.call import Call, Value
from memfit.capture.sources.onnx.steps import Step
from memfit.graph.optable import Role, role

QUANTIZE, DEQUANTIZE = "QuantizeLinear", "DequantizeLinear"


def fold_quantization(steps: Sequence[Step], outputs: Sequence[Value]) -> tuple[list[Step], int]:
    """Give the steps as they run in integers, and how many operators do.

    Values are told which type they are stored in; steps that quantize what is made as integers are left out.
    """
    if not any(step.node.op_type == QUANTIZE for step in steps):
        return list(steps), 0
    return _Folding(steps, outputs).run()


class _Folding:
    """One pass over a network."""

    def __init__(self, steps: Sequence[Step], outputs: Sequence[Value]) -> None:
        self.steps = steps
        self.readers: dict[Value, list[Step]] = {}
        self.maker: dict[Value, Step] = {}
        for step in steps:
            for value in dict.fromkeys(v for v in step.inputs if v is not None):
                self.readers.setdefault(value, []).append(step)
            for made in step.outputs:
                if made is not None:
                    self.maker[made] = step
        self.leaving = set(outputs)

    def run(self) -> tuple[list[Step], int]:
        """Find the integer operators, then give their values the integers' bytes."""
        ends = self._ends()
        integer: set[Step] = set()
        for step in self.steps:
            if step.node.op_type in (QUANTIZE, DEQUANTIZE) or step.writes is not None or not step.node.op_type:
                continue
            made = [v for v in step.outputs if v is not None and (v in self.readers or v in self.leaving)]
            if not made or not all(v in ends for v in made):
                continue
            read = [v for v in step.inputs if v is not None and not v.constant and v.dtype.startswith(("float", "bf"))]
            if read and all(self._is_integer(v, integer) for v in read):
                integer.add(step)
        if not integer:
            return list(self.steps), 0
        gone: set[Step] = set()
        for step in self.steps:
            if step in integer:
                self._store(step, ends, gone)
        kept: list[Step] = []
        for step in self.steps:
            if step in gone:
                continue
            if step.node.op_type == DEQUANTIZE:
                result = step.outputs[0]
                readers = self.readers.get(result, []) if result is not None else []
                if result is not None and result not in self.leaving and readers and all(r in integer for r in readers):
                    source = step.call.value(0)
                    result.base, result.stored = source, source.stored
                    continue
            if step in integer:
                self._read_integers(step)
            kept.append(step)
        return kept, len(integer)

    def _ends(self) -> dict[Value, list[Step]]:
        """Find the values that are quantized at once, or after one activation: value → the QuantizeLinear steps."""
        ends: dict[Value, list[Step]] = {}
        for step in reversed(self.steps):
            for value in step.outputs:
                if value is None or value in self.leaving or not value.dtype.startswith(("float", "bf")):
                    continue
                readers = self.readers.get(value, [])
                if not readers:
                    continue
                if all(r.node.op_type == QUANTIZE and r.inputs[0] is value for r in readers):
                    ends[value] = readers
                elif len(readers) == 1 and self._is_activation(readers[0]):
                    result = readers[0].outputs[0]
                    if result is not None and result in ends:
                        ends[value] = ends[result]
        return ends

    def _is_activation(self, step: Step) -> bool:
        kind = step.entry.kind if isinstance(step.entry.kind, str) else step.entry.kind(step.call)
        return role(kind) in (Role.ACTIVATION, Role.BATCH_NORM)

    def _is_integer(self, value: Value, integer: set[Step]) -> bool:
        maker = self.maker.get(value)
        return maker is not None and (maker.node.op_type == DEQUANTIZE or maker in integer)

    def _store(self, step: Step, ends: dict[Value, list[Step]], gone: set[Step]) -> None:
        """Let an integer operator's outputs be what the first QuantizeLinear makes of them."""
        for value in step.outputs:
            if value is None:
                continue
            if value not in ends:
                continue
            quantizers = ends[value]
            first = quantizers[0].outputs[0]
            if first is None:
                continue
            value.stored = first.dtype
            if quantizers[0].inputs[0] is value:
                first.base, first.stored = value, first.dtype
                gone.add(quantizers[0])
                step.settings += [v for v in quantizers[0].inputs[1:] if v is not None and v.constant]

    def _read_integers(self, step: Step) -> None:
        """Let an integer operator read what DequantizeLinear would make floating-point values of."""
        inputs: list[Value | None] = []
        for value in step.inputs:
            maker = self.maker.get(value) if value is not None else None
            if value is not None and maker is not None and maker.node.op_type == DEQUANTIZE:
                source = maker.call.value(0)
                inputs.append(Value(value.name, value.shape, value.dtype, base=source, stored=source.stored))
                step.settings += [v for v in maker.inputs[1:] if v is not None and v.constant]
            else:
                inputs.append(value)
        call = step.call
        step.call = Call(call.node, inputs, call.opset, call.where)
