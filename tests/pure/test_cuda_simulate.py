"""Runs through the caching allocator on graphs worked out by hand."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import pytest
from graphs import Builder

from memfit.graph.model import BEFORE, Graph, Phase, Ref, StorageKind
from memfit.memory.cuda.allocator import Settings
from memfit.memory.cuda.simulate import CATEGORIES, Run, Simulation, placement_order, simulate

MIB = 1 << 20
BLAS = 8519680
"""cuBLAS's workspace on an A100: 4096 KiB twice and 16 KiB eight times."""


@dataclass
class Net(Builder):
    """A builder for runs on a GPU: operations by the dispatcher's names, gradients, states and host tensors."""

    host: list[int] = field(default_factory=list)
    kept: list[int] = field(default_factory=list)

    def call(self, target: str, inputs: list[int], elements: int | None, phase: Phase, **more: Any) -> int:
        """Run an operation that makes one tensor of so many elements, or that writes to its first input."""
        shapes = [] if elements is None else [(elements,)]
        made = self.op(target, inputs, *shapes, phase=phase, **more)
        self.ops[-1] = self.ops[-1]._replace(target=f"aten.{target}.default")
        return made

    def holds(self, tensor: int, kind: StorageKind) -> int:
        self.kinds[self.tensors[tensor].storage] = kind
        self.kept.append(tensor)
        return tensor

    def exists(self, kind: StorageKind, elements: int, *, host: bool = False) -> int:
        tensor = self._fresh(kind, (elements,), BEFORE)
        if host:
            self.host.append(self.tensors[tensor].storage)
        self.kept.append(tensor)
        return tensor

    def graph(self, **environment: Any) -> Graph:
        return replace(self.build(*self.kept), host=tuple(self.host), environment=environment)


def three_ops(*, accumulating: bool = False, blas: bool = False, unit: int = 1000) -> Graph:
    """Forward, backward and step. Sizes in units of 4 bytes: weight, state and gradient 1, activation 2, temporary 1.

    In a later micro-batch the gradient exists, and backward adds a new one to it.
    """
    net = Net(training=True)
    x = net.input(300)
    w = net.parameter("fc.weight", unit)
    net.buffer("fc.steps", dtype="int64")
    state = net.exists(StorageKind.OPTIMIZER, unit)
    net.exists(StorageKind.OPTIMIZER, 5000, host=True)
    y = net.call("mm" if blas else "relu", [x, w], 2 * unit, Phase.FORWARD)
    net.ops[-1] = net.ops[-1]._replace(saved=(y,))
    if accumulating:
        grad = net.exists(StorageKind.GRADIENT, unit)
        new = net.call("mm" if blas else "mul", [y, w], unit, Phase.BACKWARD)
        net.call("add_", [grad, new], None, Phase.BACKWARD)
    else:
        grad = net.call("mm" if blas else "mul", [y, w], unit, Phase.BACKWARD)
        net.holds(grad, StorageKind.GRADIENT)
    net.call("sqrt", [state, grad], unit, Phase.STEP)
    return net.graph(capability="8.0")


def adds_up(found: Simulation) -> None:
    """The categories sum to what is allocated, at every operation, and nothing is above the peak."""
    assert set(found.by_category) == set(CATEGORIES)
    for index, total in enumerate(found.per_op):
        assert sum(series[index] for series in found.by_category.values()) == total
        assert found.by_category["temporaries"][index] == found.temporary[index]
    assert max(found.per_op, default=0) <= found.peak_allocated_bytes <= found.peak_reserved_bytes
    assert all(a <= r <= found.peak_reserved_bytes for a, r in zip(found.per_op, found.reserved, strict=True))


