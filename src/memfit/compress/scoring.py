"""How good a module is on data: a figure before and after something was done to it."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils._pytree import tree_map

from memfit.capture.recording import tensors_in
from memfit.compress.data import Batch, Data
from memfit.compress.metrics import fitting
from memfit.errors import MemfitError, SourceError, UsageError, said
from memfit.units import format_shape

METRICS = ("accuracy", "loss", "sqnr")


@dataclass(frozen=True)
class Scorer:
    """Scores modules that take the same inputs; a module is left in evaluation mode.

    Args:
        data: what they run on.
        call: arguments of one call, whose tensors a batch takes the places of.
        metric: accuracy, loss or sqnr, a callable that takes the module, or None: accuracy with labels, else sqnr.
        reference: the module that sqnr compares with.
    """

    data: Data
    call: tuple[tuple[Any, ...], dict[str, Any]]
    metric: str | Callable[[nn.Module], Any] | None
    reference: nn.Module

    @property
    def name(self) -> str:
        """What the metric is called, as far as it was chosen."""
        if self.metric is None or isinstance(self.metric, str):
            return self.metric or "metric"
        return str(getattr(self.metric, "name", getattr(self.metric, "__name__", type(self.metric).__name__)))

    def chosen(self) -> Scorer:
        """Choose a metric by the data where none was asked for.

        Raises:
            SourceError: the data has no samples.
        """
        if self.metric is not None:
            return self
        batch = next(iter(self.data))
        metric = "accuracy" if batch.labels is not None and not batch.labels.is_floating_point() else "sqnr"
        return Scorer(self.data, self.call, metric, self.reference)

    def score(self, module: nn.Module) -> float | None:
        """Give the metric of a module; None where it is not finite, as the sqnr of the reference itself.

        Accuracy is a share from 0 to 1; sqnr is 10·log10(Σ y² / Σ (y - ŷ)²) in dB over all outputs.

        Raises:
            UsageError: labels are missing.
            SourceError: the metric's own code failed, or gave no number.
        """
        module.eval()
        with torch.no_grad():
            if callable(self.metric):
                found = _own(self.metric, module, self.name)
            else:
                found = _SCORES[self.metric or "accuracy"](self, module)
        return found if math.isfinite(found) else None

    def outputs(self, module: nn.Module, batch: Batch) -> list[Tensor]:
        """Run a module on a batch.

        Raises:
            SourceError: it refused the batch.
        """
        given = iter(batch.inputs)
        args, kwargs = tree_map(lambda leaf: next(given) if isinstance(leaf, Tensor) else leaf, self.call)
        try:
            return list(tensors_in((module(*args, **kwargs),)))
        except MemfitError:
            raise
        except Exception as error:
            raise SourceError(
                f"the model failed on the data: {said(error)}",
                where=self.data.name,
                received=", ".join(format_shape(tuple(t.shape)) for t in batch.inputs),
                todo="check the data, or give --input",
            ) from error

    def labels(self, batch: Batch, output: Tensor) -> Tensor:
        """Give a batch's labels, for outputs of one score per class.

        Raises:
            UsageError: there are none, or the outputs are not scores.
        """
        if batch.labels is None:
            raise UsageError(
                f"the metric {self.name} needs labels, and the data has none",
                where="--data",
                received=self.data.name,
                todo="give (inputs, labels), or use --metric sqnr",
            )
        if output.dim() < 2 or output.shape[0] != batch.labels.shape[0]:
            raise UsageError(
                f"the metric {self.name} is for a classifier, whose output has one score per class",
                where="--metric",
                received=f"an output of {format_shape(tuple(output.shape))}",
                todo="use --metric sqnr, or FILE.py:CALLABLE, which is given the module",
            )
        return fitting(output, batch.labels).long()


def _accuracy(scorer: Scorer, module: nn.Module) -> float:
    right = count = 0
    for batch in scorer.data:
        output = scorer.outputs(module, batch)[0]
        labels = scorer.labels(batch, output)
        found = output.argmax(1) == labels
        right, count = right + int(found.sum()), count + found.numel()
    return right / count


def _loss(scorer: Scorer, module: nn.Module) -> float:
    total, count = 0.0, 0
    for batch in scorer.data:
        output = scorer.outputs(module, batch)[0]
        labels = scorer.labels(batch, output)
        total += float(functional.cross_entropy(output.double(), labels, reduction="sum"))
        count += labels.numel()
    return total / count


def _sqnr(scorer: Scorer, module: nn.Module) -> float:
    signal = noise = 0.0
    for batch in scorer.data:
        wanted = scorer.outputs(scorer.reference, batch)
        got = scorer.outputs(module, batch)
        for one, other in zip(wanted, got, strict=True):
            if one.is_floating_point():
                signal += float(one.double().square().sum())
                noise += float((one.double() - other.double()).square().sum())
    if not noise:
        return math.inf
    return 10 * math.log10(signal / noise) if signal else -math.inf


_SCORES: dict[str, Callable[[Scorer, nn.Module], float]] = {"accuracy": _accuracy, "loss": _loss, "sqnr": _sqnr}


def _own(metric: Callable[[nn.Module], Any], module: nn.Module, name: str) -> float:
    found = called(metric, module, f"the metric {name}")
    try:
        value = float(found)
    except (TypeError, ValueError):
        value = math.nan
    if not math.isfinite(value):
        raise SourceError(
            "the metric does not give a finite number",
            where=name,
            received=f"{found!r:.60}",
            todo="return a float; the callable is given the module",
        )
    return value


def called(function: Callable[[nn.Module], Any], module: nn.Module, what: str) -> Any:
    """Call the user's own code with a module.

    Raises:
        SourceError: it failed.
    """
    try:
        return function(module)
    except MemfitError:
        raise
    except Exception as error:
        raise SourceError(
            f"{what} failed",
            where=getattr(function, "__name__", type(function).__name__),
            received=said(error),
            todo="run it by itself, or with --debug for the whole traceback",
        ) from error


def renew_statistics(scorer: Scorer, module: nn.Module) -> bool:
    """Measure the running mean and variance of every batch norm again, as the average over the data's batches.

    What is left of a pruned network has other means than the whole had; without this, accuracy falls to chance.

    Returns:
        Whether it was done: there are batch norms, and batches of more than one sample.
    """
    norms = [
        m for m in module.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm) and m.running_mean is not None
    ]
    kept = [(norm.momentum, {key: tensor.clone() for key, tensor in norm.named_buffers()}) for norm in norms]
    module.eval()
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # the plain average
        norm.train()
    done = False
    with torch.no_grad():
        for batch in scorer.data if norms else ():
            if batch.samples > 1:
                scorer.outputs(module, batch)
                done = True
    for norm, (momentum, buffers) in zip(norms, kept, strict=True):
        norm.momentum = momentum
        for key, tensor in norm.named_buffers():
            if not done or key == "num_batches_tracked":
                tensor.copy_(buffers[key])
    module.eval()
    return done


def taylor_gradients(scorer: Scorer, module: nn.Module) -> bool:
    """Run backward over the data, so that every parameter holds the gradient of the loss.

    The loss is the cross-entropy with the labels, or without labels the mean square of the outputs.

    Returns:
        Whether there were labels.
    """
    labelled = False
    module.zero_grad()
    for batch in scorer.data:
        with torch.enable_grad():
            outputs = scorer.outputs(module, batch)
            labelled = batch.labels is not None and not batch.labels.is_floating_point()
            if labelled:
                loss = functional.cross_entropy(outputs[0], scorer.labels(batch, outputs[0]))
            else:
                loss = _mean_square(outputs)
            loss.backward()  # type: ignore[no-untyped-call]
    return labelled


def _mean_square(outputs: Iterable[Tensor]) -> Tensor:
    return torch.stack([t.square().mean() for t in outputs if t.is_floating_point()]).sum()
