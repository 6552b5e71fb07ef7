"""Damage `.onnx` files: where their protobuf has numbers and texts, and changes that keep it protobuf.

`benchmarks/fuzz_readers.py` draws from these.
"""

from __future__ import annotations

import random
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
Marks = tuple[list[int], list[tuple[int, int]]]


def seeds() -> dict[str, bytes]:
    sys.path.insert(0, str(ROOT / "tests" / "pure"))
    import onnx_models as models

    found = {name: make() for name, make in models.MIXED_NETS.items()}
    found |= {name: make() for k, (name, make) in enumerate(models.OPERATOR_NETS.items()) if k % 2 == 0}
    return {name: data for name, data in found.items() if name not in models.INPUTS}


_MESSAGES = {
    "model": {7: "graph", 8: "opset", 25: "function"},
    "graph": {1: "node", 5: "tensor", 11: "info", 12: "info", 13: "info"},
    "node": {5: "attribute"},
    "attribute": {5: "tensor", 6: "graph"},
    "function": {7: "node", 9: "opset"},
    "info": {2: "type"},
    "type": {1: "tensor_type"},
    "tensor_type": {2: "shape"},
    "shape": {1: "dim"},
    "dim": {},
    "tensor": {},
    "opset": {},
}
_TEXTS = {
    "graph": {2},
    "node": {1, 2, 3, 4, 7},
    "attribute": {1, 4},
    "tensor": {8},
    "info": {1},
    "dim": {2},
    "opset": {1},
}


def landmarks(data: bytes) -> Marks:
    """Bytes of every tag, length and number, and the texts."""
    numbers: list[int] = []
    texts: list[tuple[int, int]] = []

    def varint(at: int) -> tuple[int, int]:
        value = shift = 0
        while True:
            value |= (data[at] & 0x7F) << shift
            shift += 7
            at += 1
            if data[at - 1] < 0x80:
                return value, at

    def walk(at: int, end: int, message: str) -> None:
        while at < end:
            numbers.append(at)
            tag, at = varint(at)
            field, wire = tag >> 3, tag & 7
            numbers.append(at)
            if wire == 0:
                _, at = varint(at)
            elif wire == 2:
                length, at = varint(at)
                inner = _MESSAGES[message].get(field)
                if inner is not None:
                    walk(at, at + length, inner)
                elif field in _TEXTS.get(message, ()):
                    texts.append((at, length))
                elif length <= 128:
                    numbers.extend(range(at, at + length))
                at += length
            else:
                at += 8 if wire == 1 else 4

    walk(0, len(data), "model")
    return numbers, texts


# -- changes that keep the file protobuf ---------------------------------------------------------------------------

_SIZES = (0, 1, 2, 3, 5, 7, -1, -2, 1 << 31, 1 << 40, (1 << 62), (1 << 63) - 1, -(1 << 63), 255, 1000, 65537)
_NAMES = (
    "",
    "\x1b[31m",
    "[/red]",
    "<script>",
    "\u202eevil",
    "\x00",
    "a" * 5000,
    "\n",
    "| x |",
    "=1+1",
    "input0",
    "/",
    "a/b/c",
)


def _parsed(data: bytearray) -> Any:
    from google.protobuf.message import DecodeError
    from onnx import ModelProto

    model = ModelProto()
    try:
        model.ParseFromString(bytes(data))
    except DecodeError:
        return None
    return model if model.HasField("graph") else None


def _done(data: bytearray, model: Any) -> None:
    data[:] = model.SerializeToString(deterministic=True)


def _graphs(model: Any) -> list[Any]:
    found = [model.graph]
    for graph in found:
        for node in graph.node:
            found += [a.g for a in node.attribute if a.HasField("g")]
    return found


def _nodes(model: Any) -> list[Any]:
    return [n for g in _graphs(model) for n in g.node] + [n for f in model.functions for n in f.node]


