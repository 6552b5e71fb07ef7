"""Own shape rules against PyTorch's meta kernels, and both against real runs."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from memfit.capture.phantom import phantom, run_on_meta
from memfit.capture.shape_rules import SHAPE_RULES

aten = torch.ops.aten


def t(*shape: int, last: bool = False, dtype: torch.dtype = torch.float32) -> Tensor:
    x = torch.randn(shape).to(dtype)
    return x.to(memory_format=torch.channels_last) if last else x


def _unary_calls(func: Any) -> list[tuple[Any, ...]]:
    return [
        (func, x) for x in (t(2, 3), t(2, 4, 5, 5), t(2, 4, 5, 5, last=True), t(2, 1, 5, 5, last=True), t(0, 3), t())
    ]


def _binary_calls(func: Any) -> list[tuple[Any, ...]]:
    return [
        (func, t(2, 4), t(2, 4)), (func, t(2, 4), t(4)), (func, t(2, 4), t(1, 4)), (func, t(2, 4), t()),
        (func, t(2, 4), 2.0), (func, t(2, 4, 3, 3, last=True), t(2, 4, 3, 3, last=True)),
        (func, t(2, 4, 3, 3, last=True), t(2, 4, 3, 3)), (func, t(2, 4, 3, 3), t(4, 1, 1)),
        (func, t(2, 1, 3, 3), t(2, 1, 3, 3, last=True)), (func, t(2, 4), 2),
    ]  # fmt: skip


def _conv(x: Tensor, w: Tensor, *, s: int = 1, p: int = 0, d: int = 1, g: int = 1, b: Tensor | None = None) -> Any:
    n = x.dim() - 2
    return (aten.convolution.default, x, w, b, [s] * n, [p] * n, [d] * n, False, [0] * n, g)


def _more_calls() -> list[tuple[Any, ...]]:
    x, last = t(2, 4, 5, 6), t(2, 4, 5, 6, last=True)
    permuted, part = t(2, 5, 6, 4).permute(0, 3, 1, 2), t(2, 8, 5, 6)[:, ::2]
    images = (x, last, permuted, part)
    calls: list[tuple[Any, ...]] = []
    for y in images:
        calls += [
            (aten.gelu.default, y), (aten.eq.Scalar, y, 0), (aten.clone.default, y), (aten.zeros_like.default, y),
            (aten.clone.default, y, {"memory_format": torch.contiguous_format}),
            (aten.clone.default, y, {"memory_format": torch.channels_last}),
            (aten._to_copy.default, y, {"dtype": torch.float16}),
            (aten.masked_fill.Scalar, y, t(2, 4, 5, 6) > 0, 1.0), (aten.masked_fill.Scalar, y, t(5, 6) > 0, 1.0),
            (aten.mean.dim, y, [2, 3], True), (aten.sum.dim_IntList, y, [0, 2]), (aten.sum.dim_IntList, y, [0], True),
            (aten.max_pool2d_with_indices.default, y, [3, 3], [2, 2], [1, 1], [1, 1], True),
            (aten.avg_pool2d.default, y, [2], [], [0], True), (aten.avg_pool2d.default, y, [3, 3], [2, 2], [1, 1]),
            (aten._adaptive_avg_pool2d.default, y, [3, 2]), (aten._adaptive_avg_pool2d_backward.default, t(2, 4, 3, 2), y),
            (aten.constant_pad_nd.default, y, [1, 2, 0, 1], 0.0), (aten.roll.default, y, [1, 2], [2, 3]),
            (aten._softmax.default, y, 1, False), (aten._log_softmax.default, y, -1, False),
            (aten.native_batch_norm.default, y, t(4), t(4), t(4), t(4), False, 0.1, 1e-5),
            (aten.native_batch_norm.default, y, t(4), t(4), t(4), t(4), True, 0.1, 1e-5),
            (aten.native_layer_norm.default, y, [6], t(6), t(6), 1e-5),
            (aten.native_layer_norm_backward.default, y, last, [6], t(2, 4, 5, 1), t(2, 4, 5, 1), t(6), t(6), [True] * 3),
            (aten.native_batch_norm_backward.default, y, x, t(4), t(4), t(4), t(4), t(4), True, 1e-5, [True] * 3),
            (aten.native_batch_norm_backward.default, y, last, t(4), t(4), t(4), t(4), t(4), True, 1e-5, [True] * 3),
        ]  # fmt: skip
        for z in (*images, t(4, 1, 1), t(2, 1, 5, 1), t(6), t()):
            calls += [
                (aten.add.Tensor, y, z),
                (aten.mul.Tensor, z, y),
                (aten.gt.Tensor, y, z),
                (aten.cat.default, [y, y], 1),
            ]
            if z.shape == y.shape:
                calls += [(aten.cat.default, [y, z], 1), (aten.gelu_backward.default, y, z), (aten.copy_.default, y, z),
                          (aten.threshold_backward.default, y, z, 0), (aten.silu_backward.default, y, z)]  # fmt: skip
        for w in (t(6, 4, 3, 3), t(6, 4, 3, 3, last=True)):
            grad = aten.convolution.default(y, w, None, [2, 2], [1, 1], [1, 1], False, [0, 0], 1)
            for g in (grad, grad.contiguous(), grad.contiguous(memory_format=torch.channels_last)):
                calls.append(
                    (
                        aten.convolution_backward.default,
                        g,
                        y,
                        w,
                        [6],
                        [2, 2],
                        [1, 1],
                        [1, 1],
                        False,
                        [0, 0],
                        1,
                        [True] * 3,
                    )
                )
        calls.append(_conv(y, t(6, 4, 3, 3), s=2, p=1))
        up = t(4, 3, 2, 2)
        calls.append((aten.convolution.default, y, up, t(3), [2, 2], [0, 0], [1, 1], True, [1, 1], 1))
    for n, steps, wide, hidden in (
        (2, 5, 8, 8),
        (8, 32, 100, 64),
        (8, 32, 64, 100),
        (3, 7, 300, 20),
        (16, 50, 256, 256),
    ):
        weights = (t(4 * hidden, wide), t(4 * hidden, hidden), t(4 * hidden), t(4 * hidden))
        states = (t(n, hidden), t(n, hidden))
        for train in (False, True):
            calls.append(
                (aten.mkldnn_rnn_layer.default, t(steps, n, wide), *weights, *states, False, [], 2, hidden, 1, True, False,
                 False, train)
            )  # fmt: skip
    ids = torch.zeros(3, dtype=torch.int64)
    heads = t(2, 5, 3, 8).transpose(1, 2)
    out, lse = aten._scaled_dot_product_flash_attention_for_cpu.default(heads, heads, heads)
    calls += [
        (aten.zeros.default, [2, 3]), (aten.ones.default, [2, 3], {"dtype": torch.int64}),
        (aten.new_zeros.default, x, [3, 2]), (aten.new_empty_strided.default, x, [3, 2], [1, 3]),
        (aten.select_backward.default, t(2, 3), [2, 4, 3], 1, 0), (aten.slice_backward.default, t(2, 2), [2, 4], 1, 0, 2, 1),
        (aten.add_.Tensor, torch.tensor(0), 1), (aten.fill_.Tensor, t(2, 3), t()), (aten.fill_.Scalar, t(2, 3), 1),
        (aten.bernoulli_.float, t(2, 3), 0.5), (aten.div.Scalar, x, 2), (aten.div_.Scalar, t(2, 3), 2),
        (aten.nll_loss_forward.default, t(3, 5), ids, None, 1, -100),
        (aten.nll_loss_backward.default, t(), t(3, 5), ids, None, 1, -100, t()),
        (aten._log_softmax_backward_data.default, t(3, 5), t(3, 5), 1, torch.float32),
        (aten._scaled_dot_product_flash_attention_for_cpu_backward.default, out, heads, heads, heads, out, lse, 0.0, False),
        (aten._native_multi_head_attention.default, *[t(2, 5, 8)] * 3, 8, 2, t(24, 8), t(24), t(8, 8), t(8), None, False),
        (aten._transformer_encoder_layer_fwd.default, t(2, 5, 8), 8, 2, t(24, 8), t(24), t(8, 8), t(8), True, False, 1e-5,
         t(8), t(8), t(8), t(8), t(16, 8), t(16), t(8, 16), t(8)),
        (aten.max_pool2d_with_indices_backward.default, t(2, 4, 2, 3), x, [2, 2], [2, 2], [0, 0], [1, 1], False,
         torch.zeros(2, 4, 2, 3, dtype=torch.int64)),
        (aten.avg_pool2d_backward.default, t(2, 4, 2, 3), x, [2, 2], [2, 2], [0, 0], False, True, None),
    ]  # fmt: skip
    return calls


CALLS: list[tuple[Any, ...]] = [
    _conv(t(2, 3, 9, 8), t(6, 3, 3, 3), s=2, p=1, b=t(6)),
    _conv(t(2, 4, 9, 8), t(4, 1, 3, 3), p=1, g=4),
    _conv(t(2, 4, 9, 8), t(6, 4, 1, 1)),
    _conv(t(2, 4, 9, 8, last=True), t(6, 4, 3, 3)),
    _conv(t(2, 4, 9, 8), t(6, 4, 3, 3, last=True)),
    _conv(t(2, 1, 9, 8, last=True), t(6, 1, 3, 3)),
    _conv(t(2, 4, 1, 1), t(6, 4, 1, 1)),
    _conv(t(1, 4, 9, 8), t(6, 4, 3, 3), d=2, p=2),
    _conv(t(2, 4, 9), t(6, 2, 3), g=2),
    _conv(t(2, 4, 9, 5, 6), t(6, 4, 3, 1, 2), s=2),
    *(call for name in ("relu", "gelu", "silu", "sigmoid", "tanh", "hardswish", "softplus", "exp", "neg", "rsqrt", "erf")
      for call in _unary_calls(getattr(aten, name).default)),
    *(call for name in ("relu_", "silu_", "hardswish_", "zero_") for call in _unary_calls(getattr(aten, name).default)),
    *(call for name in ("add", "sub", "mul", "div", "add_", "mul_")
      for call in _binary_calls(getattr(aten, name).Tensor)),
    *_more_calls(),
    (aten.pow.Tensor_Scalar, t(2, 4), 2),
    (aten.native_batch_norm.default, t(2, 4, 3, 3), t(4), t(4), t(4), t(4), True, 0.1, 1e-5),
    (aten.native_batch_norm.default, t(2, 4, 3, 3), t(4), t(4), t(4), t(4), False, 0.1, 1e-5),
    (aten.native_batch_norm.default, t(2, 4, 3, 3, last=True), t(4), t(4), t(4), t(4), False, 0.1, 1e-5),
    (aten.native_batch_norm.default, t(5, 4), None, None, None, None, True, 0.1, 1e-5),
    (aten.native_layer_norm.default, t(2, 5, 4), [4], t(4), t(4), 1e-5),
    (aten.native_layer_norm.default, t(2, 5, 4), [5, 4], None, None, 1e-5),
    (aten.mm.default, t(3, 4), t(4, 5)),
    (aten.mm.default, t(3, 4), t(5, 4).t()),
    (aten.addmm.default, t(5), t(3, 4), t(4, 5)),
    (aten.addmm.default, t(3, 5), t(3, 4), t(4, 5)),
    (aten.bmm.default, t(2, 3, 4), t(2, 4, 5)),
    (aten.clone.default, t(2, 4, 3, 3, last=True)),
    (aten.clone.default, t(4, 5).t()),
    (aten._softmax.default, t(2, 4), -1, False),
    (aten.mean.dim, t(2, 4, 3, 3), [2, 3]),
    (aten.mean.dim, t(2, 4, 3, 3), [-1], True),
    (aten.cat.default, [t(2, 3), t(2, 5)], 1),
    (aten.cat.default, [t(2, 3, 4, 4), t(2, 5, 4, 4)], -3),
    (aten.cat.default, [t(2, 3, 4, 4, last=True), t(2, 5, 4, 4, last=True)], 1),
    (aten.embedding.default, t(10, 4), torch.zeros(2, 3, dtype=torch.int64)),
    (aten.max_pool2d_with_indices.default, t(2, 4, 9, 9), [3, 3], [2, 2], [1, 1]),
    (aten.max_pool2d_with_indices.default, t(2, 4, 9, 9), [2, 2]),
    (aten._scaled_dot_product_flash_attention_for_cpu.default, t(2, 3, 5, 8), t(2, 3, 7, 8), t(2, 3, 7, 8)),
    (aten._scaled_dot_product_flash_attention_for_cpu.default, *(t(2, 5, 3, 8).transpose(1, 2) for _ in range(3))),
    (aten._scaled_dot_product_flash_attention_for_cpu.default, *t(2, 5, 3, 3, 8).permute(2, 0, 3, 1, 4).unbind(0)),
]  # fmt: skip

# What PyTorch's meta kernel answers differently from its own CPU kernel; the rules follow the CPU.
META_DIFFERS = {
    aten.convolution.default,
    aten.convolution_backward.default,
    aten.native_batch_norm.default,
    aten.native_layer_norm_backward.default,
    aten._scaled_dot_product_flash_attention_for_cpu.default,
    aten._scaled_dot_product_flash_attention_for_cpu_backward.default,
    aten._native_multi_head_attention.default,
    aten.mkldnn_rnn_layer.default,
}


def geometry(result: Any) -> list[tuple[Any, ...]]:
    outputs = (result,) if isinstance(result, Tensor) else result
    return [(tuple(x.shape), _true_strides(x), x.dtype) for x in outputs if x is not None]


def _true_strides(x: Tensor) -> tuple[int, ...]:
    """Strides of dimensions in which anything moves; the others mean nothing."""
    return () if x.numel() == 0 else tuple(s for s, n in zip(x.stride(), x.shape, strict=True) if n > 1)


@pytest.mark.parametrize("call", CALLS, ids=lambda c: str(c[0]))
def test_a_rule_gives_what_the_kernels_give(call: tuple[Any, ...]) -> None:
    func, *args = call
    kwargs = args.pop() if isinstance(args[-1], dict) else {}
    phantoms = [_without_bytes(a) if isinstance(a, Tensor) else a for a in args]
    phantoms = [
        [_without_bytes(x) for x in a] if isinstance(a, list) and a and isinstance(a[0], Tensor) else a
        for a in phantoms
    ]
    real = geometry(func(*args, **kwargs))
    answer = SHAPE_RULES[func](*phantoms, **kwargs)
    if answer is NotImplemented:
        pytest.skip("outside the rule's own case: the meta kernel answers")
    assert geometry(answer) == real
    if func not in META_DIFFERS:
        assert geometry(answer) == geometry(run_on_meta(func, tuple(phantoms), kwargs))


def _without_bytes(x: Tensor) -> Tensor:
    return phantom(tuple(x.shape), x.stride(), x.dtype)


def test_every_rule_is_tried() -> None:
    tried = {call[0] for call in CALLS}
    same_rule = {SHAPE_RULES[func] for func in tried}
    assert {func for func in SHAPE_RULES if func not in tried and SHAPE_RULES[func] not in same_rule} == set()
