"""A network that runs with the bits of a recipe: every chosen tensor is rounded to its grid as it comes by."""

from __future__ import annotations

import base64
import zlib
from collections.abc import Mapping
from copy import deepcopy
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten, tree_map, tree_unflatten

from memfit.analysis.layers import Layer, layers
from memfit.capture.phantom import phantom
from memfit.capture.recording import tensors_in
from memfit.capture.replay import named_tensors
from memfit.capture.torch_trace import capture_module
from memfit.compress.data import hash_model
from memfit.compress.fake_quant import Grids, fake_quantize
from memfit.compress.recipe import Recipe
from memfit.compress.runner import Runner
from memfit.errors import SourceError, UsageError, said
from memfit.graph.model import Graph


@dataclass
class Rounding:
    """What each tensor of a network is rounded to."""

    activations: dict[str, Grids] = field(default_factory=dict)
    """By layer."""
    weights: dict[str, Grids] = field(default_factory=dict)
    """By parameter."""

    def rounded(self, named: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Give a state with its weights rounded; a tied parameter is rounded by any of its names."""
        by_id = {id(named[name]): grids for name, grids in self.weights.items()}
        done: dict[int, Tensor] = {}
        for tensor in named.values():
            if id(tensor) in by_id and id(tensor) not in done:
                done[id(tensor)] = fake_quantize(tensor.detach(), by_id[id(tensor)])
        return {name: done.get(id(tensor), tensor) for name, tensor in named.items()}


class Quantized(nn.Module):
    """A model that runs operation by operation with its tensors rounded; it holds a copy of the original.

    It takes what the original takes and gives what it gives. In evaluation mode the weights are rounded once; training
    rounds them at each step, and the gradient passes as if nothing had been rounded where values lie on the grid
    (straight-through estimator: Bengio, Léonard and Courville, https://arxiv.org/abs/1308.3432, 2013). Norms keep their
    statistics in training.

    Args:
        model: the network.
        rounding: what is rounded to what.
        input_names: of the tensors among its arguments.
    """

    def __init__(self, model: nn.Module, rounding: Rounding, input_names: tuple[str, ...] = ()) -> None:
        super().__init__()
        self.network = _copy(model).eval()
        self.rounding = rounding
        self._names = input_names
        self._forms: dict[Any, _Form] = {}
        """By shapes of the inputs; other weights do not change them."""
        self._runners: dict[Any, Runner] = {}
        self._versions = -1
        self.eval()

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Run the network with rounded tensors."""
        tensors = list(tensors_in((args, kwargs)))
        key = tuple((tuple(t.shape), t.dtype) for t in tensors)
        form = self._forms.get(key)
        if form is None:
            form = self._forms[key] = self._captured(args, kwargs)
        if self.training and torch.is_grad_enabled():
            from memfit.compress.straight_through import run

            outputs = run(form.graph, form.layers, named_tensors(self.network), tensors, self.rounding)
        else:
            names = [layer.name for layer in form.layers]
            grids = self.rounding.activations

            def look(number: int, output: Tensor) -> Tensor | None:
                found = grids.get(names[number])
                return None if found is None else fake_quantize(output, found)

            outputs = self._runner(key, form).run(tensors, on_output=look)
        return form.arranged(outputs)

    def train(self, mode: bool = True) -> Quantized:
        """Set the mode; the network inside stays in evaluation, whose graph it is."""
        super().train(mode)
        self.network.eval()
        return self

    def set_rounding(self, rounding: Rounding) -> None:
        """Round to other grids from now on."""
        self.rounding = rounding
        self._runners.clear()

    def _runner(self, key: Any, form: _Form) -> Runner:
        """Give a runner of the rounded weights, a new one where they have changed."""
        named = named_tensors(self.network)
        versions = sum(t._version for t in named.values())
        if versions != self._versions:
            self._runners.clear()
            self._versions = versions
        found = self._runners.get(key)
        if found is None:
            found = self._runners[key] = Runner(form.graph, self.rounding.rounded(named))
        return found

    def _captured(self, args: Any, kwargs: Any) -> _Form:
        """Capture a call, and see in what form the network gives its tensors."""
        with torch.no_grad():
            leaves, tree = tree_flatten(self.network(*args, **kwargs))
        stand_ins = tree_map(_without_bytes, (args, kwargs))
        graph = capture_module(
            self.network,
            *stand_ins,
            source=type(self.network).__name__,
            input_names=list(self._names) or None,
            strict=False,
        )
        return _Form(graph, layers(graph), tuple(_Place() if isinstance(x, Tensor) else x for x in leaves), tree)


@dataclass(frozen=True)
class _Form:
    """A call of certain shapes: its graph, and the structure of what it gives."""

    graph: Graph
    layers: tuple[Layer, ...]
    leaves: tuple[Any, ...]
    tree: Any

    def arranged(self, outputs: list[Tensor]) -> Any:
        """Put tensors where the network puts them."""
        if sum(isinstance(leaf, _Place) for leaf in self.leaves) != len(outputs):
            return tuple(outputs)
        given = iter(outputs)
        return tree_unflatten([next(given) if isinstance(x, _Place) else x for x in self.leaves], self.tree)


class _Place:
    """Where a tensor stands in what the network gives."""


def _without_bytes(value: Any) -> Any:
    return phantom(tuple(value.shape), value.stride(), value.dtype) if isinstance(value, Tensor) else value


def _copy(model: nn.Module) -> nn.Module:
    try:
        return deepcopy(model)
    except Exception as error:
        raise SourceError(
            f"this module cannot be copied, and quantization must not change it: {said(error)}",
            where="source",
            received=type(model).__name__,
            todo="pass a module that copy.deepcopy copies",
        ) from error


def encode(tensor: Tensor) -> dict[str, Any]:
    """Write a tensor as JSON.

    >>> decode(encode(torch.tensor([1.0, 2.5])))
    tensor([1.0000, 2.5000])
    """
    raw = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
    data = base64.b64encode(zlib.compress(raw, 6)).decode()
    return {"dtype": str(tensor.dtype).removeprefix("torch."), "shape": list(tensor.shape), "data": data}


def decode(entry: Mapping[str, Any]) -> Tensor:
    """Read a tensor that `encode` wrote.

    Raises:
        SourceError: it is damaged.
    """
    try:
        raw = np.frombuffer(zlib.decompress(base64.b64decode(entry["data"])), np.uint8)
        dtype: torch.dtype = getattr(torch, entry["dtype"])
        return torch.from_numpy(raw.copy()).view(dtype).reshape(tuple(entry["shape"]))
    except (ValueError, KeyError, TypeError, AttributeError, RuntimeError, zlib.error) as error:
        raise SourceError(
            "a tensor of the recipe cannot be read",
            where="--recipe",
            received=said(error),
            todo="make the recipe again with memfit quantize --save",
        ) from None


def grid_of(recipe: Recipe) -> Rounding:
    """Give a recipe's grids."""
    return Rounding(
        {
            name: activation_grid(entry["scale"], entry["zero_point"], entry["bits"])
            for name, entry in recipe.activations.items()
            if entry["scale"] is not None
        },
        {name: weight_grid(entry["scale"], entry["axis"], entry["bits"]) for name, entry in recipe.weights.items()},
    )


def activation_grid(scale: float, zero_point: int, bits: int) -> Grids:
    """Make one asymmetric grid."""
    least = -(1 << (bits - 1))
    return Grids(torch.tensor(scale, dtype=torch.float32), torch.tensor(float(zero_point)), least, -least - 1)


def weight_grid(scale: list[float], axis: int | None, bits: int) -> Grids:
    """Make symmetric grids, one per channel."""
    scales = torch.tensor(scale if axis is not None else scale[0], dtype=torch.float32)
    most = (1 << (bits - 1)) - 1
    return Grids(scales, torch.zeros_like(scales), -most, most, axis)


def apply(model: nn.Module, recipe: Recipe) -> Quantized:
    """Make the network that a recipe describes; arguments and errors as for `memfit.apply_recipe`."""
    named = named_tensors(model)
    if hash_model(named) != recipe.fingerprint.get("model"):
        raise UsageError(
            "this recipe was made for other weights, or for another network",
            where="--recipe",
            received=f"a recipe for {recipe.source}, and a {type(model).__name__}",
            todo="load the weights that the recipe was made with, or make one with memfit quantize",
        )
    for name, entry in recipe.weights.items():
        wanted = None if name not in named else 1 if entry["axis"] is None else named[name].shape[entry["axis"]]
        if len(entry["scale"]) != wanted:
            raise SourceError(
                "a grid of the recipe does not fit its weight",
                where=f"--recipe, {name}",
                received=f"{len(entry['scale'])} scales",
                todo="make the recipe again with memfit quantize --save",
            )
    made = Quantized(model, grid_of(recipe), tuple(entry["name"] for entry in recipe.inputs))
    put(made.network, {name: decode(entry) for name, entry in recipe.changed.items()})
    return made


def put(model: nn.Module, changed: Mapping[str, Tensor]) -> None:
    """Write tensors into a model's own, by name."""
    named = named_tensors(model)
    with torch.no_grad():
        for name, tensor in changed.items():
            named[name].copy_(tensor)
