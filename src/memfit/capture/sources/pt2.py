"""Programs saved by `torch.export.save`: read from their JSON, without unpickling or executing anything in the file.

`torch.export.load` unpickles sample inputs and some constants, evaluates symbolic expressions and generates code. A
capture needs none of that: the operations, their arguments and the module that each came from stand in a JSON file,
and weights are only sizes. Here that JSON becomes a tree of modules whose calls run its operations one by one.

The format is `torch/_export/serde/schema.py` (schema version 8) in the archive of `torch/export/pt2_archive`, as of
PyTorch 2.13.
"""

from __future__ import annotations

import json
import re
import zipfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from memfit.capture.phantom import phantom
from memfit.capture.shim import define_missing_torchvision_schemas
from memfit.capture.sources.exported import (
    ASSERTIONS,
    CONTEXTS,
    DTYPES,
    FUNCTIONS,
    Body,
    ExportedProgram,
    Node,
    Signature,
    module_path,
    module_tree,
    names_in,
    owner_of,
    union,
)
from memfit.capture.sources.inputs import InputSpec
from memfit.capture.sources.loaded import LoadedSource
from memfit.errors import SourceError, UnsupportedOp, said

_NAMESPACES = {"aten", "prims", "torchvision"}
"""Operators that a file may name; anything else could do anything."""

_SMALL_BYTES = 1 << 20
"""Constants up to this size are read, since control flow may have been computed from them."""


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
            f"this program cannot be read: {said(error)}",
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
    tensor = phantom(shape, strides, DTYPES[meta["dtype"]])
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


# -- reading ------------------------------------------------------------------------------------------------------


def _program(
    source: str, program: Mapping[str, Any], tensors: dict[str, Tensor]
) -> tuple[ExportedProgram, tuple[InputSpec, ...]]:
    signature = _signature(program, tensors)
    body = _body(source, program["graph"])
    classes = {module_path(path): name for node in _all_nodes(body) for _, path, name in node.stack}
    root = module_tree(classes, [*signature.state.values(), *(name for _, name in signature.mutations)])
    root.body = body
    root.signature = signature
    root.state_tensors = {}
    for target in signature.state.values():
        owner, attribute = owner_of(root, target)
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
        dtype = str(DTYPES[meta["dtype"]]).removeprefix("torch.")
        specs.append(InputSpec(tuple(map(_size, meta["sizes"])), dtype, name))
        signature.shapes[name] = tuple(size.get("as_int") for size in meta["sizes"])
    return root, tuple(specs)


def _signature(program: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Signature:
    state: dict[str, str] = {}
    literals: dict[str, Any] = {}
    user_inputs: list[str] = []
    for spec in program["signature"]["input_specs"]:
        kind, content = union(spec)
        if kind == "user_input":
            argument_kind, argument = union(content["arg"])
            if argument_kind == "as_tensor":
                user_inputs.append(argument["name"])
        elif kind in _STATE:
            state[content["arg"]["name"]] = content[_STATE[kind]]
        elif kind == "constant_input":
            literals[content["name"]] = union(content["value"])[1]
        else:
            raise ValueError(f"an input of kind {kind}")
    missing = [name for name in state.values() if name not in tensors]
    if missing:
        raise ValueError(f"no data for {missing[0]}")
    mutations, user_outputs = [], []
    for position, spec in enumerate(program["signature"]["output_specs"]):
        kind, content = union(spec)
        if kind == "buffer_mutation":
            mutations.append((position, content["buffer_name"]))
        elif kind in ("user_output", "loss_output"):
            user_outputs.append(position)
    return Signature(state, literals, user_inputs, mutations, user_outputs)


_STATE = {"parameter": "parameter_name", "buffer": "buffer_name", "tensor_constant": "tensor_constant_name"}


def _body(source: str, graph: Mapping[str, Any]) -> Body:
    nodes = [_node(source, node) for node in graph["nodes"]]
    for index, node in enumerate(nodes):
        if not node.stack:
            before = nodes[index - 1].stack if index else ()
            after = next((n.stack for n in nodes[index:] if n.stack), ())
            node.stack = tuple(b for b, a in zip(before, after, strict=False) if b == a)
    kept = set(names_in(graph["outputs"]))
    later: set[str] = set(kept)
    for node in reversed(nodes):
        used = {*names_in([argument for _, argument in node.args]), *names_in(node.outputs)}
        node.frees = tuple(used - later)
        later |= used
    inputs = [next(names_in(argument), "") for argument in graph["inputs"]]
    return Body(inputs, nodes, graph["outputs"])


_OPERATOR = re.compile(r"torch\.ops\.(\w+)\.(\w+)\.(\w+)")


def _node(source: str, node: Mapping[str, Any]) -> Node:
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
    if body is None and target not in ASSERTIONS:
        function = FUNCTIONS.get(target) or _overload(target)
    if (function is None and target not in ASSERTIONS and body is None) or (body and target not in CONTEXTS):
        raise UnsupportedOp(
            "this program uses an operation that memfit does not run from a file",
            where=f"{source}: {stack[-1][1] if stack else ''}".rstrip(": "),
            received=target,
            todo="capture the model from Python instead: FILE.py:CALLABLE",
        )
    return Node(target, function, args, node["outputs"], stack, body=body)


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


def _all_nodes(body: Body) -> Iterator[Node]:
    for node in body.nodes:
        yield node
        if node.body is not None:
            yield from _all_nodes(node.body)
