"""What the Triton kernels of the losses do with a row of logits that several programs share.

Each program keeps its piece of the row in registers, publishes what the others need to know of it, and waits for them:
so the logits are read once. Logarithms are taken to the base of two, as the hardware takes them.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernelkit.kernels.custom_op import custom_op
from kernelkit.kernels.scaled_gradient import empty_product
from kernelkit.kernels.triton_launch import power_of_two, processors

LOG2_E: tl.constexpr = tl.constexpr(1.4426950408889634)
LN_2: tl.constexpr = tl.constexpr(0.6931471805599453)
NATIVE: tl.constexpr = tl.constexpr(not triton.knobs.runtime.interpret and torch.version.hip is None)
"""Compiled to PTX."""
LOWEST: tl.constexpr = tl.constexpr(-1e30)
"""What is taken for a maximum below it: finite, so that it can be subtracted from itself."""


class Cut(NamedTuple):
    """How a row is cut in pieces.

    Attributes:
        block: the length of a piece.
        warps: of the program that takes it.
        registers: of a thread: few, so that programs overlap.
    """

    block: int
    warps: int
    registers: int

    def pieces(self, vocabulary: int) -> tuple[int, int, dict[str, int]]:
        """In how many pieces a row is cut, how long they are, and how their programs are compiled."""
        block = min(self.block, power_of_two(vocabulary))
        warps = max(1, self.warps * block // self.block)
        return triton.cdiv(vocabulary, block), block, {"num_warps": warps, "maxnreg": self.registers}


def stages(tensor: Tensor, number: int, last: int) -> Iterator[tuple[int, int]]:
    """The stages from 0 to ``last``, each of which needs what another program published in the one before.

    They are one launch where all ``number`` programs of a row surely run at a time, and may wait for each other: the
    device starts programs in order, so that those of the first unfinished row run, or are next. Elsewhere, as in
    Triton's interpreter, each stage is a launch of its own.
    """
    if number == 1 or (tensor.is_cuda and number <= processors(tensor)):
        yield 0, last
    else:
        yield from ((stage, stage) for stage in range(last + 1))


@triton.jit
def arrive(arrived):
    """Announce what this program has stored so far."""
    tl.debug_barrier()
    tl.atomic_add(arrived, 1, sem="release", scope="gpu")


@triton.jit
def wait(arrived, expected):
    """Wait until ``expected`` programs have arrived."""
    while tl.atomic_add(arrived, 0, sem="acquire", scope="gpu") < expected:
        pass
    tl.debug_barrier()


@triton.jit
def published(partials, mask, missing):
    """What the programs of a row have stored, past the cache that they do not share."""
    return tl.load(partials, mask=mask, other=missing, cache_modifier=".cg")


@triton.jit
def softmax_of_piece(logits, factor):
    """The maximum along the first dimension, the powers 2^(factor (logits - maximum)), and their sum."""
    maximum = tl.maximum(tl.max(logits, axis=0), LOWEST)
    powers = tl.exp2((logits - maximum) * factor)
    return maximum, powers, tl.sum(powers, axis=0)


@triton.jit
def softmax_of_pieces(maxima, sums, factor):
    """The same of the row, from what it is of each piece; of the sum, its logarithm."""
    maximum = tl.max(maxima, axis=0)
    return maximum, tl.log2(tl.sum(sums * tl.exp2((maxima - maximum) * factor), axis=0))


@triton.jit
def log2(x):
    """Without the care that libdevice takes of what is not a normal number, in a branch for each."""
    if NATIVE and x.dtype == tl.float32:
        log = tl.inline_asm_elementwise("lg2.approx.f32 $0, $1;", "=f,f", [x], dtype=tl.float32, is_pure=True, pack=1)
    else:
        log = tl.log2(x)
    return log


@triton.jit
def tanh(x):
    """Of the exponential alone, with an error of float32's last bit below 1."""
    e = tl.exp2(tl.abs(x) * (-2.0 * LOG2_E))
    positive = (1.0 - e) / (1.0 + e)
    return tl.where(x < 0, -positive, positive)


@triton.jit
def head_logits(product, columns, mask, bias, scale, cap):
    """The logits at ``columns``, of the product of a head that ``Head.parts`` describes; finite off ``mask``."""
    logits = tl.load(product + columns, mask=mask, other=0.0)
    if bias is not None:
        logits += tl.load(bias + columns, mask=mask, other=0.0).to(logits.dtype)
    if scale is not None:
        logits = logits * scale
    if cap is not None:
        logits = tanh(logits / cap) * cap
    return logits


@triton.jit
def head_chain(gradient, logits, scale, cap):
    """The gradient of that product, from the gradient of the logits."""
    if cap is not None:
        slope = logits / cap
        gradient = gradient * (1.0 - slope * slope)
    if scale is not None:
        gradient = gradient * scale
    return gradient


@triton.jit
def cross_entropy(product, label, vocabulary, bias, scale, cap, maximum, log_sum):
    """That of a row's label. A label that is no token makes it nan, and reads nothing past the row."""
    inside = (label >= 0) & (label < vocabulary)
    of_label = head_logits(product, label, inside, bias, scale, cap)
    return maximum - tl.where(inside, of_label, float("nan")) + log_sum * LN_2


@triton.jit
def _scale(gradient, factor, scaled, size, BLOCK: tl.constexpr):
    index = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    mask = index < size
    product = tl.load(gradient + index, mask=mask) * tl.load(factor)
    tl.store(scaled + index, product.to(scaled.dtype.element_ty), mask=mask)


@custom_op("triton_scaled_gradient", fake=empty_product)
def scaled_gradient(gradient: Tensor, factor: Tensor, dtype: torch.dtype) -> Tensor:
    """``scaled_gradient`` of the module of that name, which torch computes in twice the time for two dtypes."""
    scaled = empty_product(gradient, factor, dtype)
    size, block = gradient.numel(), 4096
    if size > 0:
        _scale[(triton.cdiv(size, block),)](gradient.contiguous(), factor, scaled, size, BLOCK=block)
    return scaled
