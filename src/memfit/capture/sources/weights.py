"""Weights from a file: tensors only, never a pickled object."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from memfit.errors import MissingExtra, SourceError, UsageError, said

SUFFIXES = (".safetensors", ".pt", ".pth", ".bin")
"""What a file of weights may be called."""

_INSIDE = ("state_dict", "model_state_dict", "model")
"""Where training scripts put the weights in a checkpoint."""

_LISTED = 4


def load_weights(model: nn.Module, path: str | Path) -> None:
    """Put a file's tensors in the place of a model's parameters and buffers.

    A `.safetensors` file, or a `.pt`, `.pth` or `.bin` file of a state dict, alone or in a checkpoint under
    `state_dict`, `model_state_dict` or `model`. A tensor takes the dtype and device of the one that it replaces.

    Raises:
        UsageError: the file's name has none of these endings.
        SourceError: there is no such file, it holds more than tensors, or its tensors are not this model's.
        MissingExtra: a `.safetensors` file, and the package is not installed.
    """
    path = Path(path)
    if path.suffix not in SUFFIXES:
        raise UsageError(
            "this is not a file of weights by its name",
            where="--weights",
            received=str(path),
            todo=f"give a file that ends in {', '.join(SUFFIXES)}",
        )
    if not path.is_file():
        raise SourceError("there is no such file", where="--weights", received=str(path), todo="check the path")
    tensors = _safetensors(path) if path.suffix == ".safetensors" else _pickled(path)
    if tensors and all(name.startswith("module.") for name in tensors):  # saved from a DataParallel
        tensors = {name.removeprefix("module."): tensor for name, tensor in tensors.items()}
    _check(model, tensors, path)
    try:
        model.load_state_dict(tensors, strict=False)
    except RuntimeError as error:
        lines = [line.strip() for line in str(error).splitlines()[1:]] or [str(error)]
        raise SourceError(
            "these weights do not fit the model",
            where=str(path),
            received=lines[0],
            todo="give the weights of this very model, with the --arg that it was built with",
        ) from None


def _safetensors(path: Path) -> dict[str, Tensor]:
    if find_spec("safetensors") is None:
        raise MissingExtra(
            "a .safetensors file needs safetensors, which is not installed",
            where="--weights",
            received=str(path),
            todo="pip install safetensors",
        )
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        loaded: dict[str, Tensor] = load_file(path)
    except (SafetensorError, OSError) as error:
        raise SourceError(
            "this file of weights cannot be read", where=str(path), received=said(error), todo="check that it is whole"
        ) from error
    return loaded


def _pickled(path: Path) -> dict[str, Tensor]:
    """Read what `torch.save` wrote, if it is tensors and plain containers."""
    try:
        content: Any = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # pickle raises whatever the bytes lead it to
        reason = str(error).strip().splitlines() or [type(error).__name__]
        raise SourceError(
            "this file is damaged, or holds more than tensors, which memfit does not open",
            where=str(path),
            received=f"{type(error).__name__}: {reason[0][:160]}",
            todo="save the weights alone: torch.save(model.state_dict(), 'weights.pt')",
        ) from None
    for key in _INSIDE:
        if isinstance(content, Mapping) and isinstance(content.get(key), Mapping):
            content = content[key]
            break
    if not isinstance(content, Mapping) or not all(isinstance(value, Tensor) for value in content.values()):
        raise SourceError(
            "this file holds no state dict",
            where=str(path),
            received=f"a {type(content).__name__}",
            todo="save the weights alone: torch.save(model.state_dict(), 'weights.pt')",
        )
    return dict(content)


def _check(model: nn.Module, tensors: Mapping[str, Tensor], path: Path) -> None:
    """Refuse tensors that the model has no place for, and parameters that get none.

    Ties are whole with one of their names, as `.safetensors` files have them.
    """
    own = model.state_dict(keep_vars=True)
    known = {id(own[name]) for name in tensors if name in own}
    missing = [name for name, tensor in own.items() if id(tensor) not in known and name not in tensors]
    extra = [name for name in tensors if name not in own]
    if missing or extra:
        parts = []
        if missing:
            parts.append(f"{len(missing)} missing: {_list(missing)}")
        if extra:
            parts.append(f"{len(extra)} that it has no place for: {_list(extra)}")
        raise SourceError(
            "these weights are not this model's",
            where=str(path),
            received="; ".join(parts),
            todo="give the weights of this very model, with the --arg that it was built with",
        )


def _list(names: Sequence[str]) -> str:
    return ", ".join(names[:_LISTED]) + (", …" if len(names) > _LISTED else "")
