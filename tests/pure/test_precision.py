"""Bits by integer programme against trying all, and the demands of memory models against their definitions."""

from __future__ import annotations

import itertools
import math
from types import SimpleNamespace

import pytest
from graphs import Builder
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from test_models_mcunet import Step, build, legal, programs, shapes_of

from memfit.compress import precision
from memfit.compress.precision import Limit, Programme, exact, greedy, uniform
from memfit.errors import MissingExtra
from memfit.memory import ideal, mcunet, tinytl
from memfit.memory.demand import Demand, Moment, Part
from memfit.memory.model import Options, View
from memfit.memory.profile import profile_graph
from memfit.memory.registry import MODELS

ortools = pytest.importorskip("ortools")
WIDTHS = (2, 4, 8, 16)


@st.composite
def programmes(draw: st.DrawFn) -> Programme:
    """A few items that meet in a few limits, with costs that need not fall with the width."""
    count = draw(st.integers(1, 5))
    choices = [draw(st.sampled_from([WIDTHS, (4, 8), (8,), ()])) for _ in range(count)]
    costs = [{w: draw(st.integers(0, 50)) / 7 for w in widths} for widths in choices]
    limits = []
    for _ in range(draw(st.integers(1, 4))):
        items = draw(st.lists(st.integers(-1, count - 1), min_size=1, max_size=4))
        parts = tuple(Part(item, draw(st.integers(0, 40)), draw(st.sampled_from([8, 32]))) for item in items)
        limits.append(Limit(parts, draw(st.integers(0, 150))))
    return Programme(tuple(map(tuple, choices)), tuple(costs), tuple(limits))


def by_hand(programme: Programme, bits: tuple[int | None, ...]) -> bool:
    """Whether all limits hold, computed anew."""
    for parts, budget in programme.limits:
        taken = sum(math.ceil(n * ((bits[g] if g >= 0 else None) or own) / 8) for g, n, own in parts)
        if taken > budget:
            return False
    return True


@given(programmes())
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_the_programme_finds_what_trying_all_finds(programme: Programme) -> None:
    tried = itertools.product(*(widths or (None,) for widths in programme.choices))
    kept = [bits for bits in tried if by_hand(programme, bits)]
    lowest = programme.at(0)
    assert programme.holds(lowest) == by_hand(programme, lowest)
    assert programme.holds(lowest) == bool(kept)
    if not kept:
        assert not greedy(programme).holds
        return
    found = exact(programme)
    assert found.holds
    assert by_hand(programme, found.bits)
    assert found.optimal
    assert found.gap == 0
    # Items that no limit binds keep their widest width, whatever it costs; of the others the least cost is wanted.
    free = programme.reachable().binding()
    rest = [
        bits
        for bits in kept
        if all(b == f for i, (b, f) in enumerate(zip(bits, found.bits, strict=True)) if i not in free)
    ]
    assert programme.cost(found.bits) == pytest.approx(min(map(programme.cost, rest)), abs=1e-9)
    for other in (greedy(programme), uniform(programme)):
        assert other.holds == by_hand(programme, other.bits)


@given(programmes())
@settings(max_examples=60, deadline=None)
def test_the_baselines_are_what_they_say(programme: Programme) -> None:
    narrow = greedy(programme)
    if narrow.holds and narrow.bits != programme.at(-1):
        assert not programme.holds(programme.at(-1))
    same = uniform(programme)
    if same.holds and all(widths == WIDTHS for widths in programme.choices):
        width = same.bits[0]
        assert set(same.bits) == {width}
        wider = [w for w in WIDTHS if w > width]
        assert all(not programme.holds(tuple(w for _ in same.bits)) for w in wider)


def test_the_same_answer_every_time() -> None:
    widths = [WIDTHS] * 30
    costs = [{2: 1.0 + n % 3, 4: 0.5, 8: 0.1, 16: 0.0} for n in range(30)]
    limits = tuple(Limit(tuple(Part((n + k) % 30, 50 + 7 * k, 8) for k in range(4)), 260) for n in range(30))
    programme = Programme(tuple(widths), tuple(costs), limits)
    assert exact(programme) == exact(programme)
    assert exact(programme).cost <= greedy(programme).cost
    assert exact(programme).cost <= uniform(programme).cost


