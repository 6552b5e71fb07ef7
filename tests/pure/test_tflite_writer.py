"""The `.tflite` writer: what it changes, what it leaves, what it refuses, and that the real runtime obeys."""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import tflite_models as models
from hypothesis import given, settings
from hypothesis import strategies as st
from test_tflite_reader import KNOWN, real
from tflm_runtime import need_runtime, outputs_of

from memfit.errors import OutputError, UsageError
from memfit.files import write_bytes
from memfit.formats.tflite import Subgraph, TfliteModel, parse_model
from memfit.plan.writer import check_order, rewrite


def random_order(subgraph: Subgraph, seed: int) -> list[int]:
    """A topological order, drawn operator by operator."""
    drawn = random.Random(seed)
    made = {i for op in subgraph.operators for i in op.outputs}
    waiting, ready, order = set(range(len(subgraph.operators))), set(), []
    while waiting:
        free = [
            k for k in sorted(waiting)
            if all(i in ready or i not in made for i in subgraph.operators[k].inputs)
        ]  # fmt: skip
        pick = drawn.choice(free)
        waiting.remove(pick)
        order.append(pick)
        ready.update(subgraph.operators[pick].outputs)
    return order


def first_fit(model: TfliteModel, order: Sequence[int]) -> list[int]:
    """A valid plan, slowly: each tensor at the lowest place that nothing alive with it takes."""
    main = model.main
    ops = [main.operators[i] for i in order]
    life: dict[int, tuple[int, int]] = {}
    for i in main.inputs:
        life[i] = (-1, max((k for k, op in enumerate(ops) if i in op.inputs), default=-1))
    for k, op in enumerate(ops):
        for i in op.outputs:
            last = max((j for j, other in enumerate(ops) if i in other.inputs), default=k)
            life[i] = (k, last)
    for i in main.outputs:
        if i in life:
            life[i] = (life[i][0], len(ops))
    offsets = [-1] * len(main.tensors)
    placed: list[tuple[int, int, int]] = []
    for i in sorted(life, key=lambda i: (-main.tensors[i].nbytes, i)):
        tensor = main.tensors[i]
        if tensor.is_constant or tensor.is_variable:
            continue
        size = -(-tensor.nbytes // 16) * 16
        at = 0
        for low, high, other in sorted(placed):
            together = life[i][0] <= life[other][1] and life[other][0] <= life[i][1]
            if together and low < at + size and at < high:
                at = high
        offsets[i] = at
        placed.append((at, at + size, i))
    return offsets


# -- what changes, and what stays ----------------------------------------------------------------------------------


@given(name=st.sampled_from(list(models.NETS)), seed=st.integers(0, 1 << 16))
@settings(max_examples=60, deadline=None)
def test_reading_gives_the_same_model_but_for_the_plan(name: str, seed: int) -> None:
    data = models.NETS[name]()
    model = parse_model(data)
    order = random_order(model.main, seed)
    offsets = first_fit(model, order)
    written = rewrite(model, orders={0: order}, offsets=offsets)
    found = parse_model(written)
    assert [op._replace(index=0) for op in found.main.operators] == [
        model.main.operators[i]._replace(index=0) for i in order
    ]
    assert found.offline_offsets == tuple(offsets)
    assert [t._replace(data=None) for t in found.main.tensors] == [t._replace(data=None) for t in model.main.tensors]
    for ours, theirs in zip(found.main.tensors, model.main.tensors, strict=True):
        assert found.content(ours.data) == model.content(theirs.data)
        if ours.data is not None and theirs.data is not None:
            assert ours.data.offset % 16 == theirs.data.offset % 16
    assert (found.signatures, found.codes, found.description) == (model.signatures, model.codes, model.description)
    back = rewrite(found, orders={0: [order.index(k) for k in range(len(order))]})
    assert parse_model(back).main == found.main._replace(
        operators=tuple(
            sorted((op._replace(index=order[op.index]) for op in found.main.operators), key=lambda o: o.index)
        )
    )


def test_the_old_file_follows_the_new_part_byte_for_byte() -> None:
    data = models.cnn()
    model = parse_model(data)
    written = rewrite(model, offsets=[-1] * len(model.main.tensors))
    assert written.endswith(data)
    assert (len(written) - len(data)) % 16 == 0
    assert len(written) - len(data) < 1024


def test_an_order_alone_changes_nothing_but_the_list() -> None:
    data = models.branches()
    model = parse_model(data)
    order = next(o for seed in range(99) if (o := random_order(model.main, seed)) != sorted(o))
    written = rewrite(model, orders={0: order})
    changed = [i for i, (a, b) in enumerate(zip(data, written, strict=True)) if a != b]
    assert max(changed) - min(changed) < 4 * len(order)


def test_a_plan_of_the_same_length_is_overwritten_in_place() -> None:
    net = models.Net()
    y = net.unary("RELU", net.input(1, 4))
    net.metadata = {"other": b"kept", "OfflineMemoryAllocation": models.offline_plan([0, 16])}
    data = net.build(y)
    written = rewrite(parse_model(data), offsets=[32, 0])
    assert len(written) == len(data)
    assert sum(a != b for a, b in zip(data, written, strict=True)) == 2
    assert parse_model(written).offline_offsets == (32, 0)


@pytest.mark.parametrize("old", [b"", b"short", models.offline_plan([0, 16, 32])])
def test_a_plan_of_another_length_is_replaced(old: bytes) -> None:
    net = models.Net()
    y = net.unary("RELU", net.input(1, 4))
    net.metadata = {"OfflineMemoryAllocation": old, "other": b"kept"}
    model = parse_model(rewrite(parse_model(net.build(y)), offsets=[32, 0]))
    assert model.offline_offsets == (32, 0)
    assert [m.name for m in model.metadata] == ["other", "OfflineMemoryAllocation"]
    assert model.content(model.buffers[model.metadata[0].buffer].data) == b"kept"


def test_a_plan_that_shares_its_buffer_with_a_weight_leaves_the_weight() -> None:
    net = models.Net("FLOAT32")
    x = net.input(1, 6)
    weight = net.tensor((6,), data=models.offline_plan([0, -1, -1]))
    y = net.op("ADD", [x, weight], [net.tensor((1, 6))], "AddOptions")
    net.metadata = {"OfflineMemoryAllocation": weight}
    shared = parse_model(net.build(y))
    found = parse_model(rewrite(shared, offsets=[0, -1, 32]))
    assert found.offline_offsets == (0, -1, 32)
    assert found.content(found.main.tensors[weight].data) == models.offline_plan([0, -1, -1])


def test_data_behind_the_tables_moves_with_the_file() -> None:
    net = models.Net("FLOAT32")
    x = net.input(1, 4)
    y = net.op("ADD", [x, net.tensor((1, 4), data=np.arange(4))], [net.tensor((1, 4))], "AddOptions")
    net.outside = True
    model = parse_model(net.build(y))
    weight = model.main.tensors[1]
    assert model.buffers[weight.buffer].outside
    assert np.frombuffer(model.content(weight.data), "<f4").tolist() == [0, 1, 2, 3]
    found = parse_model(rewrite(model, offsets=[0, -1, 16]))
    assert found.content(found.main.tensors[1].data) == model.content(weight.data)


# -- what is refused -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("order", "message"),
    [
        ([0, 1], r"(?s)names each operator once.*2 for \d+ operators.*plan"),
        ([0] * 11, r"names each operator once"),
        (None, r"(?s)cannot run.*subgraphs\[0\].*operators\[1\].*before operators\[0\] \(CONV_2D\)"),
    ],
)
def test_orders_that_cannot_run(order: list[int] | None, message: str) -> None:
    model = parse_model(models.cnn())
    count = len(model.main.operators)
    with pytest.raises(UsageError, match=message):
        rewrite(model, orders={0: order if order is not None else [1, 0, *range(2, count)]})


