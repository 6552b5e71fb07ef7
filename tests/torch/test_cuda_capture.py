"""Captures as on a GPU: each operation that CUDA would run, by the routes of PyTorch 2.13 (docs/cuda.md).

What is expected stands here as tables read from PyTorch's sources, or comes from running PyTorch itself on the CPU.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import checkpoint as recomputed

from memfit.capture.allocations import measure
from memfit.capture.cpu_probe import probe
from memfit.capture.cuda import Cuda
from memfit.capture.entry import open_model
from memfit.capture.foreach_rules import FOREACH_RULES
from memfit.capture.optimizers import CHOICES, optimizer
from memfit.capture.step import default_loss
from memfit.capture.torch_trace import capture_module
from memfit.errors import CaptureError, UsageError
from memfit.graph.model import BEFORE, Graph, Op, Phase, StorageKind
from memfit.memory.cpu_workspaces import VERIFIED
from memfit.memory.cuda.simulate import placement_order
from memfit.memory.eager import timeline

aten = torch.ops.aten

FP16, BF16, FP32 = torch.float16, torch.bfloat16, torch.float32


class Call(nn.Module):
    """A function as a module."""

    def __init__(self, function: Callable[..., Any], *modules: nn.Module) -> None:
        super().__init__()
        self.function = function
        self.inner = nn.ModuleList(modules)

    def forward(self, *args: Any) -> Any:
        return self.function(*self.inner, *args)


def gpu(model: nn.Module | Callable[..., Any], *args: Any, capability: str = "8.0", **options: Any) -> Graph:
    """Capture a call as on a GPU."""
    module = model if isinstance(model, nn.Module) else Call(model)
    return capture_module(module, args, cuda=Cuda.parse(capability), **options)


def names(graph: Graph, *phases: Phase) -> list[str]:
    """Operations that make tensors or write to them, without views."""
    chosen = phases or (Phase.FORWARD,)
    return [op.target.split(".")[1] for op in graph.ops if op.phase in chosen and not graph.is_alias(op)]


def only(graph: Graph, name: str) -> Op:
    found = [op for op in graph.ops if op.target.split(".")[1] == name]
    assert len(found) == 1, f"{name}: {[op.target for op in graph.ops]}"
    return found[0]


def made(graph: Graph, op: Op) -> list[tuple[tuple[int, ...], str]]:
    return [(t.shape, t.dtype) for t in (graph.tensors[i] for i in op.outputs)]


def saved_of(graph: Graph) -> set[tuple[tuple[int, ...], str]]:
    """Shapes and dtypes that autograd keeps, parameters left out."""
    values = (graph.tensors[t] for op in graph.ops for t in op.saved)
    return {(v.shape, v.dtype) for v in values if graph.storages[v.storage].kind is not StorageKind.PARAMETER}


# -- attention -------------------------------------------------------------------------------------------------------

FLASH, EFFICIENT, CUDNN = (f"_scaled_dot_product_{kind}_attention" for kind in ("flash", "efficient", "cudnn"))
MATH = "_safe_softmax"
CAPABILITIES = ("7.5", "8.0", "8.6", "8.9", "9.0", "12.0")


def qkv(
    *, heads: int = 4, keys: int | None = None, length: int = 64, size: int = 64, values: int | None = None,
    dtype: torch.dtype = FP16, grad: bool = True,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    def make(heads: int, size: int) -> Tensor:
        return torch.zeros(2, heads, length, size, dtype=dtype, requires_grad=grad)

    return make(heads, size), make(keys or heads, size), make(keys or heads, values or size)


def kernel(capability: str, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None, **options: Any) -> str:
    """Name the kernel that attention takes."""

    def call(q: Tensor, k: Tensor, v: Tensor, *mask: Tensor) -> Tensor:
        return F.scaled_dot_product_attention(q, k, v, *mask, **options)

    graph = gpu(
        call, *([q, k, v] if mask is None else [q, k, v, mask]), capability=capability, training=q.requires_grad
    )
    found = [name for name in names(graph) if name in {FLASH, EFFICIENT, CUDNN, MATH}]
    assert len(found) == 1, names(graph)
    return found[0]


def every(first: str, *rest: str) -> dict[str, str]:
    """Spell a row of the table out: one kernel for all, or one for each capability."""
    return dict(zip(CAPABILITIES, (first, *rest) if rest else (first,) * 6, strict=True))


MASK = torch.zeros(64, 64, dtype=FP16)
TABLE: dict[str, tuple[Callable[[], Any], dict[str, Any], dict[str, str]]] = {
    # 7.5 has neither flash nor cuDNN; 9.0 prefers cuDNN for half precision
    "half": (qkv, {}, every(EFFICIENT, FLASH, FLASH, FLASH, CUDNN, FLASH)),
    "half, causal": (qkv, {"is_causal": True}, every(EFFICIENT, FLASH, FLASH, FLASH, CUDNN, FLASH)),
    "bfloat16": (lambda: qkv(dtype=BF16), {}, every(MATH, FLASH, FLASH, FLASH, CUDNN, FLASH)),
    "float": (lambda: qkv(dtype=FP32), {}, every(EFFICIENT)),
    "double": (lambda: qkv(dtype=torch.float64), {}, every(MATH)),
    "mask": (lambda: (*qkv(), MASK), {}, every(EFFICIENT, EFFICIENT, EFFICIENT, EFFICIENT, CUDNN, EFFICIENT)),
    "mask with a gradient": (lambda: (*qkv(), MASK.clone().requires_grad_()), {}, every(EFFICIENT)),
    "mask of three dimensions": (lambda: (*qkv(), MASK.expand(2, 1, 64, 64)[0]), {}, every(EFFICIENT)),
    "mask expanded over keys": (lambda: (*qkv(), MASK[:, :1].expand(64, 64)), {}, every(MATH)),
    "dropout": (qkv, {"dropout_p": 0.125}, every(EFFICIENT, FLASH, FLASH, FLASH, CUDNN, FLASH)),
    "dropout not in sixteenths": (qkv, {"dropout_p": 0.1}, every(EFFICIENT, FLASH, FLASH, FLASH, FLASH, FLASH)),
    # heads of the queries in groups: no memory-efficient kernel in 2.13
    "grouped": (lambda: qkv(keys=2), {"enable_gqa": True}, every(MATH, FLASH, FLASH, FLASH, CUDNN, FLASH)),
    "grouped float": (lambda: qkv(keys=2, dtype=FP32), {"enable_gqa": True}, every(MATH)),
    "size 20": (lambda: qkv(size=20), {}, every(MATH, FLASH, FLASH, FLASH, FLASH, FLASH)),
    "size 20 float": (lambda: qkv(size=20, dtype=FP32), {}, every(EFFICIENT)),
    "size 18 float": (lambda: qkv(size=18, dtype=FP32), {}, every(EFFICIENT, MATH, MATH, MATH, MATH, MATH)),
    "size 200": (lambda: qkv(size=200), {}, every(EFFICIENT, FLASH, EFFICIENT, EFFICIENT, CUDNN, EFFICIENT)),
    "size 200, inference": (lambda: qkv(size=200, grad=False), {}, every(EFFICIENT, FLASH, FLASH, FLASH, CUDNN, FLASH)),
    "size 256": (lambda: qkv(size=256), {}, every(EFFICIENT, FLASH, FLASH, FLASH, CUDNN, FLASH)),
    "size 256, dropout": (
        lambda: qkv(size=256), {"dropout_p": 0.25}, every(EFFICIENT, FLASH, EFFICIENT, EFFICIENT, CUDNN, EFFICIENT),
    ),
    "size 264": (lambda: qkv(size=264), {}, every(EFFICIENT)),
    "other size of values": (
        lambda: qkv(values=32), {}, every(EFFICIENT, EFFICIENT, EFFICIENT, EFFICIENT, CUDNN, EFFICIENT),
    ),
    "causal, fewer queries": (
        lambda: (qkv(length=32)[0], *qkv()[1:]), {"is_causal": True},
        every(EFFICIENT, EFFICIENT, EFFICIENT, EFFICIENT, CUDNN, EFFICIENT),
    ),
    "one query": (
        lambda: (qkv(length=1, grad=False)[0], *qkv(grad=False)[1:]), {},
        every(EFFICIENT, FLASH, FLASH, FLASH, CUDNN, FLASH),
    ),
    "one key": (lambda: qkv(length=1), {}, every(EFFICIENT, FLASH, FLASH, FLASH, FLASH, FLASH)),
    "three dimensions": (lambda: tuple(t[0] for t in qkv()), {}, every(MATH)),
    "rows with gaps": (
        lambda: tuple(torch.zeros(2, 4, 64, 128, dtype=FP16, requires_grad=True)[..., ::2] for _ in range(3)), {},
        every(MATH),
    ),
    "rows that start anywhere": (
        lambda: tuple(torch.zeros(2, 4, 64, 72, dtype=FP16, requires_grad=True)[..., 4:68] for _ in range(3)),
        {"scale": 0.5},
        every(EFFICIENT, FLASH, FLASH, FLASH, CUDNN, FLASH),
    ),
    "float rows that start anywhere": (
        lambda: tuple(torch.zeros(2, 4, 64, 72, requires_grad=True)[..., 2:66] for _ in range(3)), {},
        every(EFFICIENT, MATH, MATH, MATH, MATH, MATH),
    ),
}  # fmt: skip


@pytest.mark.parametrize("capability", CAPABILITIES)
@pytest.mark.parametrize("case", TABLE)
def test_attention_takes_cudas_kernel(case: str, capability: str) -> None:
    make, options, expected = TABLE[case]
    assert kernel(capability, *make(), **options) == expected[capability]


@pytest.mark.parametrize("length", [64, 100])
def test_flash_attention_keeps_its_sums_and_generator_state(length: int) -> None:
    for training in (True, False):
        graph = gpu(F.scaled_dot_product_attention, *qkv(length=length, grad=training), training=training)
        out, sums, *state = made(graph, only(graph, FLASH))
        assert out == ((2, 4, length, 64), "float16")
        assert sums == ((2, 4, length), "float32")
        assert state == [((2,), "uint64"), ((), "uint64"), ((0,), "float16")]
        assert graph.host == ()
        assert (((2, 4, length), "float32") in saved_of(graph)) is training


@pytest.mark.parametrize(("length", "sums"), [(64, 64), (100, 128), (1, 32)])
def test_efficient_attention_rounds_its_sums_to_32(length: int, sums: int) -> None:
    graph = gpu(F.scaled_dot_product_attention, *qkv(length=length, dtype=FP32, values=32), training=True)
    op = only(graph, EFFICIENT)
    assert made(graph, op)[:2] == [((2, 4, length, 32), "float32"), ((2, 4, sums), "float32")]
    # written in the order (batch, length, heads, size); its generator's state is on the host
    assert graph.tensors[op.outputs[0]].strides == (length * 4 * 32, 32, 4 * 32, 1)
    assert sum(graph.storages[graph.tensors[t].storage].nbytes for t in op.outputs[2:]) == 0
    graph = gpu(F.scaled_dot_product_attention, *qkv(length=length, dtype=FP32, values=32, grad=False))
    assert made(graph, only(graph, EFFICIENT))[1] == ((2, 4, 0), "float32")


def test_cudnn_attention_keeps_sums_only_for_backward() -> None:
    for training in (True, False):
        graph = gpu(F.scaled_dot_product_attention, *qkv(grad=training), capability="9.0", training=training)
        out, sums, *state = made(graph, only(graph, CUDNN))
        assert out == ((2, 4, 64, 64), "float16")
        assert sums == (((2, 4, 64, 1) if training else (0,)), "float32")
        assert state == [((), "int64")] * 2


def test_attention_writes_in_the_layout_of_the_queries() -> None:
    """Queries that are a view of (batch, length, heads, size), as a projection gives them."""
    views = tuple(torch.zeros(2, 64, 4, 64, dtype=FP16).transpose(1, 2) for _ in range(3))
    for capability, name in (("8.0", FLASH), ("9.0", CUDNN)):
        graph = gpu(F.scaled_dot_product_attention, *views, capability=capability)
        assert graph.tensors[only(graph, name).outputs[0]].strides == views[0].stride()


def test_flash_attention_pads_the_heads_size_to_a_multiple_of_8() -> None:
    graph = gpu(F.scaled_dot_product_attention, *qkv(size=20), training=True)
    assert names(graph) == ["constant_pad_nd"] * 3 + [FLASH]
    op = only(graph, FLASH)
    assert made(graph, op)[0] == ((2, 4, 64, 24), "float16")
    assert op.kwargs["scale"] == pytest.approx(20**-0.5)
    assert {((2, 4, 64, 24), "float16")} <= saved_of(graph)
    assert graph.tensors[graph.outputs[0]].shape == (2, 4, 64, 20)


@pytest.mark.parametrize(("keys", "padded"), [(64, None), (60, 64), (100, 104)])
def test_a_boolean_mask_becomes_numbers_whose_rows_are_aligned(keys: int, padded: int | None) -> None:
    q, *_ = qkv(grad=False)
    k = torch.zeros(2, 4, keys, 64, dtype=FP16)
    graph = gpu(F.scaled_dot_product_attention, q, k, k, torch.ones(64, keys, dtype=torch.bool))
    copies = [made(graph, op)[0] for op in graph.ops if op.kind != "view" and op.target.startswith("aten.constant_pad")]
    assert ((64, keys), "float16") in [made(graph, op)[0] for op in graph.ops if op.target.startswith("aten.where")]
    assert copies == ([((64, padded), "float16")] if padded else [])


def test_attention_without_a_kernel_is_spelt_out_in_fp32() -> None:
    """The math path multiplies half precision in fp32, and repeats grouped keys."""
    graph = gpu(
        lambda q, k, v: F.scaled_dot_product_attention(q, k, v, enable_gqa=True),
        *qkv(keys=2, grad=False),
        capability="7.5",
    )
    assert names(graph).count("bmm") == 2
    assert {made(graph, op)[0][1] for op in graph.ops if op.target == "aten.bmm.default"} == {"float32"}
    assert ((2, 4, 64, 64), "float32") in [made(graph, op)[0] for op in graph.ops]


# -- norms, dropout, recurrent layers --------------------------------------------------------------------------------


def normed(norm: nn.Module, x: Tensor, *, training: bool = True) -> Graph:
    return gpu(norm, x, training=training)


NORMS = {
    "fp32": (lambda: nn.BatchNorm2d(8), torch.zeros(2, 8, 4, 4), "cudnn_batch_norm"),
    "volumes": (lambda: nn.BatchNorm3d(8), torch.zeros(2, 8, 4, 4, 4), "cudnn_batch_norm"),
    "sequences": (lambda: nn.BatchNorm1d(8), torch.zeros(2, 8, 4), "cudnn_batch_norm"),
    "rows": (lambda: nn.BatchNorm1d(8), torch.zeros(2, 8), "native_batch_norm"),
    "no weight": (lambda: nn.BatchNorm2d(8, affine=False), torch.zeros(2, 8, 4, 4), "native_batch_norm"),
    "no buffers": (lambda: nn.BatchNorm2d(8, track_running_stats=False), torch.zeros(2, 8, 4, 4), "cudnn_batch_norm"),
    "bfloat16": (lambda: nn.BatchNorm2d(8).bfloat16(), torch.zeros(2, 8, 4, 4, dtype=BF16), "native_batch_norm"),
    "bfloat16, fp32 weight": (lambda: nn.BatchNorm2d(8), torch.zeros(2, 8, 4, 4, dtype=BF16), "native_batch_norm"),
    "float16": (lambda: nn.BatchNorm2d(8).half(), torch.zeros(2, 8, 4, 4, dtype=FP16), "native_batch_norm"),
    "float16, fp32 weight": (lambda: nn.BatchNorm2d(8), torch.zeros(2, 8, 4, 4, dtype=FP16), "cudnn_batch_norm"),
}  # fmt: skip


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("case", NORMS)
def test_batch_norm_takes_cudas_kernel(case: str, training: bool) -> None:
    """cuDNN's keeps statistics in the weight's dtype, and none in evaluation; PyTorch's own in fp32, always."""
    make, x, expected = NORMS[case]
    graph = gpu(make(), x.clone().requires_grad_(training), training=training)
    op = only(graph, expected)
    out, *rest = made(graph, op)
    assert out == (tuple(x.shape), str(x.dtype)[6:])
    features = (
        8 if training or expected.startswith("native") or case == "no buffers" else 0
    )  # the batch's, in evaluation too
    assert rest[:2] == [((features,), "float32")] * 2
    if expected.startswith("cudnn"):
        assert rest[2:] == [((0,), "uint8")]
        if training:
            assert len(only(graph, "cudnn_batch_norm_backward").outputs) == 3