def test_a_search_that_is_cut_short_says_how_far_it_may_be() -> None:
    costs = [{2: 3.0 + (n * 7919) % 13, 4: 1.0 + (n * 31) % 7, 8: 0.1 * (n % 5), 16: 0.0} for n in range(200)]
    limits = tuple(
        Limit(tuple(Part((n * 17 + k * k * 3) % 200, 30 + (n * k) % 41, 8) for k in range(1, 14)), 340)
        for n in range(200)
    )
    programme = Programme((WIDTHS,) * 200, tuple(costs), limits)
    found = exact(programme, time_limit=0.01)
    assert found.holds
    assert found.optimal or found.gap is None or 0 <= found.gap <= 1
    if not found.optimal:
        assert found.cost <= greedy(programme).cost + 1e-9


def test_without_or_tools_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "ortools", None)
    with pytest.raises(MissingExtra, match=r"(?s)OR-tools.*pip install 'memfit\[compress\]'"):
        exact(Programme((WIDTHS,), ({},), (Limit((Part(0, 8, 8),), 4),)))


# -- demands ------------------------------------------------------------------------------------------------------


def needs_with(steps: list[Step], bits: list[int]) -> list[int]:
    """Need of each step where value n has bits[n]: every value alive at it once, with the two sharings."""
    shapes = shapes_of(steps)
    end = len(steps)
    readers = [[t for t, step in enumerate(steps) if value in step.sources] for value in range(len(shapes))]
    last = [max(r, default=value - 1) for value, r in enumerate(readers)]
    last[-1] = end
    into: dict[int, int] = {}
    """Product → the sum that it is added into."""
    over: dict[int, int] = {}
    """Sum → the value whose place it takes."""
    for t, step in enumerate(steps):
        if step.kind != "add":
            continue
        residual, product = step.sources
        maker = steps[product - 1] if product else Step("", ())
        if (
            maker.kind in ("conv", "depthwise")
            and readers[product] == [t]
            and product != end
            and last[residual] == t
            and residual not in maker.sources
        ):
            into[product] = t + 1
            over[t + 1] = residual

    def nbytes(value: int, width: int) -> int:
        return math.ceil(math.prod(shapes[value]) * width / 8)

    def born(value: int) -> int:
        """The step from which on a value is in memory: a sum is there while its product is made."""
        products = [p for p, s in into.items() if s == value]
        return (products[0] if products else value) - 1

    needs = []
    for t, step in enumerate(steps):
        made = into.get(t + 1, t + 1)
        source = step.sources[0]
        alive = {v for v in range(t + 1) if v not in into and last[v] >= t and born(v) < t}
        alive |= {s for s in over if born(s) < t <= last[s]}
        gone = {over[s] for s in over if born(s) < t}
        alive -= gone
        shared = over.get(made)
        if made in over and born(made) == t:  # the sum takes the residual's place while this runs
            rest = sum(nbytes(v, bits[v]) for v in alive - {shared, made})
            assert shared is not None
            needs.append(rest + max(nbytes(shared, bits[shared]), nbytes(made, bits[made])))
        elif (
            step.kind == "depthwise" and made == t + 1 and last[source] <= t and source not in into and source in alive
        ):
            rest = sum(nbytes(v, bits[v]) for v in alive - {source})
            pair = max(nbytes(source, bits[source]), nbytes(made, bits[made]))
            needs.append(rest + pair + math.ceil(math.prod(shapes[made][1:]) * bits[made] / 8))
        else:
            needs.append(sum(nbytes(v, bits[v]) for v in alive | {made}))
    return needs


