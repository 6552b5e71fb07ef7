"""The tracer: records every operation of a run on phantom tensors, and when each storage is made and dropped.

No weight is allocated and nothing is computed, except on small tensors made from constants, so that Python control
flow on them stays true. Every operation reaches the tracer by PyTorch's own CPU dispatch; a weak reference on each
storage tells when Python dropped it, which is its eager lifetime.
"""

from __future__ import annotations

import base64
import weakref
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from memfit.capture import worst_case
from memfit.capture.foreach_rules import FOREACH_RULES
from memfit.capture.phantom import is_phantom, numel, run_on_meta
from memfit.capture.recording import copy_answer, dtype_name, is_fresh, signature, symbol, tensors_in
from memfit.capture.shape_rules import SHAPE_RULES
from memfit.errors import MemfitError
from memfit.graph.model import BEFORE, Phase, Ref, StorageKind
from memfit.graph.model import Tensor as Value

if TYPE_CHECKING:
    from memfit.capture.cuda import Cuda

aten = torch.ops.aten

KNOWN_LIMIT = 1 << 16
"""Elements up to which a tensor made from constants is really computed, so that its values can steer Python code."""

_CONSTANT_LIMIT = 1 << 20
"""Bytes up to which a literal's values are kept in the graph for replay."""

_NATIVE_VIEWS = {"_unsafe_view", "_reshape_alias", "detach", "alias", "lift"}


_CPU_RULES = {**SHAPE_RULES, **FOREACH_RULES}

_PLAIN = frozenset((int, float, bool, str, type(None)))


class RawOp(NamedTuple):
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


class Placement:
    """Where the tensors go that are made now."""

    on_host = False


