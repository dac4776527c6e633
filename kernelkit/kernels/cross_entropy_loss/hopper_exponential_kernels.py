"""The product with exponentials on Hopper: ``_tiles`` of ``triton_exponential_kernels`` in Gluon.

Gluon is Triton's lower language. Two groups of warps multiply 64 rows each with the same 256 columns, which a warp of
a third group has the device copy to shared memory, up to four blocks ahead. They do not wait for each other: while one
takes the exponentials of its tile, the other one has the tensor cores for itself. Triton has all warps go in step.
"""

from __future__ import annotations

from torch import Tensor
from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia import hopper
from triton.experimental.gluon.language.nvidia.hopper import mbarrier, tma
from triton.experimental.gluon.nvidia.hopper import TensorDescriptor

from kernelkit.kernels.head import Head
from kernelkit.kernels.triton_head import LOG2_E
from kernelkit.kernels.triton_launch import blocks_of, processors

ROWS, COLUMNS, DEPTH = gl.constexpr(64), gl.constexpr(256), gl.constexpr(64)
"""What a group multiplies at a time."""
PART = gl.constexpr(128)
"""Columns that it stores at a time, for which there is memory beside what is being loaded."""
STAGES, LEAD = gl.constexpr(4), gl.constexpr(3)
"""Blocks in shared memory, and how many of them the first group takes before the second one begins."""
BYTES = gl.constexpr((2 * ROWS.value + COLUMNS.value) * DEPTH.value * 2)
"""Of a block."""

OPTIONS = {"num_warps": 4, "maxnreg": 168}
"""Of a group; for three there are then as many registers as a processor has."""

load_block = tma.async_load if hasattr(tma, "async_load") else tma.async_copy_global_to_shared
store_block = tma.async_store if hasattr(tma, "async_store") else tma.async_copy_shared_to_global
"""As Triton 3.9 calls them, and 3.6."""


def multiply(
    head: Head,
    rows: Tensor,
    exponentials: Tensor | None,
    labels: Tensor,
    base: Tensor,
    labelled: Tensor,
    statistics: Tensor,
) -> None:
    """The FIRST run of ``_tiles``, with the same arguments."""
    (number, length), vocabulary, stored = rows.shape, len(head.weight), exponentials is not None
    programs = min(processors(rows), blocks_of(2 * ROWS.value, number) * blocks_of(COLUMNS.value, vocabulary))
    _tiles[(programs,)](
        _descriptor(rows, ROWS, DEPTH), _descriptor(head.weight, COLUMNS, DEPTH),
        _descriptor(rows if exponentials is None else exponentials, ROWS, PART),
        labels, base, labelled, statistics, number, vocabulary, length, programs,
        head.bias, head.logit_scale, STORED=stored, **OPTIONS,
    )  # fmt: skip


def _descriptor(tensor: Tensor, height: gl.constexpr, width: gl.constexpr) -> TensorDescriptor:
    block = [height.value, width.value]
    layout = gl.NVMMASharedLayout.get_default_for(block, gl.bfloat16)
    return TensorDescriptor(tensor, [*tensor.shape], [*tensor.stride()], block, layout)


@gluon.jit
def _tiles(
    rows, weight, exponentials, labels, base, labelled, statistics, number, vocabulary, length, programs,
    bias, scale, STORED: gl.constexpr,
):  # fmt: skip
    left = gl.allocate_shared_memory(gl.bfloat16, [2 * STAGES, ROWS, DEPTH], rows.layout)
    right = gl.allocate_shared_memory(gl.bfloat16, [STAGES, COLUMNS, DEPTH], weight.layout)
    out = gl.allocate_shared_memory(gl.bfloat16, [2, ROWS, PART], exponentials.layout)
    full = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
    free = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
    ahead = gl.allocate_shared_memory(gl.int64, [1], mbarrier.MBarrierLayout())
    for slot in gl.static_range(STAGES):
        mbarrier.init(full.index(slot), count=1)
        mbarrier.init(free.index(slot), count=2)
    mbarrier.init(ahead, count=1)
    memory, sizes = (left, right, full, free), (number, vocabulary, length, programs)
    of_rows, head = (labels, base, labelled, statistics), (bias, scale)
    gl.warp_specialize(
        [
            (_multiply, (memory, ahead, out.index(0), exponentials, of_rows, sizes, head, 0, STORED)),
            (_multiply, (memory, ahead, out.index(1), exponentials, of_rows, sizes, head, 1, STORED)),
            (_load, (rows, weight, memory, sizes)),
        ],
        [4, 1],
        [240, 24],
    )


