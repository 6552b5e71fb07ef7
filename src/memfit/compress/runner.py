"""Run a captured graph on real tensors, whole or only what comes after one changed layer.

Values are kept by storage and version, so that views and in-place operations come out as PyTorch has them, and an
operation never overwrites what is kept for later.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from memfit.analysis.layers import Layer, layers
from memfit.capture.recording import from_symbol, function_of, tensors_in
from memfit.capture.replay import constant_of, named_tensors
from memfit.compress.cells import Cell, Windows
from memfit.compress.quicker import in_place, packing
from memfit.errors import CaptureError, UsageError
from memfit.graph.model import BEFORE, Graph, Op, Ref, StorageKind, Symbol

Hook = Callable[[int, Tensor], Tensor | None]
"""Layer number and its output → what takes its place, or None to leave it; it must not write to what it is given."""

Weights = Mapping[int, Mapping[str, Tensor]]
"""Layer number → parameter name → the tensor that this layer reads in its place."""

State = dict[int, Cell]
_Key = tuple[int, int]
"""Storage and version."""


@dataclass(frozen=True)
class Cut:
    """What is needed to go on after one layer, for one batch: the layer's output and what its followers read."""

    layer: int
    """Number of the layer in `Runner.layers`."""
    output: Tensor
    """What the layer put out, before a hook replaced it."""
    kept: Mapping[_Key, Cell]

    @property
    def nbytes(self) -> int:
        """Bytes that are kept."""
        held: dict[int, int] = {}
        for cell in self.kept.values():
            held |= cell.storages()
        return sum(held.values())


class _Step:
    """One operation: how to read its arguments, what to call, what it writes to and what dies after it."""

    __slots__ = (
        "args", "constant", "frees", "function", "idle", "inplace_view", "kwargs", "mutates", "named", "outputs",
        "overwritten", "placed", "quick", "reads", "written",
    )  # fmt: skip

    def __init__(self, function: Callable[..., Any]) -> None:
        self.function = function
        self.args: list[Any] = []
        self.kwargs: dict[str, Any] = {}
        self.placed: list[tuple[int, Callable[[State], Any]]] = []
        """Which arguments hold tensors, and how to read them."""
        self.named: list[tuple[str, Callable[[State], Any]]] = []
        self.constant: Tensor | None = None
        self.outputs: tuple[int, ...] = ()
        self.reads: tuple[_Key, ...] = ()
        """Values read that are not the model's own."""
        self.written: tuple[int, ...] = ()
        """Storages that exist before and that it writes to."""
        self.frees: tuple[int, ...] = ()
        self.inplace_view = False
        self.mutates = False
        self.idle = False
        """True where nothing reads what it makes."""
        self.quick: Callable[..., Any] | None = None
        """Does the same to the bit; not where gradients are wanted."""
        self.overwritten = -1
        """The storage that it leaves its result in, of an argument that dies here; or -1."""

    def call(self, state: State) -> Any:
        """Fetch the arguments and call."""
        function = self.function
        free = self.overwritten < 0 or not state[self.overwritten].frozen
        if self.quick is not None and free and not torch.is_grad_enabled():
            function = self.quick
        args = self.args.copy()
        for place, read in self.placed:
            args[place] = read(state)
        if self.inplace_view:  # turn a view of it, not the tensor that others look at
            args[0] = args[0].view_as(args[0])
        if not self.kwargs:
            return function(*args)
        return function(*args, **{**self.kwargs, **{name: read(state) for name, read in self.named}})


