"""The eager model's rules, worked out by hand."""

from __future__ import annotations

from typing import Any

import pytest

from memfit.graph.model import ITEMSIZE, Graph, Op, Phase, Ref, Storage, StorageKind, Tensor
from memfit.memory.cpu_workspaces import RULES, VERIFIED, doubts, events
from memfit.memory.eager import timeline

ACTIVATION, INPUT, PARAMETER = StorageKind.ACTIVATION, StorageKind.INPUT, StorageKind.PARAMETER


def strides_of(shape: tuple[int, ...], last: bool = False) -> tuple[int, ...]:
    order = [0, 2, 3, 1] if last else list(range(len(shape)))
    strides, step = [0] * len(shape), 1
    for d in reversed(order):
        strides[d] = step
        step *= shape[d]
    return tuple(strides)


def size(shape: tuple[int, ...], dtype: str = "float32") -> int:
    n = ITEMSIZE[dtype]
    for s in shape:
        n *= s
    return n


def one_op(
    target: str,
    operands: list[tuple[int, ...]],
    outputs: list[tuple[int, ...]],
    settings: tuple[Any, ...] = (),
    *,
    dtype: str = "float32",
    last: bool = False,
    threads: int = 1,
    isa: str = "AVX512",
    attrs: dict[str, Any] | None = None,
    phase: Phase = Phase.FORWARD,
) -> Graph:
    """A graph of one operation on dense operands; in `settings`, an int within a set stands for an operand."""
    shapes = operands + outputs
    tensors = tuple(Tensor(i, i, s, strides_of(s, last and len(s) == 4), dtype) for i, s in enumerate(shapes))
    storages = tuple(
        Storage(i, size(s, dtype), ACTIVATION if i >= len(operands) else INPUT, 0 if i >= len(operands) else -1, 1, 1)
        for i, s in enumerate(shapes)
    )
    ids = tuple(range(len(operands)))
    args = settings or tuple(Ref(i) for i in ids)
    op = Op(
        0, target.split(".")[1], target, ids, tuple(range(len(operands), len(shapes))), attrs or {}, 0,
        phase=phase, args=args,
    )  # fmt: skip
    environment = {"threads": threads, "isa": isa, "torch": "2.13.0"}
    return Graph(storages, tensors, (op,), (), ids, (len(operands),), environment=environment)


def convolution(
    x: tuple[int, ...], w: tuple[int, ...], y: tuple[int, ...], *, stride: int = 1, padding: int = 0, groups: int = 1,
    bias: bool = False, backend: str = "Mkldnn", **options: Any,
) -> Graph:  # fmt: skip
    operands = [x, w, (w[0],)] if bias else [x, w]
    settings = (
        Ref(0), Ref(1), Ref(2) if bias else None, (stride, stride), (padding, padding), (1, 1), False, (0, 0), groups,
    )  # fmt: skip
    return one_op("aten.convolution.default", operands, [y], settings, attrs={"backend": backend}, **options)


def found(graph: Graph) -> tuple[int, ...] | None:
    return events(graph, graph.ops[0])


def test_depthwise_convolution_of_mobilenet_v2() -> None:
    """features.2 at 224: copy of the input, of the weight, blocked output; then the dense output."""
    graph = convolution((1, 96, 112, 112), (96, 1, 3, 3), (1, 96, 56, 56), stride=2, padding=1, groups=96)
    assert found(graph) == (4816896, 3456, 1204224, -3456, -4816896, 1204224, -1204224)
    result = timeline(graph)
    assert result.peak_bytes == 4816896 + 3456 + 4816896 + 4816896 + 3456 + 1204224 - 4816896
    assert result.workspace_bytes == (4816896 + 3456,)


def test_stem_reads_its_three_channels_as_they_lie() -> None:
    graph = convolution((1, 3, 224, 224), (24, 3, 3, 3), (1, 24, 112, 112), stride=2, padding=1)
    padded = 4 * 32 * 112 * 112
    assert found(graph) == (3 * 9 * 32 * 4, padded, -3 * 9 * 32 * 4, 4 * 24 * 112 * 112, -padded)


