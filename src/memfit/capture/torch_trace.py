"""Capture of PyTorch modules: one run under the tracer, inference or a training step, becomes a verified graph."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn

from memfit.capture.contexts import (
    bring_to_cpu,
    kept_gradients,
    scoped_calls,
    set_mode,
    unchanged,
    without_collection,
)
from memfit.capture.dynamo import without_dynamo
from memfit.capture.recording import tensors_in
from memfit.capture.shim import operators_present
from memfit.capture.tracer import Tracer
from memfit.capture.worst_case import guarded_reads
from memfit.errors import CaptureError, MemfitError
from memfit.graph.model import BEFORE, Graph, Op, Phase, Scope, Storage, StorageKind
from memfit.graph.optable import describe
from memfit.graph.verify import verify
from memfit.units import format_shape


def capture_module(
    model: nn.Module,
    args: Sequence[Any] = (),
    kwargs: Mapping[str, Any] | None = None,
    *,
    training: bool = False,
    loss: Callable[[Any], Tensor] | None = None,
    optimizer: Callable[[Any], Any] | None = None,
    source: str = "",
    input_names: Sequence[str] | None = None,
    strict: bool = True,
) -> Graph:
    """Run a model once on phantom tensors and return its graph.

    Args:
        model: any module; its parameters are neither read nor changed, and may be on the meta device.
        args: positional inputs, tensors of any nesting.
        kwargs: keyword inputs.
        training: also run the loss and backward, in training mode; autograd's saved tensors are recorded.
        loss: outputs → scalar tensor; without it, cross entropy for class scores, else the sum of all outputs' means.
        optimizer: parameters → optimizer, to run one `step()` too.
        source: what the user named, kept in the graph.
        input_names: names of the tensors among the inputs, in order.
        strict: False gives operations that the op table lacks the kind `unknown` and no MACs, with a note.

    Raises:
        CaptureError: the model refused its input; names the module that did.
        DataDependentError: the model's control flow needs values; names the line.
        UnsupportedOp: an operation that the op table lacks.
    """
    kwargs = dict(kwargs or {})
    tracer = Tracer(model)
    with ExitStack() as stack:
        stack.enter_context(unchanged(tracer))
        set_mode(tracer, training)
        bring_to_cpu(tracer)
        scopes = _register_state(tracer)
        inputs = _register_inputs(tracer, (args, kwargs), input_names)
        stack.enter_context(scoped_calls(tracer))
        stack.enter_context(without_collection())
        stack.enter_context(kept_gradients(model))
        stack.enter_context(operators_present())
        stack.enter_context(without_dynamo())
        stack.enter_context(guarded_reads())
        outputs = _run(tracer, model, args, kwargs, training=training, loss=loss, optimizer=optimizer)
        output_ids = [tracer.tensor_id(t) for t in tensors_in((outputs,))]
        return _graph(tracer, scopes, inputs, output_ids, source=source, training=training, strict=strict)


def _run(
    tracer: Tracer,
    model: nn.Module,
    args: Sequence[Any],
    kwargs: dict[str, Any],
    *,
    training: bool,
    loss: Callable[[Any], Tensor] | None,
    optimizer: Callable[[Any], Any] | None,
) -> Any:
    """Run the step under the tracer and return the model's outputs."""
    try:
        if not training:
            with torch.no_grad(), tracer:
                return model(*args, **kwargs)
        with torch.enable_grad():
            opt = optimizer([p for p in model.parameters() if p.requires_grad]) if optimizer else None
            with tracer, torch.autograd.graph.saved_tensors_hooks(tracer.pack, _identity):
                outputs = model(*args, **kwargs)
                tracer.phase = Phase.LOSS
                tracer.scope = 0
                value = (loss or default_loss)(outputs)
            if not value.requires_grad:
                raise CaptureError(
                    "the loss does not depend on any trainable parameter, so there is no backward pass",
                    where=type(model).__name__,
                    todo="profile inference, or unfreeze parameters",
                )
            tracer.phase = Phase.BACKWARD
            with tracer:
                value.backward()  # type: ignore[no-untyped-call]
                del value
                _mark(tracer, (p.grad for p in model.parameters()), StorageKind.GRADIENT)
                if opt is not None:
                    tracer.phase = Phase.STEP
                    opt.step()
                    states = (v for state in opt.state.values() for v in state.values() if isinstance(v, Tensor))
                    _mark(tracer, states, StorageKind.OPTIMIZER)
            return outputs
    except MemfitError:
        raise
    except Exception as error:
        raise _refusal(tracer, model, error) from error


def _identity(value: Any) -> Any:
    return value


def _refusal(tracer: Tracer, model: nn.Module, error: Exception) -> CaptureError:
    """Say which module refused, and what it got."""
    received = None
    where = type(model).__name__
    if tracer.failure is not None:
        target, scope, shapes = tracer.failure
        path, module = tracer.modules[scope]
        where = f"{path or '(root)'} ({type(module).__name__})"
        received = f"{' and '.join(format_shape(s) for s in shapes) or 'no tensors'}, in {target}"
    message = str(error).strip().splitlines() or [type(error).__name__]
    return CaptureError(
        f"the model failed on this input: {type(error).__name__}: {message[0]}",
        where=where,
        received=received,
        todo="check the input's shape and dtype (--input 1x3x224x224, or 1x128:int64 for token ids)",
    )


