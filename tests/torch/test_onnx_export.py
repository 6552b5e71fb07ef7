"""What PyTorch's exporters write is the network that memfit captures from PyTorch itself."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import memfit
from memfit.capture.shim import import_torchvision

IMAGE = "1x3x224x224"
SAME = {"mean": "adaptive_avg_pool2d"}
"""What PyTorch computes as a mean, exporters write as global pooling."""


def distinct(model: nn.Module) -> nn.Module:
    """Give every parameter other values, so that the exporter does not make equal ones one."""
    drawn = torch.Generator().manual_seed(0)
    for tensor in (*model.parameters(), *model.buffers()):
        if tensor.is_floating_point():
            tensor.data = torch.rand(tensor.shape, generator=drawn) + 0.5
    return model.eval()


def export(model: nn.Module, inputs: tuple[Any, ...], path: Path, exporter: str, **options: Any) -> str:
    """Export, or skip with the reason where this exporter does not work here."""
    if exporter == "dynamo":
        pytest.importorskip("onnxscript", reason="PyTorch's second exporter needs onnxscript")
        options |= {"dynamo": True, "verbose": False}
    else:
        options |= {"dynamo": False}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            torch.onnx.export(model, inputs, str(path), **options)
        except ImportError as error:
            pytest.skip(f"the exporter does not load here: {error}")
    return str(path)


@pytest.fixture(scope="module", params=["torchscript", "dynamo"])
def exporter(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.mark.parametrize("name", ["mobilenet_v2", "resnet18"])
def test_an_export_has_the_layers_of_the_model(name: str, exporter: str, tmp_path: Path) -> None:
    torchvision = import_torchvision()
    model = distinct(torchvision.models.get_model(name, weights=None))
    options: dict[str, Any] = {"optimize": False} if exporter == "dynamo" else {}
    if exporter == "torchscript":  # else batch norm becomes part of the convolution
        options = {"training": torch.onnx.TrainingMode.PRESERVE, "do_constant_folding": False}
    path = export(model, (torch.zeros(1, 3, 224, 224),), tmp_path / "net.onnx", exporter, **options)
    ours, theirs = memfit.capture(path), memfit.capture(f"torchvision:{name}", IMAGE)
    assert sum(op.macs for op in ours.ops) == sum(op.macs for op in theirs.ops)
    assert sum(t.elements for t in ours.parameters()) == sum(t.elements for t in theirs.parameters())
    for memory in ("mcunet", "ideal"):
        for per in ("layer", "block"):
            a, b = (memfit.profile(g, per=per, memory=memory) for g in (ours, theirs))
            keys = ["output_shape", "activations", "weights", "params", "macs"]
            keys += ["norm", "activation", "kernel", "stride", "type"] if per == "layer" else ["name"]
            keys += ["peak_bytes"] if memory == "mcunet" else []  # ideal counts the indices of PyTorch's max pooling
            rows = [
                [[SAME.get(row.get(key), row.get(key)) for key in keys] for row in p.rows if row.get("type") != "input"]
                for p in (a, b)
            ]
            assert rows[0] == rows[1]
    mcunet = memfit.profile(ours, per="block", memory="mcunet").totals
    if name == "mobilenet_v2":
        assert (mcunet["peak_bytes"], mcunet["peak_at"]) == (1_404_928, "features.2")


@pytest.mark.parametrize("name", ["mobilenet_v2", "resnet18"])
def test_an_export_with_batch_norm_folded_has_the_same_activations(name: str, exporter: str, tmp_path: Path) -> None:
    torchvision = import_torchvision()
    model = distinct(torchvision.models.get_model(name, weights=None))
    path = export(model, (torch.zeros(1, 3, 224, 224),), tmp_path / "net.onnx", exporter)
    ours, theirs = (memfit.profile(s, IMAGE, per="block", memory="mcunet") for s in (path, f"torchvision:{name}"))
    keys = ("name", "output_shape", "activations", "macs", "peak_bytes")
    assert [[row[key] for key in keys] for row in ours.rows] == [[row[key] for key in keys] for row in theirs.rows]
    assert ours.totals["peak_at"] == theirs.totals["peak_at"]
    norms = sum(m.weight.numel() for m in model.modules() if isinstance(m, nn.BatchNorm2d))
    assert ours.totals["params"] == theirs.totals["params"] - norms  # weight and bias became one bias


ZOO = {
    "shufflenet_v2_x0_5": {},
    "googlenet": {"init_weights": False},
    "efficientnet_b0": {},
    "vit_b_32": {},
    "swin_t": {},
}


@pytest.mark.parametrize("name", ZOO)
def test_exports_come_out_complete(name: str, tmp_path: Path) -> None:
    """Channel shuffles, sizes from shapes, attention: as many multiplications as the captured model has."""
    torchvision = import_torchvision()
    model = distinct(torchvision.models.get_model(name, weights=None, **ZOO[name]))
    options = {"dynamic_axes": {"image": {0: "batch"}}, "input_names": ["image"]}
    path = export(model, (torch.zeros(1, 3, 224, 224),), tmp_path / "net.onnx", "torchscript", **options)
    ours, theirs = memfit.capture(path, batch=2), memfit.capture(f"torchvision:{name}", "2x3x224x224")
    assert sum(op.macs for op in ours.ops) == sum(op.macs for op in theirs.ops)
    assert ours.tensors[ours.outputs[0]].shape == theirs.tensors[theirs.outputs[0]].shape


class Recurrent(nn.Module):
    """An LSTM of two layers between an embedding and a classifier."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(50, 16)
        self.lstm = nn.LSTM(16, 24, num_layers=2, batch_first=True, bidirectional=True)
        self.head = nn.Linear(48, 5)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        return self.head(self.lstm(self.embed(ids))[0])


def test_a_recurrent_network(tmp_path: Path) -> None:
    model, ids = distinct(Recurrent()), torch.zeros(2, 7, dtype=torch.long)
    path = export(
        model, (ids,), tmp_path / "net.onnx", "torchscript",
        dynamic_axes={"ids": {0: "batch", 1: "length"}}, input_names=["ids"],
    )  # fmt: skip
    ours = memfit.capture(path, "3x9")
    theirs = memfit.capture(model, (torch.zeros(3, 9, dtype=torch.long),))
    assert sum(op.macs for op in ours.ops) == sum(op.macs for op in theirs.ops)
    assert sum(t.elements for t in ours.parameters()) == sum(t.elements for t in theirs.parameters())


def test_a_transformer_encoder(tmp_path: Path) -> None:
    model = distinct(nn.TransformerEncoderLayer(16, 4, 32, batch_first=True))
    x = torch.zeros(2, 7, 16)
    path = export(model, (x,), tmp_path / "net.onnx", "dynamo")
    ours = memfit.capture(path)
    assert sum(op.macs for op in ours.ops) == 2 * 7 * 16 * (4 * 16 + 2 * 32) + 2 * 2 * 7 * 7 * 16
    weights = [t.elements for t in ours.parameters() if t.elements > 1]  # and a literal of one element
    assert sum(weights) == sum(p.numel() for p in model.parameters())
