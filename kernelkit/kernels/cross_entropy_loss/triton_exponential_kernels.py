"""The cross-entropy of a head in bfloat16 whose product leaves exponentials behind, and never logits.

Relative to the logit of the row's own label, e^(z - z_label) hardly ever leaves the range of bfloat16, and in it loses
no more than its gradient would. The softmax's normaliser is then a factor of the row, which the products that follow
take into their float32 results: the gradient of a row's logits is that factor times its exponentials, and at the label
times what the others sum up to, negative. So the vocabulary is gone through once, inside the product. Rows whose label
is so improbable that an exponential would leave the range are computed again, relative to their largest logit.
"""

from __future__ import annotations

import functools

import torch
import triton
import triton.language as tl
from packaging.version import Version
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor

from kernelkit.kernels.head import Head
from kernelkit.kernels.triton_head import LN_2, LOG2_E, LOWEST, NATIVE, tanh
from kernelkit.kernels.triton_launch import blocks_of, power_of_two, processors

FARTHEST = 86.0
"""By which power of two an exponential may exceed the label's: times any vocabulary it is far inside bfloat16."""

FIRST: tl.constexpr = tl.constexpr(0)
LARGEST: tl.constexpr = tl.constexpr(1)
AGAIN: tl.constexpr = tl.constexpr(2)
"""The runs through the vocabulary. The last two, for the largest logits and with them, are hardly ever needed."""

ROWS, COLUMNS, DEPTH = 128, 256, 64
OPTIONS = {"num_warps": 8, "num_stages": 3}
"""The tile of a program, and how it is compiled: the fastest of six on an H100 at a hidden size of 1024."""

GLUON = torch.version.hip is None and Version("3.6") <= Version(triton.__version__) < Version("3.10")
"""Whether this Triton has the Gluon of ``hopper_exponential_kernels``: 3.6 to 3.9 compile it, and with 3.6 it ran."""

SMALL = (32, 64, 32)
"""The tile in the interpreter, so that small shapes have several."""


def is_possible(rows: Tensor, weight: Tensor) -> bool:
    """Whether these tensors have the layout, and their device the instructions, for the product's loads."""
    return suits(rows, weight) and weight.data_ptr() % 16 == 0


def suits(rows: Tensor, weight: Tensor) -> bool:
    """The same of tensors that need not exist, which hardly ever lie elsewhere."""
    if rows.dtype != torch.bfloat16 or weight.dtype != torch.bfloat16 or weight.stride(1) != 1:
        return False
    if rows.shape[1] % 8 or weight.stride(0) % 8:
        return False
    if not rows.is_cuda:
        return not NATIVE.value
    return torch.version.hip is None and bool(torch.cuda.get_device_capability(rows.device) >= (9, 0))


