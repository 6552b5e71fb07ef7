"""The sample results that the report tests share, and the proof that they are sound."""

from __future__ import annotations

import math
from typing import Any

import pytest

from memfit.analysis.result import Profile
from memfit.analysis.select import ADDITIVE, select

_LAYERS = (
    # name, type, norm, activation, kernel, stride, output, weights, params, MACs, peak
    ("input", "input", None, None, None, None, (1, 3, 32, 32), 0, 0, 0, 12288),
    ("stem.0", "conv2d", "batch_norm", "relu6", (3, 3), (2, 2), (1, 16, 16, 16), 432, 464, 110592, 28672),
    ("blocks.0.conv.0", "depthwise_conv2d", "batch_norm", "relu6", (3, 3), (1, 1), (1, 16, 16, 16), 144, 176, 36864,
     32768),
    ("blocks.0.conv.1", "conv2d", "batch_norm", None, (1, 1), (1, 1), (1, 16, 16, 16), 256, 288, 65536, 49152),
    ("blocks.0", "add", None, None, None, None, (1, 16, 16, 16), 0, 0, 0, 49152),
    ("pool", "adaptive_avg_pool2d", None, None, None, None, (1, 16, 1, 1), 0, 0, 0, 16448),
    ("head.classifier.projection.linear", "linear", None, None, None, None, (1, 10), 160, 170, 160, 104),
)  # fmt: skip


def layers() -> Profile:
    """A small network per layer, with fp32 activations."""
    whole = sum(layer[8] for layer in _LAYERS)
    rows = []
    for name, kind, norm, activation, kernel, stride, shape, weights, params, macs, peak in _LAYERS:
        elements = math.prod(shape)
        row: dict[str, Any] = {"name": name, "type": kind, "norm": norm, "activation": activation}
        row |= {"kernel": kernel, "stride": stride, "output_shape": shape, "activations": elements}
        row |= {"weights": weights, "params": params, "params_share": params / whole, "macs": macs}
        row |= {"activation_bytes": elements * 4, "workspace_bytes": None, "peak_bytes": peak}
        rows.append(row)
    summed = ("activations", "weights", "params", "params_share", "macs", "activation_bytes")
    totals = {column: sum(row[column] for row in rows) for column in summed}
    totals |= {"peak_bytes": 49152, "peak_at": "blocks.0.conv.1", "input_bytes": 12288}
    totals |= {"parameter_bytes": 4392, "buffer_bytes": 408, "model_bytes": 4800}
    return Profile(
        source="net.py:make",
        inputs=({"name": "x", "shape": (1, 3, 32, 32), "dtype": "float32"},),
        per="layer",
        memory="ideal",
        training=False,
        device="cpu",
        rows=tuple(rows),
        totals=totals,
        notes=("a note with a | bar and an *asterisk*",),
        environment={"torch": "2.13.0", "threads": 2, "verified": True, "more": {"nested": 1}},
    )


def tensors() -> Profile:
    """Three tensors and two inputs of another network."""
    listed = (
        ("ids", "input", (1, 8), "int64", 8),
        ("mask", "input", (1, 8), "bool", 1),
        ("embed.weight", "parameter", (100, 16), "float16", 2),
        ("norm.weight", "parameter", (16,), "float16", 2),
        ("scale", "buffer", (), "float32", 4),
    )
    rows = []
    for name, kind, shape, dtype, size in listed:
        elements = math.prod(shape)
        row: dict[str, Any] = {"name": name, "type": kind, "shape": shape, "dtype": dtype, "elements": elements}
        row |= {"bytes": elements * size, "allocated_bytes": -(-elements * size // 512) * 512}
        rows.append(row)
    totals = {column: sum(row[column] for row in rows) for column in ("elements", "bytes", "allocated_bytes")}
    return Profile(
        source="hf:config.json",
        inputs=(
            {"name": "ids", "shape": (1, 8), "dtype": "int64"},
            {"name": "mask", "shape": (1, 8), "dtype": "bool"},
        ),
        per="tensor",
        memory="tensors",
        training=False,
        device="cpu",
        rows=tuple(rows),
        totals=totals,
        notes=(),
        environment={},
    )


def modules() -> Profile:
    """A module tree, whose rows contain one another."""
    tree = (
        ("(root)", "Net", 0, 30),
        ("stem", "Conv2d", 1, 10),
        ("body", "Sequential", 1, 20),
        ("body.0", "Linear", 2, 20),
    )
    rows = tuple({"name": n, "class": c, "depth": d, "params": p, "peak_bytes": p * 1024} for n, c, d, p in tree)
    totals = {"params": 30, "peak_bytes": 30720, "peak_at": "(root)"}
    return Profile("net.py:make", (), "module", "ideal", True, "cuda", rows, totals, (), {})


SAMPLES = {
    "layers": layers(),
    "top": select(layers(), sort="peak_bytes", top=3),
    "columns": select(layers(), columns=["name", "macs", "norm"]),
    "tensors": tensors(),
    "modules": modules(),
    "empty": select(layers(), where=["type=attention"]),
}


def add_up(profile: Profile) -> None:
    """Add the shown rows and those left out, and compare with the total."""
    hidden = profile.selection.hidden if profile.selection else {}
    for column in ADDITIVE & {key for row in profile.rows for key in row}:
        shown = sum(row[column] or 0 for row in profile.rows)
        assert shown + hidden.get(column, 0) == pytest.approx(profile.totals[column], rel=1e-12), column


@pytest.mark.parametrize("name", [name for name in SAMPLES if name != "modules"])
def test_rows_add_up_to_the_total(name: str) -> None:
    add_up(SAMPLES[name])
