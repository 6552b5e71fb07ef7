"""What a capture changes around a run, and puts back."""

from __future__ import annotations

import gc
import operator
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

from memfit.capture.phantom import like
from memfit.capture.recording import tensors_in
from memfit.capture.tracer import Tracer

_OWN = frozenset(vars(nn.Module()))
"""Attributes that every module has."""


@contextmanager
def unchanged(tracer: Tracer) -> Iterator[None]:
    """Put back every attribute, parameter and buffer that the capture or the model's own forward replaced.

    So too what a module keeps in a dict or list of its own: a cache filled here would hold tensors without bytes.
    """
    kept: list[tuple[dict[Any, Any], dict[Any, Any]]] = []
    lists: list[tuple[list[Any], list[Any]]] = []
    for _, module in tracer.modules:
        attributes = vars(module)
        kept += [(members, dict(members)) for members in (attributes, module._parameters, module._buffers)]
        for name in attributes.keys() - _OWN:
            value = attributes[name]
            if isinstance(value, dict):
                kept.append((value, dict(value)))
            elif isinstance(value, list):
                lists.append((value, list(value)))
    try:
        yield
    finally:
        for members, before in kept:
            if len(members) != len(before) or not all(map(operator.is_, members.values(), before.values())):
                members.clear()
                members.update(before)
        for items, earlier in lists:
            if len(items) != len(earlier) or not all(map(operator.is_, items, earlier)):
                items[:] = earlier


def set_mode(tracer: Tracer, training: bool) -> None:
    """Put the model in training or evaluation mode."""
    for _, module in tracer.modules:
        if module.training is not training:
            module.training = training


def bring_to_cpu(tracer: Tracer) -> None:
    """Let phantoms stand in for parameters and buffers that are not on the CPU."""
    stand_ins: dict[int, Tensor] = {}
    for _, module in tracer.modules:
        for members in (module._parameters, module._buffers):
            for name, tensor in members.items():
                if tensor is not None and tensor.device.type != "cpu":
                    stand_in = stand_ins.get(id(tensor))
                    if stand_in is None:
                        stand_in = like(tensor.detach())
                        if isinstance(tensor, nn.Parameter):
                            stand_in = nn.Parameter(stand_in, requires_grad=tensor.requires_grad)
                        stand_ins[id(tensor)] = stand_in
                    members[name] = stand_in


@contextmanager
def kept_gradients(model: nn.Module) -> Iterator[None]:
    """Capture with no gradients present, as a first step has it, and put back the ones there were."""
    kept = [(p, p.grad) for p in model.parameters() if p.grad is not None]
    for parameter, _ in kept:
        parameter.grad = None
    try:
        yield
    finally:
        for parameter in model.parameters():
            if parameter.grad is not None:
                parameter.grad = None
        for parameter, gradient in kept:
            parameter.grad = gradient


@contextmanager
def scoped_calls(tracer: Tracer) -> Iterator[None]:
    """Keep the tracer's scope at the module whose call is running."""
    index_of = {id(module): index for index, (_, module) in enumerate(tracer.modules)}
    original = nn.Module.__call__

    def call(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        outer = tracer.scope
        tracer.scope = index_of.get(id(self), outer)
        tracer.calling += 1
        try:
            result = original(self, *args, **kwargs)
        except Exception:
            if tracer.failure is None:
                tracer.failure = ("forward", tracer.scope, tuple(tuple(t.shape) for t in tensors_in(args)))
            raise
        finally:
            tracer.calling -= 1
        tracer.scope = outer
        return result

    nn.Module.__call__ = call  # type: ignore[method-assign]
    try:
        yield
    finally:
        nn.Module.__call__ = original  # type: ignore[method-assign]


@contextmanager
def without_collection() -> Iterator[None]:
    """Hold off cyclic garbage collection, so that lifetimes do not depend on when it happens to run.

    What was made meanwhile then joins the old generation unseen: a graph is all long-lived, and searching it at once
    would take longer than making it.
    """
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if gc.get_freeze_count() == 0:
            gc.freeze()
            gc.unfreeze()
        if enabled:
            gc.enable()