def sizes(data: bytearray, drawn: random.Random, _marks: Marks) -> None:
    """Dimensions of inputs and constants become impossible ones."""
    model = _parsed(data)
    if model is None:
        return
    dims: list[tuple[Any, int | None]] = []
    for graph in _graphs(model):
        for info in (*graph.input, *graph.output, *graph.value_info):
            dims += [(d, None) for d in info.type.tensor_type.shape.dim]
        for tensor in graph.initializer:
            dims += [(tensor.dims, k) for k in range(len(tensor.dims))]
    if not dims:
        return
    held, place = drawn.choice(dims)
    if place is None:
        if drawn.random() < 0.3:
            held.dim_param = drawn.choice(("N", "n", "", "batch", *_NAMES))
        else:
            held.dim_value = drawn.choice(_SIZES)
    else:
        held[place] = drawn.choice(_SIZES)
    _done(data, model)


def attributes(data: bytearray, drawn: random.Random, _marks: Marks) -> None:
    """Attributes become extreme, of another type, or are gone."""
    model = _parsed(data)
    nodes = [] if model is None else [n for n in _nodes(model) if n.attribute]
    if not nodes:
        return
    node = drawn.choice(nodes)
    held = drawn.choice(list(node.attribute))
    how = drawn.randrange(6)
    if how == 0:
        node.attribute.remove(held)
    elif how == 1:
        held.type = drawn.randrange(15)
    elif how == 2 and held.ints:
        held.ints[drawn.randrange(len(held.ints))] = drawn.choice(_SIZES)
    elif how == 3 and held.ints:
        held.ints.extend([drawn.choice(_SIZES)] * drawn.choice((1, 5, 200)))
    elif how == 4:
        held.name = drawn.choice(_NAMES)
    else:
        held.i = drawn.choice(_SIZES)
        held.f = drawn.choice((0.0, -1.0, float("nan"), float("inf"), 1e30, 1e-30))
    _done(data, model)


def wiring(data: bytearray, drawn: random.Random, _marks: Marks) -> None:
    """Names lead elsewhere: circles, doubles, nothing."""
    model = _parsed(data)
    nodes = [] if model is None else _nodes(model)
    if not nodes:
        return
    node, other = drawn.choice(nodes), drawn.choice(nodes)
    every = [name for n in nodes for name in (*n.input, *n.output)] or [""]
    how = drawn.randrange(7)
    if how == 0 and node.input:
        node.input[drawn.randrange(len(node.input))] = drawn.choice((*every, *_NAMES))
    elif how == 1 and node.output:
        node.output[drawn.randrange(len(node.output))] = drawn.choice((*every, *_NAMES))
    elif how == 2:
        node.op_type = drawn.choice((other.op_type, *_NAMES, "Loop", "If", "Scan", "Reshape", "Resize", "Conv", "LSTM"))
    elif how == 3:
        node.domain = drawn.choice(("com.microsoft", "local", "ai.onnx", *_NAMES))
    elif how == 4:
        node.input.extend([drawn.choice(every)] * drawn.choice((1, 3, 1000)))
    elif how == 5:
        del node.input[drawn.randrange(len(node.input) + 1) :]
    else:
        node.output.extend([drawn.choice((*every, "new"))] * drawn.choice((1, 3)))
    _done(data, model)


