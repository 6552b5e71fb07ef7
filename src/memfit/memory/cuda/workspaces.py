"""What kernels and libraries allocate on a GPU beyond an operation's outputs.

Each rule names its source, as PyTorch 2.13 has it. What only a library knows is not counted: the workspaces of cuDNN's
convolutions, batch norms, recurrent layers and attention, which come and go within an operation.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

from memfit.graph.model import ITEMSIZE, Graph, Op, Phase, Ref, Tensor

_MATMULS = frozenset(
    f"aten.{name}" for name in ("mm.default", "addmm.default", "bmm.default", "baddbmm.default", "addmv.default",
                                "mv.default", "dot.default", "addbmm.default")
)  # fmt: skip

UNCOUNTED = frozenset(
    {
        "aten.convolution.default",
        "aten.convolution_backward.default",
        "aten._scaled_dot_product_cudnn_attention.default",
        "aten._scaled_dot_product_cudnn_attention_backward.default",
        "aten._cudnn_rnn.default",
    }
)
"""Operations whose kernels may need a workspace that only cuDNN knows."""


class Gpu(NamedTuple):
    """A GPU as far as kernels' temporaries depend on it."""

    major: int
    minor: int

    @classmethod
    def of(cls, graph: Graph) -> Gpu:
        """Read the GPU that a graph was captured for; 8.0 where it states none."""
        major, _, minor = str(graph.environment.get("capability", "8.0")).partition(".")
        return cls(int(major), int(minor or 0))

    @property
    def multiprocessors(self) -> int:
        """Streaming multiprocessors of the usual GPU of this capability (T4, A100, RTX 3090, RTX 4090, H100).

        Source: NVIDIA's architecture whitepapers. They decide only how attention splits short, wide problems.
        """
        return {(7, 0): 80, (7, 5): 40, (8, 0): 108, (8, 6): 82, (8, 9): 128, (9, 0): 132, (10, 0): 148}.get(self, 108)

    @property
    def threads(self) -> int:
        """Threads that a multiprocessor runs at once (CUDA C++ Programming Guide, compute capabilities)."""
        return {(7, 5): 1024, (8, 6): 1536, (8, 9): 1536, (12, 0): 1536}.get(self, 2048)

    @property
    def shared_bytes(self) -> int:
        """Shared memory that one block may ask for (CUDA C++ Programming Guide, compute capabilities)."""
        known = {(7, 0): 98304, (7, 5): 65536, (8, 0): 166912, (9, 0): 232448, (10, 0): 232448}
        return known.get(self, 101376)


def library_workspaces(graph: Graph) -> list[tuple[tuple[str, int], ...]]:
    """Workspaces that a library keeps from each operation on, by name, in bytes.

    cuBLAS, and cublasLt with it, has one for each handle and stream, allocated at the first product; each thread has
    its own handle, and autograd runs backward in a thread of its own. Source: aten/src/ATen/cuda/CublasHandlePool.cpp,
    `getCurrentCUDABlasHandle` and `getCUDABlasLtWorkspace`.
    """
    nbytes = cublas_workspace_bytes(Gpu.of(graph).major)
    kept = {False: (("cublas", nbytes),), True: (("cublas of backward's thread", nbytes),)}
    return [kept[op.phase is Phase.BACKWARD] if op.target in _MATMULS else () for op in graph.ops]


def cublas_workspace_bytes(major: int) -> int:
    """Size of one cuBLAS workspace by the major compute capability.

    Source: aten/src/ATen/cuda/CublasHandlePool.cpp, `parseChosenWorkspaceSize`.

    >>> cublas_workspace_bytes(8), cublas_workspace_bytes(9)
    (8519680, 33554432)
    """
    return 32 << 20 if major in (9, 10, 12) else 4096 * 1024 * 2 + 16 * 1024 * 8


def temporaries(graph: Graph, op: Op, gpu: Gpu) -> tuple[int, ...]:
    """Bytes of the blocks that an operation's kernel allocates for itself and frees before it returns."""
    rule = _RULES.get(op.target)
    return tuple(nbytes for nbytes in rule(graph, op, gpu) if nbytes) if rule is not None else ()


