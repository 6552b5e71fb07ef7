"""A network that is ready to run layer by layer on data, whatever the size of its batches."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from memfit.analysis.layers import Layer
from memfit.capture.phantom import phantom
from memfit.capture.recording import tensors_in
from memfit.capture.replay import named_tensors
from memfit.capture.torch_trace import capture_module
from memfit.compress.data import Batch, Wanted, hash_model
from memfit.compress.runner import Runner
from memfit.errors import CaptureError, MemfitError, UsageError, said
from memfit.graph.model import Graph
from memfit.graph.optable import Role, role
from memfit.measure.subject import Placing, Subject, subject
from memfit.units import format_shape

if TYPE_CHECKING:
    from memfit.capture.entry import Inputs

_HELD = 4
"""Runners kept for batches of different shapes."""


class Network:
    """A model in evaluation mode, and a runner for each shape of batch.

    Args:
        what: the model.
        inputs: shapes as text, or None for the model's own, or for the data's where it has none.
        quick: lay images down as they run fastest: channels last, where most weights are of convolutions that oneDNN
            computes. PyTorch then computes with other kernels, which differ in the last bits.
    """

    def __init__(self, what: Subject, inputs: Inputs | None, *, quick: bool = False) -> None:
        self.what = what
        self._channels_last = quick and _convolutional(what.model)
        self.notes = what.notes
        self.layers: tuple[Layer, ...] = ()
        """Of the first batch; those of every other have the same names."""
        self.graph: Graph | None = None
        self._runners: dict[tuple[Any, ...], Runner] = {}
        self._call: tuple[Any, ...] | None = None
        self.wanted: tuple[Wanted, ...] | None = None
        """The model's inputs, as far as they are known before there is data."""
        try:
            call = what.call(inputs, None)
        except UsageError:
            if inputs is not None:
                raise
            return
        self._call = (call.args, call.kwargs)
        self.wanted = tuple(
            Wanted(entry["name"], tuple(entry["shape"]), entry["dtype"], strict=inputs is not None)
            for entry in call.described
        )
        if any(not getattr(torch, entry.dtype).is_floating_point for entry in self.wanted):
            self.wanted = self._with_tables(self.wanted)

    def runner(self, batch: Batch) -> tuple[Runner, list[Tensor]]:
        """Give a runner for a batch of this shape, and the batch as its inputs.

        The first run of each shape is compared with the model's own, bit for bit.

        Raises:
            CaptureError: the model refused the batch, or what was captured does not compute what the model does.
        """
        args, kwargs = self._arranged(batch)
        tensors = list(tensors_in((args, kwargs)))
        key = tuple((tuple(t.shape), t.dtype) for t in tensors)
        runner = self._runners.pop(key, None)
        if runner is None:
            graph = self._captured(args, kwargs)
            runner = Runner(graph, self.what.model)
            self._compare(runner, tensors, args, kwargs)
            if self.graph is None:
                self.graph, self.layers = graph, runner.layers
            elif [layer.name for layer in runner.layers] != [layer.name for layer in self.layers]:
                raise CaptureError(
                    "the model runs other layers for a batch of another shape",
                    where=self.what.name,
                    received=", ".join(format_shape(tuple(t.shape)) for t in tensors),
                    todo="give batches of one shape",
                )
        self._runners[key] = runner
        while len(self._runners) > _HELD:
            del self._runners[next(iter(self._runners))]
        return runner, tensors

    def fingerprint(self) -> str:
        """Hash what the model computes: its operations, parameters and buffers.

        The batch makes no difference, nor does the layout: views and copies are left out.
        """
        structure = []
        if self.graph is not None:
            for op in self.graph.ops:
                if role(op.kind) is Role.VIEW or op.kind in ("clone", "contiguous"):
                    continue
                numbers = [op.attrs.get(key) for key in ("kernel", "stride", "padding", "dilation", "groups")]
                structure.append(f"{self.graph.scopes[op.scope].path} {op.kind} {numbers}")
        return hash_model(named_tensors(self.what.model), structure)

    def _arranged(self, batch: Batch) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Put a batch's tensors in the places of the call."""
        inputs = tuple(_laid(t) if self._channels_last else t for t in batch.inputs)
        if self._call is None:
            return ((), dict(zip(batch.names, inputs, strict=True))) if batch.names else (inputs, {})
        given = iter(inputs)
        args, kwargs = tree_map(lambda leaf: next(given) if isinstance(leaf, Tensor) else leaf, self._call)
        return args, kwargs

    def _captured(self, args: Any, kwargs: Any) -> Graph:
        stand_ins = tree_map(_without_bytes, (args, kwargs))
        names = [entry.name for entry in self.wanted or ()]
        graph = capture_module(
            self.what.model, *stand_ins, source=self.what.name, input_names=names or None, strict=False
        )
        return replace(graph, notes=tuple(n for n in graph.notes if "MACs are counted as 0" not in n))

    def _compare(self, runner: Runner, inputs: list[Tensor], args: Any, kwargs: Any) -> None:
        found = runner.run(inputs)
        args, kwargs = tree_map(lambda leaf: leaf.clone() if isinstance(leaf, Tensor) else leaf, (args, kwargs))
        try:
            with torch.no_grad():
                own = list(tensors_in((self.what.model(*args, **kwargs),)))  # which may write to its input
        except MemfitError:
            raise
        except Exception as error:
            raise CaptureError(
                f"the model failed on this batch: {said(error)}",
                where=self.what.name,
                received=", ".join(format_shape(tuple(t.shape)) for t in inputs),
                todo="check the data",
            ) from error
        if len(own) != len(found) or not all(_same(a, b) for a, b in zip(own, found, strict=True)):
            raise CaptureError(
                "running this network operation by operation does not give what the model gives",
                where=self.what.name,
                received="other outputs for the same batch",
                todo="check for random numbers, or for control flow that depends on values, in the model's code",
            )

    def _with_tables(self, wanted: tuple[Wanted, ...]) -> tuple[Wanted, ...]:
        """Find the tables that whole numbers are looked up in."""
        assert self._call is not None
        graph = self._captured(*self._call)
        limits: dict[int, int] = {}
        for op in graph.ops:
            if role(op.kind) is Role.EMBEDDING and len(op.inputs) > 1:
                table, ids = (graph.tensors[i] for i in op.inputs[:2])
                limits[ids.storage] = min(limits.get(ids.storage, table.shape[0]), table.shape[0])
        storages = [graph.tensors[tid].storage for tid in graph.inputs]
        return tuple(replace(entry, rows=limits.get(s)) for entry, s in zip(wanted, storages, strict=True))


