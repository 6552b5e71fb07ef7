"""Planners side by side in one run: memfit's (plain and compiled), OR-tools' CP-SAT, omnimalloc; a markdown table.

    python benchmarks/planners.py [PROBLEM.csv …] [--capacity 1048576] [--seconds 20]

Without files: MiniMalloc's challenging instances where they are at hand (`../shared/benchmarks/minimalloc`), a planted
problem and a network. Each figure is `seconds · height over the lower bound`; ✓ where the lower bound is reached. With
`--capacity`, planners that can stop at the first packing within it do so. The other tools' packings are checked by
memfit's validator too.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import os
import platform
import sys
import time
from collections.abc import Callable
from datetime import date
from pathlib import Path

from memfit.packing import PLANNERS, Problem, pack, violations
from memfit.packing.instances import network, planted
from memfit.packing.minimalloc import read_minimalloc

SHARED = Path(__file__).parents[2] / "shared" / "benchmarks" / "minimalloc"
Solver = Callable[[Problem, int | None, float], dict[str, int] | None]


def memfit(planner: str, *, compiled: bool = False) -> Solver:
    def solve(problem: Problem, capacity: int | None, seconds: float) -> dict[str, int]:
        nodes = 10**9 if planner == "exact" else 0
        limit = seconds if planner == "exact" else None
        found = pack(problem, planner, capacity, nodes=nodes, time_limit=limit, use_numba=compiled)
        return dict(found.offsets)

    return solve


def cp_sat(problem: Problem, capacity: int | None, seconds: float) -> dict[str, int] | None:
    from ortools.sat.python import cp_model

    unit = 1024 if all(buffer.size % 1024 == 0 for buffer in problem.buffers) else 1
    model = cp_model.CpModel()
    most = (capacity or pack(problem, "size").height) // unit
    top = model.new_int_var(problem.lower_bound // unit, most, "")
    at = {}
    times, places = [], []
    for buffer in problem.buffers:
        step, size = max(1, buffer.alignment // unit), -(-buffer.size // unit)
        slot = model.new_int_var(0, most // step, "")
        at[buffer.name] = step * slot
        model.add(step * slot + size <= top)
        (span,) = buffer.spans
        times.append(model.new_fixed_size_interval_var(span.lower, span.upper - span.lower, ""))
        places.append(model.new_fixed_size_interval_var(step * slot, size, ""))
    model.add_no_overlap_2d(times, places)
    if capacity is None:
        model.minimize(top)
    solver = cp_model.CpSolver()
    solver.parameters.num_workers = 2
    solver.parameters.max_time_in_seconds = seconds
    if solver.solve(model) not in (cp_model.OPTIMAL, cp_model.FEASIBLE):
        return None
    return {name: solver.value(offset) * unit for name, offset in at.items()}


def omnimalloc(allocator: str) -> Solver:
    def solve(problem: Problem, _capacity: int | None, seconds: float) -> dict[str, int]:
        import omnimalloc as peer
        from omnimalloc.allocators import SupermallocAllocator

        step = max(buffer.alignment for buffer in problem.buffers)
        wanted = [
            peer.Allocation(
                id=buffer.name,
                size=-(-buffer.size // step) * step,
                start=buffer.spans[0].lower,
                end=buffer.spans[0].upper,
            )
            for buffer in problem.buffers
        ]
        chosen = SupermallocAllocator(timeout=seconds) if allocator == "supermalloc" else allocator
        return {str(found.id): found.offset for found in peer.allocate(wanted, allocator=chosen)}

    return solve


def solvers() -> dict[str, Solver]:
    table = {"memfit exact, plain Python": memfit("exact")}
    if installed("numba"):
        table["memfit exact, numba"] = memfit("exact", compiled=True)
    table |= {f"memfit {name}": memfit(name) for name in PLANNERS if name != "exact"}
    if installed("ortools"):
        table["OR-tools CP-SAT, 2 workers"] = cp_sat
    if installed("omnimalloc"):
        table |= {f"omnimalloc {name}": omnimalloc(name) for name in ("supermalloc", "greedy_by_all", "best_fit")}
    return table


def installed(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def cell(solver: Solver, problem: Problem, capacity: int | None, seconds: float) -> str:
    start = time.perf_counter()
    try:
        offsets = solver(problem, capacity, seconds)
    except (RuntimeError, ValueError) as fault:
        return f"failed: {type(fault).__name__}"
    took = time.perf_counter() - start
    if offsets is None:
        return f"{took:.2f} s · none"
    broken = violations(problem, offsets)
    if broken:
        return f"{took:.2f} s · not valid: {broken[0].rule}"
    top = max(offsets[buffer.name] + buffer.size for buffer in problem.buffers)
    over = top / problem.lower_bound - 1
    fits = capacity is not None and top <= capacity
    return f"{took:.2f} s · " + ("✓" if not over else "fits" if fits else f"+{100 * over:.1f} %")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="*", type=Path)
    parser.add_argument("--capacity", type=int, help="bytes; stop at the first packing within it")
    parser.add_argument("--seconds", type=float, default=20, help="limit for each search")
    options = parser.parse_args()
    files = options.files or sorted(SHARED.glob("*.csv"))
    problems = {path.name.split(".")[0]: (read_minimalloc(path), options.capacity) for path in files}
    if not options.files:
        problems["planted 120"] = (planted(120, 1), None)
        problems["network 500"] = (network(500, 1), None)
    versions = ", ".join(f"{name} {installed(name)}" for name in ("numba", "ortools", "omnimalloc") if installed(name))
    print(f"{date.today()}, Python {platform.python_version()}, {versions}; {os.cpu_count()} cores, ", end="")
    print(f"load {os.getloadavg()[0]:.1f}; {options.seconds:g} s for each search; capacity {options.capacity}\n")
    if installed("numba"):
        start = time.perf_counter()
        pack(planted(60, 0, drop=0.03), capacity=1024, use_numba=True)
        print(f"numba ready after {time.perf_counter() - start:.1f} s (import, and compiling or reading the cache)\n")
    print("| | " + " | ".join(problems) + " |")
    print("|---|" + "---|" * len(problems))
    for name, solver in solvers().items():
        cells = []
        for problem, capacity in problems.values():
            cells.append(cell(solver, problem, capacity, options.seconds))
            print(f"{name}: {cells[-1]}", file=sys.stderr)
        print(f"| {name} | " + " | ".join(cells) + " |", flush=True)


if __name__ == "__main__":
    main()
