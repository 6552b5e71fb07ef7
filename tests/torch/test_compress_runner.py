"""Running a captured graph on real tensors: bit for bit the model's own result, and the same from any layer on."""

from __future__ import annotations

import random
import weakref
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from memfit.capture.recording import tensors_in
from memfit.capture.sources import load
from memfit.capture.torch_trace import capture_module
from memfit.compress.quicker import Convolution
from memfit.compress.runner import Runner
from memfit.errors import CaptureError, UsageError
from memfit.graph.model import StorageKind


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


class UNet(nn.Module):
    """Skips over a whole network, with in-place activations."""

    def __init__(self) -> None:
        super().__init__()

        def double(before: int, after: int) -> nn.Sequential:
            return nn.Sequential(
                nn.Conv2d(before, after, 3, padding=1), nn.BatchNorm2d(after), nn.ReLU(inplace=True),
                nn.Conv2d(after, after, 3, padding=1), nn.BatchNorm2d(after), nn.ReLU(inplace=True),
            )  # fmt: skip

        self.down, self.bottom, self.up = double(3, 4), double(4, 8), double(12, 4)
        self.last = nn.Conv2d(4, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        skip = self.down(x)
        low = self.bottom(functional.max_pool2d(skip, 2))
        return self.last(self.up(torch.cat([functional.interpolate(low, scale_factor=2.0), skip], 1)))


class Recurrent(nn.Module):
    """A recurrent layer, whose last states leave too."""

    def __init__(self, kind: Any) -> None:
        super().__init__()
        self.cells = kind(6, 5, 2, batch_first=True)
        self.head = nn.Linear(5, 3)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        y, state = self.cells(x)
        return self.head(y), state[0] if isinstance(state, tuple) else state


class Tricky(nn.Module):
    """What makes keeping values hard: writes to the input, to views, to parts, to what was read; shared layers."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.shared = nn.Conv2d(4, 4, 3, padding=1), nn.Conv2d(4, 4, 1)
        self.linear = nn.Linear(4, 3)
        self.shift = nn.Parameter(torch.randn(4, 1, 1))
        self.register_buffer("scale", torch.randn(4, 1, 1))

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        x += 1
        a = self.conv(x)
        b = a.relu()
        a.mul_(2)
        c = self.shared(b)
        c += a
        d = self.shared(c)
        parts = torch.zeros(x.shape[0], 8, *x.shape[2:])
        parts[:, :4] = d
        parts[:, 4:] = b.clone()
        first, second = parts.chunk(2, 1)
        first.add_(self.shift)
        g = functional.relu_(first * self.scale)
        x.sub_(self.scale)
        h = torch.sigmoid_(second + x)
        one, two = torch.cat([g, h], 1).split(4, 1)
        one.clamp_(min=0)
        scores = self.linear(one.flatten(2).transpose(1, 2))
        flat = scores.view(-1, 3)
        flat[:, 0].fill_(0.5)
        return {"scores": scores, "means": b.mean((2, 3)), "two": two, "flat": flat}


class Several(nn.Module):
    """Outputs that depend on different layers, integers among them."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 8)

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        y = self.a(x)
        best, places = torch.max(self.c(y), 1)
        ordered = torch.sort(self.b(x), 1)
        return best, places, ordered.values, y.unsqueeze_(0)


class Standardized(nn.Module):
    """Weights that are computed from parameters in the forward pass, which no input decides."""

    def __init__(self) -> None:
        super().__init__()
        self.weights = nn.ParameterList([nn.Parameter(torch.randn(3, 3, 3, 3)) for _ in range(3)])

    def forward(self, x: Tensor) -> Tensor:
        for weight in self.weights:
            x = functional.conv2d(x, (weight - weight.mean()) / weight.std(), padding=1).relu()
        return x


class Drawn(nn.Module):
    """A few operations drawn with a seed: views, parts, in-place writes, shared layers, constants, skips."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        self.seed = seed
        self.convs = nn.ModuleList([nn.Conv2d(4, 4, 1) for _ in range(4)])
        self.norms = nn.ModuleList([nn.BatchNorm2d(4) for _ in range(2)])
        self.shift = nn.Parameter(torch.randn(4, 1, 1))
        self.register_buffer("scale", torch.randn(4, 1, 1))

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        draw = random.Random(self.seed)
        values = [x]
        grown = torch.zeros(1, 4, 3, 3)

        def parts(a: Tensor, b: Tensor) -> Tensor:
            filled = torch.empty_like(a)
            filled[:, :2], filled[:, 2:] = a[:, :2], b[:, 2:] * 2
            return filled

        def shifted(a: Tensor, _b: Tensor) -> Tensor:
            a[:, 1:3].add_(self.shift[1:3])
            return a

        def halves(a: Tensor, _b: Tensor) -> Tensor:
            first, second = a.split(2, 1)
            first.tanh_()
            return second.repeat(1, 2, 1, 1)

        def growing(a: Tensor, _b: Tensor) -> Tensor:
            grown.add_(self.shift)
            return a * grown

        kinds = [
            *[lambda a, _b: draw.choice([*self.convs])(a)] * 4,
            lambda a, _b: draw.choice([*self.norms])(a),
            lambda a, _b: a.relu(),
            lambda a, _b: a.relu_(),
            lambda a, b: a + b,
            lambda a, b: a.add_(b.clone()),
            lambda a, _b: a.mul_(self.scale),
            lambda a, b: torch.cat([a[:, :2], b[:, 2:]], 1),
            lambda a, _b: a.transpose(2, 3),
            lambda a, _b: a.permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2),
            parts, shifted, halves, growing,
        ]  # fmt: skip
        for _ in range(draw.randint(3, 14)):
            values.append(draw.choice(kinds)(draw.choice(values[-4:]), draw.choice(values)))
        return (values[-1], draw.choice(values)) if draw.random() < 0.4 else (values[-1],)


def rounded(tensor: Tensor) -> Tensor:
    """Stand in for a quantizer."""
    return (tensor * 8).round() / 8 if tensor.is_floating_point() else tensor


def same(one: list[Tensor], other: list[Tensor]) -> bool:
    assert len(one) == len(other)
    return all(
        torch.equal(a, b) or (a.is_floating_point() and torch.equal(a.nan_to_num(), b.nan_to_num()))
        for a, b in zip(one, other, strict=True)
    )


def check(model: nn.Module, x: Tensor, layers: int = 5) -> Runner:
    """Compare what is resumed from each of some layers with a whole run, in each of the ways that layers change."""
    model.eval()
    graph = capture_module(model, (x,))
    runner = Runner(graph, model)
    before = x.clone()
    with torch.no_grad():
        own = list(tensors_in((model(x.clone()),)))
    assert same(runner.run([x]), own)

    def weights(layer: int) -> dict[int, dict[str, Tensor]]:
        return {layer: {name: rounded(tensor) for name, tensor in runner.parameters(layer).items()}}

    places = [n for n, layer in enumerate(runner.layers) if layer.result >= 0]
    chosen = sorted(random.Random(0).sample(places, min(layers, len(places))))
    seen = []
    for cut in runner.prefix([x], chosen):
        number = cut.layer
        seen.append(number)

        def one(layer: int, output: Tensor, number: int = number) -> Tensor | None:
            return rounded(output) if layer == number else None

        assert same(runner.resume(cut, rounded(cut.output)), runner.run([x], on_output=one))
        changed = runner.resume(cut, on_output=one, weights=weights(number))
        assert same(changed, runner.run([x], on_output=one, weights=weights(number)))
        assert same(runner.resume(cut), own)
    assert sorted(seen) == chosen

    everywhere = {key: value for place in places for key, value in weights(place).items()}
    for cut in runner.prefix([x], chosen, on_output=lambda _, t: rounded(t), weights=everywhere):
        number = cut.layer

        def others(layer: int, output: Tensor, number: int = number) -> Tensor | None:
            return None if layer == number else rounded(output)

        rest = {layer: tensors for layer, tensors in everywhere.items() if layer != number}
        found = runner.resume(cut, on_output=others, weights=rest)
        assert same(found, runner.run([x], on_output=others, weights=rest))
    assert same(runner.run([x]), own)
    assert torch.equal(x, before)
    return runner


@pytest.mark.parametrize(
    ("source", "shape"),
    [
        ("torchvision:mobilenet_v2", (2, 3, 32, 32)),
        ("torchvision:resnet18", (1, 3, 32, 32)),
        ("torchvision:efficientnet_b0", (1, 3, 32, 32)),
        ("torchvision:shufflenet_v2_x0_5", (1, 3, 32, 32)),
        ("torchvision:googlenet", (1, 3, 32, 32)),
        ("torchvision:squeezenet1_1", (1, 3, 32, 32)),
        ("timm:convnext_atto", (1, 3, 32, 32)),
        ("timm:test_vit", (1, 3, 160, 160)),
    ],
)
def test_library_models(source: str, shape: tuple[int, ...]) -> None:
    model = load(source, real=True).model
    assert model is not None
    check(model, torch.randn(shape, generator=torch.Generator().manual_seed(1)), layers=3)


@pytest.mark.parametrize(
    ("make", "shape"),
    [
        (UNet, (2, 3, 16, 16)),
        (lambda: Recurrent(nn.LSTM), (2, 4, 6)),
        (lambda: Recurrent(nn.GRU), (2, 4, 6)),
        (Tricky, (2, 4, 6, 6)),
        (Several, (3, 8)),
        (Standardized, (1, 3, 8, 8)),
        (lambda: nn.TransformerEncoderLayer(8, 2, 16), (5, 2, 8)),
        (lambda: nn.Conv2d(3, 4, 3).to(memory_format=torch.channels_last), (1, 3, 8, 8)),
    ],
)
def test_hard_models(make: Any, shape: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    check(make(), torch.randn(shape), layers=99)


@pytest.mark.parametrize("start", [0, 10, 20])
def test_drawn_models(start: int) -> None:
    for seed in range(start, start + 10):
        torch.manual_seed(seed)
        check(Drawn(seed), torch.randn(2, 4, 3, 3), layers=99)


def channels_last(images: Tensor) -> Tensor:
    return images.contiguous(memory_format=torch.channels_last)


class Norms(nn.Module):
    """Norms and activations that may overwrite what they read, and some that may not."""

    def __init__(self) -> None:
        super().__init__()
        self.convs = nn.ModuleList([nn.Conv2d(5, 5, 3, padding=1, bias=False) for _ in range(6)])
        self.norms = nn.ModuleList([nn.BatchNorm2d(5, affine=number % 2 == 0) for number in range(4)])
        for norm in self.norms:
            assert isinstance(norm, nn.BatchNorm2d)
            norm.running_mean, norm.running_var = torch.randn(5), torch.rand(5) + 0.1
            if norm.affine:
                nn.init.normal_(norm.weight), nn.init.normal_(norm.bias)

    def forward(self, x: Tensor) -> Tensor:
        x = functional.silu(self.norms[0](self.convs[0](x)))
        x = functional.hardswish(self.norms[1](self.convs[1](x)))
        x = x + functional.gelu(self.convs[2](x))
        bare = self.convs[3](x)
        x = functional.relu(self.norms[2](bare)) + bare  # read twice: it must stay
        x = self.norms[3](self.convs[4](x))
        return functional.leaky_relu(self.convs[5](x)) + x.tanh()


@pytest.mark.parametrize("laid", [channels_last, torch.Tensor.contiguous])
@pytest.mark.parametrize("make", [Norms, UNet, lambda: Drawn(3)])
def test_what_is_overwritten_changes_no_bit(make: Any, laid: Any) -> None:
    torch.manual_seed(0)
    model = make()
    channels = 5 if isinstance(model, Norms) else 4 if isinstance(model, Drawn) else 3
    check(model, laid(torch.randn(2, channels, 8, 8)), layers=99)


def test_only_values_that_no_one_else_sees_are_overwritten() -> None:
    torch.manual_seed(0)
    model, x = Norms().eval(), channels_last(torch.randn(2, 5, 8, 8))
    runner = Runner(capture_module(model, (x,)), model)
    over = [
        op.target
        for op, step in zip(runner.graph.ops, runner._steps, strict=True)
        if step.overwritten >= 0 and step.quick
    ]
    # Not the third norm, whose input is read again, and not tanh, which reads a layer's output.
    norm, activation = "aten.native_batch_norm.default", "aten.{}.default"
    assert over == [
        norm, activation.format("silu"), norm, activation.format("hardswish"), activation.format("gelu"),
        activation.format("relu"), norm, activation.format("leaky_relu"),
    ]  # fmt: skip
    outputs: list[tuple[Tensor, Tensor]] = []
    runner.run([x], on_output=lambda _, output: outputs.append((output, output.clone())))
    assert all(torch.equal(seen, kept) for seen, kept in outputs)  # what the hook saw is as it was


def test_a_norm_whose_numbers_change_is_asked_again() -> None:
    torch.manual_seed(0)
    model, x = Norms().eval(), channels_last(torch.randn(2, 5, 8, 8))
    runner = Runner(capture_module(model, (x,)), model)
    first = runner.run([x])[0]
    with torch.no_grad():
        norm = model.norms[0]
        assert isinstance(norm, nn.BatchNorm2d)
        for tensor in (norm.weight, norm.bias, norm.running_mean, norm.running_var):
            assert tensor is not None
            tensor.mul_(1.25)
            found, own = runner.run([x])[0], model(x)
            assert torch.equal(found, own)
            assert not torch.equal(found, first)
            first = found
        replaced = {1: {"norms.0.weight": norm.weight * 2}}
        changed = runner.run([x], weights=replaced)[0]
        assert torch.equal(runner.run([x])[0], own)
        norm.weight.mul_(2)
        assert torch.equal(changed, model(x))
        norm.weight.fill_(torch.inf)
        assert same(runner.run([x]), [model(x)])


def test_weights_are_packed_once_and_again_when_they_change() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 16, 3), nn.Conv2d(16, 16, 3, groups=16, bias=False), nn.Conv2d(16, 8, 1)).eval()
    x = channels_last(torch.randn(4, 3, 12, 12))
    runner = Runner(capture_module(model, (x,)), model)
    with torch.no_grad():
        assert torch.equal(runner.run([x])[0], model(x))
        packed = [step.quick for step in runner._steps]
        assert all(isinstance(quick, Convolution) for quick in packed)
        same = {quick._same for quick in packed if isinstance(quick, Convolution)}
        assert False not in same  # None where PyTorch has another kernel
        assert (True in same) == torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
        before = [quick._packed for quick in packed if isinstance(quick, Convolution)]
        assert torch.equal(runner.run([x])[0], model(x))
        after = [quick._packed for quick in packed if isinstance(quick, Convolution)]
        assert all(a is b for a, b in zip(before, after, strict=True))
        changed = runner.run([x], weights={2: {"1.weight": model[1].weight * 2}})[0]
        model[1].weight.mul_(2)
        assert torch.equal(runner.run([x])[0], model(x))
        assert torch.equal(runner.run([x])[0], changed)


def test_images_that_lie_both_ways_come_out_as_captured() -> None:
    model = nn.Sequential(nn.Conv2d(1, 12, 3), nn.Conv2d(12, 12, 3), nn.Flatten(), nn.Linear(48, 2)).eval()
    check(model, torch.randn(8, 1, 6, 6))  # one channel: contiguous, and channels last as well


def test_what_nothing_reads_does_not_run() -> None:
    model, x = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)).eval(), torch.randn(1, 3, 6, 6)
    runner = Runner(capture_module(model, (x,)), model)
    ran: list[str] = []
    for step, op in zip(runner._steps, runner.graph.ops, strict=True):
        step.function = lambda *args, inner=step.function, name=op.target, **kwargs: (
            ran.append(name), inner(*args, **kwargs),
        )[1]  # fmt: skip
        step.quick = None
    runner.run([x])
    assert ran == ["aten.convolution.default", "aten.native_batch_norm.default"]
    assert "aten.empty.memory_format" in [op.target for op in runner.graph.ops]  # the norm's reserve


def test_only_what_depends_on_the_change_runs_again() -> None:
    class Branches(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.left, self.right, self.join = nn.Conv2d(3, 3, 1), nn.Conv2d(3, 3, 3, padding=1), nn.Conv2d(6, 3, 1)

        def forward(self, x: Tensor) -> Tensor:
            return self.join(torch.cat([self.left(x), self.right(x).relu()], 1))

    model = Branches().eval()
    x = torch.randn(1, 3, 6, 6)
    runner = Runner(capture_module(model, (x,)), model)
    names = [layer.name for layer in runner.layers]
    cut = next(runner.prefix([x], [names.index("left")]))
    ran: list[str] = []
    for step, op in zip(runner._steps, runner.graph.ops, strict=True):

        def spy(*args: Any, inner: Any = step.function, kind: str = op.kind, **kwargs: Any) -> Any:
            ran.append(kind)
            return inner(*args, **kwargs)

        step.function, step.quick = spy, None
    runner.resume(cut, cut.output)
    assert ran == ["concat", "conv2d"]
    ran.clear()
    runner.resume(cut)
    assert ran == ["conv2d", "concat", "conv2d"]


def test_what_is_kept_is_least_and_shrinks() -> None:
    model = nn.Sequential(*(nn.Conv2d(4, 4, 1, bias=False) for _ in range(6))).eval()
    x = torch.randn(1, 4, 8, 8)
    runner = Runner(capture_module(model, (x,)), model)
    sizes = [cut.nbytes for cut in runner.prefix([x])]
    assert sizes == [x.nbytes, *[2 * x.nbytes] * 6]  # a layer's input and output, nothing else


def test_what_is_kept_is_never_written_to() -> None:
    torch.manual_seed(0)
    model, x = Tricky().eval(), torch.randn(1, 4, 6, 6)
    runner = Runner(capture_module(model, (x,)), model)
    cuts = list(runner.prefix([x]))  # held past the moment at which each is due
    for cut in cuts:
        assert same(runner.resume(cut), runner.run([x]))
        output = cut.output.clone()
        runner.resume(cut, cut.output + 1 if output.is_floating_point() else None)
        assert torch.equal(cut.output, output)


def test_values_are_dropped_as_soon_as_nothing_reads_them() -> None:
    model = nn.Sequential(*(nn.Conv2d(2, 2, 1) for _ in range(5))).eval()
    x = torch.randn(1, 2, 4, 4)
    runner = Runner(capture_module(model, (x,)), model)
    alive: list[weakref.ref[Tensor]] = []

    def look(_: int, output: Tensor) -> None:
        alive.append(weakref.ref(output))
        assert sum(ref() is not None for ref in alive[1:]) <= 2  # the one that is read and the one that is made

    runner.run([x], on_output=look)
    assert len(alive) == 6


def test_parameters_are_those_that_a_layer_computes_with() -> None:
    model = nn.Sequential(nn.Linear(4, 4, bias=False), nn.ReLU(), nn.Linear(4, 4, bias=False)).eval()
    model[2].weight = model[0].weight
    runner = Runner(capture_module(model, (torch.ones(2, 3, 4),)), model)
    used = {layer.name: list(runner.parameters(n)) for n, layer in enumerate(runner.layers)}
    assert used == {"input": [], "0": ["0.weight"], "2": ["0.weight"]}  # tied: in both, under its first name
    kinds = {runner.graph.storages[t.storage].kind for t in runner.graph.parameters()}
    assert kinds == {StorageKind.PARAMETER}


def test_a_tied_weight_can_change_in_one_place_only() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4)).eval()
    model[1].weight = model[0].weight
    x = torch.randn(2, 4)
    runner = Runner(capture_module(model, (x,)), model)
    changed = runner.run([x], weights={2: {"0.weight": torch.zeros(4, 4)}})
    assert torch.equal(changed[0], model[1].bias.detach().expand(2, 4))


def test_inputs_of_any_layout() -> None:
    model = nn.Conv2d(3, 4, 3).eval()
    whole = torch.randn(3, 3, 8, 8)
    runner = Runner(capture_module(model, (whole[1:2],)), model)
    expected = model(whole[1:2].contiguous())
    for given in (whole[1:2], whole[1:2].to(memory_format=torch.channels_last)):
        assert torch.equal(runner.run([given])[0], expected)


def test_what_does_not_fit_is_refused() -> None:
    model, x = nn.Linear(4, 2).eval(), torch.ones(1, 4)
    graph = capture_module(model, (x,))
    runner = Runner(graph, model)
    with pytest.raises(CaptureError, match="one tensor per input") as error:
        runner.run([])
    assert error.value.received == "0 for 1 inputs"
    with pytest.raises(CaptureError, match="an input does not fit the graph") as error:
        runner.run([torch.ones(2, 4)])
    assert (error.value.where, error.value.received) == ("input", "2x4 float32")
    with pytest.raises(CaptureError, match="the output put in the place of"):
        runner.run([x], on_output=lambda _, t: t[:, :1])
    with pytest.raises(CaptureError, match="a parameter does not fit the graph"):
        runner.run([x], weights={1: {"weight": torch.ones(3, 4)}})
    with pytest.raises(CaptureError, match="there is no such parameter"):
        runner.run([x], weights={1: {"wait": torch.ones(2, 4)}})
    with pytest.raises(CaptureError, match="the state lacks a tensor"):
        Runner(graph, {"weight": model.weight})
    with pytest.raises(UsageError, match="training step"):
        Runner(capture_module(nn.Linear(4, 2), (x,), training=True), model)
