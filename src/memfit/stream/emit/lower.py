"""Lowering: all units of a network written one after the other, whole values between them."""

from __future__ import annotations

from collections.abc import Container, Sequence

from memfit.stream.emit.draft import Cut, Draft
from memfit.stream.emit.nodes import IN_PLACE, Network, Node
from memfit.stream.emit.patch import Patch, Unit, name_of, put

CONCATENATED = 10
"""Inputs that CONCATENATION takes at most: kMaxInputNum, kernels/concatenation.cc."""


def lower(network: Network, units: Sequence[Unit], *, upper: bool = True) -> Draft:
    """Write all units, one after the other; `upper` says at which end of the arena the network's inputs lie."""
    draft = Draft(network.model)
    for i in network.model.main.inputs:
        draft.upper[draft.keep(i)] = upper
    bounds = {position for unit in units if unit.cuts for position in (unit.begin, unit.end)}
    _cut(draft, network, 0, bounds)
    for unit in units:
        lower_unit(draft, network, unit)
        for o in network.nodes[unit.end - 1].outputs:
            draft.upper[draft.keep(o)] = unit.upward
        _cut(draft, network, unit.end, bounds)
    for i in network.model.main.outputs:
        draft.keep(i)
    return draft


def _cut(draft: Draft, network: Network, position: int, bounds: Container[int]) -> None:
    """Note where patches begin or end, or a single value lives on."""
    live = network.live(position)
    if len(live) == 1 or position in bounds:
        draft.cuts.append(Cut(position, len(draft.operators), tuple(draft.whole[v] for v in live)))


def lower_unit(draft: Draft, network: Network, unit: Unit) -> None:
    """Write one unit; a value that it makes is whole at its end."""
    if not unit.cuts:
        _plain(draft, network, network.nodes[unit.begin])
        return
    out = network.nodes[unit.end - 1].output
    spans = list(zip(unit.cuts[:-1], unit.cuts[1:], strict=True))
    if len(spans) == 1:
        patch = Patch(draft, network, unit, *spans[0], whole=True)
        patch.write()
        return
    result = draft.keep(out)
    parts: dict[int, int] = {}
    for low, high in reversed(spans) if unit.upward else spans:
        patch = Patch(draft, network, unit, low, high, whole=False)
        parts[low] = patch.write()
    join(draft, network, out, [(low, parts[low]) for low, _ in spans], result)


def join(draft: Draft, network: Network, value: int, parts: list[tuple[int, int]], result: int) -> None:
    """Join rows; each part lies where the result has its rows, where addresses allow it."""
    image = network.images[value]
    while len(parts) > CONCATENATED:
        some, parts = parts[:CONCATENATED], parts[CONCATENATED:]
        rows = sum(draft.tensors[part].shape[1] for _, part in some)
        inner = draft.part(value, (1, rows, image.width, image.channels), name_of(network, value, some[0][0], rows))
        draft.add("CONCATENATION", [part for _, part in some], inner, axis=1)
        put(draft, inner, result, some[0][0] * image.row_bytes)
        parts.insert(0, (some[0][0], inner))
    draft.add("CONCATENATION", [part for _, part in parts], result, axis=1)


def _plain(draft: Draft, network: Network, node: Node) -> None:
    """Write a node as the model has it."""
    main = network.model.main
    for number in node.operators:
        operator = main.operators[number]
        inputs = [draft.keep(i) for i in operator.inputs]
        outputs = [draft.keep(i) for i in operator.outputs]
        draft.run(number, inputs, outputs)
    overwritten = in_place(network, node)
    if overwritten is not None:
        draft.place(draft.whole[overwritten], draft.whole[node.output], 0)


def in_place(network: Network, node: Node) -> int | None:
    """Give the input that an element-wise operator may write over: the first one made that nobody reads after it."""
    tensors = network.model.main.tensors
    if node.operator.name not in IN_PLACE or node.operator.is_custom:
        return None
    y = tensors[node.output]
    fitting = [
        i for i in node.inputs
        if network.last[i] == node.index and network.maker[i] >= 0
        and (tensors[i].shape, network.nbytes[i]) == (y.shape, network.nbytes[node.output])
    ]  # fmt: skip
    return min(fitting, key=lambda i: network.maker[i], default=None)