class Tracer(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Records every operation that reaches the dispatcher while it is active."""

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # True imports torch._dynamo at the first operation: more than a second, for nothing

    def __init__(self, model: nn.Module, cuda: Cuda | None = None) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.cuda = cuda
        self.leaving: set[int] = set()
        """Storages that outlive the run without being outputs."""
        self.host: set[int] = set()
        """Storages in the host's memory, while a capture for another device runs."""
        self.placement = Placement()
        self.calling = 0
        """How many modules' calls are running."""
        self.modules = list(model.named_modules())
        self._rules = _CPU_RULES if cuda is None else cuda.shape_rules
        self.ops: list[RawOp] = []
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
        if self.placement.on_host:
            self.host.add(sid)
        cdata = storage._cdata
        self._sids[cdata] = sid
        if birth == BEFORE and kind is not StorageKind.ACTIVATION:  # an earlier run's activations end in this one
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
                Value(tid, sid, tuple(shape), strides, dtype_name(dtype), int(offset), version, name, trainable)
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

    def name(self, tensor: Tensor, name: str) -> None:
        """Name the value that a tensor holds now."""
        tid = self.tensor_id(tensor)
        self.tensors[tid] = self.tensors[tid]._replace(name=name)

    def leaves(self, tensor: Tensor) -> None:
        """Say that a tensor outlives the run."""
        self.leaving.add(self._sids[tensor.untyped_storage()._cdata])

    def knows(self, tensor: Tensor) -> bool:
        """Tell whether the tensor's storage has a number."""
        return tensor.untyped_storage()._cdata in self._sids

    def mark(self, tensors: Iterable[Tensor], kind: StorageKind) -> None:
        """Say what the storages hold that operations made."""
        for tensor in tensors:
            sid = self._sids.get(tensor.untyped_storage()._cdata)
            if sid is not None and self.births[sid] != BEFORE:
                self.kinds[sid] = kind

    def is_on_host(self, tensor: Tensor) -> bool:
        """Tell whether a tensor stays in the host's memory."""
        return self._sids.get(tensor.untyped_storage()._cdata) in self.host

    def know(self, tensor: Tensor) -> None:
        """Say that a small tensor has values, so that what is made from it is really computed."""
        self._known.add(self._sids[tensor.untyped_storage()._cdata])

    def keep_on_host(self, tensor: Tensor) -> None:
        """Say that a tensor stays in the host's memory."""
        self.host.add(self._sids[tensor.untyped_storage()._cdata])

    @contextmanager
    def unrecorded(self, phase: Phase = Phase.STEP) -> Iterator[Tracer]:
        """Answer what ran earlier without a trace of it: another tracer takes it, and is thrown away."""
        other = Tracer(nn.Module(), self.cuda)
        other.placement = self.placement
        other.phase = phase
        with other:
            yield other
        self.notes |= other.notes

    def _place(self, inputs: list[int], outputs: Iterable[int]) -> None:
        """Follow what stays on the host: results of host tensors do; one that meets the device's was moved there."""
        host, tensors = self.host, self.tensors
        found = [tensors[i] for i in inputs]
        if not found or not host:
            return
        if all(t.storage in host for t in found):
            host.update(tensors[o].storage for o in outputs)
        else:
            host.difference_update(t.storage for t in found if t.shape)

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
                shapes = tuple(tuple(t.shape) for t in tensors_in(args))
                self.failure = (str(func), self.scope, shapes)
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
        return self._answer_random if _is_random(func) else self._answer_result

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
        if all(self._has_values(t) for t in tensors_in(args)):
            return func(*args, **kwargs)
        if self.phase is Phase.STEP and func is aten._local_scalar_dense.default:
            return worst_case.continuing(
                args[0].dtype
            )  # an optimizer scales by what it reads: any number leads the same way
        return self._ask_worst_case(func, args, kwargs)

    def _has_values(self, tensor: Tensor) -> bool:
        sid = self.tensors[self.tensor_id(tensor)].storage
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
            written.extend(tensors_in((value,)))
        sids = {self._sids[t.untyped_storage()._cdata] for t in written}
        known = sids <= self._known and all(self.tensors[i].storage in self._known for i in inputs)
        if sids and known and not _is_random(func):
            result = func(*args, **kwargs)
        else:
            self._known -= sids
            result = self._shapes_of(func, args, kwargs)
        for sid in sids:
            self._versions[sid] += 1
        outputs = [self.tensor_id(t) for t in written]
        index = len(self.ops)
        for tensor in tensors_in((result,)):
            if tensor.untyped_storage()._cdata not in self._sids:
                self.add_storage(tensor, StorageKind.ACTIVATION, index)
            tid = self.tensor_id(tensor)
            if tid not in outputs:
                outputs.append(tid)
        self._record(func, recorded, recorded_kwargs, inputs, tuple(outputs))
        return result

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
        for tensor in (result,) if isinstance(result, Tensor) else tensors_in((result,)):
            if tensor.untyped_storage()._cdata not in sids:
                sid = self.add_storage(tensor, StorageKind.ACTIVATION, index)
                if computed:
                    self._known.add(sid)
            outputs.append(self.tensor_id(tensor))
        backend = None
        if func is aten.convolution.default:
            backend = conv_backend(args) if self.cuda is None else self.cuda.conv_backend(args)
        self._record(func, recorded, recorded_kwargs, inputs, tuple(outputs), backend=backend)
        return result

    def _compute(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Really run an operation on small tensors made from constants."""
        if any(t.numel() > KNOWN_LIMIT for t in tensors_in((args, *kwargs.values()))):
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
            if any(t.numel() > KNOWN_LIMIT for t in tensors_in((shape,))):
                return NotImplemented
        return func(*args, **kwargs)

    def _shapes_of(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        rule = self._rules.get(func)
        if rule is not None:
            result = rule(*args, **kwargs)
            if result is not NotImplemented:
                return result
        result = self._ask_worst_case(func, args, kwargs)
        if result is not NotImplemented:
            return result
        key = (func, signature(args), signature(tuple(sorted(kwargs.items()))) if kwargs else ())
        answers = self._meta_answers
        try:
            template = answers.get(key)
        except TypeError:  # an argument that cannot be hashed
            return run_on_meta(func, args, kwargs)
        if template is not None:
            return copy_answer(template)
        result = run_on_meta(func, args, kwargs)
        if func not in self._mutated and is_fresh(result, args):
            answers[key] = result
            return copy_answer(result)  # a first run of a meta kernel may leave a reference behind
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
                recorded.append(symbol(value))
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
        if self.phase is Phase.BACKWARD and not self.calling:  # a checkpoint calls modules again in backward
            node = torch._C._current_autograd_node()
            if node is not None:
                scope = self._scope_of_node.get(node._sequence_nr(), scope)
        else:
            sequence = torch._C._autograd._get_sequence_nr()
            if sequence != self._last_sequence:
                self._last_sequence = sequence
                self._scope_of_node[sequence - 1] = scope
        if self.host:
            self._place(inputs, outputs)
        if self._pending_saved:
            self.saved[len(self.ops)] = self._pending_saved
            self._pending_saved = []
        self.ops.append(RawOp(str(func), args, kwargs, tuple(inputs), outputs, scope, self.phase, backend))

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


def _is_random(func: Any) -> bool:
    """True for what draws from the generator: it is never run, so that a capture is the same each time."""
    return torch.Tag.nondeterministic_seeded in func.tags


def conv_backend(args: tuple[Any, ...]) -> str:
    """Name the kernel family that PyTorch would choose for this convolution."""
    x, w, bias, stride, padding, dilation, transposed, output_padding, groups = args
    backend = torch._C._select_conv_backend(x, w, bias, stride, padding, dilation, transposed, output_padding, groups)
    name = str(backend).rpartition(".")[2]
    return "MkldnnTranspose" if "?" in name else name  # the one kernel that ATen does not name in Python
