"""EfficientViT-SAM-L0: what calibrating a quantizer would have to keep, layer by layer.

Activation statistics are taken at each layer with an activation function. Kept for 10 samples, the largest takes
320 MiB; for 100 samples 3,200 MiB, published as 3.2 GB: the reason to stream calibration.

The network is built from its paper (https://arxiv.org/abs/2402.05008) and from what its authors published about
EfficientViT (https://arxiv.org/abs/2205.14756, https://github.com/mit-han-lab/efficientvit), with random weights.

    python examples/efficientvit_sam.py
    memfit profile examples/efficientvit_sam.py:encoder --samples 10
    memfit calibrate examples/efficientvit_sam.py:encoder --data random --samples 10 --batch 1 -o ranges.png
"""

from __future__ import annotations

import csv
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional

import memfit
from memfit.units import format_bytes

PUBLISHED = Path(__file__).parents[1] / "tests/expected/efficientvit_sam_l0_512_calibration.csv"

STAGES = ((64, 1), (128, 1), (256, 4), (512, 4))
"""Width of each stage after the stem, and its blocks after the first, which halves the size."""
STEM, NECK = 32, 256
"""Channels of the stem and of the neck."""
HEAD, SCALE = 32, 5
"""Channels of an attention head, and the kernel of the convolution that gives it a larger scale."""


