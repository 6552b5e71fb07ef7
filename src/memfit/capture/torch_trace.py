"""The tracer: one run of a PyTorch model on phantom tensors gives the graph.

No weight is allocated and nothing is computed, except on small tensors made from constants, so that Python control
flow on them stays true. Every operation reaches the tracer by PyTorch's own CPU dispatch; a weak reference on each
storage tells when Python dropped it, which is its eager lifetime.
"""

from __future__ import annotations

import base64
import gc
import operator
import sys
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import fields, is_dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from memfit.capture import worst_case
from memfit.capture.phantom import is_phantom, like, numel, run_on_meta
from memfit.capture.shape_rules import SHAPE_RULES
from memfit.capture.shim import operators_present
from memfit.errors import CaptureError, MemfitError
from memfit.graph.model import BEFORE, Graph, Op, Phase, Ref, Scope, Storage, StorageKind, Symbol
from memfit.graph.model import Tensor as Value
from memfit.graph.optable import describe
from memfit.graph.verify import verify
from memfit.units import format_shape

aten = torch.ops.aten

KNOWN_LIMIT = 1 << 16
"""Elements up to which a tensor made from constants is really computed, so that its values can steer Python code."""

_CONSTANT_LIMIT = 1 << 20
"""Bytes up to which a literal's values are kept in the graph for replay."""

_RANDOM = {
    "rand", "randn", "randint", "randperm", "rand_like", "randn_like", "randint_like", "bernoulli", "multinomial",
    "normal", "native_dropout", "poisson", "uniform", "exponential",
}  # fmt: skip
_NATIVE_VIEWS = {"_unsafe_view", "_reshape_alias", "detach", "alias", "lift"}


_PLAIN = frozenset((int, float, bool, str, type(None)))


class _RawOp(NamedTuple):
    """An operation as recorded, before its kind and MACs are looked up."""

    target: str
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    scope: int
    phase: Phase
    backend: str | None


class _StorageRef(weakref.ref):  # type: ignore[type-arg]
    """A weak reference on a storage that knows its number."""

    __slots__ = ("cdata", "sid")
    cdata: int
    sid: int


