"""The tracer against real runs: what it records must be what PyTorch does."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from memfit.capture.phantom import dense, is_phantom
from memfit.capture.replay import replay
from memfit.capture.torch_trace import capture_module
from memfit.errors import CaptureError, DataDependentError, UnsupportedOp
from memfit.graph.io import from_json, to_json
from memfit.graph.model import Phase, StorageKind


class InPlace(nn.Module):
    """In-place operations, views written through, and a base read after its view was changed."""

    def forward(self, x: Tensor) -> Tensor:
        y = x * 2
        view = y[:, 1:]
        view.add_(1)
        y[:, 0] = 0
        y = F.relu(y, inplace=True)
        z = y.transpose(0, 1).contiguous()
        z.t_().mul_(3)
        return z + y.sum(1, keepdim=True)


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(50, 16)
        self.head = nn.Linear(16, 50, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, ids: Tensor) -> Tensor:
        return self.head(torch.tanh(self.embed(ids)))


@dataclasses.dataclass
class Answer:
    scores: Tensor
    extra: dict[str, Tensor]


class Outputs(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(8, 4)
        self.scale = torch.arange(4.0)  # a tensor that is neither parameter nor buffer

    def forward(self, x: Tensor) -> Answer:
        mask = torch.tril(torch.ones(4, 4))
        if mask.sum() > 9:  # true of the values, which are made from constants
            x = x + torch.tensor(0.5)
        y = self.fc(x) * self.scale
        return Answer(y @ mask, {"pair": y[:, :2], "whole": y})


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(8, 8, 2, batch_first=True, bidirectional=True)
        self.gru = nn.GRU(16, 8, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.gru(self.lstm(x)[0])[0]


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.TransformerEncoderLayer(16, 4, 32, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        y = self.layer(x)
        q = y[:, None]
        return F.scaled_dot_product_attention(q, q, q, is_causal=True)[:, 0]


class ConvNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(3, 8, 3, 2, 1, bias=False), nn.BatchNorm2d(8), nn.ReLU6(inplace=True),
            nn.Conv2d(8, 8, 3, 1, 1, groups=8), nn.BatchNorm2d(8), nn.SiLU(), nn.MaxPool2d(2),
        )  # fmt: skip
        self.up = nn.ConvTranspose2d(8, 4, 2, 2)
        self.head = nn.Linear(4, 5)

    def forward(self, x: Tensor) -> Tensor:
        y = self.features(x)
        y = y + F.gelu(y)
        y = torch.cat([self.up(y), F.interpolate(y, scale_factor=2)[:, :4]], 1)[:, ::2]
        return self.head(y.mean((2, 3)))


CASES: dict[str, tuple[type[nn.Module], tuple[Tensor, ...]]] = {
    "in_place": (InPlace, (torch.randn(4, 4),)),
    "tied": (Tied, (torch.randint(0, 50, (2, 7)),)),
    "outputs": (Outputs, (torch.randn(3, 8),)),
    "recurrent": (Recurrent, (torch.randn(2, 5, 8),)),
    "attention": (Attention, (torch.randn(2, 6, 16),)),
    "convolution": (ConvNet, (torch.randn(2, 3, 16, 16),)),
}


def flat(value: Any) -> list[Tensor]:
    if isinstance(value, Tensor):
        return [value]
    if dataclasses.is_dataclass(value):
        value = [getattr(value, f.name) for f in dataclasses.fields(value)]
    members = value.values() if isinstance(value, dict) else value
    return [t for member in members for t in flat(member)]


@pytest.mark.parametrize("name", CASES)
def test_replay_equals_the_model_bit_for_bit(name: str) -> None:
    make, inputs = CASES[name]
    model = make().eval()
    graph = from_json(json.loads(json.dumps(to_json(capture_module(model, inputs)))))
    with torch.no_grad():
        want = flat(model(*inputs))
    got = replay(graph, model, list(inputs))
    assert len(got) == len(want)
    assert all(torch.equal(a, b) for a, b in zip(got, want, strict=True))


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("name", CASES)
def test_json_gives_the_same_graph_back(name: str, training: bool) -> None:
    make, inputs = CASES[name]
    loss = (lambda out: out.scores.mean()) if name == "outputs" else None
    if name == "in_place":
        pytest.skip("has no parameters to train") if training else None
    graph = capture_module(make(), inputs, training=training, loss=loss)
    assert from_json(json.loads(json.dumps(to_json(graph)))) == graph


@pytest.mark.parametrize("name", [n for n in CASES if n != "in_place"])
def test_saved_tensors_are_those_that_autograd_really_keeps(name: str) -> None:
    make, inputs = CASES[name]
    model = make().train()
    attributes = [t for m in model.modules() for t in vars(m).values() if isinstance(t, Tensor)]
    state = {t.untyped_storage()._cdata for t in (*model.parameters(), *model.buffers(), *attributes)}
    kept: dict[int, Tensor] = {}

    def pack(tensor: Tensor) -> Tensor:
        kept[tensor.untyped_storage()._cdata] = tensor
        return tensor

    loss = (lambda out: out.scores.mean()) if name == "outputs" else lambda out: out.mean()
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        value = loss(model(*inputs))
    real = sum(t.untyped_storage().nbytes() for cdata, t in kept.items() if cdata not in state)
    del value
    graph = capture_module(make(), inputs, training=True, loss=loss)
    storages = {graph.tensors[t].storage for op in graph.ops for t in op.saved}
    hidden = (StorageKind.PARAMETER, StorageKind.BUFFER)
    assert sum(graph.storages[s].nbytes for s in storages if graph.storages[s].kind not in hidden) == real


def test_the_model_is_left_as_it_was() -> None:
    model = ConvNet()
    model.features.eval()
    before = {k: (v, v.clone()) for k, v in model.state_dict(keep_vars=True).items()}
    modes = [m.training for m in model.modules()]
    gradient = torch.ones_like(model.head.weight)
    model.head.weight.grad = gradient
    capture_module(model, (torch.randn(2, 3, 16, 16),), training=True, optimizer=torch.optim.Adam)
    assert [m.training for m in model.modules()] == modes
    for key, value in model.state_dict(keep_vars=True).items():
        assert value is before[key][0]
        assert torch.equal(value, before[key][1])
    assert model.head.weight.grad is gradient
    assert model.features[0].weight.grad is None


def test_caches_that_forward_fills_are_emptied_again() -> None:
    class Caches(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(4, 4)
            self.by_size: dict[int, Tensor] = {}
            self.seen: list[Tensor] = []
            self.last: Tensor | None = None

        def forward(self, x: Tensor) -> Tensor:
            if len(x) not in self.by_size:
                self.by_size[len(x)] = self.fc.weight.sum(0)
            self.seen.append(x)
            self.last = self.fc(x) + self.by_size[len(x)]
            return self.last

    model = Caches()
    x = torch.randn(2, 4)
    capture_module(model, (x,))
    assert (model.by_size, model.seen, model.last) == ({}, [], None)
    assert torch.equal(model(x), model.fc(x) + model.fc.weight.sum(0))


def test_weights_are_never_allocated() -> None:
    with torch.device("meta"):
        model = nn.Sequential(nn.Linear(1 << 17, 1 << 17), nn.ReLU(), nn.Linear(1 << 17, 10))
    graph = capture_module(model, (dense((1, 1 << 17), torch.float32),), training=True)
    assert sum(t.nbytes for t in graph.parameters()) > 64 << 30
    assert all(p.device.type == "meta" for p in model.parameters())


def test_phases_and_kinds_of_a_training_step() -> None:
    graph = capture_module(ConvNet(), (torch.randn(2, 3, 16, 16),), training=True, optimizer=torch.optim.Adam)
    phases = [op.phase for op in graph.ops]
    assert phases == sorted(phases, key=[Phase.FORWARD, Phase.LOSS, Phase.BACKWARD, Phase.STEP].index)
    trained = sum(t.nbytes for t in graph.parameters())
    by_kind = {kind: sum(s.nbytes for s in graph.storages if s.kind is kind) for kind in StorageKind}
    assert by_kind[StorageKind.GRADIENT] == trained
    steps = 4 * sum(1 for _ in graph.parameters())
    assert by_kind[StorageKind.OPTIMIZER] == 2 * trained + steps


def test_backward_operations_belong_to_the_module_that_ran_forward() -> None:
    graph = capture_module(ConvNet(), (torch.randn(2, 3, 16, 16),), training=True)
    where = {graph.scopes[op.scope].path for op in graph.ops if op.kind == "convolution_backward"}
    assert where == {"features.0", "features.3", "up"}


def test_eager_lifetimes_follow_python_references() -> None:
    class Holds(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            kept = x + 1  # op 0: held to the end of forward, although it is used last by op 1
            y = kept * 2  # op 1
            y = y * 3  # op 2: the tensor of op 1 dies once y is bound anew
            return y - 1  # op 3

    graph = capture_module(Holds(), (torch.randn(8),))
    made = [s for s in graph.storages if s.kind is StorageKind.ACTIVATION]
    assert [(s.birth, s.death, s.ideal_death) for s in made] == [(0, 4, 2), (1, 3, 3), (2, 4, 4), (3, 4, 4)]
    assert graph.live_bytes == (64, 96, 128, 128)
    assert graph.ideal_live_bytes == (64, 64, 64, 64)


def test_a_buffer_that_forward_replaces_is_not_taken_for_what_comes_after() -> None:
    class Replaces(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("index", torch.zeros(1, 3))

        def forward(self, x: Tensor) -> Tensor:
            self.index = torch.zeros(4, 4)
            for _ in range(8):
                x = x + self.index
            return x

    model = Replaces()
    before = model.index
    graph = capture_module(model, (torch.randn(4, 4),))
    assert all(t.storage != graph.tensors[0].storage for t in graph.tensors[1:])
    assert model.index is before


def test_random_numbers_are_neither_drawn_nor_known() -> None:
    class Draws(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            noise = torch.empty(4).uniform_() + torch.rand(4) + F.dropout(torch.ones(4), 0.5)
            return x * noise

    state = torch.get_rng_state()
    first, second = (capture_module(Draws(), (torch.zeros(4),)) for _ in range(2))
    assert first == second
    assert torch.equal(torch.get_rng_state(), state)

    class Decides(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x if torch.empty(1).uniform_() > 0.5 else -x

    with pytest.raises(DataDependentError):
        capture_module(Decides(), (torch.zeros(4),))


def test_control_flow_on_values_names_the_line() -> None:
    class Branches(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            if x.sum() > 0:
                return x
            return -x

    with pytest.raises(DataDependentError) as caught:
        capture_module(Branches(), (torch.randn(3),))
    assert "if x.sum() > 0:" in str(caught.value) + str(caught.value.received)
    assert "test_capture.py" in str(caught.value)


@pytest.mark.parametrize("read", ["x.tolist()", "x.numpy()"])
def test_reading_values_that_do_not_exist_names_the_line(read: str) -> None:
    class Reads(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            x = x * 2
            return torch.zeros(3) if (x.tolist() if read == "x.tolist()" else x.numpy())[0] else x

    with pytest.raises(DataDependentError) as caught:
        capture_module(Reads(), (torch.randn(3),))
    assert read in str(caught.value.where)
    assert "test_capture.py" in str(caught.value.where)


def test_a_refused_input_names_the_layer_and_what_it_got() -> None:
    with pytest.raises(CaptureError) as caught:
        capture_module(ConvNet(), (torch.randn(1, 4, 16, 16),))
    assert "features.0 (Conv2d)" in str(caught.value.where)
    assert "1x4x16x16" in str(caught.value.received)
    assert caught.value.todo


@pytest.mark.parametrize(
    ("inputs", "words", "where"),
    [
        (torch.randn(1, 4, 16, 16), "takes 3 channels and got 4", "features.0 (Conv2d)"),
        (torch.zeros(1, 3, 16, 16, dtype=torch.int64), "one dtype, and got torch.int64", "features.0 (Conv2d)"),
        (torch.randn(1, 3, 1, 1), "", "features.6 (MaxPool2d)"),
    ],
)
def test_what_pytorch_refuses_is_refused(inputs: Tensor, words: str, where: str) -> None:
    with pytest.raises(RuntimeError):
        ConvNet().eval()(inputs)
    with pytest.raises(CaptureError) as caught:
        capture_module(ConvNet().eval(), (inputs,))
    assert words in caught.value.what
    assert caught.value.where == where


def test_an_unknown_operation_is_an_error_that_names_it() -> None:
    library = torch.library.Library("memfit_test", "FRAGMENT")
    library.define("mystery(Tensor x) -> Tensor")
    library.impl("mystery", lambda x: x.clone(), "Meta")
    library.impl("mystery", lambda x: x.clone(), "CPU")

    class Uses(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.ops.memfit_test.mystery(x)

    model = nn.Sequential(Uses())
    with pytest.raises(UnsupportedOp, match=r"memfit_test\.mystery") as caught:
        capture_module(model, (torch.randn(3),))
    assert caught.value.where == "0"
    assert "OP_TABLE" in str(caught.value.todo)
    graph = capture_module(model, (torch.randn(3),), strict=False)
    assert graph.ops[0].kind == "unknown"
    assert any("mystery" in note for note in graph.notes)


def test_a_model_without_anything_to_train_says_so() -> None:
    with pytest.raises(CaptureError, match=r"nothing to train|no backward|gradient"):
        capture_module(InPlace(), (torch.randn(4, 4),), training=True)


def test_phantoms_have_no_bytes_of_their_own() -> None:
    tensors = [dense((1 << 20, 1 << 10), torch.float32) for _ in range(64)]  # 256 GiB, were they real
    assert all(is_phantom(t) for t in tensors)
    assert not is_phantom(torch.empty(3))
    assert tensors[0].device.type == "cpu"
