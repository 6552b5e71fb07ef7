"""What the CPU kernels of everything but convolution allocate besides their outputs.

Each rule was measured operation by operation with torch 2.13.0; a comment names the file of ATen where the allocation
stands when it is not plain from the operation.
"""

from __future__ import annotations

from typing import Any

from memfit.graph.model import ITEMSIZE, Op, Phase, Ref, StorageKind, Tensor
from memfit.memory.cpu.layers import (
    batch_norm,
    batch_norm_backward,
    flash_attention,
    flash_attention_backward,
    fused_attention,
    group_norm,
    group_norm_backward,
    layer_norm,
    layer_norm_backward,
)
from memfit.memory.cpu.machine import (
    F32,
    Machine,
    Rule,
    argument,
    dense,
    freed,
    is_contiguous,
    is_contiguous_last,
    suggests_last,
)

INTEGERS = frozenset({"int64", "int32", "int16", "int8", "uint8", "bool"})


def is_orderly(tensor: Tensor) -> bool:
    """True in row-major order, or in channels_last order where the strides say so."""
    return is_contiguous(tensor) or (suggests_last(tensor) and is_contiguous_last(tensor))


# -- arithmetic with a Python scalar ----------------------------------------------------------------------------------


def scalar_bytes(machine: Machine, op: Op) -> list[int]:
    """A Python number becomes a tensor of 8 bytes, then one of the operation's type."""
    position = 0 if isinstance(op.args[0], Ref) else 1
    operand = machine.tensors[op.args[position]]
    number = op.args[1 - position] if len(op.args) > 1 else 0
    if operand.dtype == "int64" and not isinstance(number, float):
        return [8]
    if operand.dtype in INTEGERS and isinstance(number, float):
        return [8, F32]
    return [8] if operand.dtype == "float64" else [8, ITEMSIZE[operand.dtype]]


def arithmetic(machine: Machine, op: Op) -> list[int]:
    """`add`, `mul`, `div` and their kin: scratch only for a Python scalar on either side, or a cast of an operand."""
    outputs = machine.outputs(op)
    values = op.args[:2]
    if len(values) == 2 and all(isinstance(v, Ref) for v in values):
        casts = cast_operands(machine, op, values)
        return [*outputs, *casts, *freed(casts)]
    scalar = scalar_bytes(machine, op)
    return [*scalar, *outputs, *(-b for b in reversed(scalar))]


def addition(machine: Machine, op: Op) -> list[int]:
    """`add`; in place where PyTorch adds in place unless it is traced: gradients of a value used twice, linear's bias.

    Under a dispatch mode autograd does not accumulate in place (torch/csrc/autograd/input_buffer.cpp, `accumulate`),
    so the capture shows a new storage; really, the first operand's bytes become its bytes.
    """
    if op.phase is Phase.BACKWARD and len(op.inputs) == 2 and accumulates(machine, op):
        return []
    if len(op.inputs) == 2 and machine.adds_bias(op):
        return []
    return arithmetic(machine, op)


def accumulates(machine: Machine, op: Op) -> bool:
    """True where the first operand is dense, of the output's size, no view, and held by nobody else."""
    first, second, y = (machine.tensors[t] for t in (*op.inputs, *op.outputs))
    return first.storage != second.storage and len(op.args) == 2 and ends(machine, first, y, op.index)


def ends(machine: Machine, tensor: Tensor, result: Tensor, index: int) -> bool:
    """True where a tensor's bytes end with this operation and could hold its result."""
    storage = machine.storages[tensor.storage]
    return (
        storage.death == index + 1
        and storage.kind is StorageKind.ACTIVATION
        and storage.nbytes == machine.storages[result.storage].nbytes == dense(tensor)
        and not machine.is_view(tensor.id)
    )


def scattered(machine: Machine, op: Op) -> list[int]:
    """`index_put`; the backward of indexing really writes into the zeros that it made."""
    outputs = machine.outputs(op)
    if op.phase is Phase.BACKWARD and ends(
        machine, machine.tensors[op.inputs[0]], machine.tensors[op.outputs[0]], op.index
    ):
        return []
    return outputs


