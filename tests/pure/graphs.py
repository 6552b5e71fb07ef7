"""Graphs small enough to work out by hand, written operation by operation."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from memfit.graph.model import BEFORE, ITEMSIZE, Graph, Op, Phase, Scope, Storage, StorageKind, Tensor
from memfit.graph.verify import verify

Shape = tuple[int, ...]


def strides_of(shape: Shape) -> Shape:
    return tuple(math.prod(shape[i + 1 :]) for i in range(len(shape)))


@dataclass
class Builder:
    """Writes a graph in the order in which it runs; `build` works the lifetimes out and verifies it."""

    training: bool = False
    tensors: list[Tensor] = field(default_factory=list)
    kinds: list[StorageKind] = field(default_factory=list)
    sizes: list[int] = field(default_factory=list)
    births: list[int] = field(default_factory=list)
    versions: list[int] = field(default_factory=list)
    ops: list[Op] = field(default_factory=list)
    inputs: list[int] = field(default_factory=list)
    scopes: dict[str, dict[str, Any]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.module("", "Net")

    def module(self, path: str, class_name: str = "Module", *, container: bool = False) -> int:
        """Declare a module; parents first."""
        if path not in self.scopes:
            parent = -1
            if path:
                above = path.rpartition(".")[0]
                parent = self.scopes[above]["index"] if above in self.scopes else self.module(above)
            self.scopes[path] = {
                "index": len(self.scopes),
                "path": path,
                "class_name": class_name,
                "parent": parent,
                "container": container,
                "params": [],
                "buffers": [],
            }
        return int(self.scopes[path]["index"])

    def sequence(self, path: str) -> None:
        self.module(path, "Sequential", container=True)

    def _storage(self, kind: StorageKind, nbytes: int, birth: int) -> int:
        self.kinds.append(kind)
        self.sizes.append(nbytes)
        self.births.append(birth)
        self.versions.append(0)
        return len(self.kinds) - 1

    def _tensor(self, storage: int, shape: Shape, dtype: str = "float32", **more: Any) -> int:
        tensor = Tensor(len(self.tensors), storage, shape, strides_of(shape), dtype, version=self.versions[storage])
        self.tensors.append(tensor._replace(**more))
        return tensor.id

    def _fresh(self, kind: StorageKind, shape: Shape, birth: int, dtype: str = "float32", **more: Any) -> int:
        return self._tensor(self._storage(kind, math.prod(shape) * ITEMSIZE[dtype], birth), shape, dtype, **more)

    def input(self, *shape: int, dtype: str = "float32", name: str = "input") -> int:
        tensor = self._fresh(StorageKind.INPUT, shape, BEFORE, dtype, name=name)
        self.inputs.append(tensor)
        return tensor

    def parameter(self, name: str, *shape: int, trainable: bool = True) -> int:
        path = name.rpartition(".")[0]
        self.module(path)
        tensor = self._fresh(StorageKind.PARAMETER, shape, BEFORE, name=name, trainable=trainable)
        self.scopes[path]["params"].append(tensor)
        return tensor

    def buffer(self, name: str, *shape: int, dtype: str = "float32") -> int:
        path = name.rpartition(".")[0]
        self.module(path)
        tensor = self._fresh(StorageKind.BUFFER, shape, BEFORE, dtype, name=name)
        self.scopes[path]["buffers"].append(tensor)
        return tensor

    def op(
        self,
        kind: str,
        inputs: Sequence[int],
        *shapes: Shape,
        path: str = "",
        macs: int = 0,
        saved: Sequence[int] = (),
        phase: Phase = Phase.FORWARD,
        dtype: str = "float32",
        **attrs: Any,
    ) -> int:
        """Run an operation that makes new storages, one per shape; the first output's tensor comes back."""
        index = len(self.ops)
        outputs = [self._fresh(StorageKind.ACTIVATION, shape, index, dtype) for shape in shapes]
        self._record(kind, inputs, outputs, path, macs=macs, saved=tuple(saved), phase=phase, attrs=attrs)
        return outputs[0] if outputs else -1

    def view(self, source: int, *shape: int, path: str = "", kind: str = "view", offset: int = 0) -> int:
        tensor = self.tensors[source]
        result = self._tensor(tensor.storage, shape, tensor.dtype, offset=offset, version=tensor.version)
        self._record(kind, (source,), [result], path)
        return result

    def inplace(self, kind: str, target: int, *others: int, path: str = "", saved: Sequence[int] = ()) -> int:
        """Run an operation that overwrites its first input."""
        tensor = self.tensors[target]
        self.versions[tensor.storage] += 1
        result = self._tensor(tensor.storage, tensor.shape, tensor.dtype, offset=tensor.offset)
        self._record(kind, (target, *others), [result], path, saved=tuple(saved))
        return result

    def _record(self, kind: str, inputs: Sequence[int], outputs: Sequence[int], path: str, **rest: Any) -> None:
        op = Op(len(self.ops), kind, f"test.{kind}", tuple(inputs), tuple(outputs), {}, self.module(path))
        self.ops.append(op._replace(**rest))

    # -- layers that tests use often -------------------------------------------------------------------------------

    def conv(
        self, x: int, channels: int, kernel: int = 1, stride: int = 1, *, path: str, depthwise: bool = False
    ) -> int:
        """Run a padded convolution with a bias."""
        n, c, h, w = self.tensors[x].shape
        groups = c if depthwise else 1
        weight = self.parameter(f"{path}.weight", channels, c // groups, kernel, kernel)
        bias = self.parameter(f"{path}.bias", channels)
        shape = (n, channels, -(-h // stride), -(-w // stride))
        return self.op(
            "depthwise_conv2d" if depthwise else "conv2d",
            (x, weight, bias),
            shape,
            path=path,
            macs=math.prod(shape) * (c // groups) * kernel * kernel,
            saved=(x, weight),
            kernel=(kernel, kernel),
            stride=(stride, stride),
        )

    def norm(self, x: int, *, path: str, kind: str = "batch_norm") -> int:
        channels = self.tensors[x].shape[1]
        weight, bias = self.parameter(f"{path}.weight", channels), self.parameter(f"{path}.bias", channels)
        return self.op(kind, (x, weight, bias), self.tensors[x].shape, path=path, saved=(x, weight))

    def unary(self, kind: str, x: int, *, path: str = "", saved: Sequence[int] = ()) -> int:
        return self.op(kind, (x,), self.tensors[x].shape, path=path, saved=saved)

    def add(self, x: int, y: int, *, path: str = "") -> int:
        return self.op("add", (x, y), self.tensors[x].shape, path=path)

    def pool(self, x: int, *, path: str = "") -> int:
        n, c, h, w = self.tensors[x].shape
        return self.op("max_pool2d", (x,), (n, c, h // 2, w // 2), path=path, kernel=(2, 2), stride=(2, 2))

    def linear(self, x: int, width: int, *, path: str) -> int:
        """Run a linear layer as captured: a transposed view of the weight, then the product."""
        *batch, inner = self.tensors[x].shape
        weight = self.parameter(f"{path}.weight", width, inner)
        bias = self.parameter(f"{path}.bias", width)
        turned = self.view(weight, inner, width, path=path, kind="t")
        rows = math.prod(batch)
        return self.op(
            "linear", (bias, x, turned), (*batch, width), path=path, macs=rows * inner * width, saved=(x, turned)
        )

    def build(self, *outputs: int) -> Graph:
        """Make the graph; eager lifetimes are as ideal ones here."""
        count = len(self.ops)
        last = list(self.births)
        for op in self.ops:
            for tensor in (*op.inputs, *op.outputs):
                last[self.tensors[tensor].storage] = op.index
        kept = {self.tensors[tensor].storage for tensor in outputs}
        lasting = (StorageKind.PARAMETER, StorageKind.BUFFER)
        deaths = [count if s in kept or kind in lasting else max(last[s] + 1, 0) for s, kind in enumerate(self.kinds)]
        graph = Graph(
            storages=tuple(
                Storage(s, self.sizes[s], kind, self.births[s], deaths[s], deaths[s])
                for s, kind in enumerate(self.kinds)
            ),
            tensors=tuple(self.tensors),
            ops=tuple(self.ops),
            scopes=tuple(
                Scope(**{**s, "params": tuple(s["params"]), "buffers": tuple(s["buffers"])})
                for s in self.scopes.values()
            ),
            inputs=tuple(self.inputs),
            outputs=tuple(outputs),
            source="by hand",
            training=self.training,
        )
        verify(graph)
        return graph


def inverted_residual(*, stride: int = 1, skip: bool = True, batch: int = 1) -> Graph:
    """Expand 2 channels to 6, depthwise, project back to 2, on 4x4 pixels: MobileNetV2's block."""
    b = Builder()
    x = b.input(batch, 2, 4, 4)
    b.sequence("block")
    h = b.unary("relu6", b.norm(b.conv(x, 6, path="block.0"), path="block.1"), path="block.2")
    h = b.conv(h, 6, 3, stride, path="block.3", depthwise=True)
    h = b.inplace("relu6", b.norm(h, path="block.4"), path="block.5")
    y = b.norm(b.conv(h, 2, path="block.6"), path="block.7")
    return b.build(b.add(x, y) if skip else y)


def training_step() -> Graph:
    """Convolution, batch norm, ReLU in place, pooling, linear; autograd's saved tensors as PyTorch has them."""
    b = Builder(training=True)
    x = b.input(2, 2, 4, 4)
    b.sequence("body")
    h = b.norm(b.conv(x, 4, path="body.conv"), path="body.bn")
    index = b.versions[b.tensors[h].storage]
    assert index == 0
    r = b.inplace("relu", h, path="body.relu")
    b.ops[-1] = b.ops[-1]._replace(saved=(r,))
    p = b.op("max_pool2d", (r,), (2, 4, 2, 2), path="body.pool", saved=(r,), kernel=(2, 2), stride=(2, 2))
    y = b.linear(b.view(p, 2, 16), 3, path="fc")
    loss = b.op("mse_loss", (y,), (), saved=(y,), phase=Phase.LOSS)
    g = b.op("mse_loss_backward", (loss, y), (2, 3), phase=Phase.BACKWARD)
    weight = next(t.id for t in b.tensors if t.name == "fc.weight")
    g = b.op("linear_backward", (g, weight), (2, 16), path="fc", macs=96, phase=Phase.BACKWARD)
    b.op("max_pool2d_with_indices_backward", (g, r), (2, 4, 4, 4), path="body.pool", phase=Phase.BACKWARD)
    return b.build(loss)
