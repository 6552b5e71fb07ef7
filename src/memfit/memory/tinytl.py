"""Memory model `tinytl`: the activations that training keeps, as TinyTL counts them.

Definition: fp32, whatever the network's own type. Convolution, linear, batch norm and group norm keep their input, if
their weight is trained; ReLU, ReLU6 and the other piecewise linear activations keep one bit per element, smooth
activations keep their input; pooling and add keep nothing. Everything adds up: what two operations keep counts twice.

TinyTL names no more. The same reasoning (what does the derivative need?) gives the rest: recurrent layers are like
linear ones and other norms like group norm; products of two activations (matmul, attention, mul,
div) keep both; softmax and attention keep their output; everything else keeps nothing.

Where layers' outputs have bits of their own, ⌈bits/8 · elements⌉ bytes are kept of them instead of fp32's.

Source: Cai et al., TinyTL: Reduce Memory, Not Parameters for Efficient On-Device Learning, NeurIPS 2020, section 3.1
(https://arxiv.org/abs/2007.11622) and its published code for counting activations.

Limits: no real framework keeps exactly this; stock PyTorch keeps whole ReLU outputs and inputs of frozen layers, and
counts a tensor once however many operations keep it (`autograd`). Losses keep nothing here.
"""

from __future__ import annotations

from memfit.graph.model import Graph, Op, Phase, StorageKind, Tensor
from memfit.graph.optable import Role
from memfit.memory.demand import NO_GROUP, Demand, Moment, Part, storage_groups
from memfit.memory.model import Figures, MemoryModel, View

_FLOAT, _MASK = 32, 1
"""Bits of what is kept of an element: its value, or on which piece of the function it was."""

_BITMASK = frozenset(
    {"relu", "relu6", "leaky_relu", "hardtanh", "clamp", "prelu", "threshold", "rrelu", "hardshrink", "softshrink"}
)
"""Piecewise linear: which piece it was is all that the derivative needs."""

_WEIGHTED = frozenset({Role.CONV, Role.LINEAR, Role.RECURRENT, Role.BATCH_NORM, Role.NORM})
_PRODUCTS = frozenset({"mul", "div", "addcmul", "bilinear"})
_STATE = frozenset({StorageKind.PARAMETER, StorageKind.BUFFER, StorageKind.CONSTANT})


def figures(view: View) -> Figures:
    """Give the bytes that each forward operation keeps.

    >>> from memfit.graph.model import Graph
    >>> figures(View(Graph((), (), (), (), (), ()))).total_bytes
    0
    """
    per_op = demand(view).per_op(view.options.layer_bits or {})
    return Figures(per_op, sum(kept or 0 for kept in per_op))


def demand(view: View) -> Demand:
    """Give what each forward operation keeps.

    >>> from memfit.graph.model import Graph
    >>> demand(View(Graph((), (), (), (), (), ()))).moments
    ()
    """
    graph, values, trainable = view.graph, view.values, view.trainable
    names, group_of = ((), {}) if view.options.layer_bits is None else storage_groups(view)
    position = {op.index: place for place, op in enumerate(values.forward)}
    moments = []
    for op in values.forward:
        kept: list[Part] = []
        place = position[op.index]
        if op.phase is Phase.FORWARD and not values.alias[place]:
            for tensor, bits in _kept(graph, op, values.roles[place], trainable):
                group = group_of.get(tensor.storage, NO_GROUP) if bits == _FLOAT else NO_GROUP
                kept.append(Part(group, tensor.elements, bits))
        moments.append(Moment(op.index, tuple(kept)))
    return Demand(names, tuple(moments), len(graph.ops), "saved")


def _kept(graph: Graph, op: Op, part: Role, trainable: frozenset[int]) -> list[tuple[Tensor, int]]:
    """List the tensors kept, and the bits of an element."""
    tensors = graph.tensors
    if part is Role.ACTIVATION:
        source = tensors[op.inputs[0]]
        own = any(tensors[i].storage in trainable for i in op.inputs[1:])
        whole = [(source, _FLOAT)]
        return ([(source, _MASK)] if op.kind in _BITMASK else whole) + (whole if own else [])
    if part in _WEIGHTED:
        return _input_of_trained(graph, op, trainable)
    if part in (Role.MATMUL, Role.ATTENTION):
        kept = [(t, _FLOAT) for t in _activations(graph, op)]
        return kept + ([(tensors[op.outputs[0]], _FLOAT)] if part is Role.ATTENTION and op.outputs else [])
    if part is Role.SOFTMAX:
        return [(tensors[op.outputs[0]], _FLOAT)]
    if op.kind in _PRODUCTS and not graph.scopes[op.scope].class_name.startswith("Dropout"):
        return _factors(graph, op, trainable)
    return []


def _activations(graph: Graph, op: Op) -> list[Tensor]:
    """List the operands that are no parameters, buffers or constants."""
    return [graph.tensors[i] for i in op.inputs if graph.storages[graph.tensors[i].storage].kind not in _STATE]


def _input_of_trained(graph: Graph, op: Op, trainable: frozenset[int]) -> list[tuple[Tensor, int]]:
    """Give the input, if a weight is trained; a bias needs no input.

    The weight is the parameter with the most elements and dimensions; of a norm, the first.
    """
    operands = [graph.tensors[i] for i in op.inputs]
    weights = [t for t in operands if graph.storages[t.storage].kind is StorageKind.PARAMETER]
    if weights:
        weight = max(weights, key=lambda t: (t.elements, len(t.shape)))
        if weight.storage not in trainable:
            return []
    elif not trainable:
        return []
    return [(t, _FLOAT) for t in _activations(graph, op)[:1]]


def _factors(graph: Graph, op: Op, trainable: frozenset[int]) -> list[tuple[Tensor, int]]:
    """List the factors that the other factor's gradient needs."""
    operands = [graph.tensors[i] for i in op.inputs]
    activations = _activations(graph, op)
    if len(operands) < 2 or not activations:
        return []
    others = [t for t in operands if t.storage in trainable]
    if len(activations) < 2 and not others:
        return []
    return [(t, _FLOAT) for t in activations]


MODEL = MemoryModel(
    "tinytl", "what training keeps, as TinyTL counts it", "saved", figures, of_training=True, demand=demand
)
