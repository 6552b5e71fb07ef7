"""One run of a model under the tracer: inference, or a training step as people write it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from memfit.capture.phantom import is_phantom, like
from memfit.capture.recording import tensors_in
from memfit.capture.tracer import Tracer
from memfit.errors import CaptureError
from memfit.graph.model import BEFORE, Phase, StorageKind
from memfit.memory.kv_cache import PAST


class Carried(Protocol):
    """What an inference run takes over from an earlier one and leaves to the next: a language model's cache."""

    def prepare(self) -> None:
        """Run what comes earlier; it is not recorded."""

    def held(self) -> Mapping[str, Tensor]:
        """Give what is held now, by name."""

    def fixed(self) -> Iterable[Tensor]:
        """Give the small tensors beside, which are there all along."""

    def check_filled(self) -> None:
        """Raise where a run left nothing."""


@dataclass(frozen=True)
class Step:
    """How a model is run.

    A training step is: outputs of the model, the loss of them, backward, and the optimizer's step where there is one.
    Outputs and loss are in autocast where it is on; the step ends with the outputs and gradients still held.
    """

    training: bool = False
    """Run loss and backward too, in training mode."""
    loss: Callable[[Any], Tensor] | None = None
    """Outputs → scalar; None chooses as `default_loss` does."""
    optimizer: Callable[[Any], Any] | None = None
    """Parameters → optimizer, whose `step()` is run."""
    autocast: torch.dtype | None = None
    """Autocast's lower precision; None runs without it."""
    checkpoint: tuple[str, ...] = ()
    """Paths of the modules whose activations are computed again in backward."""
    steady: bool = False
    """The optimizer's state exists before the step, as in every step but the first."""
    accumulating: bool = False
    """Gradients exist before the step, as in every micro-batch but the first."""
    carried: Carried | None = None
    """What exists before a run of inference and after it."""


def run(tracer: Tracer, model: nn.Module, args: Sequence[Any], kwargs: Mapping[str, Any], step: Step) -> Any:
    """Run the step under the tracer and return the model's outputs."""
    if not step.training:
        with torch.no_grad():
            if step.carried is not None:
                _take_over(tracer, step.carried, step.autocast)
            with tracer, _autocast(step.autocast):
                outputs = model(*args, **kwargs)
            if step.carried is not None:
                _leave(tracer, step.carried)
            return outputs
    with torch.enable_grad(), checkpointed(tracer, step.checkpoint):
        parameters = [p for p in model.parameters() if p.requires_grad]
        optimizer = _made(tracer, step.optimizer, parameters) if step.optimizer else None
        if optimizer is not None and step.steady:
            _take_a_step(tracer, optimizer, parameters)
        if step.accumulating:
            for parameter in parameters:
                parameter.grad = like(parameter.detach())
            _exist(tracer, (p.grad for p in parameters if p.grad is not None), StorageKind.GRADIENT)
        with tracer, torch.autograd.graph.saved_tensors_hooks(tracer.pack, _identity), _autocast(step.autocast):
            outputs = model(*args, **kwargs)
            tracer.phase = Phase.LOSS
            tracer.scope = 0
            value = (step.loss or default_loss)(outputs)
        if not value.requires_grad:
            raise CaptureError(
                "the loss does not depend on any trainable parameter, so there is no backward pass",
                where=type(model).__name__,
                received="a loss without a gradient",
                todo="profile inference, or unfreeze parameters",
            )
        tracer.phase = Phase.BACKWARD
        with tracer:
            value.backward()  # type: ignore[no-untyped-call]
            del value
            tracer.mark((p.grad for p in model.parameters() if p.grad is not None), StorageKind.GRADIENT)
            if optimizer is not None:
                tracer.phase = Phase.STEP
                optimizer.step()
                tracer.mark(_states(optimizer), StorageKind.OPTIMIZER)
        return outputs


