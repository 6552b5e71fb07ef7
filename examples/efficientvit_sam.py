"""EfficientViT-SAM-L0: what calibrating a quantizer would have to keep, layer by layer.

Activation statistics are taken at each layer with an activation function. Kept for 10 samples, the largest takes
320 MiB; for 100 samples 3,200 MiB, published as 3.2 GB: the reason to stream calibration.

    python examples/efficientvit_sam.py
    memfit profile examples/efficientvit_sam.py:encoder --input 1x3x512x512 --samples 10
"""

from __future__ import annotations

import csv
import re
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional

import memfit
from memfit.capture.shim import define_missing_torchvision_schemas
from memfit.units import format_bytes

PUBLISHED = Path(__file__).parents[1] / "tests/expected/efficientvit_sam_l0_512_calibration.csv"
WIDTH = 256
"""Channels of the neck."""


class Encoder(nn.Module):
    """The image encoder: a trunk of five stages, and a neck that joins the last three."""

    def __init__(self) -> None:
        define_missing_torchvision_schemas()  # timm imports torchvision, whose import fails on a CPU-only PyTorch
        from timm.layers import LayerNorm2d
        from timm.models.efficientvit_mit import ConvNormAct, EfficientVitLarge, FusedMBConv, GELUTanh, ResidualBlock

        super().__init__()
        widths = (32, 64, 128, 256, 512)
        trunk = EfficientVitLarge(
            widths=widths, depths=(1, 1, 1, 4, 4), head_dim=32, head_widths=(8, 8), num_classes=0, norm_eps=1e-6
        )
        self.stem, self.stages = trunk.stem, trunk.stages
        inputs = [ConvNormAct(w, WIDTH, 1, act_layer=None) for w in reversed(widths[2:])]
        blocks = [
            ResidualBlock(FusedMBConv(WIDTH, WIDTH, expand_ratio=1, act_layer=(GELUTanh, None)), nn.Identity())
            for _ in range(4)
        ]
        self.neck = nn.ModuleList([*inputs, *blocks, nn.Conv2d(WIDTH, WIDTH, 1)])
        self.norm = LayerNorm2d(WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        maps = []
        for stage in self.stages:
            x = stage(x)
            maps.insert(0, x)
        joined = [
            functional.interpolate(enter(m), size=(64, 64), mode="bicubic", align_corners=False)
            for enter, m in zip(self.neck[:3], maps, strict=False)
        ]
        x = torch.stack(joined).sum(0)
        for block in self.neck[3:]:
            x = block(x)
        return self.norm(x)


def encoder() -> tuple[nn.Module, Tensor]:
    """Make the encoder and its example input."""
    return Encoder(), torch.empty(1, 3, 512, 512)


_PLACE = re.compile(r"(stem|neck|stages\.(\d+)\.blocks)\.([^.]+)")


def labels(names: list[str]) -> dict[str, str]:
    """Name each convolution `stage:block:layer`, counting in order of execution; the stem is stage 0.

    >>> labels(["stem.in_conv.conv", "stages.0.blocks.0.main.spatial_conv.conv"])
    {'stem.in_conv.conv': 'stage0:0:0', 'stages.0.blocks.0.main.spatial_conv.conv': 'stage1:0:0'}
    """
    found: dict[str, str] = {}
    layers: dict[str, int] = {}
    stem: list[str] = []
    for name in names:
        place = _PLACE.match(name)
        if place is None:
            continue
        kind, stage, block = place.groups()
        if kind == "stem":
            if block not in stem:
                stem.append(block)
            prefix = f"stage0:{stem.index(block)}"
        else:
            prefix = f"neck:{block}" if kind == "neck" else f"stage{int(stage) + 1}:{block}"
        found[name] = f"{prefix}:{layers.setdefault(prefix, 0)}"
        layers[prefix] += 1
    return found


def activation_sizes(samples: int = 1) -> tuple[memfit.Profile, dict[str, dict[str, int]]]:
    """Profile the encoder; rows of layers with an activation function, by label."""
    profile = memfit.profile(f"{__file__}:encoder", inputs="1x3x512x512", samples=samples, memory="ideal")
    names = labels([row["name"] for row in profile.rows if "conv" in row["type"]])
    kept = {names[row["name"]]: row for row in profile.rows if row["activation"] and row["name"] in names}
    return profile, kept


def main() -> None:
    _, one = activation_sizes()
    profile, ten = activation_sizes(10)
    _, hundred = activation_sizes(100)
    print(f"{'layer':<12} {'elements':>10}   {'10 samples':>22}   {'100 samples':>22}   {'10 in fp32':>12}")
    print(f"{'':<12} {'':>10}   {'published':>11}{'computed':>11}   {'published':>11}{'computed':>11}")
    for row in csv.DictReader(PUBLISHED.read_text().splitlines()):
        label = row["layer"]
        at_ten, at_hundred = ten[label]["activations"], hundred[label]["activations"]
        print(
            f"{label:<12} {one[label]['activations']:>10,}   {row['published_10_samples']:>11}{at_ten:>11.2e}"
            f"   {row['published_100_samples']:>11}{at_hundred:>11.2e}"
            f"   {format_bytes(ten[label]['activation_bytes']):>12}"
        )
    print(f"\n{profile.totals['params']:,} parameters, {profile.totals['macs'] / 1e9:.2f} GMACs at 512x512")


if __name__ == "__main__":
    main()