def cast_operands(machine: Machine, op: Op, values: tuple[Any, ...]) -> list[int]:
    """Bytes of operands that are cast to the operation's type first: those of another type, numbers aside."""
    tensors = [machine.tensors[v] for v in values]
    if tensors[0].dtype == tensors[1].dtype:
        return []
    result = machine.tensors[op.outputs[0]].dtype
    if result == "bool":
        return []
    return [t.elements * ITEMSIZE[result] for t in tensors if t.dtype != result and t.shape]


def comparison(machine: Machine, op: Op) -> list[int]:
    """The same for comparisons, which free in the order of allocation."""
    scalar = scalar_bytes(machine, op)
    return [*scalar, *machine.outputs(op), *freed(scalar)]


def scaled(machine: Machine, op: Op) -> list[int]:
    """A mean: the sum, divided by a scalar in place. A whole-tensor sum also has each thread's part."""
    outputs = machine.outputs(op)
    parts = partial_sums(machine, op)
    dtype = machine.tensors[op.outputs[0]].dtype
    scalar = [8] if dtype == "float64" else [8, ITEMSIZE[dtype]]
    return [*outputs, *parts, *freed(parts), *scalar, *(-b for b in reversed(scalar))]


def power(machine: Machine, op: Op) -> list[int]:
    """A number to the power of a tensor: the number is filled in after the output is made."""
    scalar = scalar_bytes(machine, op)
    return [*machine.outputs(op), *scalar, *(-b for b in reversed(scalar))]


def partial_sums(machine: Machine, op: Op) -> list[int]:
    """One number per thread where a whole tensor of 32,768 elements or more is reduced to one."""
    x, y = machine.tensors[op.args[0]], machine.tensors[op.outputs[0]]
    if machine.threads > 1 and y.elements == 1 and x.elements >= 32768:
        return [machine.threads * ITEMSIZE[y.dtype]]
    return []


def reduction(machine: Machine, op: Op) -> list[int]:
    """`sum` and its kin: a cast copy of the input where the result is of another type, and each thread's part."""
    x, y = machine.tensors[op.args[0]], machine.tensors[op.outputs[0]]
    casts = [x.elements * ITEMSIZE[y.dtype]] if x.dtype != y.dtype and x.dtype in INTEGERS else []
    inner = [*casts, *partial_sums(machine, op)]
    return [*machine.outputs(op), *inner, *(-b for b in reversed(inner))]


def cast_first(machine: Machine, op: Op) -> list[int]:
    """Functions that cast an integer input to a floating copy first."""
    x, outputs = machine.tensors[op.args[0]], machine.outputs(op)
    y = machine.tensors[op.outputs[0]]
    casts = [x.elements * ITEMSIZE[y.dtype]] if x.dtype != y.dtype else []
    return [*outputs, *casts, *freed(casts)]


# -- copies of operands that do not lie as the kernel needs -----------------------------------------------------------


def contiguous_operands(*positions: int) -> Rule:
    """Outputs, then a row-major copy of each named operand that is not one."""

    def rule(machine: Machine, op: Op) -> list[int]:
        tensors = (machine.tensors[op.args[p]] for p in positions)
        copied = [dense(t) for t in tensors if not is_contiguous(t)]
        return [*machine.outputs(op), *copied, *freed(copied)]

    return rule


def orderly_operands(*positions: int) -> Rule:
    """The same, where channels_last order will do as well."""

    def rule(machine: Machine, op: Op) -> list[int]:
        tensors = (machine.tensors[op.args[p]] for p in positions)
        copied = [dense(t) for t in tensors if not is_orderly(t)]
        return [*machine.outputs(op), *copied, *freed(copied)]

    return rule


def triangle(machine: Machine, op: Op) -> list[int]:
    """A copy of a batch of matrices that is not row-major."""
    x = machine.tensors[op.args[0]]
    copied = [dense(x)] if len(x.shape) > 2 and not is_contiguous(x) else []
    return [*machine.outputs(op), *copied, *freed(copied)]


def like_input(machine: Machine, op: Op) -> list[int]:
    """A pooling's backward: the gradient is copied into the input's layout."""
    gradient, x = machine.tensors[op.args[0]], machine.tensors[op.args[1]]
    right = is_contiguous_last if suggests_last(x) else is_contiguous
    copied = [] if right(gradient) else [dense(gradient)]
    return [*machine.outputs(op), *copied, *freed(copied)]