class Runner:
    """A captured graph and its weights, ready to run operation by operation.

    >>> import memfit
    >>> model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(16, 2)).eval()
    >>> runner = Runner(memfit.capture(model, "1x3x4x4"), model)
    >>> [layer.name for layer in runner.layers]
    ['input', '0', '4']
    >>> x = torch.ones(1, 3, 4, 4)
    >>> torch.equal(runner.run([x])[0], model(x))
    True
    >>> for cut in runner.prefix([x], [1]):  # after the convolution with its norm and activation
    ...     changed = runner.resume(cut, cut.output * 2)
    >>> torch.equal(changed[0], runner.run([x], on_output=lambda layer, t: t * 2 if layer == 1 else None)[0])
    True

    Args:
        graph: a capture of inference.
        state: the model, or its parameters and buffers by name; they are only read.

    Raises:
        CaptureError: the state does not fit the graph.
        UsageError: a capture of training.
    """

    def __init__(self, graph: Graph, state: nn.Module | Mapping[str, Tensor]) -> None:
        if graph.training:
            raise UsageError(
                "this graph is of a training step, and layers are compressed in inference",
                where="graph",
                received=graph.source,
                todo="capture it without training",
            )
        self.graph = graph
        self.layers: tuple[Layer, ...] = layers(graph)
        self._windows = Windows(graph.tensors)
        self._static = self._hold(named_tensors(state))
        self._named = {t.name: t.id for t in graph.tensors if t.name and t.storage in self._static}
        self._owner = [-1] * len(graph.ops)
        for number, layer in enumerate(self.layers):
            for index in layer.ops:
                self._owner[index] = number
        self._versions: list[int] = [0] * len(self.layers)
        """Of each layer's output's storage, when it is whole."""
        self._ready = [self._ready_at(number) for number in range(len(self.layers))]
        self._ready_after: dict[int, list[int]] = {}
        for number, index in enumerate(self._ready):
            if self.layers[number].result >= 0:
                self._ready_after.setdefault(index, []).append(number)
        self._steps = [self._step(op) for op in graph.ops]
        self._find_idle()
        self._free_dead()
        self._find_in_place()
        self._viewed = {o: op.index for op in reversed(graph.ops) if graph.is_alias(op) for o in op.outputs}
        self._windows.view = self._view
        self._free_of_inputs = self._find_free_of_inputs()
        self._plans: dict[tuple[int, ...], _Plan] = {}

    # -- running ----------------------------------------------------------------------------------------------------

    def run(
        self, inputs: Sequence[Tensor], *, on_output: Hook | None = None, weights: Weights | None = None
    ) -> list[Tensor]:
        """Run every operation and return the graph's outputs, in their order.

        A value is dropped after the last operation that reads it.

        Args:
            inputs: tensors of the shapes and dtypes that the graph was captured with; they are only read.
            on_output: is given each layer's number and output, in the order of execution, inputs first.
            weights: parameters to replace, for one layer each.

        Raises:
            CaptureError: a tensor does not fit.
        """
        run = _Run(self, self._begin(inputs), on_output, weights)
        with torch.no_grad():
            for index in range(-1, len(self._steps)):
                run.advance(index)
        return [self._windows.look(run.state[self._windows.storage[t]], t) for t in self.graph.outputs]

    def prefix(
        self,
        inputs: Sequence[Tensor],
        layers: Sequence[int] | None = None,
        *,
        on_output: Hook | None = None,
        weights: Weights | None = None,
    ) -> Iterator[Cut]:
        """Run the graph once, and stop for each layer as soon as everything that its followers read is there.

        That is right after the layer in a chain; where branches run side by side, after the last value of the others
        that is read. What is kept for a cut is dropped when no cut to come needs it.

        Args:
            inputs: as for `run`.
            layers: numbers of the layers to stop for; None is all.
            on_output: as for `run`.
            weights: as for `run`.
        """
        chosen = tuple(sorted(set(range(len(self.layers)) if layers is None else layers)))
        plan = self._plan(tuple(k for k in chosen if self.layers[k].result >= 0))
        run = _Run(self, self._begin(inputs), on_output, weights)
        run.watched = frozenset(plan.needs)
        users = dict(plan.users)
        kept = self._invariant(plan, on_output, weights)
        for index in range(-1, len(self._steps)):
            with torch.no_grad():  # not around the yield, where the caller's own setting holds
                run.advance(index, plan.saves.get(index, ()), kept)
            for number in plan.due.get(index, ()):
                cells = {key: kept[key] for key in plan.needs[number]}
                result = self.layers[number].result
                own = run.raw.pop(number, None) or cells[self._windows.storage[result], self._versions[number]]
                yield Cut(number, self._windows.look(own, result), cells)
                del cells, own
                for key in plan.needs[number]:
                    users[key] -= 1
                    if not users[key]:
                        del kept[key]

    def resume(
        self,
        cut: Cut,
        output: Tensor | None = None,
        *,
        on_output: Hook | None = None,
        weights: Weights | None = None,
    ) -> list[Tensor]:
        """Go on from a cut with something changed, and return the graph's outputs.

        Only operations that depend on the change run. Nothing that the cut keeps is overwritten, so that it can be
        resumed from as often as wanted.

        Args:
            cut: what `prefix` gave.
            output: what takes the place of the layer's output; None runs the layer itself again, with its `weights`.
            on_output: as for `run`; is given the outputs of layers that run again.
            weights: as for `run`; those of layers that do not run again are not looked at.
        """
        number = cut.layer
        plan = self._plan_with(number)
        result = self.layers[number].result
        storage = self._windows.storage[result]
        run = _Run(self, dict(self._static), on_output, weights)
        run.changed = set()
        again = plan.after_weights[number]
        with torch.no_grad():
            if output is None and number not in plan.recomputed:
                found = None if on_output is None else on_output(number, cut.output)
                output = cut.output if found is None else found
            if output is not None:
                run.state[storage] = cut.kept[storage, self._versions[number]]
                run.replace(number, output)
                run.changed.add(storage)
                again = plan.after_output[number]
            for index in again:
                run.advance_kept(index, cut.kept)
        outputs = []
        for tid in self.graph.outputs:
            value = self.graph.tensors[tid]
            changed = value.storage in run.changed or value.storage in self._static
            cell = run.state[value.storage] if changed else cut.kept[value.storage, value.version]
            outputs.append(self._windows.look(cell, tid))
        return outputs

    def parameters(self, layer: int) -> dict[str, Tensor]:
        """Give the parameters that a layer's operations read, by name, tied ones included; they must not be changed."""
        tensors, storages = self.graph.tensors, self.graph.storages
        used = (self.graph.ops[index] for index in self.layers[layer].ops if not self._only_views(index))
        read = {tensors[i].storage for op in used for i in op.inputs}
        return {
            name: self._windows.look(self._static[tensors[tid].storage], tid)
            for name, tid in self._named.items()
            if tensors[tid].storage in read and storages[tensors[tid].storage].kind is StorageKind.PARAMETER
        }

    # -- preparing --------------------------------------------------------------------------------------------------

    def _hold(self, named: Mapping[str, Tensor]) -> State:
        """Give the storages that the model has before it runs."""
        graph = self.graph
        held: State = {}
        for value in graph.tensors:
            storage = graph.storages[value.storage]
            if value.version or storage.birth != BEFORE or storage.kind is StorageKind.INPUT:
                continue
            if value.id in graph.constants:
                tensor = constant_of(graph, value)
            elif value.name is not None:
                if value.name not in named:
                    raise CaptureError(
                        "the state lacks a tensor of the graph",
                        where=value.name,
                        received=f"{len(named)} tensors of other names",
                        todo="pass the module that was captured",
                    )
                tensor = self._windows.fitted(value.id, named[value.name], what="a tensor of the model")
            else:
                continue
            held.setdefault(value.storage, Cell(frozen=True)).views[self._windows.number[value.id]] = tensor
        return held

    def _view(self, cell: Cell, tid: int) -> Tensor | None:
        """Look at a cell as the operation that was captured does."""
        index = self._viewed.get(tid)
        if index is None or tid in self.graph.ops[index].inputs:
            return None
        step = self._steps[index]
        state = {self._windows.storage[tid]: cell}
        result = step.call(state)
        tensors = (result,) if isinstance(result, Tensor) else tensors_in((result,))
        return next((t for o, t in zip(step.outputs, tensors, strict=False) if o == tid), None)

    def _invariant(self, plan: _Plan, hook: Hook | None, weights: Weights | None) -> dict[_Key, Cell]:
        """Compute beforehand what layers' followers read and no input decides, such as a standardized weight."""
        kept: dict[_Key, Cell] = {}
        if plan.invariant_saves:
            run = _Run(self, dict(self._static), hook, weights)
            with torch.no_grad():
                for index in self._free_of_inputs:
                    run.advance(index, plan.invariant_saves.get(index, ()), kept)
        return kept

    def _find_free_of_inputs(self) -> list[int]:
        """List the operations whose results are the same for every input."""
        graph, tensors = self.graph, self.graph.tensors
        decided = {tensors[i].storage for i in graph.inputs}
        found = []
        for op in graph.ops:
            touched = {tensors[i].storage for i in (*op.inputs, *op.outputs)}
            drawn = torch.Tag.nondeterministic_seeded in function_of(op.target).tags
            if drawn or touched & decided or (self._steps[op.index].written and touched & set(self._static)):
                decided |= {tensors[i].storage for i in op.outputs} - set(self._static)
            else:
                found.append(op.index)
        return found

    def _begin(self, inputs: Sequence[Tensor]) -> State:
        if len(inputs) != len(self.graph.inputs):
            raise CaptureError(
                "one tensor per input is needed",
                where=self.graph.source,
                received=f"{len(inputs)} for {len(self.graph.inputs)} inputs",
                todo="pass them in the order of graph.inputs",
            )
        state = dict(self._static)
        for tid, tensor in zip(self.graph.inputs, inputs, strict=True):
            cell = state.setdefault(self._windows.storage[tid], Cell(frozen=True))
            cell.views[self._windows.number[tid]] = self._windows.fitted(tid, tensor, what="an input")
        return state

    def _ready_at(self, number: int) -> int:
        """Find the operation after which a layer's output is whole: its last, or the one that fills the last part."""
        layer, tensors = self.layers[number], self.graph.tensors
        if layer.head < 0:
            return BEFORE
        storage = tensors[layer.result].storage
        made = [i for i in layer.ops if layer.result in self.graph.ops[i].outputs]
        index = min((i for i in made if i >= layer.head), default=layer.head)
        version = tensors[layer.result].version
        for i in layer.ops:
            for tid in self.graph.ops[i].outputs:
                if tensors[tid].storage == storage and tensors[tid].version > version:
                    index, version = max(index, i), tensors[tid].version
        self._versions[number] = version
        return index

    def _step(self, op: Op) -> _Step:
        graph, tensors = self.graph, self.graph.tensors
        function = function_of(op.target)
        step = _Step(function)
        step.outputs = op.outputs
        if op.target == "aten.lift_fresh.default":
            step.constant = constant_of(graph, tensors[op.outputs[0]])
            return step
        for place, entry in enumerate(op.args):
            held = _holds_tensors((entry,))
            step.args.append(None if held else self._reader(entry)({}))
            if held:
                step.placed.append((place, self._reader(entry)))
        for name, entry in op.kwargs.items():
            held = _holds_tensors((entry,))
            step.kwargs[name] = None if held else self._reader(entry)({})
            if held:
                step.named.append((name, self._reader(entry)))
        step.inplace_view = torch.Tag.inplace_view in function.tags
        read = {(tensors[i].storage, tensors[i].version) for i in op.inputs}
        step.quick = packing(op.target, step.args)
        step.reads = tuple(sorted(key for key in read if not self._is_static(key)))
        made = {(tensors[o].storage, tensors[o].version) for o in op.outputs} - read
        step.written = tuple(sorted({s for s, _ in made if graph.storages[s].birth != op.index}))
        if function._schema.is_mutable and not step.inplace_view:
            # What is written to comes first among the recorded outputs, whatever the operation returns.
            step.mutates = True
            inner, written = step.function, _written(function)
            step.function = lambda *args, **kwargs: [*written(args, kwargs), inner(*args, **kwargs)]
        return step

    def _only_views(self, index: int) -> bool:
        """Tell whether an operation only looks at the model's own tensors, such as the transpose of a weight."""
        outputs = self.graph.ops[index].outputs
        return bool(outputs) and all(self._windows.storage[t] in self._static for t in outputs)

    def _is_static(self, key: _Key) -> bool:
        return key[1] == 0 and key[0] in self._static

    def _reader(self, entry: Any) -> Callable[[State], Any]:
        """Resolve a recorded argument as far as it can be before there are tensors."""
        if isinstance(entry, Ref):
            tid = int(entry)
            storage, number, look = self._windows.storage[tid], self._windows.number[tid], self._windows.look

            def read(state: State) -> Tensor:
                cell = state[storage]
                found = cell.views.get(number)
                return look(cell, tid) if found is None else found

            return read
        if isinstance(entry, tuple):
            parts = [self._reader(part) for part in entry]
            if not _holds_tensors(entry):
                whole = [part({}) for part in parts]
                return lambda _state: whole
            return lambda state: [part(state) for part in parts]
        literal = from_symbol(entry) if isinstance(entry, Symbol) else entry
        return lambda _state: literal

    def _free_dead(self) -> None:
        """Let each step drop the storages that no later one touches, except what the graph returns."""
        graph, last = self.graph, {}
        for op in graph.ops:
            if not self._steps[op.index].idle:
                for tid in (*op.inputs, *op.outputs):
                    last[graph.tensors[tid].storage] = op.index
        kept = {graph.tensors[tid].storage for tid in graph.outputs} | set(self._static)
        for storage, index in last.items():
            if storage not in kept:
                self._steps[index].frees += (storage,)

    def _find_idle(self) -> None:
        """Find the operations that make what nothing reads, such as the empty reserve of a batch norm."""
        read = {tid for op in self.graph.ops for tid in op.inputs} | set(self.graph.outputs)
        read |= {layer.result for layer in self.layers}
        for op, step in zip(self.graph.ops, self._steps, strict=True):
            function = function_of(op.target)
            acts = function._schema.is_mutable or torch.Tag.nondeterministic_seeded in function.tags
            step.idle = bool(op.outputs) and read.isdisjoint(op.outputs) and not acts

    def _find_in_place(self) -> None:
        """Let norms and activations overwrite what only they read, which is a value between a layer's operations."""
        tensors = self.graph.tensors
        looks = Counter(tensor.storage for tensor in tensors)
        results = {layer.result for layer in self.layers}
        used = {tid for op in self.graph.ops for tid in op.inputs} | set(self.graph.outputs)
        for op, step in zip(self.graph.ops, self._steps, strict=True):
            if not op.outputs or not op.args or not isinstance(op.args[0], Ref) or used & {*op.outputs[1:]}:
                continue
            read, made = tensors[int(op.args[0])], tensors[op.outputs[0]]
            birth = self.graph.storages[read.storage].birth
            if (
                birth >= 0
                and self._owner[birth] == self._owner[op.index] >= 0
                and read.id not in results
                and read.storage in step.frees
                and looks[read.storage] == 1
                and (read.shape, read.dtype) == (made.shape, made.dtype)
            ):
                step.quick, step.overwritten = in_place(op.target, step.args), read.storage

    # -- what depends on what -----------------------------------------------------------------------------------------

    def _plan(self, chosen: tuple[int, ...]) -> _Plan:
        plan = self._plans.get(chosen)
        if plan is None:
            plan = self._plans[chosen] = _Plan(self, chosen)
        return plan

    def _plan_with(self, number: int) -> _Plan:
        return next((p for p in self._plans.values() if number in p.needs), None) or self._plan((number,))