def _argument(graph: Graph, op: Op, index: int) -> Tensor | None:
    value = op.args[index] if index < len(op.args) else None
    return graph.tensors[value] if isinstance(value, Ref) else None


def _tensor(graph: Graph, op: Op, index: int) -> Tensor:
    found = _argument(graph, op, index)
    assert found is not None  # the schema has a tensor there
    return found


def _up(value: int, step: int) -> int:
    return -(-value // step) * step


def _copy_unless(dense: bool, tensor: Tensor) -> int:
    return 0 if dense else tensor.nbytes


def is_contiguous(tensor: Tensor) -> bool:
    """Tell whether elements stand in row-major order without gaps."""
    step = 1
    for size, stride in zip(reversed(tensor.shape), reversed(tensor.strides), strict=True):
        if size != 1:
            if stride != step:
                return False
            step *= size
    return True


# -- attention ----------------------------------------------------------------------------------------------------


def _flash(graph: Graph, op: Op, gpu: Gpu) -> tuple[int, ...]:
    """Split keys: one partial result and sum per split where there are too few rows of work for the GPU.

    Source: aten/src/ATen/native/transformers/cuda/flash_attn/flash_api.cpp, `set_params_splitkv` and
    `num_splits_heuristic`.
    """
    q, k = _tensor(graph, op, 0), _tensor(graph, op, 1)
    batch, heads, length, size = q.shape
    dropout = op.args[3] if len(op.args) > 3 else 0.0
    if dropout:
        return ()
    block = 256 if size <= 64 else 128 if size <= 128 else 64
    splits = flash_splits(batch * heads * -(-length // 64), 2 * gpu.multiprocessors, -(-k.shape[2] // block))
    if splits == 1:
        return ()
    return splits * batch * heads * length * 4, splits * batch * heads * length * _up(size, 32) * 4


def flash_splits(work: int, processors: int, blocks: int, most: int = 128) -> int:
    """Number of parts that flash attention cuts the keys into.

    >>> flash_splits(1000, 216, 8), flash_splits(12, 216, 8)
    (1, 8)
    """
    if work >= 0.8 * processors:
        return 1
    most = min(most, processors, blocks)

    def distinct(splits: int) -> bool:
        return splits == 1 or -(-blocks // splits) != -(-blocks // (splits - 1))

    efficiency = {}
    for splits in range(1, most + 1):
        if distinct(splits):
            waves = work * splits / processors
            efficiency[splits] = waves / -(-work * splits // processors)
    best = max(efficiency.values(), default=0.0)
    return next((splits for splits, share in efficiency.items() if share >= 0.85 * best), 1)


def _flash_backward(graph: Graph, op: Op, gpu: Gpu) -> tuple[int, ...]:
    """Row sums and the gradient of queries in fp32; keys' and values' gradients by head where heads share them.

    Source: flash_api.cpp, `mha_bwd`.
    """
    q, k = _tensor(graph, op, 1), _tensor(graph, op, 2)
    batch, heads, length, size = q.shape
    rows = _up(length, 128)
    found = [batch * heads * rows * 4, batch * rows * heads * _up(size, 32) * 4]
    if k.shape[1] != heads:
        found += [batch * k.shape[2] * heads * size * ITEMSIZE[q.dtype]] * 2
    return tuple(found)


def _efficient(graph: Graph, op: Op, gpu: Gpu) -> tuple[int, ...]:
    """A result in fp32 where half-precision heads are larger than 128.

    Source: aten/src/ATen/native/transformers/cuda/attention.cu, `_efficient_attention_forward`.
    """
    q, v = _tensor(graph, op, 0), _tensor(graph, op, 2)
    if q.dtype == "float32" or max(q.shape[-1], v.shape[-1]) <= 128:
        return ()
    return (q.shape[0] * q.shape[2] * q.shape[1] * v.shape[-1] * 4,)


def _efficient_backward(graph: Graph, op: Op, gpu: Gpu) -> tuple[int, ...]:
    """Row sums, and the kernel's workspace.

    Source: attention_backward.cu, `_efficient_attention_backward`, and mem_eff_attention/kernel_backward.h,
    `workspace_size`.
    """
    q, k, v = (_tensor(graph, op, i) for i in (1, 2, 3))
    batch, heads, length, size = q.shape
    keys, last = k.shape[2], v.shape[-1]
    half = q.dtype != "float32"
    sums = batch * heads * length * 4
    found = [sums] if half else [batch * length * heads * last * 4, sums, sums]
    block_i, block_j, largest = _backward_kernel(gpu, half, max(size, last))
    parts = -(-keys // block_j)
    if heads * batch >= 256 and keys <= 2 * block_j:
        parts = 1
    queries = -(-length // block_i) * -(-size // block_j) * (block_i * block_j + 4)
    other = 0
    if half and largest > block_i:
        parts = max(min(parts, 200 // (batch * heads)), 1)
        other = parts * block_j * (_up(size, block_i) + _up(last, block_i))
    return (*found, batch * heads * _up(queries + other, 4) * 4)


def _backward_kernel(gpu: Gpu, half: bool, size: int) -> tuple[int, int, int]:
    """Rows, columns and largest head of the backward kernel that is taken: the first that the GPU can hold."""
    wide = gpu.shared_bytes
    if half and gpu.major >= 8:
        if size <= 64:
            return (64, 64, 32 if size <= 32 else 64)
        if (gpu.major, gpu.minor) in ((8, 6), (8, 9)) and size <= 96:
            return 128, 64, 96
        if size <= 128:
            return (128, 128, 128) if wide >= 154112 else (64, 64, 128)
        return 128, 64, 65536
    if half:
        return (64, 64, 64) if size <= 64 else (128, 64, 128 if size <= 128 else 65536)
    if gpu.major < 8 or size <= 64:
        return 64, 64, 64 if size <= 64 else 128 if size <= 128 else 65536
    return (128, 64, 128 if size <= 128 else 65536) if wide >= 121344 else (64, 64, 128 if size <= 128 else 65536)


# -- norms --------------------------------------------------------------------------------------------------------


def _layer_norm(graph: Graph, op: Op, gpu: Gpu) -> tuple[int, ...]:
    """A dense copy of an input that is not (native/cuda/layer_norm_kernel.cu, `layer_norm_cuda`)."""
    x = _tensor(graph, op, 0)
    return (_copy_unless(is_contiguous(x), x),)


def _layer_norm_backward(graph: Graph, op: Op, gpu: Gpu) -> tuple[int, ...]:
    """Partial sums of weight's and bias's gradients for many short rows (`LayerNormBackwardKernelImplInternal`)."""
    grad, x = _tensor(graph, op, 0), _tensor(graph, op, 1)
    weight = _argument(graph, op, 5)
    found = [_copy_unless(is_contiguous(t), t) for t in (grad, x)]
    if weight is not None:
        columns = weight.elements
        rows = x.elements // max(columns, 1)
        if rows > 65536 and columns // 32 < gpu.multiprocessors // 2:
            parts = min(32768 // -(-columns // 32), -(-rows // 32))
            found += [parts * columns * ITEMSIZE[weight.dtype]] * 2
    return tuple(found)


def _group_norm(graph: Graph, op: Op, gpu: Gpu) -> tuple[int, ...]:
    """Scale and shift of each channel in fp32 (native/cuda/group_norm_kernel.cu, `GroupNormKernelImplInternal`)."""
    x = _tensor(graph, op, 0)
    each = x.shape[0] * x.shape[1] * 4
    affine = _argument(graph, op, 1) is not None or _argument(graph, op, 2) is not None
    return (each, each) if affine and x.elements > x.shape[0] * x.shape[1] else ()


def _group_norm_backward(graph: Graph, op: Op, gpu: Gpu) -> tuple[int, ...]:
    """Sums by channel and by group in fp32 (`GroupNormBackwardKernelImplInternal`)."""
    x = _tensor(graph, op, 1)
    statistics = _tensor(graph, op, 2)
    channels, groups = x.shape[0] * x.shape[1] * 4, statistics.elements * 4
    if x.elements == x.shape[0] * x.shape[1]:  # one value per channel: `GroupNorm1dBackward`
        return groups, groups
    weighted = _argument(graph, op, 4) is not None
    return (channels, channels, groups, groups, *((channels,) if weighted else ()))


# -- reductions ---------------------------------------------------------------------------------------------------


def _reduction(graph: Graph, op: Op, gpu: Gpu) -> tuple[int, ...]:
    """Partial results of a sum or mean over the dimensions that it names, over all where it names none."""
    x = _tensor(graph, op, 0)
    named = op.args[1] if len(op.args) > 1 and isinstance(op.args[1], tuple) else ()
    return reduction_bytes(x, tuple(named) or tuple(range(len(x.shape))), gpu, mean=".mean." in op.target)


def _convolution_backward(graph: Graph, op: Op, gpu: Gpu) -> tuple[int, ...]:
    """The bias's gradient is a sum over everything but channels (native/Convolution.cpp, `convolution_backward`)."""
    wanted = op.args[10] if len(op.args) > 10 else op.kwargs.get("output_mask", (True, True, True))
    if not wanted[2]:
        return ()
    grad = _tensor(graph, op, 0)
    return reduction_bytes(grad, tuple(d for d in range(len(grad.shape)) if d != 1), gpu)


def reduction_bytes(x: Tensor, dims: tuple[int, ...], gpu: Gpu, *, mean: bool = False) -> tuple[int, ...]:
    """Partial results and counters of a reduction that several thread blocks share for one output.

    The gradient of a linear layer's bias is one: of 8192 rows and 768 columns, on an A100, 48 MiB.

    Source: aten/src/ATen/native/cuda/Reduce.cuh, `setReduceConfig`, `gpu_reduce_kernel` and
    `ReduceConfig::global_memory_size`.

    >>> x = Tensor(0, 0, (8192, 768), (768, 1), "float32")
    >>> reduction_bytes(x, (0,), Gpu(8, 0))[0]
    50331648
    """
    reduced, kept = _parts(x, {d % len(x.shape) for d in dims} if x.shape else set())
    inputs, outputs = (math.prod(size for size, _ in part) for part in (reduced, kept))
    if inputs <= 1 or not outputs:
        return ()
    inner = not kept or reduced[0][1] < kept[0][1]
    dense = (reduced if inner else kept)[0][1] == 1
    vector = _output_vector(x.offset, reduced, kept) if dense and not inner else 1
    first, second = (inputs, outputs) if inner else (outputs, inputs)
    if dense and inner and first >= 128 and len(reduced) == 1:
        first //= 8 if mean and x.dtype in ("float16", "bfloat16") else 4
    elif not inner:
        first //= vector
    threads = 512 // vector
    across, along = (_power_below(n) if n < threads else threads for n in (first, second))
    width = min(across, 32)
    height = min(along, threads // width)
    width = min(across, threads // height)
    step = width if inner else 1
    shared_rows = -(-inputs // step) >= min(height * 16, 256)
    if shared_rows:
        step *= height
    columns = (1 if inner else width) * (1 if shared_rows else height)
    grid = -(-(outputs // vector) // columns)
    room = gpu.multiprocessors * (gpu.threads // (width * height))
    values = -(-inputs // step)
    if not shared_rows or values < 256 or grid > room:
        return ()
    parts = max(min(-(-room // grid), -(-values // 16)), -(-values // 256))
    if parts <= 1:
        return ()
    return 4 * outputs * parts * (1 if inner else width * vector), 4 * grid


_Part = list[tuple[int, int]]
"""Size and stride of dimensions, the fastest first; neighbours that a single stride steps through are one."""


def _parts(x: Tensor, dims: set[int]) -> tuple[_Part, _Part]:
    """Dimensions that are reduced, and those that stay."""
    parts: tuple[_Part, _Part] = ([], [])
    for d in sorted((d for d in range(len(x.shape)) if x.shape[d] != 1), key=lambda d: (x.strides[d], -d)):
        part = parts[d not in dims]
        if part and x.strides[d] == part[-1][0] * part[-1][1]:
            part[-1] = (part[-1][0] * x.shape[d], part[-1][1])
        else:
            part.append((x.shape[d], x.strides[d]))
    return parts


def _output_vector(offset: int, reduced: _Part, kept: _Part) -> int:
    """Outputs that one thread reads together: a divisor of the row and of every step (`get_output_vec_size`)."""
    steps = [offset, kept[0][0], *(stride for _, stride in (*reduced, *kept[1:]))]
    return next(v for v in (4, 2, 1) if not any(step % v for step in steps))


def _power_below(value: int) -> int:
    return 1 << (max(value, 1).bit_length() - 1)


# -- indexing -----------------------------------------------------------------------------------------------------


def _sorting(count: int) -> list[int]:
    """Sort indices by value: the sorted ones, where each was, and while it runs a range and the sort's own space."""
    return [8 * count, 8 * count, 8 * count, 16 * count]


def _embedding_backward(graph: Graph, op: Op, gpu: Gpu) -> tuple[int, ...]:
    """Sort the tokens and add up the gradients of equal ones in parts, in fp32.

    Source: native/cuda/Embedding.cu, `embedding_dense_backward_cuda`, and EmbeddingBackwardKernel.cu,
    `embedding_backward_cuda_kernel`.
    """
    grad, tokens = _tensor(graph, op, 0), _tensor(graph, op, 1)
    rows = int(op.args[2])
    count, width = tokens.elements, grad.shape[-1]
    found = [_copy_unless(is_contiguous(grad), grad)]
    if count <= 3072:
        return tuple(found)
    segments = min(count, rows)
    parts = count // 10 + segments
    found += [8 * count, 8 * count, 8 * count, 8 * segments, 8 * segments, 8 * parts]
    stride = _up(width, 32)
    grid = -(-segments * stride // min(stride, 1024))
    if grid < 4 * gpu.multiprocessors and parts > 4 * grid:
        found.append(8 * parts)
        if grad.dtype != "float32":
            found.append(4 * rows * width)
    else:
        found.append(4 * parts * width)
    return tuple(found)


def _index_put(graph: Graph, op: Op, gpu: Gpu) -> tuple[int, ...]:
    """Sort the indices where values add up (native/cuda/Indexing.cu, `index_put_with_sort_kernel`)."""
    accumulates = op.args[3] if len(op.args) > 3 else op.kwargs.get("accumulate", False)
    if not accumulates:
        return ()
    indices = [graph.tensors[i] for i in op.args[1] if isinstance(i, Ref)]
    count = max((t.elements for t in indices), default=0)
    return (8 * count, *_sorting(count))


_RULES: dict[str, Callable[[Graph, Op, Gpu], tuple[int, ...]]] = {
    "aten._scaled_dot_product_flash_attention.default": _flash,
    "aten._scaled_dot_product_flash_attention_backward.default": _flash_backward,
    "aten._scaled_dot_product_efficient_attention.default": _efficient,
    "aten._scaled_dot_product_efficient_attention_backward.default": _efficient_backward,
    "aten.native_layer_norm.default": _layer_norm,
    "aten.native_layer_norm_backward.default": _layer_norm_backward,
    "aten.native_group_norm.default": _group_norm,
    "aten.native_group_norm_backward.default": _group_norm_backward,
    "aten.convolution_backward.default": _convolution_backward,
    **{f"aten.{name}": _reduction for name in ("sum.default", "sum.dim_IntList", "mean.default", "mean.dim")},
    "aten.embedding_dense_backward.default": _embedding_backward,
    **{f"aten.{name}.default": _index_put for name in ("index_put", "index_put_", "_index_put_impl_")},
}
"""Operation → its temporaries."""
