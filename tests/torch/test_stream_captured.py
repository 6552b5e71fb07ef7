"""Which rows and columns captured operations take, held against PyTorch: rows of the input are changed one by one."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import memfit
from memfit.stream import StreamNetwork, network_of, plan_stream
from memfit.stream.padding import fold_padding
from memfit.stream.reach import Reach, Span

HEIGHT, WIDTH = 11, 14

CASES: dict[str, nn.Module | Callable[[Tensor], Tensor]] = {
    "convolution": nn.Conv2d(2, 3, (3, 5), (2, 1), (1, 2)),
    "dilated": nn.Conv2d(2, 2, 3, 1, dilation=2, groups=2),
    "transposed": nn.ConvTranspose2d(2, 3, 4, 2, 1, output_padding=1),
    "pooling": nn.MaxPool2d(3, 2, 1),
    "rounded up": nn.AvgPool2d(3, 2, ceil_mode=True),
    "adaptive": nn.AdaptiveAvgPool2d((4, 5)),
    "zeros around": nn.ZeroPad2d((1, 2, 3, 0)),
    "zeros beside": lambda x: F.pad(x, (2, 1)),
    "cropped": lambda x: F.pad(x, (-1, 0, 1, -2)),
    "zeros before a convolution": nn.Sequential(nn.ZeroPad2d((0, 1, 2, 1)), nn.Conv2d(2, 3, 3, 2)),
    "zeros on both": nn.Sequential(nn.ZeroPad2d(1), nn.Conv2d(2, 2, 5, 3, 1, groups=2)),
    "lowest before pooling": lambda x: F.max_pool2d(F.pad(x, (1, 0, 1, 0), value=-torch.inf), 3, 2),
    "nearest": lambda x: F.interpolate(x, size=(17, 20), mode="nearest"),
    "mean": lambda x: x.mean((2, 3), keepdim=True),
    "pooled whole": lambda x: F.avg_pool2d(x, (HEIGHT, WIDTH)),
    "adaptive to one": nn.AdaptiveAvgPool2d(1),
}


class Wrapped(nn.Module):
    """A function as a module."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)


def module_of(name: str) -> nn.Module:
    case = CASES[name]
    return case if isinstance(case, nn.Module) else Wrapped(case)


def network(module: nn.Module) -> StreamNetwork:
    return network_of(memfit.capture(module, f"1x2x{HEIGHT}x{WIDTH}"))


def readers(module: nn.Module, *, columns: bool) -> list[Span]:
    """Give, for each row (or column) of the output, the first and one past the last row of the input that it feels."""
    x = torch.rand(1, 2, HEIGHT, WIDTH, generator=torch.Generator().manual_seed(0))
    found: list[set[int]] = []
    with torch.no_grad():
        before = module(x)
        for place in range(WIDTH if columns else HEIGHT):
            raised = x.clone()
            raised.narrow(3 if columns else 2, place, 1).add_(100)
            felt = (module(raised) != before).any(1)[0].any(0 if columns else 1)
            found = found or [set() for _ in felt]
            for out in felt.nonzero().ravel().tolist():
                found[out].add(place)
    return [(min(places, default=0), max(places, default=-1) + 1) for places in found]


def taken(reach: Reach) -> list[Span]:
    return [span if span[0] < span[1] else (0, 0) for span in reach.spans]


@pytest.mark.parametrize("name", CASES)
def test_what_is_taken_is_what_pytorch_reads(name: str) -> None:
    module = module_of(name)
    (op,) = fold_padding(network(module)).ops
    assert op.reason is None
    assert taken(op.rows[0]) == readers(module, columns=False)
    assert taken(op.columns[0]) == readers(module, columns=True)
    assert op.sums == (name in ("mean", "pooled whole", "adaptive to one"))


def test_bilinear_takes_all_that_pytorch_reads() -> None:
    """And one row more at places, as long as it is not known how the converter will round."""
    for corners in (False, True):
        module = Wrapped(lambda x, c=corners: F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=c))
        (op,) = network(module).ops
        for reach, columns in ((op.rows[0], False), (op.columns[0], True)):
            for ours, theirs in zip(taken(reach), readers(module, columns=columns), strict=True):
                assert ours[0] <= theirs[0] < theirs[1] <= ours[1] <= ours[0] + 3


@pytest.mark.parametrize("pad", [nn.ReflectionPad2d(1), nn.ReplicationPad2d(1)])
def test_padding_with_what_the_image_holds_runs_plainly(pad: nn.Module) -> None:
    found = network(nn.Sequential(pad, nn.Conv2d(2, 3, 3)))
    assert [op.reason for op in found.ops] == [
        "it pads with what its image holds, or memfit does not know with what",
        None,
    ]
    assert fold_padding(found) is found


def test_padding_that_a_window_cannot_see_stays() -> None:
    for module in (
        nn.Sequential(nn.ConstantPad2d(1, 0.5), nn.Conv2d(2, 3, 3)),
        nn.Sequential(nn.ZeroPad2d(1), nn.MaxPool2d(3)),
        nn.Sequential(nn.ZeroPad2d(-1), nn.Conv2d(2, 3, 3)),
    ):
        found = network(module)
        assert fold_padding(found) is found