class _Run:
    """One run under way."""

    __slots__ = ("changed", "hook", "overlays", "raw", "runner", "state", "watched", "weights")

    def __init__(self, runner: Runner, state: State, hook: Hook | None, weights: Weights | None) -> None:
        self.runner, self.state, self.hook = runner, state, hook
        self.weights = weights or {}
        self.overlays: dict[int, State] = {}
        self.changed: set[int] | None = None
        """Storages that differ from what is kept."""
        self.watched: frozenset[int] = frozenset()
        self.raw: dict[int, Cell] = {}
        """What watched layers put out, where the hook replaced it."""

    def advance(self, index: int, saves: Sequence[_Key] = (), kept: dict[_Key, Cell] | None = None) -> None:
        """Run one operation, let the hook see the layers that it completes, keep what is to be kept, drop the dead."""
        if index >= 0 and not self.runner._steps[index].idle:
            self._call(index)
        if self.hook is not None:
            self._show(index)
        for key in saves:
            cell = self.state[key[0]]
            cell.frozen = True
            assert kept is not None
            kept[key] = cell
        if index >= 0:
            for storage in self.runner._steps[index].frees:
                self.state.pop(storage, None)

    def advance_kept(self, index: int, kept: Mapping[_Key, Cell]) -> None:
        """Run one operation of a suffix: what did not change comes from what is kept."""
        runner, changed = self.runner, self.changed
        assert changed is not None
        step = runner._steps[index]
        for key in step.reads:
            if key[0] not in changed:
                self.state[key[0]] = kept[key]
        self._call(index)
        storage_of = runner._windows.storage
        changed.update(s for t in step.outputs if (s := storage_of[t]) not in runner._static)
        if self.hook is not None:
            self._show(index)
        for storage in step.frees:
            self.state.pop(storage, None)

    def replace(self, number: int, output: Tensor) -> None:
        """Put another tensor in the place of a layer's output."""
        windows = self.runner._windows
        tid = self.runner.layers[number].result
        value = windows.tensors[tid]
        output = windows.fitted(tid, output, what=f"the output put in the place of {self.runner.layers[number].name}'s")
        if value.nbytes == self.runner.graph.storages[value.storage].nbytes:
            self.state[value.storage] = Cell({windows.number[tid]: output}, frozen=True)
            return
        cell = self.state[value.storage].copy()  # it is a part of a larger storage
        windows.look(cell, tid).copy_(output)
        self.state[value.storage] = cell

    def _show(self, index: int) -> None:
        windows = self.runner._windows
        for number in self.runner._ready_after.get(index, ()):
            tid = self.runner.layers[number].result
            cell = self.state[windows.storage[tid]]
            assert self.hook is not None
            found = self.hook(number, windows.look(cell, tid))
            if found is not None:
                if number in self.watched:
                    cell.frozen = True
                    self.raw[number] = cell
                self.replace(number, found)

    def _call(self, index: int) -> None:
        state, owner = self.state, self.runner._owner[index]
        if owner not in self.weights:
            self._perform(index)
            return
        overlay = self.overlays.get(owner)
        if overlay is None:
            overlay = self.overlays[owner] = self._overlay(self.weights[owner])
        own = {storage: state[storage] for storage in overlay}
        state.update(overlay)
        self._perform(index)
        overlay.update({storage: state[storage] for storage in overlay})
        state.update(own)

    def _overlay(self, replaced: Mapping[str, Tensor]) -> State:
        runner = self.runner
        overlay: State = {}
        for name, tensor in replaced.items():
            if name not in runner._named:
                raise CaptureError(
                    "there is no such parameter", where="weights", received=repr(name), todo="see Runner.parameters"
                )
            tid = runner._named[name]
            storage = runner._windows.storage[tid]
            cell = overlay.get(storage)
            if cell is None:
                cell = overlay[storage] = runner._static[storage].copy()
            runner._windows.look(cell, tid).copy_(runner._windows.fitted(tid, tensor, what="a parameter"))
        return overlay

    def _perform(self, index: int) -> None:
        runner, state = self.runner, self.state
        step = runner._steps[index]
        windows = runner._windows
        if step.constant is not None:
            result: Any = step.constant.clone()
        else:
            for storage in step.written:
                cell = state[storage]
                if cell.frozen:
                    state[storage] = cell.copy()
            result = step.call(state)
        storage_of, number_of = windows.storage, windows.number
        tensors = (result,) if isinstance(result, Tensor) else tensors_in((result,))
        if step.mutates:
            tensors = _distinct(tensors)
        # Kernels may leave out a last, empty output that the schema promises (a recurrent layer's workspace).
        for tid, tensor in zip(step.outputs, tensors, strict=False):
            storage = storage_of[tid]
            found = state.get(storage)
            if found is None:
                found = state[storage] = Cell()
            found.views[number_of[tid]] = tensor


