"""What is measured: a real model on its device, and real inputs."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from memfit.capture.phantom import phantom
from memfit.capture.recording import tensors_in
from memfit.capture.sources.inputs import DTYPES, InputSpec, parse_input
from memfit.capture.sources.loaded import Arguments, Example, LoadedSource
from memfit.errors import SourceError, UsageError, said
from memfit.graph.model import Graph
from memfit.graph.optable import Role, role

LIBRARIES = ("torchvision:", "timm:", "hf:")
"""Sources whose weights are random unless a file of weights is given."""

_TOKENS = 1000
"""Token ids are drawn below this, or below the embedding's rows where they are fewer."""


@dataclass(frozen=True)
class Placing:
    """Where and how the model is to run."""

    device: str = "cpu"
    dtype: str | None = None
    channels_last: bool = False
    weights: str | Path | None = None


@dataclass(frozen=True)
class Subject:
    """A model that is ready to run: in evaluation mode, on its device, with its weights."""

    name: str
    model: nn.Module
    loaded: LoadedSource
    placing: Placing
    notes: tuple[str, ...]

    def call(self, inputs: Any, batch: int | None) -> Call:
        """Make the arguments of one call.

        Args:
            inputs: shapes as text, tensors, or None for the model's own.
            batch: replaces the first dimension of every input.
        """
        example, given = self._example(inputs, batch)
        placed = tree_map(self._placed, (tuple(example.args), dict(example.kwargs)))
        args, kwargs = placed if given else tree_map(_real, placed)
        tensors = list(tensors_in((args, kwargs)))
        if self.placing.channels_last and not any(t.dim() == 4 for t in tensors):
            raise UsageError(
                "channels-last is a layout of images, and no input has four dimensions",
                where="--channels-last",
                received=", ".join(str(tuple(t.shape)) for t in tensors) or "no inputs",
                todo="leave it out",
            )
        names = [*example.names, *(f"input{i or ''}" for i in range(len(example.names), len(tensors)))]
        described = tuple(
            {"name": name, "shape": tuple(t.shape), "dtype": str(t.dtype).removeprefix("torch.")}
            for name, t in zip(names, tensors, strict=False)
        )
        return Call(args, kwargs, tuple(names), described, _batch(args, kwargs), given)

    def _example(self, inputs: Any, batch: int | None) -> tuple[Example, bool]:
        """Give the example, and whether it holds values of the user's own."""
        loaded = self.loaded
        texts = [inputs] if isinstance(inputs, str) else inputs
        if texts is None or (
            isinstance(texts, list | tuple) and bool(texts) and all(isinstance(t, str) for t in texts)
        ):
            if not texts and batch is None and loaded.given is not None:
                args, kwargs = loaded.given
                return Example(args, kwargs, tuple(s.name or "" for s in loaded.specs)), True
            specs = [parse_input(text) for text in texts or ()]
            return loaded.example(specs if loaded.specs else [self._typed(s) for s in specs], batch=batch), False
        if batch is not None:
            raise UsageError(
                "batch replaces a shape's first dimension, and these inputs are tensors",
                where="batch",
                received=f"batch={batch}",
                todo="pass shapes as text, or tensors of that batch",
            )
        if isinstance(inputs, Mapping):
            return Example((), dict(inputs), tuple(inputs)), True
        return Example((inputs,) if isinstance(inputs, Tensor) else tuple(inputs)), True

    def _typed(self, spec: InputSpec) -> InputSpec:
        floating = next((p.dtype for p in self.model.parameters() if p.is_floating_point()), None)
        return spec if spec.dtype or floating is None else replace(spec, dtype=str(floating).removeprefix("torch."))

    def _placed(self, value: Any) -> Any:
        """Give a tensor its device, dtype and layout; phantoms stay without bytes."""
        if not isinstance(value, Tensor):
            return value
        placing = self.placing
        if value.is_floating_point() and placing.dtype is not None and value.dtype is not DTYPES[placing.dtype]:
            value = value.to(DTYPES[placing.dtype])
        value = value.to(placing.device)
        if placing.channels_last and value.dim() == 4:
            value = value.contiguous(memory_format=torch.channels_last)
        return value


@dataclass(frozen=True)
class Call:
    """The arguments of one call of a model, with values."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    names: tuple[str, ...]
    described: tuple[dict[str, Any], ...]
    batch: int
    given: bool
    """True where the values are the user's own."""

    def stand_ins(self) -> Arguments:
        """Give arguments on the CPU to capture with: the user's own values, or tensors of the same geometry."""
        args, kwargs = tree_map(_on_cpu if self.given else _without_bytes, (self.args, self.kwargs))
        return args, kwargs

    def fill_tokens(self, graph: Graph) -> None:
        """Draw token ids, now that the capture has told which inputs are looked up, and in how many rows."""
        if self.given:
            return
        limits: dict[int, int] = {}
        for op in graph.ops:
            if role(op.kind) is Role.EMBEDDING and len(op.inputs) > 1:
                table, ids = (graph.tensors[i] for i in op.inputs[:2])
                limits[ids.storage] = min(limits.get(ids.storage, _TOKENS), table.shape[0])
        generator = torch.Generator().manual_seed(0)
        for tid, tensor in zip(graph.inputs, tensors_in((self.args, self.kwargs)), strict=False):
            limit = limits.get(graph.tensors[tid].storage)
            if limit and not tensor.is_floating_point() and tensor.dtype is not torch.bool:
                tensor.copy_(torch.randint(limit, tuple(tensor.shape), generator=generator))


