"""Kernel workspaces on the CPU: the events of one operation, by the tables of `memfit.memory.cpu`.

Source: measured with torch 2.13.0 (oneDNN 3.12), each operation under the profiler's memory events, on the networks
and operations of `benchmarks/eager_truth.py`. oneDNN chooses layouts by instruction set, and much scratch is made per
thread, so rules hold for the configurations of `VERIFIED`.
"""

from __future__ import annotations

from memfit.graph.model import Graph, Op
from memfit.memory.cpu.convolution import forward
from memfit.memory.cpu.convolution_backward import backward
from memfit.memory.cpu.machine import Machine, Rule
from memfit.memory.cpu.operations import OPERATIONS
from memfit.memory.cpu.plain import PLAIN
from memfit.memory.cpu.transposed import transposed_backward, transposed_forward


def convolution(machine: Machine, op: Op) -> list[int] | None:
    """`aten.convolution`, transposed or not."""
    return transposed_forward(machine, op) if op.args[6] else forward(machine, op)


def convolution_backward(machine: Machine, op: Op) -> list[int] | None:
    """`aten.convolution_backward`, transposed or not."""
    return transposed_backward(machine, op) if op.args[7] else backward(machine, op)


RULES: dict[str, Rule] = {
    "aten.convolution.default": convolution,
    "aten.convolution_backward.default": convolution_backward,
    **OPERATIONS,
}
"""Rules by target."""

VERIFIED = frozenset({("2.13.0", "AVX512"), ("2.13.0", "AVX2")})
"""PyTorch version and instruction set for which `benchmarks/eager_truth.py` was run, on one and two threads."""

VERIFIED_THREADS = 2

HALF = frozenset({"bfloat16", "float16"})

_HALF_NAMES = """
add.Tensor add_.Tensor sub.Tensor mul.Tensor mul_.Tensor mul.Scalar div.Tensor div.Scalar div_.Scalar rsub.Scalar
eq.Scalar ge.Scalar le.Scalar gt.Scalar amax.default prod.default log.default roll.default repeat.default
cumsum.default sort.default tril.default unfold_backward.default native_layer_norm.default _softmax.default
_softmax_backward_data.default _log_softmax.default _log_softmax_backward_data.default
embedding_dense_backward.default upsample_bicubic2d_backward.default
"""
_HALF_RULES = frozenset(f"aten.{name}" for name in _HALF_NAMES.split())
"""Rules that were seen to hold for bfloat16 too."""

_HALF_UNKNOWN = frozenset(
    f"aten.{name}" for name in ("gather.default", "index_add.default", "scatter.src", "scatter_add.default")
)


def events(graph: Graph, op: Op) -> tuple[int, ...] | None:
    """Give the signed bytes that the CPU kernel of one operation allocates and frees, in order, outputs included.

    None where no rule is known for this operation on this machine and dtype.

    >>> from memfit.graph.model import Ref, Storage, StorageKind, Tensor
    >>> x, y = (Tensor(i, i, (2, 8), (8, 1), "float32") for i in range(2))
    >>> storages = (Storage(0, 64, StorageKind.INPUT, -1, 1, 1), Storage(1, 64, StorageKind.ACTIVATION, 0, 1, 1))
    >>> op = Op(0, "mul", "aten.mul.Tensor", (0,), (1,), {}, 0, args=(Ref(0), 0.5))
    >>> events(Graph(storages, (x, y), (op,), (), (0,), (1,)), op)
    (8, 4, 64, -4, -8)
    """
    found = find(Machine(graph), op)
    return None if found is None else tuple(found)


def find(machine: Machine, op: Op) -> list[int] | tuple[int, ...] | None:
    """The same on a machine made before, for a whole graph."""
    target = op.target
    half = op.outputs and machine.tensors[op.outputs[0]].dtype in HALF
    if target in PLAIN:
        return None if half and target in _HALF_UNKNOWN else machine.outputs(op)
    rule = RULES.get(target)
    if rule is None or (half and target not in _HALF_RULES):
        return None
    found = rule(machine, op)
    return None if found is None else list(found)


def doubts(graph: Graph) -> tuple[str, ...]:
    """What about this machine the rules were not verified on, one sentence each."""
    environment = graph.environment
    torch, isa = str(environment.get("torch")).partition("+")[0], str(environment.get("isa"))
    threads = environment.get("threads")
    notes = []
    if (torch, isa) not in VERIFIED:
        known = ", ".join(f"PyTorch {t} with {i}" for t, i in sorted(VERIFIED))
        notes.append(f"the CPU workspaces were verified on {known}, not on PyTorch {torch} with {isa}")
    if isinstance(threads, int) and threads > VERIFIED_THREADS:
        notes.append(f"the CPU workspaces were verified on up to {VERIFIED_THREADS} threads, not on {threads}")
    return tuple(notes)