class _Plan:
    """Which operations depend on which of the chosen layers, and what they read that does not."""

    def __init__(self, runner: Runner, chosen: tuple[int, ...]) -> None:
        graph, tensors = runner.graph, runner.graph.tensors
        bits = {number: 1 << place for place, number in enumerate(chosen)}
        free = set(runner._free_of_inputs)
        by_weights: dict[int, int] = {}
        by_output: dict[int, int] = {}
        needs: dict[_Key, int] = {}
        made: dict[_Key, int] = {(tensors[i].storage, 0): BEFORE for i in graph.inputs}
        self.after_weights: dict[int, list[int]] = {number: [] for number in chosen}
        """Operations to run again when the layer's parameters change, by layer."""
        self.after_output: dict[int, list[int]] = {number: [] for number in chosen}
        """The same when only its output changes."""
        self.recomputed: set[int] = set()
        """Layers whose output depends on parameters of theirs."""

        def complete(index: int) -> None:
            for number in runner._ready_after.get(index, ()):
                storage = tensors[runner.layers[number].result].storage
                key = (storage, runner._versions[number])
                made[key] = max(made.get(key, BEFORE), index)
                bit = bits.get(number, 0)
                if by_weights.get(storage, 0) & bit:
                    self.recomputed.add(number)
                by_weights[storage] = by_weights.get(storage, 0) | bit
                by_output[storage] = by_output.get(storage, 0) | bit
                if bit:
                    needs[key] = needs.get(key, 0) | bit

        complete(BEFORE)
        for op in graph.ops:
            if runner._steps[op.index].idle:
                continue
            owner = 0 if runner._only_views(op.index) else bits.get(runner._owner[op.index], 0)
            weights = output = 0
            for i in op.inputs:
                storage = tensors[i].storage
                weights |= by_weights.get(storage, 0)
                output |= by_output.get(storage, 0)
                if owner and graph.storages[storage].kind is StorageKind.PARAMETER:
                    weights |= owner
            for key in runner._steps[op.index].reads:
                clean = (weights & ~by_weights.get(key[0], 0)) | (output & ~by_output.get(key[0], 0))
                if clean:
                    needs[key] = needs.get(key, 0) | clean
            _spread(weights, chosen, op.index, self.after_weights)
            _spread(output, chosen, op.index, self.after_output)
            for o in op.outputs:
                key = (tensors[o].storage, tensors[o].version)
                made.setdefault(key, op.index)
                if key[0] not in runner._static:
                    by_weights[key[0]] = by_weights.get(key[0], 0) | weights
                    by_output[key[0]] = by_output.get(key[0], 0) | output
            complete(op.index)
        every = (1 << len(chosen)) - 1
        for tid in graph.outputs:
            key = (tensors[tid].storage, tensors[tid].version)
            clean = every & ~(by_weights.get(key[0], 0) & by_output.get(key[0], 0))
            if clean and not runner._is_static(key):
                needs[key] = needs.get(key, 0) | clean
        self.needs: dict[int, list[_Key]] = {number: [] for number in chosen}
        """What to keep for each layer."""
        self.saves: dict[int, list[_Key]] = {}
        """What to keep after each operation."""
        self.users: dict[_Key, int] = {}
        """How many layers each kept value is for."""
        self.invariant_saves: dict[int, list[_Key]] = {}
        """What to keep after operations that no input decides, before all others run."""
        last = dict.fromkeys(chosen, BEFORE)
        for key, mask in needs.items():
            if made[key] in free:
                self.invariant_saves.setdefault(made[key], []).append(key)
                made[key] = BEFORE
            else:
                self.saves.setdefault(made[key], []).append(key)
            self.users[key] = mask.bit_count()
            for number in _numbers(mask, chosen):
                self.needs[number].append(key)
                last[number] = max(last[number], made[key])
        self.due: dict[int, list[int]] = {}
        """Which layers' cuts are whole after each operation."""
        for number in chosen:
            self.due.setdefault(max(last[number], runner._ready[number]), []).append(number)