def test_batch_norm_of_what_is_dense_in_no_format_copies_it_for_cudnn() -> None:
    x = torch.zeros(2, 8, 4, 8)[..., ::2]
    assert names(gpu(nn.BatchNorm2d(8), x)) == ["clone", "cudnn_batch_norm"]
    last = torch.zeros(2, 8, 4, 4).contiguous(memory_format=torch.channels_last)
    graph = gpu(nn.BatchNorm2d(8), last)
    assert names(graph) == ["cudnn_batch_norm"]
    assert graph.tensors[graph.outputs[0]].strides == last.stride()


def test_dropout_keeps_a_mask_of_bytes_and_not_its_input() -> None:
    x = torch.zeros(4, 8, requires_grad=True)
    graph = gpu(nn.Dropout(0.3), x, training=True)
    assert names(graph)[:1] == ["native_dropout"]
    assert made(graph, only(graph, "native_dropout")) == [((4, 8), "float32"), ((4, 8), "bool")]
    assert ((4, 8), "bool") in saved_of(graph)
    assert ((4, 8), "float32") not in {
        (graph.tensors[t].shape, graph.tensors[t].dtype) for t in only(graph, "native_dropout").saved
    }


@pytest.mark.parametrize(("rate", "training"), [(0.0, True), (0.5, False)])
def test_dropout_that_drops_nothing_makes_nothing(rate: float, training: bool) -> None:
    x = torch.zeros(4, 8, requires_grad=True)
    assert "native_dropout" not in names(gpu(nn.Dropout(rate), x, training=training))


