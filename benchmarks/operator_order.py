"""The order search beside a greedy rule, random restarts and OR-tools' CP-SAT; a markdown table.

    python benchmarks/operator_order.py [--seconds 20] [NAME …]

Sizes are small numbers without unit. Random restarts get one second, CP-SAT `--seconds` on two threads; ✓ where a peak
is proved to be the lowest. Every order's peak is taken from `live_bytes`, which is no part of the search.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import os
import platform
import random
import sys
import time
from collections.abc import Callable
from datetime import date
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests" / "pure"))

import order_nets
from order_nets import INSTANCES, Net

from memfit.plan.order import dependencies, live_bytes

HARD = {
    "RandWire 64, sizes differ": lambda: order_nets.randwire(64, 1, sizes=(4, 6, 8, 12, 16)),
    "irregular 400": lambda: order_nets.irregular(400, 2, reach=20, fan=3),
    "irregular 200, widest": lambda: order_nets.irregular(200, 0, reach=60, fan=4),
}


def peak(net: Net, order: list[int] | None = None) -> int:
    return max(live_bytes(net.steps, net.sizes, order, given=net.given, kept=net.kept))


def by_rule(net: Net, choose: Callable[[list[int], Callable[[int], int]], int]) -> list[int]:
    """Take one ready step after another; the rule is told how many bytes each would add."""
    before = dependencies(net.steps)
    touched = [set(step.inputs + step.outputs) for step in net.steps]
    left = [sum(storage in some for some in touched) for storage in range(len(net.sizes))]
    born, order, done = set(net.given), [], set[int]()

    def added(number: int) -> int:
        fresh = sum(net.sizes[storage] for storage in touched[number] - born)
        freed = (storage for storage in touched[number] - net.kept if left[storage] == 1)
        return fresh - sum(net.sizes[storage] for storage in freed)

    while len(order) < len(net.steps):
        ready = [number for number in range(len(net.steps)) if number not in done and before[number] <= done]
        number = choose(ready, added)
        born |= touched[number]
        for storage in touched[number]:
            left[storage] -= 1
        order.append(number)
        done.add(number)
    return order


def greedy(net: Net) -> int:
    return peak(net, by_rule(net, lambda ready, added: min(ready, key=added)))


def restarts(net: Net, seconds: float = 1.0) -> int:
    """Greedy orders with a random step now and then, as often as the time allows."""
    chance, end, best = random.Random(0), time.monotonic() + seconds, peak(net)

    def choose(ready: list[int], added: Callable[[int], int]) -> int:
        return chance.choice(ready) if chance.random() < 0.3 else min(ready, key=added)

    while time.monotonic() < end:
        best = min(best, peak(net, by_rule(net, choose)))
    return best


def cp_sat(net: Net, seconds: float) -> str:
    """One slot of time for each step; storages are intervals under a cumulative capacity."""
    from ortools.sat.python import cp_model

    model, count = cp_model.CpModel(), len(net.steps)
    at = [model.new_int_var(0, count - 1, "") for _ in net.steps]
    model.add_all_different(at)
    for number, before in enumerate(dependencies(net.steps)):
        for other in before:
            model.add(at[other] < at[number])
    spans, sizes = [], []
    for storage, size in enumerate(net.sizes):
        users = [at[n] for n, step in enumerate(net.steps) if storage in step.inputs + step.outputs]
        if not users or not size:
            continue
        birth, death = model.new_int_var(0, count, ""), model.new_int_var(0, count, "")
        if storage in net.given:
            model.add(birth == 0)
        else:
            model.add_min_equality(birth, users)
        if storage in net.kept:
            model.add(death == count)
        else:
            model.add_max_equality(death, [user + 1 for user in users])
        spans.append(model.new_interval_var(birth, model.new_int_var(1, count, ""), death, ""))
        sizes.append(size)
    for number, step in enumerate(net.steps):
        if step.extra:
            spans.append(model.new_fixed_size_interval_var(at[number], 1, ""))
            sizes.append(step.extra)
    top = model.new_int_var(0, peak(net), "")
    model.add_cumulative(spans, sizes, top)
    model.minimize(top)
    solver = cp_model.CpSolver()
    solver.parameters.num_workers = 2
    solver.parameters.max_time_in_seconds = seconds
    begin, status = time.perf_counter(), solver.solve(model)
    took = time.perf_counter() - begin
    if status not in (cp_model.OPTIMAL, cp_model.FEASIBLE):
        return f"none ({took:.1f} s)"
    found = peak(net, sorted(range(count), key=lambda n: solver.value(at[n])))
    return f"{found}{' ✓' if status == cp_model.OPTIMAL else ''} ({took:.1f} s)"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", help="instances; all without")
    parser.add_argument("--seconds", type=float, default=20.0, help="for CP-SAT on each instance")
    options = parser.parse_args()
    versions = f"OR-tools {importlib.metadata.version('ortools')}, Python {platform.python_version()}"
    print(f"{date.today()}, memfit {importlib.metadata.version('memfit')}, {versions}, {os.cpu_count()} cores\n")
    print(
        "| network | steps | choices | as listed | greedy | restarts | CP-SAT | memfit | at least | tried | seconds |"
    )
    print("|---" * 11 + "|")
    for name, make in (INSTANCES | HARD).items():
        if options.names and name not in options.names:
            continue
        net = make()
        begin = time.perf_counter()
        found = net.search()
        took = time.perf_counter() - begin
        cells = [
            name,
            len(net.steps),
            found.choices,
            peak(net),
            greedy(net),
            restarts(net),
            cp_sat(net, options.seconds),
            f"{peak(net, list(found.order))}{' ✓' if found.optimal else ''}",
            found.lower_bound,
            found.nodes,
            f"{took:.3f}",
        ]
        print("| " + " | ".join(map(str, cells)) + " |", flush=True)


if __name__ == "__main__":
    main()
