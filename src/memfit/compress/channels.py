"""Channels that can be taken out of a model together: Torch-Pruning finds them, rates them and takes them out."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from memfit.compress.sweep import one_thread
from memfit.errors import CaptureError, SourceError, UsageError, require, said

IMPORTANCE = ("magnitude", "taylor", "bn-scale")
"""How channels can be rated."""


@dataclass(frozen=True)
class Group:
    """Channels that depend on each other: number i of every member goes with number i of all others.

    A residual stream is one group, of all layers that add to it.
    """

    name: str
    """Module path of the layer whose outputs they are; of several layers the first."""
    channels: int
    members: tuple[str, ...]
    """Module paths of the layers that give these channels."""


class Surgery:
    """A model and the dependencies between its channels. What is taken out is taken out of this very model.

    Args:
        model: in evaluation mode, with real weights.
        args: positional arguments of a call.
        kwargs: keyword arguments of it.
        name: of the model, for messages.

    Raises:
        MissingExtra: Torch-Pruning is not installed.
        CaptureError: Torch-Pruning cannot trace the model, or finds no channels in it.
    """

    def __init__(self, model: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any], name: str) -> None:
        pruning = torch_pruning()
        self.model = model
        self.name = name
        self._modules = dict(model.named_modules())
        self._trainable = {name: parameter.requires_grad for name, parameter in model.named_parameters()}
        for parameter in model.parameters():  # the dependencies are read from autograd's graph
            parameter.requires_grad_(parameter.is_floating_point())
        try:
            # One thread: a call with one sample is over before several have found each other on a busy machine.
            with quiet(), one_thread(), torch.enable_grad():
                self._graph = pruning.DependencyGraph().build_dependency(
                    model, example_inputs=args, forward_fn=lambda net, _: net(*args, **kwargs), verbose=False
                )
                found = list(self._graph.get_all_groups())
        except Exception as error:
            raise CaptureError(
                f"Torch-Pruning cannot trace this model, so its channels cannot be pruned: {said(error)}",
                where=name,
                received=type(model).__name__,
                todo="prune a part of the model that plain convolutions and linear layers make up, "
                "or see --debug for the whole traceback",
            ) from error
        self._groups = {self._path(group[0].dep.target.module): group for group in found}
        self.groups = tuple(self._describe(path, group) for path, group in self._groups.items())
        if not self.groups:
            raise CaptureError(
                "this model has no channels that could be pruned",
                where=name,
                received=f"{type(model).__name__}, in which Torch-Pruning finds no convolution or linear layer",
                todo="give a model of convolutions or linear layers",
            )

    def remove(self, group: str, channels: Sequence[int]) -> None:
        """Take some channels out of every layer that gives or reads them.

        Args:
            group: its name.
            channels: their numbers, as they are now.

        Raises:
            CaptureError: Torch-Pruning failed, as it does on some grouped convolutions.
        """
        if not channels:
            return
        root = self._groups[group][0].dep
        try:
            with quiet(), torch.no_grad():
                self._graph.get_pruning_group(root.target.module, root.handler, sorted(channels)).prune()
        except Exception as error:
            raise CaptureError(
                f"Torch-Pruning cannot take channels out of this layer: {said(error)}",
                where=f"{self.name}: {group}",
                received=f"{len(channels)} channels",
                todo="see --debug for the whole traceback",
            ) from error

    def close(self) -> nn.Module:
        """Give the model, its parameters trainable as they were, without gradients."""
        for name, parameter in self.model.named_parameters():
            parameter.requires_grad_(self._trainable.get(name, False))
            parameter.grad = None
        return self.model

    def importance(self, how: str) -> dict[str, Tensor]:
        """Rate the channels of every group, by its name: not below zero, the higher the more is lost with them.

        Magnitude: the squared weights of a channel, added over every layer that gives or reads it (Li et al., Pruning
        Filters for Efficient ConvNets, ICLR 2017, https://arxiv.org/abs/1608.08710, over a group). Taylor: |gradient ·
        weight|, which must be there from a backward pass (Molchanov et al., Importance Estimation for Neural Network
        Pruning, CVPR 2019, https://arxiv.org/abs/1906.10771). Batch-norm scale: |gamma| (Liu et al., Network Slimming,
        ICCV 2017, https://arxiv.org/abs/1708.06519); groups without a batch norm are rated by magnitude.

        Args:
            how: magnitude, taylor or bn-scale.

        Raises:
            UsageError: a rating that is not a number.
        """
        pruning = torch_pruning()
        magnitude = pruning.importance.GroupMagnitudeImportance(p=2, group_reduction="sum", normalizer=None)
        rate = {
            "magnitude": magnitude,
            "taylor": pruning.importance.GroupTaylorImportance(group_reduction="sum", normalizer=None),
            "bn-scale": pruning.importance.BNScaleImportance(group_reduction="sum", normalizer=None),
        }[how]
        rated: dict[str, Tensor] = {}
        for name, group in self._groups.items():
            with quiet():
                found = rate(group)
                if found is None:
                    found = magnitude(group)
            if found is None:
                found = torch.ones(len(group[0].idxs))
            if not bool(torch.isfinite(found).all()):
                wrong = int((~torch.isfinite(found)).sum())
                raise UsageError(
                    f"the importance of channels is not a number ({how})",
                    where=name,
                    received=f"{wrong} of {len(found)} channels are NaN or infinite",
                    todo="check the weights" + (" and the data" if how == "taylor" else "") + " for NaN",
                )
            rated[name] = found.detach().to(torch.float64).abs()
        return rated

    def _describe(self, path: str, group: Any) -> Group:
        members = dict.fromkeys(
            self._path(item.dep.target.module)
            for item in group
            if self._graph.is_out_channel_pruning_fn(item.dep.handler)
            and isinstance(item.dep.target.module, nn.Module)
            and any(True for _ in item.dep.target.module.parameters(recurse=False))
        )
        return Group(path, len(group[0].idxs), tuple(m for m in members if m))

    def _path(self, module: Any) -> str:
        return str(self._graph._module2name.get(module, ""))


def torch_pruning() -> Any:
    """Import Torch-Pruning.

    Raises:
        MissingExtra: it is not installed.
    """
    require("torch_pruning", "compress", "pruning needs Torch-Pruning", where="memfit prune")
    with quiet(), _without_timm():
        import torch_pruning as found
    return found


@contextmanager
def _without_timm() -> Iterator[None]:
    """Let Torch-Pruning not find timm: it imports it, and with it PyTorch's compiler, for its own counts of MACs."""
    if "timm" in sys.modules or "torch_pruning" in sys.modules:
        yield
        return
    sys.modules["timm"] = None  # type: ignore[assignment]
    try:
        yield
    finally:
        del sys.modules["timm"]


@contextmanager
def quiet() -> Iterator[None]:
    """Keep Torch-Pruning's own warnings to itself: memfit says which channels it leaves alone."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def copy_of(model: nn.Module, name: str) -> nn.Module:
    """Copy a model with its weights.

    Raises:
        SourceError: it cannot be copied.
    """
    try:
        return deepcopy(model)
    except Exception as error:
        raise SourceError(
            f"this module cannot be copied, and pruning works on a copy: {said(error)}",
            where=name,
            received=type(model).__name__,
            todo="keep what cannot be copied, such as open files and hooks, out of the module",
        ) from error