class Tracer(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Records every operation that reaches the dispatcher while it is active."""

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # True imports torch._dynamo at the first operation: more than a second, for nothing

    def __init__(self, model: nn.Module) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.modules = list(model.named_modules())
        self.ops: list[_RawOp] = []
        self.saved: dict[int, list[int]] = {}
        self.tensors: list[Value] = []
        self.nbytes: list[int] = []
        self.kinds: list[StorageKind] = []
        self.births: list[int] = []
        self.deaths: dict[int, int] = {}
        self.notes: dict[str, None] = {}
        self.constants: dict[int, str] = {}
        self.phase = Phase.FORWARD
        self.scope = 0
        self.failure: tuple[str, int, tuple[tuple[int, ...], ...]] | None = None
        self._sids: dict[int, int] = {}
        self._versions: list[int] = []
        self._tids: dict[tuple[Any, ...], int] = {}
        self._refs: dict[int, _StorageRef] = {}
        self._held: list[torch.UntypedStorage] = []
        self._known: set[int] = set()
        self._handlers: dict[Any, Callable[[Any, tuple[Any, ...], dict[str, Any]], Any]] = {}
        self._mutated: dict[Any, tuple[tuple[int, str], ...]] = {}
        self._meta_answers: dict[Any, Any] = {}
        self._pending_saved: list[int] = []
        self._last_sequence = -1
        self._scope_of_node: dict[int, int] = {}
        self._extra_tensors: dict[int, str] | None = None

    # -- storages and tensors -------------------------------------------------------------------------------------

    def add_storage(self, tensor: Tensor, kind: StorageKind, birth: int) -> int:
        """Register a tensor's storage under a new number, and watch for its end if an operation made it."""
        storage = tensor.untyped_storage()
        sid = len(self.nbytes)
        self.nbytes.append(storage.nbytes())
        self.kinds.append(kind)
        self.births.append(birth)
        self._versions.append(0)
        cdata = storage._cdata
        self._sids[cdata] = sid
        if birth == BEFORE:
            self._held.append(storage)  # a model may drop a buffer; its address must not be taken for another's
            return sid
        ref = _StorageRef(storage, self._on_death)
        ref.cdata = cdata
        ref.sid = sid
        self._refs[sid] = ref
        return sid

    def _on_death(self, ref: Any) -> None:
        sid = ref.sid
        self.deaths[sid] = len(self.ops)
        if self._sids.get(ref.cdata) == sid:
            del self._sids[ref.cdata]
        self._refs.pop(sid, None)

    def tensor_id(self, tensor: Tensor, *, name: str | None = None, trainable: bool = False) -> int:
        """Number of the value that a tensor holds now: a window on one version of one storage."""
        sid = self._sids.get(tensor.untyped_storage()._cdata)
        if sid is None:
            sid = self._unseen(tensor)
        shape, strides, offset, dtype = tensor.shape, tensor.stride(), tensor.storage_offset(), tensor.dtype
        version = self._versions[sid]
        key = (sid, version, shape, strides, offset, dtype, dtype.is_complex and tensor.is_conj())
        tid = self._tids.get(key)
        if tid is None:
            tid = self._tids[key] = len(self.tensors)
            self.tensors.append(
                Value(tid, sid, tuple(shape), strides, _dtype_name(dtype), int(offset), version, name, trainable)
            )
        return tid

    def _unseen(self, tensor: Tensor) -> int:
        """Register a tensor that no operation made: an attribute of a module, or a value closed over."""
        if self._extra_tensors is None:
            self._extra_tensors = {}
            for path, module in self.modules:
                for attribute, value in vars(module).items():
                    if isinstance(value, Tensor):
                        self._extra_tensors[value.untyped_storage()._cdata] = f"{path}.{attribute}".lstrip(".")
        name = self._extra_tensors.get(tensor.untyped_storage()._cdata)
        sid = self.add_storage(tensor, StorageKind.BUFFER if name else StorageKind.CONSTANT, BEFORE)
        tid = self.tensor_id(tensor, name=name)
        if name is None:
            self._keep_constant(tid, tensor)
        return sid

    def _keep_constant(self, tid: int, tensor: Tensor) -> None:
        if not is_phantom(tensor) and tensor.numel() * tensor.element_size() <= _CONSTANT_LIMIT:
            raw = bytes(tensor.detach().contiguous().reshape(-1).view(torch.uint8).tolist())
            self.constants[tid] = base64.b64encode(raw).decode()

    # -- dispatch -------------------------------------------------------------------------------------------------

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Answer one operation and record it."""
        handler = self._handlers.get(func)
        if handler is None:
            handler = self._handlers[func] = self._handler_of(func)
        try:
            return handler(func, args, kwargs or {})
        except MemfitError:
            raise
        except Exception:
            if self.failure is None:
                shapes = tuple(tuple(t.shape) for t in _tensors_in(args))
                self.failure = (_target(func), self.scope, shapes)
            raise

    def _handler_of(self, func: Any) -> Callable[[Any, tuple[Any, ...], dict[str, Any]], Any]:
        """Choose how to answer an operation, from its schema; made once per operation and trace."""
        schema = func._schema
        namespace, _, name = schema.name.partition("::")
        if namespace == "profiler":  # marks for the profiler, which touch no tensor
            return lambda func, args, kwargs: func(*args, **kwargs)
        if func in (aten._local_scalar_dense.default, aten.equal.default):
            return self._answer_value
        if func is aten.lift_fresh.default:
            return self._answer_literal
        if name in _NATIVE_VIEWS or func.is_view or torch.Tag.inplace_view in func.tags:
            return self._answer_view
        if schema.is_mutable:
            self._mutated[func] = tuple(
                (i, a.name)
                for i, a in enumerate(schema.arguments)
                if a.alias_info is not None and a.alias_info.is_write
            )
            return self._answer_mutation
        return self._answer_random if name in _RANDOM else self._answer_result

    def _answer_view(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        inputs: list[int] = []
        recorded, recorded_kwargs = self._encode(args, inputs), self._encode_kwargs(kwargs, inputs)
        result = func(*args, **kwargs)  # only metadata changes, so this is safe on tensors without bytes
        outputs = tuple(self.tensor_id(t) for t in ((result,) if isinstance(result, Tensor) else result))
        if outputs != (inputs[0],):
            self._record(func, recorded, recorded_kwargs, inputs, outputs)
        return result

    def _answer_literal(self, func: Any, args: tuple[Any, ...], _kwargs: dict[str, Any]) -> Any:
        tensor = args[0]
        if tensor.untyped_storage()._cdata not in self._sids:
            sid = self.add_storage(tensor, StorageKind.CONSTANT, len(self.ops))
            tid = self.tensor_id(tensor)
            self._known.add(sid)
            self._keep_constant(tid, tensor)
            self._record(func, (), {}, [], (tid,))
        return tensor

    def _answer_value(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Answer an operation whose result is a Python value: truly where the values exist, else as stated."""
        inputs: list[int] = []
        self._encode(args, inputs)
        if all(self._has_values(t) for t in _tensors_in(args)):
            return func(*args, **kwargs)
        return self._ask_worst_case(func, args, kwargs)

    def _has_values(self, tensor: Tensor) -> bool:
        sid = self._sids[tensor.untyped_storage()._cdata]
        if sid in self._known:
            return True
        return (
            self._versions[sid] == 0
            and self.births[sid] == BEFORE
            and not is_phantom(tensor)
            and (tensor.device.type == "cpu")
        )

    def _ask_worst_case(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        answer = worst_case.answer(func, args, kwargs)
        if answer is NotImplemented:
            return NotImplemented
        result, note = answer
        self.notes[note] = None
        return result

    def _answer_mutation(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        inputs: list[int] = []
        recorded, recorded_kwargs = self._encode(args, inputs), self._encode_kwargs(kwargs, inputs)
        written: list[Tensor] = []
        for position, name in self._mutated[func]:
            value = args[position] if position < len(args) else kwargs.get(name)
            written.extend(_tensors_in((value,)))
        sids = {self._sids[t.untyped_storage()._cdata] for t in written}
        if sids and sids <= self._known:
            if all(self._is_known(t) for t in _tensors_in((args, *kwargs.values()))):
                result = func(*args, **kwargs)
            else:
                self._known -= sids
                result = self._shapes_of(func, args, kwargs)
        else:
            self._known -= sids
            result = self._shapes_of(func, args, kwargs)
        for sid in sids:
            self._versions[sid] += 1
        outputs = [self.tensor_id(t) for t in written]
        index = len(self.ops)
        for tensor in _tensors_in((result,)):
            if tensor.untyped_storage()._cdata not in self._sids:
                self.add_storage(tensor, StorageKind.ACTIVATION, index)
            tid = self.tensor_id(tensor)
            if tid not in outputs:
                outputs.append(tid)
        self._record(func, recorded, recorded_kwargs, inputs, tuple(outputs))
        return result

    def _is_known(self, tensor: Tensor) -> bool:
        return self._sids.get(tensor.untyped_storage()._cdata) in self._known

    def _answer_random(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        return self._answer_fresh(func, args, kwargs, may_compute=False)

    def _answer_result(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        return self._answer_fresh(func, args, kwargs, may_compute=True)

    def _answer_fresh(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], *, may_compute: bool) -> Any:
        inputs: list[int] = []
        recorded, recorded_kwargs = self._encode(args, inputs), self._encode_kwargs(kwargs, inputs)
        tensors = self.tensors
        known = may_compute and all(tensors[i].storage in self._known for i in inputs)
        result = NotImplemented
        if known:
            result = self._compute(func, args, kwargs)
        computed = result is not NotImplemented
        if not computed:
            result = self._shapes_of(func, args, kwargs)
        index = len(self.ops)
        sids = self._sids
        outputs = []
        for tensor in (result,) if isinstance(result, Tensor) else _tensors_in((result,)):
            if tensor.untyped_storage()._cdata not in sids:
                sid = self.add_storage(tensor, StorageKind.ACTIVATION, index)
                if computed:
                    self._known.add(sid)
            outputs.append(self.tensor_id(tensor))
        backend = _conv_backend(args) if func is aten.convolution.default else None
        self._record(func, recorded, recorded_kwargs, inputs, tuple(outputs), backend=backend)
        return result

    def _compute(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Really run an operation on small tensors made from constants."""
        if any(t.numel() > KNOWN_LIMIT for t in _tensors_in((args, *kwargs.values()))):
            return NotImplemented
        if func is aten.empty.memory_format:
            if numel(args[0]) > KNOWN_LIMIT:
                return NotImplemented
            return aten.zeros.default(*args, **{k: v for k, v in kwargs.items() if k != "memory_format"})
        answer = worst_case.is_data_dependent(func)
        if not answer:
            try:
                shape = self._shapes_of(func, args, kwargs)
            except NotImplementedError:
                return NotImplemented
            if any(t.numel() > KNOWN_LIMIT for t in _tensors_in((shape,))):
                return NotImplemented
        return func(*args, **kwargs)

    def _shapes_of(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        rule = SHAPE_RULES.get(func)
        if rule is not None:
            result = rule(*args, **kwargs)
            if result is not NotImplemented:
                return result
        result = self._ask_worst_case(func, args, kwargs)
        if result is not NotImplemented:
            return result
        key = (func, _signature(args), _signature(tuple(sorted(kwargs.items()))) if kwargs else ())
        answers = self._meta_answers
        try:
            template = answers.get(key)
        except TypeError:  # an argument that cannot be hashed
            return run_on_meta(func, args, kwargs)
        if template is not None:
            return _copy_answer(template)
        result = run_on_meta(func, args, kwargs)
        if func not in self._mutated and _is_fresh(result, args):
            answers[key] = result
            return _copy_answer(result)  # a first run of a meta kernel may leave a reference behind
        return result

    def _encode(self, args: Sequence[Any], inputs: list[int]) -> tuple[Any, ...]:
        """Turn arguments into what a graph records, collecting the tensors' numbers."""
        recorded: list[Any] = []
        for value in args:
            if isinstance(value, Tensor):
                tid = self.tensor_id(value)
                inputs.append(tid)
                recorded.append(Ref(tid))
            elif type(value) in _PLAIN:
                recorded.append(value)
            elif isinstance(value, (list, tuple)):
                recorded.append(self._encode(value, inputs))
            else:
                recorded.append(_symbol(value))
        return tuple(recorded)

    def _encode_kwargs(self, kwargs: dict[str, Any], inputs: list[int]) -> dict[str, Any]:
        if not kwargs:
            return {}
        return dict(zip(kwargs, self._encode(tuple(kwargs.values()), inputs), strict=True))

    def _record(
        self,
        func: Any,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        inputs: list[int],
        outputs: tuple[int, ...],
        *,
        backend: str | None = None,
    ) -> None:
        scope = self.scope
        if self.phase is Phase.BACKWARD:
            node = torch._C._current_autograd_node()
            if node is not None:
                scope = self._scope_of_node.get(node._sequence_nr(), scope)
        else:
            sequence = torch._C._autograd._get_sequence_nr()
            if sequence != self._last_sequence:
                self._last_sequence = sequence
                self._scope_of_node[sequence - 1] = scope
        if self._pending_saved:
            self.saved[len(self.ops)] = self._pending_saved
            self._pending_saved = []
        self.ops.append(_RawOp(_target(func), args, kwargs, tuple(inputs), outputs, scope, self.phase, backend))

    def pack(self, tensor: Tensor) -> Tensor:
        """Note a tensor that autograd keeps: an input of the operation to come, or a result of the last one.

        A node's number is drawn before its inputs are kept, so an unchanged counter means a result.
        """
        tid = self.tensor_id(tensor)
        if self.ops and torch._C._autograd._get_sequence_nr() == self._last_sequence:
            self.saved.setdefault(len(self.ops) - 1, []).append(tid)
        else:
            self._pending_saved.append(tid)
        return tensor


# -- capture ------------------------------------------------------------------------------------------------------


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
        stack.enter_context(_unchanged(tracer))
        _set_mode(tracer, training)
        _bring_to_cpu(tracer)
        scopes = _register_state(tracer)
        inputs = _register_inputs(tracer, (args, kwargs), input_names)
        stack.enter_context(_scoped_calls(tracer))
        stack.enter_context(_without_collection())
        stack.enter_context(_kept_gradients(model))
        stack.enter_context(operators_present())
        outputs = _run(tracer, model, args, kwargs, training=training, loss=loss, optimizer=optimizer)
        output_ids = [tracer.tensor_id(t) for t in _tensors_in((outputs,))]
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
        received = f"{' and '.join(format_shape(s) for s in shapes)}, in {target}"
    message = str(error).strip().splitlines() or [type(error).__name__]
    return CaptureError(
        f"the model failed on this input: {type(error).__name__}: {message[0]}",
        where=where,
        received=received,
        todo="check the input's shape and dtype (--input 1x3x224x224, or 1x128:int64 for token ids)",
    )


def default_loss(outputs: Any) -> Tensor:
    """Cross entropy for class scores of shape (N, classes), else the sum of the means of all floating outputs."""
    tensors = [t for t in _tensors_in((outputs,)) if t.is_floating_point() and t.requires_grad]
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
    for position, tensor in enumerate(_tensors_in(inputs)):
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


# -- contexts -----------------------------------------------------------------------------------------------------


@contextmanager
def _unchanged(tracer: Tracer) -> Iterator[None]:
    """Put back every attribute, parameter and buffer that the capture or the model's own forward replaced."""
    kept = [
        (members, dict(members))
        for _, module in tracer.modules
        for members in (vars(module), module._parameters, module._buffers)
    ]
    try:
        yield
    finally:
        for members, before in kept:
            if len(members) != len(before) or not all(map(operator.is_, members.values(), before.values())):
                members.clear()
                members.update(before)


def _set_mode(tracer: Tracer, training: bool) -> None:
    """Put the model in training or evaluation mode."""
    for _, module in tracer.modules:
        if module.training is not training:
            module.training = training


def _bring_to_cpu(tracer: Tracer) -> None:
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
def _kept_gradients(model: nn.Module) -> Iterator[None]:
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
def _scoped_calls(tracer: Tracer) -> Iterator[None]:
    """Keep the tracer's scope at the module whose call is running."""
    index_of = {id(module): index for index, (_, module) in enumerate(tracer.modules)}
    original = nn.Module.__call__

    def call(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        outer = tracer.scope
        tracer.scope = index_of.get(id(self), outer)
        try:
            result = original(self, *args, **kwargs)
        except Exception:
            if tracer.failure is None:
                tracer.failure = ("forward", tracer.scope, tuple(tuple(t.shape) for t in _tensors_in(args)))
            raise
        tracer.scope = outer
        return result

    nn.Module.__call__ = call  # type: ignore[method-assign]
    try:
        yield
    finally:
        nn.Module.__call__ = original  # type: ignore[method-assign]


@contextmanager
def _without_collection() -> Iterator[None]:
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


# -- helpers ------------------------------------------------------------------------------------------------------


def _tensors_in(values: Any) -> Iterator[Tensor]:
    """Tensors in any nesting of tuples, lists, mappings and dataclasses, in order."""
    for value in values.values() if isinstance(values, Mapping) else values:
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, list | tuple | Mapping):
            yield from _tensors_in(value)
        elif is_dataclass(value) and not isinstance(value, type):
            yield from _tensors_in([getattr(value, f.name) for f in fields(value)])
        elif hasattr(value, "__dict__") and hasattr(value, "tensors") and not isinstance(value, type | nn.Module):
            yield from _tensors_in(list(vars(value).values()))


def _dtype_name(dtype: torch.dtype) -> str:
    return str(dtype)[6:]


def _symbol(value: Any) -> Any:
    """Record a dtype, device, layout, memory format or complex number by name."""
    if isinstance(value, torch.dtype | torch.layout | torch.memory_format | torch.device):
        return Symbol(str(value))
    if isinstance(value, complex):
        return Symbol(f"complex:{value.real!r},{value.imag!r}")
    return Symbol(type(value).__name__)


def _target(func: Any) -> str:
    return str(func)


def _signature(args: tuple[Any, ...]) -> tuple[Any, ...]:
    """What a meta kernel's answer depends on: geometry of tensors, values of everything else."""
    parts: list[Any] = []
    for value in args:
        if isinstance(value, Tensor):
            parts.append((value.shape, value.stride(), value.dtype))
        elif isinstance(value, list | tuple):
            parts.append(_signature(tuple(value)))
        else:
            parts.append((type(value), value))
    return tuple(parts)


def _is_fresh(result: Any, args: tuple[Any, ...]) -> bool:
    """True where the outputs are a tensor, or a flat tuple of tensors and Nones, each with its own storage."""
    outputs = (result,) if isinstance(result, Tensor) else result
    if not isinstance(outputs, tuple):
        return False
    seen = {t.untyped_storage()._cdata for t in _tensors_in(args)}
    for tensor in outputs:
        if tensor is None:
            continue
        if not isinstance(tensor, Tensor):
            return False
        cdata = tensor.untyped_storage()._cdata
        if cdata in seen:
            return False
        seen.add(cdata)
    return True


def _copy_answer(result: Any) -> Any:
    if isinstance(result, Tensor):
        return _copy(result)
    return tuple(None if t is None else _copy(t) for t in result)


def _copy(tensor: Tensor) -> Tensor:
    from memfit.capture.phantom import phantom

    elements = tensor.untyped_storage().nbytes() // tensor.element_size()
    return phantom(tuple(tensor.shape), tensor.stride(), tensor.dtype, elements=elements)


def _conv_backend(args: tuple[Any, ...]) -> str:
    """Name the kernel family that PyTorch would choose for this convolution."""
    x, w, bias, stride, padding, dilation, transposed, output_padding, groups = args
    backend = torch._C._select_conv_backend(x, w, bias, stride, padding, dilation, transposed, output_padding, groups)
    return str(backend).rpartition(".")[2]