def _convolutional(model: nn.Module) -> bool:
    """Tell whether most weights are of two-dimensional convolutions, and oneDNN computes them."""
    dims = [p.dim() for p in model.parameters() if p.dim() > 1 and p.dtype is torch.float32]
    return torch._C._has_mkldnn and 2 * dims.count(4) > len(dims)


def _laid(tensor: Tensor) -> Tensor:
    """Lay images channels last, those of one channel too, of which PyTorch thinks that they are."""
    if tensor.dim() != 4 or not tensor.is_floating_point():
        return tensor
    _, channels, height, width = tensor.shape
    strides = (channels * height * width, 1, width * channels, channels)
    return tensor.contiguous(memory_format=torch.channels_last).as_strided(tensor.shape, strides)


def _same(one: Tensor, other: Tensor) -> bool:
    """Compare to the bit, except that NaN equals NaN."""
    if one.shape != other.shape or one.dtype != other.dtype:
        return False
    if torch.equal(one, other):
        return True
    return one.is_floating_point() and torch.equal(one.nan_to_num(), other.nan_to_num())


def _without_bytes(value: Any) -> Any:
    return phantom(tuple(value.shape), value.stride(), value.dtype) if isinstance(value, Tensor) else value


@contextmanager
def opened(
    source: str | nn.Module,
    inputs: Inputs | None = None,
    *,
    args: Mapping[str, Any] | None = None,
    weights: str | Path | None = None,
    quick: bool = False,
) -> Iterator[Network]:
    """Open a source with real weights; a module that the caller holds is left as it was.

    Args:
        source: as for `memfit.capture`, if it can run; a library's model gets random weights.
        inputs: shapes as text, or None for the model's own.
        args: arguments of the source's constructor.
        weights: a file of tensors.
        quick: see `Network`.

    Raises:
        MemfitError: see `memfit.measure.subject.subject`.
    """
    with subject(source, args, Placing(weights=weights)) as what:
        yield Network(what, inputs, quick=quick)
