"""What a network's outputs are worth: against those of the float network, or against labels."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from memfit.errors import SourceError, UsageError
from memfit.units import format_shape

Score = Callable[[Sequence[Tensor], Tensor | None], float]
"""A batch's outputs and labels → a number, the mean over its samples."""


class Sums(NamedTuple):
    """What batches add up to, in double precision: enough for every metric."""

    samples: int
    signal: float
    """Sum of the squares of the float network's outputs."""
    noise: float
    """Sum of the squares of what the outputs differ by."""
    energy: float
    """Sum of the squares of the outputs."""
    dot: float
    """Sum of the products of the two."""
    score: float | None = None
    """Sum over the samples of what the metric gave."""


def compare(reference: Sequence[Tensor], outputs: Sequence[Tensor], samples: int, score: float | None = None) -> Sums:
    """Compare a batch's outputs with those of the float network; whole numbers among them are left out.

    >>> sums = compare([torch.tensor([3.0, 4.0])], [torch.tensor([3.0, 3.5])], samples=1)
    >>> sums.signal, sums.noise, round(sqnr_db(sums), 9)
    (25.0, 0.25, 20.0)

    Args:
        reference: the float network's outputs.
        outputs: those to compare, of the same shapes.
        samples: how many the batch holds.
        score: the mean over the samples of another metric.
    """
    found = [0.0, 0.0, 0.0, 0.0]
    for one, other in zip(reference, outputs, strict=True):
        if not one.is_floating_point() and not one.is_complex():
            continue
        a, b = (torch.view_as_real(t) if t.is_complex() else t for t in (one, other))
        a, b = a.double(), b.double()
        for place, product in enumerate((a * a, (a - b).square_(), b * b, a * b)):
            found[place] += float(product.sum())
    signal, noise, energy, dot = found
    return Sums(samples, signal, noise, energy, dot, None if score is None else score * samples)


def add(parts: Iterable[Sums]) -> Sums:
    """Add the sums of batches up, to the same bit in any order.

    Args:
        parts: of one layer, a batch each.
    """
    columns = list(zip(*parts, strict=True))
    scores = columns[5]
    score = None if any(s is None for s in scores) else math.fsum(s for s in scores if s is not None)
    signal, noise, energy, dot = (math.fsum(column) for column in columns[1:5])
    return Sums(sum(columns[0]), signal, noise, energy, dot, score)


def sqnr_db(sums: Sums) -> float | None:
    """Give the ratio of signal to quantization noise, `10·log10(Σ float² / Σ (float - quantized)²)`, in decibels.

    None where the outputs do not differ at all, or the float network's are zero.
    """
    if not sums.noise or not sums.signal or not math.isfinite(sums.signal / sums.noise):
        return None
    return 10 * math.log10(sums.signal / sums.noise)


def spearman(one: Sequence[float], other: Sequence[float]) -> float | None:
    """Give the rank correlation, ties having the mean of their ranks; None for fewer than two, or all alike.

    >>> spearman([1.0, 2.0, 4.0], [10.0, 30.0, 20.0])
    0.5
    """
    a, b = _ranks(one), _ranks(other)
    middle = (len(a) + 1) / 2
    product = math.fsum((x - middle) * (y - middle) for x, y in zip(a, b, strict=True))
    length = math.sqrt(math.fsum((x - middle) ** 2 for x in a) * math.fsum((y - middle) ** 2 for y in b))
    return product / length if length else None


def _ranks(values: Sequence[float]) -> list[float]:
    order = sorted(values)
    first = {value: place for place, value in reversed(list(enumerate(order, 1)))}
    last = {value: place for place, value in enumerate(order, 1)}
    return [(first[value] + last[value]) / 2 for value in values]


def _cosine(sums: Sums) -> float | None:
    length = math.sqrt(sums.signal) * math.sqrt(sums.energy)
    return min(max(sums.dot / length, -1.0), 1.0) if length else None


