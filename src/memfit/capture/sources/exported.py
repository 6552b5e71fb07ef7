"""Run an exported program: its operations one by one, inside a tree of modules that has the model's own paths."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from itertools import zip_longest
from typing import Any

import torch
from torch import Tensor, nn

from memfit.units import format_shape

DTYPES = {
    1: torch.uint8, 2: torch.int8, 3: torch.int16, 4: torch.int32, 5: torch.int64, 6: torch.float16, 7: torch.float32,
    8: torch.float64, 9: torch.complex32, 10: torch.complex64, 11: torch.complex128, 12: torch.bool,
    13: torch.bfloat16, 28: torch.uint16, 29: torch.float8_e4m3fn, 30: torch.float8_e5m2, 31: torch.float8_e4m3fnuz,
    32: torch.float8_e5m2fnuz, 33: torch.float8_e8m0fnu, 34: torch.uint32, 35: torch.uint64,
}  # fmt: skip
_MEMORY_FORMATS = {
    1: torch.contiguous_format,
    2: torch.channels_last,
    3: torch.channels_last_3d,
    4: torch.preserve_format,
}
FUNCTIONS: dict[str, Callable[..., Any]] = {
    **{
        f"_operator.{name}": getattr(operator, name)
        for name in (
            "add", "sub", "mul", "floordiv", "truediv", "mod", "neg", "pow", "eq", "ne", "lt", "le", "gt", "ge", "and_",
            "or_", "not_", "getitem",
        )
    },
    **{f"math.{name}": getattr(math, name) for name in ("ceil", "floor", "trunc", "sqrt")},
    "torch.ops.aten.lift_fresh_copy.default": torch.ops.aten.clone.default,
    "torch.sym_max": max,
    "torch.sym_min": min,
    "torch.sym_int": int,
    "torch.sym_float": float,
    "torch.sym_not": operator.not_,
    "torch.sym_ite": lambda condition, yes, no: yes if condition else no,
}  # fmt: skip
"""Arithmetic on sizes, and what export calls by another name than a model's own run."""
ASSERTIONS = {
    "torch.ops.aten._assert_scalar.default",
    "torch.ops.aten._assert_tensor_metadata.default",
    "torch.ops.aten.sym_constrain_range.default",
    "torch.ops.aten.sym_constrain_range_for_size.default",
}
CONTEXTS: dict[str, Callable[..., AbstractContextManager[Any]]] = {
    "torch.ops.higher_order.wrap_with_set_grad_enabled": torch.set_grad_enabled,
    "torch.ops.higher_order.wrap_with_autocast": torch.autocast,
}
"""Operations on a subgraph that only set a context: the first arguments are the context's own."""

Decoder = Callable[[Any, dict[str, Any]], Any]


@dataclass(slots=True)
class Node:
    """One operation of the program, its arguments decoded when it runs."""

    target: str
    function: Callable[..., Any] | None
    args: list[tuple[str | None, Any]]
    outputs: list[Any]
    stack: tuple[tuple[str, str, str], ...]
    """Modules from the root down: key of the call, path, class."""
    frees: tuple[str, ...] = ()
    """Values that no later operation uses."""
    body: Body | None = None


@dataclass(slots=True)
class Body:
    """A graph: names of its inputs, operations, outputs."""

    inputs: list[str]
    nodes: list[Node]
    outputs: list[Any]


@dataclass(slots=True)
class Call:
    """What a module's call is to run: some operations, in the values so far."""

    root: ExportedProgram
    nodes: Sequence[Node]
    values: dict[str, Any]
    depth: int


class _Segment:
    """Mixed into every module of the tree: its call runs the operations that it ran in the model."""

    def forward(self, call: Call) -> None:
        """Run the operations of one call."""
        call.root.run(call)


@dataclass(frozen=True)
class Signature:
    """What the program's inputs and outputs are."""

    state: dict[str, str]
    """Input name → dotted name of the parameter, buffer or constant it is."""
    literals: dict[str, Any]
    user_inputs: list[str]
    mutations: list[tuple[int, str]]
    """Position of an output → name of the buffer that it is written to."""
    user_outputs: list[int]
    shapes: dict[str, tuple[int | None, ...]] = field(default_factory=dict)
    """Sizes that the user's inputs must have; None where any will do."""