def test_rms_norm_is_fused() -> None:
    x = torch.zeros(2, 3, 8, requires_grad=True)
    graph = gpu(nn.RMSNorm(8), x, training=True)
    assert names(graph) == ["_fused_rms_norm"]
    assert made(graph, only(graph, "_fused_rms_norm")) == [((2, 3, 8), "float32"), ((2, 3, 1), "float32")]
    assert saved_of(graph) == {((2, 3, 8), "float32"), ((2, 3, 1), "float32")}
    assert made(graph, only(graph, "_fused_rms_norm_backward")) == [((2, 3, 8), "float32"), ((8,), "float32")]
    half = gpu(nn.RMSNorm(8).bfloat16(), x.detach().bfloat16())
    assert made(half, only(half, "_fused_rms_norm")) == [((2, 3, 8), "bfloat16"), ((2, 3, 1), "float32")]


@pytest.mark.parametrize(
    "x", [torch.zeros(2, 3, 8, dtype=BF16), torch.zeros(2, 8, 4, 8).contiguous(memory_format=torch.channels_last)]
)
def test_rms_norm_is_spelt_out_where_dtypes_or_layouts_differ(x: Tensor) -> None:
    found = names(gpu(nn.RMSNorm(8), x))
    assert "_fused_rms_norm" not in found
    assert {"pow", "mean", "rsqrt"} <= set(found)


