"""Memory model `mcunet`: the analytic peak of integer inference, as MCUNetV2 draws it, for any network.

Definition: batch norm and activation are folded into the operation before them. Each operation needs all activations
alive at it (to their last use; the network's outputs to the end; the batch included), ⌈bits/8·elements⌉ bytes each,
with two sharings:

1. A depthwise convolution (channel multiplier 1) whose input dies there, and whose output is no larger, overwrites
   its input channel by channel and needs one output channel (height · width) besides.
2. A convolution or linear layer without activation whose output is only added to a tensor of the same size, which was
   made earlier, dies in that add and is not the layer's own input, accumulates into that tensor's bytes.

Views and pooling to the size there is make no bytes; what the network's own code changes in place stays in place.

Source: Lin et al., MCUNetV2: Memory-efficient Patch-based Inference for Tiny Deep Learning, NeurIPS 2021, figure 1
(https://arxiv.org/abs/2110.15352).

Limits: no kernel workspaces (im2col buffers), no alignment, no packing: an arena can be larger. Weights are in flash
and do not count. Every activation counts with the same number of bits, indices and masks too. In a training graph only
the forward pass counts.
"""

from __future__ import annotations

from collections.abc import Callable

from memfit.analysis.layers import INPUT, UNUSED, Layer
from memfit.analysis.values import NONE, Values
from memfit.graph.model import Graph, Op
from memfit.graph.optable import Role
from memfit.memory.model import Figures, MemoryModel, View, peak

_ACCUMULATES = frozenset({Role.CONV, Role.LINEAR, Role.MATMUL})