def test_block_of_eight_on_avx2() -> None:
    graph = convolution((1, 24, 28, 28), (40, 24, 3, 3), (1, 40, 28, 28), padding=1, isa="AVX2")
    x, w, y = 4 * 24 * 784, 4 * 24 * 40 * 9, 4 * 40 * 784
    assert found(graph) == (x, w, y, -w, -x, y, -y)
    wide = convolution((1, 24, 28, 28), (40, 24, 3, 3), (1, 40, 28, 28), padding=1)
    x, w, blocked = 4 * 32 * 784, 4 * 32 * 48 * 9, 4 * 48 * 784
    assert found(wide) == (x, w, blocked, -w, -x, y, -blocked)


def test_strided_pointwise_gathers_per_thread() -> None:
    graph = convolution((2, 256, 14, 14), (512, 256, 1, 1), (2, 512, 7, 7), stride=2, threads=2)
    scratch = 2 * 4 * 256 * 49 + 128
    assert found(graph)[0] == scratch == 100480


def test_channels_last_has_no_copies() -> None:
    graph = convolution((4, 192, 28, 28), (32, 192, 1, 1), (4, 32, 28, 28), last=True, threads=2)
    assert found(graph) == (401408, 4096 + 2 * 4120, 24576, -24576, -4096 - 2 * 4120)


def test_unfolding_kernel() -> None:
    graph = convolution((1, 8, 30, 30), (32, 8, 3, 3), (1, 32, 28, 28), backend="Slow2d")
    assert found(graph) == (4 * 8 * 9 * 784, 4 * 32 * 784, -4 * 8 * 9 * 784)


def test_batch_norm() -> None:
    c = 4 * 64
    shapes = [(2, 64, 8, 8), (64,), (64,), (64,), (64,)]
    refs = tuple(Ref(i) for i in range(5))
    evaluated = one_op("aten.native_batch_norm.default", shapes, [(2, 64, 8, 8)], (*refs, False, 0.1, 1e-5))
    assert found(evaluated) == (2 * 64 * 64 * 4, c, c, -c, -c)
    outputs = [(2, 64, 8, 8), (64,), (64,)]
    trained = one_op("aten.native_batch_norm.default", shapes, outputs, (*refs, True, 0.1, 1e-5))
    assert found(trained) == (2 * 64 * 64 * 4, c, c, c, c, -c, -c, c, c, -c, -c)


def test_flash_attention_scratch_is_per_thread() -> None:
    shape = (1, 6, 128, 32)
    for threads in (1, 2):
        graph = one_op(
            "aten._scaled_dot_product_flash_attention_for_cpu.default",
            [shape] * 3, [shape, (1, 6, 128)], threads=threads,
        )  # fmt: skip
        scratch = 4 * threads * (32 * 128 + 2 * 32 + 32 * 32)
        assert found(graph) == (98304, 3072, scratch, -scratch)


@pytest.mark.parametrize(
    ("target", "scalar", "dtype", "expected"),
    [
        ("aten.mul.Tensor", 0.5, "float32", (8, 4, 400, -4, -8)),
        ("aten.add.Tensor", 1, "int64", (8, 800, -8)),
        ("aten.ge.Scalar", 0.5, "float32", (8, 4, 400, -8, -4)),
    ],
)
def test_python_scalars_become_tensors(target: str, scalar: float, dtype: str, expected: tuple[int, ...]) -> None:
    graph = one_op(target, [(100,)], [(100,)], (Ref(0), scalar), dtype=dtype)
    assert found(graph) == expected


def test_gradients_of_a_value_used_twice_add_in_place() -> None:
    """Autograd sums into the first gradient's bytes when nobody else holds them."""
    graph = one_op("aten.add.Tensor", [(100,), (100,)], [(100,)], phase=Phase.BACKWARD)
    graph = Graph(
        tuple(s._replace(kind=ACTIVATION) for s in graph.storages),
        graph.tensors, graph.ops, graph.scopes, graph.inputs, graph.outputs, environment=graph.environment,
    )  # fmt: skip
    assert found(graph) == ()
    assert timeline(graph).peak_bytes == 800
    forward = one_op("aten.add.Tensor", [(100,), (100,)], [(100,)])
    assert found(forward) == (400,)


def test_what_has_no_rule_is_named_and_its_outputs_count() -> None:
    graph = one_op("aten.mkldnn_rnn_layer.default", [(10,)], [(20,)])
    assert found(graph) is None
    result = timeline(graph)
    assert result.unknown == ("mkldnn_rnn_layer",)
    assert result.workspace_bytes == (None,)
    assert result.peak_bytes == 40 + 80
    assert "mkldnn_rnn_layer" in result.notes[-1]