def default_loss(outputs: Any) -> Tensor:
    """Cross entropy for class scores of shape (N, classes), else the sum of the means of all floating outputs."""
    tensors = [t for t in tensors_in((outputs,)) if t.is_floating_point() and t.requires_grad]
    if not tensors:
        raise CaptureError(
            "the model's outputs hold no tensor with a gradient, so there is nothing to train on",
            where="the loss",
            received="outputs without a floating tensor that depends on a parameter",
            todo="pass a loss function of the outputs",
        )
    if len(tensors) == 1 and tensors[0].dim() == 2:
        scores = tensors[0]
        return nn.functional.cross_entropy(scores, torch.zeros(scores.shape[0], dtype=torch.int64))
    total = tensors[0].mean()
    for tensor in tensors[1:]:
        total = total + tensor.mean()
    return total


@contextmanager
def checkpointed(tracer: Tracer, paths: Iterable[str]) -> Iterator[None]:
    """Let `torch.utils.checkpoint` run the modules at these paths, as `use_reentrant=False` does.

    Their `forward` is put back by `contexts.unchanged`, which guards every attribute of a module.
    """
    modules = dict(tracer.modules)
    for path in paths:
        module = modules[path]
        module.forward = _Checkpointed(module.forward)
    yield


class _Checkpointed:
    """A module's forward behind a checkpoint."""

    def __init__(self, forward: Callable[..., Any]) -> None:
        self.forward = forward

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return checkpoint(self.forward, *args, use_reentrant=False, **kwargs)


@contextmanager
def _autocast(dtype: torch.dtype | None) -> Iterator[None]:
    if dtype is None:
        yield
    else:
        with torch.autocast("cpu", dtype=dtype):
            yield


def _identity(value: Any) -> Any:
    return value


def _states(optimizer: Any) -> list[Tensor]:
    return [v for state in optimizer.state.values() for v in state.values() if isinstance(v, Tensor)]


def _made(tracer: Tracer, make: Callable[[Any], Any], parameters: list[Any]) -> Any:
    """Make the optimizer, and register the state that some have from the start, such as Adagrad."""
    if not parameters:
        raise CaptureError(
            "the model has no trainable parameter, so there is nothing to train",
            where=type(tracer.modules[0][1]).__name__,
            received="parameters that are all frozen, or none",
            todo="profile inference, or unfreeze parameters",
        )
    with tracer.unrecorded() as other:
        optimizer = make(parameters)
    _register_states(tracer, other, optimizer)
    return optimizer


def _take_a_step(tracer: Tracer, optimizer: Any, parameters: list[Any]) -> None:
    """Take one step that nobody records, and register the state that it leaves."""
    for parameter in parameters:
        parameter.grad = like(parameter.detach())
    with tracer.unrecorded() as other:
        optimizer.step()
    for parameter in parameters:
        parameter.grad = None
    _register_states(tracer, other, optimizer)


def _register_states(tracer: Tracer, other: Tracer, optimizer: Any) -> None:
    states = [state for state in _states(optimizer) if not tracer.knows(state)]
    _exist(tracer, states, StorageKind.OPTIMIZER)
    for state in states:
        if other.is_on_host(state):
            tracer.keep_on_host(state)
        if not is_phantom(state):
            tracer.know(state)


def _take_over(tracer: Tracer, carried: Carried, autocast: torch.dtype | None) -> None:
    """Run what comes earlier, and register what it leaves."""
    with tracer.unrecorded(Phase.FORWARD) as other, _autocast(autocast):
        carried.prepare()
    _exist(tracer, carried.fixed(), StorageKind.CONSTANT)
    held = carried.held()
    _exist(tracer, held.values(), StorageKind.ACTIVATION)
    for name, tensor in held.items():
        tracer.name(tensor, PAST + name)
        if other.is_on_host(tensor):
            tracer.keep_on_host(tensor)


def _leave(tracer: Tracer, carried: Carried) -> None:
    """Name what is held after the run, and hold it to the end."""
    carried.check_filled()
    for name, tensor in carried.held().items():
        tracer.name(tensor, name)
        tracer.leaves(tensor)


def _exist(tracer: Tracer, tensors: Iterable[Tensor], kind: StorageKind) -> None:
    """Register tensors that exist before the step."""
    for tensor in tensors:
        if not tracer.knows(tensor):
            tracer.add_storage(tensor, kind, BEFORE)
        tracer.tensor_id(tensor)
