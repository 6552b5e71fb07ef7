"""The exact search against brute force, CP-SAT, planted answers and itself compiled."""

from __future__ import annotations

import itertools
import subprocess
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from memfit.packing import PLANNERS, Buffer, Problem, pack, violations
from memfit.packing.instances import network, planted


@st.composite
def tight(draw: st.DrawFn) -> Problem:
    """Few bytes and many buffers: heights above the live sum do occur."""
    high, times = draw(st.integers(3, 6)), draw(st.integers(4, 8))
    load, rows = [0] * times, []
    for _ in range(draw(st.integers(4, 30))):
        lower = draw(st.integers(0, times - 1))
        upper, size = min(times, lower + draw(st.integers(1, 4))), draw(st.integers(1, 3))
        if all(load[time] + size <= high for time in range(lower, upper)):
            rows.append((lower, upper, size))
            for time in range(lower, upper):
                load[time] += size
    return Problem(tuple(Buffer(str(n), size, [(a, b)]) for n, (a, b, size) in enumerate(rows)))


def lowest_by_cp_sat(problem: Problem) -> int:
    """Let OR-tools' CP-SAT find the lowest height."""
    cp_model = pytest.importorskip("ortools.sat.python.cp_model", reason="OR-tools is not installed")
    model = cp_model.CpModel()
    most = sum(buffer.size for buffer in problem.buffers)
    top = model.new_int_var(0, most, "")
    times, places = [], []
    for buffer in problem.buffers:
        (span,) = buffer.spans
        at = model.new_int_var(0, most, "")
        model.add(at + buffer.size <= top)
        times.append(model.new_fixed_size_interval_var(span.lower, span.upper - span.lower, ""))
        places.append(model.new_fixed_size_interval_var(at, buffer.size, ""))
    model.add_no_overlap_2d(times, places)
    model.minimize(top)
    solver = cp_model.CpSolver()
    solver.parameters.num_workers = 1
    assert solver.solve(model) == cp_model.OPTIMAL
    return int(solver.objective_value)


@settings(max_examples=40, deadline=None)
@given(problem=tight())
def test_equals_cp_sat(problem: Problem) -> None:
    packing = pack(problem)
    assert packing.optimal
    assert packing.height == lowest_by_cp_sat(problem)


@settings(max_examples=60, deadline=None)
@given(problem=tight())
def test_no_planner_is_lower(problem: Problem) -> None:
    packing = pack(problem)
    assert packing.optimal
    assert packing.height <= min(pack(problem, planner).height for planner in PLANNERS)


@settings(max_examples=60, deadline=None)
@given(problem=tight())
def test_a_capacity_below_the_lowest_is_ruled_out(problem: Problem) -> None:
    lowest = pack(problem).height
    fitting = pack(problem, capacity=lowest)
    assert fitting.fits
    over = pack(problem, capacity=lowest - 1)
    assert over.fits is False
    assert over.lower_bound == lowest
    assert "proved" in over.notes[0]
    assert violations(problem, over.offsets) == []


@pytest.mark.parametrize(("count", "seed", "drop", "wide"), [(60, 0, 0, 0.5), (120, 1, 0, 0.3), (120, 0, 0.03, 0.3)])
def test_planted_packings_are_found(count: int, seed: int, drop: float, wide: float) -> None:
    problem = planted(count, seed, drop=drop, wide=wide)
    packing = pack(problem, capacity=1024)
    assert packing.fits
    assert pack(problem, "size").height > 1100


def test_networks_of_500_tensors_reach_the_bound() -> None:
    packing = pack(network(500, seed=3), use_numba=False)
    assert packing.optimal
    assert packing.nodes < 5000


def test_the_same_packing_on_every_run() -> None:
    problem = planted(120, 0, drop=0.03, wide=0.3)
    assert pack(problem) == pack(problem)
    code = (
        "from memfit.packing import pack; from memfit.packing.instances import planted;"
        "print(hash(tuple(pack(planted(120, 0, drop=0.03, wide=0.3)).offsets.values())))"
    )
    runs = {
        subprocess.run(
            [sys.executable, "-c", code], check=True, capture_output=True, env={"PYTHONHASHSEED": seed}
        ).stdout
        for seed in ("1", "2")
    }
    assert len(runs) == 1


def test_a_budget_ends_the_search_with_the_best_found() -> None:
    problem = planted(200, 0, drop=0.03, wide=0.7)
    packing = pack(problem, nodes=500)
    assert not packing.optimal
    assert packing.nodes <= 501
    assert packing.gap > 0
    assert "budget of 500 nodes" in packing.notes[0]
    stopped = pack(problem, time_limit=0.0)
    assert "time limit" in stopped.notes[0]
    assert stopped.height <= min(pack(problem, planner).height for planner in ("size", "area", "duration", "best-fit"))


def test_progress_is_told() -> None:
    told: list[tuple[int, int, int]] = []
    pack(planted(120, 0, drop=0.03, wide=0.3), progress=lambda *state: told.append(state))
    assert told
    assert all(bound <= best for _, bound, best in told)


def test_compiled_and_plain_search_agree() -> None:
    pytest.importorskip("numba", reason="numba is not installed: pip install 'memfit[fast]'")
    for problem in (planted(60, 0, drop=0.03), planted(120, 1), network(60, 1), LINKED):
        plain, compiled = pack(problem, use_numba=False), pack(problem, use_numba=True)
        assert plain == compiled


LINKED = Problem(
    tuple(
        Buffer(f"{name}{n}", 12, [(n + row, n + row + 3, 3 * row, 3) for row in range(4)])
        for n, name in itertools.product(range(6), "ab")
    )
)
"""Tensors whose rows are born and die one after another."""


def test_rows_that_live_one_after_another() -> None:
    packing = pack(LINKED)
    assert packing.optimal
    assert (
        packing.height
        < pack(
            Problem(
                tuple(
                    Buffer(b.name, b.size, [(s.lower, b.spans[-1].upper)]) for b in LINKED.buffers for s in b.spans[:1]
                )
            )
        ).height
    )


def test_short_searches_do_not_import_numba() -> None:
    code = (
        "import sys; from memfit.packing import pack; from memfit.packing.instances import network;"
        "pack(network(300, 1)); sys.exit('numba' in sys.modules or 'numpy' in sys.modules or 'torch' in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