class ExportedProgram(nn.Module):
    """The root of the tree."""

    body: Body
    signature: Signature
    state_tensors: dict[str, tuple[nn.Module, str]]

    def forward(self, *inputs: Tensor) -> Any:
        """Run the program."""
        values: dict[str, Any] = dict(self.signature.literals)
        for name, tensor in zip(self.signature.user_inputs, inputs, strict=True):
            expected = self.signature.shapes[name]
            fixed = [size in (None, given) for size, given in zip_longest(expected, tensor.shape, fillvalue=-1)]
            if not all(fixed):
                shape = "x".join("N" if size is None else str(size) for size in expected)
                given_shape = format_shape(tuple(tensor.shape))
                raise ValueError(f"the program was exported for input {name} of shape {shape}, not {given_shape}")
            values[name] = tensor
        for name, target in self.signature.state.items():
            owner, attribute = self.state_tensors[target]
            values[name] = getattr(owner, attribute)
        del inputs
        self.run(Call(self, self.body.nodes, values, 1))
        results = [_value(argument, values) for argument in self.body.outputs]
        for position, target in self.signature.mutations:
            owner, attribute = self.state_tensors[target]
            getattr(owner, attribute).copy_(results[position])
        outputs = tuple(results[i] for i in self.signature.user_outputs)
        return outputs[0] if len(outputs) == 1 else outputs

    def run(self, call: Call) -> None:
        """Run operations in order; those of one submodule's call run inside that module's call."""
        nodes, depth, position = call.nodes, call.depth, 0
        while position < len(nodes):
            node = nodes[position]
            if len(node.stack) <= depth:
                _execute(self, node, call.values, depth)
                position += 1
                continue
            end = position + 1
            key = node.stack[depth][0]
            while end < len(nodes) and len(nodes[end].stack) > depth and nodes[end].stack[depth][0] == key:
                end += 1
            module = self.get_submodule(module_path(node.stack[depth][1]))
            module(Call(self, nodes[position:end], call.values, depth + 1))
            position = end


def _execute(root: ExportedProgram, node: Node, values: dict[str, Any], depth: int) -> None:
    args = [_value(argument, values) for name, argument in node.args if name is None]
    kwargs = {name: _value(argument, values) for name, argument in node.args if name is not None}
    if node.body is not None:
        own = len(args) - len(node.body.inputs)
        inner = dict(zip(node.body.inputs, args[own:], strict=True))
        with CONTEXTS[node.target](*args[:own]):
            del args
            root.run(Call(root, node.body.nodes, inner, depth))
        result: Any = [_value(argument, inner) for argument in node.body.outputs]
        if len(node.outputs) == 1 and "as_tensors" not in node.outputs[0] and len(result) == 1:
            result = result[0]
    elif node.function is None:
        result = None
    else:
        result = node.function(*args, **kwargs)
    _store(node.outputs, result, values)
    for name in node.frees:
        values.pop(name, None)


def _store(outputs: list[Any], result: Any, values: dict[str, Any]) -> None:
    """Name an operation's results as the program does."""
    if len(outputs) > 1:
        for output, part in zip(outputs, result, strict=True):
            _store([output], part, values)
        return
    for output in outputs:
        kind, content = union(output)
        if kind == "as_tensors":
            values |= {item["name"]: part for item, part in zip(content, result, strict=True)}
        elif kind == "as_optional_tensors":
            for item, part in zip(content, result, strict=True):
                if "as_tensor" in item:
                    values[item["as_tensor"]["name"]] = part
        elif kind in ("as_tensor", "as_custom_obj"):
            values[content["name"]] = result
        elif isinstance(content, dict) and "as_name" in content:
            values[content["as_name"]] = result


# -- arguments ----------------------------------------------------------------------------------------------------


def union(argument: Mapping[str, Any]) -> tuple[str, Any]:
    """The kind and the content of a tagged value."""
    ((kind, content),) = argument.items()
    return kind, content


def _value(argument: Mapping[str, Any], values: dict[str, Any]) -> Any:
    """Decode one argument."""
    kind, content = union(argument)
    return _DECODERS[kind](content, values)


def _plain(content: Any, _values: dict[str, Any]) -> Any:
    return content


