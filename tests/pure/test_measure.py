"""The arithmetic of measuring, on injected clocks and samples worked out by hand; no torch, and nothing is timed."""

from __future__ import annotations

import io
import itertools
import json
import math

import numpy as np
import pytest

from memfit.analysis.result import Benchmark
from memfit.errors import CaptureError, SourceError, UsageError
from memfit.graph.model import Graph, Op, Scope, Storage, StorageKind, Tensor
from memfit.measure import runs
from memfit.measure.environment import ranges, remarks
from memfit.measure.layout import NOBODY, Event, divide, lay_out, other_order
from memfit.measure.rows import (
    RowSpec,
    Timed,
    block_specs,
    layer_specs,
    model_row,
    op_specs,
    row_of_ops,
    rows_and_totals,
)
from memfit.measure.session import Schedule, collect
from memfit.measure.statistics import describe, is_settled, is_wide, mann_whitney, median_ranks
from memfit.measure.timers import CpuTimer

# -- statistics ---------------------------------------------------------------------------------------------------


def test_a_row_is_described_by_its_samples() -> None:
    found = describe([4.0, 1.0, 2.0, 3.0, 5.0])
    assert found["mean_ms"] == 3.0
    assert found["std_ms"] == pytest.approx(math.sqrt(2.5))  # of a sample: divided by n - 1
    assert (found["min_ms"], found["p50_ms"], found["p95_ms"]) == (1.0, 3.0, pytest.approx(4.8))
    assert found["unsteady"]
    assert describe([2.0])["std_ms"] == 0.0


@pytest.mark.parametrize(
    ("samples", "unsteady"),
    [
        ([100.0] * 9 + [109.0], False),
        ([100.0] * 5 + [112.0] * 5, True),  # the middle half spans 12 %
        ([100.0] * 99 + [1200.0], True),  # one outlier pulls the mean 11 % away
        ([100.0] * 99 + [1050.0], False),
    ],
)
def test_what_is_unsteady(samples, unsteady) -> None:
    assert describe(samples)["unsteady"] is unsteady


def test_outliers_do_not_make_the_middle_wide() -> None:
    assert not is_wide([1.0] * 10 + [50.0])
    assert is_wide([1.0, 1.5] * 10)


def test_ranks_around_the_median_cover_it_as_often_as_stated() -> None:
    """Against the exact binomial distribution: at least 95 %, and not much more."""
    for count in (11, 30, 100, 300):
        low, high = median_ranks(count)
        inside = sum(math.comb(count, k) for k in range(low + 1, high + 1)) / 2**count
        assert 0.95 <= inside < 0.99, count


def test_settling_needs_samples_and_agreement() -> None:
    assert not is_settled([1.0] * 9)
    assert is_settled([1.0] * 10)
    assert is_settled(sorted([1.0 + 0.0001 * i for i in range(50)]))
    assert not is_settled(sorted([1.0 + 0.01 * i for i in range(50)]))


def test_mann_whitney_is_the_textbook_figure() -> None:
    # U = 3 for n = 5, m = 5 without ties: z = (|3 - 12.5| - 0.5) / sqrt(25 * 11 / 12) = 1.880
    one, other = [1, 2, 3, 4, 7.5], [5, 6, 7, 8, 9]
    assert mann_whitney(one, other) == pytest.approx(math.erfc(1.8800 / math.sqrt(2)), abs=2e-4)
    assert mann_whitney(one, other) == mann_whitney(other, one)


def test_mann_whitney_counts_ties() -> None:
    assert mann_whitney([1, 1, 1], [1, 1, 1]) == 1.0
    # pooled ranks 1.5 1.5 3.5 3.5 5.5 5.5; the rank sum of the first is 6.5, so U = 0.5; tied variance 4.95 of 5.25
    z = (abs(0.5 - 4.5) - 0.5) / math.sqrt(9 / 12 * (7 - 18 / 30))
    assert mann_whitney([1, 1, 2], [2, 3, 3]) == pytest.approx(math.erfc(z / math.sqrt(2)))


