"""Programs saved by `torch.export.save`: read from their JSON, without unpickling or executing anything in the file.

`torch.export.load` unpickles sample inputs and some constants, evaluates symbolic expressions and generates code. A
capture needs none of that: the operations, their arguments and the module that each came from stand in a JSON file,
and weights are only sizes. Here that JSON becomes a tree of modules whose calls run its operations one by one.

The format is `torch/_export/serde/schema.py` (schema version 8) in the archive of `torch/export/pt2_archive`, as of
PyTorch 2.13.
"""

from __future__ import annotations

import json
import math
import operator
import re
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from itertools import zip_longest
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from memfit.capture.inputs import InputSpec
from memfit.capture.loaded import LoadedSource
from memfit.capture.phantom import phantom
from memfit.capture.shim import define_missing_torchvision_schemas
from memfit.errors import SourceError, UnsupportedOp
from memfit.units import format_shape

_DTYPES = {
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
_NAMESPACES = {"aten", "prims", "torchvision"}
"""Operators that a file may name; anything else could do anything."""

_FUNCTIONS: dict[str, Callable[..., Any]] = {
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

_ASSERTIONS = {
    "torch.ops.aten._assert_scalar.default",
    "torch.ops.aten._assert_tensor_metadata.default",
    "torch.ops.aten.sym_constrain_range.default",
    "torch.ops.aten.sym_constrain_range_for_size.default",
}
_CONTEXTS: dict[str, Callable[..., AbstractContextManager[Any]]] = {
    "torch.ops.higher_order.wrap_with_set_grad_enabled": torch.set_grad_enabled,
    "torch.ops.higher_order.wrap_with_autocast": torch.autocast,
}
"""Operations on a subgraph that only set a context: the first arguments are the context's own."""

_SMALL_BYTES = 1 << 20
"""Constants up to this size are read, since control flow may have been computed from them."""

Decoder = Callable[[Any, dict[str, Any]], Any]


def load_exported(source: str) -> LoadedSource:
    """Read a `.pt2` file.

    Raises:
        SourceError: the file is no archive of torch.export, is damaged, or needs what cannot be read safely.
        UnsupportedOp: an operator that is not PyTorch's or torchvision's, or control flow on a subgraph.
    """
    define_missing_torchvision_schemas()
    try:
        with zipfile.ZipFile(source) as archive:
            return _read(source, archive)
    except (zipfile.BadZipFile, OSError) as error:
        raise SourceError(
            "this file is not a program saved by torch.export.save",
            where=source,
            received=_first_bytes(source),
            todo="save it with torch.export.save(torch.export.export(model, args), 'model.pt2')",
        ) from error
    except (KeyError, TypeError, ValueError, IndexError, AttributeError, RuntimeError) as error:
        raise SourceError(
            f"this program cannot be read: {type(error).__name__}: {error}",
            where=source,
            received="a damaged file, or one of another version of PyTorch",
            todo=f"export the model again with PyTorch {torch.__version__}",
        ) from error


def _first_bytes(source: str) -> str:
    try:
        with Path(source).open("rb") as file:
            return f"a file that begins with {file.read(8)!r}"
    except OSError as error:
        return str(error)


def _read(source: str, archive: zipfile.ZipFile) -> LoadedSource:
    names = {name.partition("/")[2]: name for name in archive.namelist()}
    model = next((n for n in names if n.startswith("models/") and n.endswith(".json")), None)
    if model is None:
        compiled = any("aotinductor" in name for name in names)
        raise SourceError(
            "this archive holds compiled code, not a program"
            if compiled
            else "this archive is not a program saved by torch.export.save",
            where=source,
            received=f"an archive of {', '.join(list(names)[:4]) or 'nothing'}",
            todo="save the model with torch.export.save(torch.export.export(model, args), 'model.pt2')",
        )
    stem = model.removeprefix("models/").removesuffix(".json")

    def content(name: str) -> Any:
        return json.loads(archive.read(names[name]))

    program = content(model)["graph_module"]
    payloads = content(f"data/weights/{stem}_weights_config.json")["config"]
    constants = content(f"data/constants/{stem}_constants_config.json")["config"]

    def raw(folder: str, payload: Mapping[str, Any]) -> bytes:
        return archive.read(names[f"data/{folder}/{payload['path_name']}"])

    tensors = {name: _tensor(payload) for name, payload in payloads.items()}
    _share(tensors, payloads)
    for name, payload in constants.items():
        if payload.get("tensor_meta") is None:
            raise SourceError(
                "this program holds a pickled object, which memfit does not open",
                where=source,
                received=name,
                todo="export the model without custom objects",
            )
        tensors[name] = _constant(payload, lambda p=payload: raw("constants", p))  # type: ignore[misc]
    root, specs = _program(source, program, tensors)
    return LoadedSource(source, root, specs=specs)


# -- tensors ------------------------------------------------------------------------------------------------------


def _size(value: Mapping[str, Any]) -> int:
    """A size: a number, or an expression with the number that it had when the program was exported."""
    if "as_int" in value:
        return int(value["as_int"])
    hint = value["as_expr"].get("hint")
    if not hint:
        raise ValueError(f"a size without a value: {value['as_expr']['expr_str']}")
    return int(hint["as_int"])


def _tensor(payload: Mapping[str, Any]) -> Tensor:
    meta = payload["tensor_meta"]
    shape, strides = tuple(map(_size, meta["sizes"])), tuple(map(_size, meta["strides"]))
    tensor = phantom(shape, strides, _DTYPES[meta["dtype"]])
    return nn.Parameter(tensor, requires_grad=bool(meta["requires_grad"])) if payload["is_param"] else tensor


def _share(tensors: dict[str, Tensor], payloads: Mapping[str, Any]) -> None:
    """Let tied weights, which name one file, be one tensor."""
    first: dict[tuple[Any, ...], str] = {}
    for name, payload in payloads.items():
        meta = payload["tensor_meta"]
        window = (payload["path_name"], tensors[name].shape, tensors[name].stride(), _size(meta["storage_offset"]))
        tensors[name] = tensors[first.setdefault(window, name)]


def _constant(payload: Mapping[str, Any], read: Callable[[], bytes]) -> Tensor:
    tensor = _tensor({**payload, "is_param": False})
    nbytes = tensor.numel() * tensor.element_size()
    if payload.get("use_pickle") or not 0 < nbytes <= _SMALL_BYTES:
        return tensor
    flat = torch.frombuffer(bytearray(read()), dtype=tensor.dtype)
    offset = _size(payload["tensor_meta"]["storage_offset"])
    return flat.as_strided(tensor.shape, tensor.stride(), offset).clone()


# -- program ------------------------------------------------------------------------------------------------------


@dataclass(slots=True)
class _Node:
    """One operation of the program, its arguments decoded when it runs."""

    target: str
    function: Callable[..., Any] | None
    args: list[tuple[str | None, Any]]
    outputs: list[Any]
    stack: tuple[tuple[str, str, str], ...]
    """Modules from the root down: key of the call, path, class."""
    frees: tuple[str, ...] = ()
    """Values that no later operation uses."""
    body: _Body | None = None


@dataclass(slots=True)
class _Body:
    """A graph: names of its inputs, operations, outputs."""

    inputs: list[str]
    nodes: list[_Node]
    outputs: list[Any]


@dataclass(slots=True)
class _Call:
    """What a module's call is to run: some operations, in the values so far."""

    root: ExportedProgram
    nodes: Sequence[_Node]
    values: dict[str, Any]
    depth: int


class _Segment:
    """Mixed into every module of the tree: its call runs the operations that it ran in the model."""

    def forward(self, call: _Call) -> None:
        """Run the operations of one call."""
        call.root.run(call)


@dataclass(frozen=True)
class _Signature:
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

    body: _Body
    signature: _Signature
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
        self.run(_Call(self, self.body.nodes, values, 1))
        results = [_value(argument, values) for argument in self.body.outputs]
        for position, target in self.signature.mutations:
            owner, attribute = self.state_tensors[target]
            getattr(owner, attribute).copy_(results[position])
        outputs = tuple(results[i] for i in self.signature.user_outputs)
        return outputs[0] if len(outputs) == 1 else outputs

    def run(self, call: _Call) -> None:
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
            module = self.get_submodule(_path(node.stack[depth][1]))
            module(_Call(self, nodes[position:end], call.values, depth + 1))
            position = end


def _execute(root: ExportedProgram, node: _Node, values: dict[str, Any], depth: int) -> None:
    args = [_value(argument, values) for name, argument in node.args if name is None]
    kwargs = {name: _value(argument, values) for name, argument in node.args if name is not None}
    if node.body is not None:
        own = len(args) - len(node.body.inputs)
        inner = dict(zip(node.body.inputs, args[own:], strict=True))
        with _CONTEXTS[node.target](*args[:own]):
            del args
            root.run(_Call(root, node.body.nodes, inner, depth))
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
        kind, content = _union(output)
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


def _union(argument: Mapping[str, Any]) -> tuple[str, Any]:
    ((kind, content),) = argument.items()
    return kind, content


def _value(argument: Mapping[str, Any], values: dict[str, Any]) -> Any:
    """Decode one argument."""
    kind, content = _union(argument)
    return _DECODERS[kind](content, values)


def _plain(content: Any, _values: dict[str, Any]) -> Any:
    return content


def _named(content: Any, values: dict[str, Any]) -> Any:
    return values[content["name"]]


def _number(content: Any, values: dict[str, Any]) -> Any:
    """A size, float or truth value: a literal, or the name of one computed before."""
    kind, value = _union(content)
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
    "as_scalar_type": lambda content, _values: _DTYPES[content],
    "as_memory_format": lambda content, _values: _MEMORY_FORMATS[content],
    "as_layout": lambda _content, _values: torch.strided,
    "as_device": lambda _content, _values: torch.device("cpu"),
}


def _names_in(argument: Any) -> Iterator[str]:
    """Names of the values that an argument uses."""
    if isinstance(argument, dict):
        for key, content in argument.items():
            if key in ("name", "as_name") and isinstance(content, str):
                yield content
            elif key != "as_graph":
                yield from _names_in(content)
    elif isinstance(argument, list):
        for item in argument:
            yield from _names_in(item)


# -- reading ------------------------------------------------------------------------------------------------------


def _program(
    source: str, program: Mapping[str, Any], tensors: dict[str, Tensor]
) -> tuple[ExportedProgram, tuple[InputSpec, ...]]:
    signature = _signature(program, tensors)
    body = _body(source, program["graph"])
    classes = {_path(path): name for node in _all_nodes(body) for _, path, name in node.stack}
    root = _tree(classes, [*signature.state.values(), *(name for _, name in signature.mutations)])
    root.body = body
    root.signature = signature
    root.state_tensors = {}
    for target in signature.state.values():
        owner, attribute = _owner(root, target)
        tensor = tensors[target]
        if isinstance(tensor, nn.Parameter):
            owner.register_parameter(attribute, tensor)
        elif attribute not in owner._buffers:
            owner.register_buffer(attribute, tensor)
        root.state_tensors[target] = (owner, attribute)
    values = program["graph"]["tensor_values"]
    specs = []
    for name in signature.user_inputs:
        meta = values[name]
        dtype = str(_DTYPES[meta["dtype"]]).removeprefix("torch.")
        specs.append(InputSpec(tuple(map(_size, meta["sizes"])), dtype, name))
        signature.shapes[name] = tuple(size.get("as_int") for size in meta["sizes"])
    return root, tuple(specs)


def _signature(program: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> _Signature:
    state: dict[str, str] = {}
    literals: dict[str, Any] = {}
    user_inputs: list[str] = []
    for spec in program["signature"]["input_specs"]:
        kind, content = _union(spec)
        if kind == "user_input":
            argument_kind, argument = _union(content["arg"])
            if argument_kind == "as_tensor":
                user_inputs.append(argument["name"])
        elif kind in _STATE:
            state[content["arg"]["name"]] = content[_STATE[kind]]
        elif kind == "constant_input":
            literals[content["name"]] = _union(content["value"])[1]
        else:
            raise ValueError(f"an input of kind {kind}")
    missing = [name for name in state.values() if name not in tensors]
    if missing:
        raise ValueError(f"no data for {missing[0]}")
    mutations, user_outputs = [], []
    for position, spec in enumerate(program["signature"]["output_specs"]):
        kind, content = _union(spec)
        if kind == "buffer_mutation":
            mutations.append((position, content["buffer_name"]))
        elif kind in ("user_output", "loss_output"):
            user_outputs.append(position)
    return _Signature(state, literals, user_inputs, mutations, user_outputs)


_STATE = {"parameter": "parameter_name", "buffer": "buffer_name", "tensor_constant": "tensor_constant_name"}


def _body(source: str, graph: Mapping[str, Any]) -> _Body:
    nodes = [_node(source, node) for node in graph["nodes"]]
    for index, node in enumerate(nodes):
        if not node.stack:
            before = nodes[index - 1].stack if index else ()
            after = next((n.stack for n in nodes[index:] if n.stack), ())
            node.stack = tuple(b for b, a in zip(before, after, strict=False) if b == a)
    kept = set(_names_in(graph["outputs"]))
    later: set[str] = set(kept)
    for node in reversed(nodes):
        used = {*_names_in([argument for _, argument in node.args]), *_names_in(node.outputs)}
        node.frees = tuple(used - later)
        later |= used
    inputs = [next(_names_in(argument), "") for argument in graph["inputs"]]
    return _Body(inputs, nodes, graph["outputs"])


_OPERATOR = re.compile(r"torch\.ops\.(\w+)\.(\w+)\.(\w+)")


def _node(source: str, node: Mapping[str, Any]) -> _Node:
    target = node["target"]
    stack = tuple(_stack(node["metadata"].get("nn_module_stack", "")))
    body = None
    args = []
    for argument in node["inputs"]:
        if "as_graph" in argument["arg"]:
            body = _body(source, argument["arg"]["as_graph"]["graph"])
        else:
            args.append((argument["name"] if argument.get("kind") == 2 else None, argument["arg"]))
    function = None
    if body is None and target not in _ASSERTIONS:
        function = _FUNCTIONS.get(target) or _overload(target)
    if (function is None and target not in _ASSERTIONS and body is None) or (body and target not in _CONTEXTS):
        raise UnsupportedOp(
            "this program uses an operation that memfit does not run from a file",
            where=f"{source}: {stack[-1][1] if stack else ''}".rstrip(": "),
            received=target,
            todo="capture the model from Python instead: FILE.py:CALLABLE",
        )
    return _Node(target, function, args, node["outputs"], stack, body=body)


def _overload(target: str) -> Callable[..., Any] | None:
    """The operator that a target names, if it is PyTorch's or torchvision's."""
    match = _OPERATOR.fullmatch(target)
    if match is None or match[1] not in _NAMESPACES or match[2] == "from_file":
        return None
    packet = getattr(getattr(torch.ops, match[1]), match[2], None)
    found = getattr(packet, match[3], None)
    return found if isinstance(found, torch._ops.OpOverload) else None


def _stack(text: str) -> Iterator[tuple[str, str, str]]:
    """Read `key,path,class;…`, the root first."""
    for entry in filter(None, text.split(";")):
        key, path, name = entry.split(",", 2)
        yield key, path, name


def _path(path: str) -> str:
    """A module's path, without the mark of a repeated call."""
    return path.partition("@")[0]


def _all_nodes(body: _Body) -> Iterator[_Node]:
    for node in body.nodes:
        yield node
        if node.body is not None:
            yield from _all_nodes(node.body)


# -- module tree --------------------------------------------------------------------------------------------------


def _tree(classes: Mapping[str, str], state: Sequence[str]) -> ExportedProgram:
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
        owner, name = _owner(root, path)
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


def _owner(root: nn.Module, path: str) -> tuple[nn.Module, str]:
    parent, _, name = path.rpartition(".")
    return root.get_submodule(parent), name
