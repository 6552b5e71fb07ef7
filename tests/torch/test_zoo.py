"""A fixed dozen of networks of every family, captured and compared with a real run of the same network."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode

from memfit.capture.entry import capture
from memfit.capture.phantom import is_phantom
from memfit.capture.sources import load
from memfit.capture.sources.loaded import Example, LoadedSource
from memfit.capture.step import default_loss
from memfit.capture.torch_trace import capture_module
from memfit.graph.model import BEFORE, Graph, Phase, StorageKind

TINY = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "vocab_size": 500}
CONFIGS: dict[str, dict[str, Any]] = {
    "llama": {
        **TINY, "architectures": ["LlamaForCausalLM"], "model_type": "llama", "num_key_value_heads": 2,
        "intermediate_size": 128,
    },
    "mamba": {**TINY, "architectures": ["MambaForCausalLM"], "model_type": "mamba"},
    "mixtral": {
        **TINY, "architectures": ["MixtralForCausalLM"], "model_type": "mixtral", "num_key_value_heads": 2,
        "intermediate_size": 128, "num_local_experts": 4,
    },
    "t5": {
        "architectures": ["T5ForConditionalGeneration"], "model_type": "t5", "d_model": 64, "d_ff": 128,
        "num_layers": 2, "num_heads": 4, "d_kv": 16, "vocab_size": 500, "is_encoder_decoder": True,
    },
    "bart": {
        "architectures": ["BartForConditionalGeneration"], "model_type": "bart", "d_model": 64, "encoder_layers": 2,
        "decoder_layers": 2, "encoder_attention_heads": 4, "decoder_attention_heads": 4, "encoder_ffn_dim": 128,
        "decoder_ffn_dim": 128, "vocab_size": 500, "pad_token_id": 1, "decoder_start_token_id": 2,
    },
}  # fmt: skip


class Tagger(nn.Module):
    """Recurrent layers of both kinds, one of them in both directions."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(100, 32)
        self.lstm = nn.LSTM(32, 48, num_layers=2, bidirectional=True, batch_first=True)
        self.gru = nn.GRU(96, 24)
        self.head = nn.Linear(24, 7)

    def forward(self, ids: Tensor) -> Tensor:
        x, _ = self.lstm(self.embed(ids))
        x, last = self.gru(x.transpose(0, 1))
        return self.head(x.transpose(0, 1)) + self.head(last[-1])[:, None]


class ResidualBlock(nn.Module):
    def __init__(self, inner: int, outer: int, steps: int) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(8, inner)
        self.first = nn.Conv2d(inner, outer, 3, padding=1)
        self.time = nn.Linear(steps, outer)
        self.second = nn.Conv2d(outer, outer, 3, padding=1)
        self.skip = nn.Conv2d(inner, outer, 1) if inner != outer else nn.Identity()

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        h = self.first(functional.silu(self.norm(x))) + self.time(functional.silu(time))[:, :, None, None]
        return self.second(functional.silu(h)) + self.skip(x)