def test_mann_whitney_is_seldom_fooled() -> None:
    generator = np.random.default_rng(0)
    found = [mann_whitney(generator.normal(size=40), generator.normal(size=40)) for _ in range(400)]
    assert 0.02 < np.mean(np.array(found) < 0.05) < 0.09


# -- clock and session --------------------------------------------------------------------------------------------


def test_the_timer_gives_the_time_between_marks() -> None:
    ticks = iter([5_000_000, 6_000_000, 8_500_000, 1, 2])
    timer = CpuTimer(lambda: next(ticks))
    for _ in range(3):
        timer.mark()
    assert timer.finish().tolist() == [1.0, 2.5]
    timer.start()
    timer.mark()
    timer.mark()
    assert timer.finish().tolist() == [1e-6]


def test_warm_up_is_run_and_not_counted() -> None:
    ticks = itertools.count()
    told: list[tuple[str, int, int | None]] = []
    found = collect(
        lambda: next(ticks),
        Schedule(2, 3),
        whole=float,
        what="x",
        progress=lambda *given: told.append(given),
    )
    assert found.samples == [2, 3, 4]
    assert told == [("x: warming up", 0, 2), ("x: warming up", 1, 2), ("x", 1, 3), ("x", 2, 3), ("x", 3, 3)]


def test_an_adaptive_run_stops_when_the_median_is_sure() -> None:
    found = collect(lambda: 1.0, Schedule(0, None, 100, now=itertools.count().__next__), whole=float)
    assert (len(found.samples), found.settled) == (10, True)


def test_an_adaptive_run_stops_when_its_time_is_up() -> None:
    values = itertools.cycle([1.0, 2.0])
    found = collect(lambda: next(values), Schedule(0, None, 30, now=itertools.count().__next__), whole=float)
    assert (len(found.samples), found.settled) == (30, False)
    found = collect(lambda: next(values), Schedule(0, 7, 30, now=itertools.count().__next__), whole=float)
    assert len(found.samples) == 7


def test_ctrl_c_keeps_whole_iterations() -> None:
    ticks = itertools.count()

    def once() -> int:
        tick = next(ticks)
        if tick == 5:
            raise KeyboardInterrupt
        return tick

    found = collect(once, Schedule(2, 100), whole=float)
    assert found.samples == [2, 3, 4]
    assert found.interrupted


@pytest.mark.parametrize("when", [0, 2])
def test_ctrl_c_before_anything_is_measured_is_passed_on(when: int) -> None:
    ticks = itertools.count()

    def once() -> int:
        if next(ticks) == when:
            raise KeyboardInterrupt
        return 0

    with pytest.raises(KeyboardInterrupt):
        collect(once, Schedule(2, 100), whole=float)


@pytest.mark.parametrize(
    ("options", "where", "received"),
    [
        ({"iterations": 0}, "--iterations", "0"),
        ({"warmup": -1}, "--warmup", "-1"),
        ({"seconds": 0.0}, "--seconds", "0.0"),
        ({"seconds": float("nan")}, "--seconds", "nan"),
        ({"seconds": float("inf")}, "--seconds", "inf"),
    ],
)
def test_a_schedule_that_cannot_be(options, where, received) -> None:
    with pytest.raises(UsageError) as caught:
        Schedule(**options)
    assert (caught.value.where, caught.value.received) == (where, received)
    assert caught.value.todo


def test_a_schedule_without_an_end() -> None:
    with pytest.raises(UsageError, match="needs an end"):
        Schedule(0, None, None)


# -- whose time it is ---------------------------------------------------------------------------------------------


