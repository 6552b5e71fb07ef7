"""A plan of TensorFlow Lite Micro's arena, followed byte by byte: does every operator read what was meant for it?

Outputs that agree prove little: two bytes that were swapped or overwritten may have had the same value. So this runs a
file without any values. Each byte that an operator computes gets an identity of its own; operators that only move
bytes (SLICE, CONCATENATION, PAD, RESHAPE …) carry identities along, in the order in which their kernels write. One
model of the arena holds them at the addresses of the plan; beside it, every tensor has a copy that nothing can
overwrite. Wherever an operator reads, the two must be the same.

Nothing here knows how a plan was made: it takes the addresses that stand in the file, and for what the file leaves to
the runtime those of `memfit.memory.tflm`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from memfit.errors import InternalError, UnsupportedOp
from memfit.formats.tflite import Operator, TfliteModel, TfliteTensor
from memfit.kernels.kernel import constant
from memfit.memory.tflm import arena
from memfit.memory.tflm.calls import tensor_bytes
from memfit.memory.tflm.head import called_by

START = -1
"""Writer of what is in the arena before the first operator: the network's inputs."""

NOBODY = -2
"""Writer of a byte that nobody has written."""

Identities = npt.NDArray[np.int64]

_IN_PLACE = frozenset(
    {
        "ABS", "ADD", "CEIL", "COS", "DIV", "ELU", "EXP", "FLOOR", "HARD_SWISH", "LEAKY_RELU", "LOG", "LOGICAL_NOT",
        "LOGISTIC", "MAXIMUM", "MINIMUM", "MUL", "NEG", "QUANTIZE", "RELU", "RELU6", "ROUND", "RSQRT", "SIN", "SQRT",
        "SQUARE", "SQUARED_DIFFERENCE", "SUB", "TANH",
    }
)  # fmt: skip
"""Operators whose kernels read an element before they write the one at its place, if nothing is broadcast."""

_MEMCPY = frozenset({"CONCATENATION", "RESHAPE", "SQUEEZE", "EXPAND_DIMS", "DYNAMIC_UPDATE_SLICE"})
"""Operators that move bytes by memcpy, which may not overlap; the other moving kernels go element by element."""


class Fault(NamedTuple):
    """Bytes that are not what an operator was meant to find, or to leave."""

    operator: int
    """Which reads them; the number of operators where the network's outputs are read at the end."""
    tensor: int
    offset: int
    """Of the first wrong byte in the arena."""
    nbytes: int
    """How many are wrong."""
    writer: int
    """Operator that wrote the first wrong byte last; `START` or `NOBODY`."""
    what: str


@dataclass(frozen=True)
class Replay:
    """What following a plan showed."""

    faults: tuple[Fault, ...]
    nbytes: int
    """Bytes of the arena that were touched: one past the highest."""
    read_bytes: int
    """Bytes whose identity was asked for."""


class _Run(NamedTuple):
    """Neighbouring elements of an output, copied from neighbouring elements of an input, or written anew."""

    start: int
    """First element of the output."""
    length: int
    position: int
    """Input; -1 for what is written anew."""
    source: int
    """First element of that input."""


def replay(model: TfliteModel, *, offsets: Sequence[int] | None = None) -> Replay:
    """Follow the identity of every byte through a model's arena.

    Args:
        model: what `memfit.formats.tflite.read_model` gives.
        offsets: for each tensor its first byte in the head of the arena, -1 where the runtime plans; None takes the
            file's own, if it has them.

    Raises:
        UnsupportedOp: a model with control flow, or an operator whose arena is not known.
        SourceError: offsets that do not fit the model.
    """
    return _Replay(model, offsets).run()


def assert_intact(model: TfliteModel) -> Replay:
    """Follow a file that memfit made, and refuse it if anything reads a wrong byte.

    Raises:
        InternalError: the first fault.
    """
    found = replay(model)
    if found.faults:
        raise InternalError(
            "a plan lets an operator read bytes that are not its own",
            where=model.source,
            received=f"{len(found.faults)} faults; the first: {describe(model, found.faults[0])}",
            todo="do not use the file, and report this with the model",
        )
    return found