class Attention(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(8, width)
        self.qkv = nn.Conv2d(width, 3 * width, 1)
        self.out = nn.Conv2d(width, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        batch, width, height, depth = x.shape
        q, k, v = self.qkv(self.norm(x)).flatten(2).transpose(1, 2).unflatten(2, (3, 4, width // 4)).unbind(2)
        y = functional.scaled_dot_product_attention(q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2))
        return x + self.out(y.permute(0, 1, 3, 2).reshape(batch, width, height, depth))


class DiffusionUNet(nn.Module):
    """Noise prediction: time embedding, residual blocks, attention in the middle, skip connections by concatenation."""

    def __init__(self, width: int = 32) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, width, 3, padding=1)
        self.down = nn.ModuleList([ResidualBlock(width, width, 64), ResidualBlock(width, 2 * width, 64)])
        self.shrink = nn.ModuleList([nn.Conv2d(width, width, 3, 2, 1), nn.Conv2d(2 * width, 2 * width, 3, 2, 1)])
        self.middle = Attention(2 * width)
        self.up = nn.ModuleList([ResidualBlock(4 * width, width, 64), ResidualBlock(2 * width, width, 64)])
        self.head = nn.Conv2d(width, 3, 3, padding=1)

    def forward(self, x: Tensor, step: Tensor) -> Tensor:
        rates = torch.exp(-math.log(1e4) * torch.arange(32) / 32)
        angles = step[:, None] * rates
        time = torch.cat([angles.sin(), angles.cos()], 1)
        x = self.stem(x)
        kept = []
        for block, shrink in zip(self.down, self.shrink, strict=True):
            x = block(x, time)
            kept.append(x)
            x = shrink(x)
        x = self.middle(x)
        for block in self.up:
            x = torch.cat([functional.interpolate(x, scale_factor=2.0), kept.pop()], 1)
            x = block(x, time)
        return self.head(functional.silu(x))


Case = tuple[str | Callable[[], nn.Module], tuple[str, ...], str]
CASES: dict[str, Case] = {
    "convolution": ("torchvision:mobilenet_v2", ("2x3x64x64",), "depthwise_conv2d"),
    "attention": ("timm:deit_tiny_patch16_224", ("2x3x224x224",), "attention"),
    "windowed attention": ("torchvision:swin_t", ("2x3x64x64",), "softmax"),
    "state space": ("hf:mamba", ("2x16",), "conv1d"),
    "recurrent": (Tagger, ("2x16:int64",), "rnn_layer"),
    "detection": ("torchvision:ssdlite320_mobilenet_v3_large", ("2x3x320x320",), "nms"),
    "detection in two stages": ("torchvision:fasterrcnn_mobilenet_v3_large_320_fpn", ("2x3x320x320",), "roi_align"),
    "segmentation": ("torchvision:lraspp_mobilenet_v3_large", ("2x3x64x64",), "upsample"),
    "video": ("torchvision:r3d_18", ("2x3x4x32x32",), "conv3d"),
    "optical flow": ("torchvision:raft_small", ("2x3x128x128", "2x3x128x128"), "grid_sample"),
    "decoder": ("hf:llama", ("2x16",), "attention"),
    "encoder-decoder": ("hf:t5", ("2x16", "decoder_input_ids=2x8"), "attention|softmax"),
    "encoder-decoder with attention kernels": ("hf:bart", ("2x16", "decoder_input_ids=2x8"), "attention"),
    "mixture of experts": ("hf:mixtral", ("2x16",), "topk"),
    "diffusion U-Net": (DiffusionUNet, ("2x3x32x32", "2"), "group_norm"),
}
UNKNOWN_SIZES = {"detection", "detection in two stages"}
"""Networks whose sizes depend on data: a real run has other sizes than the worst case that a capture takes."""


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """Small networks run fastest so, also where several tests run at once."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(params=CASES)
def case(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[str, LoadedSource, tuple[str, ...], str]:
    source, inputs, kind = CASES[request.param]
    if not isinstance(source, str):
        loaded = LoadedSource(request.param, source())
    elif source.startswith("hf:"):
        path = tmp_path / "config.json"
        path.write_text(json.dumps(CONFIGS[source.removeprefix("hf:")]))
        loaded = load(f"hf:{path}")
    else:
        loaded = load(source)
    return request.param, loaded, inputs, kind


class Recorder(TorchDispatchMode):
    """Names the operations of a real run."""

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **kwargs or {})
        if not is_quiet(func):
            self.names.append(str(func))
        return result


def is_quiet(func: Any) -> bool:
    """True for what a graph may leave out: views that change nothing, literals, and questions about values."""
    name = func._schema.name
    quiet = ("_unsafe_view", "_reshape_alias", "detach", "alias", "lift_fresh", "_local_scalar_dense", "empty")
    return bool(func.is_view) or name.removeprefix("aten::").rstrip("_") in quiet


def overload(target: str) -> Any:
    namespace, name, version = target.split(".")
    return getattr(getattr(getattr(torch.ops, namespace), name), version)


def materialise(model: nn.Module, training: bool) -> None:
    """Give a model built without weights small real ones."""
    torch.manual_seed(0)
    for module in model.modules():
        module.training = training
        for members in (module._parameters, module._buffers):
            for name, tensor in members.items():
                if tensor is not None and is_phantom(tensor):
                    real = torch.rand(tensor.shape).mul_(0.1).to(tensor.dtype)
                    if isinstance(tensor, nn.Parameter):
                        tensor.data = real
                    else:
                        members[name] = real


def real(values: Any) -> Any:
    """Real tensors in the place of an example's phantoms."""
    if isinstance(values, Tensor):
        if values.is_floating_point():
            return torch.rand(values.shape).to(values.dtype)
        return torch.randint(0, 90, values.shape)
    if isinstance(values, dict):
        return {key: real(value) for key, value in values.items()}
    if isinstance(values, list | tuple):
        return type(values)(real(value) for value in values)
    return values


def real_run(model: nn.Module, example: Example, training: bool) -> list[str]:
    materialise(model, training)
    args, kwargs = real(example.args), real(example.kwargs)
    with Recorder() as recorder:
        if not training:
            with torch.no_grad():
                model(*args, **kwargs)
        else:
            (example.loss or default_loss)(model(*args, **kwargs)).backward()
    return recorder.names


def captured(loaded: LoadedSource, inputs: tuple[str, ...], training: bool) -> tuple[Graph, Example]:
    example = loaded.example(inputs, training=training)
    assert loaded.model is not None
    graph = capture_module(
        loaded.model, example.args, example.kwargs, training=training, loss=example.loss, input_names=example.names
    )
    return graph, example


@pytest.mark.parametrize("training", [False, True], ids=["inference", "training"])
@pytest.mark.filterwarnings("ignore")
def test_a_network_is_captured_as_it_runs(case: tuple[str, LoadedSource, tuple[str, ...], str], training: bool) -> None:
    name, loaded, inputs, kind = case
    graph, example = captured(loaded, inputs, training)
    model = loaded.model
    assert model is not None
    assert sum(t.elements for t in graph.parameters()) == sum(p.numel() for p in model.parameters())
    assert any(re.search(kind, op.kind) for op in graph.ops) or (kind == "nms" and training), (
        "the family's own operation"
    )
    assert sum(op.macs for op in graph.ops) > 0
    assert len(graph.inputs) == len(example.names)
    if training:
        assert {op.phase for op in graph.ops} == {Phase.FORWARD, Phase.LOSS, Phase.BACKWARD} or example.kwargs
        assert any(op.saved for op in graph.ops)
        forward = sum(op.macs for op in graph.ops if op.phase is not Phase.BACKWARD)
        assert forward < sum(op.macs for op in graph.ops) <= 3.1 * forward, "attention's backward repeats its scores"
        gradients = sum(s.nbytes for s in graph.storages if s.kind is StorageKind.GRADIENT)
        assert 0 < gradients <= sum(t.nbytes for t in graph.parameters())
    if name in UNKNOWN_SIZES:
        assert any("upper bounds" in note for note in graph.notes)
        return
    ran = real_run(model, example, training)
    assert [op.target for op in graph.ops if not is_quiet(overload(op.target))] == ran


def test_the_reserve_of_weights_is_never_read() -> None:
    loaded = load("torchvision:mobilenet_v2")
    assert loaded.model is not None
    captured(loaded, (), False)
    assert all(is_phantom(p) for p in loaded.model.parameters())


def test_what_existed_before_is_born_before() -> None:
    graph = capture("torchvision:mobilenet_v2", "1x3x32x32")
    for storage in graph.storages:
        assert (storage.birth == BEFORE) == (storage.kind is not StorageKind.ACTIVATION)