def network(kinds: str, scopes: list[Scope], scope_of: list[int]) -> Graph:
    """A chain of operations, one letter each: c(onv), b(atch norm), r(elu), v(iew), a(dd)."""
    names = {"c": "conv2d", "b": "batch_norm", "r": "relu", "v": "view", "a": "add", "m": "max_pool2d"}
    storages = [Storage(0, 64, StorageKind.INPUT, -1, len(kinds), 1)]
    tensors = [Tensor(0, 0, (1, 16), (16, 1), "float32", name="x")]
    ops = []
    for index, letter in enumerate(kinds):
        storage = tensors[-1].storage
        if letter != "v":
            storage = len(storages)
            storages.append(Storage(storage, 64, StorageKind.ACTIVATION, index, len(kinds), len(kinds)))
        tensors.append(Tensor(index + 1, storage, (16,) if letter == "v" else (1, 16), (1,) * 2, "float32"))
        macs = 100 if letter == "c" else 0
        ops.append(Op(index, names[letter], f"aten.{letter}", (index,), (index + 1,), {}, scope_of[index], macs=macs))
    return Graph(tuple(storages), tuple(tensors), tuple(ops), tuple(scopes), (0,), (len(kinds),))


ROOT = Scope(0, "", "Net", -1)


def test_marks_part_the_rows() -> None:
    """Two blocks of convolution and norm: only what parts the rows is marked, and Python between them is nobody's."""
    scopes = [
        ROOT,
        Scope(1, "a", "Block", 0), Scope(2, "a.conv", "Conv2d", 1), Scope(3, "a.norm", "BatchNorm2d", 1),
        Scope(4, "b", "Block", 0), Scope(5, "b.conv", "Conv2d", 4), Scope(6, "b.norm", "BatchNorm2d", 4),
    ]  # fmt: skip
    graph = network("cbcb", scopes, [2, 3, 5, 6])
    events = [
        Event(0, True, 0),
        Event(1, True, 0), Event(2, True, 0), Event(2, False, 1), Event(3, True, 1), Event(3, False, 2),
        Event(1, False, 2),
        Event(4, True, 2), Event(5, True, 2), Event(5, False, 3), Event(6, True, 3), Event(6, False, 4),
        Event(4, False, 4),
        Event(0, False, 4),
    ]  # fmt: skip
    layout = lay_out(graph, events, [0, 0, 1, 1], 2)
    assert layout.modules == {4}  # the outermost module that the second row enters
    assert layout.order == ((4, True), (4, False))
    assert list(zip(layout.part, layout.row, strict=True)) == [(0, 0), (1, 1)]
    assert layout.share == (1.0, 1.0)
    assert not layout.shared
    layers = lay_out(graph, events, [0, 1, 2, 3], 4)
    assert layers.modules == {3, 4, 6}
    # from the root's start to a.norm: row 0; a.norm; from there to b: nobody's; b with its convolution; b.norm
    assert list(zip(layers.part, layers.row, strict=True)) == [(0, 0), (1, 1), (3, 2), (4, 3)]


def test_an_addition_in_a_modules_own_code_has_its_time() -> None:
    scopes = [ROOT, Scope(1, "conv", "Conv2d", 0), Scope(2, "pool", "MaxPool2d", 0)]
    graph = network("cam", scopes, [1, 0, 2])
    events = [
        Event(0, True, 0), Event(1, True, 0), Event(1, False, 1), Event(2, True, 2), Event(2, False, 3),
        Event(0, False, 3),
    ]  # fmt: skip
    layout = lay_out(graph, events, [0, 1, 2], 3)
    assert layout.order == ((1, True), (1, False), (2, True), (2, False))
    assert list(zip(layout.part, layout.row, strict=True)) == [(1, 0), (2, 1), (3, 2)]


def test_rows_in_one_piece_of_code_share_its_time() -> None:
    graph = network("cac", [ROOT], [0, 0, 0])
    events = [Event(0, True, 0), Event(0, False, 3)]
    layout = lay_out(graph, events, [0, 1, 2], 3)
    assert layout.order == ()
    assert layout.shared == {0, 1, 2}
    assert sum(layout.share) == pytest.approx(1)
    divided = divide(layout, graph, events, [0, 1, 2], np.array([6.0, 1.0, 3.0]))
    assert divided.share == pytest.approx((0.6, 0.1, 0.3))
    even = divide(layout, graph, events, [0, 1, 2], np.zeros(3))
    assert even.share == pytest.approx((1 / 3, 1 / 3, 1 / 3))


