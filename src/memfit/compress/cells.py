"""What a storage of a graph holds while the graph runs: real tensors by their windows, copied before they change."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from memfit.errors import CaptureError, GraphError
from memfit.graph.model import Tensor as Value
from memfit.units import format_shape


class Cell:
    """The real tensors that look at one storage, by the number of their window.

    A frozen cell is kept for later or belongs to someone else: an operation that writes to it gets a copy.
    """

    __slots__ = ("frozen", "views")

    def __init__(self, views: dict[int, Tensor] | None = None, *, frozen: bool = False) -> None:
        self.views: dict[int, Tensor] = {} if views is None else views
        self.frozen = frozen

    def copy(self) -> Cell:
        """Copy the bytes once and let every window look at the copy."""
        bytes_of: dict[int, torch.UntypedStorage] = {}
        views: dict[int, Tensor] = {}
        for window, tensor in self.views.items():
            storage = tensor.untyped_storage()
            copied = bytes_of.get(storage._cdata)
            if copied is None:
                copied = bytes_of[storage._cdata] = storage.clone()  # type: ignore[no-untyped-call]
            views[window] = _window(
                copied, int(tensor.storage_offset()), tuple(tensor.shape), tensor.stride(), tensor.dtype
            )
        return Cell(views)

    def storages(self) -> dict[int, int]:
        """Give the bytes of each real storage it holds, by its address."""
        return {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in self.views.values()}


class Windows:
    """Numbers for the windows of a graph's tensors: two tensors with one number look alike at one storage."""

    def __init__(self, tensors: Sequence[Value]) -> None:
        self.tensors = tensors
        self.storage = [t.storage for t in tensors]
        known: dict[tuple[object, ...], int] = {}
        self.number: list[int] = []
        """By tensor id."""
        self.value: list[Value] = []
        """By window number: a tensor that has it."""
        self.view: Callable[[Cell, int], Tensor | None] = lambda _cell, _tid: None
        """Makes a window by the operation that made it in the first place; for storages that lie otherwise than they
        were captured, as a kernel may have it."""
        for tensor in tensors:
            key = (tensor.shape, tensor.strides, tensor.offset, tensor.dtype)
            number = known.get(key)
            if number is None:
                number = known[key] = len(known)
                self.value.append(tensor)
            self.number.append(number)

    def look(self, cell: Cell, tid: int) -> Tensor:
        """Find or make the window of a tensor on a cell.

        Raises:
            GraphError: the cell is empty, or the storage does not lie as it was captured.
        """
        number = self.number[tid]
        found = cell.views.get(number)
        if found is not None:
            return found
        wanted = self.tensors[tid]
        dtype: torch.dtype = getattr(torch, wanted.dtype)
        for window, tensor in cell.views.items():
            recorded = self.value[window]
            if tensor.stride() != recorded.strides and tensor.numel() > 1:
                continue
            shift = int(tensor.storage_offset()) * tensor.element_size() - recorded.offset * tensor.element_size()
            offset, rest = divmod(wanted.offset * dtype.itemsize + shift, dtype.itemsize)
            if rest:
                continue
            made = _window(tensor.untyped_storage(), offset, wanted.shape, wanted.strides, dtype)
            cell.views[number] = made
            return made
        viewed = self.view(cell, tid)
        if viewed is not None:
            cell.views[number] = viewed
            return viewed
        raise GraphError(
            "a value is read that no operation has made, or not with the strides that were captured",
            where=f"tensor {tid}",
            received=f"{format_shape(wanted.shape)} {wanted.dtype}",
            todo="capture the model again",
        )

    def fitted(self, tid: int, tensor: Tensor, *, what: str) -> Tensor:
        """Give a tensor the strides that a graph's tensor was captured with.

        Raises:
            CaptureError: its shape or dtype is another.
        """
        value = self.tensors[tid]
        dtype = str(tensor.dtype).removeprefix("torch.")
        if tuple(tensor.shape) != value.shape or dtype != value.dtype:
            raise CaptureError(
                f"{what} does not fit the graph",
                where=value.name,
                received=f"{format_shape(tuple(tensor.shape))} {dtype}",
                todo=f"pass {format_shape(value.shape)} {value.dtype}",
            )
        tensor = tensor.detach()
        if tensor.stride() == value.strides or tensor.numel() < 2:
            return tensor
        return torch.empty_strided(value.shape, value.strides, dtype=tensor.dtype).copy_(tensor)


def _window(
    storage: torch.UntypedStorage,
    offset: int,
    shape: tuple[int, ...],
    strides: tuple[int, ...],
    dtype: torch.dtype,
) -> Tensor:
    return torch.empty(0, dtype=dtype).set_(storage, offset, shape, strides)