@pytest.mark.parametrize("dtype", [FP32, FP16, BF16])
def test_statistics_of_layer_norm_are_fp32_and_of_group_norm_the_inputs(dtype: torch.dtype) -> None:
    x = torch.zeros(2, 3, 8, dtype=dtype)
    layer = gpu(nn.LayerNorm(8).to(dtype), x)
    kind = str(dtype)[6:]
    assert made(layer, only(layer, "native_layer_norm")) == [((2, 3, 8), kind), *[((2, 3, 1), "float32")] * 2]
    group = gpu(nn.GroupNorm(2, 8).to(dtype), torch.zeros(2, 8, 4, dtype=dtype))
    assert made(group, only(group, "native_group_norm")) == [((2, 8, 4), kind), *[((2, 2), kind)] * 2]


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU, nn.RNN])
@pytest.mark.parametrize("batch_first", [True, False])
def test_recurrent_layers_are_one_operation(kind: type[nn.Module], batch_first: bool) -> None:
    layer = kind(6, 5, num_layers=2, bidirectional=True, batch_first=batch_first)
    x = torch.zeros((2, 7, 6) if batch_first else (7, 2, 6), requires_grad=True)
    graph = gpu(Call(lambda layer, x: layer(x)[0], layer), x, training=True)
    op = only(graph, "_cudnn_rnn")
    out, hidden, *_ = made(graph, op)
    assert out[0] == ((2, 7, 10) if batch_first else (7, 2, 10))
    assert hidden[0] == (4, 2, 5)
    backward = only(graph, "_cudnn_rnn_backward")
    shapes = [shape for shape, _ in made(graph, backward)]
    assert shapes[0] == tuple(x.shape)
    assert sorted(shapes[-len(layer._flat_weights) :]) == sorted(tuple(w.shape) for w in layer._flat_weights)
    quiet = gpu(Call(lambda layer, x: layer(x)[0], layer), x.detach())
    assert made(quiet, only(quiet, "_cudnn_rnn"))[3] == ((0,), "uint8")  # nothing is reserved for backward


def test_log_sigmoid_keeps_no_buffer() -> None:
    graph = gpu(F.logsigmoid, torch.zeros(4, 8))
    assert made(graph, only(graph, "log_sigmoid_forward")) == [((4, 8), "float32"), ((0,), "float32")]


def test_convolutions_name_their_kernels() -> None:
    def backends(model: nn.Module, x: Tensor) -> list[str]:
        return [op.attrs["backend"] for op in gpu(model, x).ops if op.target == "aten.convolution.default"]

    x = torch.zeros(1, 8, 8, 8)
    last = x.contiguous(memory_format=torch.channels_last)
    depthwise = nn.Conv2d(8, 16, 3, groups=8)
    assert backends(nn.Conv2d(8, 8, 3, groups=2), x) == ["Cudnn"]
    assert backends(depthwise, x) == ["CudaDepthwise2d"]
    assert backends(depthwise, last) == ["Cudnn"]
    assert backends(nn.ConvTranspose2d(8, 4, 2), x) == ["CudnnTranspose"]
    assert backends(nn.Conv3d(8, 8, 3, groups=8), torch.zeros(1, 8, 8, 8, 8)) == ["CudaDepthwise3d"]


# -- autocast --------------------------------------------------------------------------------------------------------


def test_autocast_softmax_reads_half_and_writes_float() -> None:
    """One kernel for fp16; a copy first for bf16."""
    half = gpu(Call(lambda fc, x: fc(x).softmax(-1), nn.Linear(8, 8)), torch.zeros(4, 8), autocast=FP16)
    assert names(half)[-1] == "_softmax"
    assert (half.ops[-1].args[2], made(half, half.ops[-1])) == (True, [((4, 8), "float32")])
    assert "_to_copy" not in names(half)[names(half).index("addmm") :]
    brain = gpu(Call(lambda fc, x: fc(x).softmax(-1), nn.Linear(8, 8)), torch.zeros(4, 8), autocast=BF16)
    assert names(brain)[-3:] == ["addmm", "_to_copy", "_softmax"]
    assert brain.ops[-1].args[2] is False


FP32_CALLS: dict[str, Callable[[Tensor], Tensor]] = {
    "native_layer_norm": lambda x: F.layer_norm(x, (8,)),
    "_fused_rms_norm": lambda x: F.rms_norm(x, (8,)),
    "native_group_norm": lambda x: F.group_norm(x.view(2, 4, 4), 2),
    "exp": torch.exp,
    "log": torch.log,
    "pow": lambda x: x**2,
    "rsqrt": torch.rsqrt,
    "softplus": F.softplus,
    "sum": lambda x: x.sum(0),
    "cumsum": lambda x: x.cumsum(0),
    "mse_loss": lambda x: F.mse_loss(x, torch.zeros_like(x)),
    "upsample_nearest2d": lambda x: F.interpolate(x.view(1, 1, 4, 8), scale_factor=2),
    "linalg_vector_norm": torch.linalg.vector_norm,
}


@pytest.mark.parametrize("name", FP32_CALLS)
def test_autocast_runs_these_in_fp32(name: str) -> None:
    graph = gpu(FP32_CALLS[name], torch.zeros(4, 8, dtype=BF16), autocast=BF16)
    assert made(graph, only(graph, name))[0][1] == "float32"


HALF_CALLS: dict[str, Callable[[Tensor], Tensor]] = {
    "gelu": F.gelu,
    "relu": F.relu,
    "cat": lambda x: torch.cat([x, x]),
    "stack": lambda x: torch.stack([x, x]),
    "mean": lambda x: x.mean(0),
    "add": lambda x: x + 1,
    "avg_pool3d": lambda x: F.avg_pool3d(x.view(1, 1, 1, 4, 8), (1, 2, 2)),
    "reflection_pad1d": lambda x: F.pad(x, (1, 1), "reflect"),
}


@pytest.mark.parametrize("name", HALF_CALLS)
def test_autocast_leaves_these_alone(name: str) -> None:
    """The last of them in fp32 on the CPU, which has a list of its own."""
    graph = gpu(HALF_CALLS[name], torch.zeros(4, 8, dtype=BF16), autocast=BF16)
    assert {kind for op in graph.ops for _, kind in made(graph, op)} == {"bfloat16"}


