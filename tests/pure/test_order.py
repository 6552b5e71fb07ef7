"""The order search against brute force over all orders, a simulator of its own, and networks of known shape."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence

import order_nets
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from order_nets import INSTANCES, Net

from memfit.plan.downsets import Part, Search, bits
from memfit.plan.order import OrderError, Step, _Network, _simulate, dependencies, live_bytes, search


def peak_of(net: Net, order: Sequence[int]) -> int:
    """Add up the live storages moment by moment, from nothing but their first and last use."""
    uses = {
        storage: [at for at, n in enumerate(order) if storage in net.steps[n].inputs + net.steps[n].outputs]
        for storage in range(len(net.sizes))
    }
    spans = {}
    for storage, at in uses.items():
        first = -1 if storage in net.given else min(at, default=None)
        last = len(order) if storage in net.kept else max(at, default=-1)
        if first is not None:
            spans[storage] = range(first, last + 1)
    extra = [0, *(net.steps[n].extra for n in order)]
    return max(
        extra[moment + 1] + sum(net.sizes[storage] for storage, span in spans.items() if moment in span)
        for moment in range(-1, len(order))
    )


def all_orders(steps: Sequence[Step], done: tuple[int, ...] = ()) -> Iterator[tuple[int, ...]]:
    """Every order in which readers see what the list's order shows them."""
    if len(done) == len(steps):
        yield done
    for number, step in enumerate(steps):
        if number in done:
            continue
        earlier = [
            other
            for other in range(number)
            if other in step.after
            or set(steps[other].outputs) & set(step.inputs)
            or set(steps[other].inputs) & set(step.outputs)
        ]
        if set(earlier) <= set(done):
            yield from all_orders(steps, (*done, number))


def whole(net: Net) -> Part:
    """The problem as the exact search gets it, in one piece."""
    network = _Network(net.steps, net.sizes, net.given, net.kept)
    network.link([sum(1 << other for other in before) for before in dependencies(net.steps)])
    _, between = _simulate(network, range(len(net.steps)))
    return network.part(range(len(net.steps)), 0, len(net.steps), between[0])


@st.composite
def nets(draw: st.DrawFn) -> Net:
    """Up to seven steps: in-place writes, several writers, scratch bytes, control dependencies, kept storages."""
    size = st.sampled_from([0, 1, 2, 3, 5, 8, 13, 20])
    net = Net()
    made = [net.input(draw(size)) for _ in range(draw(st.integers(1, 2)))]
    for number in range(draw(st.integers(0, 7))):
        inputs = draw(st.lists(st.sampled_from(made), min_size=1, max_size=3, unique=True))
        outputs = draw(st.lists(st.sampled_from(made), max_size=1)) if draw(st.integers(0, 3)) == 0 else []
        if not outputs or draw(st.booleans()):
            outputs.append(net.storage(draw(size)))
            made.append(outputs[-1])
        after = (draw(st.integers(0, number - 1)),) if number and draw(st.integers(0, 9)) == 0 else ()
        net.steps.append(Step(tuple(inputs), tuple(outputs), draw(st.sampled_from([0, 0, 4, 9])), after))
    net.kept = draw(st.sets(st.sampled_from(made), max_size=3))
    return net


@st.composite
def branches(draw: st.DrawFn) -> Net:
    """The same branch two or three times, and another one beside them."""
    net = Net()
    source = net.input(draw(st.integers(1, 9)))
    sizes = draw(st.lists(st.integers(1, 20), min_size=1, max_size=2))
    ends = [net.chain(source, *sizes) for _ in range(draw(st.integers(2, 3)))]
    ends.append(net.chain(source, *draw(st.lists(st.integers(1, 20), min_size=1, max_size=2))))
    if draw(st.booleans()):
        net.kept = {net.op(ends, draw(st.integers(0, 20)))}
    else:
        net.kept = set(draw(st.sets(st.sampled_from(ends))))
    return net.shuffled(draw(st.integers(0, 9))) if draw(st.booleans()) else net