def _mean_score(sums: Sums) -> float | None:
    return None if sums.score is None else sums.score / sums.samples


def _loss(outputs: Sequence[Tensor], labels: Tensor | None) -> float:
    """Cross-entropy where labels are classes, else the mean squared error."""
    output, wanted = outputs[0].double(), fitting(outputs[0], labels)
    if wanted.is_floating_point():
        return float(torch.nn.functional.mse_loss(output, wanted.double()))
    return float(torch.nn.functional.cross_entropy(output, wanted.long()))


def _accuracy(outputs: Sequence[Tensor], labels: Tensor | None) -> float:
    wanted = fitting(outputs[0], labels)
    if wanted.is_floating_point():
        wanted = wanted.argmax(1)
    return float((outputs[0].argmax(1) == wanted).double().mean())


def fitting(output: Tensor, labels: Tensor | None) -> Tensor:
    """Give the labels if they are classes of the output's second dimension, or as many values as it has.

    Raises:
        SourceError: they are neither.
    """
    assert labels is not None  # data without them is refused before
    classes = tuple(output.shape[:1] + output.shape[2:])
    shape = tuple(labels.shape)
    if shape == tuple(output.shape):
        return labels
    if output.dim() > 1 and shape == classes and not labels.is_floating_point():
        least, most = (int(labels.min()), int(labels.max())) if labels.numel() else (0, 0)
        if least < 0 or most >= output.shape[1]:
            raise SourceError(
                "a label is none of the network's classes",
                where="--data",
                received=f"labels from {least} to {most} for {output.shape[1]} classes",
                todo="count the classes from 0",
            )
        return labels
    raise SourceError(
        "the labels do not fit the network's output",
        where="--data",
        received=f"labels {format_shape(shape)} for an output of {format_shape(tuple(output.shape))}",
        todo=f"give whole numbers of {format_shape(classes)}, or values of the output's shape, or your own metric",
    )


class Metric(NamedTuple):
    """How good outputs are."""

    value: Callable[[Sums], float | None]
    score: Score | None = None
    """What looks at a batch; None where the sums say it all."""
    labels: bool = False
    """True where it needs labels."""
    falls: bool = True
    """True where less is worse."""
    unit: str = ""


METRICS: dict[str, Metric] = {
    "sqnr": Metric(sqnr_db, unit="dB"),
    "cosine": Metric(_cosine),
    "loss": Metric(_mean_score, _loss, labels=True, falls=False),
    "accuracy": Metric(_mean_score, _accuracy, labels=True),
}
"""Every metric by name."""


def metric_of(given: str | Callable[..., Any]) -> tuple[str, Metric]:
    """Find a metric by its name, or take a user's own: `FILE.py:CALLABLE`, or a function.

    It is called with a batch's outputs (a tensor, or a list of several) and labels (None without), and gives the mean
    over the samples; more is better.

    >>> metric_of("cosine")[0]
    'cosine'

    Raises:
        UsageError: no metric has this name.
        SourceError: the file or the function is not there.
    """
    if callable(given):
        return getattr(given, "__name__", type(given).__name__), Metric(_mean_score, _Own(given))
    if given in METRICS:
        return given, METRICS[given]
    file, colon, _ = given.rpartition(":")
    if colon and file.endswith(".py"):
        from memfit.capture.sources.user_file import load_function

        return given, Metric(_mean_score, _Own(load_function(given)))
    raise UsageError(
        "there is no such metric",
        where="--metric",
        received=repr(given),
        todo=f"use {', '.join(METRICS)} or FILE.py:CALLABLE",
    )


class _Own:
    """A user's own function as a score."""

    def __init__(self, function: Callable[..., Any]) -> None:
        self.function = function

    def __call__(self, outputs: Sequence[Tensor], labels: Tensor | None) -> float:
        found = float(self.function(outputs[0] if len(outputs) == 1 else list(outputs), labels))
        if not math.isfinite(found):
            raise ValueError(f"it gave {found}, which is no finite number")
        return found