def _named(content: Any, values: dict[str, Any]) -> Any:
    return values[content["name"]]


def _number(content: Any, values: dict[str, Any]) -> Any:
    """A size, float or truth value: a literal, or the name of one computed before."""
    kind, value = union(content)
    return values[value] if kind == "as_name" else value


def _optional(content: Any, values: dict[str, Any]) -> Any:
    return values[content["as_tensor"]["name"]] if "as_tensor" in content else None


def _float(content: Any, _values: dict[str, Any]) -> float:
    return float(content)  # infinities are written as text


def _each(decoder: Decoder) -> Decoder:
    return lambda content, values: [decoder(item, values) for item in content]


_DECODERS: dict[str, Decoder] = {
    "as_none": lambda _content, _values: None,
    "as_tensor": _named,
    "as_tensors": _each(_named),
    "as_optional_tensor": _optional,
    "as_optional_tensors": _each(_optional),
    "as_nested_tensors": _each(_each(_named)),
    **dict.fromkeys(("as_int", "as_ints", "as_bool", "as_bools", "as_string", "as_strings", "as_int_lists"), _plain),
    "as_float": _float,
    "as_floats": _each(_float),
    "as_float_lists": _each(_each(_float)),
    **dict.fromkeys(("as_sym_int", "as_sym_float", "as_sym_bool"), _number),
    **dict.fromkeys(("as_sym_ints", "as_sym_floats", "as_sym_bools"), _each(_number)),
    "as_complex": lambda content, _values: complex(content["real"], content["imag"]),
    "as_scalar_type": lambda content, _values: DTYPES[content],
    "as_memory_format": lambda content, _values: _MEMORY_FORMATS[content],
    "as_layout": lambda _content, _values: torch.strided,
    "as_device": lambda _content, _values: torch.device("cpu"),
}


def names_in(argument: Any) -> Iterator[str]:
    """Names of the values that an argument uses."""
    if isinstance(argument, dict):
        for key, content in argument.items():
            if key in ("name", "as_name") and isinstance(content, str):
                yield content
            elif key != "as_graph":
                yield from names_in(content)
    elif isinstance(argument, list):
        for item in argument:
            yield from names_in(item)


def module_path(path: str) -> str:
    """A module's path, without the mark of a repeated call."""
    return path.partition("@")[0]


# -- module tree --------------------------------------------------------------------------------------------------


def module_tree(classes: Mapping[str, str], state: Sequence[str]) -> ExportedProgram:
    """Make the module tree that the operations and the parameters' names describe."""
    paths = set()
    for path in [*classes, *(name.rpartition(".")[0] for name in state)]:
        parts = path.split(".") if path else []
        paths |= {".".join(parts[:i]) for i in range(1, len(parts) + 1)}
    children: dict[str, list[str]] = {}
    for path in paths:
        children.setdefault(path.rpartition(".")[0], []).append(path.rpartition(".")[2])
    root_class = type(_class_name(classes.get("", "")) or "ExportedProgram", (ExportedProgram,), {})
    root: ExportedProgram = root_class()
    order = {name: i for i, name in enumerate(dict.fromkeys([*state, *classes]))}

    def rank(path: str) -> tuple[int, ...]:
        found = [i for name, i in order.items() if name == path or name.startswith(path + ".")]
        return (path.count("."), min(found, default=len(order)))

    for path in sorted(paths, key=rank):
        owner, name = owner_of(root, path)
        owner.add_module(name, _module(classes.get(path), children.get(path, [])))
    return root


def _module(class_path: str | None, children: list[str]) -> nn.Module:
    numbered = bool(children) and all(child.isdigit() for child in children)
    if class_path is None:
        return nn.ModuleList() if numbered else nn.Module()
    base = nn.Sequential if class_path.endswith("container.Sequential") else nn.Module
    made: nn.Module = type(_class_name(class_path) or "Module", (_Segment, base), {})()
    return made


def _class_name(path: str) -> str:
    name = path.rpartition(".")[2]
    return name if name.isidentifier() else ""


def owner_of(root: nn.Module, path: str) -> tuple[nn.Module, str]:
    """The module that a dotted name belongs to, and the name's last part."""
    parent, _, name = path.rpartition(".")
    return root.get_submodule(parent), name