@settings(max_examples=60, deadline=None)
@given(net=nets() | branches())
def test_equals_brute_force(net: Net) -> None:
    lowest = min(peak_of(net, order) for order in all_orders(net.steps))
    found = net.search()
    assert found.peak == peak_of(net, found.order) == lowest
    assert found.lower_bound == lowest
    assert found.optimal
    assert found.order in set(all_orders(net.steps))
    if peak_of(net, range(len(net.steps))) == lowest:
        assert found.order == tuple(range(len(net.steps)))


@settings(max_examples=60, deadline=None)
@given(net=nets() | branches(), stretch=st.integers(1, 5))
def test_exact_search_alone_in_both_directions(net: Net, stretch: int) -> None:
    """Beams find most answers first, so the search that proves them is tried without."""
    lowest = min(peak_of(net, order) for order in all_orders(net.steps))
    part = whole(net)
    begin = sum(net.sizes[storage] for storage in net.given)
    for side in (part, part.reversed()):
        exact = Search(side, min(part.lower, lowest))
        while not exact.ended:
            exact.run(stretch, 1 << 60, 0)
        assert exact.order is not None
        assert peak_of(net, exact.order) == lowest
        assert max(exact.bound, begin) == lowest


@settings(max_examples=60, deadline=None)
@given(net=nets() | branches())
def test_minimum_cut_is_the_lowest_state(net: Net) -> None:
    part = whole(net)
    count = len(net.steps)
    states = [
        mask for mask in range(1 << count) if all(not part.ancestors[step] & ~mask for step in bits(mask))
    ]  # fmt: skip
    search = Search(part, part.lower)
    for inside in (state & ~search.root for state in states if not search.root & ~state):
        lowest = search._lowest(inside)
        assert (search.root | lowest) in states
        assert part.alive(search.root | lowest) == min(
            part.alive(state) for state in states if not search.root & ~state and not state & ~(search.root | inside)
        )


@settings(max_examples=40, deadline=None)
@given(net=nets() | branches(), nodes=st.integers(0, 6))
def test_stopped_early_it_tells_the_truth(net: Net, nodes: int) -> None:
    found = net.search(nodes=nodes)
    assert found.peak == peak_of(net, found.order) <= peak_of(net, range(len(net.steps)))
    assert found.lower_bound <= min(peak_of(net, order) for order in all_orders(net.steps))
    assert found.optimal == (found.peak == found.lower_bound)
    assert found.optimal or found.notes


@pytest.mark.parametrize("name", INSTANCES)
def test_networks(name: str) -> None:
    net = INSTANCES[name]()
    found = net.search()
    before, done = dependencies(net.steps), set[int]()
    for number in found.order:
        assert before[number] <= done
        done.add(number)
    assert sorted(found.order) == list(range(len(net.steps)))
    assert found.peak == peak_of(net, found.order) == max(live_bytes(
        net.steps, net.sizes, found.order, given=net.given, kept=net.kept
    ))  # fmt: skip
    assert found.lower_bound <= found.peak <= peak_of(net, range(len(net.steps)))
    assert found.optimal
    assert found == net.search()


@pytest.mark.parametrize(
    ("net", "peak"),
    [
        (order_nets.halves(), 120),  # 10 + 100 + 10, not 10 + 100 + 100
        (order_nets.chain(50), 23),  # 11 + 12
        (order_nets.twins(12, 30, 60, 4), 16 + 10 * 4 + 30 + 60),  # the eleventh branch: the last frees the source
        (order_nets.twins(12, 30, 60, 4).shuffled(3), 16 + 10 * 4 + 30 + 60),
        (order_nets.unet(4), 1024),  # the skip, the upsampled map, and both side by side
    ],
)
def test_known_peaks(net: Net, peak: int) -> None:
    found = net.search()
    assert found.optimal
    assert found.peak == peak
    assert found.nodes < 10_000