def describe(model: TfliteModel, fault: Fault) -> str:
    """Say what is wrong in one sentence."""
    main = model.main
    last = fault.operator == len(main.operators)
    who = "the end of the run" if last else f"operators[{fault.operator}] ({main.operators[fault.operator].name})"
    tensor = main.tensors[fault.tensor]
    by = {START: "an input of the network", NOBODY: "nobody"}.get(fault.writer) or (
        f"operators[{fault.writer}] ({main.operators[fault.writer].name})"
    )
    return (
        f"{who} reads tensors[{fault.tensor}] ({tensor.name}): {fault.what}, {fault.nbytes} bytes from offset "
        f"{fault.offset}, last written by {by}"
    )


class _Replay:
    """One run."""

    def __init__(self, model: TfliteModel, offsets: Sequence[int] | None) -> None:
        for operator in model.main.operators:
            if called_by(operator):
                raise UnsupportedOp(
                    "a plan with control flow cannot be followed byte by byte",
                    where=f"{model.source}, operator {operator.index}",
                    received=operator.name,
                    todo="follow a model of one subgraph",
                )
        self.model, self.main = model, model.main
        held = arena(model, offsets=offsets)
        placed = list(zip(held.buffers, held.offsets, strict=True))
        self.offset = {b.tensor: at for b, at in placed if b.tensor is not None and b.subgraph == 0}
        self.scratch = [(b.operator, at, b.nbytes) for b, at in placed if b.operator is not None]
        size = max((at + b.nbytes for b, at in placed), default=0)
        self.arena: Identities = np.full(size, -1, np.int64)
        self.writer = np.full(size, NOBODY, np.int64)
        self.meant: dict[int, Identities] = {}
        self.next = 0
        self.now = START
        self.faults: list[Fault] = []
        self.touched = 0
        self.read_bytes = 0

    def run(self) -> Replay:
        """Follow all operators."""
        last: dict[int, int] = {}
        for operator in self.main.operators:
            last.update(dict.fromkeys(operator.inputs, operator.index))
        last.update(dict.fromkeys(self.main.outputs, len(self.main.operators)))
        for i in self.main.inputs:
            if i in self.offset:
                self._compute(i)
        for operator in self.main.operators:
            self.now = operator.index
            self._scratch(operator)
            runs = _runs(self.model, operator)
            if runs is None:
                self._computed(operator)
            else:
                self._moved(operator, runs)
            for i in (*operator.inputs, *operator.outputs):
                if last.get(i, -1) <= operator.index:
                    self.meant.pop(i, None)
        self.now = len(self.main.operators)
        for i in self.main.outputs:
            self._read(i)
        return Replay(tuple(self.faults), self.touched, self.read_bytes)

    # -- operators --------------------------------------------------------------------------------------------------

    def _scratch(self, operator: Operator) -> None:
        """Fill what an operator asked for with what belongs to nobody."""
        for owner, at, nbytes in self.scratch:
            if owner == operator.index:
                self._write(at, self._fresh(nbytes))
                for i in operator.outputs:
                    if self._overlap(i, at, nbytes):
                        self._fault(i, at, nbytes, "its own scratch buffer lies in it")

    def _computed(self, operator: Operator) -> None:
        """Read all inputs, then write new bytes."""
        inputs = [i for i in dict.fromkeys(operator.inputs) if i in self.offset]
        for i in inputs:
            self._read(i)
        for o in operator.outputs:
            if o not in self.offset:
                continue
            for i in inputs:
                if self._overlap(i, self.offset[o], self._nbytes(o)) and not self._in_place(operator, i, o):
                    self._fault(i, self.offset[i], self._nbytes(i), "it is overwritten while it is read")
        for o in operator.outputs:
            if o in self.offset:
                self._compute(o)

    def _in_place(self, operator: Operator, i: int, o: int) -> bool:
        x, y = self.main.tensors[i], self.main.tensors[o]
        return (
            operator.name in _IN_PLACE
            and not operator.is_custom
            and self.offset[i] == self.offset[o]
            and (x.shape, tensor_bytes(x)) == (y.shape, tensor_bytes(y))
        )

    def _moved(self, operator: Operator, runs: Sequence[_Run]) -> None:
        """Copy identities in the order of the kernel's writes."""
        out = operator.outputs[0]
        if out not in self.offset:
            return
        at, tensor = self.offset[out], self.main.tensors[out]
        item = tensor_bytes(tensor) // max(tensor.elements, 1)
        meant = np.full(self._nbytes(out), -1, np.int64)
        wrong: set[int] = set()
        for run in runs:
            start, nbytes = run.start * item, run.length * item
            i = operator.inputs[run.position] if run.position >= 0 else -1
            if i < 0 or i not in self.offset:  # a constant, or padding
                meant[start : start + nbytes] = self._write(at + start, self._fresh(nbytes))
                continue
            source = run.source * item
            known = self.meant.get(i)
            if known is None:
                if i not in wrong:
                    self._read(i)
                    wrong.add(i)
                continue
            place = self.offset[i] + source
            found, right = self.arena[place : place + nbytes].copy(), known[source : source + nbytes]
            self.read_bytes += nbytes
            if not np.array_equal(found, right) and i not in wrong:
                wrong.add(i)
                self._differs(i, source, found, right)
            distance = at + start - place
            if 0 < distance < nbytes or (operator.name in _MEMCPY and 0 < -distance < nbytes):
                self._fault(i, place, nbytes, "it is overwritten while it is copied")
            self._write(at + start, found)
            meant[start : start + nbytes] = right
        self.meant[out] = meant

    # -- the arena --------------------------------------------------------------------------------------------------

    def _nbytes(self, i: int) -> int:
        return tensor_bytes(self.main.tensors[i])

    def _overlap(self, i: int, at: int, nbytes: int) -> bool:
        own = self.offset.get(i)
        return own is not None and own < at + nbytes and at < own + self._nbytes(i)

    def _fresh(self, nbytes: int) -> Identities:
        self.next += nbytes
        return np.arange(self.next - nbytes, self.next, dtype=np.int64)

    def _write(self, at: int, identities: Identities) -> Identities:
        self.arena[at : at + len(identities)] = identities
        self.writer[at : at + len(identities)] = self.now
        self.touched = max(self.touched, at + len(identities))
        return identities

    def _compute(self, i: int) -> None:
        """Give a tensor bytes of its own, in the arena and beside it."""
        self.meant[i] = self._write(self.offset[i], self._fresh(self._nbytes(i)))

    def _read(self, i: int) -> None:
        """Compare a tensor in the arena with what it was meant to be."""
        if i not in self.offset:  # a constant, a variable, or a resource
            return
        known, at, nbytes = self.meant.get(i), self.offset[i], self._nbytes(i)
        self.read_bytes += nbytes
        if known is None:
            if not self.main.tensors[i].is_variable:
                self._fault(i, at, nbytes, "it was never written")
            return
        found = self.arena[at : at + nbytes]
        if not np.array_equal(found, known):
            self._differs(i, 0, found, known)

    def _differs(self, i: int, start: int, found: Identities, meant: Identities) -> None:
        places = np.flatnonzero(found != meant)
        self._fault(i, self.offset[i] + start + int(places[0]), len(places), "it was overwritten")

    def _fault(self, i: int, at: int, nbytes: int, what: str) -> None:
        self.faults.append(Fault(self.now, i, at, nbytes, int(self.writer[at]), what))