def test_autocast_of_cross_entropy() -> None:
    """Log softmax stays in half precision; the loss itself takes an fp32 copy. On the CPU all of it is in fp32."""
    model, x = nn.Linear(8, 10), torch.zeros(4, 8)
    on_gpu = gpu(model, x, training=True, autocast=BF16)
    assert names(on_gpu, Phase.LOSS) == ["zeros", "_log_softmax", "_to_copy", "nll_loss_forward"]
    assert [made(on_gpu, op)[0][1] for op in on_gpu.ops if op.phase is Phase.LOSS][1:] == [
        "bfloat16", "float32", "float32",
    ]  # fmt: skip
    on_cpu = capture_module(model, (x,), training=True, autocast=BF16)
    assert names(on_cpu, Phase.LOSS) == ["zeros", "_to_copy", "_log_softmax", "nll_loss_forward"]


class Twice(nn.Module):
    """Uses one layer twice, and keeps nothing of its weight for backward itself."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(16, 16, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.fc(x))


def casts(graph: Graph, shape: tuple[int, ...]) -> list[Op]:
    return [op for op in graph.ops if op.target == "aten._to_copy.default" and made(graph, op) == [(shape, "bfloat16")]]


def test_autocast_casts_a_weight_once_and_keeps_it_to_the_end_of_autocast() -> None:
    x = torch.zeros(4, 16)
    for graph in (gpu(Twice(), x, training=True, autocast=BF16), gpu(Twice(), x, autocast=BF16)):
        assert len(casts(graph, (16, 16))) == 1
        storage = graph.storages[graph.tensors[casts(graph, (16, 16))[0].outputs[0]].storage]
        last = max(op.index for op in graph.ops if op.phase in (Phase.FORWARD, Phase.LOSS))
        assert storage.death > last


def test_autocast_casts_a_frozen_weight_at_every_use() -> None:
    model = Twice()
    model.fc.weight.requires_grad_(False)
    graph = gpu(model, torch.zeros(4, 16), autocast=BF16)
    assert len(casts(graph, (16, 16))) == 2
    deaths = [graph.storages[graph.tensors[op.outputs[0]].storage].death for op in casts(graph, (16, 16))]
    assert deaths[0] < casts(graph, (16, 16))[1].index + 1


class Recorder(TorchDispatchMode):
    """Lists what reaches the dispatcher in a real run."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is not aten.lift_fresh.default:
            self.seen.append(str(func))
        return func(*args, **(kwargs or {}))


def encoder() -> nn.Module:
    return Call(
        lambda embed, layer, norm, head, ids: head(norm(layer(embed(ids))))[:, 0],
        nn.Embedding(30, 16),
        nn.TransformerEncoderLayer(16, 2, 32, dropout=0.0, batch_first=True),
        nn.LayerNorm(16),
        nn.Linear(16, 5),
    )


def convolutions() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(inplace=True), nn.MaxPool2d(2),
        nn.Conv2d(8, 8, 3, groups=8, padding=1), nn.GELU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 5),
    )  # fmt: skip


MODELS: dict[str, tuple[Callable[[], nn.Module], Callable[[], Tensor]]] = {
    "encoder": (encoder, lambda: torch.zeros(3, 6, dtype=torch.int64)),
    "convolutions": (convolutions, lambda: torch.rand(2, 3, 16, 16)),
}


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("autocast", [None, BF16])
def test_on_the_cpu_a_capture_dispatches_what_a_real_run_does(name: str, autocast: torch.dtype | None) -> None:
    make, example = MODELS[name]
    model, x = make().train(), example()
    graph = capture_module(model, (x,), training=True, autocast=autocast)
    with Recorder() as recorder:
        with torch.autocast("cpu", dtype=autocast or BF16, enabled=autocast is not None):
            loss = default_loss(model(x))
        loss.backward()
    aliases = {"aten.detach.default"}
    recorded = [op.target for op in graph.ops if op.target not in aliases]
    assert [target for target in recorder.seen if target not in aliases] == recorded


# -- nothing is left behind ------------------------------------------------------------------------------------------


def on_the_cpu() -> list[list[str]]:
    """Real calls whose routes a capture changes, and what reaches the dispatcher."""
    x = torch.rand(2, 4, 8, 8, requires_grad=True)

    def attention() -> Any:
        return F.scaled_dot_product_attention(x, x, x)

    def losses() -> Any:
        with torch.autocast("cpu", dtype=BF16):
            return F.cross_entropy(torch.cat([x[0, 0], x[0, 1]]).bfloat16(), torch.zeros(16, dtype=torch.int64))

    def softmax() -> Any:
        with torch.autocast("cpu", dtype=BF16):
            return F.layer_norm(x.bfloat16().softmax(-1), (8,))

    def step() -> Any:
        parameter = nn.Parameter(torch.zeros(3))
        parameter.grad = torch.zeros(3)
        torch.optim.Adam([parameter]).step()

    calls: list[Callable[[], Any]] = [
        attention,
        losses,
        softmax,
        step,
        lambda: F.dropout(x, 0.5),
        lambda: nn.BatchNorm2d(4)(x),
        lambda: nn.RMSNorm(8)(x),
        lambda: nn.LSTM(8, 3)(x[0])[0],
        lambda: nn.GRU(8, 3)(x[0])[0],
        lambda: F.logsigmoid(x),
    ]
    found = []
    for call in calls:
        with Recorder() as recorder:
            call()
        found.append(recorder.seen)
    return found