@given(programs(), st.lists(st.sampled_from(WIDTHS), min_size=14, max_size=14))
@settings(max_examples=200, deadline=None)
def test_mcunet_needs_with_bits_by_layer_are_those_of_the_definition(program: list[Step], widths: list[int]) -> None:
    steps = legal(program)
    view = View(build(steps, in_place=False), Options(layer_bits={}))
    demand = mcunet.demand(view)
    rows = view.layers
    assert len(rows) == len(steps) + 1
    bits = [widths[n] for n in range(len(rows))]
    for product, row in enumerate(rows):  # what is added into a sum has the sum's bits
        if row.name in demand.passing:
            group = next(names for names in demand.groups if row.name in names)
            bits[product] = bits[next(n for n, r in enumerate(rows) if r.name == group[-1])]
    chosen = {row.name: bits[n] for n, row in enumerate(rows)}
    per_op = demand.per_op(chosen)
    assert [per_op[row.head] for row in rows[1:]] == needs_with(steps, bits)


@given(programs(), st.booleans(), st.sampled_from(WIDTHS))
@settings(max_examples=100, deadline=None)
def test_equal_bits_give_the_model_without_choice(program: list[Step], in_place: bool, width: int) -> None:
    graph = build(legal(program), in_place=in_place)
    names = [row.name for row in View(graph).layers]
    plain = profile_graph(graph, memory="mcunet", bits=width)
    chosen = profile_graph(graph, memory="mcunet", layer_bits=dict.fromkeys(names, width))
    assert chosen.totals["peak_bytes"] == plain.totals["peak_bytes"]
    assert [row["peak_bytes"] for row in chosen.rows] == [row["peak_bytes"] for row in plain.rows]
    assert chosen.totals["input_bytes"] == plain.totals["input_bytes"]


@given(programs(), st.booleans())
@settings(max_examples=50, deadline=None)
def test_ideal_without_bits_is_the_live_bytes_of_the_graph(program: list[Step], in_place: bool) -> None:
    graph = build(legal(program), in_place=in_place)
    found = ideal.demand(View(graph, Options(layer_bits={})))
    assert found.per_op({}) == graph.ideal_live_bytes
    names = [name for group in found.groups for name in group]
    assert found.total_bytes(dict.fromkeys(names, 8)) * 4 == max(graph.ideal_live_bytes)


def test_every_memory_model_with_bits_by_layer_gives_its_own_figures_without_them() -> None:
    b = Builder()
    x = b.input(1, 2, 8, 8)
    y = b.norm(b.conv(x, 4, path="a.conv"), path="a.bn")
    graph = b.build(b.op("avg_pool2d", [y], (1, 4, 4, 4)))
    for name, model in MODELS.items():
        if model.demand is None or name == "autograd":
            continue
        figures = model.figures(View(graph, Options()))
        found = model.demand(View(graph, Options(layer_bits={})))
        assert found.total_bytes({}) == figures.total_bytes, name
        assert found.measures == model.measures


def test_what_is_kept_for_training_by_hand() -> None:
    b = Builder()
    x = b.input(1, 2, 8, 8)
    graph = b.build(b.norm(b.conv(x, 4, path="a.conv"), path="a.bn"))
    found = tinytl.demand(View(graph, Options(layer_bits={})))
    # The convolution keeps its input, 128 elements, and the norm its own, 256 of the layer a.conv.
    assert found.total_bytes({}) == 4 * (128 + 256)
    names = [group[0] for group in found.groups]
    assert found.total_bytes({names[0]: 8, names[1]: 4}) == 128 + 256 // 2


def test_moments_of_one_operation_are_alternatives() -> None:
    demand = Demand((("a",), ("b",)), (Moment(0, (Part(0, 8, 8),)), Moment(0, (Part(1, 6, 8),))), 2, "peak")
    assert demand.per_op({"b": 16}) == (12, None)
    programme = precision.programme_of(demand, [WIDTHS, WIDTHS], [{}, {}], 8)
    assert [len(limit.parts) for limit in programme.limits] == [1, 1]
    assert exact(programme).bits == (8, 8)
    assert SimpleNamespace(widest=programme.at(-1)).widest == (16, 16)