def write_exponentials(
    head: Head, rows: Tensor, labels: Tensor, exponentials: Tensor | None, losses: Tensor, z_loss_coef: float
) -> Tensor:
    """Write the losses [N] of ``rows`` [N, H] and, unless None, the ``exponentials`` [N, V], bfloat16.

    Returns:
        Factors [N]: ``factors[:, None] * exponentials`` is the gradient of the head's product.
    """
    number, vocabulary = rows.shape[0], head.weight.shape[0]
    if number == 0:
        return losses
    tile = (ROWS, COLUMNS, DEPTH) if rows.is_cuda else SMALL
    columns = blocks_of(tile[1], vocabulary)
    programs = min(processors(rows), blocks_of(tile[0], number) * columns)
    of_label, base, factors = losses.new_empty(3, number).unbind()
    labelled = labels.new_zeros(blocks_of(tile[0], number), 2 * columns, dtype=torch.int8)
    statistics = losses.new_empty(columns, number)
    again = labels.new_zeros((), dtype=torch.int32)
    bias, scale, cap, stored = head.bias, head.logit_scale, head.softcap, exponentials is not None
    _label_logits[(number,)](
        rows, head.weight, labels, of_label, base, labelled, vocabulary, rows.shape[1], head.weight.stride(0),
        2 * columns, bias, scale, cap, BLOCK=min(1024, power_of_two(rows.shape[1])), ROWS=tile[0], HALF=tile[1] // 2,
    )  # fmt: skip
    loads = [TensorDescriptor.from_tensor(rows, [tile[0], tile[2]])]
    loads += [TensorDescriptor.from_tensor(head.weight, [tile[1], tile[2]])]
    stores = loads[0] if exponentials is None else _halves(exponentials, tile)
    written = (losses, 0) if exponentials is None else (exponentials, exponentials.stride(0))

    def multiply(run: int) -> None:
        _tiles[(programs,)](
            *loads, stores, labels, base, labelled, again, statistics, number, vocabulary, rows.shape[1],
            bias, scale, cap, STORED=stored, RUN=run, ROWS=tile[0], COLUMNS=tile[1], DEPTH=tile[2],
            PROGRAMS=programs, **OPTIONS,
        )  # fmt: skip

    def finish(run: int) -> None:
        _rows[(blocks_of(16, number),)](
            labels, of_label, base, again, statistics, losses, factors, *written, number, vocabulary, columns,
            FARTHEST, scale, cap, z_loss_coef, STORED=stored, SQUARED=z_loss_coef != 0.0, RUN=run, ROWS=16, BLOCK=64,
        )  # fmt: skip

    if _is_for_gluon(head, rows):
        from kernelkit.kernels.cross_entropy_loss import hopper_exponential_kernels as hopper

        hopper.multiply(head, rows, exponentials, labels, base, labelled, statistics)
    else:
        multiply(FIRST)
    finish(FIRST)
    multiply(LARGEST)
    _move_bases[(blocks_of(16, number),)](base, again, statistics, number, columns, FARTHEST, ROWS=16, BLOCK=64)
    multiply(AGAIN)
    finish(AGAIN)
    return factors


def _is_for_gluon(head: Head, rows: Tensor) -> bool:
    """Whether ``hopper_exponential_kernels`` takes the first run.

    Neither older nor newer GPUs have its instructions, the tanh of a softcap takes more registers than there are, and
    Gluon differs from one version of Triton to the next.
    """
    return rows.is_cuda and head.softcap is None and GLUON and _capability(rows.device) == (9, 0)


@functools.cache
def _capability(device: torch.device) -> tuple[int, int]:
    return torch.cuda.get_device_capability(device)


def place_scaled(of_hidden: Tensor, positions: Tensor, of_rows: Tensor, factors: Tensor | None) -> None:
    """``chunked_head.place`` in one kernel instead of two."""
    number, width = of_rows.shape
    _place[(number,)](of_hidden, positions, of_rows, factors, width, BLOCK=min(1024, power_of_two(width)))


