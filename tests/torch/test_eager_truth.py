"""The eager model against the profiler: single operations event by event, whole networks to the byte."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional

from memfit.capture.allocations import measure, measure_each
from memfit.capture.cpu_probe import probe
from memfit.capture.step import default_loss
from memfit.capture.torch_trace import capture_module, environment
from memfit.capture.tracer import conv_backend
from memfit.graph.model import Graph, Op, Ref, Storage, StorageKind, Symbol, Tensor
from memfit.memory.cpu_workspaces import VERIFIED, events
from memfit.memory.eager import timeline

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))

aten = torch.ops.aten

pytestmark = pytest.mark.skipif(
    (torch.__version__.partition("+")[0], torch.backends.cpu.get_cpu_capability()) not in VERIFIED,
    reason="the rules were not verified on this PyTorch and instruction set",
)


@pytest.fixture(params=[1, 2], ids=["one thread", "two threads"])
def threads(request: pytest.FixtureRequest) -> Iterator[int]:
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


def graph_of(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], result: Any) -> Graph:
    """A graph of one operation from real tensors and its real result."""
    tensors: list[Tensor] = []
    storages: list[Storage] = []
    known: dict[int, int] = {}
    birth = -1

    def add(tensor: torch.Tensor) -> int:
        storage = tensor.untyped_storage()
        if storage._cdata not in known:
            known[storage._cdata] = len(storages)
            storages.append(Storage(len(storages), storage.nbytes(), StorageKind.ACTIVATION, birth, 1, 1))
        tid = len(tensors)
        dtype = str(tensor.dtype)[6:]
        tensors.append(
            Tensor(tid, known[storage._cdata], tuple(tensor.shape), tensor.stride(), dtype, tensor.storage_offset())
        )
        return tid

    def encode(value: Any) -> Any:
        if isinstance(value, torch.Tensor):
            return Ref(add(value))
        if isinstance(value, list | tuple):
            return tuple(encode(v) for v in value)
        return Symbol(str(value)) if isinstance(value, torch.dtype) else value

    recorded, recorded_kwargs = encode(args), {k: encode(v) for k, v in kwargs.items()}
    inputs = tuple(range(len(tensors)))
    birth = 0
    outputs = tuple(add(t) for t in ((result,) if isinstance(result, torch.Tensor) else result) if t is not None)
    attrs = {}
    if func is aten.convolution.default:
        attrs["backend"] = conv_backend(args)
    op = Op(0, "op", str(func), inputs, outputs, attrs, 0, args=recorded, kwargs=recorded_kwargs)
    return Graph(tuple(storages), tuple(tensors), (op,), (), (), (), environment=environment())


def r(*shape: int, last: bool = False) -> torch.Tensor:
    tensor = torch.rand(shape)
    return tensor.contiguous(memory_format=torch.channels_last) if last else tensor


def conv(  # noqa: PLR0917  (a convolution has that many numbers)
    n: int, i: int, o: int, size: int, k: int, s: int = 1, p: int = 0, *, g: int = 1, bias: bool = False,
    last: bool = False, transposed: bool = False,
) -> tuple[Any, ...]:  # fmt: skip
    weight = (i, o // g, k, k) if transposed else (o, i // g, k, k)
    b = r(o) if bias else None
    x, w = r(n, i, size, size, last=last), r(*weight, last=last)
    return aten.convolution.default, x, w, b, [s, s], [p, p], [1, 1], transposed, [0, 0], g


def back(  # noqa: PLR0917
    n: int, i: int, o: int, size: int, k: int, s: int = 1, p: int = 0, *, g: int = 1, bias: bool = False,
    last: bool = False,
) -> tuple[Any, ...]:  # fmt: skip
    func, x, w, _, *settings = conv(n, i, o, size, k, s, p, g=g, last=last)
    y = func(x, w, None, *settings)
    gradient = torch.rand_like(y)
    return aten.convolution_backward.default, gradient, x, w, [o if bias else 0], *settings, [True, True, bias]


def attention(length: int, heads: int, width: int) -> tuple[Any, ...]:
    return tuple(r(1, length, heads, width).transpose(1, 2) for _ in range(3))


OPERATIONS: dict[str, Callable[[], tuple[Any, ...]]] = {
    "stem": lambda: conv(1, 3, 24, 64, 3, 2, 1),
    "3x3": lambda: conv(2, 24, 40, 28, 3, 1, 1, bias=True),
    "1x1": lambda: conv(2, 58, 116, 14, 1),
    "1x1 strided": lambda: conv(2, 64, 128, 28, 1, 2),
    "1x1 one image": lambda: conv(1, 64, 128, 28, 1),
    "depthwise": lambda: conv(2, 40, 40, 28, 5, 2, 2, g=40),
    "depthwise bias": lambda: conv(2, 24, 24, 28, 3, 1, 1, g=24, bias=True),
    "depth multiplier": lambda: conv(2, 32, 64, 28, 3, 1, 1, g=32),
    "grouped": lambda: conv(2, 64, 64, 14, 3, 1, 1, g=8),
    "grouped unblocked": lambda: conv(2, 30, 30, 14, 3, 1, 1, g=5),
    "patches": lambda: conv(1, 3, 192, 64, 16, 16, bias=True),
    "3x3 last": lambda: conv(2, 64, 64, 14, 3, 1, 1, last=True),
    "depthwise last": lambda: conv(2, 64, 64, 14, 3, 1, 1, g=64, last=True),
    "transposed": lambda: conv(2, 64, 32, 16, 2, 2, bias=True, transposed=True),
    "transposed uneven": lambda: conv(2, 64, 32, 16, 3, 2, 1, bias=True, transposed=True),
    "stem backward": lambda: back(2, 3, 32, 64, 3, 2, 1),
    "3x3 backward": lambda: back(2, 64, 64, 28, 3, 1, 1),
    "3x3 strided backward": lambda: back(2, 64, 128, 28, 3, 2, 1),
    "3x3 uneven backward": lambda: back(2, 64, 96, 17, 3, 2),
    "1x1 backward": lambda: back(2, 64, 128, 28, 1, bias=True),
    "1x1 strided backward": lambda: back(2, 256, 512, 28, 1, 2),
    "depthwise backward": lambda: back(2, 32, 32, 28, 3, 1, 1, g=32),
    "depthwise 7x7 backward": lambda: back(2, 96, 96, 14, 7, 1, 3, g=96, bias=True, last=True),
    "depthwise 5x5 backward": lambda: back(2, 96, 96, 14, 5, 1, 2, g=96),
    "grouped backward": lambda: back(2, 128, 128, 14, 3, 1, 1, g=32),
    "grouped 1x1 backward": lambda: back(2, 48, 48, 7, 1, g=3),
    "3x3 last backward": lambda: back(2, 64, 64, 14, 3, 1, 1, last=True),
    "one image backward": lambda: back(1, 64, 64, 7, 1),
    "batch norm": lambda: (aten.native_batch_norm.default, r(2, 8, 9, 9), r(8), r(8), r(8), r(8), True, 0.1, 1e-5),
    "batch norm evaluation": lambda: (
        aten.native_batch_norm.default, r(2, 8, 9, 9), r(8), r(8), r(8), r(8), False, 0.1, 1e-5,
    ),
    "batch norm last": lambda: (
        aten.native_batch_norm.default, r(2, 8, 9, 9, last=True), r(8), r(8), r(8), r(8), True, 0.1, 1e-5,
    ),
    "batch norm 2-D": lambda: (aten.native_batch_norm.default, r(6, 8), r(8), r(8), r(8), r(8), True, 0.1, 1e-5),
    "layer norm": lambda: (aten.native_layer_norm.default, r(2, 8, 5).transpose(1, 2), [8], r(8), r(8), 1e-5),
    "layer norm backward": lambda: (
        aten.native_layer_norm_backward.default, r(2, 5, 8), r(2, 5, 8), [8], r(2, 5, 1), r(2, 5, 1), r(8), r(8),
        [True, True, True],
    ),
    "group norm last": lambda: (
        aten.native_group_norm.default, r(2, 8, 9, 9, last=True), r(8), r(8), 2, 8, 81, 2, 1e-5,
    ),
    "flash attention": lambda: (aten._scaled_dot_product_flash_attention_for_cpu.default, *attention(200, 2, 32)),
    "add scalar": lambda: (aten.add.Tensor, r(100), 1.5),
    "compare": lambda: (aten.gt.Scalar, r(100), 0),
    "mean": lambda: (aten.mean.dim, r(4, 5, 6), [1], False),
    "whole sum": lambda: (aten.sum.default, r(300, 200)),
    "sum of masks": lambda: (aten.sum.default, r(300, 200) > 0.5),
    "softmax": lambda: (aten._softmax.default, r(4, 5, 6).transpose(1, 2), -1, False),
    "mm strided": lambda: (aten.mm.default, r(60, 80)[::2, ::2], r(40, 20)),
    "mm transposed": lambda: (aten.mm.default, r(40, 30).t(), r(40, 20)),
    "bmm strided": lambda: (aten.bmm.default, r(3, 60, 80)[:, ::2, ::2], r(3, 40, 20)),
    "roll": lambda: (aten.roll.default, r(2, 8, 8, 4), [-1, -1], [1, 2]),
    "repeat": lambda: (aten.repeat.default, r(3, 4), [2, 1, 1]),
    "bilinear": lambda: (aten.upsample_bilinear2d.default, r(2, 8, 8, 8), [16, 16], False),
    "bilinear large": lambda: (aten.upsample_bilinear2d.default, r(1, 8, 40, 40), [80, 80], False),
    "nearest": lambda: (aten.upsample_nearest2d.default, r(2, 8, 8, 8), [16, 16]),
    "bicubic": lambda: (aten.upsample_bicubic2d.default, r(2, 8, 8, 8), [16, 16], False),
    "average pool of a slice": lambda: (aten.avg_pool2d.default, r(2, 8, 8, 8)[:, :4], [3, 3], [1, 1], [1, 1]),
    "max pool": lambda: (aten.max_pool2d_with_indices.default, r(2, 8, 8, 8), [2, 2], [2, 2]),
    "cat": lambda: (aten.cat.default, [r(2, 8), r(3, 8)]),
    "gelu": lambda: (aten.gelu.default, r(10, 10)),
}  # fmt: skip


@pytest.mark.parametrize("name", OPERATIONS)
def test_operation_event_by_event(name: str, threads: int) -> None:
    func, *args = OPERATIONS[name]()
    with torch.no_grad():
        result = func(*args)
        (measured,) = measure_each([lambda: func(*args)])
    graph = graph_of(func, tuple(args), {}, result)
    assert events(graph, graph.ops[0]) == measured


def test_an_operation_that_fails_is_none() -> None:
    def fail() -> None:
        raise RuntimeError("no")

    assert measure_each([fail, None]) == [None, None]


def check(model: nn.Module, x: torch.Tensor, optimizer: Callable[[Any], torch.optim.Optimizer] | None = None) -> None:
    """Predicted equals real, in inference or in a training step."""
    training = optimizer is not None
    model.train(training)
    graph = capture_module(model, (x,), training=training, optimizer=optimizer)

    def step() -> None:
        if optimizer is None:
            with torch.no_grad():
                model(x)
            return
        stepper = optimizer([p for p in model.parameters() if p.requires_grad])
        outputs = model(x)
        loss = default_loss(outputs)
        loss.backward()
        del loss
        stepper.step()
        for parameter in model.parameters():
            parameter.grad = None

    predicted = timeline(graph)
    real = measure(step)
    assert predicted.unknown == ()
    assert predicted.notes == ()
    assert predicted.peak_bytes == real.peak_bytes + x.nbytes


NETWORKS = {
    "torchvision:mobilenet_v2": (2, 3, 96, 96),
    "torchvision:resnet18": (2, 3, 64, 64),
    "torchvision:squeezenet1_1": (2, 3, 96, 96),
    "torchvision:shufflenet_v2_x0_5": (2, 3, 64, 64),
    "torchvision:efficientnet_b0": (2, 3, 64, 64),
    "torchvision:mobilenet_v3_small": (2, 3, 64, 64),
    "gpt": None,
    "unet": None,
    "conv1d": None,
}


@pytest.mark.parametrize("name", NETWORKS)
def test_network_to_the_byte(name: str) -> None:
    import eager_truth

    before = torch.get_num_threads()
    torch.manual_seed(0)
    model, make_input = eager_truth.network(name)
    shape = NETWORKS[name]
    x = torch.randn(shape) if shape else make_input(2)
    try:
        for count in (1, 2):
            torch.set_num_threads(count)
            check(model, x)
            check(model, x, lambda p: torch.optim.SGD(p, lr=1e-9))
    finally:
        torch.set_num_threads(before)


def test_adam_step_to_the_byte(threads: int) -> None:
    model = nn.Sequential(nn.Conv2d(3, 32, 3), nn.BatchNorm2d(32), nn.ReLU(), nn.Flatten(), nn.Linear(32 * 196, 10))
    check(model, torch.randn(2, 3, 16, 16), lambda p: torch.optim.Adam(p, lr=1e-9))


class Mixer(nn.Module):
    """What PyTorch does in place unless it is traced: linear's bias, sums of gradients; and numbers that it saves."""

    def __init__(self) -> None:
        super().__init__()
        self.across, self.along = nn.Linear(40, 40), nn.Linear(24, 24)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x + self.across(x.transpose(-1, -2)).transpose(-1, -2)
        return (x + self.along(x * 0.5)).flatten(1)


