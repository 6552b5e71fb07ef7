"""Memory model `mcunet`: the analytic peak of integer inference, as MCUNetV2 draws it, for any network.

Definition: batch norm and activation are folded into the operation before them. Each operation needs all activations
alive at it (to their last use; the network's outputs to the end; the batch included), ⌈bits/8·elements⌉ bytes each,
with two sharings:

1. A depthwise convolution (channel multiplier 1) whose input dies there, and whose output is no larger, overwrites
   its input channel by channel and needs one output channel (height · width) besides.
2. A convolution or linear layer without activation whose output is only added to a tensor of the same size, which was
   made earlier, dies in that add and is not the layer's own input, accumulates into that tensor's bytes.

Views and pooling to the size there is make no bytes; what the network's own code changes in place stays in place.

Bits may differ by layer. A layer whose output takes another's bytes then needs the larger of the two while it runs
(a depthwise convolution to wider elements starts with the last channel), and its own from then on; the output of
sharing 2 never exists by itself, so that it has the sum's bits.

Source: Lin et al., MCUNetV2: Memory-efficient Patch-based Inference for Tiny Deep Learning, NeurIPS 2021, figure 1
(https://arxiv.org/abs/2110.15352).

Limits: no kernel workspaces (im2col buffers), no alignment, no packing: an arena can be larger. Weights are in flash
and do not count. Every activation counts with the same number of bits, indices and masks too. In a training graph only
the forward pass counts.
"""

from __future__ import annotations

from typing import NamedTuple

from memfit.analysis.layers import INPUT, UNUSED, Layer
from memfit.analysis.values import NONE
from memfit.graph.model import Op
from memfit.graph.optable import Role
from memfit.memory.demand import NO_GROUP, Demand, Moment, Part
from memfit.memory.model import Figures, MemoryModel, View, peak

_ACCUMULATES = frozenset({Role.CONV, Role.LINEAR, Role.MATMUL})


def figures(view: View) -> Figures:
    """Give each layer's need, at its first operation.

    >>> from memfit.graph.model import Graph
    >>> figures(View(Graph((), (), (), (), (), ()))).total_bytes
    0
    """
    found, chosen = demand(view), view.options.layer_bits
    per_op = found.per_op(chosen or {})
    counted = f"at {view.options.bits} bits" if chosen is None else "at its layer's bits"
    return Figures(per_op, peak(per_op), (f"mcunet counts every activation, the input too, {counted}",))


def demand(view: View) -> Demand:
    """Give what is alive at each layer's first operation; layers that share bytes while both exist are one group.

    >>> from memfit.graph.model import Graph
    >>> demand(View(Graph((), (), (), (), (), ()))).moments
    ()
    """
    return _Buffers(view).demand()


def _channels(op: Op, shape: tuple[int, ...]) -> int:
    """Channels of an image, which stand last in the files of some tools."""
    return shape[-1] if op.attrs.get("layout") == "nhwc" else shape[1]


class _HandOver(NamedTuple):
    """Bytes that pass from one layer's output to another's while an operation runs."""

    before: Part
    after: Part
    scratch: int
    """Elements needed besides, of the new output."""