class Fails(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        self.fc(x)
        raise RuntimeError("by design")


@pytest.mark.parametrize("fails", [False, True])
def test_nothing_of_a_capture_stays(fails: bool) -> None:
    from torch.optim import optimizer as module
    from torch.utils import _foreach_utils

    def state() -> tuple[Any, ...]:
        factories = (torch.tensor, torch.zeros, torch.full, torch.arange, torch.empty)
        devices = (module._get_foreach_kernels_supported_devices, _foreach_utils._get_foreach_kernels_supported_devices)
        return (*factories, *devices, devices[0](), nn.Module.__call__, sys.modules.get("torch._dynamo"))

    before, routes = state(), on_the_cpu()
    before = state()  # the calls themselves may import torch._dynamo
    model = Fails() if fails else nn.Linear(4, 4)
    with suppress(CaptureError):
        gpu(
            model, torch.zeros(2, 4), capability="9.0", training=True, autocast=FP16, optimizer=torch.optim.Adam,
            steady=True,
        )  # fmt: skip
    assert all(a is b or a == b for a, b in zip(before, state(), strict=True))
    assert on_the_cpu() == routes
    assert all(p.grad is None and p.requires_grad for p in model.parameters())


def test_dynamo_is_not_imported_by_a_step() -> None:
    """In a process of its own: with a checkpoint, autocast and an optimizer."""
    import subprocess

    script = (
        "import sys, torch, memfit\n"
        "from torch import nn\n"
        "net = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 2))\n"
        "memfit.capture(net, '4x8', training=True, device='cuda', autocast='bf16', checkpoint='0',\n"
        "    optimizer=torch.optim.AdamW, steady=True)\n"
        "assert 'torch._dynamo' not in sys.modules\n"
        "from torch import _dynamo\n"
        "assert _dynamo.disable\n"
    )
    subprocess.run([sys.executable, "-c", script], check=True, timeout=120)


# -- what stays on the host ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kernels", "on_host"), [(None, True), ("foreach", True), ("for-loop", True), ("fused", False)]
)
@pytest.mark.parametrize("steady", [True, False])
def test_adams_step_counters_are_on_the_host_unless_fused(kernels: str | None, on_host: bool, steady: bool) -> None:
    graph = gpu(nn.Linear(8, 4), torch.zeros(2, 8), training=True, optimizer=optimizer("adam", kernels), steady=steady)
    counters = [s.id for s in graph.storages if s.kind is StorageKind.OPTIMIZER and s.nbytes == 4]
    states = [s.id for s in graph.storages if s.kind is StorageKind.OPTIMIZER and s.nbytes > 4]
    assert len(states) == 4
    assert len(counters) == 2
    assert all((s in graph.host) is on_host for s in counters)
    assert not set(states) & set(graph.host)


def test_literals_stay_on_the_host_until_they_meet_the_device() -> None:
    def forward(x: Tensor) -> Tensor:
        table = torch.arange(4.0)
        placed = torch.zeros(4, device=x.device)
        return x * torch.tensor(2.0) + table.to(x.device) + placed

    graph = gpu(forward, torch.zeros(3, 4))
    host = {graph.tensors[t].storage for op in graph.ops for t in op.outputs} & set(graph.host)
    sizes = sorted(graph.storages[s].nbytes for s in host)
    assert sizes == [4]  # the scalar; what meets the device in an operation was moved there
    assert all(s.id not in graph.host for s in graph.storages if s.kind is StorageKind.INPUT)


# -- lists of tensors ------------------------------------------------------------------------------------------------


def lists(dtype: torch.dtype = FP32) -> list[Tensor]:
    """Tensors of different layouts, with values that every operation takes."""
    made = [torch.rand(3, 4) + 0.5, torch.rand(2, 3, 4, 5).contiguous(memory_format=torch.channels_last) + 0.5]
    made += [(torch.rand(4, 3) + 0.5).t(), torch.rand(()) + 0.5, torch.rand(6)[::2] + 0.5]
    return [t.to(dtype) for t in made]


def arguments(overload: Any, x: list[Tensor]) -> list[Any]:
    """Make real arguments for an operation on lists, by its schema."""
    given: list[Any] = []
    for index, argument in enumerate(overload._schema.arguments):
        kind = str(argument.type)
        if argument.kwarg_only or (argument.has_default_value() and index > 1):
            continue
        if kind == "List[Tensor]":
            given.append(x if not given else [t.clone() for t in x])
        elif kind == "Tensor":  # scalars in one tensor on the CPU, or one scalar
            given.append(torch.rand(len(x)) + 0.5 if "addc" in str(overload) else torch.tensor(1.5, dtype=x[0].dtype))
        else:
            given.append([1.5] * len(x) if kind.startswith("List") else False if kind == "bool" else 1.5)
    return given


LISTED = [func for func in FOREACH_RULES if "_fused_" not in str(func)]


@pytest.mark.parametrize("func", LISTED, ids=str)
def test_rules_of_lists_equal_the_real_kernels(func: Any) -> None:
    torch.manual_seed(0)
    for dtype in (FP32, BF16):
        x = lists(dtype)
        given = arguments(func, x)
        expected = FOREACH_RULES[func](*given)
        real = func(*given)
        if real is None:
            assert expected is None
            continue
        assert [(t.shape, t.dtype) for t in expected] == [(t.shape, t.dtype) for t in real]
        dense = [i for i, t in enumerate(x) if t.stride() != (2,)]
        assert [expected[i].stride() for i in dense] == [real[i].stride() for i in dense]


def test_every_operation_of_torchs_optimizers_has_a_rule() -> None:
    for name, choice in CHOICES.items():
        for kernels in choice.kernels or (None,):
            graph = gpu(nn.Linear(8, 4), torch.zeros(2, 8), training=True, optimizer=optimizer(name, kernels))
            for op in graph.ops:
                if "_foreach_" in op.target or "_fused_" in op.target:
                    packet, overload = op.target.removeprefix("aten.").split(".")
                    assert getattr(getattr(aten, packet), overload) in FOREACH_RULES


# -- optimizers ------------------------------------------------------------------------------------------------------


def net() -> nn.Module:
    """Weights of several shapes: 12,288, 64, 640 and 10 elements."""
    return nn.Sequential(nn.Linear(192, 64), nn.ReLU(), nn.Linear(64, 10))


RUNS = [(name, kernels) for name, choice in CHOICES.items() for kernels in (None, *choice.kernels)]


def state_bytes(graph: Graph) -> int:
    """Bytes of the optimizer's state on the device."""
    return sum(s.nbytes for s in graph.storages if s.kind is StorageKind.OPTIMIZER and s.id not in graph.host)


@pytest.mark.parametrize(("name", "kernels"), RUNS)
def test_state_of_every_optimizer(name: str, kernels: str | None) -> None:
    model = net()
    shapes = [p.shape for p in model.parameters()]
    elements = sum(s.numel() for s in shapes)
    counters = 4 * len(shapes) if kernels == "fused" and name.startswith("ada") else 0  # else they are on the host
    factored = sum(sum(s) if len(s) == 2 else s.numel() for s in shapes)
    # adam8bit: 12,288 elements in two states of a byte, and two scales for each 256; the others twice in fp32;
    # two tables of 256.
    expected = {
        "sgd": 0,
        "momentum": 4 * elements,
        "adam": 8 * elements + counters,
        "adamw": 8 * elements + counters,
        "rmsprop": 4 * elements,
        "adagrad": 4 * elements + counters,
        "adafactor": 4 * factored,
        "adam8bit": 2 * 12288 + 2 * 4 * 48 + 2 * 4 * (64 + 640 + 10) + 2 * 4 * 256,
    }[name]
    graph = gpu(model, torch.zeros(2, 192), training=True, optimizer=optimizer(name, kernels), steady=True)
    assert state_bytes(graph) == expected
    assert all(s.birth == BEFORE for s in graph.storages if s.kind is StorageKind.OPTIMIZER)
    assert Phase.STEP in {op.phase for op in graph.ops}
    first = gpu(model, torch.zeros(2, 192), training=True, optimizer=optimizer(name, kernels))
    assert state_bytes(first) == expected
    if name == "adam8bit":
        return
    real = net()
    stepper = optimizer(name, "for-loop")(list(real.parameters()))
    real(torch.zeros(2, 192)).sum().backward()
    stepper.step()
    tensors = [v for state in stepper.state.values() for v in state.values() if isinstance(v, Tensor)]
    assert sum(t.nbytes for t in tensors if t.dim()) == expected - counters