def _numbers(mask: int, chosen: Sequence[int]) -> Iterator[int]:
    while mask:
        low = mask & -mask
        yield chosen[low.bit_length() - 1]
        mask ^= low


def _spread(mask: int, chosen: Sequence[int], index: int, lists: dict[int, list[int]]) -> None:
    for number in _numbers(mask, chosen):
        lists[number].append(index)


def _written(function: Any) -> Callable[[Sequence[Any], Mapping[str, Any]], list[Tensor]]:
    """Make the function that finds, among an operation's arguments, the tensors that it writes to."""
    places = [
        (i, a.name)
        for i, a in enumerate(function._schema.arguments)
        if a.alias_info is not None and a.alias_info.is_write
    ]

    def find(args: Sequence[Any], kwargs: Mapping[str, Any]) -> list[Tensor]:
        return list(tensors_in([args[i] if i < len(args) else kwargs.get(name) for i, name in places]))

    return find


def _distinct(tensors: Iterable[Tensor]) -> Iterator[Tensor]:
    """Leave out the tensors that were there before: an operation that writes returns what it wrote to."""
    seen: set[tuple[Any, ...]] = set()
    for tensor in tensors:
        key = (tensor.data_ptr(), tensor.shape, tensor.stride(), tensor.dtype) if tensor.numel() else (id(tensor),)
        if key not in seen:
            seen.add(key)
            yield tensor


def _holds_tensors(entry: tuple[Any, ...]) -> bool:
    return any(isinstance(part, Ref) or (isinstance(part, tuple) and _holds_tensors(part)) for part in entry)