@pytest.mark.parametrize("batch", [1, 3])
def test_what_happens_in_place_unless_traced(batch: int, threads: int) -> None:
    check(Mixer(), torch.randn(batch, 40, 24))
    check(Mixer(), torch.randn(batch, 40, 24), lambda p: torch.optim.SGD(p, lr=1e-9))


def test_probe_gives_what_the_rules_give() -> None:
    model = nn.Sequential(nn.Conv2d(3, 32, 3, stride=2), nn.BatchNorm2d(32), nn.ReLU(), nn.Conv2d(32, 48, 3))
    graph = capture_module(model, (torch.randn(2, 3, 32, 32),), training=True)
    assert probe(graph) == {}
    measured = probe(graph, everything=True)
    assert measured
    assert timeline(graph, measured).per_op_peak_bytes == timeline(graph).per_op_peak_bytes


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.LSTM(64, 96, 2, batch_first=True)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layer(x)[0]


class Half(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.linear = nn.Conv2d(3, 32, 3, stride=2), nn.Linear(32, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.linear(functional.relu(self.conv(x)).mean((2, 3)))


@pytest.mark.parametrize(
    ("model", "x"),
    [
        pytest.param(Recurrent(), torch.randn(2, 8, 64), id="LSTM"),
        pytest.param(Half().bfloat16(), torch.randn(1, 3, 64, 64).bfloat16(), id="bfloat16"),
    ],
)
def test_probe_measures_what_has_no_rule(model: nn.Module, x: torch.Tensor) -> None:
    model.eval()
    graph = capture_module(model, (x,))
    assert timeline(graph).unknown
    found = timeline(graph, probe(graph))
    assert found.unknown == ()

    def run() -> None:
        with torch.no_grad():
            model(x)

    assert found.peak_bytes == measure(run).peak_bytes + x.nbytes