def test_a_view_shares_no_time() -> None:
    graph = network("cvc", [ROOT, Scope(1, "a", "Conv2d", 0), Scope(2, "b", "Conv2d", 0)], [1, 0, 2])
    events = [
        Event(0, True, 0), Event(1, True, 0), Event(1, False, 1), Event(2, True, 2), Event(2, False, 3),
        Event(0, False, 3),
    ]  # fmt: skip
    assert not lay_out(graph, events, [0, 0, 1], 2).shared


def test_every_moment_belongs_to_one_row_at_most() -> None:
    """Whatever the rows, the shares of a part sum to one, so that no time is counted twice."""
    graph = network("cabarcam", [ROOT, Scope(1, "m", "Block", 0)], [0, 1, 1, 0, 0, 1, 1, 0])
    events = [
        Event(0, True, 0), Event(1, True, 1), Event(1, False, 3), Event(1, True, 5), Event(1, False, 7),
        Event(0, False, 8),
    ]  # fmt: skip
    for row_of in itertools.product((NOBODY, 0, 1, 2), repeat=4):
        layout = lay_out(graph, events, [0, *row_of, 1, 2, 2], 3)
        sums: dict[int, float] = {}
        for part, share in zip(layout.part, layout.share, strict=True):
            sums[part] = sums.get(part, 0) + share
        assert all(total == pytest.approx(1) for total in sums.values())
        assert set(layout.row) == {0, 1, 2}


def test_another_order_of_modules_is_named() -> None:
    error = other_order(["", "a", "b"], [(1, True), (1, False)], [(2, True), (2, False), (1, True)])
    assert isinstance(error, CaptureError)
    assert error.where == "b"
    assert "3 marks where 2" in (error.received or "")
    assert "--per model" in (error.todo or "")


# -- rows ---------------------------------------------------------------------------------------------------------


def test_a_module_called_twice_is_one_row() -> None:
    graph = network("cc", [ROOT, Scope(1, "fc", "Conv2d", 0)], [1, 1])
    events = [
        Event(0, True, 0), Event(1, True, 0), Event(1, False, 1), Event(1, True, 1), Event(1, False, 2),
        Event(0, False, 2),
    ]  # fmt: skip
    (row,) = layer_specs(graph, events, None)
    assert (row.name, row.calls, row.macs, row.ops) == ("fc", 2, 200, (0, 1))
    assert row_of_ops(graph, [row]) == [0, 0]


def test_two_operations_in_one_call_are_two_rows() -> None:
    graph = network("mm", [ROOT], [0, 0])
    rows = layer_specs(graph, [Event(0, True, 0), Event(0, False, 2)], None)
    assert [row.calls for row in rows] == [1, 1]
    assert len({row.name for row in rows}) == 2


def test_ops_and_blocks_hold_every_operation_once() -> None:
    graph = network("cbrvm", [ROOT, Scope(1, "a", "Block", 0)], [1, 1, 1, 0, 0])
    events = [Event(0, True, 0), Event(1, True, 0), Event(1, False, 3), Event(0, False, 5)]
    for specs in (op_specs(graph, events, None), block_specs(graph, events, None), layer_specs(graph, events, None)):
        assert sorted(i for spec in specs for i in spec.ops) == [0, 1, 2, 3, 4]
        assert all(spec.calls >= 1 for spec in specs)


def spec(name: str, macs: int | None = 1_000_000) -> RowSpec:
    return RowSpec(name, "conv2d", (1, 8), 1, macs, (0,))


def test_rows_and_the_rest_make_the_whole() -> None:
    rows, totals = rows_and_totals([Timed(spec("a"), [1.0, 3.0]), Timed(spec("b", 0), [4.0, 4.0])], [8.0, 8.0], 4)
    assert [row["mean_ms"] for row in rows] == [2.0, 4.0]
    assert [row["share"] for row in rows] == [0.25, 0.5]
    assert [row["fps"] for row in rows] == [2000.0, 1000.0]
    assert [row["gmacs_per_s"] for row in rows] == [0.5, None]
    assert (totals["whole_ms"], totals["layers_ms"], totals["unattributed_ms"]) == (8.0, 6.0, 2.0)
    assert totals["fps"] == 500.0
    assert totals["macs"] == 1_000_000
    assert "estimated" not in rows[0]