def _real(value: Any) -> Any:
    """Give a generated input its values: normal noise, zeros for whole numbers, ones for masks."""
    if not isinstance(value, Tensor):
        return value
    if value.is_floating_point() or value.is_complex():
        generator = torch.Generator().manual_seed(0)
        noise = torch.randn(tuple(value.shape), generator=generator).to(value.dtype).to(value.device)
        return torch.empty_like(value, memory_format=torch.preserve_format).copy_(noise)
    return torch.ones_like(value) if value.dtype is torch.bool else torch.zeros_like(value)


def _without_bytes(value: Any) -> Any:
    return phantom(tuple(value.shape), value.stride(), value.dtype) if isinstance(value, Tensor) else value


def _on_cpu(value: Any) -> Any:
    return value.detach().cpu() if isinstance(value, Tensor) else value


def _batch(args: tuple[Any, ...], kwargs: dict[str, Any]) -> int:
    """Find the number of samples in a call: of a list of images its length, of a tensor its first dimension."""
    for value in (*args, *kwargs.values()):
        if isinstance(value, list | tuple) and any(isinstance(v, Tensor) for v in value):
            return len(value)
        if isinstance(value, Tensor) and value.dim():
            return int(value.shape[0])
    return 1


@contextmanager
def subject(source: str | nn.Module, args: Mapping[str, Any] | None, placing: Placing) -> Iterator[Subject]:
    """Open a source with real weights; a module that the caller holds is left as it was.

    Raises:
        SourceError: the source has no model that can run.
        UsageError: options that do not apply to it.
    """
    loaded = _loaded(source, args, placing)
    model = loaded.model
    if model is None:
        raise _no_weights("a source without a PyTorch model", loaded.name)
    notes = list(loaded.notes)
    if isinstance(source, str):
        if placing.weights is not None:
            from memfit.capture.sources.weights import load_weights

            load_weights(model, placing.weights)
        elif source.startswith(LIBRARIES):
            notes.append("weights are random")
    elif placing.weights is not None:
        raise UsageError(
            "weights go into a model that memfit builds, and this one is already built",
            where="weights",
            received=f"weights={str(placing.weights)!r}",
            todo="load them into the module yourself",
        )
    own = not isinstance(source, str)
    if own and _changes(model, placing):
        model = _copy(model)
    _place(model, placing)
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        yield Subject(loaded.name, model, loaded, placing, tuple(notes))
    finally:
        for module, training in modes.items():
            module.training = training


def _loaded(source: str | nn.Module, args: Mapping[str, Any] | None, placing: Placing) -> LoadedSource:
    if not isinstance(source, str):
        from memfit.capture.entry import open_model

        if isinstance(source, Graph):
            raise _no_weights("a graph")
        return open_model(source, args=args).loaded
    for suffix, why in _CANNOT_RUN.items():
        if source.endswith(suffix):
            raise _no_weights(why, source)
    from memfit.capture.sources import load

    return load(source, args=args, dtype=placing.dtype, real=True)


_CANNOT_RUN = {
    ".memfit.json": "a saved graph, which has no weights",
    ".pt2": "an exported program, which memfit reads for its graph and never executes",
    ".tflite": "a file of TensorFlow Lite, which PyTorch does not run",
    ".onnx": "an ONNX file, which PyTorch does not run",
}


def _no_weights(why: str, source: str | None = None) -> SourceError:
    return SourceError(
        "this runs the model, and only a PyTorch model can run",
        where=source,
        received=why,
        todo="name the model itself, such as torchvision:resnet50 or FILE.py:CALLABLE, or pass an nn.Module",
    )


def _changes(model: nn.Module, placing: Placing) -> bool:
    """Tell whether a held model would have to change to run as wanted."""
    if placing.channels_last:
        return True
    wanted = None if placing.dtype is None else DTYPES[placing.dtype]
    for tensor in (*model.parameters(), *model.buffers()):
        if tensor.device.type != placing.device:
            return True
        if wanted is not None and tensor.is_floating_point() and tensor.dtype is not wanted:
            return True
    return False


def _copy(model: nn.Module) -> nn.Module:
    try:
        return deepcopy(model)
    except Exception as error:
        raise SourceError(
            f"this module cannot be copied, and another device, dtype or layout would change it: {said(error)}",
            where="source",
            received=type(model).__name__,
            todo="put the module on its device, in its dtype and layout, before you pass it",
        ) from error


def _place(model: nn.Module, placing: Placing) -> None:
    dtype = None if placing.dtype is None else DTYPES[placing.dtype]
    if any(p.device.type == "meta" for p in model.parameters()):
        raise SourceError(
            "this model has no weights: its parameters are on the meta device",
            where="source",
            received=type(model).__name__,
            todo="build it on a real device",
        )
    if dtype is not None or any(t.device.type != placing.device for t in (*model.parameters(), *model.buffers())):
        model.to(device=placing.device, dtype=dtype)
    if placing.channels_last:
        to: Callable[..., Any] = model.to
        to(memory_format=torch.channels_last)
