"""The `mcunet` model against its definition written out step by step, on random networks."""

from __future__ import annotations

import math
from typing import NamedTuple

from graphs import Builder
from hypothesis import given, settings
from hypothesis import strategies as st

from memfit.graph.model import Graph
from memfit.memory.profile import profile_graph


class Step(NamedTuple):
    kind: str
    sources: tuple[int, ...]
    """Values read; 0 is the network's input, value n is made by step n - 1."""


@st.composite
def programs(draw: st.DrawFn) -> list[Step]:
    steps: list[Step] = []
    for made in range(1, draw(st.integers(2, 12))):
        recent = st.integers(max(0, made - 4), made - 1)
        kind = draw(st.sampled_from(["conv", "conv", "depthwise", "add", "add", "half"]))
        sources = tuple(sorted({draw(recent), draw(recent)})) if kind == "add" else (draw(recent),)
        steps.append(Step("conv" if len(sources) == 1 and kind == "add" else kind, sources))
    return steps


def shapes_of(steps: list[Step]) -> list[tuple[int, int, int]]:
    """Channels, height, width of each value."""
    shapes = [(2, 8, 8)]
    for step in steps:
        c, h, w = shapes[step.sources[0]]
        shapes.append((c, h // 2, w // 2) if step.kind == "half" and h > 1 else (c, h, w))
    return shapes


def legal(steps: list[Step]) -> list[Step]:
    """Turn adds of different sizes into convolutions of their first operand."""
    done: list[Step] = []
    for step in steps:
        shapes = shapes_of(done)
        same = len({shapes[s] for s in step.sources}) == 1
        done.append(step if same else Step("conv", step.sources[:1]))
    return done


def build(steps: list[Step], *, in_place: bool) -> Graph:
    """Write the program; `in_place` adds into the second operand where nothing else reads it."""
    b = Builder()
    values = [b.input(1, 2, 8, 8)]
    for i, (step, shape) in enumerate(zip(steps, shapes_of(steps)[1:], strict=True)):
        sources = [values[s] for s in step.sources]
        if step.kind == "conv":
            made = b.norm(b.conv(sources[0], shape[0], path=f"m{i}.conv"), path=f"m{i}.bn")
        elif step.kind == "depthwise":
            made = b.conv(sources[0], shape[0], 3, path=f"m{i}", depthwise=True)
        elif step.kind == "add":
            last = step.sources[1]
            alone = last > 0 and last < len(steps) and sum(last in s.sources for s in steps) == 1
            made = b.inplace("add", sources[1], sources[0]) if in_place and alone else b.add(*sources)
        else:
            made = b.op("avg_pool2d", sources, (1, *shape))
        values.append(made)
    return b.build(values[-1])


def by_definition(steps: list[Step]) -> list[int]:
    """Need of each step: every value alive at it once, with the two sharings."""
    shapes = shapes_of(steps)
    sizes = [math.prod(shape) for shape in shapes]
    end = len(steps)
    readers = [[t for t, step in enumerate(steps) if value in step.sources] for value in range(len(shapes))]
    last = [max(r, default=value - 1) for value, r in enumerate(readers)]
    last[-1] = end
    home = list(range(len(shapes)))
    """The value whose bytes each value is in."""
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
            home[product] = home[t + 1] = residual
    for value in range(len(home)):
        while home[home[value]] != home[value]:
            home[value] = home[home[value]]
    needs = []
    for t, step in enumerate(steps):
        made = t + 1
        alive = {home[v] for v in range(made) if last[v] >= t}
        scratch = 0
        source = step.sources[0]
        overwrites = (
            step.kind == "depthwise"
            and home[made] == made
            and not any(home[v] == home[source] and last[v] > t for v in range(made + 1))
        )
        if overwrites:
            scratch = math.prod(shapes[made][1:])
        else:
            alive.add(home[made])
        needs.append(sum(sizes[v] for v in alive) + scratch)
    return needs


@given(programs(), st.booleans())
@settings(max_examples=300, deadline=None)
def test_needs_are_those_of_the_definition(program: list[Step], in_place: bool) -> None:
    steps = legal(program)
    profile = profile_graph(build(steps, in_place=in_place), memory="mcunet")
    found = [row["peak_bytes"] for row in profile.rows[1:]]
    expected = by_definition(steps)
    if not in_place:
        assert found == expected
    else:  # code that works in place needs no more than code that does not
        assert all(f <= e for f, e in zip(found, expected, strict=True))
    assert profile.totals["peak_bytes"] == max(found)


@given(programs())
@settings(max_examples=100, deadline=None)
def test_sharing_only_ever_helps(program: list[Step]) -> None:
    graph = build(legal(program), in_place=False)
    shared = profile_graph(graph, memory="mcunet")
    apart = profile_graph(graph, memory="mcunet", inplace_depthwise=False)
    assert shared.totals["activations"] == apart.totals["activations"]
    pairs = zip(shared.rows[1:], apart.rows[1:], strict=True)
    assert all(one["peak_bytes"] <= two["peak_bytes"] for one, two in pairs)
