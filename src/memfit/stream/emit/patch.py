"""One patch: some rows of a unit's output, and the operators that compute them.

What is needed of each value is worked out from the patch's rows backwards (`Patch.ask`), then the operators are written
forwards. A band that has more rows than needed is used as it is where padding lines up; garbage rows flow on and are
cut off where they would be read; where SAME cannot line up, a column or row of junk is appended at the cheapest place
before, or the convolution runs as VALID on a padded band.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import NamedTuple

from memfit.memory.tflm.builds import ALIGNMENT
from memfit.stream.emit.bands import Band, Fit, Need, across, choose, made
from memfit.stream.emit.draft import Draft, Part
from memfit.stream.emit.nodes import IN_PLACE, JOIN, POINT, SAME, VALID, WINDOW, Network, Node

_SLACK = 4
"""Rows that a band may have beyond those needed before it is cut."""


class Unit(NamedTuple):
    """Nodes that are computed together."""

    begin: int
    end: int
    """Nodes `[begin, end)`."""
    cuts: tuple[int, ...]
    """Rows at which the output is cut, from 0 to its height; empty to run the one node as it is."""
    upward: bool = False
    """What is made lies at the upper end of the arena, and patches begin with the last rows."""
    groups: int = 1
    """Groups of channels in which a 1 by 1 convolution and the depthwise one after it are computed."""

    @property
    def patches(self) -> int:
        """Number of patches."""
        return max(len(self.cuts) - 1, 1)


class CannotPatch(Exception):
    """A patch that these operators cannot compute."""


def put(draft: Draft, tensor: int, other: int, distance: int) -> bool:
    """Let a tensor lie in another, if the address allows it."""
    if distance % ALIGNMENT or tensor in draft.inside:
        return False
    draft.place(tensor, other, distance)
    return True


def name_of(network: Network, value: int, start: int, rows: int) -> str:
    """Name rows of a value, after the last part of its own name."""
    short = network.model.main.tensors[value].name.split(";")[-1].split("/")[-1] or f"tensor{value}"
    return f"{short}/rows {start} to {start + rows - 1}"


class Patch:
    """Rows `[low, high)` of a unit's output."""

    def __init__(self, draft: Draft, network: Network, unit: Unit, low: int, high: int, *, whole: bool) -> None:
        self.draft, self.network, self.unit = draft, network, unit
        self.low, self.high, self.whole = low, high, whole
        self.nodes = network.nodes[unit.begin : unit.end]
        self.over = overwritten(network, unit.begin, unit.end)
        self.makes = {node.output for node in self.nodes}
        self.readers: dict[int, list[Node]] = {}
        for node in self.nodes:
            for i in node.inputs:
                self.readers.setdefault(i, []).append(node)
        self.needs: dict[int, Need] = {}
        self.fits: dict[int, Fit | None] = {}
        """By node with a window; None where it runs as VALID on a padded band."""
        self.junk: dict[int, tuple[bool, bool]] = {}
        """Values to which junk is appended: row, column."""
        self.bands: dict[int, list[Band]] = {}
        self.wide = {second.index: first for first, second in pairs(network, self.nodes)} if unit.groups > 1 else {}
        """By depthwise convolution, the 1 by 1 convolution before it, where both run in groups of channels."""
        self.ask()

    # -- backwards ----------------------------------------------------------------------------------------------------

    def ask(self) -> None:
        """Work out what is needed of each value."""
        out = self.nodes[-1].output
        self.needs[out] = Need(self.low, self.high, self.low, self.high)
        for node in reversed(self.nodes):
            need = self.needs.get(node.output)
            if need is None or node.rows is None or node.columns is None:
                raise CannotPatch
            if (need.junk_row or need.junk_column) and not self._passes(node):
                self.junk[node.output] = need.junk_row, need.junk_column
                need = need._replace(junk_row=False, junk_column=False)
            asked = self._asked(node, need)
            for i in node.inputs:
                self.needs[i] = asked if i not in self.needs else self.needs[i].union(asked)
        for i, need in self.needs.items():
            if i not in self.makes and (need.junk_row or need.junk_column):
                self.junk[i] = need.junk_row, need.junk_column

    def _passes(self, node: Node) -> bool:
        """Tell whether junk may be appended before a node rather than after it."""
        if len(node.inputs) != 1 or len(self.readers[node.inputs[0]]) != 1:
            return False
        pointwise = node.kind == POINT or (node.kind == WINDOW and node.rows is not None and _is_point(node))
        x, y = (self.network.images[i] for i in (node.inputs[0], node.output))
        return pointwise and x.row_bytes <= y.row_bytes

    def _asked(self, node: Node, need: Need) -> Need:
        if node.kind != WINDOW or _is_point(node):
            return need
        assert node.rows is not None  # every node of a patch has windows
        assert node.columns is not None
        alone = len(self.readers[node.inputs[0]]) == 1
        found = choose(node.rows, node.columns, need, junk=alone and not node.rows.grows)
        x, y = (self.network.images[i] for i in (node.inputs[0], node.output))
        convolves = node.operator.name.endswith("CONV_2D")
        costly = found is not None and (found.need.junk_row or found.need.junk_column)
        if convolves and (found is None or (costly and x.row_bytes * node.rows.stride <= y.row_bytes)):
            self.fits[node.index] = None
            low, high = node.rows.needs(need.start, need.end)
            return Need(low, high, low, high)
        if found is None:
            raise CannotPatch
        self.fits[node.index] = found
        return found.need

    # -- forwards -----------------------------------------------------------------------------------------------------

    def write(self) -> int:
        """Write the operators; gives the tensor of the output's rows."""
        if self.over is not None:
            self.draft.place(self.draft.keep(self.over), self.draft.keep(self.nodes[-1].output), 0)
        for i, need in self.needs.items():
            if i not in self.makes:
                image = self.network.images[i]
                tensor = self.draft.keep(i)
                self.bands[i] = [Band(tensor, 0, image.height, image.width, 0, image.height)]
                self._append(i, need)
        postponed = {node.index for node in self.wide.values()}
        for node in self.nodes:
            if node.index not in postponed:
                band = self._groups(self.wide[node.index], node) if node.index in self.wide else self._node(node)
                self.bands[node.output] = [band]
                self._append(node.output, self.needs[node.output])
        return self._deliver()

    def _groups(self, first: Node, second: Node) -> Band:
        """Run two convolutions for one group of channels after the other, and join the channels."""
        count, groups = self.network.images[second.output].channels, self.unit.groups
        if first.output in self.junk:
            raise CannotPatch
        bands = []
        for number in range(groups):
            span = count * number // groups, count * (number + 1) // groups
            self.bands[first.output] = [self._node(first, span)]
            bands.append(self._window(second, span))
        band = bands[0]
        tensor = self._result(second, band, count)
        self.draft.add("CONCATENATION", [band.tensor for band in bands], tensor, axis=3)
        return band._replace(tensor=tensor)

    def _append(self, value: int, need: Need) -> None:
        """Append junk where it was asked for."""
        if value not in self.junk:
            return
        band = self._obtain(value, need.start, need.end)
        row, column = self.junk[value]
        self.bands[value] = [self._pad(value, band, (0, int(row)), (0, int(column)))]

    def _pad(self, value: int, band: Band, rows: tuple[int, int], columns: tuple[int, int]) -> Band:
        image = self.network.images[value]
        if image.row_axis != 1:
            raise CannotPatch
        high, wide = band.rows + sum(rows), band.columns + sum(columns)
        channels = self.draft.tensors[band.tensor].shape[3]
        tensor = self.draft.part(value, (1, high, wide, channels), self._named(value, band.start, high))
        around = self.draft.integers((0, 0, *rows, *columns, 0, 0), (4, 2))
        self.draft.add("PAD", [band.tensor, around], tensor)
        return Band(tensor, band.start - rows[0], high, wide, band.low, band.high)

    def _named(self, value: int, start: int, rows: int) -> str:
        return name_of(self.network, value, start, rows)

    def _resident(self, value: int, band: Band) -> bool:
        return value not in self.makes and band.tensor == self.draft.whole[value]

    def _obtain(self, value: int, start: int, end: int) -> Band:
        """Give a band of exactly these rows at the image's own width."""
        width = self.network.images[value].width
        for band in self.bands[value]:
            if (band.start, band.end, band.columns) == (start, end, width):
                return band
        for band in sorted(self.bands[value], key=lambda band: band.rows):
            if band.start <= start and end <= band.end and width <= band.columns:
                return self._slice(value, band, start, end)
        raise CannotPatch

    def _slice(self, value: int, band: Band, start: int, end: int, *, alias: bool = True) -> Band:
        """Cut rows out of a band, and columns that are not the image's off."""
        image = self.network.images[value]
        rows, first = end - start, start - band.start
        channels = self.draft.tensors[band.tensor].shape[3]  # of a group perhaps
        shape, begin = (1, rows, image.width, channels), (0, first, 0, 0)
        if image.row_axis == 2:
            shape, begin = (1, image.channels, rows, image.width), (0, 0, first, 0)
        tensor = self.draft.part(value, shape, self._named(value, start, rows))
        self._cut(band.tensor, begin, tensor)
        if alias and image.row_axis == 1 and band.columns == image.width:
            put(self.draft, tensor, band.tensor, first * image.row_bytes * channels // image.channels)
        found = Band(tensor, start, rows, image.width, max(band.low, start), min(band.high, end))
        self.bands[value].append(found)
        return found

    def _node(self, node: Node, channels: tuple[int, int] | None = None) -> Band:
        if node.kind == WINDOW and not _is_point(node):
            return self._window(node)
        if node.kind == JOIN:
            return self._join(node)
        value, need = node.inputs[0], self.needs[node.output]
        band = self._direct(value, self.needs[value]) or self._obtain(value, need.start, need.end)
        out = Band(-1, band.start, band.rows, band.columns, band.low, band.high)
        return self._run(node, [band], out, channels=channels)

    def _direct(self, value: int, need: Need) -> Band | None:
        """Find a band that holds what is needed and little more; the resident image counts if all of it is needed."""
        for band in sorted(self.bands[value], key=lambda band: band.rows):
            rows = band.rows - (need.end - need.start)
            if self._resident(value, band) and rows:
                continue
            if band.start <= need.start and need.end <= band.end and rows <= _SLACK:
                return band
        return None

    def _window(self, node: Node, channels: tuple[int, int] | None = None) -> Band:
        rows, columns = node.rows, node.columns
        assert rows is not None  # as in _asked
        assert columns is not None
        value, need, chosen = node.inputs[0], self.needs[node.output], self.fits[node.index]
        if chosen is None:
            return self._padded(node, channels)
        paddings = (chosen.padding, SAME + VALID - chosen.padding)
        best: tuple[int, Band, Band, int] | None = None
        for band in self.bands[value]:
            if self._resident(value, band) and band.rows != chosen.need.end - chosen.need.start:
                continue
            for padding in paddings:
                out = self._tried(node, band, padding)
                if out is None or out.low > need.low or out.high < need.high:
                    continue
                if out.start > need.start or out.end < need.end or out.rows > need.end - need.start + _SLACK:
                    continue
                if best is None or out.rows < best[0]:
                    best = out.rows, band, out, padding
        if best is None:
            band = self._obtain(value, chosen.need.start, chosen.need.end)
            found = self._tried(node, band, chosen.padding)
            if found is None or found.low > need.low or found.high < need.high:
                raise CannotPatch
            best = found.rows, band, found, chosen.padding
        _, band, out, padding = best
        return self._run(node, [band], out, padding, channels)

    def _tried(self, node: Node, band: Band, padding: int) -> Band | None:
        """Tell what a kernel makes of a band; None if its padding does not line up."""
        assert node.rows is not None  # as in _asked
        assert node.columns is not None
        wide = across(node.columns, padding, band.columns)
        found = made(node.rows, padding, (band.start, band.end), (band.low, band.high))
        if wide is None or found is None:
            return None
        return Band(-1, found.start, found.outputs, wide, found.low, found.high)

    def _padded(self, node: Node, channels: tuple[int, int] | None) -> Band:
        """Run a convolution as VALID on a band that is padded as its rows need."""
        rows, columns = node.rows, node.columns
        assert rows is not None  # as in _asked
        assert columns is not None
        value, need = node.inputs[0], self.needs[node.output]
        low, high = rows.needs(need.start, need.end)
        band = self._obtain(value, low, high)
        first = need.start * rows.stride - rows.before
        last = (need.end - 1) * rows.stride - rows.before + rows.kernel
        right = (columns.outputs - 1) * columns.stride - columns.before + columns.kernel - columns.length
        around = (max(-first, 0), max(last - rows.length, 0)), (columns.before, max(right, 0))
        if any(map(any, around)):
            band = self._pad(value, band, *around)
        out = Band(-1, need.start, need.end - need.start, columns.outputs, need.start, need.end)
        return self._run(node, [band], out, VALID, channels)

    def _join(self, node: Node) -> Band:
        """Bring the inputs to the same rows and columns, with as few cuts as can be."""
        need, width = self.needs[node.output], self.network.images[node.output].width
        shapes = {(need.start, need.end, width)}
        if not self._overwrites(node):  # no row more than its own may be written then
            shapes |= {(band.start, band.end, band.columns) for i in node.inputs for band in self.bands[i]}
        best: tuple[tuple[int, int], tuple[int, int, int]] | None = None
        for shape in shapes:
            start, end, columns = shape
            if start > need.start or end < need.end or end - start > need.end - need.start + _SLACK:
                continue
            cuts = 0
            for i in node.inputs:
                if any((band.start, band.end, band.columns) == shape for band in self.bands[i]):
                    continue
                if columns != width or not any(b.start <= start and end <= b.end for b in self.bands[i]):
                    cuts = -1
                    break
                cuts += 1
            if cuts >= 0 and (best is None or (cuts, end - start) < best[0]):
                best = (cuts, end - start), shape
        if best is None:
            raise CannotPatch
        start, end, columns = best[1]
        used = []
        for i in node.inputs:
            same = [b for b in self.bands[i] if (b.start, b.end, b.columns) == best[1]]
            used.append(same[0] if same else self._obtain(i, start, end))
        low, high = max(band.low for band in used), min(band.high for band in used)
        if low > need.low or high < need.high:
            raise CannotPatch
        return self._run(node, used, Band(-1, start, end - start, columns, low, high))

    def _run(
        self,
        node: Node,
        bands: Sequence[Band],
        out: Band,
        padding: int | None = None,
        channels: tuple[int, int] | None = None,
    ) -> Band:
        """Write the node's operator on bands of its inputs, for some of its output channels or for all."""
        draft, tensors = self.draft, self.network.model.main.tensors
        count = None if channels is None else channels[1] - channels[0]
        tensor = self._result(node, out, count)
        given = dict(zip(node.inputs, bands, strict=True))
        old = [node.inputs[0] if k == 0 and len(node.operators) > 1 else i for k, i in enumerate(node.operator.inputs)]
        inputs = []
        for i in old:
            if i in given:
                inputs.append(given[i].tensor)
            elif node.rows is not None and node.rows.grows and i == old[0]:
                inputs.append(draft.integers(draft.tensors[tensor].shape, (4,)))
            elif channels is None or i < 0:
                inputs.append(draft.keep(i))
            else:
                filter_axis = 3 if node.operator.name == "DEPTHWISE_CONV_2D" else 0
                axis = filter_axis if len(tensors[i].shape) == 4 else 0
                inputs.append(draft.channels(i, Part(axis, *channels)))
        draft.run(node.operators[-1], inputs, [tensor], padding)
        if node.operator.name in IN_PLACE and not self._overwrites(node):
            for i in sorted(self.makes & given.keys(), key=self.network.maker.__getitem__, reverse=True):
                if self.readers[i][-1] is node and self._covers(given[i].tensor, tensor):
                    draft.place(given[i].tensor, tensor, 0)
                    break
        return out._replace(tensor=tensor)

    def _overwrites(self, node: Node) -> bool:
        """Tell whether a node writes over a value from before the unit."""
        return self.over is not None and node is self.nodes[-1]

    def _result(self, node: Node, band: Band, channels: int | None) -> int:
        """Make the tensor of a node's band: the whole value's own, where that is what it holds."""
        image = self.network.images[node.output]
        count = image.channels if channels is None else channels
        entire = (band.start, band.rows, band.columns, count) == (0, image.height, image.width, image.channels)
        if self.whole and entire and node is self.nodes[-1]:
            return self.draft.keep(node.output)
        shape = (1, band.rows, band.columns, count)
        return self.draft.part(node.output, shape, self._named(node.output, band.start, band.rows))

    def _covers(self, tensor: int, other: int) -> bool:
        """Tell whether a tensor lies in no other and has the shape and size of another."""
        draft = self.draft
        same = draft.tensors[tensor].shape == draft.tensors[other].shape
        return tensor not in draft.inside and same and draft.nbytes(tensor) == draft.nbytes(other)

    def _deliver(self) -> int:
        """Cut the output's rows out, and let them lie where the whole has them."""
        out = self.nodes[-1].output
        image, result = self.network.images[out], self.draft.keep(out)
        band = self.bands[out][0]
        exact = (band.start, band.end, band.columns) == (self.low, self.high, image.width)
        if self.whole:
            if not exact:
                self._cut(band.tensor, (0, self.low - band.start, 0, 0), result)
                put(self.draft, band.tensor, result, 0)
            return result
        at = self.low * image.row_bytes
        if exact:
            put(self.draft, band.tensor, result, at)
            return band.tensor
        part = self._slice(out, band, self.low, self.high, alias=False)
        if not put(self.draft, part.tensor, result, at):
            return part.tensor
        if not self.unit.upward:  # SLICE goes from low to high addresses: it may move bytes down in place
            put(self.draft, band.tensor, result, at)
        elif band.end == self.high and band.columns == image.width and band.start >= 0:
            put(self.draft, band.tensor, result, band.start * image.row_bytes)
        return part.tensor

    def _cut(self, tensor: int, begin: tuple[int, ...], result: int) -> None:
        """Write a SLICE; -1 stands for all that is left, so that more of them share a constant."""
        shapes = zip(begin, self.draft.tensors[tensor].shape, self.draft.tensors[result].shape, strict=True)
        sizes = [-1 if start + size == length else size for start, length, size in shapes]
        parts = self.draft.integers(begin, (4,)), self.draft.integers(sizes, (4,))
        self.draft.add("SLICE", [tensor, *parts], result)


def pairs(network: Network, nodes: Sequence[Node]) -> Iterator[tuple[Node, Node]]:
    """Give 1 by 1 convolutions with the depthwise ones of a stride after them: these can run in groups of channels.

    The wide value between them is then never there with all its channels.
    """
    tensors = network.model.main.tensors
    for first, second in pairwise(nodes):
        if (first.operator.name, second.operator.name) != ("CONV_2D", "DEPTHWISE_CONV_2D") or not _is_point(first):
            continue
        filters = [tensors[node.operator.inputs[1]] for node in (first, second)]
        biases = [tensors[i] for node in (first, second) for i in node.operator.inputs[2:] if i >= 0]
        count = network.images[first.output].channels
        alone = second.inputs == (first.output,) and network.last[first.output] == second.index
        readers = [node for node in network.nodes if first.output in node.inputs]
        fits = (
            filters[0].shape == (count, 1, 1, network.images[first.inputs[0]].channels)
            and filters[1].shape[3] == count == network.images[second.output].channels
            and all(filter.type == "INT8" and filter.is_constant for filter in filters)
            and all(bias.shape == (count,) and bias.is_constant for bias in biases)
        )
        if alone and fits and len(readers) == 1 and second.rows is not None and second.rows.stride > 1:
            yield first, second


def overwritten(network: Network, begin: int, end: int) -> int | None:
    """Give the value from before a unit that its last node may write over, row by row: nobody else reads it then."""
    last = network.nodes[end - 1]
    if last.kind != JOIN or last.operator.name not in IN_PLACE:
        return None
    tensors, readers = network.model.main.tensors, network.nodes[begin : end - 1]
    fitting = [
        i for i in last.inputs
        if 0 <= network.maker[i] < begin and network.last[i] == last.index
        and not any(i in node.inputs for node in readers)
        and (tensors[i].shape, network.nbytes[i]) == (tensors[last.output].shape, network.nbytes[last.output])
    ]  # fmt: skip
    return fitting[0] if len(last.inputs) > 1 and fitting else None


def _is_point(node: Node) -> bool:
    """Tell whether a node takes each place for itself: rows and columns stay what they are."""
    if node.rows is None or node.columns is None:
        return False
    return all((w.kernel, w.stride, w.before) == (1, 1, 0) for w in (node.rows, node.columns))