def test_operators_on_one_variable_keep_their_order() -> None:
    net = models.Net("FLOAT32")
    x = net.input(1, 8)
    state = net.tensor((1, 8), variable=True)
    y = net.op("ADD", [x, state], [net.tensor((1, 8))], "AddOptions")
    z = net.op("MUL", [x, state], [net.tensor((1, 8))], "MulOptions")
    with pytest.raises(UsageError, match="cannot run"):
        check_order(parse_model(net.build(y, z)).main, [1, 0])


def test_operators_with_hidden_state_keep_their_order() -> None:
    net = models.Net("FLOAT32")
    x = net.input(1, 4)
    a = net.op("First", [x], [net.tensor((1, 4))])
    b = net.op("Second", [x], [net.tensor((1, 4))])
    with pytest.raises(UsageError, match=r"(?s)operators\[1\] \(Second\) before operators\[0\] \(First\)"):
        check_order(parse_model(net.build(a, b)).main, [1, 0])


@pytest.mark.parametrize(
    ("place", "offset", "message"),
    [
        (None, 0, r"(?s)one per tensor.*1 for \d+ tensors"),
        (0, 8, r"(?s)multiple of 16.*offsets\[0\] \(input0\).*8"),
        (0, -2, r"(?s)multiple of 16.*-2"),
        (0, 1 << 31, r"(?s)multiple of 16.*2147483648"),
        (1, 0, r"(?s)a constant has no place.*offsets\[1\]"),
    ],
)
def test_offsets_that_the_runtime_would_not_take(place: int | None, offset: int, message: str) -> None:
    model = parse_model(models.cnn())
    offsets = [-1] * (len(model.main.tensors) if place is not None else 1)
    offsets[place or 0] = offset
    with pytest.raises(UsageError, match=message):
        rewrite(model, offsets=offsets)


