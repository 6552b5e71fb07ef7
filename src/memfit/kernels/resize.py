"""RESIZE_NEAREST_NEIGHBOR and RESIZE_BILINEAR: kernels/internal/reference/resize_*.h of tflite-micro."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from memfit.kernels.kernel import Array, Held, Inputs, Kernel, Node, Outputs, Region


@dataclass(frozen=True)
class Direction:
    """Where the outputs of one direction come from, for all of them."""

    first: Array
    """Index of the input at or before."""
    second: Array
    """Index of the input at or after; the same as `first` for the nearest neighbour."""
    weight: Array
    """Of the second, in 1/1024 for integers; of the first it is what is left."""

    def span(self, start: int, end: int) -> tuple[int, int]:
        """Give the inputs under outputs `[start, end)`."""
        low = min(int(self.first[start:end].min()), int(self.second[start:end].min()))
        return low, max(int(self.first[start:end].max()), int(self.second[start:end].max())) + 1


@dataclass(frozen=True)
class Resize:
    """Parameters of a resize."""

    rows: Direction
    columns: Direction
    bilinear: bool


def _nearest(size: int, made: int, corners: bool, centers: bool) -> Direction:
    step = np.float32(size - 1) / np.float32(made - 1) if corners and made > 1 else np.float32(size) / np.float32(made)
    places = (np.arange(made, dtype=np.float32) + np.float32(0.5 if centers else 0.0)) * step
    whole = np.floor(places.astype(np.float64) + 0.5) if corners else np.floor(places)
    found = np.clip(whole.astype(np.int64), 0, size - 1)
    return Direction(found, found, np.zeros(made, np.int64))


def _truncated(above: Array, below: int) -> Array:
    """Divide towards zero, as C++ does."""
    made: Array = np.sign(above) * (np.abs(above) // below)
    return made


def _integer(size: int, made: int, corners: bool, centers: bool) -> Direction:
    step = (
        ((size - 1) * 1024 + (made - 1) // 2) // (made - 1)
        if corners and made > 1
        else (size * 1024 + made // 2) // made
    )
    places = np.arange(made, dtype=np.int64) * step + (step // 2 - 512 if centers else 0)
    first = np.maximum(_truncated(places, 1024), 0)
    second = np.minimum(_truncated(places + 1023, 1024), size - 1)
    return Direction(first, second, places - 1024 * first)


def _real(size: int, made: int, corners: bool, centers: bool) -> Direction:
    step = np.float32(size - 1) / np.float32(made - 1) if corners and made > 1 else np.float32(size) / np.float32(made)
    index = np.arange(made, dtype=np.float32)
    half = np.float32(0.5)
    places = (index + half) * step - half if centers else index * step
    first = np.maximum(np.floor(places).astype(np.int64), 0)
    second = np.minimum(np.ceil(places).astype(np.int64), size - 1)
    return Direction(first, second, places - first.astype(np.float32))


def _parameters(node: Node) -> Resize:
    image, output = node.input(0), node.output()
    bilinear = node.operator.name == "RESIZE_BILINEAR"
    types = ("INT8", "FLOAT32") if bilinear else ("INT8", "INT16", "FLOAT32")
    node.need(image.type in types, "no kernel for this type", image.type)
    find = _nearest if not bilinear else _real if image.type == "FLOAT32" else _integer
    flags = bool(node.option("align_corners")), bool(node.option("half_pixel_centers"))
    return Resize(
        find(image.shape[1], output.shape[1], *flags), find(image.shape[2], output.shape[2], *flags), bilinear
    )


def _needs(parameters: Resize, region: Region) -> Held:
    return (
        Region(*parameters.rows.span(region.top, region.bottom), *parameters.columns.span(region.left, region.right)),
    )


def _part(parameters: Resize, inputs: Inputs, held: Held, outputs: Outputs, region: Region) -> None:
    image, place, output = inputs[0], held[0], outputs[0]
    assert image is not None  # Node.input saw it
    assert place is not None
    rows, columns = slice(region.top, region.bottom), slice(region.left, region.right)
    y0, y1 = (indices[rows] - place.top for indices in (parameters.rows.first, parameters.rows.second))
    x0, x1 = (indices[columns] - place.left for indices in (parameters.columns.first, parameters.columns.second))
    if not parameters.bilinear:
        output[...] = image[:, y0][:, :, x0]
        return
    down = parameters.rows.weight[rows][:, None, None]
    across = parameters.columns.weight[columns][None, :, None]
    top, bottom = image[:, y0], image[:, y1]
    if image.dtype.kind == "f":
        one = np.float32(1)
        output[...] = (
            top[:, :, x0] * (one - down) * (one - across)
            + bottom[:, :, x0] * down * (one - across)
            + top[:, :, x1] * (one - down) * across
            + bottom[:, :, x1] * down * across
        )
        return
    top, bottom = top.astype(np.int64), bottom.astype(np.int64)
    left = top[:, :, x0] * (1024 - down) + bottom[:, :, x0] * down
    right = top[:, :, x1] * (1024 - down) + bottom[:, :, x1] * down
    total = left * (1024 - across) + right * across
    output[...] = _truncated(total + np.where(total > 0, 1 << 19, -(1 << 19)), 1 << 20)


RESIZE = Kernel(_parameters, needs=_needs, part=_part)
"""RESIZE_NEAREST_NEIGHBOR of 8 bits, 16 bits and float, RESIZE_BILINEAR of 8 bits and float."""