def blas_copy(tensor: Tensor) -> int:
    """Bytes of the copy of a matrix that BLAS cannot take as it lies; 0 where it can."""
    rows, columns = tensor.shape[-2:]
    down, across = tensor.strides[-2:]
    if (down == 1 and across >= max(1, rows)) or (across == 1 and down >= max(1, columns)):
        return 0
    if rows * columns == 0 or (rows == 1 and across == 1) or (columns == 1 and down == 1):
        return 0
    return rows * columns * ITEMSIZE[tensor.dtype]


def matrix_product(first: int) -> Rule:
    """`mm` and `addmm`: outputs, then copies of the two matrices, the second one first."""

    def rule(machine: Machine, op: Op) -> list[int]:
        matrices = [machine.tensors[op.args[p]] for p in (first + 1, first)]
        copied = [b for b in map(blas_copy, matrices) if b]
        return [*machine.outputs(op), *copied, *(-b for b in reversed(copied))]

    return rule


def batched_product(first: int) -> Rule:
    """`bmm`: MKL's batched kernel takes what BLAS can; else one product after the other, with copies."""

    def rule(machine: Machine, op: Op) -> list[int]:
        a, b = machine.tensors[op.args[first]], machine.tensors[op.args[first + 1]]
        outputs = machine.outputs(op)
        if a.shape[1] * a.shape[2] * b.shape[2] < 400:
            return outputs
        copied = [size for size in (blas_copy(b), blas_copy(a)) if size]
        return [*outputs, *[*copied, *(-s for s in reversed(copied))] * a.shape[0]] if copied else outputs

    return rule