def test_unproved_answer_names_the_gap() -> None:
    net = order_nets.irregular(200, 5, reach=30, fan=3)
    found = net.search(nodes=300)
    assert not found.optimal
    assert found.gap == pytest.approx((found.peak - found.lower_bound) / found.lower_bound)
    assert "not searched to the end: the budget of 300 steps tried" in found.notes[0]
    assert found == net.search(nodes=300)
    assert "the time limit" in net.search(time_limit=0).notes[0]


def test_initial_order_is_kept_where_it_is_as_good() -> None:
    """Two cells after each other: the second is fine as listed, and stays so."""
    net = order_nets.halves()
    (end,) = net.kept
    net.kept = {net.op([net.chain(end, 10), net.chain(end, 9)], 4)}
    assert net.search().order == (0, 2, 1, 3, 4, 5, 6, 7)
    other = (1, 3, 0, 2, 4, 6, 5, 7)
    assert net.search(initial=other).order == other


def test_a_fall_past_the_lowest_state() -> None:
    """Step 7 fits only before step 3, and a search that commits to the first low state runs 3 too early."""
    steps = [
        Step((0,), (1,)),
        Step((1, 0), (2,), 9),
        Step((0,), (3,)),
        Step((2,), (4,)),
        Step((1,), (5,)),
        Step((2,), (6,), 4),
        Step((2, 1, 6), (1,)),
        Step((2,), (7,)),
    ]
    net = Net(steps, [5, 3, 1, 0, 1, 3, 5, 20], {0}, {4})
    exact = Search(whole(net), 0)
    exact.run(1000, 1 << 60, 0)
    assert exact.order is not None
    assert peak_of(net, exact.order) == exact.bound == 21


def test_progress_is_told() -> None:
    seen: list[tuple[int, int, int]] = []
    order_nets.irregular(60, 3, reach=12).search(progress=lambda *figures: seen.append(figures))
    assert all(lower <= best for _, lower, best in seen)


def test_unused_input_counts_before_the_first_step_only() -> None:
    steps = [Step((0,), (1,)), Step((1,), (2,))]
    assert live_bytes(steps, [4, 4, 4, 100], given={0, 3}, kept={2}) == (104, 8, 8)
    assert live_bytes(steps, [4, 4, 4, 100], given={0, 3}, kept={2, 3}) == (104, 108, 108)
    assert search(steps, [4, 4, 4, 100], given={0, 3}, kept={2}).peak == 104
    assert search([], [7], given={0}).peak == 7


@pytest.mark.parametrize(
    ("call", "parts"),
    [
        (lambda: search([Step((0,), (1,))], [1]), ["no size", "step 0", "storage 1", "one size per storage"]),
        (lambda: search([Step((0,), (1,))], [1, 1]), ["before any step", "step 0", "storage 0 of 1 bytes", "`given`"]),
        (lambda: search([Step((), (0,))], [-1]), ["negative size", "storage 0", "-1 bytes"]),
        (lambda: search([Step((), (0,), -2)], [1]), ["negative number", "step 0", "extra=-2"]),
        (
            lambda: search([Step((), (0,), 0, (0,))], [1]),
            ["not listed before", "step 0", "after step 0", "valid order"],
        ),
        (lambda: search([], [1], kept={0}), ["kept that nothing writes", "storage 0", "name storages"]),
        (lambda: search([Step((), (0,))], [1], initial=[0, 0]), ["every step once", "2 numbers", "permutation"]),
        (
            lambda: search([Step((), (0,)), Step((0,), (1,))], [1, 1], initial=[1, 0]),
            ["before one that it needs", "step 1", "step 0", "what is read was written"],
        ),
    ],
)
def test_errors_name_what_where_received_todo(call: Callable[[], object], parts: list[str]) -> None:
    with pytest.raises(OrderError) as error:
        call()
    for part in parts:
        assert part in str(error.value)


def test_imports_neither_torch_nor_numpy() -> None:
    code = "import sys, memfit.plan.order; print(sorted({'torch', 'numpy'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