def figures(view: View) -> Figures:
    """Give each layer's need, at its first operation.

    >>> from memfit.graph.model import Graph
    >>> figures(View(Graph((), (), (), (), (), ()))).total_bytes
    0
    """
    values, bits = view.values, view.options.bits
    plan = _Buffers(view.graph, values, view.layers, inplace_depthwise=view.options.inplace_depthwise)
    needs = plan.needs(lambda elements: (elements * bits + 7) // 8)
    per_op: list[int | None] = [None] * len(view.graph.ops)
    for index, need in needs.items():
        per_op[index] = need
    note = f"mcunet counts every activation, the input too, at {bits} bits"
    return Figures(tuple(per_op), peak(tuple(per_op)), (note,))


def _channels(op: Op, shape: tuple[int, ...]) -> int:
    """Channels of an image, which stand last in the files of some tools."""
    return shape[-1] if op.attrs.get("layout") == "nhwc" else shape[1]


class _Buffers:
    """Bytes that values occupy: which buffer each is in, and from when to when."""

    def __init__(self, graph: Graph, values: Values, rows: tuple[Layer, ...], *, inplace_depthwise: bool) -> None:
        self.graph = graph
        self.values = values
        self.inplace = inplace_depthwise
        count = len(values.forward)
        self.last_read = [reads[-1] if reads else NONE for reads in values.readers]
        for value in values.leaving:
            self.last_read[value] = count
        self.heads = [row for row in rows if row.type not in (INPUT, UNUSED)]
        self.position = {op.index: position for position, op in enumerate(values.forward)}
        self.row_at = {self.position[row.head]: row for row in self.heads}
        self.buffer = [NONE] * len(values.producer)
        self.size: list[int] = []
        self.birth: list[int] = []
        self.death: list[int] = []
        self.scratch: dict[int, int] = {}
        self._fill()

    def needs(self, to_bytes: Callable[[int], int]) -> dict[int, int]:
        """Bytes at each row's first operation, by operation index; `to_bytes` turns elements into bytes."""
        count = len(self.values.forward)
        change = [0] * (count + 2)
        for size, birth, death in zip(self.size, self.birth, self.death, strict=True):
            if death >= birth:
                taken = to_bytes(size)
                change[max(birth, 0)] += taken
                change[min(death, count) + 1] -= taken
        live, alive = 0, []
        for step in change:
            live += step
            alive.append(live)
        return {
            row.head: alive[position] + to_bytes(self.scratch.get(position, 0)) for position, row in self.row_at.items()
        }

    def _new(self, value: int, elements: int, made: int, *, within_input: bool = False) -> None:
        """Give a value its own bytes; one that is made within its input's counts from the next operation on."""
        self.buffer[value] = len(self.size)
        self.size.append(elements)
        self.birth.append(made + within_input)
        self.death.append(max(self.last_read[value], made))

    def _join(self, value: int, buffer: int) -> None:
        self.buffer[value] = buffer
        self.death[buffer] = max(self.death[buffer], self.last_read[value])

    def _fill(self) -> None:
        graph, values = self.graph, self.values
        for i in graph.inputs:
            tensor = graph.tensors[i]
            value = values.value_of[tensor.storage, tensor.version]
            if self.buffer[value] < 0:
                self._new(value, tensor.elements, NONE)
        targets = self._accumulations()
        row: Layer | None
        inner = {self.position[i]: row for row in self.heads for i in row.ops if i != row.head}
        for position, op in enumerate(values.forward):
            if values.alias[position]:
                continue
            row = self.row_at.get(position)
            if row is None:
                self._follow(position, inner.get(position))
                continue
            main = values.result[position]
            if main < 0:
                continue
            tensor = graph.tensors[main]
            value = values.value_of[tensor.storage, tensor.version]
            for other in values.outputs[position]:
                if other != value and not values.state[other] and self.last_read[other] >= 0:
                    self._new(other, values.elements[other], position)
            if values.state[value] or self.buffer[value] >= 0:
                continue
            target = values.mutates[position]
            if position in targets and self.buffer[targets[position]] >= 0:
                self._join(value, self.buffer[targets[position]])
            elif target >= 0 and self.buffer[target] >= 0:
                self._join(value, self.buffer[target])
            elif self._runs_in_place(op, row, position):
                self._new(value, row.activations, position, within_input=True)
                self.scratch[position] = tensor.elements // (tensor.shape[0] * _channels(op, tensor.shape))
            else:
                self._new(value, row.activations, position)

    def _follow(self, position: int, row: Layer | None) -> None:
        """Put what a folded operation makes where its row's output is."""
        values = self.values
        if row is None:
            return
        head = self.position[row.head]
        if position < head:  # prepares a weight
            return
        main = values.result[head]
        if main < 0:
            return
        tensor = self.graph.tensors[main]
        buffer = self.buffer[values.value_of[tensor.storage, tensor.version]]
        if buffer < 0:
            return
        result = values.result[position]
        if result >= 0:
            made = self.graph.tensors[result]
            value = values.value_of[made.storage, made.version]
            if self.buffer[value] < 0 and not values.state[value]:
                self._join(value, buffer)

    def _runs_in_place(self, op: Op, row: Layer, position: int) -> bool:
        """True for a depthwise convolution that may overwrite its input."""
        if not self.inplace or not op.kind.startswith("depthwise"):
            return False
        values, tensors = self.values, self.graph.tensors
        source = tensors[op.inputs[0]]
        value = values.value_of.get((source.storage, source.version), NONE)
        result = tensors[values.result[position]]
        return (
            value >= 0
            and self.buffer[value] >= 0
            and self.death[self.buffer[value]] == position
            and len(result.shape) > 2
            and _channels(op, result.shape) == _channels(op, source.shape)
            and result.elements > 0
            and row.activations <= values.elements[value]
        )

    def _accumulations(self) -> dict[int, int]:
        """Find the products that write into a residual's bytes: position of the product → value of the residual.

        The add's own value joins the same bytes, so its position is in the answer too.
        """
        values = self.values
        row_of: dict[int, tuple[int, Layer]] = {}
        for position, row in self.row_at.items():
            for index in (row.head, *row.ops):
                at = self.position[index]
                if at >= position and not values.alias[at] and values.result[at] >= 0:
                    tensor = self.graph.tensors[values.result[at]]
                    row_of[values.value_of[tensor.storage, tensor.version]] = (position, row)
        targets: dict[int, int] = {}
        for position, row in self.row_at.items():
            inputs = values.inputs[position]
            if row.role is not Role.ADD or len(inputs) != 2:
                continue
            first, second = inputs
            made_at = [row_of[v][0] if v in row_of else NONE for v in inputs]
            product, residual = (first, second) if made_at[0] > made_at[1] else (second, first)
            made = row_of.get(product)
            if made is None:
                continue
            head, layer = made
            if (
                layer.role in _ACCUMULATES
                and layer.activation is None
                and len(values.readers[product]) == 1
                and product not in values.leaving
                and self.last_read[residual] == position
                and not values.state[residual]
                and residual not in values.inputs[head]
                and values.producer[residual] < head
                and values.elements[residual] == layer.activations == row.activations
            ):
                targets[head] = residual
                targets[position] = residual
        return targets


MODEL = MemoryModel("mcunet", "analytic peak of integer inference, as in MCUNetV2", "peak", figures)