def order(data: bytearray, drawn: random.Random, _marks: Marks) -> None:
    """Nodes, initializers and inputs change places, come twice, or go."""
    model = _parsed(data)
    if model is None:
        return
    graph = drawn.choice(_graphs(model))
    held = drawn.choice((graph.node, graph.node, graph.initializer, graph.input, graph.output, graph.value_info))
    if not len(held):
        return
    items = [type(item).FromString(item.SerializeToString()) for item in held]
    how = drawn.randrange(3)
    if how == 0:
        drawn.shuffle(items)
    elif how == 1:
        again = drawn.choice(items)
        items += [again] * min(drawn.choice((1, 2, 2000)), max(2, (1 << 20) // max(1, again.ByteSize())))
    else:
        items.remove(drawn.choice(items))
    del held[:]
    held.extend(items)
    _done(data, model)


def tensors(data: bytearray, drawn: random.Random, _marks: Marks) -> None:
    """Constants take other types and values, and stand in other files."""
    model = _parsed(data)
    if model is None:
        return
    held = [t for g in _graphs(model) for t in g.initializer]
    held += [a.t for n in _nodes(model) for a in n.attribute if a.HasField("t")]
    if not held:
        return
    tensor = drawn.choice(held)
    how = drawn.randrange(5)
    if how == 0:
        tensor.data_type = drawn.randrange(-1, 30)
    elif how == 1:
        tensor.data_location = 1
        tensor.external_data.add(key="location", value=drawn.choice(("/etc/passwd", "../../x", "\x1b[31m", "w.bin")))
    elif how == 2 and tensor.raw_data:
        raw = bytearray(tensor.raw_data)
        raw[drawn.randrange(len(raw))] = drawn.randrange(256)
        tensor.raw_data = bytes(raw)
    elif how == 3 and tensor.raw_data and tensor.data_type == 7:
        count = len(tensor.raw_data) // 8
        values = [drawn.choice(_SIZES) for _ in range(count)]
        tensor.raw_data = b"".join(v.to_bytes(8, "little", signed=True) for v in values)
    else:
        tensor.dims.extend([drawn.choice(_SIZES)] * drawn.choice((1, 40)))
    _done(data, model)


def nesting(data: bytearray, drawn: random.Random, _marks: Marks) -> None:
    """Graphs inside graphs inside graphs; functions that call each other."""
    model = _parsed(data)
    if model is None:
        return
    from onnx import helper

    if drawn.random() < 0.5:
        graph = model.graph
        for _ in range(drawn.choice((2, 10, 20, 40))):
            outer = helper.make_graph([], "outer", [], [])
            node = outer.node.add()
            node.op_type = drawn.choice(("If", "Loop"))
            for name in ("then_branch", "else_branch", "body"):
                held = node.attribute.add(name=name, type=5)
                if name != "else_branch":
                    held.g.CopyFrom(graph)
                if len(graph.SerializeToString()) > 1 << 17:
                    break
            node.input.extend(list(graph.node[0].input)[:2] if graph.node else [])
            node.output.append("y")
            outer.input.extend(model.graph.input)
            outer.output.extend(graph.output)
            if outer.ByteSize() > 1 << 19:
                break
            graph = outer
        model.graph.CopyFrom(graph)
    else:
        names = [f"f{k}" for k in range(drawn.choice((1, 2, 30)))]
        circle = drawn.random() < 0.3
        for k, name in enumerate(names):
            after = names[(k + 1) % len(names)] if circle or k + 1 < len(names) else None
            if after is not None:
                body = [helper.make_node(after, ["a"], [f"b{n}"], domain="local") for n in range(2)]
                body.append(helper.make_node("Add", ["b0", "b1"], ["b"]))
            else:
                body = [helper.make_node("Relu", ["a"], ["b"])]
            model.functions.append(
                helper.make_function("local", name, ["a"], ["b"], body, [helper.make_opsetid("", 13)])
            )
        node = drawn.choice(list(model.graph.node)) if model.graph.node else model.graph.node.add()
        node.op_type, node.domain = names[0], "local"
        del node.input[1:], node.attribute[:]
    _done(data, model)


WAYS = (sizes, sizes, attributes, attributes, wiring, wiring, order, tensors, tensors, nesting)


# -- what reading one means ----------------------------------------------------------------------------------------


def same_network(data: bytes, model: Any) -> bool:
    """The package's own parser, which copies the weights too, must see the same network."""
    from onnx import ModelProto

    stock = ModelProto.FromString(data)
    return _same_graph(stock.graph, model.graph) and len(stock.functions) == len(model.functions)


def _same_graph(stock: Any, ours: Any) -> bool:
    same = len(stock.node) == len(ours.nodes) and len(stock.initializer) + len(stock.sparse_initializer) == len(
        ours.initializers
    )
    for a, b in zip(stock.node, ours.nodes, strict=False):
        same = same and (_text(a.op_type), tuple(map(_text, a.input))) == (b.op_type, b.inputs)
        same = same and tuple(map(_text, a.output)) == b.outputs and len(a.attribute) == len(b.attributes)
        for held in a.attribute:
            if held.type == 5 and not held.ref_attr_name:
                same = same and _same_graph(held.g, b.attributes[_text(held.name)])
    for tensor in stock.initializer:
        same = same and tuple(tensor.dims) == ours.initializers[_text(tensor.name)].shape
    return same


def _text(value: Any) -> str:
    return value if isinstance(value, str) else value.decode("utf-8", "backslashreplace")
