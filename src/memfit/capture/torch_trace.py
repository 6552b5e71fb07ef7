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
from memfit.capture.cuda import Cuda, as_cuda
from memfit.capture.dynamo import without_dynamo
from memfit.capture.recording import tensors_in
from memfit.capture.shim import operators_present
from memfit.capture.step import Carried, Step, run
from memfit.capture.tracer import Tracer
from memfit.capture.worst_case import guarded_reads
from memfit.errors import CaptureError, MemfitError, said
from memfit.graph.model import BEFORE, Graph, Op, Scope, Storage, StorageKind
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
    autocast: torch.dtype | None = None,
    checkpoint: Sequence[str] = (),
    steady: bool = False,
    accumulating: bool = False,
    carried: Carried | None = None,
    cuda: Cuda | None = None,
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
        autocast: lower precision of autocast; None runs without it.
        checkpoint: paths of the modules whose activations backward computes again.
        steady: the optimizer's state exists before the step, as in every step but the first.
        accumulating: gradients exist before the step, as in every micro-batch but the first.
        carried: what exists before a run of inference and after it, such as a language model's cache.
        cuda: trace what that GPU would run; None traces the CPU.
        strict: False gives operations that the op table lacks the kind `unknown` and no MACs, with a note.

    Raises:
        CaptureError: the model refused its input; names the module that did.
        DataDependentError: the model's control flow needs values; names the line.
        UnsupportedOp: an operation that the op table lacks.
    """
    kwargs = dict(kwargs or {})
    step = Step(training, loss, optimizer, autocast, tuple(checkpoint), steady, accumulating, carried)
    tracer = Tracer(model, cuda)
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
        if cuda is not None:
            stack.enter_context(as_cuda(tracer, cuda, autocast=autocast is not None))
        outputs = _run(tracer, model, args, kwargs, step)
        output_ids = [tracer.tensor_id(t) for t in tensors_in((outputs,))]
        return _graph(tracer, scopes, inputs, output_ids, source=source, training=training, strict=strict)


def _run(tracer: Tracer, model: nn.Module, args: Sequence[Any], kwargs: dict[str, Any], step: Step) -> Any:
    """Run the step under the tracer and return the model's outputs."""
    try:
        return run(tracer, model, args, kwargs, step)
    except MemfitError:
        raise
    except Exception as error:
        raise _refusal(tracer, model, error) from error


def _refusal(tracer: Tracer, model: nn.Module, error: Exception) -> CaptureError:
    """Say which module refused, and what it got."""
    received = "an error outside of any operation"
    where = type(model).__name__
    if tracer.failure is not None:
        target, scope, shapes = tracer.failure
        path, module = tracer.modules[scope]
        where = f"{path or '(root)'} ({type(module).__name__})"
        received = f"{' and '.join(format_shape(s) for s in shapes) or 'no tensors'}, in {target}"
    return CaptureError(
        f"the model failed on this input: {said(error)}",
        where=where,
        received=received,
        todo="check the input's shape and dtype (--input 1x3x224x224, or 1x128:int64 for token ids)",
    )


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
    kept = {tensors[t].storage for t in outputs} | tracer.leaving
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
        environment=environment(tracer.cuda),
        notes=tuple(notes),
        constants=tracer.constants,
        host=tuple(sorted(tracer.host)),
    )
    verify(graph)
    return graph


_LASTING = {StorageKind.PARAMETER, StorageKind.BUFFER, StorageKind.GRADIENT, StorageKind.OPTIMIZER}


def environment(cuda: Cuda | None = None) -> dict[str, Any]:
    """What a capture depends on: device, threads, instruction set and versions."""
    versions = {"torch": str(torch.__version__), "python": sys.version.split()[0]}
    if cuda is not None:
        return {"device": "cuda", "capability": cuda.name, **versions}
    return {
        "device": "cpu",
        "threads": torch.get_num_threads(),
        "isa": torch.backends.cpu.get_cpu_capability(),
        **versions,
    }
