"""A network written with its operations in another order, some of them more than once or not at all."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from memfit.stream.network import StreamNetwork, StreamOp, Value


def reordered(network: StreamNetwork, order: Sequence[int]) -> StreamNetwork:
    """Write a network whose operations are done in another order, some of them more than once or not at all.

    What an operation makes for the last time has its own name; what it made before is a value of its own, read by what
    comes before it is made anew.

    Args:
        network: as it was given.
        order: its operations; what is left out is read by none of them.
    """
    if list(order) == list(range(len(network.ops))):
        return network
    main = network.model.main
    last = {old: new for new, old in enumerate(order)}
    tensors = list(main.tensors)
    ops, operators = [], []
    now: dict[int, int] = {}
    """Tensor of the network as it was given → the one that holds it by now."""
    for new, old in enumerate(order):
        op, operator = network.ops[old], main.operators[old]
        read = {i: now.get(i, i) for i in operator.inputs}
        made = {i: i for i in operator.outputs}
        if last[old] != new:
            for i in operator.outputs:
                made[i] = len(tensors)
                tensors.append(tensors[i]._replace(index=made[i], name=f"{tensors[i].name}/pass {new}"))
        now.update(made)
        ops.append(
            replace(
                op, index=new, name=tensors[made[op.output]].name if op.output >= 0 else op.name,
                inputs=tuple(read[i] for i in op.inputs), output=made.get(op.output, op.output),
                others=tuple(made[i] for i in op.others),
            )
        )  # fmt: skip
        operators.append(
            operator._replace(
                index=new, inputs=tuple(read[i] for i in operator.inputs),
                outputs=tuple(made[i] for i in operator.outputs),
            )
        )  # fmt: skip
    model = replace(
        network.model,
        subgraphs=(
            main._replace(tensors=tuple(tensors), operators=tuple(operators)),
            *network.model.subgraphs[1:],
        ),
    )
    values = _values(network, ops, [network.ops[old] for old in order])
    return StreamNetwork(model, tuple(ops), values, network.inputs, network.outputs, network.estimated)


def _values(network: StreamNetwork, ops: Sequence[StreamOp], before: Sequence[StreamOp]) -> dict[int, Value]:
    """Make the values of operations in another order; `before` is what each was."""
    readers: dict[int, list[int]] = {}
    for op in ops:
        for i in op.inputs:
            readers.setdefault(i, []).append(op.index)
    found = {i: replace(network.values[i], readers=tuple(readers.get(i, ()))) for i in network.inputs}
    for op, old in zip(ops, before, strict=True):
        for i, like in zip((op.output, *op.others), (old.output, *old.others), strict=True):
            if i >= 0:
                found[i] = replace(
                    network.values[like], index=i, name=op.name if i == op.output else network.values[like].name,
                    producer=op.index, readers=tuple(readers.get(i, ())), leaves=i in network.outputs,
                )  # fmt: skip
    return dict(sorted(found.items()))