def test_kernels_of_the_step() -> None:
    """By default lists of tensors, as on CUDA; Adafactor runs one parameter after the other."""

    def listed(name: str, kernels: str | None) -> set[str]:
        graph = gpu(net(), torch.zeros(2, 192), training=True, optimizer=optimizer(name, kernels), steady=True)
        found = [name for name in names(graph, Phase.STEP) if name != "lift_fresh"]  # the number that counters grow by
        return {"fused" if "_fused" in n else "foreach" if "_foreach" in n else "single" for n in found}

    assert listed("adam", None) == listed("adam", "foreach") == {"foreach"}
    assert listed("adam", "fused") >= {"fused"}
    assert listed("adam", "for-loop") == {"single"}
    assert listed("adafactor", None) == {"single"}
    assert "foreach" in listed("adafactor", "foreach")


def test_a_foreach_step_of_adam_holds_one_copy_of_the_state() -> None:
    """The square roots of all second moments at once; a fused step has no temporary at all."""
    model = net()
    elements = sum(p.numel() for p in model.parameters())
    graphs = {
        kernels: gpu(model, torch.zeros(2, 192), training=True, optimizer=optimizer("adam", kernels), steady=True)
        for kernels in ("foreach", "fused")
    }
    born = {
        kernels: sum(
            s.nbytes
            for s in graph.storages
            if s.birth >= 0
            and graph.ops[min(s.birth, len(graph.ops) - 1)].phase is Phase.STEP
            and s.id not in graph.host
        )
        for kernels, graph in graphs.items()
    }
    assert born == {"foreach": 4 * elements, "fused": 0}


# -- moving to the GPU -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", MODELS)
def test_placement_is_in_the_order_of_module_apply(name: str) -> None:
    make, example = MODELS[name]
    model = make()
    visited: list[int] = []

    def note(tensor: Tensor) -> Tensor:
        visited.append(tensor.data_ptr())
        return tensor

    identity = {t.data_ptr(): n for n, t in (*model.named_parameters(), *model.named_buffers())}
    model._apply(note)
    graph = gpu(model, example())
    named = {v.storage: v.name for v in reversed(graph.tensors) if v.name}
    order = [named[s] for s in placement_order(graph) if s in named]
    assert order == [*(identity[p] for p in dict.fromkeys(visited)), "input"]


# -- the eager model of whole steps against the profiler -------------------------------------------------------------

verified = pytest.mark.skipif(
    (torch.__version__.partition("+")[0], torch.backends.cpu.get_cpu_capability()) not in VERIFIED,
    reason="the rules were not verified on this PyTorch and instruction set",
)


class Block(nn.Module):
    """Attention and a perceptron."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.qkv, self.out = nn.LayerNorm(32), nn.Linear(32, 96), nn.Linear(32, 32)
        self.mlp = nn.Sequential(nn.Linear(32, 128), nn.GELU(), nn.Linear(128, 32))

    def forward(self, x: Tensor) -> Tensor:
        n, length, _ = x.shape
        q, k, v = self.qkv(self.norm(x)).view(n, length, 3, 4, 8).permute(2, 0, 3, 1, 4)
        attended = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.out(attended.transpose(1, 2).reshape(n, length, 32))
        return x + self.mlp(x)


def again(block: nn.Module, x: Tensor) -> Any:
    """Checkpoint a block; the generator's state, 5056 bytes a block that no operation makes, is not kept."""
    return recomputed(block, x, use_reentrant=False, preserve_rng_state=False)


class Transformer(nn.Module):
    """Two blocks, which a user checkpoints by hand."""

    def __init__(self, checkpoints: tuple[int, ...] = ()) -> None:
        super().__init__()
        self.embed = nn.Embedding(50, 32)
        self.blocks = nn.ModuleList(Block() for _ in range(3))
        self.head = nn.Linear(32, 50)
        self.checkpoints = checkpoints

    def forward(self, ids: Tensor) -> Tensor:
        x = self.embed(ids)
        for index, block in enumerate(self.blocks):
            x = again(block, x) if index in self.checkpoints else block(x)
        return self.head(x)


class ConvNet(nn.Module):
    def __init__(self, checkpoints: tuple[int, ...] = ()) -> None:
        super().__init__()

        def block(inputs: int, outputs: int) -> nn.Module:
            return nn.Sequential(nn.Conv2d(inputs, outputs, 3, padding=1), nn.BatchNorm2d(outputs), nn.ReLU())

        self.blocks = nn.ModuleList([block(3, 16), block(16, 16), block(16, 32)])
        self.head = nn.Linear(32, 10)
        self.checkpoints = checkpoints

    def forward(self, x: Tensor) -> Tensor:
        for index, block in enumerate(self.blocks):
            x = again(block, x) if index in self.checkpoints else block(x)
        return self.head(x.mean((2, 3)))


TRAINED: dict[str, tuple[Callable[..., nn.Module], Callable[[], Tensor]]] = {
    "transformer": (Transformer, lambda: torch.randint(0, 50, (4, 24))),
    "convolutions": (ConvNet, lambda: torch.rand(4, 3, 24, 24)),
}


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def real_peak(step: Callable[[], object], existing: Iterable[Tensor]) -> int:
    """Highest bytes while a step runs, those of tensors that are there before included."""
    measured = measure(step, warm_up=2)
    return measured.peak_bytes + sum(t.nbytes for t in existing)


@verified
@pytest.mark.parametrize("blocks", [(), (1,), (0, 1, 2)])
@pytest.mark.parametrize("name", TRAINED)
def test_peak_with_checkpoints(name: str, blocks: tuple[int, ...]) -> None:
    make, example = TRAINED[name]
    model, x = make(blocks), example()

    def step() -> None:
        outputs = model(x)
        default_loss(outputs).backward()
        for parameter in model.parameters():
            parameter.grad = None

    real = real_peak(step, [x])
    graph = open_model(make()).capture((x,), training=True, checkpoint=[f"blocks.{i}" for i in blocks])
    assert timeline(graph).peak_bytes == real


