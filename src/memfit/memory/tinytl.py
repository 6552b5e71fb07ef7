"""Memory model `tinytl`: the activations that training keeps, as TinyTL counts them.

Definition: fp32, whatever the network's own type. Convolution, linear, batch norm and group norm keep their input, if
their weight is trained; ReLU, ReLU6 and the other piecewise linear activations keep one bit per element, smooth
activations keep their input; pooling and add keep nothing. Everything adds up: what two operations keep counts twice.

TinyTL names no more. The same reasoning (what does the derivative need?) gives the rest: recurrent layers are like
linear ones and other norms like group norm; products of two activations (matmul, attention, mul,
div) keep both; softmax and attention keep their output; everything else keeps nothing.

Source: Cai et al., TinyTL: Reduce Memory, Not Parameters for Efficient On-Device Learning, NeurIPS 2020, section 3.1
(https://arxiv.org/abs/2007.11622) and its published code for counting activations.

Limits: no real framework keeps exactly this; stock PyTorch keeps whole ReLU outputs and inputs of frozen layers, and
counts a tensor once however many operations keep it (`autograd`). Losses keep nothing here.
"""

from __future__ import annotations

from memfit.analysis.values import FORWARD
from memfit.graph.model import Graph, Op, Phase, StorageKind, Tensor
from memfit.graph.optable import Role
from memfit.memory.model import Figures, MemoryModel, View

_FLOAT = 4

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
    graph, values, trainable = view.graph, view.values, view.trainable
    kept = [0] * len(graph.ops)
    for position, op in enumerate(values.forward):
        if op.phase is Phase.FORWARD and not values.alias[position]:
            kept[op.index] = _kept(graph, op, values.roles[position], trainable)
    per_op = tuple(n if op.phase in FORWARD else None for op, n in zip(graph.ops, kept, strict=True))
    return Figures(per_op, sum(kept))


def _kept(graph: Graph, op: Op, part: Role, trainable: frozenset[int]) -> int:
    tensors = graph.tensors
    if part is Role.ACTIVATION:
        source = tensors[op.inputs[0]]
        own = any(tensors[i].storage in trainable for i in op.inputs[1:])
        mask = (source.elements + 7) // 8 if op.kind in _BITMASK else source.elements * _FLOAT
        return mask + (source.elements * _FLOAT if own else 0)
    if part in _WEIGHTED:
        return _input_of_trained(graph, op, trainable)
    if part in (Role.MATMUL, Role.ATTENTION):
        kept = sum(t.elements for t in _activations(graph, op)) * _FLOAT
        return kept + (tensors[op.outputs[0]].elements * _FLOAT if part is Role.ATTENTION and op.outputs else 0)
    if part is Role.SOFTMAX:
        return tensors[op.outputs[0]].elements * _FLOAT
    if op.kind in _PRODUCTS and not graph.scopes[op.scope].class_name.startswith("Dropout"):
        return _factors(graph, op, trainable)
    return 0


def _activations(graph: Graph, op: Op) -> list[Tensor]:
    """List the operands that are no parameters, buffers or constants."""
    return [graph.tensors[i] for i in op.inputs if graph.storages[graph.tensors[i].storage].kind not in _STATE]


def _input_of_trained(graph: Graph, op: Op, trainable: frozenset[int]) -> int:
    """Give the bytes of the input, if a weight is trained; a bias needs no input.

    The weight is the parameter with the most elements and dimensions; of a norm, the first.
    """
    operands = [graph.tensors[i] for i in op.inputs]
    weights = [t for t in operands if graph.storages[t.storage].kind is StorageKind.PARAMETER]
    if weights:
        weight = max(weights, key=lambda t: (t.elements, len(t.shape)))
        if weight.storage not in trainable:
            return 0
    elif not trainable:
        return 0
    activations = _activations(graph, op)
    return activations[0].elements * _FLOAT if activations else 0


def _factors(graph: Graph, op: Op, trainable: frozenset[int]) -> int:
    """Give the bytes of the factors that the other factor's gradient needs."""
    operands = [graph.tensors[i] for i in op.inputs]
    activations = _activations(graph, op)
    if len(operands) < 2 or not activations:
        return 0
    others = [t for t in operands if t.storage in trainable]
    if len(activations) < 2 and not others:
        return 0
    return sum(t.elements for t in activations) * _FLOAT


MODEL = MemoryModel("tinytl", "what training keeps, as TinyTL counts it", "saved", figures, of_training=True)