# -- operators that move bytes ----------------------------------------------------------------------------------------


def _runs(model: TfliteModel, operator: Operator) -> list[_Run] | None:
    """Say how an operator moves elements, in the order of its writes; None for one that computes."""
    if operator.is_custom:
        return None
    find = _MOVES.get(operator.name)
    return None if find is None else find(model, operator)


def _numbers(model: TfliteModel, operator: Operator, position: int) -> list[int] | None:
    """Read a constant input; None if it is made at run time."""
    tensor = _tensor(model, operator, position)
    return [int(n) for n in constant(model, tensor).ravel()] if tensor is not None and tensor.is_constant else None


def _tensor(model: TfliteModel, operator: Operator, position: int) -> TfliteTensor | None:
    index = operator.inputs[position] if position < len(operator.inputs) else -1
    return None if index < 0 else model.main.tensors[index]


def _joined(places: npt.NDArray[Any], position: int) -> Iterator[_Run]:
    """Turn places in an input, in the order of the output, into runs; -1 is written anew."""
    flat = places.ravel()
    if not len(flat):
        return
    new = flat[:-1] < 0
    breaks = np.flatnonzero(np.where(new, flat[1:] >= 0, np.diff(flat) != 1)) + 1
    for low, high in zip((0, *breaks.tolist()), (*breaks.tolist(), len(flat)), strict=True):
        source = int(flat[low])
        yield _Run(low, high - low, position if source >= 0 else -1, max(source, 0))


