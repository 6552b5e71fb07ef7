"""What kernels allocate for themselves, worked out by hand or by another transcription of the rule."""

from __future__ import annotations

import math
from typing import Any

import pytest
from graphs import strides_of
from hypothesis import given, settings
from hypothesis import strategies as st

from memfit.graph.model import BEFORE, ITEMSIZE, Graph, Op, Phase, Ref, Storage, StorageKind, Tensor
from memfit.memory.cuda.workspaces import (
    Gpu,
    cublas_workspace_bytes,
    flash_splits,
    is_contiguous,
    library_workspaces,
    reduction_bytes,
    temporaries,
)

T4, A100, RTX3090, RTX4090, H100 = Gpu(7, 5), Gpu(8, 0), Gpu(8, 6), Gpu(8, 9), Gpu(9, 0)


def tensor(*shape: int, dtype: str = "float32", strides: tuple[int, ...] | None = None, offset: int = 0) -> Tensor:
    return Tensor(0, 0, shape, strides or strides_of(shape), dtype, offset)


def bshd(batch: int, heads: int, length: int, size: int, dtype: str) -> Tensor:
    """Queries, keys or values as a projection's view gives them."""
    strides = (length * heads * size, size, heads * size, 1)
    return tensor(batch, heads, length, size, dtype=dtype, strides=strides)


def needs(target: str, *args: Any, gpu: Gpu = A100) -> tuple[int, ...]:
    """Temporaries of one operation, called with tensors among its arguments."""
    tensors: list[Tensor] = []
    recorded: list[Any] = []
    for value in args:
        if isinstance(value, Tensor):
            recorded.append(Ref(len(tensors)))
            tensors.append(value._replace(id=len(tensors), storage=len(tensors)))
        else:
            recorded.append(value)
    storages = tuple(
        Storage(t.id, t.elements * ITEMSIZE[t.dtype], StorageKind.ACTIVATION, BEFORE, 1, 1) for t in tensors
    )
    op = Op(0, "op", target, tuple(range(len(tensors))), (), {}, 0, args=tuple(recorded))
    return temporaries(Graph(storages, tuple(tensors), (op,), (), (), ()), op, gpu)


# -- reductions: ATen/native/cuda/Reduce.cuh once more, structured as the header is ----------------------------------