class Layer(nn.Module):
    """A convolution, with a batch norm and an activation function where they exist."""

    def __init__(
        self, before: int, after: int, kernel: int = 1, *, stride: int = 1, groups: int = 1, bias: bool = False,
        norm: bool = True, gelu: bool = True,
    ) -> None:  # fmt: skip
        super().__init__()
        self.stride, self.groups, self.padding, self.norm, self.gelu = stride, groups, kernel // 2, norm, gelu
        self.weight = nn.Parameter(torch.empty(after, before // groups, kernel, kernel))
        nn.init.kaiming_uniform_(self.weight, a=5**0.5)
        self.bias = nn.Parameter(torch.zeros(after)) if bias else None
        if norm:
            self.norm_weight, self.norm_bias = nn.Parameter(torch.ones(after)), nn.Parameter(torch.zeros(after))
            self.register_buffer("norm_mean", torch.zeros(after))
            self.register_buffer("norm_var", torch.ones(after))

    def forward(self, x: Tensor) -> Tensor:
        x = functional.conv2d(x, self.weight, self.bias, self.stride, self.padding, groups=self.groups)
        if self.norm:
            parameters = (self.norm_mean, self.norm_var, self.norm_weight, self.norm_bias)
            x = functional.batch_norm(x, *parameters, training=self.training, eps=1e-6)
        return functional.gelu(x, approximate="tanh") if self.gelu else x


class Encoder(nn.Module):
    """The image encoder: a trunk of five stages, and a neck that joins the last three.

    Its layers are called `stage:block:layer`, counting from 0; the stem is stage 0.
    """

    def __init__(self) -> None:
        super().__init__()
        self.parts: dict[str, int] = {}
        """Layers of each block, in order."""
        self.add("stage0:0", Layer(3, STEM, 3, stride=2))
        self.add("stage0:1", Layer(STEM, STEM, 3), Layer(STEM, STEM, 3, gelu=False))
        before = STEM
        for stage, (width, depth) in enumerate(STAGES, 1):
            fused, attention = stage < 3, stage == 4
            block = fused_mbconv if fused else mbconv
            self.add(f"stage{stage}:0", *block(before, width, 24 if attention else 16, stride=2))
            for number in range(1, depth + 1):
                scales = list(linear_attention(width)) if attention else []
                self.add(f"stage{stage}:{number}", *scales, *block(width, width, 6 if attention else 4))
            before = width
        for number, (width, _) in enumerate(reversed(STAGES[1:])):
            self.add(f"neck:{number}", Layer(width, NECK, gelu=False))
        for number in range(3, 7):
            self.add(f"neck:{number}", *fused_mbconv(NECK, NECK, 1))
        self.add("neck:7", Layer(NECK, NECK, bias=True, norm=False, gelu=False))
        self.norm = nn.LayerNorm(NECK, eps=1e-6)

    def add(self, block: str, *layers: Layer) -> None:
        self.parts[block] = len(layers)
        for number, layer in enumerate(layers):
            self.add_module(f"{block}:{number}", layer)

    def run(self, block: str, x: Tensor, start: int = 0) -> Tensor:
        for number in range(start, self.parts[block]):
            x = self.get_submodule(f"{block}:{number}")(x)
        return x

    def forward(self, x: Tensor) -> Tensor:
        x = self.run("stage0:0", x)
        x = x + self.run("stage0:1", x)
        maps = []
        for stage, (_, depth) in enumerate(STAGES, 1):
            x = self.run(f"stage{stage}:0", x)
            for number in range(1, depth + 1):
                x = self.block(f"stage{stage}:{number}", x)
            maps.insert(0, x)
        joined = [
            functional.interpolate(self.run(f"neck:{number}", kept), size=(64, 64), mode="bicubic", align_corners=False)
            for number, kept in enumerate(maps[:3])
        ]
        x = torch.stack(joined).sum(0)
        for number in range(3, 7):
            x = x + self.run(f"neck:{number}", x)
        x = self.run("neck:7", x)
        return self.norm(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)

    def block(self, name: str, x: Tensor) -> Tensor:
        """Run a block with its shortcuts: one with attention has a second, after its first four layers."""
        if not name.startswith("stage4"):
            return x + self.run(name, x)
        widen, spread, scale, join = (self.get_submodule(f"{name}:{number}") for number in range(4))
        one = widen(x)
        x = x + join(attend(torch.cat([one, scale(spread(one))], 1)))
        return x + self.run(name, x, start=4)


def fused_mbconv(before: int, after: int, expand: int, stride: int = 1) -> Iterator[Layer]:
    """A wide 3x3 convolution and a narrow 1x1."""
    yield Layer(before, before * expand, 3, stride=stride)
    yield Layer(before * expand, after, gelu=False)


def mbconv(before: int, after: int, expand: int, stride: int = 1) -> Iterator[Layer]:
    """A wide 1x1 convolution, a depthwise 3x3 and a narrow 1x1; only the last has a norm."""
    wide = before * expand
    yield Layer(before, wide, bias=True, norm=False)
    yield Layer(wide, wide, 3, stride=stride, groups=wide, bias=True, norm=False)
    yield Layer(wide, after, gelu=False)


def linear_attention(width: int) -> Iterator[Layer]:
    """The convolutions of ReLU linear attention at two scales."""
    wide = 3 * width
    yield Layer(width, wide, norm=False, gelu=False)
    yield Layer(wide, wide, SCALE, groups=wide, norm=False, gelu=False)
    yield Layer(wide, wide, groups=wide // HEAD, norm=False, gelu=False)
    yield Layer(2 * width, width, gelu=False)


def attend(qkv: Tensor) -> Tensor:
    """ReLU linear attention: q (kᵀ v), each row divided by q (kᵀ 1)."""
    batch, _, height, width = qkv.shape
    q, k, v = qkv.reshape(batch, -1, 3 * HEAD, height * width).transpose(-1, -2).chunk(3, -1)
    v = functional.pad(v, (0, 1), value=1.0)
    out = functional.relu(q) @ (functional.relu(k).transpose(-1, -2) @ v)
    out = out[..., :-1] / (out[..., -1:] + 1e-5)
    return out.transpose(-1, -2).reshape(batch, -1, height, width)


def encoder() -> tuple[nn.Module, Tensor]:
    """Make the encoder and its example input."""
    return Encoder(), torch.empty(1, 3, 512, 512)


def activation_sizes(samples: int = 1) -> tuple[memfit.Profile, dict[str, dict[str, int]]]:
    """Profile the encoder; rows of layers with an activation function, by name."""
    profile = memfit.profile(f"{__file__}:encoder", inputs="1x3x512x512", samples=samples, memory="ideal")
    kept = {row["name"]: row for row in profile.rows if row["activation"] and "conv" in row["type"]}
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
