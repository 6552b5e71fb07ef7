"""Where a capture shows a new storage, but PyTorch writes into an old one unless it is traced: on every device.

Under a dispatch mode autograd does not accumulate in place (torch/csrc/autograd/input_buffer.cpp, `accumulate`), the
backward of indexing does not write into the zeros that it made (torch/csrc/autograd/FunctionsManual.cpp,
`index_backward`), and `linear` adds its bias out of place (aten/src/ATen/native/Linear.cpp). Really, the first
operand's bytes become the result's.
"""

from __future__ import annotations

from collections.abc import Callable

from memfit.graph.model import Graph, Op, Phase
from memfit.memory.cpu.machine import Machine
from memfit.memory.cpu.operations import accumulates, ends


def taken_over(graph: Graph) -> dict[int, tuple[int, int]]:
    """Operation → the storage whose bytes it takes over, and the storage that the capture shows in its place."""
    machine = Machine(graph)
    found = {}
    for op in graph.ops:
        rule = _RULES.get(op.target)
        if rule is not None and rule(machine, op):
            found[op.index] = (graph.tensors[op.inputs[0]].storage, graph.tensors[op.outputs[0]].storage)
    return found


def _addition(machine: Machine, op: Op) -> bool:
    if len(op.inputs) != 2:
        return False
    return (op.phase is Phase.BACKWARD and accumulates(machine, op)) or machine.adds_bias(op)


def _indexing(machine: Machine, op: Op) -> bool:
    return op.phase is Phase.BACKWARD and ends(
        machine, machine.tensors[op.inputs[0]], machine.tensors[op.outputs[0]], op.index
    )


_RULES: dict[str, Callable[[Machine, Op], bool]] = {"aten.add.Tensor": _addition, "aten.index_put.default": _indexing}