def softmax_masked(machine: Machine, op: Op) -> list[int]:
    """`_safe_softmax`: the softmax, a mask of what is -inf, its rows, and a zero."""
    x = machine.tensors[op.args[0]]
    masks = [x.elements, x.elements // max(1, x.shape[int(op.args[1])]), F32]
    return [*machine.outputs(op), *masks, *(-b for b in reversed(masks))]


def rolled(machine: Machine, op: Op) -> list[int]:
    """One dimension after the other, each into new bytes."""
    outputs = machine.outputs(op)
    steps = max(1, len(argument(op, 2, "dims", ()) or ()))
    return [*outputs * steps, *(-b for b in outputs * (steps - 1))]


def repeated(machine: Machine, op: Op) -> list[int]:
    """`repeat` reads its own sizes from small integer tensors."""
    n = 8 * len(op.args[1])
    return [*machine.outputs(op), n, 8, n, -8, 2 * n, -n, -n, -2 * n]


def folded_windows(machine: Machine, op: Op) -> list[int]:
    """`unfold_backward`: the positions along the dimension, as integers."""
    sizes, dimension = op.args[1], op.args[2]
    positions = 8 * int(sizes[dimension])
    return [*machine.outputs(op), positions, -positions]


def sorted_rows(machine: Machine, op: Op) -> list[int]:
    """One row of indices."""
    x = machine.tensors[op.args[0]]
    row = 8 * (x.shape[int(argument(op, 1, "dim", -1))] if x.shape else 1)
    return [*machine.outputs(op), row, -row]


def per_element_loss(machine: Machine, op: Op) -> list[int]:
    """Losses with a mean: the losses of all elements, then their mean, which is left on bytes of the same size."""
    x = machine.tensors[op.args[0]]
    size = dense(x)
    reduction_kind = argument(op, 2, "reduction", 1)
    if reduction_kind == 0:
        return [size]
    parts = [machine.threads * F32] if machine.threads > 1 and x.elements >= 32768 else []
    mean = [8, F32, -F32, -8] if reduction_kind == 1 else []
    return [size, size, *parts, *freed(parts), *mean, -size]


# -- resampling -------------------------------------------------------------------------------------------------------


def resampled(taps: int) -> Rule:
    """`upsample_…2d` (aten/src/ATen/native/cpu/UpSampleKernel.cpp): the channels_last kernels work on copies of small
    row-major images; the others read indices and weights from tables.
    """

    def rule(machine: Machine, op: Op) -> list[int]:
        x, y = machine.tensors[op.args[0]], machine.tensors[op.outputs[0]]
        made = machine.outputs(op)
        height, width = y.shape[-2:]
        last = is_contiguous_last(x) and not is_contiguous(x)
        copies = height + width <= 128 or (taps == 2 and machine.threads == 1 and x.shape[1] <= 3)
        if taps < 4 and (copies or (last and x.shape[1] > 3)):
            size = dense(x)
            return made if last else [*made, size, *made, *freed(made), -size]
        tables = [size for extent in (height, width) for _ in range(taps) for size in (8 * extent, F32 * extent)]
        return [*made, *tables, *freed(tables)]

    return rule


# -- the table --------------------------------------------------------------------------------------------------------

_SCALAR = (
    "add.Tensor add_.Tensor add.Scalar add_.Scalar sub.Tensor sub_.Tensor sub.Scalar mul.Tensor mul_.Tensor mul.Scalar "
    "mul_.Scalar div.Tensor div_.Tensor div.Scalar div_.Scalar div.Tensor_mode rsub.Scalar floor_divide.default "
    "remainder.Scalar remainder.Tensor"
)
_COMPARISON = "eq ne lt le gt ge"

OPERATIONS: dict[str, Rule] = {
    **{f"aten.{name}": arithmetic for name in _SCALAR.split()},
    **{f"aten.{name}.Scalar": comparison for name in _COMPARISON.split()},
    "aten.add.Tensor": addition,
    "aten.index_put.default": scattered,
    "aten.pow.Scalar": power,
    "aten.mean.dim": scaled,
    "aten.mean.default": scaled,
    "aten.sum.default": reduction,
    "aten.sum.dim_IntList": reduction,
    "aten.prod.default": reduction,
    "aten.amax.default": reduction,
    "aten.cumsum.default": cast_first,
    "aten.log.default": cast_first,
    "aten._softmax.default": contiguous_operands(0),
    "aten._log_softmax.default": contiguous_operands(0),
    "aten._softmax_backward_data.default": contiguous_operands(0, 1),
    "aten._log_softmax_backward_data.default": contiguous_operands(0, 1),
    "aten._safe_softmax.default": softmax_masked,
    "aten.embedding_dense_backward.default": contiguous_operands(0),
    "aten.tril.default": triangle,
    "aten.triu.default": triangle,
    "aten.avg_pool2d.default": orderly_operands(0),
    "aten.avg_pool2d_backward.default": like_input,
    "aten.avg_pool3d_backward.default": contiguous_operands(0),
    "aten.max_pool2d_with_indices_backward.default": like_input,
    "aten.upsample_bicubic2d_backward.default": contiguous_operands(0),
    "aten.mm.default": matrix_product(0),
    "aten.addmm.default": matrix_product(1),
    "aten.bmm.default": batched_product(0),
    "aten.baddbmm.default": batched_product(1),
    "aten.roll.default": rolled,
    "aten.repeat.default": repeated,
    "aten.unfold_backward.default": folded_windows,
    "aten.sort.default": sorted_rows,
    "aten.mse_loss.default": per_element_loss,
    "aten.smooth_l1_loss.default": per_element_loss,
    "aten.upsample_bilinear2d.default": resampled(2),
    "aten.upsample_nearest2d.default": resampled(1),
    "aten._upsample_nearest_exact2d.default": resampled(1),
    "aten.upsample_bicubic2d.default": resampled(4),
    "aten.native_batch_norm.default": batch_norm,
    "aten.native_batch_norm_backward.default": batch_norm_backward,
    "aten.native_layer_norm.default": layer_norm,
    "aten.native_layer_norm_backward.default": layer_norm_backward,
    "aten.native_group_norm.default": group_norm,
    "aten.native_group_norm_backward.default": group_norm_backward,
    "aten._scaled_dot_product_flash_attention_for_cpu.default": flash_attention,
    "aten._scaled_dot_product_flash_attention_for_cpu_backward.default": flash_attention_backward,
    "aten._native_multi_head_attention.default": fused_attention,
}
"""By target; an operation in neither this table nor `PLAIN` is reported as unknown."""
