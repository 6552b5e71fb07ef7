"""The op table: every row is well-formed, and counts are those worked out by hand."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import pytest

from memfit.errors import UnsupportedOp
from memfit.graph.model import ITEMSIZE, Ref, Scope, Tensor
from memfit.graph.optable import OP_TABLE, Role, base_name, describe, entry, role

ROOT = (Scope(0, "", "Net", -1),)


class Raw(NamedTuple):
    target: str
    args: tuple[Any, ...]
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    scope: int = 0
    backend: str | None = None


def described(
    target: str, args: list[Any], out: tuple[int, ...], *, parameters: tuple[int, ...] = ()
) -> tuple[str, dict[str, Any], int]:
    """Describe a call; shapes among the arguments stand for tensors, `parameters` are their positions."""
    tensors: list[Tensor] = []

    def add(shape: tuple[int, ...]) -> int:
        strides = tuple(math.prod(shape[d + 1 :]) for d in range(len(shape)))
        tensors.append(Tensor(len(tensors), len(tensors), shape, strides, "float32"))
        return len(tensors) - 1

    recorded = tuple(Ref(add(a.shape)) if isinstance(a, T) else a for a in args)
    inputs = tuple(int(a) for a in recorded if isinstance(a, Ref))
    state = {int(recorded[p]) for p in parameters}
    output = add(out)
    return describe(Raw(target, recorded, inputs, (output,)), tensors, state, ROOT)


class T:
    def __init__(self, *shape: int) -> None:
        self.shape = shape


CONV = [(2, 2), (1, 1), (1, 1), False, (0, 0)]

BY_HAND = [
    # 8 outputs of 5x5, each summing 3 channels of 3x3
    ("aten.convolution.default", [T(1, 3, 9, 9), T(8, 3, 3, 3), None, *CONV, 1], (1, 8, 5, 5), "conv2d", 8 * 25 * 27),
    # one channel each
    ("aten.convolution.default", [T(2, 8, 9, 9), T(8, 1, 3, 3), None, *CONV, 8], (2, 8, 5, 5), "depthwise_conv2d",
     2 * 8 * 25 * 9),
    # two groups are no depthwise convolution
    ("aten.convolution.default", [T(1, 8, 9, 9), T(8, 4, 3, 3), None, *CONV, 2], (1, 8, 5, 5), "conv2d", 8 * 25 * 36),
    # channel multiplier 2
    ("aten.convolution.default", [T(1, 4, 9, 9), T(8, 1, 3, 3), None, *CONV, 4], (1, 8, 5, 5), "depthwise_conv2d",
     8 * 25 * 9),
    # each of 4x5x5 input elements meets 6 output channels of 2x2
    ("aten.convolution.default", [T(1, 4, 5, 5), T(4, 6, 2, 2), None, (2, 2), (0, 0), (1, 1), True, (0, 0), 1],
     (1, 6, 10, 10), "conv_transpose2d", 4 * 25 * 24),
    ("aten.convolution.default", [T(1, 4, 9), T(8, 4, 3), None, (1,), (1,), (1,), False, (0,), 1], (1, 8, 9), "conv1d",
     8 * 9 * 12),
    ("aten.addmm.default", [T(5), T(3, 4), T(4, 5)], (3, 5), "linear", 3 * 5 * 4),
    ("aten.mm.default", [T(3, 4), T(4, 5)], (3, 5), "matmul", 3 * 5 * 4),
    ("aten.bmm.default", [T(2, 3, 4), T(2, 4, 5)], (2, 3, 5), "matmul", 2 * 3 * 5 * 4),
    ("aten._grouped_mm.default", [T(6, 4), T(3, 4, 5), None], (6, 5), "matmul", 6 * 4 * 5),
    ("aten._grouped_mm.default", [T(4, 6), T(6, 5), None], (3, 4, 5), "matmul", 4 * 6 * 5),
    # 2 images, 3 heads, 5 queries by 7 keys, 8 wide: weights, then values
    ("aten._scaled_dot_product_flash_attention_for_cpu.default", [T(2, 3, 5, 8), T(2, 3, 7, 8), T(2, 3, 7, 8)],
     (2, 3, 5, 8), "attention", 2 * 3 * 5 * 7 * 16),
    # self-attention of 10 tokens, 64 wide: four projections, then weights and values
    ("aten._native_multi_head_attention.default", [T(2, 10, 64), T(2, 10, 64), T(2, 10, 64)], (2, 10, 64),
     "multi_head_attention", 2 * (4 * 10 * 64 * 64 + 2 * 10 * 10 * 64)),
    ("aten._transformer_encoder_layer_fwd.default",
     [T(2, 10, 64), 64, 4, T(192, 64), T(192), T(64, 64), T(64), True, False, 1e-5, T(64), T(64), T(64), T(64),
      T(128, 64), T(128), T(64, 128), T(64)], (2, 10, 64), "transformer_encoder_layer", 680_960),
    # 5 steps of 2: input 8 and state 6 by 4 gates of 6
    ("aten.mkldnn_rnn_layer.default", [T(5, 2, 8), T(24, 8), T(24, 6)], (5, 2, 6), "rnn_layer", 10 * (24 * 8 + 24 * 6)),
    ("aten.relu_.default", [T(2, 3)], (2, 3), "relu", 0),
    ("aten.hardtanh_.default", [T(2, 3), 0.0, 6.0], (2, 3), "relu6", 0),
    ("aten.hardtanh.default", [T(2, 3)], (2, 3), "hardtanh", 0),
    ("aten.clamp.default", [T(2, 3), 0, 6], (2, 3), "relu6", 0),
    ("aten.clamp.default", [T(2, 3), -1, None], (2, 3), "clamp", 0),
    ("aten._adaptive_avg_pool2d.default", [T(1, 4, 7, 7), (7, 7)], (1, 4, 7, 7), "identity", 0),
    ("aten._adaptive_avg_pool2d.default", [T(1, 4, 7, 7), (1, 1)], (1, 4, 1, 1), "adaptive_avg_pool2d", 0),
]  # fmt: skip


@pytest.mark.parametrize(("target", "args", "out", "kind", "macs"), BY_HAND)
def test_kind_and_macs_by_hand(target: str, args: list[Any], out: tuple[int, ...], kind: str, macs: int) -> None:
    parameters = (1, 2) if kind == "linear" else ()
    assert described(target, args, out, parameters=parameters)[::2] == (kind, macs)


def test_attributes_of_a_convolution() -> None:
    _, attrs, _ = described("aten.convolution.default", [T(1, 3, 9, 9), T(8, 3, 3, 5), T(8), *CONV, 1], (1, 8, 5, 4))
    assert attrs == {
        "kernel": (3, 5), "stride": (2, 2), "padding": (1, 1), "dilation": (1, 1), "groups": 1, "bias": True,
    }  # fmt: skip


def test_a_pool_without_a_stride_moves_by_its_kernel() -> None:
    _, attrs, _ = described("aten.max_pool2d_with_indices.default", [T(1, 3, 8, 8), (2, 2)], (1, 3, 4, 4))
    assert attrs == {"kernel": (2, 2), "stride": (2, 2), "padding": (0, 0)}


def test_an_unknown_operation_names_itself_its_place_and_the_table() -> None:
    with pytest.raises(UnsupportedOp) as caught:
        described("aten.mystery.default", [T(2, 3)], (2, 3))
    error = caught.value
    assert "aten.mystery" in error.what
    assert error.where == "(root)"
    assert error.received == "2x3"
    assert "OP_TABLE" in str(error.todo)
    assert "optable.py" in str(error.todo)


@pytest.mark.parametrize("name", OP_TABLE)
def test_every_row_is_well_formed(name: str) -> None:
    row = OP_TABLE[name]
    assert base_name(f"{name}.default") == name
    assert isinstance(row.role, Role)
    if isinstance(row.kind, str):
        assert row.kind == row.kind.lower().strip("_")
        assert isinstance(role(row.kind), Role)
    products = {Role.CONV, Role.LINEAR, Role.MATMUL, Role.ATTENTION}
    assert (row.macs is not None) == (row.role in products) or row.role in (Role.RECURRENT, Role.BACKWARD)


def test_in_place_and_plain_share_a_row() -> None:
    assert entry("aten.add_.Tensor") is entry("aten.add.Tensor") is OP_TABLE["aten.add"]
    assert entry("aten.anything_backward.default").role is Role.BACKWARD  # type: ignore[union-attr]


def test_item_sizes_are_those_of_numpy() -> None:
    numpy = pytest.importorskip("numpy")
    for name, size in ITEMSIZE.items():
        if hasattr(numpy, name):
            assert numpy.dtype(name).itemsize == size