class _Buffers:
    """Bytes that values occupy: which buffer each is in, and from when to when."""

    def __init__(self, view: View) -> None:
        self.graph, self.values = view.graph, view.values
        self.own_bits = view.options.bits
        self.inplace = view.options.inplace_depthwise
        count = len(self.values.forward)
        self.last_read = [reads[-1] if reads else NONE for reads in self.values.readers]
        for value in self.values.leaving:
            self.last_read[value] = count
        self.rows = view.layers
        self.heads = [row for row in self.rows if row.type not in (INPUT, UNUSED)]
        self.position = {op.index: position for position, op in enumerate(self.values.forward)}
        self.row_at = {self.position[row.head]: row for row in self.heads}
        self.number = {row.name: number for number, row in enumerate(self.rows)}
        self.sum_of: dict[str, str] = {}
        """Names of the layers that accumulate into another tensor, and of the add that this makes."""
        self.buffer = [NONE] * len(self.values.producer)
        self.size: list[int] = []
        self.birth: list[int] = []
        self.death: list[int] = []
        self.stays: list[list[tuple[int, int]]] = []
        """By buffer: the groups that are in it one after another, each with the position from which on it is."""
        self.handed: dict[int, _HandOver] = {}
        self._fill()

    def demand(self) -> Demand:
        """Say what is alive at each row's first operation; where bytes change hands, before and after that."""
        used = sorted({group for stays in self.stays for group, _ in stays if group >= 0})
        place = {number: group for group, number in enumerate(used)}
        names: list[list[str]] = [[] for _ in used]
        for row in self.rows:
            number = self._group(row)
            if number in place:
                names[place[number]].append(row.name)
        begin: dict[int, list[tuple[int, Part]]] = {}
        for buffer, stays in enumerate(self.stays):
            if self.death[buffer] < self.birth[buffer]:
                continue
            ends = [*(made for _, made in stays[1:]), self.death[buffer]]
            for (group, made), end in zip(stays, ends, strict=True):
                begin.setdefault(max(made, 0), []).append((end, Part(group, self.size[buffer], self.own_bits)))
        alive: list[tuple[int, Part]] = []
        moments: list[Moment] = []
        for position in range(len(self.values.forward)):
            alive = [stay for stay in alive if stay[0] >= position] + begin.get(position, [])
            here = self.row_at.get(position)
            if here is None:
                continue
            parts = [part for _, part in alive]
            over = self.handed.get(position)
            states = [parts]
            if over is not None:
                for part in over[:2]:
                    if part in parts:
                        parts.remove(part)
                besides = [over.after._replace(elements=over.scratch)] if over.scratch else []
                states = [[*parts, part, *besides] for part in over[:2]]
            moments += [
                Moment(here.head, tuple(part._replace(group=place.get(part.group, NO_GROUP)) for part in state))
                for state in states
            ]
        return Demand(tuple(map(tuple, names)), tuple(moments), len(self.graph.ops), "peak", frozenset(self.sum_of))

    def _group(self, row: Layer | None) -> int:
        """Number the row whose bits a row's output has: its own, or that of the sum it is added into."""
        return NO_GROUP if row is None else self.number[self.sum_of.get(row.name, row.name)]

    def _new(self, value: int, elements: int, made: int, row: Layer | None, *, within_input: bool = False) -> None:
        """Give a value its own bytes; one that is made within its input's counts from the next operation on."""
        self.buffer[value] = len(self.size)
        self.size.append(elements)
        self.birth.append(made + within_input)
        self.death.append(max(self.last_read[value], made))
        self.stays.append([(self._group(row), made + within_input)])

    def _part(self, buffer: int) -> Part:
        return Part(self.stays[buffer][-1][0], self.size[buffer], self.own_bits)

    def _join(self, value: int, buffer: int, made: int, row: Layer | None) -> None:
        """Put a value where another one was."""
        before, group = self._part(buffer), self._group(row)
        if before.group != group:
            self.stays[buffer].append((group, made))
            self.handed[made] = _HandOver(before, self._part(buffer), 0)
        self.buffer[value] = buffer
        self.death[buffer] = max(self.death[buffer], self.last_read[value])

    def _fill(self) -> None:
        graph, values = self.graph, self.values
        given = {row.result: row for row in self.rows if row.type == INPUT}
        for i in graph.inputs:
            tensor = graph.tensors[i]
            value = values.value_of[tensor.storage, tensor.version]
            if self.buffer[value] < 0:
                self._new(value, tensor.elements, NONE, given.get(i))
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
                    self._new(other, values.elements[other], position, None)
            if values.state[value] or self.buffer[value] >= 0:
                continue
            target = values.mutates[position]
            if position in targets and self.buffer[targets[position]] >= 0:
                self._join(value, self.buffer[targets[position]], position, row)
            elif target >= 0 and self.buffer[target] >= 0:
                self._join(value, self.buffer[target], position, row)
            elif self._runs_in_place(op, row, position):
                self._new(value, row.activations, position, row, within_input=True)
                source = graph.tensors[op.inputs[0]]
                before = self._part(self.buffer[values.value_of[source.storage, source.version]])
                scratch = tensor.elements // (tensor.shape[0] * _channels(op, tensor.shape))
                self.handed[position] = _HandOver(before, self._part(self.buffer[value]), scratch)
            else:
                self._new(value, row.activations, position, row)

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
                self._join(value, buffer, position, row)

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
                self.sum_of[layer.name] = row.name
        return targets


MODEL = MemoryModel("mcunet", "analytic peak of integer inference, as in MCUNetV2", "peak", figures, demand=demand)
