"""Handwritten digits, and a small MobileNetV2 that reads them: data and a trained network, with nothing to download.

scikit-learn's 1,797 digits of 8x8 pixels are scaled to 32x32; every fourth is kept for testing. The network has 53
convolutions and linear layers in inverted residual blocks, ten of them with shortcuts, as MobileNetV2 has, with fewer
channels. Training it takes about 35 seconds of one core.

    python examples/digits.py                                   train, test, and keep the weights in digits.pt
    memfit profile examples/digits.py:network --memory mcunet
    memfit prune examples/digits.py:network --budget 10KiB --data examples/digits.py:train_data \
        --fine-tune examples/digits.py:fine_tune --metric examples/digits.py:accuracy

Data: E. Alpaydin and C. Kaynak, Optical Recognition of Handwritten Digits, UCI Machine Learning Repository, 1998,
https://doi.org/10.24432/C50P49, as scikit-learn ships it. Network: Sandler et al., MobileNetV2: Inverted Residuals and
Linear Bottlenecks, CVPR 2018, https://arxiv.org/abs/1801.04381.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional

SIZE, CLASSES = 32, 10
EPOCHS = 14
STAGES = ((1, 8, 1, 1), (6, 12, 2, 1), (6, 16, 3, 2), (6, 24, 4, 2), (6, 32, 3, 1), (6, 48, 3, 1), (6, 64, 1, 1))
"""Expansion, channels, blocks and stride of each stage, as in MobileNetV2's table 2."""
STEM, LAST = 16, 128
WEIGHTS = Path(os.environ.get("DIGITS_WEIGHTS", Path(__file__).with_name("digits.pt")))
"""Where training keeps the weights."""


def layer(
    inputs: int, outputs: int, kernel: int = 1, *, stride: int = 1, groups: int = 1, act: bool = True
) -> nn.Module:
    parts = [
        nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=False),
        nn.BatchNorm2d(outputs),
        nn.ReLU6(),
    ]
    return nn.Sequential(*parts[: 3 if act else 2])


class Block(nn.Module):
    """An inverted residual: expand, depthwise, project, and a shortcut where the shape stays."""

    def __init__(self, inputs: int, outputs: int, stride: int, expansion: int) -> None:
        super().__init__()
        hidden = inputs * expansion
        parts = [layer(inputs, hidden)] if expansion > 1 else []
        parts += [layer(hidden, hidden, 3, stride=stride, groups=hidden), layer(hidden, outputs, act=False)]
        self.conv = nn.Sequential(*parts)
        self.shortcut = stride == 1 and inputs == outputs

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv(x) if self.shortcut else self.conv(x)


class Digits(nn.Module):
    """The classifier: Nx1x32x32 images, pixels from -1 to 1, to Nx10 scores."""

    def __init__(self) -> None:
        super().__init__()
        blocks: list[nn.Module] = [layer(1, STEM, 3, stride=2)]
        width = STEM
        for expansion, channels, count, stride in STAGES:
            for number in range(count):
                blocks.append(Block(width, channels, stride if number == 0 else 1, expansion))
                width = channels
        self.features = nn.Sequential(*blocks, layer(width, LAST))
        self.classifier = nn.Linear(LAST, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(self.features(x).mean((2, 3)))


def network(weights: str | None = None, seed: int = 0) -> tuple[nn.Module, Tensor]:
    """Give the network and an example input: trained where the file of weights exists, else as initialised."""
    torch.manual_seed(seed)
    model = Digits().eval()
    path = WEIGHTS if weights is None else Path(weights)
    if weights is not None or path.is_file():
        model.load_state_dict(torch.load(path, weights_only=True))
    return model, torch.zeros(1, 1, SIZE, SIZE)


@cache
def _digits() -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """Give images and labels for training, and for testing."""
    from sklearn.datasets import load_digits

    found = load_digits()
    images = torch.tensor(found.images, dtype=torch.float32)[:, None] / 8 - 1
    images = functional.interpolate(images, (SIZE, SIZE), mode="bilinear", align_corners=False)
    labels = torch.tensor(found.target)
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))
    test, train = order[::4], torch.cat([order[start::4] for start in (1, 2, 3)])
    return (images[train], labels[train]), (images[test], labels[test])


def train_data(batch: int = 64) -> Iterator[tuple[Tensor, Tensor]]:
    """Give the 1,347 training digits in batches of images and labels, in one order."""
    images, labels = _digits()[0]
    yield from zip(images.split(batch), labels.split(batch), strict=True)


def test_data(batch: int = 150) -> Iterator[tuple[Tensor, Tensor]]:  # noqa: PT028  (it is data, not a test)
    """Give the 450 digits that training does not see."""
    images, labels = _digits()[1]
    yield from zip(images.split(batch), labels.split(batch), strict=True)


@contextmanager
def one_thread() -> Iterator[None]:
    """Use one thread: layers this small are computed before a second one has begun."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def fine_tune(model: nn.Module, epochs: int = 8, rate: float = 0.004, seed: int = 0, batch: int = 64) -> nn.Module:
    """Train a network in place for some epochs, at a rate that rises for a while and then falls to zero."""
    with one_thread():
        return _train(model, epochs, rate, seed, batch)


def _train(model: nn.Module, epochs: int, rate: float, seed: int, batch: int) -> nn.Module:
    images, labels = _digits()[0]
    generator = torch.Generator().manual_seed(seed)
    steps = max(epochs * (len(labels) // batch), 8)
    optimizer = torch.optim.AdamW(model.parameters(), lr=rate, weight_decay=0.02, foreach=True)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, total_steps=steps, pct_start=0.25)
    model.to(memory_format=torch.channels_last).train()  # depthwise convolutions are faster so
    for _ in range(epochs):
        order = torch.randperm(len(labels), generator=generator)
        for chosen in order[: len(order) // batch * batch].split(batch):
            moved = _moved(images[chosen], generator).contiguous(memory_format=torch.channels_last)
            loss = functional.cross_entropy(model(moved), labels[chosen])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    return model.to(memory_format=torch.contiguous_format).eval()


def _moved(images: Tensor, generator: torch.Generator) -> Tensor:
    """Move a batch by up to three pixels each way, so that so few digits do not become known by heart."""
    left, top = torch.randint(0, 7, (2,), generator=generator).tolist()
    padded = functional.pad(images, (3, 3, 3, 3), value=-1.0)
    return padded[:, :, top : top + SIZE, left : left + SIZE]


def accuracy(model: nn.Module) -> float:
    """Give the share of the test digits that a network reads correctly, from 0 to 1."""
    model.eval()
    with torch.no_grad():
        right = [int((model(images).argmax(1) == labels).sum()) for images, labels in test_data()]
    return sum(right) / len(_digits()[1][1])


def main() -> None:
    parser = argparse.ArgumentParser(description="Train the network and keep its weights.")
    parser.add_argument("--epochs", type=int, default=EPOCHS)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--weights", default=str(WEIGHTS), help="where to keep them")
    given = parser.parse_args()
    torch.manual_seed(given.seed)
    model = Digits()
    start = time.perf_counter()
    fine_tune(model, given.epochs, 0.01, given.seed)
    seconds = time.perf_counter() - start
    layers = sum(isinstance(module, nn.Conv2d | nn.Linear) for module in model.modules())
    print(f"{layers} convolutions and linear layers, {sum(p.numel() for p in model.parameters()):,} parameters")
    print(f"trained {given.epochs} epochs in {seconds:.0f} s; test accuracy {accuracy(model):.2%}")
    torch.save(model.state_dict(), given.weights)
    print(f"wrote {given.weights}")


if __name__ == "__main__":
    main()