def test_several_subgraphs_take_no_offsets() -> None:
    model = parse_model(models.control_flow())
    with pytest.raises(UsageError, match=r"(?s)one list of offsets for every subgraph.*3 subgraphs"):
        rewrite(model, offsets=[0, 16, 32])
    assert parse_model(rewrite(model, orders={1: [0]})) == model


def test_a_file_is_kept_unless_forced_and_complete_or_absent(tmp_path: Path) -> None:
    path = tmp_path / "out.tflite"
    write_bytes(b"one", path)
    with pytest.raises(OutputError, match=r"(?s)exists already.*out.tflite.*--force"):
        write_bytes(b"two", path)
    assert path.read_bytes() == b"one"
    write_bytes(b"two", path, force=True)
    assert path.read_bytes() == b"two"
    with pytest.raises(OutputError, match="does not exist"):
        write_bytes(b"x", tmp_path / "nowhere" / "out.tflite")
    with pytest.raises(OutputError, match="folder"):
        write_bytes(b"x", tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["out.tflite"]


# -- the real runtime ----------------------------------------------------------------------------------------------


def written_pair(model: TfliteModel, folder: Path, name: str, seed: int) -> list[Path]:
    order = random_order(model.main, seed)
    paths = [folder / f"{name}.tflite", folder / f"{name}.planned.tflite"]
    paths[0].write_bytes(model.data)
    write_bytes(rewrite(model, orders={0: order}, offsets=first_fit(model, order)), paths[1])
    return paths


def test_the_runtime_gives_the_same_outputs_for_every_generated_model(tmp_path: Path) -> None:
    need_runtime()
    paths = [
        path for k, (name, make) in enumerate(models.NETS.items())
        for path in written_pair(parse_model(make()), tmp_path, name, seed=k)
    ]  # fmt: skip
    digests = outputs_of(paths, arena=400_000)
    wrong = {path.stem: (a, b) for path, a, b in zip(paths[::2], digests[::2], digests[1::2], strict=True) if a != b}
    assert not wrong
    assert not [d for d in digests if d.startswith("error")]
    assert len(set(digests)) > len(models.NETS) * 0.9


def test_the_runtime_obeys_the_offsets(tmp_path: Path) -> None:
    """A plan that puts two tensors that are needed together into one place must show in the output."""
    need_runtime()
    model = parse_model(models.resnet())
    good, bad = tmp_path / "good.tflite", tmp_path / "bad.tflite"
    offsets = first_fit(model, range(len(model.main.operators)))
    good.write_bytes(rewrite(model, offsets=offsets))
    bad.write_bytes(rewrite(model, offsets=[0 if o >= 0 else -1 for o in offsets]))
    a, b = outputs_of([good, bad], arena=100_000)
    assert not a.startswith("error")
    assert a != b


@pytest.mark.parametrize("name", [k for k in KNOWN if "mobilenet_v2" not in k])
def test_the_runtime_gives_the_same_outputs_for_real_models(name: str, tmp_path: Path) -> None:
    need_runtime()
    model = parse_model(real(name).read_bytes())
    a, b = outputs_of(written_pair(model, tmp_path, "net", seed=1), arena=400_000, seeds=2)
    assert not a.startswith("error")
    assert a == b


def test_vww_runs_in_85_kib_where_the_runtimes_own_plan_needs_104(tmp_path: Path) -> None:
    """In a chain every second tensor goes to the bottom and the others to the top: a head at the lower bound."""
    need_runtime()
    model = parse_model(real("mlperf-tiny/vww_96_int8").read_bytes())
    main = model.main
    bound = KNOWN["mlperf-tiny/vww_96_int8"][2]
    offsets = [-1] * len(main.tensors)
    for position, i in enumerate([*main.inputs, *(op.outputs[0] for op in main.operators)]):
        offsets[i] = bound - -(-main.tensors[i].nbytes // 16) * 16 if position % 2 else 0
    plain, planned = tmp_path / "plain.tflite", tmp_path / "planned.tflite"
    plain.write_bytes(model.data)
    write_bytes(rewrite(model, offsets=offsets), planned)
    assert outputs_of([plain], arena=103_656, seeds=1)[0].startswith("error")
    assert outputs_of([planned], arena=85_224, seeds=1)[0].startswith("error")
    a, b = outputs_of([plain], arena=103_672)[0], outputs_of([planned], arena=85_240)[0]
    assert not a.startswith("error")
    assert a == b