def at(found: Simulation, name: str) -> list[int]:
    return [value // 512 for value in found.by_category[name]]


def test_three_operations_by_hand() -> None:
    """In blocks of 512 bytes: weight, state, gradient, temporary 8, activation 16, steps 1, input 3.

    Before the first step: 12. Forward 28, backward 36, and the step, without the activation, makes its state: 36.
    Afterwards 28 are kept; the gradient goes: 20. Forward 36, backward 44, step 36.
    """
    graph = three_ops()
    once, twice, thrice, four_times = (simulate(Run(graph), iterations=n) for n in (1, 2, 3, 4))
    for found in (once, twice, thrice, four_times):
        adds_up(found)
    assert [value // 512 for value in once.per_op] == [28, 36, 36]
    assert once.peak_allocated_bytes == 36 * 512
    assert once.between_bytes == 28 * 512
    assert [value // 512 for value in twice.per_op] == [36, 44, 36]
    assert thrice.per_op == twice.per_op == four_times.per_op
    assert thrice.peak_allocated_bytes == 44 * 512
    assert thrice.between_bytes == 28 * 512
    assert thrice.peak_op == 1
    assert at(thrice, "parameters") == [8, 8, 8]
    assert at(thrice, "buffers") == [1, 1, 1]
    assert at(thrice, "inputs") == [3, 3, 3]
    assert at(thrice, "optimizer") == [8, 8, 8]
    assert at(thrice, "gradients") == [0, 8, 8]
    assert at(thrice, "saved") == [16, 16, 0]
    assert at(thrice, "activations") == [0, 0, 8]
    assert thrice.peak_reserved_bytes == 2 * MIB


def test_reserved_by_hand() -> None:
    """Weight, state, gradient and temporary of 3 MiB, an activation of 6: segments of 20 MiB.

    First step: 3 + 6 + 3 = 12, and in the step 3 + 3 + state 3 + temporary 3. Second: 3 + 3 + 6 + 3 = 15. One segment.
    With 5 and 10: the first step fills one, 5 + 10 + 5, and the second's gradient, with the state there, a new one.
    """
    small, large = simulate(Run(three_ops(unit=3 * MIB // 4))), simulate(Run(three_ops(unit=5 * MIB // 4)))
    rest = 4 * 512  # input and counter, in a segment of 2 MiB
    assert (small.peak_allocated_bytes, small.peak_reserved_bytes) == (15 * MIB + rest, 22 * MIB)
    assert (large.peak_allocated_bytes, large.peak_reserved_bytes) == (25 * MIB + rest, 42 * MIB)


def test_state_is_made_once_and_in_the_first_step() -> None:
    first = simulate(Run(three_ops()), iterations=1)
    assert at(first, "optimizer") == [0, 0, 8]
    assert at(simulate(Run(three_ops()), iterations=7), "optimizer") == [8, 8, 8]


def test_state_that_a_captured_first_step_makes_is_made_once() -> None:
    net = Net(training=True)
    w = net.parameter("fc.weight", 1000)
    grad = net.holds(net.call("mul", [w], 1000, Phase.BACKWARD), StorageKind.GRADIENT)
    net.holds(net.call("zeros_like", [grad], 1000, Phase.STEP), StorageKind.OPTIMIZER)
    found = [simulate(Run(net.graph()), iterations=n) for n in (1, 2, 5)]
    assert [at(f, "optimizer") for f in found] == [[0, 8], [8, 8], [8, 8]]
    assert {f.between_bytes for f in found} == {24 * 512}


def test_gradients_stay_unless_set_to_none() -> None:
    """The first iteration is as before; then 28 stay. Forward 44, a new gradient 52; with the activation gone 36."""
    run = Run(three_ops(), three_ops(accumulating=True), set_to_none=False)
    found = simulate(run)
    adds_up(found)
    assert [value // 512 for value in found.per_op] == [44, 52, 36, 36]
    assert at(found, "gradients") == [8, 8, 8, 8]
    assert at(found, "activations") == [0, 8, 8, 8]
    assert found.between_bytes == simulate(Run(three_ops())).between_bytes
    assert found.graph is run.later
    assert simulate(run, iterations=4) == simulate(run, iterations=3)


def test_accumulation_runs_the_first_graph_once_and_the_later_ones_after_it() -> None:
    first, later = three_ops(), three_ops(accumulating=True)
    run = Run(first, later, accumulate=3)
    assert [(graph is first, steps) for graph, steps in run.graphs(5)] == [
        (True, False), (False, False), (False, True),
    ]  # fmt: skip
    kept = replace(run, set_to_none=False)
    assert [graph is first for graph, _ in kept.graphs(0)] == [True, False, False]
    assert [graph is first for graph, _ in kept.graphs(1)] == [False, False, False]
    found = simulate(run)
    adds_up(found)
    # 12 + state 8 + gradient 8 are held in the second micro-batch: forward 44, backward 52.
    assert found.peak_allocated_bytes == 52 * 512
    assert found.between_bytes == 28 * 512


def test_only_the_last_micro_batch_steps() -> None:
    found = simulate(Run(three_ops(), three_ops(accumulating=True), accumulate=2), iterations=1)
    assert at(found, "optimizer") == [0, 0, 0, 8]


def test_each_thread_gets_a_cublas_workspace_at_its_first_product() -> None:
    found = simulate(Run(three_ops(blas=True)), iterations=1)
    assert found.by_category["libraries"] == (BLAS, 2 * BLAS, 2 * BLAS)
    assert simulate(Run(three_ops(blas=True)), iterations=5).by_category["libraries"] == (2 * BLAS,) * 3
    assert simulate(Run(three_ops())).by_category["libraries"] == (0, 0, 0)


@pytest.mark.parametrize(("capability", "each"), [("7.5", BLAS), ("8.9", BLAS), ("9.0", 32 * MIB), ("12.0", 32 * MIB)])
def test_cublas_workspace_by_capability(capability: str, each: int) -> None:
    graph = replace(three_ops(blas=True), environment={"capability": capability})
    assert simulate(Run(graph)).by_category["libraries"][-1] == 2 * each


def reduction() -> Graph:
    """A sum over 8192 rows of 768 columns: 48 MiB of its own, and 24 bytes, while it runs."""
    net = Net()
    x = net.input(8192, 768)
    y = net.op("sum", [x], (768,))
    net.ops[-1] = net.ops[-1]._replace(target="aten.sum.dim_IntList", args=(Ref(x), (0,)))
    z = net.unary("relu", y)
    return net.build(z)


def test_temporaries_are_freed_when_the_operation_returns() -> None:
    found = simulate(Run(reduction()), iterations=2)
    adds_up(found)
    assert found.by_category["temporaries"] == (48 * MIB + 512, 0)
    assert found.per_op == (24 * MIB + 3072 + 48 * MIB + 512, 24 * MIB + 2 * 3072)
    assert found.between_bytes == 24 * MIB


def test_the_hosts_storages_are_not_on_the_gpu() -> None:
    net = Net(training=True)
    x = net.input(1000)
    step = net.exists(StorageKind.OPTIMIZER, 1 << 20, host=True)
    ids = net.exists(StorageKind.CONSTANT, 1 << 20, host=True)
    made = net.call("add", [ids], 1 << 20, Phase.FORWARD)
    net.host.append(net.tensors[made].storage)
    net.call("relu", [x], 1000, Phase.FORWARD)
    net.call("add_", [step], None, Phase.STEP)
    found = simulate(Run(net.graph()))
    adds_up(found)
    assert found.peak_allocated_bytes == 2 * 4096


def test_a_capacity_that_is_too_small_gives_a_shortfall() -> None:
    graph = three_ops(unit=5 * MIB // 4)
    needed = simulate(Run(graph)).peak_reserved_bytes
    enough = simulate(Run(graph), Settings(capacity_bytes=needed))
    assert enough.shortfall is None
    assert enough.retries == 0
    short = simulate(Run(graph), Settings(capacity_bytes=20 * MIB))
    assert short.shortfall is not None
    # The weight's segment is all there is; the counter next to it would open one for small sizes.
    assert (short.shortfall.requested_bytes, short.shortfall.segment_bytes) == (8, 2 * MIB)
    assert (short.shortfall.allocated_bytes, short.shortfall.reserved_bytes) == (5 * MIB, 20 * MIB)
    assert short.per_op == ()
    later = simulate(Run(graph), Settings(capacity_bytes=22 * MIB))
    assert later.shortfall is not None
    # The first step fits, the second's gradient does not: weight 5, state 5, activation 10, input and counter.
    assert (later.shortfall.requested_bytes, later.shortfall.allocated_bytes) == (5 * MIB, 20 * MIB + 2048)
    adds_up(later)


def test_expandable_segments_reserve_what_they_map() -> None:
    graph = three_ops(unit=5 * MIB // 4)
    plain, expandable = simulate(Run(graph)), simulate(Run(graph), Settings(expandable_segments=True))
    assert expandable.per_op == plain.per_op
    assert expandable.peak_reserved_bytes <= plain.peak_reserved_bytes
    assert expandable.peak_reserved_bytes % (2 * MIB) == 0


@pytest.mark.parametrize("phase", [Phase.BACKWARD, Phase.FORWARD])
def test_autograd_adds_gradients_in_place(phase: Phase) -> None:
    """A capture shows a new tensor; really the first one's bytes are its bytes, and only in backward.

    In blocks of 512 bytes, all are 8: input; then a; a and b; in place a and b, else a, b and c; c alone.
    """
    net = Net(training=True)
    x = net.input(1000)
    a, b = (net.call("mul", [x], 1000, phase) for _ in range(2))
    c = net.call("add", [a, b], 1000, phase)
    net.ops[-1] = net.ops[-1]._replace(target="aten.add.Tensor", args=(Ref(a), Ref(b)))
    net.call("relu_", [c], None, phase)
    found = simulate(Run(net.graph()), iterations=1)
    adds_up(found)
    assert [value // 512 for value in found.per_op] == [16, 24, 24 if phase is Phase.BACKWARD else 32, 16]
    assert found.between_bytes == 8 * 512


def test_what_is_added_in_place_may_become_a_gradient() -> None:
    net = Net(training=True)
    w = net.parameter("weight", 1000)
    a, b = (net.call("mul", [w], 1000, Phase.BACKWARD) for _ in range(2))
    c = net.holds(net.call("add", [a, b], 1000, Phase.BACKWARD), StorageKind.GRADIENT)
    net.ops[-1] = net.ops[-1]._replace(target="aten.add.Tensor", args=(Ref(a), Ref(b)))
    net.call("sqrt", [c], 1000, Phase.STEP)
    found = simulate(Run(net.graph()))
    adds_up(found)
    assert at(found, "gradients") == [0, 0, 8, 8]
    assert at(found, "activations") == [8, 16, 8, 8]
    assert simulate(Run(net.graph()), iterations=6) == found


@pytest.mark.parametrize("accumulate", [1, 2, 3])
@pytest.mark.parametrize("set_to_none", [True, False])
@pytest.mark.parametrize("unit", [1000, 3 * MIB // 4, 5 * MIB // 4, 11 * MIB // 4])
def test_from_the_third_iteration_on_nothing_changes(accumulate: int, set_to_none: bool, unit: int) -> None:
    run = Run(three_ops(unit=unit), three_ops(accumulating=True, unit=unit), accumulate, set_to_none)
    third, fourth, ninth = (simulate(run, iterations=n) for n in (3, 4, 9))
    adds_up(third)
    assert third == fourth == ninth


def test_a_graph_without_operations() -> None:
    net = Net()
    net.input(1000)
    net.parameter("weight", 100)
    found = simulate(Run(net.build()))
    assert (found.per_op, found.peak_op, found.peak_allocated_bytes) == ((), -1, 9 * 512)


def test_placement_is_that_of_module_to() -> None:
    """Children first in the order of registration, then a module's own parameters, then its buffers; tied ones once."""
    net = Net()
    x = net.input(3)
    net.module("a")
    scale = net.parameter("scale", 5)
    net.buffer("table", 7)
    net.parameter("b.weight", 11)
    inner = net.parameter("a.inner.weight", 13)
    net.buffer("a.inner.mean", 17)
    net.parameter("a.bias", 19)
    net.scopes["b"]["params"].append(inner)  # tied
    net.exists(StorageKind.OPTIMIZER, 23)
    constant = net.exists(StorageKind.CONSTANT, 29)
    y = net.op("add", [x, scale, constant], (3,))
    graph = net.build(y, *net.kept)
    sizes = [graph.storages[s].nbytes // 4 for s in placement_order(graph)]
    # Modules are numbered when they are declared: a, b, then a.inner; a's child comes before a itself.
    assert sizes == [13, 17, 19, 11, 5, 7, 3, 29]


def test_zero_bytes_take_nothing() -> None:
    net = Net()
    x = net.input(0)
    net.op("relu", [x], (0,))
    assert simulate(Run(net.build())).peak_reserved_bytes == 0


def test_a_cache_of_an_earlier_run_may_be_dropped() -> None:
    """What an earlier run left is there before the first operation, and goes when the run lets go of it."""
    net = Net()
    x = net.input(1000)
    past = net._fresh(StorageKind.ACTIVATION, (2000,), BEFORE, name="past_kv_cache.0.keys")
    grown = net.op("cat", [past, x], (3000,))
    net.tensors[grown] = net.tensors[grown]._replace(name="kv_cache.0.keys")
    y = net.unary("relu", grown)
    found = simulate(Run(net.build(grown, y)), iterations=1)
    adds_up(found)
    assert at(found, "kv cache") == [16 + 24, 24]
    assert [value // 512 for value in found.per_op] == [8 + 16 + 24, 8 + 24 + 24]