def default_loss(outputs: Any) -> Tensor:
    """Cross entropy for class scores of shape (N, classes), else the sum of the means of all floating outputs."""
    tensors = [t for t in tensors_in((outputs,)) if t.is_floating_point() and t.requires_grad]
    if not tensors:
        raise CaptureError(
            "the model's outputs hold no tensor with a gradient, so there is nothing to train on",
            todo="pass a loss function of the outputs",
        )
    if len(tensors) == 1 and tensors[0].dim() == 2:
        scores = tensors[0]
        return nn.functional.cross_entropy(scores, torch.zeros(scores.shape[0], dtype=torch.int64))
    total = tensors[0].mean()
    for tensor in tensors[1:]:
        total = total + tensor.mean()
    return total


def _mark(tracer: Tracer, tensors: Any, kind: StorageKind) -> None:
    for tensor in tensors:
        if tensor is not None:
            sid = tracer._sids.get(tensor.untyped_storage()._cdata)
            if sid is not None and tracer.births[sid] != BEFORE:
                tracer.kinds[sid] = kind


def _register_state(tracer: Tracer) -> list[Scope]:
    """Number the parameters, buffers and modules; a tied tensor is numbered once, under its first name."""
    scopes: list[Scope] = []
    index_of: dict[str, int] = {}
    for index, (path, module) in enumerate(tracer.modules):
        index_of[path] = index
        parent = index_of.get(path.rpartition(".")[0], 0) if path else -1
        prefix = f"{path}." if path else ""
        own: list[tuple[int, ...]] = []
        for members, kind in ((module._parameters, StorageKind.PARAMETER), (module._buffers, StorageKind.BUFFER)):
            ids = []
            for name, tensor in members.items():
                if tensor is None:
                    continue
                if tensor.untyped_storage()._cdata not in tracer._sids:
                    tracer.add_storage(tensor, kind, BEFORE)
                ids.append(tracer.tensor_id(tensor, name=prefix + name, trainable=tensor.requires_grad))
            own.append(tuple(ids))
        container = isinstance(module, nn.Sequential | nn.ModuleList)
        scopes.append(Scope(index, path, type(module).__name__, parent, container, own[0], own[1]))
    return scopes


def _register_inputs(tracer: Tracer, inputs: Any, names: Sequence[str] | None) -> list[int]:
    ids = []
    for position, tensor in enumerate(tensors_in(inputs)):
        if tensor.untyped_storage()._cdata not in tracer._sids:
            tracer.add_storage(tensor, StorageKind.INPUT, BEFORE)
        name = names[position] if names and position < len(names) else f"input{position or ''}"
        ids.append(tracer.tensor_id(tensor, name=name))
    return ids


def _graph(
    tracer: Tracer,
    scopes: list[Scope],
    inputs: list[int],
    outputs: list[int],
    *,
    source: str,
    training: bool,
    strict: bool,
) -> Graph:
    tensors = tuple(tracer.tensors)
    count = len(tracer.ops)
    last_use = list(tracer.births)
    notes = dict(tracer.notes)
    ops = []
    parameters = {s for s, kind in enumerate(tracer.kinds) if kind is StorageKind.PARAMETER}
    for index, raw in enumerate(tracer.ops):
        for tid in raw.inputs:
            last_use[tensors[tid].storage] = index
        for tid in raw.outputs:
            last_use[tensors[tid].storage] = index
        kind, attrs, macs = describe(raw, tensors, parameters, scopes, strict=strict)
        if kind == "unknown":
            notes[f"{raw.target} is not in the op table: its MACs are counted as 0"] = None
        ops.append(
            Op(
                index,
                kind,
                raw.target,
                raw.inputs,
                raw.outputs,
                attrs,
                raw.scope,
                tuple(tracer.saved.get(index, ())),
                macs,
                raw.phase,
                raw.args,
                raw.kwargs,
            )
        )
    kept = {tensors[t].storage for t in outputs}
    storages = tuple(
        Storage(
            sid,
            tracer.nbytes[sid],
            kind,
            tracer.births[sid],
            count
            if kind is not StorageKind.ACTIVATION and tracer.births[sid] == BEFORE
            else tracer.deaths.get(sid, count),
            count if sid in kept or kind in _LASTING else max(last_use[sid] + 1, tracer.births[sid] + 1, 0),
        )
        for sid, kind in enumerate(tracer.kinds)
    )
    graph = Graph(
        storages=storages,
        tensors=tensors,
        ops=tuple(ops),
        scopes=tuple(scopes),
        inputs=tuple(inputs),
        outputs=tuple(outputs),
        source=source,
        training=training,
        environment=environment(),
        notes=tuple(notes),
        constants=tracer.constants,
    )
    verify(graph)
    return graph


_LASTING = {StorageKind.PARAMETER, StorageKind.BUFFER, StorageKind.GRADIENT, StorageKind.OPTIMIZER}


def environment() -> dict[str, Any]:
    """What a capture depends on: device, threads, instruction set and versions."""
    return {
        "device": "cpu",
        "threads": torch.get_num_threads(),
        "isa": torch.backends.cpu.get_cpu_capability(),
        "torch": str(torch.__version__),
        "python": sys.version.split()[0],
    }