@verified
@pytest.mark.parametrize("name", TRAINED)
def test_peak_of_a_later_micro_batch(name: str) -> None:
    make, example = TRAINED[name]
    model, x = make(), example()

    def step() -> None:
        outputs = model(x)
        default_loss(outputs).backward()

    real = real_peak(step, [x, *model.parameters()])  # gradients are as large as parameters
    assert all(p.grad is not None for p in model.parameters())
    graph = open_model(model).capture((x,), training=True, accumulating=True)
    assert timeline(graph).peak_bytes == real


@verified
@pytest.mark.parametrize("kernels", ["for-loop", "foreach"])
@pytest.mark.parametrize("optimizer_name", ["adam", "momentum", "adagrad"])
@pytest.mark.parametrize("name", TRAINED)
def test_peak_of_a_later_step(name: str, optimizer_name: str, kernels: str) -> None:
    make, example = TRAINED[name]
    model, x = make(), example()
    choose = optimizer(optimizer_name, kernels)
    stepper = choose(list(model.parameters()))

    def step() -> None:
        outputs = model(x)  # held to the end, as in a loop that prints an accuracy
        default_loss(outputs).backward()
        stepper.step()
        for parameter in model.parameters():
            parameter.grad = None

    step()
    states = [v for state in stepper.state.values() for v in state.values() if isinstance(v, Tensor)]
    real = real_peak(step, [x, *states])
    graph = open_model(model).capture((x,), training=True, optimizer=choose, steady=True)
    assert timeline(graph).peak_bytes == real


@verified
@pytest.mark.parametrize("train_only", ["bias", "norm|blocks.2", r"^head\."])
@pytest.mark.parametrize("name", TRAINED)
def test_peak_with_frozen_parameters(name: str, train_only: str) -> None:
    make, example = TRAINED[name]
    model, x = make(), example()
    graph = open_model(model).capture((x,), training=True, train_only=train_only)
    assert all(p.requires_grad for p in model.parameters())
    for parameter_name, parameter in model.named_parameters():
        parameter.requires_grad_(
            parameter_name.endswith("bias")
            if train_only == "bias"
            else "norm" in parameter_name or "blocks.2" in parameter_name
            if "norm" in train_only
            else parameter_name.startswith("head.")
        )

    def step() -> None:
        outputs = model(x)
        default_loss(outputs).backward()
        for parameter in model.parameters():
            parameter.grad = None

    assert timeline(graph).peak_bytes == real_peak(step, [x])


@verified
@pytest.mark.parametrize("name", TRAINED)
def test_peak_under_autocast(name: str) -> None:
    make, example = TRAINED[name]
    model, x = make(), example()

    def step() -> None:
        with torch.autocast("cpu", dtype=BF16):
            outputs = model(x)
            loss = default_loss(outputs)
        loss.backward()
        for parameter in model.parameters():
            parameter.grad = None

    real = real_peak(step, [x])
    graph = open_model(model).capture((x,), training=True, autocast="bf16")
    assert timeline(graph, probe(graph)).peak_bytes == pytest.approx(real, rel=0.01)


class Residual(nn.Module):
    """Operations that need nothing but their results on any device, and keep nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.rand(64))

    def forward(self, x: Tensor) -> Tensor:
        x = x * self.scale
        for _ in range(3):
            x = x + torch.neg(x)
        return x


@verified
def test_gradients_are_added_in_place_on_a_gpu_too() -> None:
    """Under a tracer autograd adds out of place; a real step on the CPU shows what it needs untraced."""
    model, x = Residual(), torch.rand(256, 64)

    def step() -> None:
        outputs = model(x)
        outputs.sum().backward()
        model.scale.grad = None

    graph = gpu(model, x, training=True, loss=torch.sum)
    adds = [op for op in graph.ops if op.phase is Phase.BACKWARD and op.target == "aten.add.Tensor"]
    assert len(adds) == 3
    assert timeline(graph).peak_bytes == real_peak(step, [x])


def test_train_only_by_kind() -> None:
    """Biases by name, norms by class; a parameter that was frozen before stays so."""
    model = ConvNet()
    model.head.bias.requires_grad_(False)

    def trained(train_only: str) -> set[str]:
        graph = open_model(model).capture("2x3x8x8", training=True, train_only=train_only)
        gradients = {s.id for s in graph.storages if s.kind is StorageKind.GRADIENT}
        assert len(gradients) == sum(v.trainable for v in graph.tensors)
        return {v.name for v in graph.tensors if v.trainable and v.name}

    assert trained("bias") == {f"blocks.{i}.{j}.bias" for i in range(3) for j in range(2)}
    assert trained("norm") == {f"blocks.{i}.1.{kind}" for i in range(3) for kind in ("weight", "bias")}
    assert trained(r"\.0\.weight") == {f"blocks.{i}.0.weight" for i in range(3)}
    with pytest.raises(UsageError, match="no trainable parameter is chosen"):
        trained(r"head\.bias")
    assert [n for n, p in model.named_parameters() if not p.requires_grad] == ["head.bias"]


def test_checkpoints_are_the_outermost_of_those_that_match() -> None:
    from memfit.capture.entry import checkpoint_paths

    model = Transformer()
    assert checkpoint_paths(model, "blocks") == ("blocks.0", "blocks.1", "blocks.2")  # a ModuleList cannot run
    assert checkpoint_paths(model, "mlp") == ("blocks.0.mlp", "blocks.1.mlp", "blocks.2.mlp")
    assert checkpoint_paths(model, r"^blocks\.1$|head") == ("blocks.1", "head")


def test_a_model_without_trainable_parameters_cannot_be_trained() -> None:
    with pytest.raises(CaptureError, match="no trainable parameter") as caught:
        gpu(nn.ReLU(), torch.zeros(2, 4), training=True, optimizer=torch.optim.SGD)
    assert caught.value.where == "ReLU"


def test_making_an_optimizer_allocates_nothing() -> None:
    """Adagrad makes its state at once: 4 TiB here."""
    with torch.device("meta"):
        model = nn.Linear(1 << 20, 1 << 20, bias=False)
    graph = gpu(model, torch.zeros(1, 1 << 20), training=True, optimizer=torch.optim.Adagrad, steady=True)
    assert state_bytes(graph) == 1 << 42
