"""Properties that hold for any module: random small networks, not chosen ones."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from memfit.capture.replay import replay
from memfit.capture.torch_trace import capture_module
from memfit.graph.io import from_json, to_json
from memfit.graph.model import Graph
from memfit.memory.profile import profile_graph

CHANNELS = 4
ADDITIVE = ("activations", "weights", "params", "macs")


class Residual(nn.Module):
    def __init__(self, inner: nn.Module, *, in_place: bool) -> None:
        super().__init__()
        self.inner = inner
        self.in_place = in_place

    def forward(self, x: Tensor) -> Tensor:
        y = self.inner(x)
        if y.shape != x.shape:
            return y
        if self.in_place:
            y += x
            return y
        return x + y


class Concat(nn.Module):
    def __init__(self, left: nn.Module, right: nn.Module) -> None:
        super().__init__()
        self.left, self.right = left, right
        self.mix = nn.Conv2d(2 * CHANNELS, CHANNELS, 1)

    def forward(self, x: Tensor) -> Tensor:
        a, b = self.left(x), self.right(x)
        if a.shape != b.shape:
            return a
        return self.mix(torch.cat([a, b], 1))


class Gate(nn.Module):
    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner
        self.fc = nn.Linear(CHANNELS, CHANNELS)

    def forward(self, x: Tensor) -> Tensor:
        y = self.inner(x)
        scale = self.fc(y.mean((2, 3))).sigmoid()
        return y * scale[:, :, None, None]


class Rows(nn.Module):
    """Views: the image as a sequence and back, written to through a slice."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(CHANNELS)

    def forward(self, x: Tensor) -> Tensor:
        n, c, h, w = x.shape
        rows = self.norm(x.flatten(2).transpose(1, 2)).clone()
        rows[:, 0] = 1
        return rows.transpose(1, 2).reshape(n, c, h, w)


def leaf() -> st.SearchStrategy[nn.Module]:
    def conv(kernel: int, grouped: bool, bias: bool) -> nn.Module:
        groups = CHANNELS if grouped else 1
        return nn.Conv2d(CHANNELS, CHANNELS, kernel, padding=kernel // 2, groups=groups, bias=bias)

    return st.one_of(
        st.builds(conv, st.sampled_from([1, 3, 5]), st.booleans(), st.booleans()),
        st.builds(lambda: nn.BatchNorm2d(CHANNELS)),
        st.builds(lambda: nn.GroupNorm(2, CHANNELS)),
        st.builds(nn.ReLU, st.booleans()),
        st.builds(nn.ReLU6, st.booleans()),
        st.builds(nn.SiLU),
        st.builds(nn.GELU),
        st.builds(Rows),
        st.builds(lambda: nn.AvgPool2d(3, 1, 1)),
        st.builds(lambda: nn.MaxPool2d(3, 1, 1)),
        st.builds(nn.Dropout, st.just(0.0)),
        st.builds(nn.Identity),
    )


def modules() -> st.SearchStrategy[nn.Module]:
    def nested(inner: st.SearchStrategy[nn.Module]) -> st.SearchStrategy[nn.Module]:
        sequence = st.lists(inner, min_size=2, max_size=4).map(lambda members: nn.Sequential(*members))
        # A convolution first: what follows may write in place, and the input is not the module's to change.
        safe = inner.map(lambda m: nn.Sequential(nn.Conv2d(CHANNELS, CHANNELS, 1), m))
        return st.one_of(
            sequence,
            st.builds(Residual, safe, in_place=st.booleans()),
            st.builds(Concat, safe, safe),
            st.builds(Gate, safe),
        )

    return st.recursive(leaf(), nested, max_leaves=8).map(lambda m: nn.Sequential(nn.Conv2d(CHANNELS, CHANNELS, 3), m))


def graph_of(module: nn.Module, x: Tensor, **options: Any) -> Graph:
    return capture_module(module, (x,), **options)


few = settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])


@few
@given(modules(), st.integers(1, 3))
def test_replay_equals_the_model_and_json_gives_the_graph_back(module: nn.Module, batch: int) -> None:
    module.eval()
    x = torch.randn(batch, CHANNELS, 9, 7)
    graph = from_json(json.loads(json.dumps(to_json(graph_of(module, x)))))
    assert graph == graph_of(module, x)
    with torch.no_grad():
        want = module(x.clone())
    assert torch.equal(replay(graph, module, [x.clone()])[0], want)


@few
@given(modules(), st.booleans())
def test_eager_live_bytes_are_never_below_ideal(module: nn.Module, training: bool) -> None:
    graph = graph_of(module, torch.randn(2, CHANNELS, 8, 8), training=training)
    assert all(eager >= ideal for eager, ideal in zip(graph.live_bytes, graph.ideal_live_bytes, strict=True))


@few
@given(modules(), st.sampled_from(["layer", "block", "op"]), st.booleans())
def test_parts_add_up_to_the_total(module: nn.Module, per: str, fold: bool) -> None:
    profile = profile_graph(graph_of(module, torch.randn(1, CHANNELS, 8, 8)), per=per, memory="ideal", fold=fold)
    for column in ADDITIVE:
        if any(row.get(column) is not None for row in profile.rows):
            assert sum(row[column] or 0 for row in profile.rows) == profile.totals[column], column
    assert profile.totals["params"] == sum(p.numel() for p in module.parameters())
    assert max(row["peak_bytes"] or 0 for row in profile.rows) == profile.totals["peak_bytes"]


@few
@given(modules())
def test_saved_parts_add_up_to_what_autograd_keeps(module: nn.Module) -> None:
    graph = graph_of(module, torch.randn(2, CHANNELS, 8, 8), training=True)
    for memory in ("autograd", "tinytl"):
        profile = profile_graph(graph, per="layer", memory=memory)
        assert sum(row["saved_bytes"] or 0 for row in profile.rows) == profile.totals["saved_bytes"]


@pytest.mark.parametrize("memory", ["ideal", "mcunet"])
def test_a_fold_changes_rows_but_no_total(memory: str) -> None:
    module = nn.Sequential(nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 4, 1))
    graph = graph_of(module, torch.randn(1, 4, 8, 8))
    folded, flat = (profile_graph(graph, per="layer", memory=memory, fold=fold) for fold in (True, False))
    assert len(folded.rows) < len(flat.rows)
    for column in ("params", "macs", "peak_bytes"):
        assert folded.totals[column] == flat.totals[column]