class Config:
    """`ReduceConfig`, of which one is made per reduction."""

    def __init__(self, outputs: int, inputs: int) -> None:
        self.outputs, self.inputs = outputs, inputs
        self.step_input = self.step_output = 1
        self.ctas = 1
        self.vector = 1
        self.block_x_reduces = False
        self.width = self.height = 0

    def set_block(self, dim0: int, dim1: int) -> None:
        most = 512 // self.vector

        def fitted(n: int) -> int:
            power = 1
            while n < most and power * 2 <= n:
                power *= 2
            return power if n < most else most

        a, b = fitted(dim0), fitted(dim1)
        self.width = a if a < 32 else 32
        self.height = min(b, most // self.width)
        self.width = min(a, most // self.height)

    @property
    def values(self) -> int:
        return math.ceil(self.inputs / self.step_input)

    @property
    def grid(self) -> int:
        return math.ceil((self.outputs // self.vector) / self.step_output)


def reduced(  # noqa: PLR0917
    shape: tuple[int, ...], strides: tuple[int, ...], dims: set[int], sms: int, per_sm: int, vt: int = 4
) -> tuple[int, ...]:
    """Bytes of the buffer and the semaphores, from shape and strides."""
    # TensorIterator puts reduced dimensions first, each group from the fastest on, and joins what is evenly spaced.
    joined: dict[bool, list[list[int]]] = {True: [], False: []}
    for d in sorted(range(len(shape)), key=lambda d: strides[d]):
        if shape[d] == 1:
            continue
        group = joined[d in dims]
        if group and group[-1][0] * group[-1][1] == strides[d]:
            group[-1][0] *= shape[d]
        else:
            group.append([shape[d], strides[d]])
    inside, outside = joined[True], joined[False]
    c = Config(math.prod(n for n, _ in outside), math.prod(n for n, _ in inside))
    if c.inputs == 1:
        return ()
    fastest_is_reduced = not outside or inside[0][1] < outside[0][1]
    if fastest_is_reduced:
        dim0, dim1, stride = c.inputs, c.outputs, inside[0][1]
    else:
        dim0, dim1, stride = c.outputs, c.inputs, outside[0][1]
    if stride == 1 and fastest_is_reduced and dim0 >= 128 and len(inside) == 1:
        dim0 //= vt
    elif stride == 1 and not fastest_is_reduced:
        c.vector = 4
        for n in (outside[0][0], *(s for _, s in inside), *(s for _, s in outside[1:])):
            while n % c.vector:
                c.vector //= 2
        dim0 //= c.vector
    c.set_block(dim0, dim1)
    if fastest_is_reduced:
        c.block_x_reduces = True
        c.step_input *= c.width
    else:
        c.step_output *= c.width
    across_warps = c.values >= min(c.height * 16, 256)
    if across_warps:
        c.step_input *= c.height
    else:
        c.step_output *= c.height
    target = sms * (per_sm // (c.width * c.height))
    if across_warps and c.values >= 256 and c.grid <= target:
        c.ctas = max(min(math.ceil(target / c.grid), math.ceil(c.values / 16)), math.ceil(c.values / 256))
    if c.ctas <= 1:
        return ()
    size = 4 * c.outputs * c.ctas
    if not c.block_x_reduces:
        size *= c.width * c.vector
    return size, 4 * c.grid


sizes = st.one_of(st.integers(1, 40), st.sampled_from([64, 96, 128, 197, 224, 256, 768, 1000, 1024, 3072, 8192, 50257]))


@settings(deadline=None)
@given(
    st.lists(sizes, min_size=1, max_size=4).filter(lambda s: math.prod(s) < 1 << 31),
    st.data(),
    st.sampled_from([(T4, 40, 1024), (A100, 108, 2048), (RTX3090, 82, 1536), (H100, 132, 2048)]),
)
def test_reductions_are_split_as_the_header_says(shape: list[int], data: Any, machine: tuple[Gpu, int, int]) -> None:
    gpu, sms, per_sm = machine
    order = data.draw(st.permutations(range(len(shape))))
    padding = data.draw(st.sampled_from([0, 0, 0, 1, 2, 4]))
    strides, step = [0] * len(shape), 1
    for place, d in enumerate(order):
        strides[d] = step
        step *= shape[d] + (padding if place == 0 else 0)
    dims = set(data.draw(st.lists(st.integers(0, len(shape) - 1), min_size=1, unique=True)))
    kind, mean, vt = data.draw(
        st.sampled_from([("float32", True, 4), ("float32", False, 4), ("float16", True, 8), ("bfloat16", False, 4)])
    )
    x = tensor(*shape, dtype=kind, strides=tuple(strides))
    expected = reduced(tuple(shape), tuple(strides), dims, sms, per_sm, vt)
    assert reduction_bytes(x, tuple(dims), gpu, mean=mean) == expected


@pytest.mark.parametrize(
    ("shape", "dims", "expected"),
    [
        # a whole sum: 1e8 / 512 values a thread, at most 256 of them: 763 parts
        ((10**8,), (0,), (4 * 763, 4)),
        ((8192,), (0,), ()),
        ((255 * 512,), (0,), ()),
        ((256 * 512,), (0,), (4 * 16, 4)),  # 256 values a thread: as many parts as leave 16
        # conv bias: rows of 56 x 56, not one piece: 32 x 64 outputs... each block does one, none is shared
        ((32, 64, 56, 56), (0, 2, 3), ()),
        # linear bias: 4 columns a thread, 32 x 4 threads; 8192 / 4 = 2048 rows a thread; 6 blocks wide, room for 1728,
        # so 128 = min(1728 / 6, 2048 / 16) parts of 768 outputs, each as large as 128 columns
        ((8192, 768), (0,), (4 * 768 * 128 * 128, 4 * 6)),
        ((8192, 3072), (0,), (4 * 3072 * 72 * 128, 4 * 24)),
        ((64, 768), (0,), ()),
    ],
)
def test_reductions_by_hand(shape: tuple[int, ...], dims: tuple[int, ...], expected: tuple[int, ...]) -> None:
    assert reduction_bytes(tensor(*shape), dims, A100) == expected


def test_a_broadcast_gradient_is_not_read_in_vectors() -> None:
    """The mean's gradient is one number seen everywhere: 768 / 32 = 24 blocks, 18 parts of 32 columns."""
    assert reduction_bytes(tensor(8192, 768, strides=(0, 0)), (0,), A100) == (4 * 768 * 18 * 32, 4 * 24)


def test_nothing_is_reduced_of_nothing() -> None:
    assert reduction_bytes(tensor(1 << 20, 0), (0,), A100) == reduction_bytes(tensor(), (), A100) == ()


def test_sums_and_means_name_their_dimensions() -> None:
    x = tensor(8192, 768)
    assert needs("aten.sum.dim_IntList", x, (0,), True) == (50331648, 24)
    assert needs("aten.sum.dim_IntList", x, (-2,)) == (50331648, 24)
    assert needs("aten.sum.default", x) == needs("aten.mean.dim", x, (0, 1)) == reduction_bytes(x, (0, 1), A100)
    assert needs("aten.relu.default", x) == ()


@pytest.mark.parametrize("bias", [True, False])
def test_a_convolutions_bias_gradient(bias: bool) -> None:
    grad = tensor(64, 8, 112, 112, strides=(8 * 112 * 112, 1, 112 * 8, 8))  # channels_last: C is the fastest
    args = (grad, tensor(64, 3, 224, 224), tensor(8, 3, 7, 7), (8,), (2, 2), (3, 3), (1, 1), False, (0, 0), 1)
    found = needs("aten.convolution_backward.default", *args, (True, True, bias))
    assert found == (reduction_bytes(tensor(64 * 112 * 112, 8), (0,), A100) if bias else ())
    assert bool(found) is bias


# -- attention -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("work", "processors", "blocks", "expected"),
    [
        (173, 216, 100, 1),  # 0.8 x 216 = 172.8: enough work
        (172, 216, 100, 5),  # 860 / 216 = 3.98 waves in 4; 1 to 4 fill 0.80 of theirs
        (12, 216, 8, 8),  # 12 s / 216, growing: 8 is the best, 7 and 5 mean the same number of blocks as 8 and 6
        (12, 216, 1, 1),
        (
            1,
            216,
            1000,
            112,
        ),  # s / 216, and of the numbers that change the part's length 125 is the largest: 0.85 x 125 = 106
        (36, 216, 32, 6),  # 5 fills 180 / 216 = 0.83 of a wave, 6 all of it
        (100, 216, 4, 2),  # 200 / 216 = 0.93 against 0.46, 300 / 432, 400 / 432 = 0.93: the first of the good
    ],
)
def test_flash_splits_by_hand(work: int, processors: int, blocks: int, expected: int) -> None:
    assert flash_splits(work, processors, blocks) == expected


def test_flash_with_few_queries_splits_the_keys() -> None:
    """Decoding: 1 query, 8 sequences of 4096 keys, 12 heads of 64: 96 blocks of work for 216 places, 16 of keys."""
    q, k = bshd(8, 12, 1, 64, "float16"), bshd(8, 12, 4096, 64, "float16")
    target = "aten._scaled_dot_product_flash_attention.default"
    # 96 s / 216: 1 → 0.44, 2 → 0.89, 4 → 384 / 432 = 0.89, 6 → 0.89, 8 → 0.89, 16 → 1536 / 1728 = 0.89
    rows = 2 * 8 * 12
    assert needs(target, q, k, k) == (rows * 4, rows * 64 * 4)
    assert needs(target, q, k, k, 0.1) == ()  # dropout never splits
    assert needs(target, bshd(8, 12, 1024, 64, "float16"), k, k) == ()  # 1536 blocks: enough


def test_flash_backward() -> None:
    """Rows rounded to 128, heads to 32; grouped heads get keys' and values' gradients for every query head."""
    q, k = bshd(2, 8, 100, 40, "bfloat16"), bshd(2, 2, 100, 40, "bfloat16")
    target = "aten._scaled_dot_product_flash_attention_backward.default"
    sums, queries = 2 * 8 * 128 * 4, 2 * 128 * 8 * 64 * 4
    assert needs(target, q, q, q, q) == (sums, queries)
    assert needs(target, q, q, k, k) == (sums, queries, *[2 * 100 * 8 * 40 * 2] * 2)


def test_efficient_attention_adds_up_in_fp32_only_for_large_half_heads() -> None:
    target = "aten._scaled_dot_product_efficient_attention.default"
    for dtype, size, expected in (
        ("float16", 128, ()),
        ("float16", 136, (2 * 50 * 4 * 136 * 4,)),
        ("float32", 136, ()),
    ):
        q = bshd(2, 4, 50, size, dtype)
        assert needs(target, q, q, q) == expected


BACKWARD = [
    # GPU, dtype, head size, queries and keys, (block rows, block columns, key splits); B = 2, H = 4
    (A100, "float16", 64, 256, (64, 64, 0)),  # keys' gradients stay in registers
    (A100, "float16", 32, 256, (64, 64, 0)),
    (A100, "float16", 128, 256, (128, 128, 0)),
    (A100, "float16", 160, 256, (128, 64, 4)),  # 256 / 64 columns
    (A100, "float16", 160, 4096, (128, 64, 25)),  # at most 200 / (B H)
    (RTX3090, "bfloat16", 96, 256, (128, 64, 0)),
    (Gpu(12, 0), "bfloat16", 96, 256, (64, 64, 4)),
    (RTX3090, "bfloat16", 128, 256, (64, 64, 4)),
    (H100, "bfloat16", 128, 256, (128, 128, 0)),
    (A100, "float32", 64, 256, (64, 64, 0)),
    (A100, "float32", 128, 256, (128, 64, 0)),
    (RTX4090, "float32", 128, 256, (64, 64, 0)),
    (A100, "float32", 160, 256, (128, 64, 0)),
    (T4, "float16", 64, 256, (64, 64, 0)),
    (T4, "float16", 128, 256, (128, 64, 0)),
    (T4, "float16", 160, 256, (128, 64, 4)),
    (T4, "float32", 128, 256, (64, 64, 0)),
]


@pytest.mark.parametrize(("gpu", "dtype", "size", "length", "kernel"), BACKWARD)
def test_efficient_attention_backward(
    gpu: Gpu, dtype: str, size: int, length: int, kernel: tuple[int, int, int]
) -> None:
    rows, columns, splits = kernel
    q = bshd(2, 4, length, size, dtype)
    target = "aten._scaled_dot_product_efficient_attention_backward.default"
    wide = math.ceil(size / rows) * rows
    numbers = math.ceil(length / rows) * math.ceil(size / columns) * (rows * columns + 4) + 2 * splits * columns * wide
    sums = 2 * 4 * length * 4
    small = (2 * length * 4 * size * 4, sums, sums) if dtype == "float32" else (sums,)
    assert needs(target, q, q, q, q, gpu=gpu) == (*small, 2 * 4 * numbers * 4)


def test_efficient_attention_backward_of_many_short_heads_does_not_split() -> None:
    """256 heads, at most two blocks of keys: one part; the rows' temporaries as before."""
    q = bshd(16, 16, 128, 160, "float16")
    found = needs("aten._scaled_dot_product_efficient_attention_backward.default", q, q, q, q)
    numbers = 1 * 3 * (128 * 64 + 4) + 2 * 1 * 64 * 256
    assert found == (256 * 128 * 4, 256 * numbers * 4)


# -- norms -----------------------------------------------------------------------------------------------------------


def test_layer_norm_copies_what_is_not_dense() -> None:
    dense, turned = tensor(8, 16, 32), tensor(8, 16, 32, strides=(512, 1, 16))
    weight = tensor(32)
    assert needs("aten.native_layer_norm.default", dense, (32,), weight, weight, 1e-5) == ()
    assert needs("aten.native_layer_norm.default", turned, (32,), weight, weight, 1e-5) == (8 * 16 * 32 * 4,)
    statistics = tensor(8, 16, 1)
    args = ((32,), statistics, statistics, weight, weight, (True, True, True))
    assert needs("aten.native_layer_norm_backward.default", turned, dense, *args) == (8 * 16 * 32 * 4,)


@pytest.mark.parametrize(
    ("rows", "columns", "dtype", "parts"),
    [
        (65536, 96, "float32", None),  # not more than 65536 rows
        (65537, 96, "float32", 2049),  # ceil(65537 / 32) parts of 32 rows
        (1 << 20, 96, "bfloat16", 10922),  # at most 32768 / 3 of them
        (65537, 1727, "float32", 606),  # 1727 // 32 = 53, under half of 108; 32768 // 54
        (65537, 1728, "float32", None),  # 54 is not
    ],
)
def test_layer_norm_backward_of_many_short_rows(rows: int, columns: int, dtype: str, parts: int | None) -> None:
    x, weight, statistics = tensor(rows, columns, dtype=dtype), tensor(columns, dtype=dtype), tensor(rows, 1)
    args = (x, x, (columns,), statistics, statistics, weight, weight, (True, True, True))
    each = (parts or 0) * columns * ITEMSIZE[dtype]
    assert needs("aten.native_layer_norm_backward.default", *args) == ((each, each) if parts else ())


def test_group_norm() -> None:
    """2 images, 12 channels in 3 groups."""
    x, flat, weight, statistics = tensor(2, 12, 5, 5, dtype="float16"), tensor(2, 12), tensor(12), tensor(2, 3)
    forward, backward = "aten.native_group_norm.default", "aten.native_group_norm_backward.default"
    channels, groups = 2 * 12 * 4, 2 * 3 * 4
    assert needs(forward, x, weight, weight, 2, 12, 25, 3, 1e-5) == (channels, channels)
    assert needs(forward, x, None, None, 2, 12, 25, 3, 1e-5) == ()
    assert needs(forward, flat, weight, weight, 2, 12, 1, 3, 1e-5) == ()
    rest = (2, 12, 25, 3, (True, True, True))
    assert needs(backward, x, x, statistics, statistics, weight, *rest) == (
        channels, channels, groups, groups, channels,
    )  # fmt: skip
    assert needs(backward, x, x, statistics, statistics, None, *rest) == (channels, channels, groups, groups)
    assert needs(backward, flat, flat, statistics, statistics, weight, 2, 12, 1, 3, (True,) * 3) == (groups, groups)


# -- indexing --------------------------------------------------------------------------------------------------------


def test_embedding_backward_of_few_tokens_needs_nothing() -> None:
    grad, ids = tensor(3, 1024, 768), tensor(3, 1024, dtype="int64")
    assert needs("aten.embedding_dense_backward.default", grad, ids, 50257, -1, False) == ()


def test_embedding_backward_of_gpt2() -> None:
    """8 x 1024 tokens: 8192 segments at most, 819 + 8192 parts; 8192 x 768 / 768 blocks are more than 4 x 108."""
    grad, ids = tensor(8, 1024, 768), tensor(8, 1024, dtype="int64")
    n, parts = 8192, 819 + 8192
    found = needs("aten.embedding_dense_backward.default", grad, ids, 50257, -1, False)
    assert found == (*[8 * n] * 5, 8 * parts, parts * 768 * 4)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_embedding_backward_into_few_rows_is_one_kernel(dtype: str) -> None:
    """200 rows: 200 segments, 819 + 200 parts, 200 blocks: fewer than 432, and 1019 parts more than 4 x 200."""
    grad, ids = tensor(8, 1024, 768, dtype=dtype), tensor(8, 1024, dtype="int64")
    found = needs("aten.embedding_dense_backward.default", grad, ids, 200, -1, False)
    common = (8 * 8192,) * 3 + (8 * 200,) * 2 + (8 * 1019,) * 2
    assert found == (*common, *(() if dtype == "float32" else (4 * 200 * 768,)))


def test_embedding_backward_of_narrow_rows_is_not_one_kernel_for_many_segments() -> None:
    """32 columns: 350 segments are as many blocks, fewer than 432, but 819 + 350 parts are not more than 4 x 350."""
    grad, ids = tensor(8, 1024, 32), tensor(8, 1024, dtype="int64")
    found = needs("aten.embedding_dense_backward.default", grad, ids, 350, -1, False)
    assert found == (*[8 * 8192] * 3, *[8 * 350] * 2, 8 * 1169, 1169 * 32 * 4)


def test_index_put_sorts_only_to_accumulate() -> None:
    """Linear index, its sorted copy and origin, and while they are sorted a range and 16 bytes an index."""
    table, ids, values = tensor(100, 8), tensor(50, dtype="int64"), tensor(50, 8)
    op = Op(0, "op", "aten.index_put_.default", (0, 1, 2), (), {}, 0, args=(Ref(0), (Ref(1),), Ref(2), True))
    tensors = tuple(t._replace(id=i, storage=i) for i, t in enumerate((table, ids, values)))
    graph = Graph((), tensors, (op,), (), (), ())
    assert sum(temporaries(graph, op, A100)) == 50 * 8 * 6
    assert temporaries(graph, op._replace(args=(*op.args[:3], False)), A100) == ()


# -- libraries -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("major", "mib"), [(7, 8.125), (8, 8.125), (9, 32), (10, 32), (12, 32)])
def test_cublas_workspace(major: int, mib: float) -> None:
    assert cublas_workspace_bytes(major) == mib * (1 << 20)


def test_each_thread_asks_for_a_workspace_of_its_own() -> None:
    def op(index: int, name: str, phase: Phase) -> Op:
        return Op(index, "op", f"aten.{name}.default", (), (), {}, 0, phase=phase)

    ops = (
        op(0, "convolution", Phase.FORWARD),
        op(1, "addmm", Phase.FORWARD),
        op(2, "bmm", Phase.LOSS),
        op(3, "mm", Phase.BACKWARD),
    )
    found = library_workspaces(Graph((), (), ops, (), (), (), environment={"capability": "9.0"}))
    assert [len(each) for each in found] == [0, 1, 1, 1]
    assert found[1] == found[2] != found[3]
    assert {nbytes for each in found for _, nbytes in each} == {32 << 20}


def test_contiguous() -> None:
    assert is_contiguous(tensor(2, 1, 3, strides=(3, 77, 1)))
    assert not is_contiguous(tensor(2, 3, strides=(4, 1)))
    assert is_contiguous(tensor())