def _elements(tensor: TfliteTensor) -> npt.NDArray[np.int64]:
    return np.arange(tensor.elements, dtype=np.int64).reshape(tensor.shape)


def _reshape(model: TfliteModel, operator: Operator) -> list[_Run]:
    return [_Run(0, model.main.tensors[operator.outputs[0]].elements, 0, 0)]


def _slice(model: TfliteModel, operator: Operator) -> list[_Run] | None:
    begin, size = _numbers(model, operator, 1), _numbers(model, operator, 2)
    if begin is None or size is None:
        return None
    x = model.main.tensors[operator.inputs[0]]
    cut = tuple(slice(b, None if n < 0 else b + n) for b, n in zip(begin, size, strict=True))
    return list(_joined(_elements(x)[cut], 0))


def _strided_slice(model: TfliteModel, operator: Operator) -> list[_Run] | None:
    given = [_numbers(model, operator, position) for position in (1, 2, 3)]
    masks = ("ellipsis_mask", "new_axis_mask", "shrink_axis_mask", "offset")
    if any(operator.options.get(name) for name in masks) or any(numbers is None for numbers in given):
        return None
    begin, end, stride = (numbers or [] for numbers in given)
    if any(step < 1 for step in stride):
        return None
    x = model.main.tensors[operator.inputs[0]]
    open_low, open_high = int(operator.options.get("begin_mask", 0)), int(operator.options.get("end_mask", 0))
    cut = tuple(
        slice(None if open_low >> d & 1 else begin[d], None if open_high >> d & 1 else end[d], stride[d])
        for d in range(len(begin))
    )
    return list(_joined(_elements(x)[cut], 0))


def _pad(model: TfliteModel, operator: Operator) -> list[_Run] | None:
    around = _numbers(model, operator, 1)
    if around is None:
        return None
    pairs = list(zip(around[::2], around[1::2], strict=True))
    return list(_joined(np.pad(_elements(model.main.tensors[operator.inputs[0]]), pairs, constant_values=-1), 0))


def _concatenation(model: TfliteModel, operator: Operator) -> list[_Run]:
    """For all that stands before the axis, a block of each input in turn."""
    parts = [model.main.tensors[i] for i in operator.inputs]
    axis = int(operator.options.get("axis", 0)) % max(len(parts[0].shape), 1)
    blocks = [part.elements // max(int(np.prod(part.shape[:axis])), 1) for part in parts]
    found, start = [], 0
    for outer in range(int(np.prod(parts[0].shape[:axis]))):
        for position, block in enumerate(blocks):
            found.append(_Run(start, block, position, outer * block))
            start += block
    return found


def _update(model: TfliteModel, operator: Operator) -> list[_Run] | None:
    """All of the first input, then the second at its place."""
    begin, update = _numbers(model, operator, 2), _tensor(model, operator, 1)
    if begin is None or update is None:
        return None
    x = model.main.tensors[operator.inputs[0]]
    low = [min(max(b, 0), n - m) for b, n, m in zip(begin, x.shape, update.shape, strict=True)]
    cut = tuple(slice(b, b + m) for b, m in zip(low, update.shape, strict=True))
    parts = [_Run(run.source, run.length, 1, run.start) for run in _joined(_elements(x)[cut], 0)]
    return [_Run(0, x.elements, 0, 0), *parts]


_MOVES = {
    "RESHAPE": _reshape,
    "SQUEEZE": _reshape,
    "EXPAND_DIMS": _reshape,
    "SLICE": _slice,
    "STRIDED_SLICE": _strided_slice,
    "PAD": _pad,
    "PADV2": _pad,
    "CONCATENATION": _concatenation,
    "DYNAMIC_UPDATE_SLICE": _update,
}
"""Operator → how it moves elements. What is not here computes: its output is new, and may lie on no input."""
