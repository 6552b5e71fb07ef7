"""Arguments and answers of operations: what a graph records of them, and how recorded ones become values again."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import fields, is_dataclass
from typing import Any

import torch
from torch import Tensor, nn

from memfit.capture.phantom import phantom
from memfit.graph.model import Symbol


def tensors_in(values: Any) -> Iterator[Tensor]:
    """Tensors in any nesting of tuples, lists, mappings and dataclasses, in order."""
    for value in values.values() if isinstance(values, Mapping) else values:
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, list | tuple | Mapping):
            yield from tensors_in(value)
        elif is_dataclass(value) and not isinstance(value, type):
            yield from tensors_in([getattr(value, f.name) for f in fields(value)])
        elif hasattr(value, "__dict__") and hasattr(value, "tensors") and not isinstance(value, type | nn.Module):
            yield from tensors_in(list(vars(value).values()))


def dtype_name(dtype: torch.dtype) -> str:
    """Name a dtype as the graph does: float32."""
    return str(dtype)[6:]


def symbol(value: Any) -> Any:
    """Record a dtype, device, layout, memory format or complex number by name."""
    if isinstance(value, torch.dtype | torch.layout | torch.memory_format | torch.device):
        return Symbol(str(value))
    if isinstance(value, complex):
        return Symbol(f"complex:{value.real!r},{value.imag!r}")
    return Symbol(type(value).__name__)


def from_symbol(name: str) -> Any:
    """Turn what `symbol` recorded into a value again."""
    if name.startswith("torch."):
        return getattr(torch, name[6:])
    if name.startswith("complex:"):
        real, imaginary = name[8:].split(",")
        return complex(float(real), float(imaginary))
    if name == "Generator":
        return None
    return torch.device(name)


def function_of(target: str) -> Any:
    """Find the operation that a recorded name such as aten.add.Tensor names."""
    namespace, name, overload = target.split(".")
    return getattr(getattr(getattr(torch.ops, namespace), name), overload)


def signature(args: tuple[Any, ...]) -> tuple[Any, ...]:
    """What a meta kernel's answer depends on: geometry of tensors, values of everything else."""
    parts: list[Any] = []
    for value in args:
        if isinstance(value, Tensor):
            parts.append((value.shape, value.stride(), value.dtype))
        elif isinstance(value, list | tuple):
            parts.append(signature(tuple(value)))
        else:
            parts.append((type(value), value))
    return tuple(parts)


def is_fresh(result: Any, args: tuple[Any, ...]) -> bool:
    """True where the outputs are a tensor, or a flat tuple of tensors and Nones, each with its own storage."""
    outputs = (result,) if isinstance(result, Tensor) else result
    if not isinstance(outputs, tuple):
        return False
    seen = {t.untyped_storage()._cdata for t in tensors_in(args)}
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


def copy_answer(result: Any) -> Any:
    """Make phantoms like the ones of an earlier answer."""
    if isinstance(result, Tensor):
        return _copy(result)
    return tuple(None if t is None else _copy(t) for t in result)


def _copy(tensor: Tensor) -> Tensor:
    elements = tensor.untyped_storage().nbytes() // tensor.element_size()
    return phantom(tuple(tensor.shape), tensor.stride(), tensor.dtype, elements=elements)