@gluon.jit
def _load(rows, weight, memory, sizes):
    left, right, full, free = memory
    number, vocabulary, length, programs = sizes
    blocks, step = gl.cdiv(number, 2 * ROWS), 0
    for tile in range(gl.program_id(0), blocks * gl.cdiv(vocabulary, COLUMNS), programs):
        first, column = tile % blocks * (2 * ROWS), tile // blocks * COLUMNS
        for start in range(0, length, DEPTH):
            slot = step % STAGES
            arrived = full.index(slot)
            mbarrier.wait(free.index(slot), step // STAGES & 1 ^ 1)
            mbarrier.expect(arrived, BYTES)
            load_block(rows, [first, start], arrived, left.index(2 * slot))
            load_block(rows, [first + ROWS, start], arrived, left.index(2 * slot + 1))
            load_block(weight, [column, start], arrived, right.index(slot))
            step += 1


@gluon.jit
def _multiply(memory, ahead, out, exponentials, of_rows, sizes, head, GROUP: gl.constexpr, STORED: gl.constexpr):
    left, right, full, free = memory
    labels, base, labelled, statistics = of_rows
    number, vocabulary, length, programs = sizes
    whole: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, COLUMNS, 16])
    part: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, PART, 16])
    blocks, columns, step = gl.cdiv(number, 2 * ROWS), gl.cdiv(vocabulary, COLUMNS), 0
    product = gl.zeros([ROWS, COLUMNS], gl.float32, layout=whole)
    if GROUP == 1:
        mbarrier.wait(ahead, 0)
    for tile in range(gl.program_id(0), blocks * columns, programs):
        first, column = tile % blocks * (2 * ROWS) + GROUP * ROWS, tile // blocks * COLUMNS
        row = first + gl.arange(0, ROWS, layout=gl.SliceLayout(1, part))
        there = row < number
        label = gl.load(labels + row, mask=there, other=-1).to(gl.int32)
        zero = gl.load(base + row, mask=there, other=0.0)
        half = labelled + (tile % blocks * columns + tile // blocks) * 2
        in_low, in_high = gl.load(half), gl.load(half + 1)
        for start in range(0, length, DEPTH):
            slot = step % STAGES
            mbarrier.wait(full.index(slot), step // STAGES & 1)
            a, b = left.index(2 * slot + GROUP), right.index(slot).permute((1, 0))
            running = hopper.warpgroup_mma(a, b, product, use_acc=start > 0, is_async=True)
            # Of this one nothing is read before the next one runs; what the last one read is free.
            product = hopper.warpgroup_mma_wait(1, deps=[running])
            mbarrier.arrive(free.index((step + STAGES - 1) % STAGES), count=1, pred=start > 0)
            step += 1
            if GROUP == 0:
                mbarrier.arrive(ahead, count=1, pred=step == LEAD)
        product = hopper.warpgroup_mma_wait(0, deps=[product])
        mbarrier.arrive(free.index((step + STAGES - 1) % STAGES), count=1)
        low, high = product.reshape([ROWS, 2, PART]).permute((0, 2, 1)).split()
        low, high = (
            gl.convert_layout(low, part, assert_trivial=True), gl.convert_layout(high, part, assert_trivial=True)
        )  # fmt: skip
        total = _half(low, out, exponentials, first, column, label, in_low, zero, vocabulary, head, STORED)
        total += _half(high, out, exponentials, first, column + PART, label, in_high, zero, vocabulary, head, STORED)
        gl.store(statistics + (tile // blocks).to(gl.int64) * number + row, total, mask=there)
    if GROUP == 0:
        mbarrier.arrive(ahead, count=1, pred=step < LEAD)  # there were fewer
    tma.store_wait(0)


@gluon.jit
def _half(
    product, out, exponentials, first, column, label, labelled, zero, vocabulary, head, STORED: gl.constexpr
):  # fmt: skip
    bias, scale = head
    columns = column + gl.arange(0, PART, layout=gl.SliceLayout(0, product.type.layout))
    if bias is not None:
        product += gl.load(bias + columns, mask=columns < vocabulary, other=0.0).to(gl.float32).expand_dims(0)
    powers = product * (scale * LOG2_E) - zero.expand_dims(1)
    if column + PART > vocabulary:
        powers = gl.where((columns < vocabulary).expand_dims(0), powers, float("-inf"))
    powers = gl.inline_asm_elementwise(
        "ex2.approx.ftz.f32 $0, $1;", "=f,f", [powers], dtype=gl.float32, is_pure=True, pack=1
    )
    if labelled != 0:
        total = gl.sum(gl.where(columns.expand_dims(0) == label.expand_dims(1), 0.0, powers), axis=1)
    else:
        total = gl.sum(powers, axis=1)
    if STORED:
        tma.store_wait(0)
        out.store(powers.to(gl.bfloat16))
        hopper.fence_async_shared()
        store_block(exponentials, [first, column], out)
    return total