def test_estimates_are_marked_where_there_are_any() -> None:
    rows, _ = rows_and_totals([Timed(spec("a"), [1.0], estimated=True), Timed(spec("b"), [1.0])], [2.0], 1)
    assert [row["estimated"] for row in rows] == [True, False]


def test_the_whole_model_is_its_own_row() -> None:
    rows, totals = rows_and_totals([Timed(model_row("Net", None), [2.0, 4.0])], [2.0, 4.0], 1)
    assert rows[0]["share"] == 1.0
    assert totals["unattributed_ms"] == 0.0
    assert totals["gmacs_per_s"] is None


# -- environment --------------------------------------------------------------------------------------------------


def test_cores_are_written_as_ranges() -> None:
    assert ranges([3]) == "3"
    assert ranges([0, 2, 3, 4]) == "0,2-4"


def test_a_busy_machine_is_remarked_on() -> None:
    assert any("busy" in note for note in remarks({"load": 1e6, "threads": 1}, "cpu"))
    assert any("threads share" in note for note in remarks({"load": 0.0, "threads": 10**6}, "cpu"))
    assert remarks({"load": 0.0, "threads": 1}, "cpu") == []
    assert remarks({"load": 1e6, "threads": 10**6}, "cuda") == []


# -- saved runs ---------------------------------------------------------------------------------------------------


def result(rows: dict[str, list[float]], whole: list[float], **changed) -> Benchmark:
    timed = [Timed(spec(name), samples) for name, samples in rows.items()]
    made, totals = rows_and_totals(timed, whole, 1)
    given = {
        "source": "net.py:make",
        "inputs": ({"name": "x", "shape": (1, 8), "dtype": "float32"},),
        "per": "layer",
        "memory": None,
        "training": False,
        "device": "cpu",
        "rows": made,
        "totals": totals,
        "notes": (),
        "environment": {"cpu": "A", "threads": 1, "load": 0.1},
        "settings": {"mode": "in-place", "dtype": "float32"},
    }
    return Benchmark(**{**given, **changed})


STEADY = [1.0 + 0.001 * (i % 7) for i in range(60)]
SLOWER = [value * 1.2 for value in STEADY]
A_LITTLE = [value * 1.03 for value in STEADY]
WILD = [value * (1.2 if i % 2 else 2.0) for i, value in enumerate(STEADY)]


def saved(tmp_path, rows, whole, **changed):
    path = tmp_path / "run.json"
    with path.open("w") as stream:
        runs.write(result(rows, whole, **changed), whole, rows, stream)
    return path


def test_a_run_is_saved_with_every_sample(tmp_path) -> None:
    path = saved(tmp_path, {"a": STEADY}, SLOWER)
    content = json.loads(path.read_text())
    assert content["command"] == "bench"
    assert content["samples"] == {"whole": SLOWER, "rows": {"a": STEADY}}
    run = runs.read(path)
    assert run.whole == tuple(SLOWER)


def test_changes_are_called_by_their_name(tmp_path) -> None:
    before = dict.fromkeys(("same", "slower", "faster", "little", "wild"), STEADY) | {"gone": STEADY}
    before["faster"] = SLOWER
    now = {"same": STEADY, "slower": SLOWER, "faster": STEADY, "little": A_LITTLE, "wild": WILD, "new": STEADY}
    run = runs.read(saved(tmp_path, before, STEADY))
    found = runs.compare(result(now, SLOWER), SLOWER, now, run)
    changes = {row["name"]: row["change"] for row in found.rows}
    assert changes == {
        "same": "same", "slower": "slower", "faster": "faster", "little": "same", "wild": "unsure", "new": None,
    }  # fmt: skip
    comparison = found.comparison
    assert comparison["whole"]["change"] == "slower"
    assert comparison["whole"]["ratio"] == pytest.approx(1.2)
    assert (comparison["only_now"], comparison["only_before"]) == (["new"], ["gone"])
    by_name = {row["name"]: row for row in comparison["rows"]}
    assert by_name["little"]["p_value"] < 1e-6  # sure, but too small to matter
    assert by_name["same"]["ratio"] == 1.0