class Attention(nn.Module):
    """Heads of a width of their own, behind a layer whose activation is an operator of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.wide = nn.Sequential(nn.Conv2d(2, 24, 1), nn.SiLU())

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.wide(x).flatten(2).reshape(1, 3, 2, 4, -1).transpose(3, 4).unbind(1)
        return F.scaled_dot_product_attention(q, k, v)


def test_work_is_what_the_profile_counts() -> None:
    graph = memfit.capture(Attention(), f"1x2x{HEIGHT}x{WIDTH}")
    places = HEIGHT * WIDTH
    assert network_of(graph).macs == 2 * 24 * places + 2 * (2 * 4 * places**2)
    assert network_of(graph).macs == memfit.profile(graph).totals["macs"]


def test_zeros_before_a_convolution_take_no_memory() -> None:
    """As the same convolution with padding of its own."""
    apart = nn.Sequential(nn.Conv2d(2, 8, 1), nn.ZeroPad2d(1), nn.Conv2d(8, 4, 3, 2))
    own = nn.Sequential(nn.Conv2d(2, 8, 1), nn.Conv2d(8, 4, 3, 2, 1))
    for share in (0, 0.3):
        found, wanted = (plan_stream(network(module), max_extra_macs=share) for module in (apart, own))
        assert (found.peak_bytes, found.extra_macs) == (wanted.peak_bytes, wanted.extra_macs)
    rows = memfit.stream(apart, f"1x2x{HEIGHT}x{WIDTH}").rows
    alone = memfit.profile(apart, f"1x2x{HEIGHT}x{WIDTH}", memory="mcunet", per="op").rows
    assert max(row["before_bytes"] for row in rows) == max(row["peak_bytes"] or 0 for row in alone)


VIEWS: dict[str, tuple[Callable[[Tensor], Tensor], int, bool]] = {
    "rows dealt out to channels": (lambda x: x.view(1, 16, HEIGHT, 6), 16, False),
    "rows and columns change places": (lambda x: x.transpose(2, 3), 8, False),
    "a copy of that": (lambda x: x.transpose(2, 3).contiguous(), 8, False),
    "rows cut off": (lambda x: x[:, :, 2:], 8, False),
    "columns cut off": (lambda x: x[..., :-2], 8, False),
    "channels last": (lambda x: x.permute(0, 2, 3, 1).reshape(1, 8, HEIGHT, 12), 8, False),
    "some channels": (lambda x: x[:, 2:6], 4, True),
    "half of the channels": (lambda x: x.chunk(2, 1)[1], 4, True),
    "channels shuffled": (lambda x: x.view(1, 2, 4, HEIGHT, 12).transpose(1, 2).reshape(1, 8, HEIGHT, 12), 8, True),
    "as it is": (lambda x: x.view(1, 8, HEIGHT, 12), 8, True),
}


class Viewed(nn.Module):
    """A convolution that reads another one's output through a view."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self.view, channels, _ = VIEWS[name]
        self.first, self.second = nn.Conv2d(2, 8, 3, padding=(1, 0)), nn.Conv2d(channels, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.view(self.first(x)))


@pytest.mark.parametrize(
    ("name", "layout"),
    [(name, torch.contiguous_format) for name in VIEWS]
    + [(name, torch.channels_last) for name in VIEWS if name != "rows dealt out to channels"],  # no view of such memory
)
def test_views_that_move_rows_or_columns_are_read_whole(name: str, layout: torch.memory_format) -> None:
    module = Viewed(name)
    first, second = network(module.to(memory_format=layout)).ops
    assert first.reason is None
    reason = None if VIEWS[name][2] else "its input's rows or columns stand elsewhere in what made it"
    assert second.reason == reason


class Parts(nn.Module):
    """The first part of a layer's output is used before a view of the second is made."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Conv2d(2, 8, 1)

    def forward(self, x: Tensor) -> Tensor:
        first, second = self.layer(x).chunk(2, 1)
        doubled = first * 2
        return doubled + second.transpose(2, 3).transpose(2, 3)


def test_operators_read_what_was_made_before() -> None:
    graph = memfit.capture(Parts(), f"1x2x{HEIGHT}x{WIDTH}")
    main = network_of(graph).model.main
    assert [operator.name for operator in main.operators] == ["CONV_2D", "MUL", "ADD"]
    known = {tensor.index for tensor in main.tensors if tensor.is_constant} | {*main.inputs}
    for operator in main.operators:
        assert known.issuperset(operator.inputs)
        known.update(operator.outputs)


def test_more_than_before_is_explained() -> None:
    found = memfit.stream(nn.Sequential(nn.Conv2d(2, 8, 3), nn.GroupNorm(2, 8)), f"1x2x{HEIGHT}x{WIDTH}")
    assert found.totals["peak_bytes"] > found.totals["baseline_peak_bytes"]
    assert any("becomes several operators" in note for note in found.notes)