def test_half_precision_products_are_unknown() -> None:
    shapes = [(8, 8), (8, 8)]
    assert found(one_op("aten.mm.default", shapes, [(8, 8)], dtype="bfloat16")) is None
    assert found(one_op("aten.mm.default", shapes, [(8, 8)])) == (256,)
    assert found(one_op("aten.relu.default", [(8, 8)], [(8, 8)], dtype="bfloat16")) == (128,)


def test_probes_take_precedence() -> None:
    graph = one_op("aten.mkldnn_rnn_layer.default", [(10,)], [(20,)])
    result = timeline(graph, {0: (80, 1000, -1000)})
    assert result.unknown == ()
    assert result.workspace_bytes == (1000,)
    assert result.peak_bytes == 40 + 80 + 1000


def test_parameters_are_left_out_and_deaths_end_in_time() -> None:
    storages = (
        Storage(0, 100, INPUT, -1, 3, 1),
        Storage(1, 1000, PARAMETER, -1, 3, 3),
        Storage(2, 10, ACTIVATION, 0, 2, 2),
        Storage(3, 20, ACTIVATION, 1, 3, 3),
    )
    tensors = tuple(Tensor(i, i, (s.nbytes // 4,), (1,), "float32") for i, s in enumerate(storages))
    ops = tuple(
        Op(i, "relu", "aten.relu.default", (x,), (y,), {}, 0) for i, (x, y) in enumerate([(0, 2), (2, 3), (3, 3)])
    )
    result = timeline(Graph(storages, tensors, ops, (), (0,), (3,)))
    assert result.per_op_peak_bytes == (110, 130, 120)
    assert (result.peak_bytes, result.peak_op) == (130, 1)


def test_a_machine_that_was_not_verified_is_named() -> None:
    known = one_op("aten.relu.default", [(8,)], [(8,)])
    assert doubts(known) == ()
    other = one_op("aten.relu.default", [(8,)], [(8,)], isa="NEON", threads=8)
    first, second = timeline(other).notes
    assert "NEON" in first
    assert "2.13.0" in first
    assert "8" in second
    assert {("2.13.0", "AVX512"), ("2.13.0", "AVX2")} == VERIFIED


@pytest.mark.parametrize("target", sorted(RULES))
def test_every_rule_explains_itself(target: str) -> None:
    assert target.startswith("aten.")
    assert callable(RULES[target])


def test_a_mean_loss_leaves_the_bytes_of_all_elements() -> None:
    """mse_loss divides in place and returns a view of the first element's bytes."""
    graph = one_op("aten.mse_loss.default", [(10, 10), (10, 10)], [()])
    assert found(graph) == (400, 400, 8, 4, -4, -8, -400)
    after = Op(1, "neg", "aten.neg.default", (2,), (2,), {}, 0)
    longer = Graph(
        (*graph.storages[:2], graph.storages[2]._replace(death=2)),
        graph.tensors, (*graph.ops, after), (), graph.inputs, (2,), environment=graph.environment,
    )  # fmt: skip
    assert timeline(longer).per_op_peak_bytes == (800 + 812, 4 + 396)


def test_numbers_saved_for_backward_are_held() -> None:
    """A product with a number keeps it, 8 bytes, until its backward."""
    x, y, g, z = (Tensor(i, i, (100,), (1,), "float32") for i in range(4))
    storages = (
        Storage(0, 400, INPUT, -1, 3, 1),
        Storage(1, 400, ACTIVATION, 0, 3, 3),
        Storage(2, 400, ACTIVATION, 1, 3, 3),
        Storage(3, 400, ACTIVATION, 2, 3, 3),
    )
    ops = (
        Op(0, "mul", "aten.mul.Tensor", (0,), (1,), {}, 0, args=(Ref(0), 0.5)),
        Op(1, "relu", "aten.relu.default", (1,), (2,), {}, 0, args=(Ref(1),)),
        Op(2, "mul", "aten.mul.Tensor", (2,), (3,), {}, 0, phase=Phase.BACKWARD, args=(Ref(2), 0.5)),
    )
    result = timeline(Graph(storages, (x, y, g, z), ops, (), (0,), (3,), training=True))
    assert result.per_op_peak_bytes == (400 + 412, 800 + 400 + 8, 1200 + 412)