def test_few_samples_change_nothing(tmp_path) -> None:
    run = runs.read(saved(tmp_path, {"a": STEADY[:3]}, STEADY[:3]))
    found = runs.compare(result({"a": SLOWER[:3]}, SLOWER[:3]), SLOWER[:3], {"a": SLOWER[:3]}, run)
    assert found.rows[0]["change"] == "same"


def test_other_conditions_are_named(tmp_path) -> None:
    run = runs.read(saved(tmp_path, {"a": STEADY}, STEADY, environment={"cpu": "B", "threads": 1, "load": 9.0}))
    found = runs.compare(result({"a": STEADY}, STEADY), STEADY, {"a": STEADY}, run)
    assert found.comparison["differences"] == {"cpu": ("B", "A")}
    assert any("cpu was B, is A" in note for note in found.notes)
    assert json.loads(json.dumps(found.to_dict()))["comparison"]["differences"]["cpu"] == ["B", "A"]


def test_a_run_without_a_common_row_is_refused(tmp_path) -> None:
    run = runs.read(saved(tmp_path, {"a": STEADY}, STEADY))
    with pytest.raises(UsageError, match="no row has the same name"):
        runs.compare(result({"b": STEADY}, STEADY), STEADY, {"b": STEADY}, run)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "{}",
        '{"command": "profile", "per": "layer", "environment": {}, "samples": {"whole": [], "rows": {"a": [1]}}}',
        '{"command": "bench", "per": "layer", "environment": {}, "samples": {"whole": [], "rows": {}}}',
        '{"command": "bench", "per": "layer", "environment": {}, "samples": {"whole": [], "rows": {"a": ["1"]}}}',
        '{"command": "bench", "per": "layer", "environment": {}, "samples": {"whole": [], "rows": {"a": [NaN]}}}',
        '{"command": "bench", "per": "layer", "environment": {}, "samples": {"whole": [], "rows": {"a": [0]}}}',
        "\x00",
    ],
)
def test_what_is_no_run_is_refused(tmp_path, text: str) -> None:
    path = tmp_path / "x.json"
    path.write_text(text)
    with pytest.raises(SourceError, match="not a run to compare with") as caught:
        runs.read(path)
    assert caught.value.received == str(path)
    assert "--save" in (caught.value.todo or "")


def test_a_run_that_is_not_there(tmp_path) -> None:
    with pytest.raises(SourceError, match="no such file"):
        runs.read(tmp_path / "none.json")


@pytest.mark.parametrize(
    ("wanted", "what"),
    [
        ({"per": "block"}, "rows per layer"),
        ({"device": "cuda"}, "of the cpu"),
    ],
)
def test_other_rows_are_refused_before_anything_is_measured(tmp_path, wanted, what) -> None:
    run = runs.read(saved(tmp_path, {"a": STEADY}, STEADY))
    given = {"per": "layer", "source": "net.py:make", "device": "cpu"}
    runs.check(run, **given)
    with pytest.raises(UsageError, match=what):
        runs.check(run, **{**given, **wanted})


def test_whole_models_are_compared_with_themselves_only(tmp_path) -> None:
    run = runs.read(saved(tmp_path, {"(model)": STEADY}, STEADY, per="model"))
    runs.check(run, per="model", source="net.py:make", device="cpu")
    with pytest.raises(UsageError, match="another network"):
        runs.check(run, per="model", source="other.py:make", device="cpu")


def test_samples_are_written_as_plain_numbers() -> None:
    stream = io.StringIO()
    runs.write(result({"a": [1.0]}, [1.0]), [1.0], {"a": [1.0]}, stream)
    assert json.loads(stream.getvalue())["memory"] is None