@triton.jit
def _place(of_hidden, positions, of_rows, factors, width, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    position, factor = tl.load(positions + row), tl.load(factors + row)
    for start in range(0, width, BLOCK):
        at = start + tl.arange(0, BLOCK)
        values = tl.load(of_rows + row * width + at, mask=at < width) * factor
        tl.store(of_hidden + position * width + at, values, mask=at < width)


def _halves(exponentials: Tensor, tile: tuple[int, int, int]) -> TensorDescriptor:
    """A tile is stored in two halves, for which there is shared memory beside what is being loaded."""
    return TensorDescriptor(exponentials, [*exponentials.shape], [*exponentials.stride()], [tile[0], tile[1] // 2])


@triton.jit
def _label_logits(
    rows, weight, labels, of_label, base, labelled, vocabulary, length, stride, halves, bias, scale, cap,
    BLOCK: tl.constexpr, ROWS: tl.constexpr, HALF: tl.constexpr,
):  # fmt: skip
    """The logit of each row's label; nan for a label that is no token, of which nothing is read.

    ``base`` has it as a power of two, and ``labelled`` [row blocks, halves] says which half tiles have a label.
    """
    row = tl.program_id(0).to(tl.int64)
    label = tl.load(labels + row)
    inside = (label >= 0) & (label < vocabulary)
    label = tl.where(inside, label, 0)
    total = tl.zeros((BLOCK,), tl.float32)
    for start in range(0, length, BLOCK):
        at = start + tl.arange(0, BLOCK)
        left = tl.load(rows + row * length + at, mask=at < length, other=0.0).to(tl.float32)
        total += left * tl.load(weight + label * stride + at, mask=at < length, other=0.0).to(tl.float32)
    logit = tl.sum(total, axis=0)
    if bias is not None:
        logit += tl.load(bias + label).to(tl.float32)
    logit = logit * scale
    if cap is not None:
        logit = tanh(logit / cap) * cap
    tl.store(of_label + row, tl.where(inside, logit, float("nan")))
    tl.store(base + row, tl.where(inside, logit * LOG2_E, 0.0))
    tl.store(labelled + row // ROWS * halves + label // HALF, 1, mask=inside)


@triton.jit
def _tiles(
    rows, weight, exponentials, labels, base, labelled, again, statistics, number, vocabulary, length,
    bias, scale, cap, STORED: tl.constexpr, RUN: tl.constexpr,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, DEPTH: tl.constexpr, PROGRAMS: tl.constexpr,
):  # fmt: skip
    """The product by tiles, those of a block of the weight one after the other, and what becomes of each half tile.

    ``statistics`` [tiles of a row, N]: the sum of all exponentials but the label's; in the run for the LARGEST, the
    maximum of their logarithms to base two.
    """
    if RUN != FIRST:
        if tl.load(again) == 0:
            return
    blocks = tl.cdiv(number, ROWS)
    HALF: tl.constexpr = COLUMNS // 2
    for tile in tl.range(tl.program_id(0), blocks * tl.cdiv(vocabulary, COLUMNS), PROGRAMS, flatten=True):
        first = (tile % blocks) * ROWS
        column = (tile // blocks) * COLUMNS
        row = first + tl.arange(0, ROWS)
        there = row < number
        # Before the product, so that nothing waits for them after it.
        label = tl.load(labels + row, mask=there, other=-1).to(tl.int32)
        zero = tl.load(base + row, mask=there, other=0.0)
        half = labelled + tile % blocks * (2 * tl.cdiv(vocabulary, COLUMNS)) + tile // blocks * 2
        in_low, in_high = tl.load(half), tl.load(half + 1)
        product = tl.zeros((ROWS, COLUMNS), tl.float32)
        for start in range(0, length, DEPTH):
            left, right = rows.load([first, start]), weight.load([column, start])
            if not NATIVE:  # the interpreter would multiply the bits of bfloat16 as numbers
                left, right = left.to(tl.float32), right.to(tl.float32)
            product = tl.dot(left, right.T, product)
        low, high = tl.split(tl.permute(tl.reshape(product, (ROWS, 2, HALF)), (0, 2, 1)))
        of_low = _half(
            low, exponentials, first, column, label, in_low, zero, vocabulary, bias, scale, cap, STORED, RUN, HALF
        )  # fmt: skip
        of_high = _half(
            high, exponentials, first, column + HALF, label, in_high, zero, vocabulary, bias, scale, cap,
            STORED, RUN, HALF,
        )  # fmt: skip
        both = tl.maximum(of_low, of_high) if RUN == LARGEST else of_low + of_high
        tl.store(statistics + (tile // blocks).to(tl.int64) * number + row, both, mask=there)


@triton.jit
def _half(
    product, exponentials, first, column, label, labelled, zero, vocabulary, bias, scale, cap,
    STORED: tl.constexpr, RUN: tl.constexpr, HALF: tl.constexpr,
):  # fmt: skip
    """Few instructions for an entry, since nothing is multiplied meanwhile: most halves are whole and have no label."""
    columns = column + tl.arange(0, HALF)
    if bias is not None:
        product += tl.load(bias + columns, mask=columns < vocabulary, other=0.0).to(tl.float32)[None, :]
    if cap is not None:
        slope = tanh(product * (scale / cap))
        powers = slope * (cap * LOG2_E) - zero[:, None]
    else:
        powers = product * (scale * LOG2_E) - zero[:, None]
    if column + HALF > vocabulary:
        powers = tl.where((columns < vocabulary)[None, :], powers, float("-inf"))
    if RUN == LARGEST:
        of_half = tl.max(powers, axis=1)
    else:
        powers = tl.exp2(powers)
        if labelled != 0:
            of_half = tl.sum(tl.where(columns[None, :] == label[:, None], 0.0, powers), axis=1)
        else:
            of_half = tl.sum(powers, axis=1)
        if STORED:
            if cap is not None:
                powers *= 1.0 - slope * slope
            exponentials.store([first, column], powers.to(tl.bfloat16))
    return of_half


@triton.jit
def _of_tiles(statistics, start, tiles, row, number, other, BLOCK: tl.constexpr):
    """The statistics [BLOCK, ROWS] of the rows, from the tile ``start`` on."""
    tile = start + tl.arange(0, BLOCK)
    mask = (tile < tiles)[:, None] & (row < number)[None, :]
    return tl.load(statistics + tile.to(tl.int64)[:, None] * number + row[None, :], mask=mask, other=other)


@triton.jit
def _move_bases(base, again, statistics, number, tiles, farthest, ROWS: tl.constexpr, BLOCK: tl.constexpr):
    """Make the largest logit the base of a row that has exponentials too large."""
    if tl.load(again) == 0:
        return
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    maximum = tl.full((ROWS,), LOWEST, tl.float32)
    for start in range(0, tiles, BLOCK):
        largest = tl.max(_of_tiles(statistics, start, tiles, row, number, LOWEST, BLOCK), axis=0)
        maximum = tl.maximum(maximum, largest)
    far = (row < number) & (maximum > farthest)
    tl.store(base + row, tl.load(base + row, mask=far, other=0.0) + maximum, mask=far)


@triton.jit
def _rows(
    labels, of_label, base, again, statistics, losses, factors, exponentials, stride,
    number, vocabulary, tiles, farthest, scale, cap, z_loss_coef,
    STORED: tl.constexpr, SQUARED: tl.constexpr, RUN: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Losses, factors, and the label's entry; and the first time, whether an exponential may have left the range."""
    if RUN == AGAIN:
        if tl.load(again) == 0:
            return
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    there = row < number
    total = tl.zeros((ROWS,), tl.float32)
    for start in range(0, tiles, BLOCK):
        total += tl.sum(_of_tiles(statistics, start, tiles, row, number, 0.0, BLOCK), axis=0)
    zero = tl.load(base + row, mask=there, other=0.0)
    if RUN == FIRST:
        tl.atomic_max(again, tl.max((total > tl.exp2(farthest)).to(tl.int32), axis=0))
    logit = tl.load(of_label + row, mask=there, other=0.0)
    power = logit * LOG2_E - zero
    own = tl.exp2(power)
    whole = total + own
    loss = (tl.log2(whole) - power) * LN_2
    normaliser = loss + logit
    of_entry = -total
    factor = scale / whole
    if SQUARED:
        loss += z_loss_coef * normaliser * normaliser
        share = 1.0 + 2.0 * z_loss_coef * normaliser
        # Where it vanishes the other entries do, and the label's is to be what is left.
        share = tl.where(tl.abs(share) < 1e-4, 1e-4, share)
        of_entry = (own * (share - 1.0) - total) / share
        factor *= share
    tl.store(losses + row, loss, mask=there)
    tl.store(factors + row, factor, mask=there)
    if STORED:
        if cap is not None:
            slope = logit / cap
            of_entry *= 1.0 - slope * slope
        label = tl.load(labels + row, mask=there, other=-1)
        inside = there & (label >= 0) & (label < vocabulary)
        tl.store(exponentials + row.to(tl.int64) * stride + label, of_entry.to(tl.bfloat16), mask=inside)
